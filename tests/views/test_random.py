"""The hash behind every random number: frozen, uniform, independent in its words."""

import numpy as np
import pytest

from erg.views.random import Purpose, bits, permutation, uniform


def naive(seed: int, *words: int) -> int:
    """The same hash in plain Python integers."""
    h = 0
    for word in (seed, *words):
        h = ((h ^ (word % 2**64)) + 0x9E3779B97F4A7C15) % 2**64
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB % 2**64
        h ^= h >> 31
    return h


def test_values_are_frozen() -> None:
    # The first is the published first output of splitmix64 started at 0.
    assert int(bits(0)) == 0xE220A8397B1DCDAF
    assert int(bits(1)) == 0x910A2DEC89025CC1
    assert int(bits(0, 0)) == 0xA706DD2F4D197E6F
    assert int(bits(7, 3, 11, 1, 4)) == 0x3C93E7927CA29042
    assert float(uniform(0, 1, 2)) == 0.36693645258002827
    assert permutation(5, 8, 0).tolist() == [3, 5, 2, 4, 6, 0, 7, 1]


def test_purposes_are_frozen() -> None:
    names = ["ORDER", "CROP", "FLIP", "TURNS", "JITTER", "GREY", "BLUR", "SOLARISE", "NOISE",
             "ZEROED", "MASK", "WEIGHTS", "STEP", "CUTOUT", "TILES", "ARRANGEMENT",
             "BACKGROUND"]  # fmt: skip
    assert [(purpose.name, int(purpose)) for purpose in Purpose] == [
        (name, value) for value, name in enumerate(names)
    ]


def test_equals_plain_integers() -> None:
    for words in [(0,), (2**64 - 1, -1), (-5, 2**63, 3), (123, -(2**63), 7, 8, 9)]:
        assert int(bits(*words)) == naive(*words)


def test_words_broadcast() -> None:
    drawn = bits(3, np.arange(4)[:, None], 2, np.arange(-2, 3)[None])
    assert drawn.shape == (4, 5)
    assert drawn.dtype == np.uint64
    for i in range(4):
        for j in range(5):
            assert int(drawn[i, j]) == naive(3, i, 2, j - 2)


def test_words_are_integers() -> None:
    with pytest.raises(TypeError, match="float64"):
        bits(0, np.array([0.5]))


def test_uniform_is_uniform() -> None:
    drawn = np.sort(uniform(1, 0, np.arange(100_000), Purpose.CROP))
    assert drawn[0] >= 0
    assert drawn[-1] < 1
    distance = np.abs(drawn - np.arange(100_000) / 100_000).max()
    assert distance < 1.95 / np.sqrt(100_000)  # Kolmogorov and Smirnov, p = 0.001


@pytest.mark.parametrize("place", range(4))
def test_every_bit_is_fair_in_every_word(place: int) -> None:
    words: list[int | np.ndarray] = [1, 2, 3, 4]
    words[place] = np.arange(20_000)
    drawn = bits(9, *words)
    ones = (drawn[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(ones.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(20_000)


@pytest.mark.parametrize("place", range(5))
def test_words_are_independent(place: int) -> None:
    """Adjacent values of any word (the seed too) give pairs uniform in the square."""
    words: list[int | np.ndarray] = [1, 2, np.arange(20_000), 3, 4]
    other = list(words)
    other[place] = words[place] + 1
    if place == 0:
        first, second = uniform(1, *words[1:]), uniform(2, *words[1:])
    else:
        first, second = uniform(1, *words[1:]), uniform(1, *other[1:])
    counts = np.histogram2d(first, second, bins=8, range=[[0, 1], [0, 1]])[0]
    expected = 20_000 / 64
    assert ((counts - expected) ** 2 / expected).sum() < 103.4  # chi-square, 63, p = 0.001


def test_order_of_words_matters() -> None:
    assert int(bits(0, 1, 2)) != int(bits(0, 2, 1))
    assert int(bits(0, 1)) != int(bits(0, 1, 0))


def test_permutation() -> None:
    first = permutation(4, 1000, 0, Purpose.ORDER)
    assert first.dtype == np.int64
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert np.array_equal(first, permutation(4, 1000, 0, Purpose.ORDER))
    assert (first == permutation(4, 1000, 1, Purpose.ORDER)).mean() < 0.02
    assert (first == permutation(5, 1000, 0, Purpose.ORDER)).mean() < 0.02


def test_permutations_are_equally_likely() -> None:
    drawn = [tuple(permutation(0, 3, epoch).tolist()) for epoch in range(6000)]
    counts = np.unique(np.array(drawn), axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square, 5, p = 0.001
