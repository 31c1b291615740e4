"""Rotation: cross-entropy over the four turns of every image."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from erg.encoders import build_encoder
from erg.methods.rotation import Rotation
from erg.views.types import How, View, Views


def turned(b: int = 5, made: bool = True) -> Views:
    """Four turns of every image, as the plan asks."""
    torch.manual_seed(1)
    image = torch.randn(b, 3, 16, 16, dtype=torch.float64)
    whole = torch.tensor([0.0, 0, 16, 16]).expand(b, 4)
    main = tuple(
        View(
            image.rot90(k, dims=(2, 3)),
            How(whole, torch.zeros(b).bool(), torch.full((b,), k), torch.full((b, 2), 16))
            if made
            else None,
        )
        for k in range(4)
    )
    return Views(main, torch.arange(b), pairing="turn")


def a_method() -> Rotation:
    torch.manual_seed(0)
    return Rotation(build_encoder("conv", 16, width=8, stages=2)).double()


def test_pull_and_push_are_cross_entropy() -> None:
    method, views = a_method(), turned()
    everything = torch.cat([view.data for view in views.main])
    logits = method.classifier(method.encoder(everything))
    labels = torch.arange(4).repeat_interleave(5)
    loss = method.loss(views, 0.0)
    assert loss.pull.keys() == {"turn"}
    assert loss.push.keys() == {"other turns"}
    assert loss.total.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12)
    chosen = [logits[i, k].item() for i, k in enumerate(labels)]
    assert loss.pull["turn"].item() == pytest.approx(-sum(chosen) / 20, rel=1e-12)
    push = [row.exp().sum().log().item() for row in logits]
    assert loss.push["other turns"].item() == pytest.approx(sum(push) / 20, rel=1e-12)


def test_loss_is_the_mean_of_the_energies() -> None:
    method, views = a_method().eval(), turned()
    pairs: Any = views.pairs()
    energies = [method.energy(x, y) for x, y in pairs]
    assert len(energies) == 4
    assert all(e.shape == (5,) for e in energies)
    total = method.loss(views, 0.0).total.item()
    assert total == pytest.approx(torch.cat(energies).mean().item(), rel=1e-12)


def test_energies_of_the_four_turns_are_minus_log_probabilities() -> None:
    method, view = a_method().eval(), turned().main[0]
    energies = torch.stack([method.energy(view, torch.full((5,), k)) for k in range(4)])
    assert torch.allclose((-energies).exp().sum(0), torch.ones(5, dtype=torch.float64))
    assert (energies > 0).all()


def test_turns_are_read_from_how_the_views_were_made() -> None:
    """Not from the order of the views."""
    method, views = a_method().eval(), turned()
    total = method.loss(views, 0.0).total.item()
    mixed = Views(tuple(views.main[k] for k in (2, 0, 3, 1)), views.index, pairing="turn")
    assert method.loss(mixed, 0.0).total.item() == pytest.approx(total, rel=1e-12)


def test_uniform_logits_cost_log_4() -> None:
    method = a_method()
    torch.nn.init.zeros_(method.classifier.weight)
    torch.nn.init.zeros_(method.classifier.bias)
    total = method.loss(turned(), 0.0).total.item()
    assert total == pytest.approx(torch.tensor(4.0).log().item())


def test_everything_learns() -> None:
    method = a_method()
    method.loss(turned(), 0.0).total.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_plan_turns_one_square_upright_crop_into_four() -> None:
    plan = a_method().plan()
    assert [view.turns for view in plan.main] == [0, 1, 2, 3]
    assert [view.same_as for view in plan.main] == [None, 0, 0, 0]
    assert all(view.ratio == (1.0, 1.0) for view in plan.main)
    assert plan.pairs == "turn"
    crop = Rotation(build_encoder("conv", 16), crop=0.7).plan().main[0].crop
    assert crop == (0.7, 1.0)


def test_needs_four_views_that_know_their_turn() -> None:
    with pytest.raises(ValueError, match="needs 4 main views"):
        a_method().loss(Views(turned().main[:2], torch.arange(5)), 0.0)
    with pytest.raises(ValueError, match=r"Rotation needs .*turn"):
        a_method().loss(turned(made=False), 0.0)
