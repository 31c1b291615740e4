"""Projectors and predictors: the small networks behind an encoder."""

import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import energy
from erg.parts.norm import BatchNorm


def mlp(
    *widths: int,
    norm: bool = True,
    hidden_bias: bool = True,
    last_bias: bool = True,
    activation: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:
    """Linear layers from width to width, each but the last followed by BatchNorm and ReLU.

    Args:
        widths: width of the input, of each hidden layer and of the output [features].
        norm: whether hidden layers are batch-normalised.
        hidden_bias: whether hidden linear layers have a bias.
        last_bias: whether the last linear layer has one.
        activation: makes what stands behind hidden layers instead of ReLU.
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(fan_in, fan_out, bias=last_bias if last else hidden_bias))
        if not last:
            layers += [BatchNorm(fan_out)] * norm
            layers.append(activation() if activation else nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class OutputNorm(BatchNorm):
    """BatchNorm with a gain and no offset, as behind SimCLR's last linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        assert self.bias is not None
        self.bias.requires_grad_(False)


class CosineLinear(nn.Module):
    """Cosines with each of k learned directions: both sides have norm 1, as behind DINO's head.

    It is a weight-normalised linear layer without bias whose gain stays 1, on unit inputs.

    Args:
        fan_in: width of the input [features].
        k: number of directions.
    """

    def __init__(self, fan_in: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(k, fan_in))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return energy.products(energy.normalise(x), energy.normalise(self.weight))
