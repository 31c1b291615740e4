"""SwAV: golden numbers, multi-crop by a loop, the queue, prototypes that stay unit and frozen."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erg import inference
from erg.encoders import build_encoder
from erg.methods.swav import SwAV
from erg.views.plan import SWAV_GLOBAL, SWAV_LOCAL
from erg.views.types import View, Views


def images(b: int, side: int, seed: int) -> View:
    generator = torch.Generator().manual_seed(seed)
    return View(torch.randn(b, 3, side, side, generator=generator, dtype=torch.float64))


def views(*local: int, b: int = 6, seed: int = 0) -> Views:
    """Two crops of 16 pixels and small ones of the sides given."""
    return Views(
        (images(b, 16, seed), images(b, 16, seed + 1)), torch.arange(b),
        local=tuple(images(b, side, seed + 2 + i) for i, side in enumerate(local)),
    )  # fmt: skip


def a_method(**arguments: Any) -> SwAV:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    small: dict[str, Any] = {"hidden": 9, "dim": 5, "prototypes": 7, "queue": 0}
    return SwAV(encoder, **{**small, **arguments}).double()


def embedded(method: SwAV, batch: Views) -> tuple[Tensor, ...]:
    """z of every crop, the large ones first."""
    crops = [*batch.main, *batch.local]
    return method.embed(*crops).chunk(len(crops))


def swapped(scores: Tensor, codes: Tensor, temperature: float) -> float:
    """Mean over samples of -sum_k q_k log p_k, by hand."""
    total = 0.0
    for row, q in zip(scores.tolist(), codes.tolist(), strict=True):
        whole = math.log(sum(math.exp(s / temperature) for s in row))
        total -= sum(c * (s / temperature - whole) for c, s in zip(q, row, strict=True))
    return total / len(scores)


def golden_method(golden) -> SwAV:
    method = SwAV(build_encoder("identity", 3), prototypes=5, dim=3, hidden=3, queue=0).double()
    method.projector = nn.Sequential()
    with torch.no_grad():
        method.prototypes.weight.copy_(golden.array("C"))
    method.after_step(0.0)
    return method


def test_loss_is_golden(golden) -> None:
    method = golden_method(golden)
    pair = Views((View(golden.array("Z1")), View(golden.array("Z2"))), torch.arange(4))
    loss = method.loss(pair, 0.5)
    assert loss.push == {}
    assert golden.agrees("SwAV, two views", loss.total)
    codes = method.codes(method.embed(pair.main[0]))
    assert golden.agrees("sinkhorn, eps 0.05, 3 iterations, first row", codes[0])
    x, y = pair.main
    both = (method.energy(x, y).mean() + method.energy(y, x).mean()) / 2
    assert golden.agrees("SwAV, two views", both)


@pytest.mark.parametrize("local", [(), (8,), (8, 8, 8), (8, 8, 12)])
def test_loss_is_the_loop_over_crops(local: tuple[int, ...]) -> None:
    """Codes from the two large crops only, each predicted from every crop but its own."""
    method, batch = a_method(temperature=0.2, eps=0.1, iterations=2), views(*local)
    z = embedded(method, batch)
    scores = [each @ method.prototypes.weight.T for each in z]
    total = 0.0
    for a in range(2):
        q = inference.sinkhorn(scores[a], 0.1, 2)
        others = [swapped(scores[v], q, 0.2) for v in range(len(z)) if v != a]
        total += sum(others) / (len(z) - 1) / 2
    assert method.loss(batch, 0.5).total.item() == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("local", [(), (8, 8), (8, 12), (8, 16), (8, 12, 16)])
def test_every_crop_gets_its_own_embedding(local: tuple[int, ...]) -> None:
    """In evaluation, where statistics of the batch play no part; 16 is the side of the large."""
    method, batch = a_method().eval(), views(*local)
    found = embedded(method, batch)
    crops = [*batch.main, *batch.local]
    assert len(found) == len(crops)
    for z, crop in zip(found, crops, strict=True):
        assert torch.allclose(z, method.embed(crop), atol=1e-12)
        assert torch.allclose(z.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_one_encoder_pass_per_resolution_and_one_projector_pass() -> None:
    method, seen = a_method(), []
    method.encoder.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape))
    method.projector.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape))
    embedded(method, views(8, 8, 8))
    assert [tuple(shape) for shape in seen] == [(12, 3, 16, 16), (18, 3, 8, 8), (30, 16)]


def test_collapse_costs_the_logarithm_of_the_number_of_prototypes() -> None:
    method = a_method()
    last: Any = method.projector[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    assert method.loss(views(8), 0.5).total.item() == pytest.approx(math.log(7), rel=1e-9)


def test_no_gradient_flows_through_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = a_method(), views(8)
    found: list[Tensor] = []
    codes = SwAV.codes

    def kept(self: SwAV, *args: object) -> Tensor:
        q = codes(self, *args)  # type: ignore[arg-type]
        assert not q.requires_grad
        found.append(q.clone())
        return q

    monkeypatch.setattr(SwAV, "codes", kept)
    method.loss(batch, 0.5).total.backward()
    gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    assert "prototypes.weight" in gradients
    assert any(name.startswith("encoder") for name in gradients)
    # The same with the codes as constants.
    method.zero_grad()
    z = embedded(method, batch)
    total = sum(
        F.cross_entropy(method.scores(z[v]) / 0.1, found[a])
        for a in range(2)
        for v in range(3)
        if v != a
    )
    assert isinstance(total, Tensor)
    (total / 4).backward()
    for name, p in method.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, gradients[name], atol=1e-12), name


def test_gradient_is_that_of_finite_differences(golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the codes held."""
    method = golden_method(golden)
    generator = torch.Generator().manual_seed(0)
    codes = itertools.cycle(torch.randn(2, 4, 5, generator=generator).double().softmax(dim=2))
    monkeypatch.setattr(method, "codes", lambda *_: next(codes))

    def total(x: Tensor, y: Tensor) -> Tensor:
        return method.loss(Views((View(x), View(y)), torch.arange(4)), 0.5).total

    pair = golden.array("Z1").requires_grad_(), golden.array("Z2").requires_grad_()
    assert torch.autograd.gradcheck(total, pair)


def test_energy_is_the_cross_entropy_with_the_codes_of_y() -> None:
    method = a_method().eval()
    x, y = views().main
    z = [method.embed(view) @ method.prototypes.weight.T for view in (x, y)]
    wanted = F.cross_entropy(z[0] / 0.1, inference.sinkhorn(z[1]), reduction="none")
    found = method.energy(x, y)
    assert found.shape == (6,)
    assert torch.allclose(found, wanted)


def queue_uses(method: SwAV, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of a queue take part each time codes are inferred."""
    uses: list[int] = []
    sinkhorn = inference.sinkhorn

    def counted(scores: Tensor, *args: object) -> Tensor:
        uses.append(len(scores) - 6)
        return sinkhorn(scores, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "sinkhorn", counted)
    return uses


def test_queue_is_used_once_it_is_full_and_its_time_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = a_method(queue=10, queue_from=0.4).train()
    uses = queue_uses(method, monkeypatch)
    for step, progress in enumerate((0.1, 0.2, 0.3, 0.39, 0.4, 0.5)):
        method.loss(views(seed=10 * step), progress)
    assert uses == [0] * 8 + [10] * 4


def test_a_queue_that_is_not_full_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    method = a_method(queue=13, queue_from=0.0).train()
    uses = queue_uses(method, monkeypatch)
    for step in range(4):
        method.loss(views(seed=10 * step), 0.5)
    assert uses == [0] * 6 + [13] * 2


def test_queue_holds_the_embeddings_of_its_own_crop_in_order() -> None:
    method = a_method(queue=10, queue_from=1.1).train()
    pushed: list[list[Tensor]] = [[], []]
    for step in range(3):
        z = [each.detach() for each in embedded(method, views(8, seed=10 * step))]
        method.loss(views(8, seed=10 * step), 0.5)
        for i in range(2):
            pushed[i].append(z[i])
    for i in range(2):
        queue = method.queue(i)
        oldest_first = queue.rows.roll(-(int(queue.pushed) % 10), dims=0)
        assert torch.allclose(oldest_first, torch.cat(pushed[i])[-10:], atol=1e-12)
    assert not torch.allclose(method.queue(0).rows, method.queue(1).rows)


def test_the_batch_is_pushed_after_its_codes_are_inferred() -> None:
    """Codes of step n see the queue as steps before n left it, and only codes of the batch stay."""
    method = a_method(queue=6, queue_from=0.0).train()
    first, second = views(seed=0), views(seed=10)
    method.loss(first, 0.5)
    remembered = [method.queue(i).rows.clone() for i in range(2)]
    z = embedded(method, second)
    scores = [each @ method.prototypes.weight.T for each in z]
    total = 0.0
    for a in range(2):
        everyone = torch.cat([remembered[a] @ method.prototypes.weight.T, scores[a]])
        q = inference.sinkhorn(everyone, 0.05, 3)[6:]
        total += swapped(scores[1 - a], q, 0.1) / 2
    assert method.loss(second, 0.5).total.item() == pytest.approx(total, rel=1e-9)


def test_evaluation_pushes_nothing() -> None:
    method = a_method(queue=6).eval()
    method.loss(views(), 0.5)
    assert int(method.queue(0).pushed) == int(method.queue(1).pushed) == 0
    method.train().loss(views(), 0.5)
    assert int(method.queue(0).pushed) == int(method.queue(1).pushed) == 6


def test_prototypes_are_unit_from_the_start_and_after_every_step() -> None:
    method = a_method()
    for _ in range(2):
        norms = method.prototypes.weight.norm(dim=1)
        assert torch.allclose(norms, torch.ones(7, dtype=torch.float64), atol=1e-6)
        with torch.no_grad():
            method.prototypes.weight.mul_(3).add_(0.1)
        direction = F.normalize(method.prototypes.weight, dim=1).detach()
        method.after_step(0.5)
        assert torch.allclose(method.prototypes.weight, direction, atol=1e-12)


def test_frozen_names_the_prototypes_until_their_time() -> None:
    method = a_method(freeze=0.2)
    assert [id(p) for p in method.frozen(0.0)] == [id(method.prototypes.weight)]
    assert [id(p) for p in method.frozen(0.19)] == [id(method.prototypes.weight)]
    assert list(method.frozen(0.2)) == []
    assert list(a_method(freeze=0.0).frozen(0.0)) == []


def test_plan_has_two_large_and_some_small_crops() -> None:
    plan = a_method(small_crops=3).plan()
    assert len(plan.main) == 2
    assert plan.main[0] == plan.main[1]
    assert [view.pixels(16) for view in plan.local] == [8, 8, 8]
    colours = ("jitter", "brightness", "contrast", "saturation", "hue", "grey")
    for name in colours:
        assert getattr(plan.local[0], name) == getattr(plan.main[0], name)
    large = SwAV(build_encoder("conv", 224, width=8), hidden=4, dim=4).plan()
    assert large.main == (SWAV_GLOBAL, SWAV_GLOBAL)
    assert large.local == (SWAV_LOCAL,) * 6


def test_small_crops_need_an_encoder_of_more_than_one_size() -> None:
    """A vision transformer of timm takes images of one side only, unless it is told otherwise."""
    vit: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    small: dict[str, Any] = {"hidden": 4, "dim": 4, "prototypes": 3, "queue": 0}
    name = "vit_tiny_patch16_224"
    with pytest.raises(ValueError, match=f"SwAV makes small crops, and {name} takes one size"):
        SwAV(build_encoder(name, 32, **vit), **small)
    for encoder, crops in (
        (build_encoder(name, 32, **vit), 0),
        (build_encoder(name, 32, **vit, dynamic_img_size=True), 6),
    ):
        method = SwAV(encoder, small_crops=crops, **small)
        plan = method.plan()
        assert len(plan.local) == crops
        main, local = (
            tuple(View(torch.randn(4, 3, side, side)) for side in (v.pixels(32) for v in kinds))
            for kinds in (plan.main, plan.local)
        )
        assert {view.data.shape[-1] for view in local} <= {16}
        assert torch.isfinite(method.loss(Views(main, torch.arange(4), local), 0.5).total)
