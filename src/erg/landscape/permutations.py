"""Figure of tiles in many orders: a method that names the order, and one that ignores it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erg import noise
from erg.data.cache import Cache
from erg.evaluate.linear import linear_accuracy
from erg.landscape.draw import Canvas, Figure
from erg.landscape.learn import learn, method
from erg.landscape.pictures import Digits, digits
from erg.parts.tiles import far_orders
from erg.train.run import Optimiser

SIDE = 24
"""Of the pictures that are cut into 3 x 3 tiles [pixels]."""

CONV: dict[str, Any] = {"encoder": "conv", "encoder_args": {"width": 16, "stages": 3}}

EVERY = 362_880
"""Orders of nine tiles."""


@dataclass(frozen=True, eq=False)
class Permutations(Figure):
    """Jigsaw has to name the order of nine tiles, PIRL to make the same of all of them: what a
    linear probe reads from either, by the number of orders; and why few of them should be chosen
    to be far apart. PIRL alone can have all 362,880."""

    size = (13.0, 4.8)
    counts: np.ndarray
    jigsaw: np.ndarray
    pirl: np.ndarray
    untrained: float
    nearest_chosen: np.ndarray
    nearest_random: np.ndarray

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", steps: int = 300,
        most: int = 200,
    ) -> "Permutations":  # fmt: skip
        counts = np.array([2, 20, 200])
        counts = counts[counts <= most]
        chosen, random = far_orders(9, int(counts[-1])), shuffles(int(counts[-1]), seed)
        found = digits(data, label=label)
        before: Any = method("Jigsaw", SIDE, seed=seed, orders=2, grid=3, **CONV)
        return cls(
            counts,
            np.array([score("Jigsaw", chosen[:n], found, steps, seed) for n in counts]),
            np.array([
                score("PIRL", orders, found, steps, seed)
                for orders in (*(chosen[:n] for n in counts), chosen[:0])
            ]),
            probed(before, found),
            *(np.array([closest(rows[:n]) for n in counts]) for rows in (chosen.numpy(), random)),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            "linear probe, untrained": self.untrained,
            **{f"linear probe, Jigsaw, {n} orders": float(s)
               for n, s in zip(self.counts, self.jigsaw, strict=True)},
            **{f"linear probe, PIRL, {n} orders": float(s)
               for n, s in zip([*self.counts, EVERY], self.pirl, strict=True)},
            "least Hamming distance of two, chosen far apart": float(self.nearest_chosen[-1]),
            "least Hamming distance of two, at random": float(self.nearest_random[-1]),
        }  # fmt: skip

    def draw(self, canvas: Canvas) -> None:
        left, right = canvas.panels(1, 2, width_ratios=(1.25, 1))[0]
        left.plot([*self.counts, EVERY], 100 * self.pirl, marker="o", label="PIRL, ignores it")
        left.plot(self.counts, 100 * self.jigsaw, marker="o", label="jigsaw, names it")
        left.axhline(
            100 * self.untrained, color=canvas.theme.quiet, linestyle=":", label="untrained"
        )
        left.set(
            xscale="log", xlabel="orders of 9 tiles", ylabel="linear probe [%]",
            title="digits told by a linear probe of the encoder",
        )  # fmt: skip
        left.legend(loc="best")
        right.plot(self.counts, self.nearest_chosen, marker="o", label="chosen far apart")
        right.plot(self.counts, self.nearest_random, marker="o", label="at random")
        right.set(
            xscale="log", xlabel="orders of 9 tiles", ylabel="tiles that differ",
            ylim=(-0.3, 9.5), title="tiles in which the two orders most alike differ",
        )  # fmt: skip
        right.legend(loc="upper right")


def score(name: str, orders: Tensor, found: Digits, steps: int, seed: int) -> float:
    """Linear probe of an encoder that was trained on tiles in these orders; of none, in all."""
    chosen = tuple(map(tuple, orders.tolist()))
    if name == "PIRL":
        suited = {"size": len(found.train), "temperature": 0.2}  # there are few images
    else:
        suited = {"orders": len(chosen)}
    model: Any = method(name, SIDE, seed=seed, grid=3, **suited, **CONV)
    plan = model.plan()
    # A mirrored digit is none, and digits have no colours.
    *views, cut = (
        replace(view, flip=0.0, crop=(0.6, 1.0), jitter=0.0, grey=0.0) for view in plan.main
    )
    cut = replace(cut, tiles=replace(cut.tiles, orders=chosen))
    images = Cache.of(list((255 * enlarged(found.train)).byte().permute(0, 2, 3, 1).numpy()))
    learn(
        model, images, steps=steps, batch=64, plan=replace(plan, main=(*views, cut)), seed=seed,
        optimiser=Optimiser(lr=3e-3, weight_decay=0.0),
    )  # fmt: skip
    return probed(model, found)


def enlarged(flat: Tensor) -> Tensor:
    """Grey pictures [n p] as [n 3 s s], s = SIDE."""
    side = round(flat.shape[1] ** 0.5)
    images = flat.reshape(-1, 1, side, side).expand(-1, 3, -1, -1)
    return torch.nn.functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear").clamp(0, 1)


@torch.no_grad()
def probed(model: Any, found: Digits) -> float:
    """Share of held-out digits that a linear probe of the encoder gets right."""
    encoder = model.encoder.eval()
    mean, std = (torch.tensor(each)[:, None, None] for each in (encoder.mean, encoder.std))
    sets = [
        encoder((enlarged(pixels) - mean) / std).numpy() for pixels in (found.train, found.test)
    ]
    return float(
        linear_accuracy(
            sets[0], found.train_labels, sets[1], found.test_labels, strengths=(1e-2, 1e-1)
        ).mean()
    )


def shuffles(count: int, seed: int, tiles: int = 9) -> np.ndarray:
    """Random permutations [count tiles]."""
    drawn = noise.normal(torch.arange(count), tiles, purpose="permutations", step=seed)
    return drawn.argsort(dim=1).numpy()


def closest(rows: np.ndarray) -> int:
    """Least Hamming distance of two of the rows."""
    gaps = (rows[:, None] != rows[None]).sum(axis=2)
    return int(gaps[np.triu_indices(len(rows), 1)].min())
