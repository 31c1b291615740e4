"""Figures of energies that are made by training: where they are wrong, before and after."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from erg import catalog
from erg.landscape import worlds
from erg.landscape.draw import Canvas, Figure
from erg.landscape.fields import Grid, along, descend, energy_map, energy_of, grid, kicked, wells
from erg.landscape.learn import MLP, check_steps, learn, method


@dataclass(frozen=True, eq=False)
class Topography(Figure):
    """An energy of two wells where the data are an S: corruption, and kick and descent, find
    where it is wrong."""

    size = (11.6, 5.4)
    where: Grid
    levels: np.ndarray
    points: np.ndarray
    too_high: np.ndarray
    too_low: np.ndarray
    starts: np.ndarray
    corrupted: np.ndarray
    ways: np.ndarray
    of_starts: np.ndarray
    of_ways: np.ndarray
    wells: int

    @classmethod
    def compute(cls, *, seed: int = 0) -> "Topography":
        points = worlds.bend(600, seed)
        mixture = method("GaussianMixture", 2, k=2, covariance="full", seed=seed)
        energy, where = energy_of(learn(mixture, points, steps=30, seed=seed)), grid((-5.0, 5.0))
        levels = energy_map(energy, where)
        off = torch.cdist(where.points, points).amin(dim=1).numpy()
        lowest = int(np.where(off > 0.7, levels.reshape(-1), np.inf).argmin())
        starts = points[torch.linspace(20, 579, 9).long()]
        ways = descend(energy, kicked(starts, 0.7, seed), steps=40, rate=0.05)
        flat = ways.reshape(-1, 2)
        return cls(
            where, levels, points.numpy(), points[int(along(energy, points).argmax())].numpy(),
            where.points[lowest].numpy(), starts.numpy(), kicked(starts, 0.7, seed + 1).numpy(),
            ways.numpy(), along(energy, starts), along(energy, flat).reshape(ways.shape[:2]),
            len(wells(energy, where)),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        down = float(np.diff(self.of_ways, axis=0).max())
        return {
            "wells": self.wells,
            "largest rise of F on a way down": down,
            "mean F where the ways start": float(self.of_ways[0].mean()),
            "mean F where they end, to be pushed up": float(self.of_ways[-1].mean()),
            "mean F of the data they left, to be pushed down": float(self.of_starts.mean()),
        }

    def draw(self, canvas: Canvas) -> None:
        left, right = canvas.panels(1, 2, sharey=True)[0]
        green = "#39d98a"
        for ax in (left, right):
            canvas.map(ax, self.where, self.levels, top=9)
            canvas.dots(ax, self.points, size=4, alpha=0.7)
            ax.set(xlabel="$y_1$", xlim=(-5, 5), ylim=(-5, 5))
        canvas.arrows(left, self.starts, self.corrupted - self.starts, green, width=0.005)
        box = {"facecolor": canvas.theme.paper, "edgecolor": "none", "alpha": 0.85, "pad": 2}
        pointer = {"arrowstyle": "->", "color": "#ff9f1c", "linewidth": 1.6}
        for place, text, there in (
            (self.too_high, "is high, should be low", (-4.6, 3.2)),
            (self.too_low, "is low, should be high", (0.6, -4.4)),
        ):
            left.annotate(text, place, there, bbox=box, arrowprops=pointer, fontsize=9)
        left.set(ylabel="$y_2$", title="corruption: data moved at random")
        for i, way in enumerate(self.ways.transpose(1, 0, 2)):
            right.plot(*np.stack([self.starts[i], way[0]]).T, color=green, linestyle=":")
            right.plot(*way.T, color=green, linewidth=1.6)
        canvas.dots(right, self.ways[-1], "white", 26, edgecolors="black", linewidths=0.6)
        right.set(title="contrastive divergence: kick (dotted), descend, push up the end")


@dataclass(frozen=True, eq=False)
class Contrastive(Figure):
    """Contrastive divergence: F goes down at the data and up where descents from kicked data end,
    until they end at data."""

    size = (14.0, 4.4)
    where: Grid
    maps: np.ndarray
    points: np.ndarray
    starts: np.ndarray
    ways: np.ndarray
    apart: np.ndarray
    missed: np.ndarray

    @classmethod
    def compute(cls, *, seed: int = 0, steps: int = 600) -> "Contrastive":
        check_steps(steps, 10)
        points = worlds.moons(1000, seed)
        model: Any = method("ContrastiveDivergence", 2, seed=seed, steps=12, **MLP)
        where = grid((-3.2, 3.2), (-2.6, 2.6), (130, 160))
        starts = points[::70]
        maps: list[np.ndarray] = []
        ways: list[np.ndarray] = []

        def look(done: int) -> None:
            if done in (0, steps // 10, steps):
                energy = energy_of(model)
                maps.append(energy_map(energy, where))
                ways.append(descend(energy, kicked(starts, 0.6, seed), steps=40).numpy())

        learn(model, points, steps=steps, seed=seed, watch=look)
        gaps = torch.cdist(where.points, points).amin(dim=1).reshape(where.shape).numpy()
        ends = torch.from_numpy(np.stack([way[-1] for way in ways]))
        missed = torch.cdist(ends, points).amin(dim=2).mean(dim=1)
        return cls(
            where, np.stack(maps), points.numpy(), starts.numpy(), np.stack(ways), gaps,
            missed.numpy(),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        near, far = self.apart < 0.1, self.apart > 0.6
        raised = [float(m[far].mean() - m[near].mean()) for m in self.maps]
        return {
            "F far from the data less F near them, untrained": raised[0],
            "F far from the data less F near them, trained": raised[-1],
            "distance of the ends from the data, untrained": float(self.missed[0]),
            "distance of the ends from the data, trained": float(self.missed[-1]),
        }

    def draw(self, canvas: Canvas) -> None:
        panels = canvas.panels(1, 3, sharey=True)[0]
        titles = ("untrained", "a tenth of the steps", "trained")
        for ax, levels, ways, title in zip(panels, self.maps, self.ways, titles, strict=True):
            canvas.map(ax, self.where, levels, top=float(np.quantile(levels, 0.95)))
            canvas.dots(ax, self.points[::2], size=3, alpha=0.6)
            for start, way in zip(self.starts, ways.transpose(1, 0, 2), strict=True):
                ax.plot(*np.stack([start, way[0]]).T, color="#39d98a", linestyle=":", linewidth=1)
                ax.plot(*way.T, color="#39d98a", linewidth=1.4)
            canvas.dots(ax, ways[-1], "white", 16, edgecolors="black", linewidths=0.5)
            ax.set(
                xlabel="$y_1$", title=title, xlim=self.where.x[[0, -1]], ylim=self.where.y[[0, -1]]
            )
        panels[0].set_ylabel("$y_2$")


ARGUMENTS: dict[str, dict[str, Any]] = {
    "KMeans": {"k": 20},
    "GaussianMixture": {"k": 12, "covariance": "full"},
    "PCA": {"k": 1},
    "SparseCoding": {"k": 8, "sparsity": 0.3},
    "Autoencoder": {"dim": 1},
    "VariationalAutoencoder": {"dim": 1, "deviation": 0.1},
    "ContractiveAutoencoder": {"dim": 64, "contraction": 0.1},
    "DenoisingAutoencoder": {"noise": 0.2},
}
"""Arguments that suit the plane, by method; others have their own."""


@dataclass(frozen=True, eq=False)
class Training(Figure):
    """The energy of a method before and after training: on the data it ends lower than on
    most of the plane."""

    size = (11.6, 5.2)
    where: Grid
    before: np.ndarray
    after: np.ndarray
    points: np.ndarray
    of_points: tuple[float, float]
    elsewhere: tuple[float, float]
    title: str

    @classmethod
    def compute(
        cls, *, seed: int = 0, method: str = "DenoisingAutoencoder", world: str = "moons",
        steps: int = 1500,
    ) -> "Training":  # fmt: skip
        points = worlds.world(world, 1000, seed)
        model = untrained(method, seed)
        reach = 1.3 * float(points.abs().max())
        where = grid((-reach, reach), shape=(120, 120))
        maps: list[np.ndarray] = []
        on_data: list[float] = []

        def look(done: int) -> None:
            if done in (0, steps):
                energy = energy_of(model)
                maps.append(energy_map(energy, where))
                on_data.append(float(along(energy, points).mean()))

        learn(model, points, steps=steps, seed=seed, watch=look)
        means = [float(levels.mean()) for levels in maps]
        return cls(
            where, maps[0], maps[1], points.numpy(), (on_data[0], on_data[1]),
            (means[0], means[1]), f"{method} on {world}",
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        before, after = zip(self.of_points, self.elsewhere, strict=True)
        return {
            "before: mean F of the data": before[0], "before: mean F of the map": before[1],
            "after: mean F of the data": after[0], "after: mean F of the map": after[1],
            "before: share of the map below the data's F": lower(self.before, before[0]),
            "after: share of the map below the data's F": lower(self.after, after[0]),
        }  # fmt: skip

    def draw(self, canvas: Canvas) -> None:
        both = canvas.panels(1, 2, sharey=True)[0]
        shown = (("before", self.before), ("after", self.after))
        for ax, (when, levels) in zip(both, shown, strict=True):
            top = float(np.quantile(levels, 0.6))
            canvas.map(ax, self.where, levels, top=top, bar="F(y)")
            canvas.dots(ax, self.points[::2], size=4, alpha=0.7)
            ax.set(xlabel="$y_1$", title=f"{self.title}, {when} training")
        both[0].set_ylabel("$y_2$")


def lower(levels: np.ndarray, level: float) -> float:
    """Share of a map where F is lower: the volume of low energy."""
    return float((levels < level).mean())


def untrained(name: str, seed: int) -> Any:
    """A method for the plane, with the encoder and the arguments that suit it.

    Raises:
        ValueError: its energy needs an x, or an image.
    """
    kind = catalog.find(name)
    suited: dict[str, Any] = dict(MLP) if kind.trains_encoder else {}
    model = method(name, 2, seed=seed, **suited, **ARGUMENTS.get(name, {}))
    if model.plan().pairs != "alone":
        raise ValueError(
            f"{name} compares an x with a y, and a landscape is an F(y) alone. "
            f"Use one of {', '.join(ARGUMENTS)}."
        )
    return model
