"""Bootstrap intervals: how far a score would move with other test items.

Letters in shapes: n test items.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num

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
    values: Bool[np.ndarray, " n"] | Num[np.ndarray, " n"], *, seed: int = 0, repeats: int = 1000
) -> Score:
    """Mean of the items with its percentile bootstrap interval (95 %).

    Says how the score varies with the test items, not with the training seed. Where all items
    are equal (every answer right) the interval has no width: there is nothing to resample.

    Args:
        values: correct or not, or a score, per test item.
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
    means = _resampled_means(values, np.random.default_rng(seed), repeats)
    low, high = np.quantile(means, LEVEL)
    return Score(float(values.mean()), float(low), float(high))


def difference(
    first: Bool[np.ndarray, " n"] | Num[np.ndarray, " n"],
    second: Bool[np.ndarray, " n"] | Num[np.ndarray, " n"],
    *,
    seed: int = 0,
    repeats: int = 1000,
) -> Score:
    """Mean of first - second over the same items, with its paired bootstrap interval (95 %).

    First is better than second, beyond the luck of these test items, where `low > 0`.

    Args:
        first: correct or not, or a score, per test item.
        second: the other's, of the same items in the same order.
        seed: of the resampling.
        repeats: number of resamples.

    Raises:
        ValueError: the two have different numbers of items.
    """
    if len(first) != len(second):
        raise ValueError(
            f"a paired difference needs the same items (got {len(first)} and {len(second)}). "
            "Score both on one test set."
        )
    paired = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap(paired, seed=seed, repeats=repeats)


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
