"""Counter-based randomness: every random number is a hash of what it is for.

A number depends on (seed, epoch, image index, view, purpose) and on nothing else: not on the
number of processes or threads, not on the order of the work, not on what was drawn before. There
is no generator, so there is no state to save.

The hash is the finaliser of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
number generators", variant 13 of Stafford's mixers) chained over the words:
h <- mix((h ^ word) + golden). For a given h it is a bijection of the word, so that different
words never collide at the same place of the chain.
"""

from enum import IntEnum, unique
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_WORD = 0xFFFFFFFFFFFFFFFF

Word = int | np.integer | np.ndarray
"""A word of the hash: an integer or an array of integers, taken modulo 2^64."""


@unique
class Purpose(IntEnum):
    """What a random number is for. The values are frozen: they are part of every result."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    TURNS = 3
    JITTER = 4
    GREY = 5
    BLUR = 6
    SOLARISE = 7
    NOISE = 8
    ZEROED = 9
    MASK = 10
    WEIGHTS = 11
    STEP = 12
    CUTOUT = 13
    TILES = 14
    ARRANGEMENT = 15
    BACKGROUND = 16


def _as_uint64(word: Word) -> np.ndarray:
    """The word modulo 2^64: negative integers in two's complement."""
    if isinstance(word, int):
        return np.asarray(word & _WORD, dtype=np.uint64)
    array = np.asarray(word)
    if array.dtype.kind not in "iu":
        raise TypeError(f"a word of the hash is {array.dtype}. Give integers.")
    return array.astype(np.uint64)


def _mix(h: Any) -> Any:
    h = (h ^ (h >> np.uint64(30))) * _FIRST
    h = (h ^ (h >> np.uint64(27))) * _SECOND
    return h ^ (h >> np.uint64(31))


def bits(seed: int, *words: Word) -> UInt64[np.ndarray, "..."]:
    """64 random bits for every combination of words, which broadcast against each other.

    Args:
        seed: of the run.
        words: for example epoch, image indices, view, purpose, number of the draw.

    Raises:
        TypeError: a word is not an integer.
    """
    with np.errstate(over="ignore"):  # wrapping around is what the hash is made of
        h = _mix(_as_uint64(seed) + _GOLDEN)
        for word in words:
            h = _mix((h ^ _as_uint64(word)) + _GOLDEN)
    return np.asarray(h)


def uniform(seed: int, *words: Word) -> Float64[np.ndarray, "..."]:
    """Uniform numbers in [0, 1), multiples of 2^-53; arguments as `bits`."""
    return np.asarray((bits(seed, *words) >> np.uint64(11)) * 2.0**-53)


def permutation(seed: int, n: int, *words: int) -> Int64[np.ndarray, " n"]:
    """A random order of 0 .. n - 1: the argsort of n hashes.

    Args:
        seed: of the run.
        n: number of items.
        words: for example epoch, purpose.
    """
    keys = bits(seed, *words, np.arange(n))
    return np.argsort(keys, kind="stable").astype(np.int64)
