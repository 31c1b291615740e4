"""Projectors as the papers draw them."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from erg.parts.heads import CosineLinear, OutputNorm, TokenHeads, code_projector, mlp
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


def test_dinos_projector_has_another_activation_and_no_norm() -> None:
    assert shape_of(mlp(8, 16, 16, 4, norm=False, activation=nn.GELU)) == [
        (8, 16, True), "GELU", (16, 16, True), "GELU", (16, 4, True),
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


def test_cosine_linear_gives_cosines() -> None:
    torch.manual_seed(0)
    layer, x = CosineLinear(3, 4).double(), torch.randn(5, 3, dtype=torch.float64)
    for row, found in zip(x.tolist(), layer(x).tolist(), strict=True):
        for direction, cosine in zip(layer.weight.tolist(), found, strict=True):
            dot = sum(a * b for a, b in zip(row, direction, strict=True))
            norms = math.dist(row, [0] * 3) * math.dist(direction, [0] * 3)
            assert cosine == pytest.approx(dot / norms, rel=1e-12)


def test_cosine_linear_is_a_weight_normalised_layer_of_gain_1() -> None:
    """On unit inputs, gradients included: only the direction of each row learns."""
    torch.manual_seed(0)
    layer, x = CosineLinear(3, 4).double(), torch.randn(5, 3, dtype=torch.float64)
    x = nn.functional.normalize(x, dim=1)
    theirs: Any = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4, bias=False).double())
    with torch.no_grad():
        theirs.parametrizations.weight.original0.fill_(1)
        theirs.parametrizations.weight.original1.copy_(layer.weight)
    for net in (layer, theirs):
        net(x).pow(3).sum().backward()
    assert torch.allclose(layer(x), theirs(x), atol=1e-12)
    grad = theirs.parametrizations.weight.original1.grad
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, grad, atol=1e-12)


def test_directions_start_as_those_of_dino() -> None:
    """A torch linear layer without bias, under its weight norm: rows of norm sqrt(1 / 3)."""
    torch.manual_seed(0)
    weight = CosineLinear(256, 400).weight.detach()
    theirs = nn.Linear(256, 400, bias=False).weight.detach()
    assert float(weight.abs().max()) <= 1 / 16
    assert float(weight.std()) == pytest.approx(float(theirs.std()), rel=0.02)
    assert float(weight.norm(dim=1).mean()) == pytest.approx(3**-0.5, rel=0.01)


def test_code_projector_is_dinos() -> None:
    torch.manual_seed(0)
    projector = code_projector(64, 256, 8)
    kinds = [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert [type(layer) for layer in projector] == kinds
    wide = projector[2]
    assert isinstance(wide, nn.Linear)
    assert float(wide.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(wide.bias.detach().abs().max()) == 0
    assert [tuple(p.shape) for p in projector.parameters() if p.ndim == 2] == [
        (256, 64), (256, 256), (8, 256)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "own"),
    [("same", set()), ("directions", {"token_directions"}),
     ("own", {"token_directions", "token_projector"})],
)  # fmt: skip
def test_token_heads_share_what_they_should(tokens: Any, own: set[str]) -> None:
    torch.manual_seed(0)
    heads = TokenHeads(6, 5, 4, 3, tokens=tokens)
    vectors, cells = torch.randn(2, 6), torch.randn(7, 6)
    of_vectors, of_tokens = heads(vectors, cells)
    assert (of_vectors.shape, of_tokens.shape) == ((2, 3), (7, 3))
    assert torch.equal(of_vectors, heads.directions(heads.projector(vectors)))
    assert torch.allclose(heads(cells, cells)[0], of_tokens) == (tokens == "same")
    of_tokens.square().sum().backward()
    reached = {name.split(".")[0] for name, p in heads.named_parameters() if p.grad is not None}
    assert reached == own | {"projector", "directions"} - {name[6:] for name in own}
    assert heads(vectors, cells[:0])[1].shape == (0, 3)
    assert [p.shape for p in heads.last_layers()] == [(3, 4)] * (1 if tokens == "same" else 2)
