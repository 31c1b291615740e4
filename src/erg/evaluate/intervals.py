"""Bootstrap intervals: how far a score would move with other test items.

Letters in shapes: n test items.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, Num, Shaped
from scipy.stats import binomtest

LEVEL = (0.025, 0.975)
"""The two quantiles of a 95 % interval."""


@dataclass(frozen=True)
class Score:
    """A number and its 95 % interval.

    Args:
        value: the score on the items at hand.
        low: lower end of the interval, in the unit of the score.
        high: upper end.
    """

    value: float
    low: float
    high: float


def bootstrap(
    values: Bool[np.ndarray, " n"] | Num[np.ndarray, " n"],
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
    seed: int = 0,
    repeats: int = 1000,
) -> Score:
    """Mean of the items with its percentile bootstrap interval (95 %).

    Says how the score varies with the test items, not with the training seed. Where all items
    are equal (every answer right) the interval has no width: there is nothing to resample.

    Args:
        values: correct or not, or a score, per test item.
        groups: items that say the same thing (exact duplicates) share a group and are resampled
            together; by default every item is its own group.
        seed: of the resampling.
        repeats: number of resamples.

    Raises:
        ValueError: there is no item, or a value is NaN or infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a score needs at least one test item (got none).")
    if not np.isfinite(values).all():
        raise ValueError(
            "a test item's score is NaN or infinite. Score every item or leave it out."
        )
    random = np.random.default_rng(seed)
    code = np.arange(len(values)) if groups is None else _codes(groups, len(values))
    if code.max() + 1 == len(values):
        means = _resampled_means(values, random, repeats)
    else:
        means = _resampled_groups(values, code, random, repeats)
    low, high = np.quantile(means, LEVEL)
    return Score(float(values.mean()), float(low), float(high))


def difference(
    first: Bool[np.ndarray, " n"] | Num[np.ndarray, " n"],
    second: Bool[np.ndarray, " n"] | Num[np.ndarray, " n"],
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
    seed: int = 0,
    repeats: int = 1000,
) -> Score:
    """Mean of first - second over the same items, with its paired bootstrap interval (95 %).

    First is better than second, beyond the luck of these test items, where `low > 0`; of few items
    ask `clear` as well.

    Args:
        first: correct or not, or a score, per test item.
        second: the other's, of the same items in the same order.
        groups: see `bootstrap`.
        seed: of the resampling.
        repeats: number of resamples.

    Raises:
        ValueError: the two have different numbers of items.
    """
    return bootstrap(_paired(first, second), groups=groups, seed=seed, repeats=repeats)


def clear(
    gap: Score,
    first: Bool[np.ndarray, " n"] | Num[np.ndarray, " n"],
    second: Bool[np.ndarray, " n"] | Num[np.ndarray, " n"],
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> bool:
    """Whether first is better beyond the luck of these items: `gap.low > 0`, and by `sign_test`,
    with more items (or groups) on its side.

    The bootstrap alone is too sure of few items: of four, all better, every resample is better,
    and yet a coin falls so four times in a row once in sixteen.

    Args:
        gap: their `difference`.
        first: see `difference`.
        second: see `difference`.
        groups: see `bootstrap`.
    """
    better, worse = _signs(first, second, groups)
    return gap.low > 0 and better > worse and sign_test(first, second, groups=groups) < 0.05


def sign_test(
    first: Bool[np.ndarray, " n"] | Num[np.ndarray, " n"],
    second: Bool[np.ndarray, " n"] | Num[np.ndarray, " n"],
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> float:
    """How often a fair coin for every item that differs is as one-sided as these (exact).

    For items that are right or wrong this is McNemar's test.

    Args:
        first: see `difference`.
        second: see `difference`.
        groups: see `bootstrap`; a group counts once, by its sum.

    Raises:
        ValueError: the two have different numbers of items.
    """
    better, worse = _signs(first, second, groups)
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _signs(first: np.ndarray, second: np.ndarray, groups: np.ndarray | None) -> tuple[int, int]:
    """How many items, or groups by their sums, are better and how many are worse."""
    paired = _paired(first, second)
    if groups is not None:
        paired = np.bincount(_codes(groups, len(paired)), paired)
    return int((paired > 0).sum()), int((paired < 0).sum())


def _paired(first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, " n"]:
    if len(first) != len(second):
        raise ValueError(
            f"a paired difference needs the same items (got {len(first)} and {len(second)}). "
            "Score both on one test set."
        )
    return np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)


def _codes(groups: Shaped[np.ndarray, " n"], n: int) -> Int64[np.ndarray, " n"]:
    if len(groups) != n:
        raise ValueError(f"there are {len(groups)} groups for {n} items. Pass one per item.")
    return np.unique(groups, return_inverse=True)[1]


def _resampled_groups(
    values: Float[np.ndarray, " n"],
    code: Int64[np.ndarray, " n"],
    random: np.random.Generator,
    repeats: int,
) -> Float[np.ndarray, " repeats"]:
    """Means over the items of as many groups as there are, drawn with replacement."""
    total, size = np.bincount(code, values), np.bincount(code)
    means = np.empty(repeats)
    for i in range(repeats):
        drawn = random.integers(len(size), size=len(size))
        means[i] = total[drawn].sum() / size[drawn].sum()
    return means


def _resampled_means(
    values: Float[np.ndarray, " n"], random: np.random.Generator, repeats: int
) -> Float[np.ndarray, " repeats"]:
    n = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= 16:
        # A resample is known by how often it holds each value: same law, n times fewer draws.
        return random.multinomial(n, counts / n, size=repeats) @ distinct / n
    block = max(1, 2**22 // n)  # bounds the drawn indices to 32 MB
    means = [
        values[random.integers(n, size=(min(block, repeats - start), n))].mean(axis=1)
        for start in range(0, repeats, block)
    ]
    return np.concatenate(means)
