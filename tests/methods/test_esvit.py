"""EsViT: golden matches and regions, DINO without them, a loop over regions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.dino import DINO
from erg.methods.esvit import EsViT, partners
from erg.schedule import Constant
from erg.testing import check_method
from erg.views.plan import DINO_FIRST, DINO_LOCAL, DINO_SECOND
from erg.views.types import View, Views

HEAD: dict[str, Any] = {"prototypes": 7, "hidden": 9, "dim": 5}
SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}


def images(side: int, seed: int) -> View:
    generator = torch.Generator().manual_seed(seed)
    return View(torch.randn(3, 3, side, side, generator=generator, dtype=torch.float64))


def views(*local: int) -> Views:
    return Views(
        (images(16, 0), images(16, 1)), torch.arange(3),
        local=tuple(images(side, 2 + i) for i, side in enumerate(local)),
    )  # fmt: skip


def a_method(**arguments: Any) -> EsViT:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    method = EsViT(encoder, **{**HEAD, **arguments}).double()
    with torch.no_grad():  # a teacher that is no longer the student
        for teacher in (method.teacher, method.teacher_heads):
            for p in teacher.parameters():
                p.add_(0.1 * torch.randn_like(p))
        for centre in (method.centre, method.region_centre):
            centre.mean.copy_(0.1 * torch.randn(centre.mean.shape))
    return method


def test_matches_and_regions_are_golden(golden) -> None:
    mine, theirs = golden.array("RS").view(2, 3, 3), golden.array("RT").view(2, 4, 3)
    assert golden.agrees("EsViT, matches", partners(mine, theirs).double())
    scores = 3 * golden.array("RS scores").view(2, 3, 5)
    taught = 3 * golden.array("RT scores").view(2, 4, 5)
    method: Any = EsViT(build_encoder("conv", 16), **{**HEAD, "prototypes": 5}, teacher_start=0.04)
    none = torch.zeros(2, 5).double()
    method.double().parts = lambda *_: ([none, none], [theirs, mine], [taught, scores])
    y = images(16, 0)
    of_views, of_regions = method.compare((y, y), ([none], [theirs], [taught]), 0.0)
    assert golden.agrees("EsViT, regions", of_regions.mean())
    assert of_views.tolist() == pytest.approx([math.log(5)] * 2)


@pytest.mark.parametrize("local", [(), (8,), (8, 8, 12)])
def test_views_alone_are_dino(local: tuple[int, ...]) -> None:
    method, batch = a_method(warmup=0.4), views(*local)
    dino = DINO(build_encoder("conv", 16, width=8, stages=2), **HEAD, warmup=0.4).double()
    network, heads = dino.teacher.network, method.teacher_heads.network
    pairs = [
        (dino.encoder, method.encoder), (dino.head[:5], method.heads.projector),
        (dino.prototypes, method.heads.directions), (dino.centre, method.centre),
        (network[0], method.teacher.network), (network[1][:5], heads.projector),
        (network[1][5], heads.directions),
    ]  # fmt: skip
    for to, of in pairs:
        to.load_state_dict(of.state_dict())
    for progress in (0.2, 0.9):  # the second time with a centre that has moved
        loss, wanted = method.loss(batch, progress), dino.loss(batch, progress).total.item()
        assert 2 * loss.pull["views"].item() == pytest.approx(wanted, rel=1e-12)
    none = a_method(regions=0.0)
    assert none.loss(batch, 0.5).pull["regions"].item() == 0


def cross(code: list[float], scores: Tensor) -> float:
    whole = math.log(sum(map(math.exp, scores.tolist())))
    return -sum(c * (s - whole) for c, s in zip(code, scores.tolist(), strict=True))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


@pytest.mark.parametrize("local", [(), (8, 12)])
def test_loss_is_the_loop_over_regions(local: tuple[int, ...]) -> None:
    method, batch = a_method(temperature=0.2, regions=0.3).eval(), views(*local)
    heads, taught = method.heads, method.teacher_heads.network
    assert heads.token_projector is not None
    assert heads.token_directions is not None
    assert taught.token_projector is not None
    assert taught.token_directions is not None
    crops, total, pairs = [*batch.main, *batch.local], 0.0, 0
    with torch.no_grad():
        for t, y in enumerate(batch.main):
            cells = method.teacher.network.with_tokens(y.data)[1]
            for v, x in enumerate(crops):
                if v == t:
                    continue
                pairs += 1
                tokens = method.encoder.with_tokens(x.data)[1]
                for i in range(3):
                    for token in tokens[i]:
                        best = max(cells[i], key=lambda cell, token=token: cosine(token, cell))
                        raw = taught.token_directions(taught.token_projector(best[None]))[0]
                        code = ((raw - method.region_centre.mean) / 0.07).softmax(dim=0).tolist()
                        scores = heads.token_directions(heads.token_projector(token[None]))[0]
                        total += cross(code, scores / 0.2) / len(tokens[i]) / 3
    assert pairs == 2 * len(crops) - 2
    loss = method.loss(batch, 1.0)
    assert loss.push == {}
    assert loss.pull["regions"].item() == pytest.approx(0.3 * total / pairs, rel=1e-10)


def test_energy_is_the_pair_by_pair_loss() -> None:
    method, batch = a_method().eval(), views()
    x, y = batch.main
    both = (method.energy(x, y) + method.energy(y, x)).mean() / 2
    assert method.energy(x, y).shape == (3,)
    assert method.loss(batch, 1.0).total.item() == pytest.approx(both.item(), rel=1e-12)


def test_centres_move_after_the_loss_and_only_in_training() -> None:
    method, batch = a_method(centre=0.7), views(8)
    old = method.centre.mean.clone(), method.region_centre.mean.clone()
    scores, _, regions = method.taught(batch.main)
    raw = torch.cat(scores), torch.cat([s.flatten(0, 1) for s in regions])
    assert raw[1].shape == (2 * 3 * 16, 7)
    first = method.loss(batch, 0.5).total.item()
    centres = method.centre, method.region_centre
    for centre, before, each in zip(centres, old, raw, strict=True):
        assert torch.allclose(centre.mean, 0.7 * before + 0.3 * each.mean(dim=0), atol=1e-12)
    assert method.loss(batch, 0.5).total.item() != pytest.approx(first, rel=1e-6)
    state = {name: t.clone() for name, t in method.state_dict().items()}
    method.eval().loss(batch, 0.5)
    method.energy(*batch.main)
    assert all(torch.equal(t, state[name]) for name, t in method.state_dict().items())


def test_gradients_reach_the_student_alone() -> None:
    method = a_method()
    method.loss(views(8), 0.5).total.backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("teacher"), name


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


def test_plan_is_dinos() -> None:
    plan = a_method(small_crops=3).plan()
    assert [view.crop for view in plan.main] == [(0.4, 1.0)] * 2
    assert [view.pixels(16) for view in plan.local] == [8, 8, 8]
    large = EsViT(build_encoder("conv", 224, width=8), **HEAD).plan()
    assert large.main == (DINO_FIRST, DINO_SECOND)
    assert large.local == (DINO_LOCAL,) * 8


def test_swin_keeps_the_contract() -> None:
    name = "swin_tiny_patch4_window7_224"
    with pytest.raises(ValueError, match="dynamic_img_size"):
        EsViT(build_encoder(name, 32, **SWIN), **HEAD)
    check_method(
        EsViT, arguments={**HEAD, "small_crops": 1}, encoder=name,
        encoder_arguments={**SWIN, "dynamic_img_size": True},
    )  # fmt: skip
