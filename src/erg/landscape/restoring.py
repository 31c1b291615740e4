"""Figures of autoencoders of digits: what they restore, what they change, what they rank high."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from erg import noise
from erg.evaluate import baselines
from erg.evaluate.auroc import auroc
from erg.evaluate.restoration import biharmonic_fill
from erg.landscape.draw import Canvas, Figure, sheet, stretched
from erg.landscape.fields import along, energy_of
from erg.landscape.learn import check_steps, learn, method
from erg.landscape.pictures import digits, mlp, pairs_of_classes


@dataclass(frozen=True, eq=False)
class Denoising(Figure):
    """A narrow autoencoder and a wide denoising one: what their first layers look for, and what
    they make of digits with half of the pixels gone, beside biharmonic inpainting.

    Pixels are in [-1, 1], where a lost one is 0, mid-grey; digits were not seen in training.
    """

    size = (13.0, 7.4)
    given: np.ndarray
    epochs: tuple[int, ...]
    made: np.ndarray
    narrow: np.ndarray
    wide: np.ndarray
    masks: np.ndarray
    noisy: np.ndarray
    restored: np.ndarray
    biharmonic: np.ndarray
    errors: tuple[float, float, float]

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", steps: int = 2500
    ) -> "Denoising":
        check_steps(steps, 20)
        found = digits(data, label=label)
        x, test, side = 2 * found.train - 1, 2 * found.test[:100] - 1, found.side
        name = "DenoisingAutoencoder"
        narrow: Any = method(name, side**2, seed=seed, noise=0.0, **mlp(30, 30))
        wide: Any = method(name, side**2, seed=seed, noise=0.0, zeroed=0.5, **mlp(500, 100))
        looks = [0, steps // 20, steps // 5, steps]
        made: list[np.ndarray] = []

        def look(done: int) -> None:
            if done in looks:
                with torch.no_grad():
                    made.append(narrow.reconstruct(test[:8]).numpy())

        learn(narrow, x, steps=steps, batch=128, seed=seed, watch=look)
        learn(wide, x, steps=steps, batch=128, seed=seed)
        drawn = noise.normal(torch.arange(len(test)), side**2, purpose="mask", step=seed)
        hidden = drawn < 0
        noisy = torch.where(hidden, 0.0, test)
        with torch.no_grad():
            restored = wide.reconstruct(noisy).clamp(-1, 1)
        square = (len(test), side, side)
        filled = np.stack([
            biharmonic_fill(image, mask)[:, :, 0].clip(-1, 1) for image, mask in
            zip(noisy.reshape(*square, 1).numpy(), hidden.reshape(square).numpy(), strict=True)
        ])  # fmt: skip
        errors = [
            float((guess - test)[hidden].square().mean())
            for guess in (noisy, restored, torch.from_numpy(filled).reshape(test.shape))
        ]
        kinds = [kernels(model, side) for model in (narrow, wide)]
        rows = [t[:8].reshape(8, side, side).numpy() for t in (test, hidden, noisy, restored)]
        return cls(
            rows[0], tuple(step // (len(x) // 128) for step in looks),
            np.stack(made).reshape(4, 8, side, side), kinds[0], kinds[1], rows[1], rows[2],
            rows[3], filled[:8], (errors[0], errors[1], errors[2]),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        shown = ((self.made - self.given) ** 2).mean(axis=(1, 2, 3))
        return {
            "squared error of reconstructions, untrained": float(shown[0]),
            "squared error of reconstructions, trained": float(shown[-1]),
            "squared error of lost pixels, as they are": self.errors[0],
            "squared error of lost pixels, autoencoder": self.errors[1],
            "squared error of lost pixels, biharmonic": self.errors[2],
        }

    def draw(self, canvas: Canvas) -> None:
        names = [["made", "narrow"], ["noisy", "wide"]]
        axes = canvas.picture.subplot_mosaic(names, width_ratios=(1.35, 1))
        rows = np.concatenate([self.given, *self.made])
        canvas.image(axes["made"], sheet(rows, 8), vmin=-1, vmax=1)
        of = ", ".join(str(epoch) for epoch in self.epochs)
        axes["made"].set_title(f"digits, and their reconstructions after {of} epochs")
        rows = [2.0 * self.masks - 1, self.noisy, self.restored, self.biharmonic, self.given]
        canvas.image(axes["noisy"], sheet(np.concatenate(rows), 8), vmin=-1, vmax=1)
        axes["noisy"].set_title("lost pixels, input, autoencoder, biharmonic (told which), truth")
        for name, kernel, title in (
            ("narrow", self.narrow, "kernels of 30 units, nothing lost in training"),
            ("wide", self.wide, "kernels of 60 of 500 units, half of the pixels lost"),
        ):
            canvas.image(axes[name], sheet(stretched(kernel), 10), "RdGy", vmin=-1, vmax=1)
            axes[name].set_title(title)


def kernels(model: Any, side: int, count: int = 60) -> np.ndarray:
    """Weights of the units of the first layer that have the longest ones [count h w]."""
    weights = model.encoder.network[0].weight.detach()
    longest = weights.norm(dim=1).argsort(descending=True)[:count]
    return weights[longest].reshape(-1, side, side).numpy()


@dataclass(frozen=True, eq=False)
class Blend(Figure):
    """Halfway between two digits there is no digit, and an autoencoder of digits changes most what
    lies there. Each blend is compared with its own reconstruction."""

    size = (12.0, 5.0)
    blends: np.ndarray
    made: np.ndarray
    shares: np.ndarray
    change: np.ndarray
    of_one: np.ndarray

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", steps: int = 2500
    ) -> "Blend":
        found = digits(data, label=label)
        x, test = 2 * found.train - 1, 2 * found.test - 1
        model: Any = method("DenoisingAutoencoder", x.shape[1], seed=seed, noise=0.3, **mlp(256, 6))
        learn(model, x, steps=steps, batch=128, seed=seed)
        a, b = pairs_of_classes(found, 100)
        shares = torch.linspace(0, 1, 16)
        blends = torch.lerp(test[a][None], test[b][None], shares[:, None, None])  # [16 100 p]
        with torch.no_grad():
            made = model.reconstruct(blends.reshape(-1, x.shape[1])).reshape(blends.shape)
        change = (made - blends).square().mean(dim=2)  # [16 100]
        square = (16, found.side, found.side)
        return cls(
            blends[:, 0].reshape(square).numpy(), made[:, 0].reshape(square).numpy(),
            shares.numpy(), change.mean(dim=1).numpy(), change[:, 0].numpy(),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            "squared change of digits": float(self.change[[0, -1]].mean()),
            "squared change halfway": float(self.change[7:9].mean()),
        }

    def draw(self, canvas: Canvas) -> None:
        above, below = canvas.panels(2, 1, height_ratios=(1, 1.5))[:, 0]
        canvas.image(above, sheet(np.concatenate([self.blends, self.made]), 16), vmin=-1, vmax=1)
        above.set_title("a blend of two digits in 16 steps, and the reconstruction of each")
        below.plot(self.shares, self.change, marker="o", label="mean of 100 pairs")
        below.plot(self.shares, self.of_one, marker=".", label="the pair above")
        below.set(
            xlabel="share of the second digit", ylabel="$\\|x - r(x)\\|^2 / d$", ylim=(0, None),
            title="how much is changed: most where nothing like it was seen",
        )  # fmt: skip
        below.legend()


@dataclass(frozen=True, eq=False)
class Anomalies(Figure):
    """An autoencoder of one digit: its energy ranks others above what it was trained on."""

    size = (13.0, 5.2)
    lowest: np.ndarray
    highest: np.ndarray
    normal: np.ndarray
    other: np.ndarray
    area: float
    of_pca: float
    digit: int

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", digit: int = 3,
        steps: int = 1500,
    ) -> "Anomalies":  # fmt: skip
        found = digits(data, label=label)
        inliers = found.train[torch.from_numpy(found.train_labels == digit)]
        if len(inliers) < 16:
            raise ValueError(f"only {len(inliers)} images are of class {digit}. Choose another.")
        model: Any = method(
            "DenoisingAutoencoder", inliers.shape[1], seed=seed, noise=0.15, **mlp(256, 16)
        )
        learn(model, inliers, steps=steps, batch=64, seed=seed)
        scores = along(energy_of(model), found.test)
        pca = baselines.PCA.fit(inliers.numpy(), 16)
        code = pca(found.test.numpy())
        left = found.test.numpy() - pca.mean - code @ pca.components
        linear = (left**2).sum(axis=1).astype(np.float64)
        normal = found.test_labels == digit
        order, pixels = scores.argsort(), found.test.reshape(-1, found.side, found.side).numpy()
        return cls(
            pixels[order[:24]], pixels[order[-24:]], scores[normal], scores[~normal],
            auroc(scores[normal], scores[~normal]), auroc(linear[normal], linear[~normal]), digit,
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            "AUROC of the energy": self.area,
            "AUROC of 16 principal components": self.of_pca,
        }

    def draw(self, canvas: Canvas) -> None:
        names = [["lowest", "roc"], ["highest", "roc"]]
        axes = canvas.picture.subplot_mosaic(names, width_ratios=(1.6, 1))
        for name, images in (("lowest", self.lowest), ("highest", self.highest)):
            canvas.image(axes[name], sheet(images, 12), vmin=0, vmax=1)
            axes[name].set_title(f"{name} energies of an autoencoder of the {self.digit}")
        levels = np.sort(np.concatenate([[-np.inf], self.normal, self.other]))
        false = (self.normal[None] > levels[:, None]).mean(axis=1)
        true = (self.other[None] > levels[:, None]).mean(axis=1)
        ax = axes["roc"]
        ax.plot([0, 1], [0, 1], color=canvas.theme.quiet, linestyle=":")
        ax.plot(false, true)
        ax.set(
            xlabel="false alarms", ylabel="anomalies found",
            title=f"AUROC {self.area:.3f} (PCA: {self.of_pca:.3f})",
        )  # fmt: skip
