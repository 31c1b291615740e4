"""The contract's own parts: Loss, Cell, what a method does by default."""

import dataclasses

import pytest
import torch
from torch import nn

from erg.encoders import build_encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import Plan, whole
from erg.views.types import View, Views


def test_total_is_the_sum_of_all_parts() -> None:
    a, b, c = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.0, 2.0, 4.0))
    loss = Loss(pull={"a": a, "b": b}, push={"c": c})
    assert loss.total.item() == 7
    assert loss.total.dtype == torch.float64
    loss.total.backward()
    assert [t.grad.item() for t in (a, b, c) if t.grad is not None] == [1, 1, 1]
    assert Loss(pull={"a": a}).total.item() == 1


def test_total_of_half_precision_parts_is_summed_in_single() -> None:
    big, small = torch.tensor(1024.0).bfloat16(), torch.tensor(1.0).bfloat16()
    total = Loss(pull={"a": big}, push={"b": small}).total
    assert total.dtype == torch.float32
    assert total.item() == 1025  # bfloat16 would have lost the 1
    assert Loss(pull={"a": big}, push={"b": torch.tensor(1.0).double()}).total.item() == 1025


def test_a_loss_is_a_tuple_of_dictionaries() -> None:
    """So that data-parallel wrappers find its tensors."""
    loss = Loss(pull={"a": torch.ones(())})
    assert isinstance(loss, tuple)
    assert all(isinstance(part, dict) for part in loss)


def test_a_cell_is_frozen() -> None:
    cell = Cell("joint-embedding", "contrastive", by="softmax")
    with pytest.raises(dataclasses.FrozenInstanceError):
        cell.by = "other"  # type: ignore[misc]


class Trained(Method):
    """F(x, y) = 0."""

    cell = Cell("joint-embedding", "regularised", by="nothing")

    def plan(self) -> Plan:
        return whole()

    def loss(self, views: Views, progress: float) -> Loss:
        return Loss(pull={"zero": views.main[0].data.sum() * 0})

    def energy(self, x: View | None, y: View) -> torch.Tensor:
        return torch.zeros(len(y))


class Frozen(Trained):
    """F(x, y) = 0."""

    trains_encoder = False


def test_defaults() -> None:
    encoder = build_encoder("mlp", 5)
    method, data = Trained(encoder), torch.randn(3, 5)
    assert torch.equal(method.encode(data), encoder(data))
    assert list(method.frozen(0.5)) == []
    before = {name: t.clone() for name, t in method.state_dict().items()}
    method.after_step(0.5)
    method.after_epoch(torch.randn(3, 64))
    assert all(torch.equal(t, before[name]) for name, t in method.state_dict().items())
    assert isinstance(method, nn.Module)


def test_an_encoder_that_is_not_trained_has_no_gradients() -> None:
    assert all(p.requires_grad for p in Trained(build_encoder("mlp", 5)).parameters())
    assert not any(p.requires_grad for p in Frozen(build_encoder("mlp", 5)).parameters())


def test_a_method_without_its_four_answers_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Method(build_encoder("mlp", 5))  # type: ignore[abstract]
