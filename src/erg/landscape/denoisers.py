"""Figures of denoising autoencoders in the plane: where they move points, and why there."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from erg.landscape import worlds
from erg.landscape.draw import Canvas, Figure
from erg.landscape.fields import Grid, alignment, field, grid, kicked
from erg.landscape.learn import MLP, learn, method


@dataclass(frozen=True, eq=False)
class Travel(Figure):
    """A denoising autoencoder on a spiral: r(x) - x leads to the nearest arm; halfway between two
    arms it is nearly zero, for there r averages both."""

    size = (12.4, 5.0)
    where: Grid
    move: np.ndarray
    travel: np.ndarray
    points: np.ndarray
    given: np.ndarray
    made: np.ndarray
    on_data: np.ndarray
    beside: np.ndarray
    ridge: np.ndarray
    halfway: float

    @classmethod
    def compute(cls, *, seed: int = 0, steps: int = 4000) -> "Travel":
        points = worlds.spiral(1000, seed)
        model: Any = method("DenoisingAutoencoder", 2, seed=seed, noise=0.22, **MLP)
        learn(model, points, steps=steps, seed=seed)
        r = model.reconstruct
        where = grid((-2.6, 2.6), (-2.2, 2.2), (34, 40))
        found = field(r, where.points)
        given = kicked(points[::10], 0.22, seed)
        t = torch.linspace(0.2, 0.5, 60)
        # From the arm at t towards the next one out, as a share of the way.
        shares = torch.linspace(0.3, 0.7, 41)
        between = torch.stack([outwards(t, float(share)) for share in shares])  # [41 60 2]
        ridge = field(r, between.reshape(-1, 2)).travel.reshape(len(shares), len(t))
        return cls(
            where, found.move, found.travel, points[::10].numpy(), given.numpy(),
            r(given).detach().numpy(), field(r, points).travel, field(r, outwards(t, 0.25)).travel,
            ridge.min(axis=0), float(shares[torch.from_numpy(ridge.argmin(axis=0))].mean()),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            "mean travel of the data": float(self.on_data.mean()),
            "mean travel a quarter of the way to the next arm": float(self.beside.mean()),
            "mean travel on the ridge between two arms": float(self.ridge.mean()),
            "share of the way to the next arm where the ridge is": self.halfway,
        }

    def draw(self, canvas: Canvas) -> None:
        left, right = canvas.panels(1, 2, width_ratios=(1.3, 1))[0]
        image = left.imshow(
            self.travel.reshape(self.where.shape), origin="lower", extent=self.where.extent,
            cmap="viridis", vmin=0, vmax=1, aspect="equal",
        )  # fmt: skip
        canvas.picture.colorbar(image, ax=left, label="distance travelled", shrink=0.85)
        canvas.arrows(left, self.where.points.numpy(), self.move, "white", width=0.0018)
        canvas.dots(left, self.points, "#ff5fa2", 9)
        canvas.frame(left)
        left.set(xlabel="$x_1$", ylabel="$x_2$", title="r(x) - x: dark ridges lie halfway")
        for i in range(len(self.given)):
            ends = np.stack([self.given[i], self.made[i]])
            right.plot(*ends.T, color=canvas.theme.quiet, linewidth=0.7)
        canvas.dots(right, self.given, canvas.theme.colours[1], 14, label="corrupted")
        canvas.dots(right, self.made, canvas.theme.colours[0], 14, label="reconstructed")
        right.legend(loc="upper right", ncols=2, borderaxespad=0)
        right.set(xlabel="$x_1$", title="input and output", aspect="equal", ylim=(-2.6, 3.0))


def outwards(t: torch.Tensor, share: float) -> torch.Tensor:
    """Points a share of the way from the spiral at t to its next arm outwards [n 2]."""
    here, there = worlds.spiral_at(t), worlds.spiral_at(t + 1 / worlds.TURNS)
    return (1 - share) * here + share * there


@dataclass(frozen=True, eq=False)
class Score(Figure):
    """(r(x) - x) / s^2 of a denoising autoencoder is the slope of the log-density of the data
    blurred by s (Alain & Bengio 2014; exact for the best r)."""

    size = (12.0, 4.6)
    where: Grid
    levels: np.ndarray
    learned: np.ndarray
    exact: np.ndarray
    cosine: float
    ratio: float

    @classmethod
    def compute(cls, *, seed: int = 0, steps: int = 3000, noise: float = 0.3) -> "Score":
        points = worlds.mixture(1500, seed)
        model: Any = method("DenoisingAutoencoder", 2, seed=seed, noise=noise, **MLP)
        learn(model, points, steps=steps, seed=seed)
        r = model.reconstruct
        where = grid((-2.6, 2.6), (-2.1, 2.6), (22, 25))
        seen = kicked(worlds.mixture(1500, seed + 1), noise, seed + 1)  # new points, same world
        learned = field(r, seen).move / noise**2
        exact = worlds.mixture_score(seen, noise).double().numpy()
        fine = grid((-2.6, 2.6), (-2.1, 2.6))
        gaps = fine.points[:, None] - torch.tensor(worlds.MEANS)
        variance = worlds.DEVIATION**2 + noise**2
        density = (-gaps.square().sum(dim=2) / (2 * variance)).logsumexp(dim=1)
        return cls(
            where, -density.numpy().reshape(fine.shape),
            field(r, where.points).move / noise**2,
            worlds.mixture_score(where.points, noise).double().numpy(),
            alignment(learned, exact), float(np.linalg.norm(learned) / np.linalg.norm(exact)),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            "cosine of the field and the score, at new points": self.cosine,
            "ratio of their lengths": self.ratio,
        }

    def draw(self, canvas: Canvas) -> None:
        both = canvas.panels(1, 2, sharey=True)[0]
        fine = grid((-2.6, 2.6), (-2.1, 2.6))
        named = (
            (self.learned, f"$(r(x) - x) / s^2$, learned: cosine {self.cosine:.3f}"),
            (self.exact, "$\\nabla \\log p_s(x)$, exact; $p_s$: the data blurred by s"),
        )
        for ax, (arrows, title) in zip(both, named, strict=True):
            canvas.map(ax, fine, self.levels, top=8)
            canvas.arrows(ax, self.where.points.numpy(), 0.05 * arrows, "#7de3ff", width=0.0028)
            ax.set(xlabel="$x_1$", title=title)
        both[0].set_ylabel("$x_2$")
