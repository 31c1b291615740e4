"""What is hidden: the masks of several views, and the square that stands behind them."""

import pytest
import torch

from erg.parts.hidden import blanked, stacked
from erg.views.types import Mask, View


def test_stacked_views_keep_their_masks() -> None:
    masks = [Mask(torch.rand(2, 1, 6) < 0.5, (2, 3)) for _ in range(3)]
    views = [View(torch.randn(2, 3, 4, 6), mask=mask) for mask in masks]
    data, mask = stacked(views, "this")
    assert (data.shape, mask.hidden.shape, mask.grid) == ((6, 3, 4, 6), (6, 1, 6), (2, 3))
    for k, view in enumerate(views):
        rows = slice(2 * k, 2 * k + 2)
        assert torch.equal(data[rows], view.data)
        assert torch.equal(mask.hidden[rows], masks[k].hidden)
    with pytest.raises(ValueError, match="this needs views with masks"):
        stacked([views[0], View(views[0].data)], "this")


def test_a_square_stands_where_a_patch_is_hidden() -> None:
    data, blank = torch.randn(3, 3, 4, 6), torch.randn(3, 2, 2, requires_grad=True)
    hidden = torch.rand(3, 1, 6) < 0.5
    found = blanked(data, Mask(hidden, (2, 3)), blank)
    for image in range(3):
        for patch in range(6):
            row, column = 2 * (patch // 3), 2 * (patch % 3)
            there = (image, slice(None), slice(row, row + 2), slice(column, column + 2))
            wanted = blank if hidden[image, 0, patch] else data[there]
            assert torch.equal(found[there], wanted)
    found.sum().backward()
    assert blank.grad is not None
    assert torch.equal(blank.grad, torch.full((3, 2, 2), float(hidden.sum())))
