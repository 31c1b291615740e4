"""Does an energy tell where in an image something is wrong? AUROC over pixels.

Letters in shapes: n images, h w pixels, l levels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int64

from erg.evaluate.auroc import auroc
from erg.evaluate.intervals import LEVEL, Score

LEVELS = 1000
"""Steps into which energies are cut for the interval; the value itself is exact."""


def pixel_auroc(
    maps: Sequence[Float[np.ndarray, "h w"]],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    *,
    seed: int = 0,
    repeats: int = 1000,
) -> Score:
    """Probability that a sound pixel has a lower energy than a defective one, pixels of all images
    together; with its bootstrap interval (95 %).

    Images are resampled, not pixels: those of one image say the same thing many times.

    Args:
        maps: energy of every pixel, an array per image; sizes may differ.
        masks: True where a pixel is defective.
        seed: of the resampling.
        repeats: number of resamples.

    Raises:
        ValueError: maps and masks do not fit, or there are no sound or no defective pixels.
    """
    shapes = [(m.shape, mask.shape) for m, mask in zip(maps, masks, strict=True)]
    wrong = next((pair for pair in shapes if pair[0] != pair[1]), None)
    if wrong is not None:
        raise ValueError(f"a map of {wrong[0]} pixels has a mask of {wrong[1]}. Resize one.")
    energy = np.concatenate([m.ravel() for m in maps]) if maps else np.zeros(0)
    defective = np.concatenate([mask.ravel() for mask in masks]) if masks else np.zeros(0, bool)
    value = auroc(energy[~defective], energy[defective])
    edges = np.unique(np.quantile(energy, np.linspace(0, 1, LEVELS + 1)[1:-1]))
    sound, bad = (
        np.stack([_histogram(m[mask == kind], edges) for m, mask in zip(maps, masks, strict=True)])
        for kind in (False, True)
    )  # [n l]
    random = np.random.default_rng(seed)
    repeated: list[float] = []
    while len(repeated) < repeats:
        weight = np.bincount(random.integers(len(maps), size=len(maps)), minlength=len(maps))
        a, b = weight @ sound, weight @ bad
        if a.any() and b.any():  # a resample of sound images alone says nothing
            repeated.append(_ordered(a, b))
    low, high = np.quantile(repeated, LEVEL)
    return Score(value, float(low), float(high))


def _histogram(
    energies: Float[np.ndarray, " p"], edges: Float[np.ndarray, " e"]
) -> Int64[np.ndarray, " l"]:
    return np.bincount(np.searchsorted(edges, energies, side="right"), minlength=len(edges) + 1)


def _ordered(sound: Int64[np.ndarray, " l"], bad: Int64[np.ndarray, " l"]) -> float:
    """AUROC from counts per level, equal levels counting one half."""
    below = np.cumsum(sound) - 0.5 * sound
    return float(bad @ below / (float(sound.sum()) * float(bad.sum())))
