"""MoCo v3: golden numbers, a loop over all keys, heads by encoder, patches that stay random."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.mocov3 import MoCoV3
from erg.parts.norm import BatchNorm
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Linear
from erg.testing import check_method
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, SIMCLR_SMALL
from erg.views.types import View, Views

VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(x: Tensor, y: Tensor) -> Views:
    return Views((View(x), View(y)), torch.arange(len(x)))


def images(b: int = 5) -> Views:
    return pair(drawn(b, 3, 16, 16, seed=0), drawn(b, 3, 16, 16, seed=1))


def a_method(**arguments: Any) -> MoCoV3:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    method = MoCoV3(encoder, **{"hidden": 9, "dim": 6, **arguments}).double()
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


def a_vit(**arguments: Any) -> MoCoV3:
    encoder = build_encoder("vit_tiny_patch16_224", 32, **VIT)
    return MoCoV3(encoder, hidden=9, dim=6, **arguments)


def bare(temperature: float) -> MoCoV3:
    method = MoCoV3(build_encoder("identity", 3), hidden=2, dim=3, temperature=temperature)
    method.projector, method.predictor = nn.Sequential(), nn.Sequential()
    method.teacher = Teacher(nn.Sequential())
    return method


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_loss_is_golden(golden, temperature: float) -> None:
    total = bare(temperature).loss(pair(golden.array("Z1"), golden.array("Z2")), 0.0).total
    name = f"2 T InfoNCE across views, both ways, temperature {temperature}"
    assert golden.agrees(name, total)


def test_loss_is_the_loop_over_all_keys_of_the_other_view() -> None:
    method, views = a_method(temperature=0.3), images()
    q = [nn.functional.normalize(method.query(v), dim=1).tolist() for v in views.main]
    k = [nn.functional.normalize(method.key(v), dim=1).tolist() for v in views.main]

    def energy(a: list[float], b: list[float]) -> float:
        return -sum(s * t for s, t in zip(a, b, strict=True))

    pull = push = 0.0
    for i in range(5):
        for a, b in ((0, 1), (1, 0)):
            pull += energy(q[a][i], k[b][i]) / 0.3
            push += math.log(sum(math.exp(-energy(q[a][i], key) / 0.3) for key in k[b]))
    loss = method.loss(views, 0.0)
    assert loss.pull["alignment"].item() == pytest.approx(0.6 * pull / 5, rel=1e-10)
    assert loss.push["repulsion"].item() == pytest.approx(0.6 * push / 5, rel=1e-10)
    wanted = [energy(q[0][i], k[1][i]) for i in range(5)]
    assert method.energy(*views.main).tolist() == pytest.approx(wanted, rel=1e-10)


def test_gradient_is_that_of_the_queries_alone() -> None:
    """The slope with the keys held, since the teacher gives none."""
    method, x, y = bare(0.5), drawn(4, 3, seed=1), drawn(4, 3, seed=2)
    same = nn.Linear(3, 3, bias=False).double()
    nn.init.eye_(same.weight)
    method.teacher = Teacher(same)
    x.requires_grad_()
    y.requires_grad_()
    keys = [x.detach().clone(), y.detach().clone()]

    def held(a: Tensor, b: Tensor) -> Tensor:
        """2 T = 1 at this temperature."""
        unit, total = nn.functional.normalize, torch.zeros((), dtype=torch.float64)
        for q, k in ((a, keys[1]), (b, keys[0])):
            scores = unit(q, dim=1) @ unit(k, dim=1).T / 0.5
            total = total + nn.functional.cross_entropy(scores, torch.arange(4))
        return total

    found = torch.autograd.grad(method.loss(pair(x, y), 0.0).total, (x, y))
    wanted = torch.autograd.grad(held(x, y), (x, y))
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_gradient_is_that_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the keys held."""
    method = bare(0.5)
    keys = itertools.cycle([drawn(4, 3, seed=3), drawn(4, 3, seed=4)])
    monkeypatch.setattr(method, "key", lambda _: next(keys))
    x, y = (drawn(4, 3, seed=s).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(lambda a, b: method.loss(pair(a, b), 0.0).total, (x, y))


def shapes(head: nn.Sequential) -> list[tuple[int, int]]:
    linears = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert all(layer.bias is None for layer in linears)
    return [(a.in_features, a.out_features) for a in linears]


def test_heads_are_the_papers() -> None:
    resnet, vit = a_method(), a_vit()
    assert shapes(resnet.projector) == [(16, 9), (9, 6)]
    assert shapes(vit.projector) == [(16, 9), (9, 9), (9, 6)]
    assert shapes(resnet.predictor) == shapes(vit.predictor) == [(6, 9), (9, 6)]
    assert isinstance(resnet.predictor[-1], nn.Linear)
    for head in (resnet.projector, vit.projector, vit.predictor):
        assert isinstance(head[-1], BatchNorm)
        assert not head[-1].affine


def test_tokens_without_patches_have_none_to_freeze() -> None:
    encoder = build_encoder("sequence", 6, vocabulary=5, width=8, depth=1, heads=2)
    method = MoCoV3(encoder, hidden=9, dim=6)
    assert shapes(method.projector) == [(8, 9), (9, 6)]
    assert all(p.requires_grad for p in method.encoder.parameters())
    assert encoder.grid is not None


def test_patches_of_a_vit_stay_random_unless_told() -> None:
    frozen = {n for n, p in a_vit().encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"network.patch_embed.proj.weight", "network.patch_embed.proj.bias"}
    assert all(p.requires_grad for p in a_vit(freeze_patches=False).encoder.parameters())
    for batch_norm in (False, True):
        check_method(
            MoCoV3, arguments={"hidden": 9, "dim": 6}, encoder="vit_tiny_patch16_224",
            encoder_arguments={**VIT, "mlp_batch_norm": batch_norm},
        )  # fmt: skip


def test_teacher_holds_encoder_and_projector_and_follows() -> None:
    method = a_method(momentum=Linear(0.2, 0.8))
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(0.5)
    for old, new, fast in zip(before, method.teacher.parameters(), student, strict=True):
        assert torch.allclose(new, (old + fast) / 2, atol=1e-14)
    assert a_method().momentum == Cosine(0.99, 1.0)
    method.loss(images(), 0.0).total.backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("teacher."), name


def test_plan_follows_the_image_size_and_the_encoder() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    vit = MoCoV3(build_encoder("vit_tiny_patch16_224", 128, **VIT), hidden=4, dim=4)
    assert vit.plan().main == (BYOL_FIRST, BYOL_SECOND)
    large = MoCoV3(build_encoder("conv", 128, width=8), hidden=4, dim=4)
    wanted = tuple(replace(view, crop=(0.2, 1.0)) for view in (BYOL_FIRST, BYOL_SECOND))
    assert large.plan().main == wanted
