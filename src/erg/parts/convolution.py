"""Convolutions whose gradients are right for maps smaller than their kernels."""

import functools
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

M = TypeVar("M", bound=nn.Module)


def with_right_gradients(module: M) -> M:
    """Make every convolution of a module that pads its input one as `padding` makes, in place."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d) and not isinstance(each, Padding) and _pads(each):
            each.__class__ = padding(type(each))
    return module


def _pads(of: nn.Conv2d) -> bool:
    """Whether it puts zeros around its input."""
    return of.padding_mode == "zeros" and of.padding not in ((0, 0), "valid", "same")


@functools.cache
def padding(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """A kind of convolution that puts zeros around its input itself, where some weight meets
    nothing else.

    In bfloat16 on x86, torch (2.14, oneDNN) does not write the gradient of such weights: where a
    kernel of 3 x 3 strides over a map of a single pixel, as in the last stages with small crops and
    tiles, it is whatever the memory held before. With zeros that are really there it is right.

    Args:
        kind: of convolutions: torch's, or one of timm's that makes something of its weights first.
    """

    def forward(self: nn.Conv2d, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        height, width = input.shape[-2:]
        own = self.padding
        top, left = map(int, own)
        if not (_misses(self, 0, height) or _misses(self, 1, width)):
            return kind.forward(self, input)
        self.padding = (0, 0)
        try:
            return kind.forward(self, pad(input, (left, left, top, top)))
        finally:
            self.padding = own

    changed = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind, Padding), changed)


class Padding:
    """What `padding` makes, whatever the kind."""


def _misses(of: nn.Conv2d, axis: int, side: int) -> bool:
    """Whether some weight of a convolution never meets one of the `side` pixels along an axis."""
    around, stride, gap = int(of.padding[axis]), of.stride[axis], of.dilation[axis]
    size = of.kernel_size[axis]
    last = (side + 2 * around - gap * (size - 1) - 1) // stride * stride  # place of the kernel
    for shift in range(-around, gap * size - around, gap):  # of a weight, from that place
        first = -(min(0, shift) // stride) * stride  # place at which it is not above the map
        if first > last or first + shift >= side:
            return True
    return False
