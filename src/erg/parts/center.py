"""The running mean of a teacher's outputs, as a persistent buffer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy


class Center(nn.Module):
    """c <- m c + (1 - m) mean(t) over the batch of all processes; starts at 0.

    Args:
        dim: width of t.
        momentum: m.
    """

    mean: Tensor

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))

    def codes(self, t: Float[Tensor, "b d"], temperature: float) -> Float[Tensor, "b d"]:
        """softmax((t - c) / temperature): centred, then sharpened."""
        t = energy.at_least_float32(t)
        return ((t - self.mean.to(t)) / temperature).softmax(dim=1)

    @torch.no_grad()
    def update(self, t: Float[Tensor, "b d"]) -> None:
        """Move towards the mean of t; to be called after what t is used for."""
        self.mean.lerp_(distributed.mean(t.detach().to(self.mean)), 1 - self.momentum)
