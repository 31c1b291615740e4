"""Figures of the ellipse whose latent is an angle: inference, free energies, training."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erg import inference
from erg.encoders import build_encoder
from erg.energy import free_energy
from erg.landscape import worlds
from erg.landscape.draw import Canvas, Figure
from erg.landscape.ellipses import Ellipses
from erg.landscape.fields import Grid, along, descend, energy_map, energy_of, grid
from erg.landscape.learn import learn
from erg.train.run import Optimiser

FAST = Optimiser(lr=0.05, weight_decay=0.0)
WARM = 1.0
"""Inverse temperature of the warm energies."""


def trained(points: Tensor, beta: float, *, steps: int = 150) -> Ellipses:
    """Ellipses fitted to points."""
    model = Ellipses(build_encoder("identity", 2), beta=beta)
    learn(model, points, steps=steps, batch=len(points), optimiser=FAST)
    return model


@dataclass(frozen=True, eq=False)
class Inference(Figure):
    """For every y the best z: F_inf(y) = min_z E(y, z), by gradient or by looking at all z."""

    size = (15.0, 7.2)
    horn: np.ndarray
    samples: np.ndarray
    ring: np.ndarray
    angles: np.ndarray
    of_samples: np.ndarray
    way: np.ndarray
    of_way: np.ndarray
    way_in_y: np.ndarray
    coarse: np.ndarray
    chosen: np.ndarray
    of_chosen: np.ndarray
    where: Grid
    levels: np.ndarray
    slope: np.ndarray

    @classmethod
    def compute(cls, *, seed: int = 0) -> "Inference":
        samples = worlds.ellipse(24, seed)
        model = trained(samples, math.inf)
        cold = energy_of(model)
        last = samples[23:24]
        # From an angle a third of a turn away, down E(y_23, .).
        start = torch.atan2(last[:, 1:], last[:, :1]) + 2 * math.pi / 3
        way = descend(lambda z: model.of_angle(last.expand(len(z), 2), z)[:, 0], start, steps=60)
        rows = grid((-3.0, 3.0), (-2.0, 2.0), (17, 25))
        chosen = torch.tensor([[-2.5, 0.0], [-0.75, 1.75], [0.0, 0.0], [1.0, -0.5], [2.25, 1.5]])
        z = way[:, 0]  # [t 1]
        with torch.no_grad():
            radii = model.radii(last)
            in_y = radii * torch.cat([z.cos(), z.sin()], dim=1)
            of_way = model.of_angle(last.expand(len(z), 2), z)[:, 0]
            ring = model.manifold(torch.zeros(1))[0]
            of_samples, of_chosen = model.energies(samples), model.energies(chosen)
        where = grid((-3.0, 3.0), (-2.0, 2.0), (140, 210))
        return cls(
            worlds.horn(1500, seed).numpy(), samples.numpy(), ring.numpy(), model.angles.numpy(),
            of_samples.numpy(), z[:, 0].numpy(), of_way.numpy(), in_y.numpy(),
            rows.points.numpy(), chosen.numpy(), of_chosen.numpy(),
            where, energy_map(cold, where), inference.slope(cold, rows.points).numpy(),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            "E(y_23, z) at the start": float(self.of_way[0]),
            "E(y_23, z) found by gradient": float(self.of_way[-1]),
            "least E(y_23, z) of all 48 angles": float(self.of_samples[23].min()),
            "F_inf in the middle, finite": float(self.of_chosen[2].min()),
        }

    def draw(self, canvas: Canvas) -> None:
        names = [["horn", "data", "all", "one"], ["grid", "chosen", "map", "map"]]
        axes = canvas.picture.subplot_mosaic(
            names, per_subplot_kw={"horn": {"projection": "3d"}}, width_ratios=(1, 1, 1, 1)
        )
        colours = canvas.theme.colours
        axes["horn"].scatter(*self.horn.T, s=3, c=self.horn[:, 0], cmap="viridis", linewidths=0)
        solid(axes["horn"], canvas)
        axes["horn"].set_title("the horn")
        ax = axes["data"]
        ax.plot(*self.ring.T, color=canvas.theme.quiet, linewidth=1)
        canvas.dots(ax, self.samples, size=26)
        ax.plot(*self.way_in_y.T, color=colours[1], marker=".")
        ax.annotate("$y_{23}$", self.samples[23], (6, -12), textcoords="offset points")
        ax.set(title="24 samples; inference, in y", xlabel="$y_1$", ylabel="$y_2$", aspect="equal")
        axes["all"].plot(self.angles, self.of_samples.T, color=colours[0], linewidth=0.8)
        axes["all"].set(title="$E(y_i, z)$ of all samples", xlabel="z", ylabel="E")
        ax = axes["one"]
        half = len(self.angles) // 2  # from -pi to pi
        turned = np.roll(self.angles - 2 * math.pi * (self.angles >= math.pi), half)
        ax.plot(turned, np.roll(self.of_samples[23], half), color=colours[0])
        z = (self.way + math.pi) % (2 * math.pi) - math.pi
        ax.plot(z, self.of_way, ".", color=colours[1])
        ax.plot(z[-1], self.of_way[-1], "x", color=colours[3], markersize=10)
        ax.annotate("start", (z[0], self.of_way[0]), (6, 4), textcoords="offset points")
        ax.set(title="$E(y_{23}, z)$: from start to argmin", xlabel="z", ylabel="E")
        ax = axes["grid"]
        ax.plot(*self.ring.T, color=canvas.theme.quiet, linewidth=1)
        canvas.dots(ax, self.coarse, canvas.theme.quiet, 4)
        for i, point in enumerate(self.chosen):
            canvas.dots(ax, point[None], colours[i], 50)
            axes["chosen"].plot(self.angles, self.of_chosen[i], color=colours[i])
            best = self.of_chosen[i].argmin()
            axes["chosen"].plot(
                self.angles[best], self.of_chosen[i][best], "x", color=colours[i], markersize=10
            )
        ax.set(
            title="425 points, five of them chosen", xlabel="$y_1$", ylabel="$y_2$", aspect="equal"
        )
        axes["chosen"].set(title="their E(y, z), crosses at argmin", xlabel="z", ylabel="E")
        ax = axes["map"]
        canvas.map(ax, self.where, self.levels, top=2, contours=7, bar="$F_\\infty$")
        canvas.arrows(ax, self.coarse, -0.06 * self.slope, "#7de3ff", width=0.002)
        canvas.dots(ax, self.samples, size=14)
        ax.set(
            title="$F_\\infty(y)$, and the way down from each point", xlabel="$y_1$", ylabel="$y_2$"
        )


@dataclass(frozen=True, eq=False)
class FreeEnergies(Figure):
    """F_beta from the minimum over z (cold) to the mean (hot), before and after training."""

    size = (15.0, 7.2)
    where: Grid
    points: np.ndarray
    maps: np.ndarray
    rings: np.ndarray
    nearest: np.ndarray
    coarse: np.ndarray
    slopes: np.ndarray
    angles: np.ndarray
    weights: np.ndarray
    betas: tuple[float, ...]
    line: np.ndarray
    families: np.ndarray
    limits: tuple[float, float]
    centre: float

    @classmethod
    def compute(cls, *, seed: int = 0) -> "FreeEnergies":
        points = worlds.ellipse(24, seed)
        where = grid((-3.0, 3.0), (-2.0, 2.0), (140, 210))
        coarse = grid((-2.8, 2.8), (-1.8, 1.8), (9, 14)).points
        identity = build_encoder("identity", 2)
        models = [
            Ellipses(identity, beta=math.inf), Ellipses(identity, beta=WARM),
            trained(points, math.inf), trained(points, WARM),
        ]  # fmt: skip
        betas = (math.inf, 8.0, 2.0, WARM, 0.3, 0.0)
        line = torch.linspace(-2.5, 2.5, 201)
        section = torch.stack([torch.zeros_like(line), line], dim=1)
        three = torch.stack([points[23], points[10], torch.zeros(2)])
        cold = models[2]
        with torch.no_grad():
            families = [
                [model.free_energy(section, beta).numpy() for beta in betas]
                for model in (models[0], cold)
            ]
            weights = inference.responsibilities(cold.energies(three), WARM)
            nearest = [
                model.manifold(torch.zeros(1), 49)[0, :-1][model.energies(points).argmin(dim=1)]
                for model in models
            ]
            rings = torch.stack([model.manifold(torch.zeros(1))[0] for model in models])
            every = cold.energies(where.points).double()
            limits = [
                float((free_energy(every, beta) - limit).abs().max())
                for beta, limit in ((1e5, every.amin(dim=1)), (1e-5, every.mean(dim=1)))
            ]
        return cls(
            where, points.numpy(), np.stack([energy_map(energy_of(m), where) for m in models]),
            rings.numpy(), torch.stack(nearest).numpy(), coarse.numpy(),
            torch.stack([inference.slope(energy_of(m), coarse) for m in models]).numpy(),
            cold.angles.numpy(), weights.numpy(), betas, line.numpy(), np.array(families),
            (limits[0], limits[1]),
            float(along(energy_of(cold), torch.zeros(1, 2))[0]),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        radii = np.abs(self.rings[2]).max(axis=0)
        return {
            "radius along y1, trained": float(radii[0]),
            "radius along y2, trained": float(radii[1]),
            "F_inf in the middle: the smaller radius squared": self.centre,
            "|F_beta - min| at beta = 10^5": self.limits[0],
            "|F_beta - mean| at beta = 10^-5": self.limits[1],
        }

    def draw(self, canvas: Canvas) -> None:
        names = [["0", "1", "weights"], ["2", "3", "section"]]
        axes: Any = canvas.picture.subplot_mosaic(names, width_ratios=(1.25, 1.25, 1))
        titles = ("untrained, cold", "untrained, warm", "trained, cold", "trained, warm")
        for i, title in enumerate(titles):
            ax = axes[str(i)]
            canvas.map(ax, self.where, self.maps[i], top=2.5, contours=8, bar="F")
            canvas.arrows(ax, self.coarse, -0.1 * self.slopes[i], "#7de3ff", width=0.0022)
            ax.plot(*self.rings[i].T, color="white", linewidth=1, linestyle="--")
            for point, near in zip(self.points, self.nearest[i], strict=True):
                ax.plot(*np.stack([point, near]).T, color="#ffd166", linewidth=0.8)
            canvas.dots(ax, self.points, size=16)
            canvas.dots(ax, self.nearest[i], "#ffd166", 10)
            ax.set(title=title, xlabel="$y_1$", ylabel="$y_2$", xlim=(-3, 3), ylim=(-2, 2))
        for weight, name in zip(self.weights, ("$y_{23}$", "$y_{10}$", "the middle"), strict=True):
            axes["weights"].plot(self.angles, weight, label=name)
        top = 1.3 * float(self.weights.max())  # room for the legend
        axes["weights"].set(
            title=f"softmin over z, $\\beta$ = {WARM:g}", xlabel="z", ylabel="weight", ylim=(0, top)
        )
        axes["weights"].legend(loc="upper center", ncols=3, fontsize=9)
        ax, shades = axes["section"], np.linspace(0.15, 0.9, len(self.betas))
        from matplotlib import colormaps

        for beta, level, shade in zip(self.betas, self.families[1], shades, strict=True):
            name = "$\\infty$: min" if beta == math.inf else "0: mean" if beta == 0 else f"{beta:g}"
            ax.plot(self.line, level, color=colormaps["coolwarm"](shade), label=name)
        ax.plot(
            self.line, self.families[0][0], color=canvas.theme.quiet, linestyle=":",
            label="$\\infty$, untrained",
        )  # fmt: skip
        ax.set(title="$F_\\beta(0, y_2)$, trained, from cold to hot", xlabel="$y_2$", ylabel="F")
        ax.legend(title="$\\beta$", fontsize=8)


@dataclass(frozen=True, eq=False)
class Horn(Figure):
    """F(x, y) with an ellipse for every x: the manifold of g before and after training."""

    size = (12.0, 5.6)
    points: np.ndarray
    x: np.ndarray
    before: np.ndarray
    after: np.ndarray
    radii: np.ndarray
    truth: np.ndarray
    energies: tuple[float, float]

    @classmethod
    def compute(cls, *, seed: int = 0, steps: int = 3000) -> "Horn":
        points = worlds.horn(1000, seed)
        torch.manual_seed(seed)
        model = Ellipses(build_encoder("identity", 3), conditional=True, latents=144)
        x = torch.linspace(0, 1, 26)
        with torch.no_grad():
            before = model.manifold(x).numpy()
        first = float(along(energy_of(model), points).mean())
        learn(
            model, points, steps=steps, batch=100, seed=seed,
            optimiser=Optimiser(lr=0.015, weight_decay=0.0),
        )  # fmt: skip
        with torch.no_grad():
            after = model.manifold(x).numpy()
            radii = model.radii(x[:, None]).abs().numpy()
        return cls(
            points.numpy(), x.numpy(), before, after, radii, worlds.horn_radii(x).numpy(),
            (first, float(along(energy_of(model), points).mean())),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            "mean F before": self.energies[0],
            "mean F after": self.energies[1],
            "largest relative error of a radius": float(np.abs(self.radii / self.truth - 1).max()),
        }

    def draw(self, canvas: Canvas) -> None:
        both = canvas.panels(1, 2, subplot_kw={"projection": "3d"})[0]
        shown = (("before", self.before), ("after", self.after))
        for ax, (title, made) in zip(both, shown, strict=True):
            ax.scatter(
                *self.points[::2].T, s=7, color=canvas.theme.data, linewidths=0, depthshade=False
            )
            x = np.broadcast_to(self.x[:, None], made.shape[:2])
            ax.plot_wireframe(
                x, made[:, :, 0], made[:, :, 1], color=canvas.theme.colours[0], linewidth=0.6,
                rcount=26, ccount=24, alpha=0.7,
            )  # fmt: skip
            solid(ax, canvas)
            ax.set_title(f"{title} training")


def solid(ax: Any, canvas: Canvas, names: tuple[str, ...] = ("x", "$y_1$", "$y_2$")) -> None:
    """Axes of three dimensions on the paper's colour."""
    ax.set(xlabel=names[0], ylabel=names[1], zlabel=names[2])
    ax.set_box_aspect(None, zoom=0.88)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color(canvas.theme.paper)
        axis.line.set_color(canvas.theme.quiet)
