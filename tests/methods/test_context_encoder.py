"""Context encoder: weights and errors by loops over pixels, and what the encoder gets to see."""

from typing import Any

import numpy as np
import pytest
import torch

from erg.encoders import build_encoder
from erg.methods.context_encoder import ContextEncoder
from erg.testing import check_method
from erg.views.masks import random_mask
from erg.views.plan import Masking
from erg.views.types import View, Views


def a_method(**arguments: Any) -> ContextEncoder:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 32, width=8, stages=2)
    return ContextEncoder(encoder, **{"width": 8, **arguments}).double().eval()


def a_view(n: int = 2, seed: int = 0, *, masked: bool = False) -> View:
    data = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).double()
    masking = Masking(grid=(8, 8), ratio=0.25)
    return View(data, mask=random_mask(masking, 0, 0, np.arange(n), 0) if masked else None)


def wanted_weight(view: View, b: int, i: int, j: int) -> float:
    """Hole of half the side, border of 2 of 32 pixels; or hidden squares of 4."""
    if view.mask is not None:
        return float(view.mask.hidden[b, 0, i // 4 * 8 + j // 4])
    if not (8 <= i < 24 and 8 <= j < 24):
        return 0.0
    return 1.0 if 10 <= i < 22 and 10 <= j < 22 else 10.0


@pytest.mark.parametrize("region", ["centre", "random"])
def test_energy_is_the_weighted_error_over_the_hole(region: Any) -> None:
    method = a_method(region=region, border=1 / 16)
    x, y = (a_view(seed=seed, masked=region == "random") for seed in range(2))
    made, found = method.predict(x), method.energy(x, y)
    hole = method.weights(x)
    for b in range(2):
        total = weight = 0.0
        for i in range(32):
            for j in range(32):
                w = wanted_weight(x, b, i, j)
                assert hole[b, 0, i, j].item() == w
                weight += w
                if w:
                    errors = (made[b, :, i, j] - y.data[b, :, i, j]).square()
                    total += w * errors.sum().item() / 3
        assert found[b].item() == pytest.approx(total / weight)
    views = Views((x,), torch.arange(2), pairing="itself")
    loss = method.loss(views, 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(method.energy(x, x).mean().item())


@pytest.mark.parametrize("region", ["centre", "random"])
def test_the_encoder_sees_the_mean_colour_in_the_hole(region: Any) -> None:
    method, x = a_method(region=region), a_view(masked=region == "random")
    inside = method.hidden(x)
    assert torch.equal(inside, method.weights(x) == 1)
    before = method.predict(x)
    assert torch.equal(method.predict(x.with_data(x.data + 5 * inside)), before)
    assert torch.equal(method.predict(x.with_data(x.data * ~inside)), before)
    assert not torch.allclose(method.predict(x.with_data(x.data + 0.1 * ~inside)), before)


def test_a_visible_border_is_seen_and_counts_more() -> None:
    method, x = a_method(border=1 / 16), a_view()
    border = method.weights(x) == 10
    assert int(border[0].sum()) == 16**2 - 12**2
    moved = x.with_data(x.data + 0.1 * border)
    assert not torch.allclose(method.predict(moved), method.predict(x))
    equal = a_method(border=1 / 16, border_weight=1.0)
    assert int((equal.weights(x)[0] == 1).sum()) == 16**2
    assert torch.equal(equal.hidden(x), method.hidden(x))
    without = a_method(border=0.0).weights(x)
    assert int((without[0] == 1).sum()) == 16**2
    assert int((without[0] == 10).sum()) == 0


def test_plan() -> None:
    (centre,) = a_method(crop=0.4).plan().main
    assert centre.mask is None
    assert centre.crop == (0.4, 1.0)
    (scattered,) = a_method(region="random", ratio=0.5).plan().main
    assert scattered.mask == Masking(grid=(8, 8), ratio=0.5)
    assert a_method().plan().pairs == "itself"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a hole of 0\.1 with borders of 0\.05 is empty"):
        a_method(hole=0.1, border=0.05)
    with pytest.raises(ValueError, match="8 squares do not fill an image of 36 pixels"):
        ContextEncoder(build_encoder("conv", 36, width=8, stages=2), region="random")
    with pytest.raises(ValueError, match="ContextEncoder needs views with masks"):
        a_method(region="random").energy(a_view(), a_view())


def test_random_regions_keep_the_contract() -> None:
    check_method(ContextEncoder, arguments={"region": "random", "width": 8})
