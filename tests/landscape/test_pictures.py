"""Digits and photographs: what comes with scikit-learn, and images of one's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erg.data.source import DataError
from erg.landscape.pictures import digits, patches, photograph


def test_digits_are_split_and_in_the_unit_range() -> None:
    found = digits()
    assert found.side == 8
    assert len(found.train) + len(found.test) == 1797
    assert found.train.shape[1] == 64
    assert (float(found.train.min()), float(found.train.max())) == (0, 1)
    assert set(found.train_labels) == set(found.test_labels) == set(range(10))
    assert not any((found.train == digit).all(dim=1).any() for digit in found.test[:50])


def test_images_of_ones_own(tmp_path: Path) -> None:
    for i in range(40):
        place = tmp_path / "ab"[i % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(np.full((12, 12, 3), 6 * i, dtype=np.uint8)).save(place / f"{i}.png")
    found = digits(str(tmp_path), label="folder")
    assert (found.side, len(found.train), len(found.test)) == (12, 30, 10)
    pixels = torch.cat([found.train, found.test])
    assert sorted(pixels[:, 0].tolist()) == pytest.approx([6 * i / 255 for i in range(40)])
    labels = np.concatenate([found.train_labels, found.test_labels])
    assert (labels == np.rint(255 / 6 * pixels[:, 0].numpy()) % 2).all()
    # A folder comes class by class; both parts hold all classes.
    assert set(found.train_labels) == set(found.test_labels) == {0, 1}
    Image.fromarray(np.zeros((12, 14, 3), dtype=np.uint8)).save(tmp_path / "a" / "wide.png")
    with pytest.raises(DataError, match="not squares of one size"):
        digits(str(tmp_path), label="folder")


def test_patches_are_white_but_for_what_is_lifted() -> None:
    """Variances v end as v / (v + 0.3 mean v): below 1, and even where v is large."""
    y = patches(3000, 6)
    assert y.shape == (3000, 36)
    values = torch.linalg.eigvalsh((y.T @ y / len(y)).double())
    assert float(values[-1]) < 1
    assert float(values[-5] / values[-1]) > 0.7
    assert float(y.mean(dim=1).abs().max()) < 0.05  # each has lost its mean
    assert torch.equal(y, patches(3000, 6))
    assert photograph().shape == (427, 640, 3)
