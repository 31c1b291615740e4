"""BYOL: golden numbers, its relation to SimSiam, a teacher that follows and never learns."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.byol import BYOL
from erg.parts.teacher import Teacher
from erg.schedule import Constant, Cosine, Linear
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, SIMCLR_SMALL
from erg.views.types import View, Views


def views(b: int = 6) -> Views:
    torch.manual_seed(1)
    pair = (View(torch.randn(b, 3, 16, 16)), View(torch.randn(b, 3, 16, 16)))
    return Views(pair, torch.arange(b)).to(torch.float64)


def a_method(**arguments: Any) -> BYOL:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return BYOL(encoder, hidden=9, dim=5, **arguments).double()


def away(method: BYOL) -> BYOL:
    """With a teacher that is no longer the student."""
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return dot / math.sqrt(sum(p * p for p in a)) / math.sqrt(sum(q * q for q in b))


def simsiam(p: list[Tensor], z: list[Tensor]) -> float:
    """-[mean cos(p1, z2) + mean cos(p2, z1)] / 2."""
    pairs = [(p[0], z[1]), (p[1], z[0])]
    cosines = [cosine(a, b) for x, y in pairs for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    return -sum(cosines) / len(cosines)


def golden_method() -> BYOL:
    method = BYOL(build_encoder("identity", 3), hidden=3, dim=3)
    method.projector, method.predictor = nn.Sequential(), nn.Sequential()
    method.teacher = Teacher(nn.Sequential())
    return method


def test_loss_is_golden(golden) -> None:
    x, y = View(golden.array("Z1")), View(golden.array("Z2"))
    method = golden_method()
    assert golden.agrees("mean of 2 - 2 cos", method.energy(x, y).mean())
    total = method.loss(Views((x, y), torch.arange(4)), 0.0).total
    assert golden.agrees("BYOL, both ways", total)
    assert golden.agrees("SimSiam", (total - 4) / 4)


def test_loss_is_the_loop_over_predictions_and_targets() -> None:
    method, pair = away(a_method()), views()
    x, y = pair.main
    total = 0.0
    for a, b in ((x, y), (y, x)):
        predicted, target = method.predict(a).tolist(), method.teach(b).tolist()
        energies = [2 - 2 * cosine(p, q) for p, q in zip(predicted, target, strict=True)]
        assert method.energy(a, b).tolist() == pytest.approx(energies, rel=1e-10)
        # The squared distance of unit vectors is the same thing.
        unit = nn.functional.normalize
        squared = (unit(method.predict(a)) - unit(method.teach(b))).square().sum(1)
        assert squared.tolist() == pytest.approx(energies, rel=1e-10)
        total += sum(energies) / 6
    loss = method.loss(pair, 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(total, rel=1e-10)


def test_with_momentum_0_it_is_4_simsiam_plus_4() -> None:
    method, pair = away(a_method(momentum=Constant(0.0))), views()
    method.after_step(0.3)
    z = [method.projector(method.encoder(view.data)) for view in pair.main]
    p = [method.predictor(each) for each in z]
    assert method.loss(pair, 0.0).total.item() == pytest.approx(4 * simsiam(p, z) + 4, rel=1e-10)


def test_constant_embeddings_cost_nothing() -> None:
    method = a_method()
    for layer in (method.projector[-1], method.predictor[-1]):
        assert isinstance(layer, nn.Linear)
        nn.init.zeros_(layer.weight)
        layer.bias = nn.Parameter(torch.ones(5, dtype=torch.float64))
    method.teacher = Teacher(nn.Sequential(method.encoder, method.projector))
    assert method.loss(views(), 0.0).total.item() == pytest.approx(0, abs=1e-12)


def test_no_gradient_reaches_the_teacher_and_none_comes_through_it() -> None:
    method, pair = away(a_method()), views()
    method.loss(pair, 0.0).total.backward()
    found = {name: p.grad for name, p in method.named_parameters()}
    for name, grad in found.items():
        assert (grad is None) == name.startswith("teacher."), name
    # The same gradients with the targets as constants.
    x, y = pair.main
    targets = [method.teach(view).clone() for view in (x, y)]
    method.zero_grad()
    total = 0.0
    for view, target in ((x, targets[1]), (y, targets[0])):
        cosines = nn.functional.cosine_similarity(method.predict(view), target)
        total = total + (2 - 2 * cosines).mean()
    assert isinstance(total, Tensor)
    total.backward()
    for name, p in method.named_parameters():
        wanted = found[name]
        assert (p.grad is None) == (wanted is None)
        if p.grad is not None and wanted is not None:
            assert torch.allclose(p.grad, wanted, atol=1e-12), name


def test_teacher_holds_encoder_and_projector_and_no_predictor() -> None:
    method = a_method()
    names = {name for name, _ in method.teacher.network.named_parameters()}
    student = nn.Sequential(method.encoder, method.projector)
    assert names == {name for name, _ in student.named_parameters()}


def test_after_step_follows_the_new_weights_by_the_schedule() -> None:
    schedule = Linear(0.2, 0.8)
    method = a_method(momentum=schedule)
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    for progress in (0.0, 0.5, 1.0):
        before = [p.clone() for p in method.teacher.parameters()]
        with torch.no_grad():
            for p in student:
                p.add_(torch.randn_like(p))
        method.after_step(progress)
        m = schedule(progress)
        for old, new, fast in zip(before, method.teacher.parameters(), student, strict=True):
            assert torch.allclose(new, m * old + (1 - m) * fast, atol=1e-14)


def test_momentum_is_the_papers() -> None:
    momentum = a_method().momentum
    assert momentum == Cosine(0.996, 1.0)
    for p in (0.0, 0.25, 0.9, 1.0):
        wanted = 1 - (1 - 0.996) * (math.cos(math.pi * p) + 1) / 2
        assert momentum(p) == pytest.approx(wanted, abs=1e-15)


def test_teacher_uses_the_statistics_of_its_batch_and_keeps_its_own_averages() -> None:
    method = a_method().train()
    method.loss(views(), 0.0)
    network: Any = method.teacher.network
    student, teacher = method.encoder.state_dict(), network[0].state_dict()
    counted = [name for name in teacher if name.endswith("num_batches_tracked")]
    assert counted
    for name in counted:
        assert int(teacher[name]) == int(student[name]) == 2
    method.eval()
    before = {name: t.clone() for name, t in method.state_dict().items()}
    method.loss(views(), 0.0)
    assert all(torch.equal(t, before[name]) for name, t in method.state_dict().items())


def test_heads_are_the_papers() -> None:
    method = a_method()
    for head, fan_in in ((method.projector, 16), (method.predictor, 5)):
        linears = [layer for layer in head if isinstance(layer, nn.Linear)]
        shapes = [(a.in_features, a.out_features, a.bias is not None) for a in linears]
        assert shapes == [(fan_in, 9, True), (9, 5, False)]
        assert isinstance(head[-1], nn.Linear)


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = BYOL(build_encoder("conv", 128, width=8), hidden=4, dim=4)
    assert large.plan().main == (BYOL_FIRST, BYOL_SECOND)
