"""Figure of sparse coding: its atoms, and how few of them explain how much."""

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


@dataclass(frozen=True, eq=False)
class Atoms(Figure):
    """Atoms of sparse coding: strokes and shapes from digits, edges from photographs, and those of
    small dictionaries."""

    size = (13.0, 7.4)
    of_digits: np.ndarray
    of_photographs: np.ndarray
    few: list[np.ndarray]
    active: tuple[float, float]
    explained: tuple[float, float]

    @classmethod
    def compute(
        cls, *, seed: int = 0, data: str | None = None, label: str = "label", steps: int = 300
    ) -> "Atoms":
        found = digits(data, label=label)
        k, share = (100, 1) if found.side < 16 else (256, 2)  # large ones take long
        numbers = dictionary(found.train, k, 0.1, steps // share, seed)
        edges = patches(seed=seed)
        photographs = dictionary(edges, 100, 0.3, steps, seed)
        counts = (1, 2, 4, 8, 16, 64)
        few = [dictionary(edges[::4], count, 0.3, steps // 2, seed) for count in counts]
        used = [usage(numbers, found.test), usage(photographs, edges)]
        return cls(
            pictures_of(numbers, found.side), pictures_of(photographs, 8),
            [pictures_of(model, 8) for model in few], (used[0][0], used[1][0]),
            (used[0][1], used[1][1]),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        norms = np.linalg.norm(self.of_photographs.reshape(len(self.of_photographs), -1), axis=1)
        noise = np.random.default_rng(0).normal(size=self.of_photographs.shape)
        return {
            "active share of codes of held-out digits": self.active[0],
            "variance of them explained": self.explained[0],
            "active share of codes of patches": self.active[1],
            "variance of patches explained": self.explained[1],
            "energy at one frequency, atoms of photographs": tuned(self.of_photographs),
            "energy at one frequency, noise": tuned(noise),
            "largest |norm of an atom - 1|": float(np.abs(norms - 1).max()),
        }

    def draw(self, canvas: Canvas) -> None:
        names = [["digits"] * 3 + ["photographs"] * 3, list("012345")]
        axes = canvas.picture.subplot_mosaic(names, height_ratios=(3, 1))
        for name, atoms, title in (
            ("digits", self.of_digits, "atoms of digits"),
            ("photographs", self.of_photographs, "atoms of photographs, whitened: edges"),
        ):
            columns = int(np.ceil(np.sqrt(len(atoms))))
            canvas.image(axes[name], sheet(stretched(atoms), columns), vmin=-1, vmax=1)
            axes[name].set_title(title)
        for i, atoms in enumerate(self.few):
            columns = int(np.ceil(np.sqrt(len(atoms))))
            canvas.image(axes[str(i)], sheet(stretched(atoms), columns), vmin=-1, vmax=1)
            axes[str(i)].set_title(f"{len(atoms)} atom{'s' * (len(atoms) > 1)}")


def dictionary(y: Tensor, k: int, sparsity: float, steps: int, seed: int) -> Any:
    """Sparse coding of vectors, trained."""
    model = method("SparseCoding", y.shape[1], seed=seed, k=k, sparsity=sparsity, iterations=30)
    return learn(model, y, steps=steps, batch=256, optimiser=ATOMS, seed=seed)


def pictures_of(model: Any, side: int) -> np.ndarray:
    """Its atoms [k h w]."""
    return model.atoms.detach().reshape(-1, side, side).numpy()


@torch.no_grad()
def usage(model: Any, y: Tensor) -> tuple[float, float]:
    """Share of codes that are not zero, and of the variance of y that they explain."""
    given, z = model.centred(y), model.encode(y)
    left = (given - z @ model.atoms).square().sum() / given.square().sum()
    return float((z != 0).float().mean()), 1 - float(left)


def tuned(atoms: np.ndarray) -> float:
    """Share of its energy that an atom has at one frequency and direction, the best; the median."""
    power = np.abs(np.fft.fft2(atoms)) ** 2
    paired = power + np.roll(power[:, ::-1, ::-1], 1, axis=(1, 2))  # of both signs
    return float(np.median(paired.max(axis=(1, 2)) / power.sum(axis=(1, 2))))
