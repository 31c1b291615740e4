"""NNCLR: loops over queue and batch, InfoNCE where every image is its own neighbour."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.nnclr import NNCLR
from erg.parts.norm import BatchNorm
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, SIMCLR_SMALL
from erg.views.types import View, Views


def views(b: int = 5, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    main = [View(torch.randn(b, 3, 16, 16, generator=generator, dtype=torch.float64)) for _ in "xy"]
    return Views(tuple(main), torch.arange(b))


def a_method(**arguments: Any) -> NNCLR:
    torch.manual_seed(0)
    small: dict[str, Any] = {"queue": 9, "hidden": 8, "dim": 6, "predictor": 7}
    method = NNCLR(build_encoder("conv", 16, width=8, stages=2), **{**small, **arguments}).double()
    method.queue.rows.copy_(nn.functional.normalize(method.queue.rows, dim=1))
    return method


def unit(rows: Tensor) -> list[list[float]]:
    return (rows / rows.norm(dim=1, keepdim=True)).tolist()


def dot(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def test_with_itself_as_neighbour_it_is_infonce_across_views(golden) -> None:
    x, y = golden.array("Z1"), golden.array("Z2")
    method = NNCLR(build_encoder("identity", 3), queue=8, hidden=2, dim=3, predictor=2)
    method.projector, method.predictor = nn.Sequential(), nn.Sequential()
    method.double().queue.rows.copy_(torch.cat([golden.unit("Z2"), golden.unit("Z1")]))
    total = method.loss(Views((View(x), View(y)), torch.arange(4)), 0.0).total
    assert golden.agrees("InfoNCE across views, both ways, temperature 0.1", 2 * total)


def test_loss_is_the_loop_over_queue_and_batch() -> None:
    method, batch = a_method(temperature=0.3), views()
    z = [method.project(view) for view in batch.main]
    q = [unit(method.predictor(each)) for each in z]
    queue = method.queue.rows.tolist()
    near = [[max(queue, key=lambda row, a=a: dot(row, a)) for a in unit(each)] for each in z]
    assert any(near[0][i] != near[1][i] for i in range(5))
    pull = push = 0.0
    for a, b in ((0, 1), (1, 0)):
        for i in range(5):
            pull -= dot(near[a][i], q[b][i]) / 0.3 / 10
            push += math.log(sum(math.exp(dot(near[a][i], p) / 0.3) for p in q[b])) / 10
    energies = [-dot(near[0][i], q[1][i]) for i in range(5)]
    assert method.energy(*batch.main).tolist() == pytest.approx(energies, rel=1e-10)
    loss = method.loss(batch, 0.0)
    assert loss.pull["alignment"].item() == pytest.approx(pull, rel=1e-10)
    assert loss.push["repulsion"].item() == pytest.approx(push, rel=1e-10)


def test_neighbours_are_rows_of_the_queue_without_gradient() -> None:
    method = a_method()
    z = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    found = method.neighbour(z)
    assert not found.requires_grad
    distances = torch.cdist(nn.functional.normalize(z, dim=1), method.queue.rows)
    assert torch.equal(found, method.queue.rows[distances.argmin(dim=1)])


def test_the_first_views_embeddings_enter_after_the_loss() -> None:
    method, batch = a_method(), views()
    before = method.queue.rows.clone()
    assert torch.allclose(before.norm(dim=1), torch.ones(9, dtype=torch.float64), atol=1e-6)
    z = nn.functional.normalize(method.project(batch.main[0]), dim=1)
    total = method.loss(batch, 0.0).total.item()
    assert torch.allclose(method.queue.rows[:5], z, atol=1e-12)
    assert torch.equal(method.queue.rows[5:], before[5:])
    method.queue.rows.copy_(before)
    assert method.loss(batch, 0.0).total.item() == pytest.approx(total, rel=1e-12)
    method.eval().loss(batch, 0.0)
    assert int(method.queue.pushed) == 10


def test_everything_trainable_learns_through_the_predictor() -> None:
    method = a_method()
    method.loss(views(), 0.0).total.backward()
    for name, p in method.named_parameters():
        assert p.grad is not None, name
    # With the neighbours as constants the gradient is the same.
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method = a_method()
    method.zero_grad()
    z = [method.project(view) for view in views().main]
    near = [method.neighbour(each).clone() for each in z]
    q = [nn.functional.normalize(method.predictor(each), dim=1) for each in z]
    target = torch.arange(5)
    both = [nn.functional.cross_entropy(near[a] @ q[1 - a].T / 0.1, target) for a in (0, 1)]
    torch.stack(both).mean().backward()
    for name, p in method.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, found[name], atol=1e-12), name


def test_gradient_is_that_of_finite_differences() -> None:
    """Who is whose neighbour stays the same nearby; in evaluation the queue stays too."""
    method = NNCLR(build_encoder("identity", 3), queue=6, hidden=2, dim=3, predictor=2).double()
    method.projector, method.predictor = nn.Sequential(), nn.Sequential()
    method.eval()
    generator = torch.Generator().manual_seed(0)
    method.queue.rows.copy_(torch.randn(6, 3, generator=generator, dtype=torch.float64))
    x, y = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)

    def total(x: Tensor, y: Tensor) -> Tensor:
        return method.loss(Views((View(x), View(y)), torch.arange(4)), 0.0).total

    assert torch.autograd.gradcheck(total, (x.requires_grad_(), y.requires_grad_()))


def test_heads_are_the_papers() -> None:
    method = a_method()
    kinds = [nn.Linear, BatchNorm, nn.ReLU]
    assert [type(layer) for layer in method.projector] == [*kinds, *kinds, nn.Linear, BatchNorm]
    assert [type(layer) for layer in method.predictor] == [*kinds, nn.Linear]
    widths = [layer.out_features for layer in method.projector if isinstance(layer, nn.Linear)]
    assert widths == [8, 8, 6]
    widths = [layer.out_features for layer in method.predictor if isinstance(layer, nn.Linear)]
    assert widths == [7, 6]


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = NNCLR(build_encoder("conv", 128, width=8), queue=4, hidden=4, dim=4, predictor=4)
    assert large.plan().main == (BYOL_FIRST, BYOL_SECOND)
