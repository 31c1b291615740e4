"""Noise inside methods: a function of the image, of what it is for and of the step.

There is no generator and so no state: one process draws what two would, and a resumed run what one
never stopped would. The hash is splitmix64's finaliser, chained as in `erg.views.random`, in
torch, so that it runs where the data are; integers wrap around modulo 2^64 there as here.

Letters in shapes: b batch, n draws.
"""

import hashlib
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def _signed(word: int) -> int:
    """The number modulo 2^64 as torch's int64 holds it."""
    word &= 0xFFFFFFFFFFFFFFFF
    return word - (1 << 64) if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shifted(h: Tensor, by: int) -> Tensor:
    """h >> by with zeros coming in, where torch repeats the sign."""
    return (h >> by) & ((1 << (64 - by)) - 1)


def _mix(h: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele et al. 2014)."""
    h = (h ^ _shifted(h, 30)) * _FIRST
    h = (h ^ _shifted(h, 27)) * _SECOND
    return h ^ _shifted(h, 31)


def bits(*words: int | Tensor) -> Int[Tensor, "..."]:
    """64 random bits for every combination of words, which broadcast against each other.

    Args:
        words: integers, or tensors of int64 on one device.
    """
    h = torch.zeros((), dtype=torch.int64)
    for word in words:
        h = _mix((h ^ (_signed(word) if isinstance(word, int) else word)) + _GOLDEN)
    return h


def _draws(index: Int[Tensor, " b"], n: int, purpose: str, step: int) -> Int[Tensor, "b n"]:
    name = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big")
    return bits(name, step, index[:, None], torch.arange(n, device=index.device))


def normal(
    index: Int[Tensor, " b"], *size: int, purpose: str, step: int
) -> Float[Tensor, "b *size"]:
    """Standard normal numbers for every image, float32 (Box & Muller 1958).

    Args:
        index: rows of the images (`Views.index`).
        size: shape per image.
        purpose: what the noise is for, any word; other words give other noise.
        step: of the optimiser (`Views.step`); a constant keeps the noise of an image for good.
    """
    n = math.prod(size)
    h = _draws(index, (n + 1) // 2, purpose, step)
    # 24 bits for the radius and 24 for the angle; the radius is that of a number in (0, 1].
    radius = (-2 * ((_shifted(h, 40) + 1).float() * 2.0**-24).log()).sqrt()
    angle = (_shifted(h, 8) & 0xFFFFFF).float() * (2 * math.pi * 2.0**-24)
    drawn = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten(1)  # [b n+1]
    return drawn[:, :n].reshape(len(index), *size)


def uniform(
    index: Int[Tensor, " b"], *size: int, purpose: str, step: int
) -> Float[Tensor, "b *size"]:
    """Numbers in [0, 1) for every image, float32; arguments as `normal`."""
    h = _draws(index, math.prod(size), purpose, step)
    return (_shifted(h, 40).float() * 2.0**-24).reshape(len(index), *size)


def signs(
    index: Int[Tensor, " b"], *size: int, purpose: str, step: int
) -> Float[Tensor, "b *size"]:
    """-1 or 1 with equal chances for every image, float32; arguments as `normal`."""
    n = math.prod(size)
    h = _draws(index, -(-n // 64), purpose, step)
    each = (h[:, :, None] >> torch.arange(64, device=h.device)) & 1  # [b n/64 64]
    return (2 * each.flatten(1)[:, :n] - 1).float().reshape(len(index), *size)
