"""Figure of latents that hold too much: energies low everywhere, and a set learned by heart."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from erg import noise
from erg.landscape import worlds
from erg.landscape.draw import Canvas, Figure
from erg.landscape.fields import Grid, along, energy_map, energy_of, grid
from erg.landscape.learn import MLP, check_steps, learn, method
from erg.landscape.pictures import mlp

LATENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "PCA": ({"k": 1}, {"k": 2}),
    "SparseCoding": ({"k": 8, "sparsity": 0.3}, {"k": 8, "sparsity": 0.0}),
    "Autoencoder": ({"dim": 1, **MLP}, {"dim": 2, **MLP}),
}
"""Arguments with which z holds little, and with which it holds all of y."""

TITLES = {
    "PCA": ("one direction of two", "both directions"),
    "SparseCoding": ("sparse coding, $\\lambda$ = 0.3", "$\\lambda$ = 0"),
    "Autoencoder": ("autoencoder, z of one number", "z of two"),
}

KNOWN, FEATURES = 24, 16
"""Points that are learned by heart, and numbers of each."""


@dataclass(frozen=True, eq=False)
class Capacity(Figure):
    """F is low where z can explain y: near the data if z holds little, everywhere if it holds all
    of y. And a narrow z is no safety: one number can tell which of the training points y is."""

    size = (15.0, 7.0)
    where: Grid
    points: np.ndarray
    maps: dict[str, tuple[np.ndarray, np.ndarray]]
    steps: np.ndarray
    known: np.ndarray
    new: np.ndarray
    constant: float

    @classmethod
    def compute(cls, *, seed: int = 0, steps: int = 3000) -> "Capacity":
        check_steps(steps, 20)
        points, where = worlds.moons(1000, seed), grid((-3.2, 3.2), (-2.6, 2.6), (104, 128))
        maps: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, both in LATENTS.items():
            models = [method(name, 2, seed=seed, **arguments) for arguments in both]
            count = steps // 2 if name == "Autoencoder" else steps // 20
            few, full = (
                energy_map(energy_of(learn(each, points, steps=count, seed=seed)), where)
                for each in models
            )
            maps[name] = few, full
        # Without structure: of the others nothing can be learned.
        drawn = noise.normal(torch.arange(9 * KNOWN), FEATURES, purpose="by heart", step=seed)
        known, new = drawn[:KNOWN], drawn[KNOWN:]
        index: Any = method("Autoencoder", FEATURES, seed=seed, dim=1, **mlp(256, 64, 2))
        at: list[int] = []
        errors: list[list[float]] = []

        def look(done: int) -> None:
            if done % (steps // 10) == 0:
                energy = energy_of(index)
                at.append(done)
                errors.append([float(along(energy, each).mean()) for each in (known, new)])

        learn(index, known, steps=steps, batch=KNOWN, seed=seed, watch=look)
        of_known, of_new = np.array(errors).T
        constant = float((new - known.mean(dim=0)).square().mean())
        return cls(where, points.numpy(), maps, np.array(at), of_known, of_new, constant)

    def facts(self) -> dict[str, float]:
        return {
            **{f"mean F of the map where z holds all, beside little: {name}":
               float(full.mean() / few.mean()) for name, (few, full) in self.maps.items()},
            "squared error of points known by one number": float(self.known[-1]),
            "squared error of new points": float(self.new[-1]),
            "squared error of new points, by the mean of those known": self.constant,
        }  # fmt: skip

    def draw(self, canvas: Canvas) -> None:
        names = [[*self.maps, "heart"], [f"{name}, all" for name in self.maps] + ["heart"]]
        axes = canvas.picture.subplot_mosaic(names, width_ratios=(1, 1, 1, 0.9))
        for name, both in self.maps.items():
            top = float(np.quantile(both[0], 0.9))  # one scale for both
            places = axes[name], axes[f"{name}, all"]
            for ax, levels, title in zip(places, both, TITLES[name], strict=True):
                canvas.map(ax, self.where, levels, low=0.0, top=top, contours=0)
                canvas.dots(ax, self.points[::2], size=3, alpha=0.7)
                ax.set(title=title, xticks=[], yticks=[])
        ax = axes["heart"]
        ax.plot(self.steps, self.new, marker=".", label="new points")
        ax.plot(self.steps, self.known, marker=".", label=f"{KNOWN} points learned")
        ax.axhline(self.constant, color=canvas.theme.quiet, linestyle=":", label="new, by a mean")
        ax.set(
            xlabel="step", ylabel="squared error", ylim=(0, None),
            title=f"{KNOWN} points by heart: z one number",
        )  # fmt: skip
        ax.legend(loc="best")
