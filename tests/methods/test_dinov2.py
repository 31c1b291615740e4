"""DINOv2: golden numbers of KoLeo and Gram, iBOT without what it adds, loops over patches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.dinov2 import DINOv2, crowding, gram_distance
from erg.methods.ibot import IBOT
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


MASKS = hide([0, 2, 3], [], [4, 5, 6, 7, 8]), hide([], [1], [0, 8])
NOTHING = hide([], [], [])


def images(side: int, seed: int, mask: Mask | None = None) -> View:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(3, 3, side, side, generator=generator, dtype=torch.float64)
    return View(data, mask=mask)


def views(*local: int, masks: tuple[Mask, Mask] = MASKS) -> Views:
    main = tuple(images(SIDE, i, mask) for i, mask in enumerate(masks))
    return Views(
        main, torch.arange(3), local=tuple(images(side, 2 + i) for i, side in enumerate(local))
    )


def a_method(kind: type = DINOv2, **arguments: Any) -> Any:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", SIDE, **VIT)
    method = kind(encoder, **{**HEAD, **arguments}).double()
    with torch.no_grad():  # a teacher that is no longer the student
        for teacher in (method.teacher, method.teacher_heads):
            for p in teacher.parameters():
                p.add_(0.1 * torch.randn_like(p))
        method.blank.normal_()
        for centre in (method.centre, method.patch_centre):
            centre.mean.copy_(0.1 * torch.randn(centre.mean.shape))
    return method


def test_koleo_is_golden(golden) -> None:
    assert golden.agrees("KoLeo", crowding(golden.array("Z1")))
    assert golden.agrees("KoLeo of equal rows, d 3", crowding(torch.ones(4, 3).double()))


def test_koleo_is_the_loop_over_neighbours() -> None:
    z = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = [[v / math.dist(row, [0] * 4) for v in row] for row in z.tolist()]
    nearest = [
        min(math.dist(a, b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)
    ]
    wanted = -sum(map(math.log, nearest)) / 9
    assert crowding(z).item() == pytest.approx(wanted, rel=1e-6)
    assert crowding(7 * z).item() == pytest.approx(wanted, rel=1e-6)


def test_koleo_has_the_gradient_of_finite_differences() -> None:
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(crowding, z.requires_grad_())


def test_loss_has_the_gradient_of_finite_differences() -> None:
    """Of all its parts together, with respect to the class token and the blank."""
    method, batch = a_method(koleo=0.3), views(8)
    method.loss(batch, 0.5).total.backward()
    for p in (method.encoder.network.cls_token, method.blank):
        flat, found = p.detach().flatten(), p.grad.flatten()
        for i in range(0, len(flat), 5):
            ends = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    flat[i] += step
                    ends.append(method.loss(batch, 0.5).total.item())
                    flat[i] -= step
            assert found[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_koleo_has_a_finite_gradient_where_rows_are_equal() -> None:
    z = torch.ones(4, 3, requires_grad=True)
    crowding(z).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("local", [(), (4, 8)])
@pytest.mark.parametrize("masks", [MASKS, (NOTHING, NOTHING)], ids=["masked", "not masked"])
def test_without_its_parts_it_is_ibot(local: tuple[int, ...], masks: tuple[Mask, Mask]) -> None:
    ibot = a_method(IBOT, warmup=0.4).eval()
    method = a_method(koleo=0.0, untied=False, centring="mean", warmup=0.4).eval()
    method.load_state_dict(ibot.state_dict())
    batch = views(*local, masks=masks)
    for progress in (0.2, 0.9):
        loss, wanted = method.loss(batch, progress), ibot.loss(batch, progress)
        for name in ("code", "patches"):
            assert loss.pull[name].item() == pytest.approx(wanted.pull[name].item(), rel=1e-12)
        assert loss.push["crowding"].item() == 0
    x, y = batch.main
    assert torch.allclose(method.energy(x, y), ibot.energy(x, y), atol=1e-12)


def balanced(scores: Tensor, temperature: float) -> list[list[float]]:
    """Sinkhorn-Knopp as the reference writes it, over rows that sum to 1 in the end."""
    q = [[math.exp(s / temperature) for s in row] for row in scores.tolist()]
    for _ in range(3):
        columns = [sum(column) for column in zip(*q, strict=True)]
        q = [[v / c for v, c in zip(row, columns, strict=True)] for row in q]
        q = [[v / sum(row) for v in row] for row in q]
    return q


def cross(code: list[float], scores: Tensor) -> float:
    whole = math.log(sum(map(math.exp, scores.tolist())))
    return -sum(c * (s - whole) for c, s in zip(code, scores.tolist(), strict=True))


def test_loss_is_the_loop_with_balanced_codes() -> None:
    method, batch = a_method(koleo=0.3, temperature=0.2), views(8)
    before = {name: t.clone() for name, t in method.state_dict().items()}
    heads, taught = method.heads, method.teacher_heads.network
    vectors, scores, patches, raw, hints, share = [], [], [], [], [], []
    for view in batch.main:
        assert view.mask is not None
        vector, tokens = method.encoder.masked(view.data, view.mask, method.blank)
        whole, cells = method.teacher.network.with_tokens(view.data)
        vectors.append(vector)
        scores.append(heads.directions(heads.projector(vector)) / 0.2)
        raw.append(taught.directions(taught.projector(whole)))
        for i in range(3):
            hidden = view.mask.hidden[i, 0].nonzero().flatten().tolist()
            for p in hidden:
                cell, token = cells[i, p : p + 1], tokens[i, p : p + 1]
                hints.append(taught.token_directions(taught.token_projector(cell)))
                patches.append(heads.token_directions(heads.token_projector(token))[0] / 0.2)
                share.append(1 / len(hidden) / 6)
    small = method.encoder(batch.local[0].data)
    scores.append(heads.directions(heads.projector(small)) / 0.2)
    codes = balanced(torch.cat(raw), 0.07)
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    wanted = sum(cross(codes[3 * t + i], scores[v][i]) / 12 for t, v in pairs for i in range(3))
    loss = method.loss(batch, 1.0)
    assert loss.pull["code"].item() == pytest.approx(wanted, rel=1e-10)
    codes = balanced(torch.cat(hints), 0.07)
    each = [w * cross(c, s) for w, c, s in zip(share, codes, patches, strict=True)]
    assert loss.pull["patches"].item() == pytest.approx(sum(each), rel=1e-10)
    near = sum(crowding(vector).item() for vector in vectors)
    assert loss.push["crowding"].item() == pytest.approx(0.3 * near, rel=1e-10)
    state = method.state_dict()
    assert all(torch.equal(state[name], t) for name, t in before.items()), "no means are kept"


def test_running_means_are_those_of_views_and_of_hidden_patches() -> None:
    method, batch = a_method(centring="mean", centre=0.7), views(8)
    old = method.centre.mean.clone(), method.patch_centre.mean.clone()
    data = torch.cat([view.data for view in batch.main])
    hidden = torch.cat([mask.hidden[:, 0] for mask in MASKS])
    raw = method.taught(data, hidden)
    assert raw[1].shape == (11, 7)
    method.loss(batch, 0.5)
    centres = method.centre, method.patch_centre
    for centre, before, each in zip(centres, old, raw, strict=True):
        assert torch.allclose(centre.mean, 0.7 * before + 0.3 * each.mean(dim=0), atol=1e-12)


@pytest.mark.parametrize("centring", ["mean", "sinkhorn"])
def test_a_batch_that_hides_nothing_leaves_all_finite(centring: str) -> None:
    method = a_method(centring=centring)
    still = method.patch_centre.mean.clone()
    loss = method.loss(views(masks=(NOTHING, NOTHING)), 0.5)
    assert loss.pull["patches"].item() == 0
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    assert torch.equal(method.patch_centre.mean, still)


def test_gradients_reach_the_student_alone() -> None:
    method = a_method()
    method.loss(views(8), 0.5).total.backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("teacher"), name


def test_koleo_pushes_equal_vectors_apart() -> None:
    """On the encoder's vectors, not on the head's: that alone gets no gradient from it."""
    method = a_method()
    method.loss(views(), 0.5).push["crowding"].backward()
    assert all(p.grad is None for p in method.heads.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.encoder.parameters())


def test_frozen_and_followers() -> None:
    method = a_method(freeze=0.2, momentum=Constant(0.5))
    assert [p.shape for p in method.frozen(0.1)] == [(7, 5)] * 2
    assert list(method.frozen(0.2)) == []
    pairs = [(method.teacher, method.encoder), (method.teacher_heads, method.heads)]
    before = [[p.clone() for p in teacher.parameters()] for teacher, _ in pairs]
    method.after_step(0.5)
    for (teacher, student), old in zip(pairs, before, strict=True):
        for was, now, fast in zip(old, teacher.parameters(), student.parameters(), strict=True):
            assert torch.allclose(now, (was + fast) / 2, atol=1e-14)


def test_gram_distance_is_golden(golden) -> None:
    x, y = (golden.array(name).reshape(3, 4, 3) for name in ("FS", "FG"))
    assert golden.agrees("Gram distance", gram_distance(x, y).mean())


def test_gram_distance_is_the_loop_over_pairs_of_patches_of_an_image() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, d, generator=generator, dtype=torch.float64) for d in (4, 5))

    def cosine(a: Tensor, b: Tensor) -> float:
        a, b = a.tolist(), b.tolist()
        inner = sum(u * v for u, v in zip(a, b, strict=True))
        return inner / math.sqrt(sum(u * u for u in a) * sum(v * v for v in b))

    pairs = [(i, j) for i in range(3) for j in range(3)]
    for found, s, t in zip(gram_distance(x, y), x, y, strict=True):
        wanted = sum((cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for i, j in pairs) / 9
        assert found.item() == pytest.approx(wanted, rel=1e-12)
    flat = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gram_distance(x, y), flat)


def test_patches_are_held_to_the_teacher_as_it_was() -> None:
    method, batch = a_method(gram=0.7, gram_from=0.5, momentum=Constant(0.5)), views(8)
    without = a_method(momentum=Constant(0.5))
    assert "gram" not in method.loss(batch, 0.4).pull
    method.after_step(0.4)
    kept = [p.clone() for p in method.teacher.parameters()]
    method.after_step(0.5)
    pairs = list(zip(method.anchor.parameters(), kept, method.teacher.parameters(), strict=True))
    assert all(torch.equal(anchor, then) for anchor, then, _ in pairs)
    assert any(not torch.equal(then, now) for _, then, now in pairs)
    loss = method.loss(batch, 0.6)
    wanted = []
    for view in batch.main:
        assert view.mask is not None
        _, tokens = method.encoder.masked(view.data, view.mask, method.blank)
        _, anchors = method.anchor.network.with_tokens(view.data)
        wanted.append(gram_distance(tokens, anchors))
    assert loss.pull["gram"].item() == pytest.approx(0.7 * torch.cat(wanted).mean().item())
    loss.pull["gram"].backward()
    assert all(p.grad is None for p in (*method.anchor.parameters(), *method.heads.parameters()))
    assert method.encoder.network.patch_embed.proj.weight.grad.abs().sum() > 0
    assert set(method.state_dict()) - set(without.state_dict()) == {
        f"anchor.network.{name}" for name in method.encoder.state_dict()
    }


def test_plan_hides_blocks_in_half_of_the_large_crops() -> None:
    plan = a_method(small_crops=3).plan()
    for view in plan.main:
        assert view.mask is not None
        assert (view.mask.kind, view.mask.masked, view.mask.stratified) == ("blocks", 0.5, True)
        assert (view.mask.ratio - view.mask.spread, view.mask.ratio + view.mask.spread) == (
            pytest.approx(0.1), pytest.approx(0.5)
        )  # fmt: skip
    assert [view.mask for view in plan.local] == [None] * 3
    small = {**VIT, "depth": 1}
    large = DINOv2(build_encoder("vit_tiny_patch16_224", 128, **small), **HEAD).plan()
    assert [view.crop for view in large.main] == [(0.32, 1.0)] * 2
    assert [view.crop for view in large.local] == [(0.05, 0.32)] * 8


def test_what_it_cannot_do_it_says() -> None:
    with pytest.raises(ValueError, match="DINOv2 needs patch tokens; conv gives one vector"):
        DINOv2(build_encoder("conv", 16), **HEAD)
    fixed = build_encoder("vit_tiny_patch16_224", SIDE, **{**VIT, "dynamic_img_size": False})
    with pytest.raises(ValueError, match="dynamic_img_size"):
        DINOv2(fixed, **HEAD)
    with pytest.raises(ValueError, match="needs views with masks"):
        a_method().energy(images(SIDE, 0), images(SIDE, 1))


def test_it_keeps_the_contract_with_registers_and_small_crops() -> None:
    check_method(
        DINOv2,
        arguments={**HEAD, "small_crops": 1, "centring": "mean"},
        encoder="vit_tiny_patch16_224",
        encoder_arguments={**VIT, "depth": 1, "reg_tokens": 2},
    )


def test_it_keeps_the_contract_with_an_anchor() -> None:
    check_method(
        DINOv2,
        arguments={**HEAD, "small_crops": 0, "gram": 1.0, "gram_from": 0.0},
        encoder="vit_tiny_patch16_224",
        encoder_arguments={**VIT, "depth": 1},
    )
