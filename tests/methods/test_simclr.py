"""SimCLR: golden numbers, a double loop over its own projections, what learns."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg import energy
from erg.encoders import build_encoder
from erg.methods.simclr import SimCLR
from erg.parts.heads import OutputNorm
from erg.schedule import Constant
from erg.views.plan import SIMCLR, SIMCLR_SMALL
from erg.views.types import View, Views


def images(b: int = 6, side: int = 16, seed: int = 0) -> View:
    generator = torch.Generator().manual_seed(seed)
    return View(torch.randn(b, 3, side, side, generator=generator))


def views(n: int = 2) -> Views:
    return Views(tuple(images(seed=i) for i in range(n)), torch.arange(6))


def a_method(**arguments: Any) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(build_encoder("conv", 16, width=8, stages=2), dim=5, **arguments)


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_loss_is_golden(golden, temperature: float) -> None:
    method = SimCLR(build_encoder("identity", 3), temperature=temperature)
    method.projector = nn.Sequential()
    pair = Views((View(golden.array("Z1")), View(golden.array("Z2"))), torch.arange(4))
    total = method.loss(pair, 0.0).total
    assert golden.agrees(f"NT-Xent, temperature {temperature}", total)
    if temperature == 0.5:
        assert golden.agrees("NT-Xent, temperature 0.5, summed over the two sides", 2 * total)


@torch.no_grad()
def test_with_a_memory_the_sum_runs_over_earlier_embeddings_too() -> None:
    method, pair = a_method(temperature=0.3, memory=9).double(), views().to(torch.float64)
    assert method.queue is not None
    z = energy.normalise(torch.cat([method.project(view) for view in pair.main]))
    total = 0.0
    for i in range(12):
        others = [z[i] @ z[k] for k in range(12) if k != i]
        others += [z[i] @ row for row in energy.normalise(method.queue.rows)]
        total -= float(z[i] @ z[(i + 6) % 12]) / 0.3
        total += math.log(sum(math.exp(float(s) / 0.3) for s in others))
    assert method.loss(pair, 0.0).total.item() == pytest.approx(total / 12, rel=1e-10)


def test_the_memory_takes_in_what_the_teacher_makes_of_second_views() -> None:
    method = a_method(memory=8, momentum=Constant(0.75))
    assert method.queue is not None
    assert method.teacher is not None
    before = method.queue.rows.clone()
    expected = energy.normalise(method.teacher.train()(views().main[1].data))
    method.loss(views(), 0.0)
    assert torch.allclose(method.queue.rows[:6], expected, atol=1e-6)
    assert torch.equal(method.queue.rows[6:], before[6:])
    method.eval().loss(views(), 0.0)
    assert int(method.queue.pushed) == 6
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    with torch.no_grad():
        for p in student:
            p += 1
    old = [p.clone() for p in method.teacher.parameters()]
    method.after_step(0.0)
    for was, now, fast in zip(old, method.teacher.parameters(), student, strict=True):
        assert torch.allclose(now, 0.75 * was + 0.25 * fast, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_loss_is_the_double_loop_of_the_docstring(temperature: float) -> None:
    """l_i = F(x_i, y_i) / T + log sum_{k != i} exp(-F(i, k) / T), the mean over all 2b views."""
    method, pair = a_method(temperature=temperature).double(), views().to(torch.float64)
    z = torch.cat([method.project(view) for view in pair.main]).tolist()

    def energy(i: int, k: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[k], strict=True))
        return -dot / math.sqrt(sum(a * a for a in z[i])) / math.sqrt(sum(b * b for b in z[k]))

    pulls, pushes = [], []
    for i in range(12):
        pulls.append(energy(i, (i + 6) % 12) / temperature)
        others = [math.exp(-energy(i, k) / temperature) for k in range(12) if k != i]
        pushes.append(math.log(sum(others)))
    loss = method.loss(pair, 0.0)
    assert loss.pull.keys() == {"alignment"}
    assert loss.push.keys() == {"repulsion"}
    assert loss.pull["alignment"].item() == pytest.approx(sum(pulls) / 12, rel=1e-10)
    assert loss.push["repulsion"].item() == pytest.approx(sum(pushes) / 12, rel=1e-10)
    found = method.energy(*pair.main)
    assert found.shape == (6,)
    assert found.tolist() == pytest.approx([energy(i, i + 6) for i in range(6)], rel=1e-10)


def test_gradient_is_that_of_finite_differences() -> None:
    method = SimCLR(build_encoder("identity", 3), temperature=0.5)
    method.projector = nn.Sequential()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)

    def total(x: Tensor, y: Tensor) -> Tensor:
        return method.loss(Views((View(x), View(y)), torch.arange(4)), 0.0).total

    assert torch.autograd.gradcheck(total, (x.requires_grad_(), y.requires_grad_()))


def test_swapping_views_and_reordering_the_batch_change_nothing() -> None:
    method, pair = a_method().double(), views().to(torch.float64)
    x, y = pair.main
    total = method.loss(pair, 0.0).total.item()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert method.loss(Views((y, x), pair.index), 0.0).total.item() == pytest.approx(total)
    assert method.loss(pair.take(order), 0.0).total.item() == pytest.approx(total)


def test_constant_embeddings_cost_the_logarithm_of_their_number() -> None:
    method = a_method(temperature=0.3)
    last = nn.Linear(method.encoder.dim, 5)
    nn.init.zeros_(last.weight)
    method.projector = nn.Sequential(last)
    assert method.loss(views(), 0.0).total.item() == pytest.approx(math.log(11), rel=1e-5)


def test_projector_is_the_papers() -> None:
    method = a_method(depth=3, hidden=7)
    linears = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    assert [(a.in_features, a.out_features) for a in linears] == [(16, 7), (7, 7), (7, 5)]
    assert all(layer.bias is None for layer in linears)
    assert isinstance(method.projector[-1], OutputNorm)
    wide = [layer for layer in a_method().projector if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in wide] == [16, 5]


def test_everything_but_the_offset_of_the_output_learns() -> None:
    method = a_method()
    method.loss(views(), 0.0).total.backward()
    for name, p in method.named_parameters():
        assert (p.grad is not None and bool((p.grad != 0).any())) == (name != "projector.4.bias")


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = SimCLR(build_encoder("conv", 128, width=8))
    assert large.plan().main == (SIMCLR, SIMCLR)


def test_other_numbers_of_views_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 2 main views"):
        a_method().loss(views(3), 0.0)
