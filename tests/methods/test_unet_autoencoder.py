"""U-Net autoencoder: the decoder against loops, and what its skips do to the code."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.unet_autoencoder import UNetAutoencoder
from erg.testing import check_method
from erg.views.types import View, Views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_method(side: int = 16, **arguments: Any) -> UNetAutoencoder:
    torch.manual_seed(0)
    encoder = build_encoder("conv", side, width=8, stages=2)
    return UNetAutoencoder(encoder, **arguments)


def batch(y: Tensor) -> Views:
    return Views((View(y),), torch.arange(len(y)), pairing="alone")


def enlarged(x: Tensor, side: int) -> Tensor:
    """Nearest neighbours, place by place."""
    out = torch.empty(*x.shape[:2], side, side)
    for i in range(side):
        for j in range(side):
            out[..., i, j] = x[..., i * x.shape[2] // side, j * x.shape[3] // side]
    return out


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("side", [16, 13])
def test_it_is_a_contracting_and_an_expanding_path(skips: bool, side: int) -> None:
    method, y = a_method(side, skips=skips).eval(), drawn(2, 3, side, side)
    fine, coarse = method.encoder.maps(y)
    x = enlarged(coarse, fine.shape[-1])
    (step,) = method.steps
    x = step(torch.cat([x, fine], dim=1) if skips else x)
    wanted = method.last(enlarged(x, side))
    made = method.reconstruct(y)
    assert torch.allclose(made, wanted, atol=1e-6)
    error = (made - y).square().flatten(1).mean(1)
    assert torch.allclose(method.energy(None, View(y)), error)
    loss = method.loss(batch(y), 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(error.mean().item())


def transposed(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Every place puts its filter down, a stride from its neighbour's; then the edge is cut."""
    b, _, h, w = x.shape
    side = weight.shape[-1]
    out = torch.zeros(b, weight.shape[1], (h - 1) * stride + side, (w - 1) * stride + side)
    for i in range(h):
        for j in range(w):
            put = torch.einsum("bi,iokl->bokl", x[:, :, i, j], weight)
            out[:, :, i * stride : i * stride + side, j * stride : j * stride + side] += put
    return out[..., padding : -padding or None, padding : -padding or None] + bias[:, None, None]


@pytest.mark.parametrize("side", [16, 13])
def test_transposed_convolutions_double_the_sides(side: int) -> None:
    method, y = a_method(side, transposed=True).eval(), drawn(2, 3, side, side)
    fine, coarse = method.encoder.maps(y)
    (step,) = method.steps
    larger: Any = method.enlarge[0]
    x = transposed(coarse, larger.weight, larger.bias, 2, 1)
    assert x.shape[-1] == 2 * coarse.shape[-1]
    x = step(enlarged(x, fine.shape[-1]))
    assert torch.allclose(method.reconstruct(y), method.last(enlarged(x, side)), atol=1e-5)


def test_transposed_it_learns_to_repeat_pictures() -> None:
    method = a_method(transposed=True).train()
    optimiser = torch.optim.Adam(method.parameters(), lr=5e-3)
    for step in range(120):
        optimiser.zero_grad()
        method.loss(batch(pictures(32, seed=step)), 0.0).total.backward()
        optimiser.step()
    y = pictures(64, seed=999)
    with torch.no_grad():
        assert method.eval().energy(None, View(y)).mean().item() < 0.25 * y.var().item()


def test_without_skips_everything_passes_through_the_code() -> None:
    y = drawn(2, 3, 16, 16)
    for skips in (False, True):
        method = a_method(skips=skips).eval()
        fine, coarse = method.encoder.maps(y)
        same = torch.equal(method.decode([fine, coarse], 16), method.decode([fine + 1, coarse], 16))
        assert same is not skips


def pictures(n: int, seed: int) -> Tensor:
    """Smooth pictures: random waves."""
    random = torch.Generator().manual_seed(seed)
    at = torch.linspace(0, 1, 16)
    rates = 8 * torch.rand(n, 3, 2, generator=random) - 4
    phases = 6.3 * torch.rand(n, 3, 1, 1, generator=random)
    angles = rates[..., 0, None, None] * at[:, None] + rates[..., 1, None, None] * at
    return (2 * angles + phases).sin()


def test_with_skips_the_code_carries_little() -> None:
    """Each image gets the code of another: without skips all is lost, with them little is."""
    lost = {}
    y = pictures(64, seed=999)
    for skips in (False, True):
        method = a_method(skips=skips).train()
        optimiser = torch.optim.Adam(method.parameters(), lr=5e-3)
        for step in range(120):
            optimiser.zero_grad()
            method.loss(batch(pictures(32, seed=step)), 0.0).total.backward()
            optimiser.step()
        with torch.no_grad():
            *fine, coarse = method.eval().encoder.maps(y)
            own = method.decode([*fine, coarse], 16)
            others = method.decode([*fine, coarse.roll(1, 0)], 16)
        errors = [(made - y).square().mean().item() for made in (own, others)]
        assert errors[0] < 0.25 * y.var().item(), (skips, errors)
        lost[skips] = (errors[1] - errors[0]) / y.var().item()
    assert lost[False] > 1.0, lost
    assert lost[True] < 0.25 * lost[False], lost


def test_encoders_without_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="needs the feature maps of every stage; pixels shows"):
        UNetAutoencoder(build_encoder("pixels", 16))


def test_plan_and_contract() -> None:
    plan = a_method(crop=0.7).plan()
    assert plan.pairs == "alone"
    assert plan.main[0].crop == (0.7, 1.0)
    check_method(UNetAutoencoder, arguments={"skips": True, "transposed": True})
    check_method(UNetAutoencoder, encoder_arguments={"stages": 1, "width": 12, "whole": True})
