"""Figures of codes of digits: samples, walks, maps, neighbours."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from sklearn.datasets import load_wine

from erg import noise
from erg.evaluate import baselines
from erg.evaluate.knn import nearest
from erg.evaluate.trustworthiness import faithful
from erg.explore.neighbours import diverse
from erg.explore.project import project, projections
from erg.landscape.draw import Canvas, Figure, sheet
from erg.landscape.learn import check_steps, learn, method
from erg.landscape.pictures import digits, mlp, pairs_of_classes


def same_class(vectors: np.ndarray, labels: np.ndarray, k: int = 6) -> float:
    """Share of the k nearest neighbours, by cosine, that are of the same class."""
    each = np.arange(len(vectors))
    rows = nearest(vectors, vectors, k=k, bank_groups=each, query_groups=each).rows
    return float((labels[rows] == labels[:, None]).mean())


@dataclass(frozen=True, eq=False)
class Latent(Figure):
    """A variational autoencoder: samples of z from the prior, a walk between two codes, and codes
    of held-out digits while it learns."""

    size = (13.0, 7.6)
    samples: np.ndarray
    walk: np.ndarray
    fade: np.ndarray
    maps: list[np.ndarray]
    epochs: tuple[int, ...]
    labels: np.ndarray
    purity: tuple[float, ...]
    to_digits: float
    noise_to_digits: float

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", steps: int = 2000
    ) -> "Latent":
        check_steps(steps, 10)
        found = digits(data, label=label)
        test, labels, side = found.test[:400], found.test_labels[:400], found.side
        model: Any = method(
            "VariationalAutoencoder", side**2, seed=seed, dim=8, output="bernoulli",
            **mlp(256, 128),
        )  # fmt: skip
        looks, codes = (0, steps // 10, steps), []

        def look(done: int) -> None:
            if done in looks:
                with torch.no_grad():
                    codes.append(model.encode(test).numpy())

        learn(model, found.train, steps=steps, batch=128, seed=seed, watch=look)
        z = noise.normal(torch.arange(64), 8, purpose="prior", step=seed)  # normal, as the prior
        ends = pairs_of_classes(found, 1)
        shares = torch.linspace(0, 1, 16)[:, None]
        with torch.no_grad():
            samples = model.decoder(z).sigmoid()
            a, b = (model.encode(found.test[end]) for end in ends)
            walk = model.decoder(torch.lerp(a, b, shares)).sigmoid()
        fade = torch.lerp(found.test[ends[0]], found.test[ends[1]], shares)
        uniform = torch.rand(64, side**2, generator=torch.Generator().manual_seed(seed))
        return cls(
            samples.reshape(64, side, side).numpy(), walk.reshape(16, side, side).numpy(),
            fade.reshape(16, side, side).numpy(), [project(code, seed=seed).xy for code in codes],
            tuple(step // (len(found.train) // 128) for step in looks), labels,
            tuple(same_class(code, labels) for code in codes),
            *(float(torch.cdist(y, found.train).amin(dim=1).mean()) for y in (samples, uniform)),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            "neighbours of the same class, untrained": self.purity[0],
            "neighbours of the same class, trained": self.purity[-1],
            "distance from a sample to the nearest digit": self.to_digits,
            "distance from uniform noise to it": self.noise_to_digits,
        }

    def draw(self, canvas: Canvas) -> None:
        names = [["samples", "walk", "walk"], ["0", "1", "2"]]
        axes = canvas.picture.subplot_mosaic(names)
        canvas.image(axes["samples"], sheet(self.samples, 8), vmin=0, vmax=1)
        axes["samples"].set_title("z from the prior, decoded")
        both = np.concatenate([self.fade[:8], self.fade[8:], self.walk[:8], self.walk[8:]])
        canvas.image(axes["walk"], sheet(both, 8), vmin=0, vmax=1)
        axes["walk"].set_title("16 steps between two digits: pixels (above), codes (below)")
        for i, xy in enumerate(self.maps):
            ax = axes[str(i)]
            canvas.classes(ax, xy, self.labels)
            ax.set(
                xticks=[], yticks=[],
                title=f"epoch {self.epochs[i]}: {100 * self.purity[i]:.0f} % of 6 neighbours same",
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Neighbourhoods(Figure):
    """The nearest neighbours of the same digits by three encoders; a frame marks another class."""

    size = (13.0, 3.9)
    names: tuple[str, ...]
    pictures: np.ndarray
    wrong: np.ndarray
    same: tuple[float, ...]

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", steps: int = 2500
    ) -> "Neighbourhoods":
        found = digits(data, label=label)
        test, labels = found.test, found.test_labels
        model: Any = method(
            "DenoisingAutoencoder", test.shape[1], seed=seed, noise=0.3, **mlp(400, 24)
        )
        pca = baselines.PCA.fit(found.train.numpy(), 4)
        with torch.no_grad():
            before = model.encode(test).numpy()
        learn(model, found.train, steps=steps, batch=128, seed=seed)
        with torch.no_grad():
            after = model.encode(test).numpy()
        vectors = (before, pca(test.numpy()), after)
        chosen = diverse(after, 6)
        rows = np.stack([
            nearest(v, v[chosen], k=7, bank_groups=np.arange(len(v)), query_groups=chosen).rows
            for v in vectors
        ])  # fmt: skip
        shown = np.concatenate([np.broadcast_to(chosen[None, :, None], (3, 6, 1)), rows], axis=2)
        pixels = test.reshape(-1, found.side, found.side).numpy()
        return cls(
            ("untrained network", "4 principal components", "denoising autoencoder"),
            pixels[shown], labels[shown] != labels[chosen][None, :, None],
            tuple(same_class(v, labels) for v in vectors),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return dict(zip((f"same class: {name}" for name in self.names), self.same, strict=True))

    def draw(self, canvas: Canvas) -> None:
        side = self.pictures.shape[-1]
        for i, ax in enumerate(canvas.panels(1, 3)[0]):
            canvas.image(ax, sheet(self.pictures[i].reshape(-1, side, side), 8), vmin=0, vmax=1)
            for row, column in zip(*self.wrong[i].nonzero(), strict=True):
                corner = (column * (side + 1) - 0.5, row * (side + 1) - 0.5)
                ax.add_patch(frame(corner, side, canvas.theme.colours[3]))
            ax.axvline(side, color=canvas.theme.colours[0], linewidth=2.5)
            ax.set_title(f"{self.names[i]}: {100 * self.same[i]:.0f} % of the same class")
        canvas.picture.supxlabel("left of the line the query; framed: of another class", size=10)


def frame(corner: tuple[float, float], side: int, colour: str) -> Any:
    """A square around a picture of a sheet."""
    from matplotlib.patches import Rectangle

    return Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=2)


@dataclass(frozen=True, eq=False)
class Reduction(Figure):
    """Variances and loadings of standardised features, and the same digits laid out in the plane
    by four means, with their trustworthiness (1: who is near on the map is near in truth)."""

    size = (13.5, 7.4)
    variances: np.ndarray
    scores: np.ndarray
    loadings: np.ndarray
    kinds: np.ndarray
    features: tuple[str, ...]
    names: tuple[str, ...]
    maps: list[np.ndarray]
    trust: tuple[float, ...]
    labels: np.ndarray

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", steps: int = 3000
    ) -> "Reduction":
        wine: Any = load_wine()
        y = torch.from_numpy(wine.data).float()
        pca: Any = learn(method("PCA", 13, k=2, standardise=True), y, steps=1, batch=64)
        found = digits(data, label=label)
        few, labels = found.test[:450], found.test_labels[:450]
        model: Any = method("Autoencoder", few.shape[1], seed=seed, dim=2, **mlp(256, 64, 2))
        learn(model, found.train, steps=steps, batch=128, seed=seed)
        with torch.no_grad():
            maps = {"autoencoder": model.encode(few).numpy()}
            scores = pca.encode(y).numpy()
        maps |= {made.name: made.xy for made in projections(few.numpy(), seed=seed)}
        trust = [faithful(few.numpy(), xy).trustworthiness for xy in maps.values()]
        return cls(
            pca.variances.numpy(), scores, pca.down.detach().numpy(), wine.target,
            tuple(wine.feature_names), tuple(maps), list(maps.values()),
            tuple(trust), labels,
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            "sum of the variances of 13 standardised features": float(self.variances.sum()),
            "share of the first two": float(self.variances[:2].sum() / self.variances.sum()),
            **{f"trustworthiness, {n}": t for n, t in zip(self.names, self.trust, strict=True)},
        }

    def draw(self, canvas: Canvas) -> None:
        names = [["scree", "scree", "biplot", "biplot"], list("0123")]
        axes = canvas.picture.subplot_mosaic(names)
        count = np.arange(1, len(self.variances) + 1)
        ax = axes["scree"]
        ax.bar(count, self.variances, color=canvas.theme.colours[0])
        ax.axhline(1, color=canvas.theme.quiet, linestyle=":")
        ax.set(
            xlabel="direction", ylabel="variance", xticks=count,
            title="wine, standardised: variances (dotted: that of one feature)",
        )  # fmt: skip
        ax = axes["biplot"]
        for kind in np.unique(self.kinds):
            canvas.dots(ax, self.scores[self.kinds == kind], canvas.theme.colours[kind], 12)
        tips = 6.5 * self.loadings.T
        canvas.arrows(ax, np.zeros_like(tips), tips, canvas.theme.ink, width=0.0025)
        for right in (True, False):
            rows = np.flatnonzero((tips[:, 0] > 0) == right)
            rows = rows[tips[rows, 1].argsort()]
            heights = apart(1.04 * tips[rows, 1], 0.32)
            for row, height in zip(rows, heights, strict=True):
                name = self.features[row].split("/")[0].replace("_", " ")
                side = "left" if right else "right"
                ax.text(1.04 * tips[row, 0], height, name, fontsize=8, ha=side, va="center")
        ax.set(xlabel="first direction", ylabel="second", title="wine: three cultivars, biplot")
        for i, xy in enumerate(self.maps):
            ax = axes[str(i)]
            canvas.classes(ax, xy, self.labels)
            title = f"{self.names[i]}: trustworthiness {self.trust[i]:.2f}"
            ax.set(xticks=[], yticks=[], title=title)


def apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Ascending heights, moved up where they are closer than a gap to the one below."""
    moved = heights.copy()
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    return moved


@dataclass(frozen=True, eq=False)
class Traversal(Figure):
    """A variational autoencoder with two latents: where digits go, and what comes from where."""

    size = (12.0, 6.0)
    codes: np.ndarray
    labels: np.ndarray
    pictures: np.ndarray
    places: np.ndarray

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", steps: int = 3000,
        across: int = 16,
    ) -> "Traversal":  # fmt: skip
        found = digits(data, label=label)
        model: Any = method(
            "VariationalAutoencoder", found.train.shape[1], seed=seed, dim=2, output="bernoulli",
            **mlp(256, 64, 2),
        )  # fmt: skip
        learn(model, found.train, steps=steps, batch=128, seed=seed)
        # Equally likely steps under the prior.
        places = norm.ppf((np.arange(across) + 0.5) / across).astype(np.float32)
        z = np.stack(np.meshgrid(places, -places), axis=-1).reshape(-1, 2)
        with torch.no_grad():
            made = model.decoder(torch.from_numpy(z)).sigmoid()
            codes = model.encode(found.test).numpy()
        return cls(
            codes, found.test_labels, made.reshape(-1, found.side, found.side).numpy(), places
        )

    def facts(self) -> dict[str, float]:
        across = len(self.places)
        rows = self.pictures.reshape(across, across, -1)
        order = np.random.default_rng(0).permutation(across**2)
        mixed = self.pictures.reshape(across**2, -1)[order]
        return {
            **{
                f"squared difference of neighbours along {z}": float(
                    (np.diff(rows, axis=axis) ** 2).mean()
                )
                for axis, z in ((1, "z1"), (0, "z2"))
            },
            "squared difference of two at random": float((np.diff(mixed, axis=0) ** 2).mean()),
        }

    def draw(self, canvas: Canvas) -> None:
        left, right = canvas.panels(1, 2)[0]
        canvas.classes(left, self.codes, self.labels)
        left.set(
            xlabel="$z_1$", ylabel="$z_2$", aspect="equal", title="codes of held-out digits",
            xlim=(-3.5, 3.5), ylim=(-3.5, 3.5),
        )  # fmt: skip
        canvas.image(right, sheet(self.pictures, len(self.places), 0), vmin=0, vmax=1)
        right.set_title("the plane, decoded in equally likely steps")
