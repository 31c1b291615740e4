"""The network for vectors: what it computes, and how many numbers it learns."""

import torch
from torch import nn

from erg.encoders import VectorMLP, build_encoder, parameter_count


def test_it_is_its_layers_one_after_another() -> None:
    torch.manual_seed(0)
    data, mlp = torch.randn(4, 5), build_encoder("mlp", 5, width=7, depth=3, dim=2)
    assert isinstance(mlp, VectorMLP)
    assert (mlp.dim, mlp.mean) == (2, ())
    assert parameter_count(mlp) == (5 * 7 + 7) + 2 * (7 * 7 + 7) + (7 * 2 + 2)
    linears = [layer for layer in mlp.network if isinstance(layer, nn.Linear)]
    x = data
    for i, layer in enumerate(linears):
        x = x @ layer.weight.T + layer.bias
        x = x.clamp_min(0) if i < 3 else x
    torch.testing.assert_close(mlp(data), x)
