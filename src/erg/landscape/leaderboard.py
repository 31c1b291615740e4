"""Figure of a leaderboard: methods on the same digits, trained on the spot."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from erg.evaluate.knn import knn_accuracy
from erg.evaluate.linear import linear_accuracy
from erg.landscape.draw import Canvas, Figure
from erg.landscape.learn import learn, method
from erg.landscape.pictures import Digits, digits, mlp
from erg.train.run import Optimiser
from erg.views.plan import WHOLE, two_views

WIDTH = 32
"""Of the codes [features]."""

CODES: dict[str, dict[str, Any]] = {
    "PCA": {"k": WIDTH},
    "KMeans": {"k": WIDTH},
    "SparseCoding": {"k": 2 * WIDTH, "sparsity": 0.1, "iterations": 30},
    "Autoencoder": {"dim": WIDTH, **mlp(256, 64)},
    "DenoisingAutoencoder": {"noise": 0.25, **mlp(256, WIDTH)},
    "VariationalAutoencoder": {"dim": WIDTH, "output": "bernoulli", **mlp(256, 64)},
    "VICReg": {"hidden": 256, "dim": 64, "encoder": "mlp",
               "encoder_args": {"width": 256, "depth": 1, "dim": WIDTH}},
}  # fmt: skip
"""What is compared, with its arguments; the two views of VICReg are noisy and have holes."""


@dataclass(frozen=True, eq=False)
class Leaderboard(Figure):
    """Codes of digits by several methods, under one protocol: 20 neighbours with all labels, and a
    linear probe that is told ten labels of each class."""

    size = (11.5, 4.6)
    names: tuple[str, ...]
    widths: np.ndarray
    neighbours: np.ndarray
    probes: np.ndarray

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", steps: int = 1500
    ) -> "Leaderboard":
        found = digits(data, label=label)
        codes = {"raw pixels": (found.train.numpy(), found.test.numpy())}
        for name, arguments in CODES.items():
            model: Any = method(name, found.side**2, seed=seed, **arguments)
            noisy = two_views(replace(WHOLE, noise=0.2, zeroed=0.3)) if name == "VICReg" else None
            few = steps // 5 if name in ("PCA", "KMeans", "SparseCoding") else steps
            rate = 2e-2 if name == "SparseCoding" else 3e-3
            learn(
                model, found.train, steps=few, batch=128, plan=noisy, seed=seed,
                optimiser=Optimiser(lr=rate, weight_decay=0.0),
            )  # fmt: skip
            with torch.no_grad():
                codes[name] = (model.encode(found.train).numpy(), model.encode(found.test).numpy())
        told = few_of_each(found.train_labels, 10)
        scores = [judged(train, test, found, told, seed) for train, test in codes.values()]
        order = np.argsort([-probe for _, probe in scores], kind="stable")
        return cls(
            tuple(list(codes)[i] for i in order),
            np.array([list(codes.values())[i][0].shape[1] for i in order]),
            *(np.array([scores[i][which] for i in order]) for which in (0, 1)),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            **{f"20 neighbours, {n}": float(s)
               for n, s in zip(self.names, self.neighbours, strict=True)},
            **{f"100 labels, {n}": float(s) for n, s in zip(self.names, self.probes, strict=True)},
        }  # fmt: skip

    def draw(self, canvas: Canvas) -> None:
        ((ax,),) = canvas.panels(1, 1)
        place, colours = np.arange(len(self.names)), canvas.theme.colours
        for shift, scores, name, colour in (
            (-0.2, self.probes, "linear probe, 10 labels a class", colours[0]),
            (0.2, self.neighbours, "20 neighbours, all labels", colours[1]),
        ):
            bars = ax.barh(place + shift, 100 * scores, 0.38, color=colour, label=name)
            ax.bar_label(bars, fmt="%.1f", padding=3, color=canvas.theme.quiet)
        labels = [f"{n} ({w})" for n, w in zip(self.names, self.widths, strict=True)]
        low = 100 * min(self.probes.min(), self.neighbours.min())
        ax.set(
            yticks=place, yticklabels=labels, xlabel="right on held-out digits [%]",
            title="a leaderboard of digits (width of the code)", xlim=(max(0, low - 10), 104),
        )  # fmt: skip
        ax.invert_yaxis()
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def few_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of the first items of every class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def judged(
    train: np.ndarray, test: np.ndarray, found: Digits, told: np.ndarray, seed: int
) -> tuple[float, float]:
    """Accuracy of 20 neighbours with all labels, and of a linear probe with some."""
    near = knn_accuracy(train, found.train_labels, test, found.test_labels)
    probe = linear_accuracy(
        train[told], found.train_labels[told], test, found.test_labels, seed=seed
    )
    return float(near.mean()), float(probe.mean())
