"""A slow copy of a network that follows it by an exponential moving average."""

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class Teacher(nn.Module, Generic[Network]):
    """theta' <- m theta' + (1 - m) theta, without gradient.

    It starts as a copy, and its batch norms use the statistics of their own batches in training.
    Dropout and stochastic depth are off: targets are not blurred by noise.

    Args:
        student: the network to copy and to follow.
    """

    network: Network

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)
        # In a tuple, so that the student is not registered (and saved, and averaged) twice.
        self._student = (student,)

    def train(self, mode: bool = True) -> "Teacher":
        """In training only batch norms are in training mode."""
        super().train(mode)
        for module in self.network.modules():
            module.training = mode and isinstance(module, nn.modules.batchnorm._BatchNorm)
        return self

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move every parameter towards the student's; buffers stay the teacher's own."""
        mine, theirs = self.network.parameters(), self._student[0].parameters()
        for slow, fast in zip(mine, theirs, strict=True):
            slow.lerp_(fast.to(slow.dtype), 1 - momentum)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)
