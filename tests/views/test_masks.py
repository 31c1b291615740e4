"""Masks hide exactly as many patches as they should, each equally likely, each image its own."""

import numpy as np
import pytest
import torch

from erg.views.masks import random_mask
from erg.views.plan import Masking
from erg.views.random import Purpose, bits

INDEX = np.arange(2000, dtype=np.int64)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75, 0.99])
def test_hides_exactly(ratio: float) -> None:
    masking = Masking(grid=(4, 7), ratio=ratio)
    mask = random_mask(masking, 0, 0, INDEX[:50], 0)
    assert mask.hidden.shape == (50, 1, 28)
    assert mask.hidden.dtype == torch.bool
    assert mask.grid == (4, 7)
    assert (mask.hidden.sum(dim=2) == masking.hidden).all()
    assert mask.keep().shape == (50, 28 - masking.hidden)


def test_is_the_argsort_of_hashes() -> None:
    masking = Masking(grid=(3, 5), ratio=0.4)
    mask = random_mask(masking, 7, 2, np.array([41, 5]), 1)
    for row, image in enumerate([41, 5]):
        keys = [int(bits(7, 2, image, 1, Purpose.MASK, token)) for token in range(15)]
        lowest = sorted(range(15), key=keys.__getitem__)[:6]
        assert mask.hidden[row, 0].nonzero()[:, 0].tolist() == sorted(lowest)


def test_patches_are_equally_likely_and_uncorrelated() -> None:
    hidden = random_mask(Masking(grid=(4, 4), ratio=0.5), 0, 0, INDEX, 0).hidden[:, 0].double()
    assert (hidden.mean(dim=0) - 0.5).abs().max() < 4 * 0.5 / len(INDEX) ** 0.5
    correlation = torch.corrcoef(hidden.T) - torch.eye(16)
    # Of 8 among 16 without replacement: -1 / 15 between any two patches.
    off = correlation[~torch.eye(16, dtype=torch.bool)]
    assert (off + 1 / 15).abs().max() < 5 / len(INDEX) ** 0.5


def test_depends_on_what_it_should() -> None:
    masking = Masking(grid=(8, 8))
    first = random_mask(masking, 0, 0, INDEX[:20], 0).hidden
    for other in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        seed, epoch, view = other
        assert not torch.equal(first, random_mask(masking, seed, epoch, INDEX[:20], view).hidden)
    alone = random_mask(masking, 0, 0, INDEX[7:8], 0).hidden
    assert torch.equal(first[7:8], alone)
    assert not torch.equal(first[7], first[8])
