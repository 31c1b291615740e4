"""The order of the images in a batch changes no loss, but where a method draws by place."""

import pytest
import torch

from tests.test_two_processes import METHODS, Whole

BY_PLACE = ("MoCo", "RELICv2", "WMSE")
"""Groups of the batch, negatives and sub-batches are drawn by place in it."""


@pytest.mark.parametrize(
    "whole", [w for w in METHODS if w.name not in BY_PLACE], ids=lambda w: w.name
)
def test_a_permuted_batch_has_the_same_loss(whole: Whole) -> None:
    order = torch.tensor([3, 0, 7, 5, 1, 6, 2, 4])
    totals = []
    for permuted in (False, True):
        method = whole.build().train()
        views = whole.views(method, 0)
        views = views.take(order) if permuted else views
        totals.append(float(method.loss(views, 0.5).total.detach()))
    assert totals[1] == pytest.approx(totals[0], rel=1e-9, abs=1e-9)
