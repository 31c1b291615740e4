"""I-JEPA: golden numbers, a loop over targets, and what each side of the energy may see."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.ijepa import IJEPA, places
from erg.schedule import Linear
from erg.testing import check_method
from erg.views.make import make_views
from erg.views.masks import target_mask
from erg.views.pixels import Pixels
from erg.views.plan import Masking
from erg.views.types import Mask, View, Views

VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
SIDE, GRID, CELLS = 20, (5, 5), 25
MASK = target_mask(Masking(grid=GRID, kind="targets", targets=2), 0, 0, 0, np.arange(3), 0)


def a_method(**arguments: Any) -> IJEPA:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", SIDE, **VIT)
    method = IJEPA(encoder, **{"width": 8, "depth": 1, "heads": 2, **arguments}).double()
    with torch.no_grad():  # a teacher that is no longer the student
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


def a_view(seed: int = 1, mask: Mask | None = MASK) -> View:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return View(data, mask=mask)


def test_energy_is_golden(golden) -> None:
    method: Any = a_method()
    hidden = torch.tensor([[[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]]).bool()
    view = View(torch.zeros(1, 3, 8, 8), mask=Mask(hidden, (2, 2)))
    method.predict = lambda x: golden.array("Z1")[None]
    method.teacher.network.tokens = lambda data: golden.array("Z2")[None]
    assert golden.agrees("I-JEPA", method.energy(view, view)[0])


def normalised(row: list[float]) -> list[float]:
    mean = sum(row) / len(row)
    var = sum((v - mean) ** 2 for v in row) / len(row)
    return [(v - mean) / (var + 1e-5) ** 0.5 for v in row]


def huber(e: float) -> float:
    return e * e / 2 if abs(e) < 1 else abs(e) - 0.5


def test_loss_is_the_loop_over_targets() -> None:
    method, view = a_method(), a_view()
    wanted = []
    for i in range(3):
        alone, errors = view.take(slice(i, i + 1)), []
        assert alone.mask is not None
        keep = alone.mask.keep()
        context = method.encoder.tokens(alone.data, alone.mask)
        taught = method.teacher.network.tokens(alone.data)[0].tolist()
        for k in range(2):
            at = MASK.hidden[i, k].nonzero().flatten()
            made = method.predictor(context, keep, at[None])[0].tolist()
            for guess, p in zip(made, at.tolist(), strict=True):
                pairs = zip(guess, normalised(taught[p]), strict=True)
                errors.append(sum(huber(a - b) for a, b in pairs) / 16)
        wanted.append(sum(errors) / len(errors))
    found = method.energy(view, view)
    assert found.tolist() == pytest.approx(wanted, rel=1e-10)
    loss = method.loss(Views((view,), torch.arange(3), pairing="itself"), 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(sum(wanted) / 3, rel=1e-10)


def repaint(view: View, where: Tensor) -> View:
    """Other pixels in some patches [b n]."""
    cells = where.reshape(3, 1, *GRID).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return view.with_data(torch.where(cells, a_view(seed=2).data, view.data))


def test_the_prediction_sees_the_context_alone() -> None:
    method, view = a_method(), a_view()
    outside = MASK.hidden.any(dim=1)
    assert torch.equal(method.predict(repaint(view, outside)), method.predict(view))
    for i in range(CELLS):
        one = torch.zeros(3, CELLS).bool()
        one[0, i] = True
        seen = not torch.allclose(method.predict(repaint(view, one)), method.predict(view))
        assert seen == (not outside[0, i])


def test_the_teacher_sees_the_whole_image() -> None:
    method, view = a_method(), a_view()
    for where in (MASK.hidden[:, -1], ~MASK.hidden.any(dim=1)):
        other = method.target(repaint(view, where), MASK)
        assert not torch.allclose(other, method.target(view, MASK))


def test_targets_do_not_see_each_other() -> None:
    """Of two targets each is predicted as if the other were only left out."""
    method, view = a_method(), a_view()
    hidden = MASK.hidden.clone()
    both = method.predict(view).unflatten(1, (2, -1))
    first = Mask(torch.stack([hidden[:, 0], hidden[:, 1] | hidden[:, 2]], dim=1), GRID)
    found = method.predict(View(view.data, mask=first))
    assert torch.allclose(found, both[:, 0], atol=1e-12)


def test_mismatched_pairs_are_judged_at_the_places_of_x() -> None:
    method, view = a_method(), a_view()
    other = view.roll(1)
    assert torch.equal(method.energy(view, other), method.energy(view, View(other.data)))


def test_gradients_reach_the_student_alone() -> None:
    method = a_method()
    method.loss(Views((a_view(),), torch.arange(3)), 0.0).total.backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("teacher."), name
    assert not method.target(a_view(), MASK).requires_grad


def test_the_teacher_follows_in_a_straight_line() -> None:
    method = a_method(momentum=Linear(0.2, 0.8))
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(0.5)
    fast = method.encoder.parameters()
    for old, new, now in zip(before, method.teacher.parameters(), fast, strict=True):
        assert torch.allclose(new, (old + now) / 2, atol=1e-14)
    assert a_method().momentum(0.25) == pytest.approx(0.997)


def test_views_have_the_targets_of_their_step() -> None:
    method = a_method(targets=2, crop=0.4)
    plan = method.plan()
    (view,) = plan.main
    assert (view.crop, view.flip, plan.pairs) == ((0.4, 1.0), 0.0, "itself")
    pixels = Pixels.pack([np.zeros((24, 24, 3), dtype=np.uint8)] * 4)
    rows = np.arange(4, dtype=np.int64)
    for step in (0, 7):
        made = make_views(
            pixels, plan, seed=3, epoch=1, step=step, index=rows, image_size=SIDE,
            mean=method.encoder.mean, std=method.encoder.std,
        ).main[0].mask  # fmt: skip
        assert made is not None
        wanted = target_mask(method.masking, 3, 1, step, rows, 0)
        assert torch.equal(made.hidden, wanted.hidden)
    assert places(wanted).shape[:2] == (4, 2)


def test_the_predictor_is_half_as_wide_by_default() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", SIDE, **{**VIT, "embed_dim": 64})
    method = IJEPA(encoder)
    assert method.predictor.embed.out_features == 32
    assert len(method.predictor.blocks) == 6


def test_what_it_cannot_do_it_says() -> None:
    with pytest.raises(ValueError, match="IJEPA needs patch tokens; conv gives one vector"):
        IJEPA(build_encoder("conv", 16))
    with pytest.raises(ValueError, match="needs views with targets"):
        a_method().predict(a_view(mask=None))


def test_it_keeps_the_contract_without_a_class_token() -> None:
    arguments = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    check_method(
        IJEPA,
        arguments={"width": 8, "depth": 1, "heads": 2, "targets": 2},
        encoder="vit_tiny_patch16_224",
        encoder_arguments={**VIT, "depth": 1, **arguments},
    )
