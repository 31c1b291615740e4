"""Projectors and predictors: the small networks behind an encoder."""

import itertools

from torch import nn

from erg.parts.norm import BatchNorm


def mlp(
    *widths: int, norm: bool = True, hidden_bias: bool = True, last_bias: bool = True
) -> nn.Sequential:
    """Linear layers from width to width, each but the last followed by BatchNorm and ReLU.

    Args:
        widths: width of the input, of each hidden layer and of the output [features].
        norm: whether hidden layers are batch-normalised.
        hidden_bias: whether hidden linear layers have a bias.
        last_bias: whether the last linear layer has one.
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(fan_in, fan_out, bias=last_bias if last else hidden_bias))
        if not last:
            layers += [BatchNorm(fan_out)] * norm
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class OutputNorm(BatchNorm):
    """BatchNorm with a gain and no offset, as behind SimCLR's last linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        assert self.bias is not None
        self.bias.requires_grad_(False)
