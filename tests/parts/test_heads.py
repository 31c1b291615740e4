"""Projectors as the papers draw them."""

import torch
from torch import nn

from erg.parts.heads import OutputNorm, mlp
from erg.parts.norm import BatchNorm


def shape_of(net: nn.Sequential) -> list[object]:
    drawn: list[object] = []
    for layer in net:
        if isinstance(layer, nn.Linear):
            drawn.append((layer.in_features, layer.out_features, layer.bias is not None))
        else:
            drawn.append(type(layer).__name__)
    return drawn


def test_byols_projector() -> None:
    assert shape_of(mlp(8, 16, 4, last_bias=False)) == [
        (8, 16, True), "BatchNorm", "ReLU", (16, 4, False),
    ]  # fmt: skip


def test_simclrs_projector_has_no_bias() -> None:
    assert shape_of(mlp(8, 16, 16, 4, hidden_bias=False, last_bias=False)) == [
        (8, 16, False), "BatchNorm", "ReLU", (16, 16, False), "BatchNorm", "ReLU", (16, 4, False),
    ]  # fmt: skip


def test_without_norm_and_without_hidden_layers() -> None:
    assert shape_of(mlp(8, 16, 4, norm=False)) == [(8, 16, True), "ReLU", (16, 4, True)]
    assert shape_of(mlp(8, 4)) == [(8, 4, True)]
    assert isinstance(mlp(8, 16, 4)[1], BatchNorm)


def test_output_norm_has_a_gain_and_a_still_offset_of_zero() -> None:
    norm = OutputNorm(4)
    assert norm.weight.requires_grad
    assert not norm.bias.requires_grad
    assert torch.equal(norm.bias, torch.zeros(4))
    norm(torch.randn(6, 4)).pow(3).sum().backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad is None
    centre = norm(torch.randn(6, 4)).detach().mean(0)
    assert torch.allclose(centre, torch.zeros(4), atol=1e-6)
