"""Figures of energies in the plane whose latent is a choice: wells, slices, two questions."""

from dataclasses import dataclass

import numpy as np
import torch

from erg.landscape import worlds
from erg.landscape.draw import Canvas, Figure
from erg.landscape.fields import (
    Completions,
    Grid,
    along,
    complete,
    descend,
    energy_map,
    energy_of,
    grid,
    kicked,
    wells,
)
from erg.landscape.learn import learn, method


@dataclass(frozen=True, eq=False)
class Wells(Figure):
    """K-means on a spiral: F(y) = min_k ||y - w_k||^2 is zero at k points and nowhere else."""

    size = (7.4, 6.2)
    where: Grid
    levels: np.ndarray
    curve: np.ndarray
    prototypes: np.ndarray
    bottoms: np.ndarray
    depths: np.ndarray

    @classmethod
    def compute(cls, *, seed: int = 0, k: int = 20) -> "Wells":
        points = worlds.spiral(1000, seed)
        model = learn(method("KMeans", 2, k=k, seed=seed), points, steps=300, seed=seed)
        energy, where = energy_of(model), grid((-2.7, 2.7))
        bottoms = wells(energy, where)
        return cls(
            where, energy_map(energy, where), worlds.spiral_at(torch.linspace(0, 1, 400)).numpy(),
            model.get_parameter("prototypes").detach().numpy(), bottoms.numpy(),
            along(energy, bottoms),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        gaps = np.linalg.norm(self.bottoms[:, None] - self.prototypes[None], axis=2).min(axis=1)
        return {
            "prototypes": len(self.prototypes),
            "wells": len(self.bottoms),
            "largest F at a well": float(self.depths.max()),
            "largest distance from a well to its prototype": float(gaps.max()),
        }

    def draw(self, canvas: Canvas) -> None:
        ((ax,),) = canvas.panels(1, 1)
        root = np.sqrt(self.levels)
        canvas.map(ax, self.where, root, top=1.0, contours=0, bar="$\\sqrt{F(y)}$", colours="gray")
        ax.plot(*self.curve.T, color=canvas.theme.data, linewidth=2)
        canvas.dots(ax, self.prototypes, "white", 14, edgecolors="black")
        ax.set(
            xlabel="$y_1$", ylabel="$y_2$",
            title=f"{len(self.prototypes)} prototypes on a spiral, {len(self.bottoms)} wells",
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Slices(Figure):
    """Three clusters one above the other: F(y1, .) has three minima, and all are answers."""

    size = (11.0, 5.0)
    where: Grid
    levels: np.ndarray
    points: np.ndarray
    known: float
    line: np.ndarray
    along_line: np.ndarray
    answers: Completions
    truth: np.ndarray

    @classmethod
    def compute(cls, *, seed: int = 0, known: float = 0.6) -> "Slices":
        points = worlds.arcs(999, seed)
        mixture = method("GaussianMixture", 2, k=12, covariance="full", seed=seed)
        energy = energy_of(learn(mixture, points, steps=30, seed=seed))
        where = grid((-2.2, 2.2), (-2.4, 2.4))
        line = np.linspace(-2.4, 2.4, 481)
        on_line = np.stack([np.full(len(line), known), line], axis=1)
        return cls(
            where, energy_map(energy, where), points.numpy(), known, line,
            along(energy, torch.from_numpy(on_line).float()),
            complete(energy, known, (-2.4, 2.4), within=6),
            worlds.arcs_at(torch.tensor([known]))[0].numpy(),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        gaps = np.abs(self.answers.y2[:, None] - self.truth[None]).min(axis=0)
        return {
            "minima of F(y1, .), up to 6 above the lowest": len(self.answers.y2),
            "largest distance from a true y2 to a minimum": float(gaps.max()),
            "mean of the true y2, which least squares would answer": float(self.truth.mean()),
        }

    def draw(self, canvas: Canvas) -> None:
        left, right = canvas.panels(1, 2, width_ratios=(1.15, 1))[0]
        canvas.map(left, self.where, self.levels, top=12, bar="F(y)")
        canvas.dots(left, self.points, size=4, alpha=0.6)
        left.axvline(self.known, color=canvas.theme.colours[1])
        left.set(xlabel="$y_1$", ylabel="$y_2$", title="energy of three curved clusters")
        right.plot(self.line, self.along_line)
        for y2 in self.truth:
            right.axvline(y2, color=canvas.theme.quiet, linestyle=":", linewidth=1)
        right.scatter(*self.answers, color=canvas.theme.colours[1], zorder=3)
        right.set(
            xlabel="$y_2$", ylabel="F", ylim=(self.along_line.min() - 1, 16),
            title=f"at $y_1$ = {self.known:g}: {len(self.answers.y2)} answers (dotted: the truth)",
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Queries(Figure):
    """Two questions to the same energy: which y2 go with y1, and where on the manifold is y?"""

    size = (11.4, 5.2)
    where: Grid
    levels: np.ndarray
    known: float
    answers: Completions
    given: np.ndarray
    ways: np.ndarray
    prototypes: np.ndarray

    @classmethod
    def compute(cls, *, seed: int = 0, k: int = 40, known: float = 0.35) -> "Queries":
        points = worlds.spiral(1000, seed)
        model = learn(method("KMeans", 2, k=k, seed=seed), points, steps=300, seed=seed)
        energy, where = energy_of(model), grid((-2.7, 2.7))
        given = kicked(points[7::60], 0.3, seed)
        return cls(
            where, energy_map(energy, where), known, complete(energy, known, (-2.7, 2.7)),
            given.numpy(), descend(energy, given, steps=60).numpy(),
            model.get_parameter("prototypes").detach().numpy(),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        gaps = np.linalg.norm(self.given[:, None] - self.prototypes[None], axis=2)
        nearest = self.prototypes[gaps.argmin(axis=1)]
        missed = np.linalg.norm(self.ways[-1] - nearest, axis=1)
        return {
            "completions of y1": len(self.answers.y2),
            "largest distance from a projection to the nearest prototype": float(missed.max()),
        }

    def draw(self, canvas: Canvas) -> None:
        left, right = canvas.panels(1, 2, sharey=True)[0]
        for ax in (left, right):
            canvas.map(ax, self.where, np.sqrt(self.levels), top=0.8, contours=0)
            canvas.dots(ax, self.prototypes, size=8)
            ax.set_xlabel("$y_1$")
        left.axvline(self.known, color="#7de3ff", linewidth=1.2)
        low = np.stack([np.full(len(self.answers.y2), self.known), self.answers.y2], axis=1)
        canvas.dots(left, low, "#ffd166", 40, edgecolors="black", linewidths=0.7, zorder=5)
        count = len(self.answers.y2)
        left.set(ylabel="$y_2$", title=f"$y_1$ = {self.known:g}: {count} completions, all minima")
        for way in self.ways.transpose(1, 0, 2):
            right.plot(*way.T, color="#7de3ff", linewidth=1.4)
        canvas.dots(right, self.given, "#ffd166", 26, edgecolors="black", linewidths=0.6)
        right.set_title("projection: down to the nearest point of the manifold")
