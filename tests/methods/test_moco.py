"""MoCo: golden numbers, the queue, groups with statistics of their own, a teacher in order."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from erg.encoders import build_encoder
from erg.methods.moco import MoCo
from erg.parts.teacher import Teacher
from erg.schedule import Constant, Linear
from erg.views.plan import SIMCLR_SMALL
from erg.views.types import View, Views


def views(b: int = 8, *, step: int = 0) -> Views:
    generator = torch.Generator().manual_seed(step)
    main = [View(torch.randn(b, 3, 16, 16, generator=generator, dtype=torch.float64)) for _ in "xy"]
    return Views(tuple(main), torch.arange(b), step=step)


def a_method(**arguments: Any) -> MoCo:
    torch.manual_seed(0)
    small: dict[str, Any] = {"dim": 5, "queue": 12, "groups": 2}
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return MoCo(encoder, **{**small, **arguments}).double()


def bare(queue: Tensor, temperature: float) -> MoCo:
    """Its loss of embeddings as they are, with this queue."""
    method = MoCo(
        build_encoder("identity", 3), dim=3, queue=len(queue), temperature=temperature, groups=1
    )
    method.projector, method.teacher = nn.Sequential(), Teacher(nn.Sequential())
    method.double().queue.rows.copy_(queue)
    return method


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_loss_is_golden(golden, temperature: float) -> None:
    method = bare(golden.unit("QU"), temperature)
    pair = Views((View(golden.array("Z1")), View(golden.array("Z2"))), torch.arange(4))
    total = method.loss(pair, 0.0).total
    assert golden.agrees(f"InfoNCE with a queue, temperature {temperature}", total)


def test_loss_is_the_loop_over_the_queue() -> None:
    method, pair = a_method(temperature=0.3).eval(), views()
    x, y = pair.main
    q, k = method.query(x.data).tolist(), method.key(y.data).tolist()
    queue = method.queue.rows.tolist()

    def dot(a: list[float], b: list[float]) -> float:
        return sum(s * t for s, t in zip(a, b, strict=True))

    pulls = [-dot(a, b) / 0.3 for a, b in zip(q, k, strict=True)]
    pushes = [
        math.log(sum(math.exp(dot(a, c) / 0.3) for c in [b, *queue]))
        for a, b in zip(q, k, strict=True)
    ]
    loss = method.loss(pair, 0.0)
    assert loss.pull["alignment"].item() == pytest.approx(sum(pulls) / 8, rel=1e-10)
    assert loss.push["repulsion"].item() == pytest.approx(sum(pushes) / 8, rel=1e-10)
    assert method.energy(x, y).tolist() == pytest.approx([0.3 * p for p in pulls], rel=1e-10)


def test_constant_embeddings_cost_the_logarithm_of_the_keys() -> None:
    """log(1 + K): the collapse of section 28.1."""
    same = torch.ones(4, 3, dtype=torch.float64)
    method = bare(nn.functional.normalize(torch.ones(6, 3, dtype=torch.float64)), 0.3)
    total = method.loss(Views((View(same), View(same)), torch.arange(4)), 0.0).total
    assert total.item() == pytest.approx(math.log(7), rel=1e-12)


def test_gradient_is_that_of_finite_differences(golden) -> None:
    """Of the queries; keys and queue are held."""
    method, y = bare(golden.unit("QU"), 0.3).eval(), View(golden.array("Z2"))

    def total(x: Tensor) -> Tensor:
        return method.loss(Views((View(x), y), torch.arange(4)), 0.0).total

    assert torch.autograd.gradcheck(total, (golden.array("Z1").requires_grad_(),))


def test_with_the_other_keys_of_the_batch_in_the_queue_it_is_infonce_across_views(golden) -> None:
    x, y = golden.array("Z1"), golden.array("Z2")
    total = 0.0
    for a, b in ((x, y), (y, x)):
        for i in range(4):
            others = torch.cat([b[:i], b[i + 1 :]])
            method = bare(others / others.norm(dim=1, keepdim=True), 0.1).eval()
            one = Views((View(a[i : i + 1]), View(b[i : i + 1])), torch.arange(1))
            total += method.loss(one, 0.0).total.item() / 4
    assert golden.agrees("InfoNCE across views, both ways, temperature 0.1", total)


def test_keys_enter_the_queue_in_order_and_after_the_loss() -> None:
    method = a_method(groups=4)
    before = method.queue.rows.clone()
    assert torch.allclose(before.norm(dim=1), torch.ones(12, dtype=torch.float64), atol=1e-6)
    batch, still = views(step=3), copy.deepcopy(method)
    _, shuffled = still.groups_of(batch.main[1].data, 3)
    keys = still.by_group(still.key, batch.main[1].data, shuffled)
    total = method.loss(batch, 0.0).total.item()
    assert torch.allclose(method.queue.rows[:8], keys, atol=1e-12)
    assert torch.equal(method.queue.rows[8:], before[8:])
    assert int(method.queue.pushed) == 8
    # A second look, from the same state, finds the same loss: no key of its own was in its queue.
    method.queue.rows.copy_(before)
    assert method.loss(batch, 0.0).total.item() == pytest.approx(total, rel=1e-12)
    method.eval().loss(batch, 0.0)
    assert int(method.queue.pushed) == 16


def test_groups_have_statistics_of_their_own() -> None:
    method, batch = a_method(groups=2), views(b=6)
    data = batch.main[0].data
    group = torch.tensor([1, 0, 0, 1, 1, 0])
    found = method.by_group(method.query, data, group)
    for g in (0, 1):
        assert torch.allclose(found[group == g], method.query(data[group == g]), atol=1e-12)
    assert not torch.allclose(found, method.query(data), atol=1e-3)
    method.eval()
    assert torch.allclose(method.by_group(method.query, data, group), method.query(data))


class Indexed(TorchDispatchMode):
    """Notes where the tensors are that others are indexed by."""

    def __init__(self) -> None:
        super().__init__()
        self.by: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor:
            self.by += [index.device.type for index in args[1] if index is not None]
        return func(*args, **(kwargs or {}))


def test_groups_are_taken_by_indices_that_are_where_the_data_are() -> None:
    """By others a device would be kept waiting: they are copied at every use."""
    method, group = a_method(groups=2), torch.tensor([1, 0, 0, 1, 1, 0])
    with Indexed() as seen:
        found = method.by_group(lambda part: part, torch.zeros(6, 2, device="meta"), group)
    assert found.shape == (6, 2)
    assert seen.by == ["meta", "meta"]


def test_queries_go_in_order_and_keys_shuffled_anew_at_every_step() -> None:
    method, data = a_method(groups=3), torch.zeros(12, 1)
    in_order, first = method.groups_of(data, 0)
    assert in_order.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert first.bincount().tolist() == [4, 4, 4]
    again, other = method.groups_of(data, 0)[1], method.groups_of(data, 1)[1]
    assert torch.equal(again, first)
    assert not torch.equal(other, first)
    assert not torch.equal(first, in_order)
    uneven, _ = method.groups_of(torch.zeros(7, 1), 0)
    assert uneven.tolist() == [0, 0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="a batch of 5 makes no 3 groups"):
        method.groups_of(torch.zeros(5, 1), 0)


def test_keys_are_those_of_the_papers_order() -> None:
    """There the teacher moves in the forward pass, before the keys, by the newest weights."""
    ours = a_method(momentum=Constant(0.6))
    theirs = copy.deepcopy(ours)
    theirs.teacher = Teacher(nn.Sequential(theirs.encoder, theirs.projector)).double()
    for step in range(3):
        batch = views(step=step)
        theirs.teacher.follow(0.6)
        keys = []
        for method in (ours, theirs):
            keys.append(method.teacher(batch.main[1].data))
            method.zero_grad()
            method.loss(batch, 0.0).total.backward()
            with torch.no_grad():
                for p in method.parameters():
                    if p.grad is not None:
                        p.sub_(0.3 * p.grad)
        ours.after_step(0.0)
        assert torch.allclose(*keys, atol=1e-12), step


def test_only_the_student_learns() -> None:
    method = a_method()
    method.loss(views(), 0.0).total.backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("teacher."), name
    assert not method.queue.rows.requires_grad


def test_teacher_follows_by_the_schedule() -> None:
    method = a_method(momentum=Linear(0.2, 0.8))
    before = [p.clone() for p in method.teacher.parameters()]
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    with torch.no_grad():
        for p in student:
            p.add_(torch.randn_like(p))
    method.after_step(0.5)
    for old, new, fast in zip(before, method.teacher.parameters(), student, strict=True):
        assert torch.allclose(new, 0.5 * old + 0.5 * fast, atol=1e-14)


def test_heads_are_those_of_both_versions() -> None:
    first, second = a_method(depth=1).projector, a_method(depth=2).projector
    assert [type(layer) for layer in first] == [nn.Linear]
    assert [type(layer) for layer in second] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(layer.bias is not None for layer in second if isinstance(layer, nn.Linear))


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = MoCo(build_encoder("conv", 128, width=8), dim=4, queue=4).plan().main
    assert large == (replace(SIMCLR_SMALL, blur=0.5),) * 2
