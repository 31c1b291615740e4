"""What stands behind the layers of our own networks."""

from typing import Literal, get_args

from torch import nn

Activation = Literal["relu", "silu"]
"""max(0, x), or x sigmoid(x), which has a second derivative everywhere, as the slopes of an energy
need."""


def activation_layer(name: Activation) -> nn.Module:
    """By name.

    Raises:
        ValueError: unknown name.
    """
    if name not in get_args(Activation):
        raise ValueError(f"activation should be one of {get_args(Activation)} (got {name!r}).")
    return nn.ReLU(inplace=True) if name == "relu" else nn.SiLU()
