"""DINO: golden numbers, a loop over crops, centre, sharpening, what is frozen and what follows."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.dino import DINO
from erg.parts.teacher import Teacher
from erg.schedule import Constant, Linear
from erg.testing import check_method
from erg.views.plan import DINO_FIRST, DINO_LOCAL, DINO_SECOND
from erg.views.types import View, Views

VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def images(b: int, side: int, seed: int) -> View:
    generator = torch.Generator().manual_seed(seed)
    return View(torch.randn(b, 3, side, side, generator=generator, dtype=torch.float64))


def views(*local: int, b: int = 6) -> Views:
    return Views(
        (images(b, 16, 0), images(b, 16, 1)), torch.arange(b),
        local=tuple(images(b, side, 2 + i) for i, side in enumerate(local)),
    )  # fmt: skip


def a_method(**arguments: Any) -> DINO:
    torch.manual_seed(0)
    small: dict[str, Any] = {"prototypes": 7, "hidden": 9, "dim": 5}
    encoder = build_encoder("conv", 16, width=8, stages=2)
    method = DINO(encoder, **{**small, **arguments}).double()
    with torch.no_grad():  # a teacher that is no longer the student
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
        method.centre.mean.copy_(0.1 * torch.randn(method.centre.mean.shape))
    return method


class Table(nn.Module):
    """A teacher whose answers are given."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, data: Tensor) -> Tensor:
        return self.answers[: len(data)]


def test_loss_and_centre_are_golden(golden) -> None:
    method = DINO(build_encoder("identity", 5), prototypes=5, hidden=2, dim=2, small_crops=1)
    method.head = nn.Sequential()
    method.teacher = Teacher(Table(3 * torch.cat([golden.array("T0"), golden.array("T1")])))
    method.double().centre.mean.copy_(torch.arange(5, dtype=torch.float64) / 10)
    crops = [View(3 * golden.array(f"S{v}")) for v in range(3)]
    batch = Views(tuple(crops[:2]), torch.arange(4), local=(crops[2],))
    loss = method.loss(batch, 0.5)
    assert loss.push == {}
    assert golden.agrees("DINO", loss.total)
    assert golden.agrees("DINO, new centre", method.centre.mean)


@pytest.mark.parametrize("local", [(), (8,), (8, 8, 12)])
def test_loss_is_the_loop_over_crops(local: tuple[int, ...]) -> None:
    method = a_method(temperature=0.2, teacher_start=0.05, teacher_end=0.15, warmup=0.4).eval()
    batch = views(*local)
    crops = [*batch.main, *batch.local]
    centre = method.centre.mean
    total, pairs = 0.0, 0
    for t, y in enumerate(batch.main):
        taught = (method.teacher(y.data) - centre) / 0.1  # half of the warm-up
        for v, x in enumerate(crops):
            if v == t:
                continue
            pairs += 1
            scores = method.head(method.encoder(x.data)) / 0.2
            for s, q in zip(scores.tolist(), taught.softmax(dim=1).tolist(), strict=True):
                whole = math.log(sum(map(math.exp, s)))
                total -= sum(c * (k - whole) for c, k in zip(q, s, strict=True)) / 6
    assert pairs == 2 * len(crops) - 2
    assert method.loss(batch, 0.2).total.item() == pytest.approx(total / pairs, rel=1e-10)


def test_energy_is_the_pair_by_pair_loss() -> None:
    method, batch = a_method(), views()
    method.eval()
    x, y = batch.main
    both = (method.energy(x, y) + method.energy(y, x)).mean() / 2
    assert method.energy(x, y).shape == (6,)
    assert method.loss(batch, 1.0).total.item() == pytest.approx(both.item(), rel=1e-12)


def test_centre_moves_after_the_loss_and_only_in_training() -> None:
    method, batch = a_method(centre=0.7), views(8)
    old = method.centre.mean.clone()
    taught = method.teacher(torch.cat([y.data for y in batch.main]))
    first = method.loss(batch, 0.5).total.item()
    assert torch.allclose(method.centre.mean, 0.7 * old + 0.3 * taught.mean(dim=0), atol=1e-12)
    assert method.loss(batch, 0.5).total.item() != pytest.approx(first, rel=1e-6)
    method.centre.mean.copy_(old)
    assert method.loss(batch, 0.5).total.item() == pytest.approx(first, rel=1e-12)
    moved = method.centre.mean.clone()
    method.eval().loss(batch, 0.5)
    assert torch.equal(method.centre.mean, moved)


def test_codes_sharpen_on_schedule_and_sum_to_1() -> None:
    method = a_method(teacher_start=0.04, teacher_end=0.07, warmup=0.2)
    scores = torch.randn(3, 7, dtype=torch.float64)
    for progress, temperature in ((0.0, 0.04), (0.1, 0.055), (0.2, 0.07), (1.0, 0.07)):
        found = method.codes(scores, progress)
        wanted = ((scores - method.centre.mean) / temperature).exp()
        assert torch.allclose(found, wanted / wanted.sum(dim=1, keepdim=True), atol=1e-12)
    at_once = a_method(warmup=0.0)
    assert torch.equal(at_once.codes(scores, 0.0), at_once.codes(scores, 1.0))


def test_uniform_scores_cost_the_logarithm_of_their_number() -> None:
    method = a_method()
    with torch.no_grad():
        method.prototypes.weight.copy_(method.prototypes.weight[:1].expand(7, -1))
    assert method.loss(views(8), 0.5).total.item() == pytest.approx(math.log(7), rel=1e-10)


def test_gradients_reach_the_student_alone_and_treat_codes_as_constants() -> None:
    method, batch = a_method(), views(8)
    centre = method.centre.mean.clone()
    method.loss(batch, 0.5).total.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    wanted = {name for name, _ in method.named_parameters() if not name.startswith("teacher.")}
    assert found.keys() == wanted
    method.zero_grad()
    method.centre.mean.copy_(centre)
    with torch.no_grad():
        both = method.teacher(torch.cat([y.data for y in batch.main]))
        codes = method.codes(both, 0.5).chunk(2)
    scores = method.scores(*batch.main, *batch.local).chunk(3)
    terms = [
        nn.functional.cross_entropy(scores[v], codes[t])
        for t, v in ((0, 1), (0, 2), (1, 0), (1, 2))
    ]
    torch.stack(terms).mean().backward()
    for name in found:
        grad = method.get_parameter(name).grad
        assert grad is not None
        assert torch.allclose(grad, found[name], atol=1e-12), name


def test_frozen_names_the_directions_until_their_time() -> None:
    method = a_method(freeze=0.2)
    assert [id(p) for p in method.frozen(0.19)] == [id(method.prototypes.weight)]
    assert list(method.frozen(0.2)) == []


def test_teacher_holds_all_of_the_student_and_follows() -> None:
    method = a_method(momentum=Linear(0.2, 0.8))
    student = [*method.encoder.parameters(), *method.head.parameters()]
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(0.5)
    for old, new, fast in zip(before, method.teacher.parameters(), student, strict=True):
        assert torch.allclose(new, (old + fast) / 2, atol=1e-14)


def test_head_is_the_papers() -> None:
    method = a_method(momentum=Constant(1.0))
    kinds = [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear, type(method.prototypes)]
    assert [type(layer) for layer in method.head] == kinds
    cosines = method.scores(*views().main) * method.temperature
    assert float(cosines.detach().abs().max()) <= 1 + 1e-12
    wide = DINO(build_encoder("identity", 64), hidden=256, dim=8, prototypes=4).head[2]
    assert isinstance(wide, nn.Linear)
    assert float(wide.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(wide.bias.detach().abs().max()) == 0


def test_plan_has_two_large_and_some_small_crops() -> None:
    plan = a_method(small_crops=3).plan()
    assert [view.crop for view in plan.main] == [(0.4, 1.0)] * 2
    assert [view.pixels(16) for view in plan.local] == [8, 8, 8]
    large = DINO(build_encoder("conv", 224, width=8), hidden=4, dim=4, prototypes=4).plan()
    assert large.main == (DINO_FIRST, DINO_SECOND)
    assert large.local == (DINO_LOCAL,) * 8


def test_a_vit_of_one_size_takes_no_small_crops_and_one_of_any_size_does() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", 32, **VIT)
    with pytest.raises(ValueError, match="dynamic_img_size"):
        DINO(encoder, hidden=4, dim=4, prototypes=3)
    DINO(encoder, hidden=4, dim=4, prototypes=3, small_crops=0)
    check_method(
        DINO,
        arguments={"hidden": 4, "dim": 4, "prototypes": 3, "small_crops": 1},
        encoder="vit_tiny_patch16_224",
        encoder_arguments={**VIT, "dynamic_img_size": True},
    )
