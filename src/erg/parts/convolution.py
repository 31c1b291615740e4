"""Convolutions whose gradients are right for maps smaller than their kernels."""

import functools
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

M = TypeVar("M", bound=nn.Module)


class Convolution(nn.Conv2d):
    """A convolution that puts zeros around its input itself, where some weight meets nothing else.

    In bfloat16 on x86, torch (2.14, oneDNN) does not write the gradient of such weights: where a
    kernel of 3 x 3 strides over a map of a single pixel, as in the last stages with small crops and
    tiles, it is whatever the memory held before. With zeros that are really there it is right.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        if isinstance(self.padding, str) or self.padding_mode != "zeros":
            return super().forward(input)
        shape = zip(
            input.shape[-2:], self.kernel_size, self.stride, self.padding, self.dilation,
            strict=True,
        )  # fmt: skip
        if not any(_misses(*each) for each in shape):
            return super().forward(input)
        (top, left), none = self.padding, (0, 0)
        wide = pad(input, (left, left, top, top))
        return conv2d(wide, self.weight, self.bias, self.stride, none, self.dilation, self.groups)


@functools.cache
def _misses(side: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether some weight of a kernel never meets one of `side` pixels."""
    places = range(0, side + 2 * padding - dilation * (kernel - 1), stride)
    met = ({place + dilation * i - padding for place in places} for i in range(kernel))
    return any(seen.isdisjoint(range(side)) for seen in met)


def with_right_gradients(module: M) -> M:
    """Make every convolution of a module that pads its input a `Convolution`, in place."""
    for each in module.modules():
        if type(each) is nn.Conv2d and each.padding != (0, 0):
            each.__class__ = Convolution
    return module
