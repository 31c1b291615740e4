"""VICReg: golden numbers, loops over its own embeddings, what learns."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.vicreg import VICReg
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, SIMCLR_SMALL
from erg.views.types import View, Views


def views(b: int = 6) -> Views:
    torch.manual_seed(1)
    pair = (View(torch.randn(b, 3, 16, 16)), View(torch.randn(b, 3, 16, 16)))
    return Views(pair, torch.arange(b))


def a_method(**arguments: Any) -> VICReg:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return VICReg(encoder, hidden=9, dim=5, **arguments)


def test_loss_is_golden(golden) -> None:
    method = VICReg(build_encoder("identity", 3))
    method.expander = nn.Sequential()
    x, y = View(golden.array("Z1")), View(golden.array("Z2"))
    loss = method.loss(Views((x, y), torch.arange(4)), 0.0)
    assert golden.agrees("VICReg, invariance", loss.pull["invariance"] / 25)
    assert golden.agrees("VICReg, invariance", method.energy(x, y).mean())
    assert golden.agrees("VICReg, variance", loss.push["variance"] / 25)
    assert golden.agrees("VICReg, covariance", loss.push["covariance"])
    assert golden.agrees("VICReg, 25 25 1", loss.total)


def test_loss_is_the_loops_of_the_docstring() -> None:
    """L = a F + b [v(z_x) + v(z_y)] / 2 + c [c(z_x) + c(z_y)] with other weights than usual."""
    method = a_method(invariance=2.0, variance=3.0, covariance=5.0).double()
    pair = views().to(torch.float64)
    sides = [method.expand(view).tolist() for view in pair.main]
    n, d = 6, 5
    mse = [
        sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / d
        for p, q in zip(*sides, strict=True)
    ]
    hinge = covariances = 0.0
    for z in sides:
        columns = [list(c) for c in zip(*z, strict=True)]
        centred = [[v - sum(c) / n for v in c] for c in columns]
        for i, a in enumerate(centred):
            for j, b in enumerate(centred):
                both = sum(p * q for p, q in zip(a, b, strict=True)) / (n - 1)
                if i == j:
                    hinge += max(0.0, 1 - math.sqrt(both + 1e-4)) / d
                else:
                    covariances += both**2 / d
    loss = method.loss(pair, 0.0)
    assert loss.pull["invariance"].item() == pytest.approx(2 * sum(mse) / n, rel=1e-9)
    assert loss.push["variance"].item() == pytest.approx(3 * hinge / 2, rel=1e-9)
    assert loss.push["covariance"].item() == pytest.approx(5 * covariances, rel=1e-9)
    assert method.energy(*pair.main).tolist() == pytest.approx(mse, rel=1e-9)


def test_gradient_is_that_of_finite_differences() -> None:
    """With deviations below and above the floor."""
    method = VICReg(build_encoder("identity", 3))
    method.expander = nn.Sequential()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    x, y = (z * torch.tensor([0.4, 0.8, 3.0]).double() for z in (x, y))

    def total(x: Tensor, y: Tensor) -> Tensor:
        return method.loss(Views((View(x), View(y)), torch.arange(5)), 0.0).total

    assert torch.autograd.gradcheck(total, (x.requires_grad_(), y.requires_grad_()))


def test_collapse_costs_the_floor() -> None:
    method = a_method()
    last = nn.Linear(16, 5)
    nn.init.zeros_(last.weight)
    method.expander = nn.Sequential(last)
    loss = method.loss(views(), 0.0)
    assert loss.pull["invariance"].item() == 0
    assert loss.push["variance"].item() == pytest.approx(25 * 0.99, rel=1e-5)
    assert loss.push["covariance"].item() == pytest.approx(0, abs=1e-20)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_swapping_views_and_reordering_the_batch_change_nothing() -> None:
    method, pair = a_method().double(), views().to(torch.float64)
    x, y = pair.main
    total = method.loss(pair, 0.0).total.item()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert method.loss(Views((y, x), pair.index), 0.0).total.item() == pytest.approx(total)
    assert method.loss(pair.take(order), 0.0).total.item() == pytest.approx(total)


def test_everything_learns() -> None:
    method = a_method()
    method.loss(views(), 0.0).total.backward()
    for p in method.parameters():
        assert p.grad is not None


def test_expander_is_the_papers() -> None:
    linears = [layer for layer in a_method().expander if isinstance(layer, nn.Linear)]
    shapes = [(a.in_features, a.out_features, a.bias is not None) for a in linears]
    assert shapes == [(16, 9, True), (9, 9, True), (9, 5, False)]
    assert isinstance(a_method().expander[-1], nn.Linear)


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = VICReg(build_encoder("conv", 128, width=8), hidden=4, dim=4)
    assert large.plan().main == (BYOL_FIRST, BYOL_SECOND)
