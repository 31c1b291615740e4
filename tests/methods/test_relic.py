"""RELIC: golden numbers both ways, a loop, InfoNCE where nothing is asked of invariance."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from erg.encoders import build_encoder
from erg.methods.relic import RELIC
from erg.parts.teacher import Teacher
from erg.schedule import Constant
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, SIMCLR_SMALL
from erg.views.types import View, Views


def views(b: int = 6, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    main = [View(torch.randn(b, 3, 16, 16, generator=generator, dtype=torch.float64)) for _ in "xy"]
    return Views(tuple(main), torch.arange(b))


def a_method(**arguments: Any) -> RELIC:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return RELIC(encoder, **{"hidden": 9, "dim": 5, **arguments}).double()


def plain(**arguments: Any) -> RELIC:
    """Embeddings are the data."""
    method = RELIC(build_encoder("identity", 3), hidden=2, dim=3, **arguments).double()
    method.projector = nn.Sequential()
    if method.teacher is not None:
        method.teacher = Teacher(nn.Sequential())
    return method


def unit(rows: torch.Tensor) -> list[list[float]]:
    return (rows / rows.norm(dim=1, keepdim=True)).tolist()


def dot(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("teacher", [True, False])
def test_loss_is_golden(golden, teacher: bool) -> None:
    method = plain(teacher=teacher, alpha=2.0)
    x, y = View(golden.array("Z1")), View(golden.array("Z2"))
    loss = method.loss(Views((x, y), torch.arange(4)), 0.0)
    infonce = loss.pull["alignment"] + loss.push["repulsion"]
    assert golden.agrees("InfoNCE across views, both ways, temperature 0.1", infonce)
    assert golden.agrees("RELIC, KL of x's from y's", loss.pull["invariance"] / 2)
    loss = method.loss(Views((y, x), torch.arange(4)), 0.0)
    assert golden.agrees("RELIC, KL of y's from x's", loss.pull["invariance"] / 2)


@pytest.mark.parametrize("teacher", [True, False])
def test_loss_is_the_loop_over_images(teacher: bool) -> None:
    method, batch = a_method(temperature=0.3, alpha=0.7, teacher=teacher), views()
    if method.teacher is not None:  # another network than the student
        with torch.no_grad():
            for p in method.teacher.parameters():
                p.add_(0.1 * torch.randn_like(p))
    q = [unit(method.projector(method.encoder(v.data)).detach()) for v in batch.main]
    k = q if method.teacher is None else [unit(method.teacher(v.data)) for v in batch.main]
    p: list[list[list[float]]] = []
    for a in (0, 1):
        rows = [[math.exp(dot(q[a][i], k[1 - a][j]) / 0.3) for j in range(6)] for i in range(6)]
        p.append([[e / sum(row) for e in row] for row in rows])
    instance = -sum(math.log(p[a][i][i]) for a in (0, 1) for i in range(6)) / 6
    kl = sum(s * math.log(s / t) for i in range(6) for s, t in zip(p[0][i], p[1][i], strict=True))
    loss = method.loss(batch, 0.0)
    found = loss.pull["alignment"] + loss.push["repulsion"]
    assert found.item() == pytest.approx(instance, rel=1e-10)
    assert loss.pull["invariance"].item() == pytest.approx(0.7 * kl / 6, rel=1e-9)
    energies = [-dot(q[0][i], k[1][i]) for i in range(6)]
    assert method.energy(*batch.main).tolist() == pytest.approx(energies, rel=1e-10)


def test_with_alpha_0_gradients_are_those_of_infonce() -> None:
    method, batch = a_method(alpha=0.0, teacher=False), views()
    method.loss(batch, 0.0).total.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    z = [method.query(view) for view in batch.main]
    target = torch.arange(6)
    both = [nn.functional.cross_entropy(z[a] @ z[1 - a].T / 0.1, target) for a in (0, 1)]
    torch.stack(both).sum().backward()
    for name, p in method.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, found[name], atol=1e-10), name


@pytest.mark.parametrize("teacher", [True, False])
def test_gradient_is_that_of_finite_differences(
    teacher: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With respect to the data, through both arguments of the divergence; a teacher's keys held."""
    method = plain(teacher=teacher, alpha=1.5, temperature=0.5)
    if teacher:
        keys = itertools.cycle(torch.randn(2, 4, 3, dtype=torch.float64))
        monkeypatch.setattr(method, "key", lambda _: next(keys))
    x, y = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in "xy")

    def total(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return method.loss(Views((View(x), View(y)), torch.arange(4)), 0.0).total

    assert torch.autograd.gradcheck(total, (x, y))


def test_equal_views_need_no_invariance() -> None:
    method, batch = a_method(), views()
    same = Views((batch.main[0], batch.main[0]), batch.index)
    assert method.loss(same, 0.0).pull["invariance"].item() == pytest.approx(0, abs=1e-12)


def test_the_teacher_gets_no_gradient_and_follows() -> None:
    method = a_method(momentum=Constant(0.25))
    method.loss(views(), 0.0).total.backward()
    teacher = method.teacher
    assert teacher is not None
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in method.projector.parameters())
    slow, fast = next(teacher.parameters()), next(method.encoder.parameters())
    with torch.no_grad():
        fast.add_(1.0)
    wanted = 0.25 * slow + 0.75 * fast
    method.after_step(0.5)
    assert torch.allclose(slow, wanted)
    a_method(teacher=False).after_step(0.5)


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = RELIC(build_encoder("conv", 128, width=8), hidden=4, dim=4)
    assert large.plan().main == (BYOL_FIRST, BYOL_SECOND)
