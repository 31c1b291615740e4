"""Figure of sparse coding: its atoms and filters, and how few of them explain how much."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erg.landscape.draw import Canvas, Figure, sheet, stretched
from erg.landscape.learn import learn, method
from erg.landscape.pictures import digits, patches
from erg.train.run import Optimiser

ATOMS = Optimiser(lr=2e-2, weight_decay=0.0)
COUNTS = (1, 2, 4, 8, 16, 64)
"""Of filters."""

FILTERS = Optimiser(lr=5e-2, weight_decay=0.0)


@dataclass(frozen=True, eq=False)
class Atoms(Figure):
    """Atoms of sparse coding: strokes and shapes from digits, edges from photographs; and the
    filters of convolutional sparse coding, 1 to 64 of them, none of which has to be learned again
    for another place."""

    size = (13.0, 7.6)
    of_digits: np.ndarray
    of_photographs: np.ndarray
    filters: list[np.ndarray]
    active: tuple[float, float]
    explained: tuple[float, float]
    sparse: tuple[float, ...]
    by_filters: tuple[float, ...]

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", steps: int = 200,
        most: int = 64,
    ) -> "Atoms":  # fmt: skip
        found = digits(data, label=label)
        k, share = (100, 1) if found.side < 16 else (256, 2)  # large ones take long
        numbers = dictionary(found.train, k, 0.1, steps // share, seed)
        edges = patches(seed=seed)
        photographs = dictionary(edges, 100, 0.3, steps, seed)
        pieces = patches(2000, 16, seed)
        models = [convolutional(pieces[200:], k, steps // 4, seed) for k in COUNTS if k <= most]
        used = [usage(numbers, found.test), usage(photographs, edges)]
        shares = [usage_of_maps(model, pieces[:200]) for model in models]
        return cls(
            pictures_of(numbers, found.side), pictures_of(photographs, 8),
            [model.filters.detach()[:, 0].numpy() for model in models],
            (used[0][0], used[1][0]), (used[0][1], used[1][1]),
            tuple(share for share, _ in shares), tuple(explained for _, explained in shares),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        norms = np.concatenate([
            np.linalg.norm(atoms.reshape(len(atoms), -1), axis=1)
            for atoms in (self.of_photographs, *self.filters)
        ])  # fmt: skip
        many = len(self.filters[-1])
        noise = np.random.default_rng(0).normal(size=self.of_photographs.shape)
        return {
            "active share of codes of held-out digits": self.active[0],
            "variance of them explained": self.explained[0],
            "active share of codes of patches": self.active[1],
            "variance of patches explained": self.explained[1],
            "energy at one frequency, atoms of photographs": tuned(self.of_photographs),
            "energy at one frequency, noise": tuned(noise),
            "largest |norm of an atom - 1|": float(np.abs(norms - 1).max()),
            "variance of larger patches explained, 1 filter": self.by_filters[0],
            f"variance of larger patches explained, {many} filters": self.by_filters[-1],
            f"active share of the maps of {many} filters": self.sparse[-1],
            "likeness to the nearest other at any shift, atoms": repeated(self.of_photographs),
            "likeness to the nearest other at any shift, filters": repeated(self.filters[-1]),
        }

    def draw(self, canvas: Canvas) -> None:
        names = [["digits"] * 3 + ["photographs"] * 3, list("012345")]
        axes = canvas.picture.subplot_mosaic(names, height_ratios=(2.6, 1))
        for name, atoms, title in (
            ("digits", self.of_digits, "atoms of digits"),
            ("photographs", self.of_photographs, "atoms of photographs, whitened: edges"),
        ):
            columns = int(np.ceil(np.sqrt(len(atoms))))
            canvas.image(axes[name], sheet(stretched(atoms), columns), vmin=-1, vmax=1)
            axes[name].set_title(title)
        for i, (filters, share) in enumerate(zip(self.filters, self.by_filters, strict=True)):
            columns = int(np.ceil(np.sqrt(len(filters))))
            canvas.image(axes[str(i)], sheet(stretched(filters), columns), vmin=-1, vmax=1)
            many = "1 filter explains" if len(filters) == 1 else f"{len(filters)} filters explain"
            axes[str(i)].set_title(f"{many} {100 * share:.0f} %")
        axes["0"].set_ylabel("convolutional")


def dictionary(y: Tensor, k: int, sparsity: float, steps: int, seed: int) -> Any:
    """Sparse coding of vectors, trained."""
    model = method("SparseCoding", y.shape[1], seed=seed, k=k, sparsity=sparsity, iterations=30)
    return learn(model, y, steps=steps, batch=256, optimiser=ATOMS, seed=seed)


def convolutional(y: Tensor, k: int, steps: int, seed: int) -> Any:
    """Convolutional sparse coding of square patches, trained."""
    model = method(
        "ConvolutionalSparseCoding", y.shape[1], seed=seed, k=k, side=7, sparsity=3.0,
        iterations=25,
    )  # fmt: skip
    return learn(model, y, steps=steps, batch=16, optimiser=FILTERS, seed=seed)


def pictures_of(model: Any, side: int) -> np.ndarray:
    """Its atoms [k h w]."""
    return model.atoms.detach().reshape(-1, side, side).numpy()


@torch.no_grad()
def usage(model: Any, y: Tensor) -> tuple[float, float]:
    """Share of codes that are not zero, and of the variance of y that they explain."""
    given, z = model.centred(y), model.encode(y)
    left = (given - z @ model.atoms).square().sum() / given.square().sum()
    return float((z != 0).float().mean()), 1 - float(left)


@torch.no_grad()
def usage_of_maps(model: Any, y: Tensor) -> tuple[float, float]:
    """Share of the entries of maps that are not zero, and of the variance that they explain."""
    given = model.centred(y)
    z = model.infer(given)
    left = (given - model.made(z)).square().sum() / given.square().sum()
    return float((z != 0).float().mean()), 1 - float(left)


def repeated(atoms: np.ndarray) -> float:
    """Largest |cosine| of an atom [k h w] with another one, shifted by anything; the mean."""
    size = [2 * side - 1 for side in atoms.shape[1:]]
    spectra = np.fft.fft2(atoms, s=size)
    alike = np.abs(np.fft.ifft2(spectra[:, None] * spectra[None].conj())).max(axis=(2, 3))
    norms = np.linalg.norm(atoms.reshape(len(atoms), -1), axis=1)
    alike = alike / np.outer(norms, norms).clip(1e-12)
    np.fill_diagonal(alike, 0)
    return float(alike.max(axis=1).mean())


def tuned(atoms: np.ndarray) -> float:
    """Share of its energy that an atom has at one frequency and direction, the best; the median."""
    power = np.abs(np.fft.fft2(atoms)) ** 2
    paired = power + np.roll(power[:, ::-1, ::-1], 1, axis=(1, 2))  # of both signs
    return float(np.median(paired.max(axis=(1, 2)) / power.sum(axis=(1, 2))))
