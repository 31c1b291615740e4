"""SimSiam: the golden number, its relation to BYOL, a stop-gradient that stops."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.byol import BYOL
from erg.methods.simsiam import SimSiam
from erg.parts.norm import BatchNorm
from erg.parts.teacher import Teacher
from erg.schedule import Constant
from erg.views.plan import SIMCLR_SMALL
from erg.views.types import View, Views


def views(b: int = 6) -> Views:
    torch.manual_seed(1)
    pair = (View(torch.randn(b, 3, 16, 16)), View(torch.randn(b, 3, 16, 16)))
    return Views(pair, torch.arange(b)).to(torch.float64)


def a_method(**arguments: Any) -> SimSiam:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return SimSiam(encoder, **{"dim": 8, **arguments}).double()


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return dot / math.sqrt(sum(p * p for p in a)) / math.sqrt(sum(q * q for q in b))


def test_loss_is_golden(golden) -> None:
    method = SimSiam(build_encoder("identity", 3), dim=4)
    method.projector, method.predictor = nn.Sequential(), nn.Sequential()
    pair = Views((View(golden.array("Z1")), View(golden.array("Z2"))), torch.arange(4))
    assert golden.agrees("SimSiam", method.loss(pair, 0.0).total)


def test_loss_is_the_loop_over_predictions() -> None:
    method, pair = a_method(), views()
    x, y = pair.main
    z = [method.project(view) for view in (x, y)]
    p = [method.predictor(each) for each in z]
    energies = []
    for a, b in ((0, 1), (1, 0)):
        rows = zip(p[a].tolist(), z[b].tolist(), strict=True)
        energies.append([-cosine(s, t) for s, t in rows])
    assert method.energy(x, y).tolist() == pytest.approx(energies[0], rel=1e-10)
    assert method.energy(y, x).tolist() == pytest.approx(energies[1], rel=1e-10)
    loss = method.loss(pair, 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(sum(map(sum, energies)) / 12, rel=1e-10)


def test_byol_with_momentum_0_and_these_heads_is_4_simsiam_plus_4() -> None:
    method, pair = a_method(), views()
    byol = BYOL(method.encoder, hidden=4, dim=8, momentum=Constant(0.0)).double()
    byol.projector, byol.predictor = method.projector, method.predictor
    byol.teacher = Teacher(nn.Sequential(method.encoder, method.projector)).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    byol.after_step(0.5)
    total = 4 * method.loss(pair, 0.0).total.item() + 4
    assert byol.loss(pair, 0.0).total.item() == pytest.approx(total, rel=1e-10)


def test_gradients_are_those_with_the_targets_as_constants() -> None:
    method, pair = a_method(), views()
    method.loss(pair, 0.0).total.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name, _ in method.named_parameters()}
    method.zero_grad()
    z = [method.project(view) for view in pair.main]
    targets = [each.detach().clone() for each in z]
    total = torch.zeros((), dtype=torch.float64)
    for a, b in ((0, 1), (1, 0)):
        total = total - nn.functional.cosine_similarity(method.predictor(z[a]), targets[b]).mean()
    (total / 2).backward()
    for name, p in method.named_parameters():
        assert isinstance(p.grad, Tensor)
        assert torch.allclose(p.grad, found[name], atol=1e-12), name


def test_collapse_costs_minus_one() -> None:
    method = a_method()
    constant = nn.Linear(16, 8).double()
    nn.init.zeros_(constant.weight)
    method.projector, method.predictor = nn.Sequential(constant), nn.Sequential()
    assert method.loss(views(), 0.0).total.item() == pytest.approx(-1, rel=1e-10)


def test_heads_are_the_papers() -> None:
    method = a_method()
    linears = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    shapes = [(a.in_features, a.out_features, a.bias is not None) for a in linears]
    assert shapes == [(16, 8, False), (8, 8, False), (8, 8, False)]
    last = method.projector[-1]
    assert isinstance(last, BatchNorm)
    assert not last.affine
    linears = [layer for layer in method.predictor if isinstance(layer, nn.Linear)]
    shapes = [(a.in_features, a.out_features, a.bias is not None) for a in linears]
    assert shapes == [(8, 2, False), (2, 8, True)]
    assert isinstance(method.predictor[-1], nn.Linear)
    narrow = a_method(bottleneck=3).predictor[0]
    assert isinstance(narrow, nn.Linear)
    assert narrow.out_features == 3


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = SimSiam(build_encoder("conv", 128, width=8), dim=4).plan().main
    assert large == (replace(SIMCLR_SMALL, blur=0.5),) * 2
