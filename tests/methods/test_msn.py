"""MSN: golden numbers, a loop over crops, what is left out, balance and the entropy of the mean."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.msn import MSN
from erg.parts.norm import BatchNorm
from erg.parts.teacher import Teacher
from erg.schedule import Constant
from erg.testing import check_method
from erg.views.types import Mask, View, Views

VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2,
                       "dynamic_img_size": True}  # fmt: skip
HEAD: dict[str, Any] = {"prototypes": 7, "hidden": 9, "dim": 5}
SIDE, GRID, CELLS = 12, (3, 3), 9


def hide(*rows: list[int]) -> Mask:
    hidden = torch.zeros(len(rows), 1, CELLS, dtype=torch.bool)
    for i, row in enumerate(rows):
        hidden[i, 0, row] = True
    return Mask(hidden, GRID)


MASK = hide([0, 2, 3], [1, 7, 8], [4, 5, 6], [0, 4, 8])


def images(side: int, seed: int, mask: Mask | None = None) -> View:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64)
    return View(data, mask=mask)


def views(*local: int, mask: Mask | None = MASK) -> Views:
    return Views(
        (images(SIDE, 0, mask), images(SIDE, 1)), torch.arange(4),
        local=tuple(images(side, 2 + i) for i, side in enumerate(local)),
    )  # fmt: skip


def a_method(**arguments: Any) -> MSN:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", SIDE, **VIT)
    method = MSN(encoder, **{**HEAD, **arguments}).double()
    with torch.no_grad():  # a teacher that is no longer the student
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


class Table(nn.Module):
    """A teacher whose answers are given."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, data: Tensor) -> Tensor:
        return self.answers[: len(data)]


@pytest.mark.parametrize(
    ("steps", "name"),
    [(0, "MSN, cross-entropy"), (3, "MSN, cross-entropy after Sinkhorn")],
)
def test_loss_is_golden(golden, steps: int, name: str) -> None:
    method: Any = MSN(
        build_encoder("identity", 3), prototypes=5, hidden=2, dim=3, ratio=0.0, small_crops=0,
        sinkhorn=steps,
    )  # fmt: skip
    method.head = nn.Sequential()
    method.teacher = Teacher(Table(golden.array("Z2")))
    method.double()
    with torch.no_grad():
        method.prototypes.weight.copy_(golden.array("C"))
    batch = Views((View(golden.array("Z1")), View(golden.array("Z2"))), torch.arange(4))
    loss = method.loss(batch, 0.5)
    assert golden.agrees(name, loss.pull["code"])
    assert golden.agrees("MSN, log k less the entropy of the mean", loss.push["unused codes"])
    if steps == 0:
        assert golden.agrees(name, method.energy(*batch.main).mean())


def softmax(row: list[float]) -> list[float]:
    high = max(row)
    e = [math.exp(v - high) for v in row]
    return [v / sum(e) for v in e]


@pytest.mark.parametrize("local", [(), (8,), (4, 8)])
def test_loss_is_the_loop_over_crops(local: tuple[int, ...]) -> None:
    method = a_method(temperature=0.2, sharpen=0.5, sinkhorn=2, weight=3.0).eval()
    batch = views(*local)
    x, y = batch.main
    assert x.mask is not None
    q = []
    for row in (method.prototypes(method.teacher(y.data)) / 0.2).tolist():
        p = [v**2 for v in softmax(row)]
        q.append([v / sum(p) for v in p])
    for _ in range(2):  # balanced, on probabilities
        columns = [sum(column) for column in zip(*q, strict=True)]
        q = [[v / c for v, c in zip(row, columns, strict=True)] for row in q]
        q = [[v / sum(row) for v in row] for row in q]
    rows = [method.encoder.masked(x.data, x.mask)[0]]
    rows += [method.encoder(crop.data) for crop in batch.local]
    found = [softmax(r) for z in rows for r in (method.prototypes(method.head(z)) / 0.2).tolist()]
    total = sum(
        -sum(a * math.log(b) for a, b in zip(q[i % 4], p, strict=True)) for i, p in enumerate(found)
    )
    mean = [sum(column) / len(found) for column in zip(*found, strict=True)]
    loss = method.loss(batch, 0.5)
    assert loss.pull["code"].item() == pytest.approx(total / len(found), rel=1e-10)
    wanted = 3 * (math.log(7) + sum(v * math.log(v) for v in mean))
    assert loss.push["unused codes"].item() == pytest.approx(wanted, rel=1e-8)


def test_what_is_left_out_is_not_seen_and_the_teacher_sees_all() -> None:
    method, (x, y) = a_method().eval(), views().main
    cells = MASK.hidden.reshape(4, 1, *GRID).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for where, equal in ((cells, True), (~cells, False)):
        other = x.with_data(torch.where(where, images(SIDE, 9).data, x.data))
        assert torch.allclose(method.energy(other, y), method.energy(x, y)) == equal
        assert not torch.allclose(method.energy(y, other), method.energy(y, x))


def test_a_mask_that_hides_nothing_is_none() -> None:
    method = a_method().eval()
    wanted = method.loss(views(8, mask=None), 0.5).total
    found = method.loss(views(8, mask=hide([], [], [], [])), 0.5).total
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)


def test_one_code_for_all_costs_the_logarithm_of_their_number() -> None:
    method = a_method(temperature=1e-3).eval()
    with torch.no_grad():  # the last layer's bias decides
        method.head[-1].weight.zero_()
        method.head[-1].bias.copy_(method.prototypes.weight[3])
    loss = method.loss(views(8), 0.5)
    assert loss.push["unused codes"].item() == pytest.approx(math.log(7), rel=1e-9)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_gradients_reach_the_student_alone_and_treat_codes_as_constants() -> None:
    method, batch = a_method(sinkhorn=0, weight=0.0), views(8)
    method.loss(batch, 0.5).total.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    wanted = {name for name, _ in method.named_parameters() if not name.startswith("teacher.")}
    assert found.keys() == wanted
    method.zero_grad()
    q = method.codes(batch.main[1], 0)
    assert torch.allclose(q.sum(dim=1), torch.ones(4).double())
    scores = method.scores(batch.main[0], *batch.local)
    nn.functional.cross_entropy(scores, q.repeat(2, 1)).backward()
    for name in found:
        grad = method.get_parameter(name).grad
        assert grad is not None
        assert torch.allclose(grad, found[name], atol=1e-12), name


@pytest.mark.parametrize("sinkhorn", [0, 3])
def test_loss_has_the_gradient_of_finite_differences(sinkhorn: int) -> None:
    """With the teacher's codes held: the student's vectors come from x alone, codes from y."""
    method: Any = MSN(
        build_encoder("identity", 3), prototypes=5, hidden=2, dim=3, ratio=0.0, small_crops=0,
        sinkhorn=sinkhorn, weight=2.0,
    )  # fmt: skip
    method.head = nn.Sequential()
    method.double()
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in "xy")
    method.teacher = Teacher(Table(torch.randn(4, 3, generator=generator, dtype=torch.float64)))

    def total(data: Tensor, weight: Tensor) -> Tensor:
        method.prototypes.forward = lambda z: (
            nn.functional.normalize(z, dim=1) @ nn.functional.normalize(weight, dim=1).T
        )
        method.codes = lambda view, steps: codes
        return method.loss(Views((View(data), View(y)), torch.arange(4)), 0.5).total

    codes = method.codes(View(y), sinkhorn)
    weight = method.prototypes.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(total, (x.requires_grad_(), weight))


def test_the_teacher_holds_encoder_and_head_and_follows() -> None:
    method = a_method(momentum=Constant(0.5))
    student = [*method.encoder.parameters(), *method.head.parameters()]
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(0.5)
    for old, new, fast in zip(before, method.teacher.parameters(), student, strict=True):
        assert torch.allclose(new, (old + fast) / 2, atol=1e-14)
    assert a_method().momentum(0.5) == pytest.approx(0.998)


def test_head_is_the_papers() -> None:
    kinds = [nn.Linear, BatchNorm, nn.GELU, nn.Linear, BatchNorm, nn.GELU, nn.Linear]
    method = a_method(dim=16)
    assert [type(layer) for layer in method.head] == kinds
    weight = method.prototypes.weight.detach().abs()
    assert 0.2 < float(weight.max()) <= 0.25


def test_plan_leaves_out_patches_of_one_view() -> None:
    plan = a_method(ratio=0.3, small_crops=2).plan()
    x, y = plan.main
    assert x.mask is not None
    assert (x.mask.grid, x.mask.ratio, x.mask.kind) == (GRID, 0.3, "random")
    assert y.mask is None
    assert [view.mask for view in plan.local] == [None] * 2
    assert x.crop == y.crop == (0.3, 1.0)
    none = MSN(build_encoder("conv", 128, width=8), **HEAD, ratio=0.0).plan()
    assert none.main[0].mask is None
    assert [view.crop for view in none.local] == [(0.05, 0.3)] * 10


def test_what_it_cannot_do_it_says() -> None:
    with pytest.raises(ValueError, match=r"conv has none\. Use a ViT, .* or ratio = 0"):
        MSN(build_encoder("conv", 16), **HEAD)
    fixed = build_encoder("vit_tiny_patch16_224", SIDE, **{**VIT, "dynamic_img_size": False})
    with pytest.raises(ValueError, match="dynamic_img_size"):
        MSN(fixed, **HEAD)


def test_it_keeps_the_contract_with_small_crops_and_without_patches() -> None:
    small = {**HEAD, "small_crops": 1}
    check_method(
        MSN, arguments=small, encoder="vit_tiny_patch16_224", encoder_arguments={**VIT, "depth": 1}
    )
    check_method(MSN, arguments={**small, "ratio": 0.0})
