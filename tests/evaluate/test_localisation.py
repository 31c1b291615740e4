"""AUROC over pixels against counting pairs; images are what is resampled."""

import numpy as np
import pytest

from erg.evaluate.auroc import auroc
from erg.evaluate.localisation import pixel_auroc


def some(n: int = 12, gap: float = 1.0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images of several sizes, every third without a defect."""
    random = np.random.default_rng(0)
    maps, masks = [], []
    for i in range(n):
        shape = (5 + i % 3, 6 + i % 2)
        mask = np.zeros(shape, dtype=bool)
        mask[1:3, 2:4] = i % 3 > 0
        masks.append(mask)
        maps.append(random.normal(size=shape) + gap * mask)
    return maps, masks


def test_value_is_the_share_of_pairs_in_order() -> None:
    maps, masks = some()
    sound = [e for m, mask in zip(maps, masks, strict=True) for e in m[~mask]]
    bad = [e for m, mask in zip(maps, masks, strict=True) for e in m[mask]]
    wins = sum(1.0 if a < b else 0.5 if a == b else 0.0 for a in sound for b in bad)
    assert pixel_auroc(maps, masks).value == pytest.approx(wins / len(sound) / len(bad), abs=1e-12)


def test_interval_is_that_of_resampled_images() -> None:
    maps, masks = some(24)
    score = pixel_auroc(maps, masks, seed=1, repeats=2000)
    random = np.random.default_rng(2)
    plain = []
    for _ in range(500):
        rows = random.integers(24, size=24)
        energy = np.concatenate([maps[i].ravel() for i in rows])
        bad = np.concatenate([masks[i].ravel() for i in rows])
        plain.append(auroc(energy[~bad], energy[bad]))
    low, high = np.quantile(plain, [0.025, 0.975])
    assert score.low == pytest.approx(low, abs=0.2 * (high - low))
    assert score.high == pytest.approx(high, abs=0.2 * (high - low))


def test_more_pixels_of_the_same_images_do_not_narrow_the_interval() -> None:
    maps, masks = some()
    fine = [np.kron(m, np.ones((3, 3))) for m in maps]
    marks = [np.kron(m, np.ones((3, 3), dtype=bool)) for m in masks]
    a, b = pixel_auroc(maps, masks), pixel_auroc(fine, marks)
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), abs=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    maps, masks = some()
    with pytest.raises(ValueError, match="Resize"):
        pixel_auroc(maps, [mask.T for mask in masks])
    with pytest.raises(ValueError, match="0 mismatched"):
        pixel_auroc(maps, [np.zeros_like(mask) for mask in masks])
