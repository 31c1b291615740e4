"""TiCo: a loop over all earlier embeddings, moments without gradient, a teacher that follows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.tico import TiCo
from erg.schedule import Cosine, Linear
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, SIMCLR_SMALL
from erg.views.types import View, Views


def views(b: int = 5, *, step: int = 0) -> Views:
    generator = torch.Generator().manual_seed(step)
    main = [View(torch.randn(b, 3, 16, 16, generator=generator, dtype=torch.float64)) for _ in "xy"]
    return Views(tuple(main), torch.arange(b))


def a_method(**arguments: Any) -> TiCo:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    method = TiCo(encoder, **{"hidden": 9, "dim": 4, **arguments}).double()
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


def dot(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def units(method: TiCo, batch: Views) -> list[list[list[float]]]:
    x, y = batch.main
    z, taught = method.projector(method.encoder(x.data)), method.teacher(y.data)
    return [nn.functional.normalize(each, dim=1).tolist() for each in (z, taught)]


def test_push_is_the_squared_cosine_with_all_earlier_embeddings() -> None:
    """z^T C z, with C written out as a memory of every batch so far."""
    method, earlier = a_method(beta=0.7, rho=3.0), []
    for step in range(4):
        batch = views(step=step)
        z, taught = units(method, batch)
        earlier.append(z)
        push = pull = 0.0
        for i, a in enumerate(z):
            pull += (1 - dot(a, taught[i])) / 5
            for age, old in enumerate(reversed(earlier)):
                share = 0.3 * 0.7**age
                push += 3.0 * share * sum(dot(a, b) ** 2 for b in old) / 5 / 5
        loss = method.loss(batch, 0.0)
        assert loss.pull["invariance"].item() == pytest.approx(pull, rel=1e-10)
        assert loss.push["covariance"].item() == pytest.approx(push, rel=1e-10)


def test_energy_is_one_minus_the_cosine() -> None:
    method, batch = a_method().eval(), views()
    z, taught = units(method, batch)
    wanted = [1 - dot(a, b) for a, b in zip(z, taught, strict=True)]
    assert method.energy(*batch.main).tolist() == pytest.approx(wanted, rel=1e-10)


def test_moments_are_kept_in_training_alone() -> None:
    method, batch = a_method(), views()
    z = torch.tensor(units(method, batch)[0], dtype=torch.float64)
    assert float(method.moments.abs().max()) == 0
    method.loss(batch, 0.0)
    assert torch.allclose(method.moments, 0.1 * z.T @ z / 5, atol=1e-12)
    before = method.moments.clone()
    method.eval().loss(batch, 0.0)
    assert torch.equal(method.moments, before)


def test_gradient_is_that_with_moments_and_targets_as_constants() -> None:
    method, batch = a_method(rho=2.0), views()
    method.loss(batch, 0.0).total.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    assert not any(name.startswith("teacher.") for name in found)
    moments = method.moments.clone()
    method.zero_grad()
    x, y = batch.main
    z = nn.functional.normalize(method.projector(method.encoder(x.data)), dim=1)
    taught = nn.functional.normalize(method.teacher(y.data), dim=1)
    total: Tensor = (1 - (z * taught).sum(1)).mean()
    total = total + 2 * torch.einsum("bi,ij,bj->b", z, moments, z).mean()
    total.backward()
    for name in found:
        grad = method.get_parameter(name).grad
        assert grad is not None
        assert torch.allclose(grad, found[name], atol=1e-12), name


def bare(**arguments: Any) -> TiCo:
    method = TiCo(build_encoder("identity", 4), hidden=2, dim=4, **arguments).double()
    method.projector, method.teacher.network = nn.Sequential(), nn.Sequential()
    return method


def test_gradient_is_that_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """With moments and targets held: y is not moved, and the teacher has no gradient."""
    method, generator = bare(rho=2.0), torch.Generator().manual_seed(0)
    x, y, rows = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    moments = rows.T @ rows / 5
    monkeypatch.setattr(method, "remember", lambda _: moments)

    def total(x: Tensor) -> Tensor:
        return method.loss(Views((View(x), View(y)), torch.arange(5)), 0.0).total

    assert torch.autograd.gradcheck(total, (x.requires_grad_(),))


def test_spread_out_embeddings_are_pushed_least() -> None:
    """rho / d if all directions are used equally, rho if only one is (once C has settled)."""
    method = bare(rho=5.0, beta=0.5)
    spread, same = torch.eye(4, dtype=torch.float64), torch.ones(4, 4, dtype=torch.float64)
    for z, wanted in ((spread, 5 / 4), (same, 5.0)):
        push = torch.zeros(())
        for _ in range(60):
            push = method.loss(Views((View(z), View(z)), torch.arange(4)), 0.0).push["covariance"]
        assert push.item() == pytest.approx(wanted, rel=1e-10)


def test_teacher_follows_by_the_schedule() -> None:
    method = a_method(momentum=Linear(0.2, 0.8))
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(0.5)
    for old, new, fast in zip(before, method.teacher.parameters(), student, strict=True):
        assert torch.allclose(new, (old + fast) / 2, atol=1e-14)
    assert a_method().momentum == Cosine(0.99, 1.0)


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = TiCo(build_encoder("conv", 128, width=8), hidden=4, dim=4)
    assert large.plan().main == (BYOL_FIRST, BYOL_SECOND)
