"""What makes a teacher's codes: the running mean that is taken from its outputs, as a persistent
buffer, and the temperature that sharpens them.

The mean keeps one code from winning everywhere, and a temperature below the student's keeps codes
from becoming all alike (Caron et al. 2021).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.schedule import Linear, Schedule


class Centre(nn.Module):
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


@dataclass(frozen=True)
class Sharpening(Schedule):
    """The temperature of a teacher's codes: from start to end in a straight line, and then the end.

    Args:
        start: temperature at progress 0.
        end: temperature once it is warm.
        warmup: progress until which it moves, in [0, 1]; 0 for the end at once.
    """

    start: float
    end: float
    warmup: float

    def __call__(self, progress: float) -> float:
        return Linear(self.start, self.end)(progress / self.warmup if self.warmup else 1.0)
