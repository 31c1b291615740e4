"""RELICv2: golden numbers, a loop over crops, images and candidates, gradients by finite
differences, who sees which crops, a teacher that follows."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from erg import shaping
from erg.encoders import build_encoder
from erg.methods.relicv2 import RELICv2
from erg.parts.teacher import Teacher
from erg.schedule import Linear
from erg.views.make import make_views
from erg.views.pixels import Pixels
from erg.views.types import View, Views


def views(*local: int, large: int = 2, b: int = 5) -> Views:
    generator = torch.Generator().manual_seed(0)
    sides = [16] * large + list(local)
    crops = [View(torch.randn(b, 3, s, s, generator=generator, dtype=torch.float64)) for s in sides]
    return Views(tuple(crops[:large]), torch.arange(b), local=tuple(crops[large:]), step=3)


def a_method(**arguments: Any) -> RELICv2:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    small: dict[str, Any] = {"hidden": 9, "dim": 5, "large_crops": 2, "small_crops": 2}
    method = RELICv2(encoder, **{**small, **arguments}).double()
    with torch.no_grad():  # another network than the student
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


class Copy(nn.Module):
    """The data once more, so that no gradient finds its way past a teacher without weights."""

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return data.clone()


def plain(**arguments: Any) -> RELICv2:
    """Embeddings are the data."""
    identity = build_encoder("identity", 3)
    method = RELICv2(identity, large_crops=2, small_crops=0, **arguments).double()
    method.projector, method.teacher = nn.Sequential(), Teacher(Copy())
    return method


def unit(rows: torch.Tensor) -> list[list[float]]:
    return (rows / rows.norm(dim=1, keepdim=True)).tolist()


def softmax(row: list[float]) -> list[float]:
    e = [math.exp(v) for v in row]
    return [v / sum(e) for v in e]


def test_divergence_is_golden(golden) -> None:
    """Of two crops x and y against the whole batch: pairs xx and yy have none, xy and yx both."""
    method = plain(temperature=0.1, negatives=0, contrast=1.0, invariance=1.0)
    pair = Views((View(golden.array("Z1")), View(golden.array("Z2"))), torch.arange(4))
    found = 4 * method.loss(pair, 0.0).pull["invariance"]
    both = ("RELIC, KL of x's from y's", "RELIC, KL of y's from x's")
    wanted = sum(golden.oracles[name]["value"] for name in both)
    assert found.item() == pytest.approx(wanted, abs=1.1e-8)


def candidates(method: RELICv2, b: int, step: int) -> torch.Tensor:
    """Rows of the batch each image is compared with, itself first."""
    return (torch.arange(b)[:, None] + method.away(b, step)) % b


@pytest.mark.parametrize("negatives", [0, 3])
def test_in_blocks_it_is_the_same_loss_with_the_same_gradients(
    negatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = plain(temperature=0.5, negatives=negatives, contrast=1.0, invariance=0.7)
    x, y = (torch.randn(9, 3, dtype=torch.float64, requires_grad=True) for _ in "xy")
    scores, rows, found = method.scores, list[int](), []

    def seen(a: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        rows.append(len(a))
        return scores(a, *rest)

    monkeypatch.setattr(method, "scores", seen)
    for block in (1 << 23, 2 * 27):
        monkeypatch.setattr(shaping, "BLOCK", block)
        rows.clear()
        loss = method.loss(Views((View(x), View(y)), torch.arange(9), step=1), 0.0).total
        found.append([loss, *torch.autograd.grad(loss, (x, y))])
    assert max(rows) == (2 if negatives == 0 else 4)
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("negatives", [0, 2, 50])
def test_loss_is_the_loop_over_crops_images_and_candidates(negatives: int) -> None:
    method = a_method(negatives=negatives, temperature=0.4, contrast=0.6, invariance=1.7)
    batch = views(8, 8)
    crops = [*batch.main, *batch.local]
    o = [unit(each.detach()) for each in method.embed(*crops).chunk(4)]
    t = [unit(each) for each in method.teach(*batch.main).chunk(2)]
    among = candidates(method, 5, batch.step).tolist()
    contrast = kl = 0.0
    for x in o:
        for y in t:
            for i in range(5):

                def scores(a: list[float], rows: list[list[float]], i: int = i) -> list[float]:
                    return [sum(p * q for p, q in zip(a, rows[j], strict=True)) / 0.4
                            for j in among[i]]  # fmt: skip

                p, r = softmax(scores(x[i], y)), softmax(scores(y[i], x))
                contrast -= math.log(p[0]) / (8 * 5)
                kl += sum(a * math.log(a / b) for a, b in zip(p, r, strict=True)) / (8 * 5)
    loss = method.loss(batch, 0.5)
    found = loss.pull["alignment"] + loss.push["repulsion"]
    assert found.item() == pytest.approx(0.6 * contrast, rel=1e-10)
    assert loss.pull["invariance"].item() == pytest.approx(1.7 * kl, rel=1e-9)


def test_no_gradient_flows_into_what_the_teacher_asks() -> None:
    method = plain(temperature=0.5, negatives=2, contrast=0.0, invariance=1.0)
    x, y = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in "xy")
    batch = Views((View(x), View(y)), torch.arange(4), step=1)
    method.loss(batch, 0.0).total.backward()
    o = [nn.functional.normalize(v, dim=1) for v in (x, y)]
    fixed = [each.detach() for each in o]
    among = candidates(method, 4, 1)
    total = torch.zeros((), dtype=torch.float64)
    for a in (0, 1):
        for b in (0, 1):
            p = ((o[a][:, None] * fixed[b][among]).sum(2) / 0.5).log_softmax(1)
            r = ((fixed[b][:, None] * fixed[a][among]).sum(2) / 0.5).log_softmax(1)
            total = total + nn.functional.kl_div(r, p, log_target=True, reduction="sum") / 4 / 4
    wanted = torch.autograd.grad(total, (x, y))
    assert x.grad is not None
    assert torch.allclose(x.grad, wanted[0], atol=1e-12)


@pytest.mark.parametrize("negatives", [0, 2])
def test_gradient_is_that_of_finite_differences(
    negatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With respect to the data, through every part; the teacher and what it asks are held."""
    method = plain(temperature=0.5, negatives=negatives, contrast=1.0, invariance=0.7)
    generator = torch.Generator().manual_seed(0)
    x, y, taught = (
        torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (4, 4, 8)
    )
    monkeypatch.setattr(method, "teach", lambda *_: taught)
    scores, calls, asked = method.scores, itertools.count(), []

    def held(*args: Any) -> torch.Tensor:
        """Every second call is the teacher's: what it found in the first of all losses."""
        which, of_teacher = divmod(next(calls), 2)
        if not of_teacher:
            return scores(*args)
        if which < 4:  # two crops and two targets
            asked.append(scores(*args))
        return asked[which % 4]

    monkeypatch.setattr(method, "scores", held)

    def total(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return method.loss(Views((View(x), View(y)), torch.arange(4), step=1), 0.0).total

    assert torch.autograd.gradcheck(total, (x.requires_grad_(), y.requires_grad_()))
    assert not any(found.requires_grad for found in asked)


@pytest.mark.parametrize(("b", "n", "count"), [(6, 3, 4), (6, 0, 6), (4, 10, 4), (2, 10, 2)])
def test_candidates_are_the_image_and_others_each_once(b: int, n: int, count: int) -> None:
    method = a_method(negatives=n)
    seen: set[int] = set()
    for step in range(40):
        among = candidates(method, b, step)
        assert among.shape == (b, count)
        assert among[:, 0].tolist() == list(range(b))
        for row in among.tolist():
            assert len(set(row)) == count
            assert set(row) <= set(range(b))
        seen |= set(among[0].tolist())
    assert seen == set(range(b))
    assert torch.equal(method.away(b, 7), method.away(b, 7))


def test_small_crops_never_reach_the_teacher() -> None:
    method, seen = a_method(), []
    method.teacher.network.register_forward_hook(lambda _m, i, _o: seen.append(i[0].shape))
    method.loss(views(8, 8), 0.5).total.backward()
    assert [tuple(shape) for shape in seen] == [(10, 3, 16, 16)]
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.projector.parameters())


def test_the_teacher_follows_the_new_weights_by_the_schedule() -> None:
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


def test_energy_is_minus_the_cosine_of_crop_and_teacher() -> None:
    method = a_method().eval()
    x, y = views().main
    o, t = method.projector(method.encoder(x.data)), method.teacher(y.data)
    assert torch.allclose(method.energy(x, y), -nn.functional.cosine_similarity(o, t))


def test_plan_has_large_and_small_crops() -> None:
    plan = a_method(large_crops=3, small_crops=1).plan()
    assert (len(plan.main), [v.pixels(16) for v in plan.local]) == (3, [8])
    large = RELICv2(build_encoder("conv", 224, width=8), hidden=4, dim=4).plan()
    assert [v.solarise for v in large.main] == [0.0, 0.2, 0.0, 0.2]
    assert all(v.crop == (0.14, 1.0) for v in large.main)
    assert [(v.pixels(224), v.crop) for v in large.local] == [(96, (0.05, 0.14))] * 2


def test_large_crops_lose_their_background_and_small_ones_keep_it() -> None:
    """Two sets of pictures with the same objects in front of other backgrounds."""
    drawn = np.random.default_rng(0)
    masks = np.zeros((6, 16, 16, 3), dtype=np.uint8)
    masks[:, 4:12, 4:12] = 255
    front, first, second = drawn.integers(0, 256, (3, 6, 16, 16, 3), dtype=np.uint8)
    how: dict[str, Any] = {"seed": 1, "epoch": 0, "step": 0, "index": np.arange(6),
                           "image_size": 16, "mean": (0.5,) * 3, "std": (0.3,) * 3}  # fmt: skip
    for background, same in ((1.0, True), (0.0, False)):
        plan = a_method(background=background).plan()
        assert [v.background for v in (*plan.main, *plan.local)] == [background] * 2 + [0.0] * 2
        one, other = (
            make_views(
                Pixels.pack(list(np.where(masks > 0, front, behind)))._replace(
                    masks=Pixels.pack(list(masks))
                ),
                plan, **how,
            )
            for behind in (first, second)
        )  # fmt: skip
        for x, y in zip(one.main, other.main, strict=True):
            assert torch.equal(x.data, y.data) == same
        for x, y in zip(one.local, other.local, strict=True):
            assert not torch.equal(x.data, y.data)
    large = RELICv2(build_encoder("conv", 224, width=8), hidden=4, dim=4).plan()
    assert [v.background for v in (*large.main, *large.local)] == [0.1] * 4 + [0.0] * 2


def test_an_encoder_of_one_size_is_refused_with_small_crops() -> None:
    vit = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", 32, **vit)
    with pytest.raises(ValueError, match="RELICv2 makes small crops"):
        RELICv2(encoder, hidden=4, dim=4)
    assert RELICv2(encoder, hidden=4, dim=4, small_crops=0).plan().local == ()
