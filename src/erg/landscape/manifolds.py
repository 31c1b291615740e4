"""Figure of a surface rolled up in space: what a linear code makes of it, and what a curved one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from erg.evaluate import baselines
from erg.evaluate.trustworthiness import faithful
from erg.landscape import worlds
from erg.landscape.angles import solid
from erg.landscape.draw import Canvas, Figure
from erg.landscape.learn import learn, method
from erg.landscape.pictures import mlp


@dataclass(frozen=True, eq=False)
class Roll(Figure):
    """A rolled-up sheet: two principal components press it flat, the decoder of an autoencoder
    with two latents bends along."""

    size = (13.5, 7.4)
    points: np.ndarray
    along: np.ndarray
    made: dict[str, np.ndarray]
    codes: dict[str, np.ndarray]
    errors: dict[str, float]
    trust: dict[str, float]

    @classmethod
    def compute(cls, *, seed: int = 0, steps: int = 4000) -> "Roll":
        points, along = worlds.roll(1500, seed)
        model: Any = method("Autoencoder", 3, seed=seed, dim=2, **mlp(128, 64, 2))
        learn(model, points, steps=steps, batch=128, seed=seed)
        pca, y = baselines.PCA.fit(points.numpy(), 2), points.numpy()
        codes = {"PCA": pca(y)}
        made = {"PCA": pca.mean + codes["PCA"] @ pca.components}
        with torch.no_grad():
            z = model.encode(points)
            codes["autoencoder"], made["autoencoder"] = z.numpy(), model.reconstruct(z).numpy()
        variance = y.var(axis=0).sum()
        few = slice(None, None, 3)
        return cls(
            y, along.numpy(), made, codes,
            {name: float(((r - y) ** 2).sum(axis=1).mean() / variance) for name, r in made.items()},
            {name: faithful(y[few], z[few]).trustworthiness for name, z in codes.items()},
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            **{f"variance not explained, {name}": error for name, error in self.errors.items()},
            **{f"trustworthiness, {name}": trust for name, trust in self.trust.items()},
        }

    def draw(self, canvas: Canvas) -> None:
        names = [["data", "PCA", "autoencoder"], ["profile", "PCA code", "autoencoder code"]]
        axes: Any = canvas.picture.subplot_mosaic(
            names, height_ratios=(1.4, 1),
            per_subplot_kw={("data", "PCA", "autoencoder"): {"projection": "3d"}},
        )  # fmt: skip
        shown = {"data": self.points, **self.made}
        for name, points in shown.items():
            ax = axes[name]
            ax.scatter(*points.T, c=self.along, cmap="viridis", s=5, linewidths=0)
            solid(ax, canvas, ("$y_1$", "$y_2$", "$y_3$"))
            ax.view_init(20, -40)
            ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), zlim=(-1.2, 1.2))
        axes["data"].set_title("a sheet, rolled up; colour: place along it")
        ax = axes["profile"]
        canvas.dots(ax, self.points[:, ::2], canvas.theme.quiet, 3)
        for (name, points), colour in zip(self.made.items(), canvas.theme.colours, strict=False):
            canvas.dots(ax, points[:, ::2], colour, 5, label=name)
        ax.set(xlabel="$y_1$", ylabel="$y_3$", aspect="equal", title="seen from the side")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
        for name, error in self.errors.items():
            axes[name].set_title(f"{name}, decoded: {100 * error:.1f} % of the variance lost")
            ax = axes[f"{name} code"]
            ax.scatter(*self.codes[name].T, c=self.along, cmap="viridis", s=5, linewidths=0)
            title = f"code of {name}: trustworthiness {self.trust[name]:.3f}"
            ax.set(xlabel="$z_1$", ylabel="$z_2$", title=title)
