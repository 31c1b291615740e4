"""Precision of rankings: the area under precision and recall, and precision at the first k.

Letters in shapes: n items that are looked for, o others, q queries, i items of the bank.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from erg.evaluate.intervals import LEVEL, Score


def average_precision(wanted: Num[np.ndarray, " n"], others: Num[np.ndarray, " o"]) -> float:
    """sum_t (share of the wanted items at t) * (share of wanted among all up to t): AUPR.

    t runs over the distinct energies, the lowest first, so that equal ones are let in together.
    1 where all wanted items come first; about n / (n + o) where energies tell nothing. Not
    interpolated (Davis & Goadrich 2006).

    Args:
        wanted: energies of the items that are looked for, the positive class.
        others: energies of all other items.

    Raises:
        ValueError: nothing is looked for, or an energy is NaN.
    """
    first, second, levels = _levels(wanted, others)
    return _area(np.bincount(first, minlength=levels), np.bincount(second, minlength=levels))


def average_precision_score(
    wanted: Num[np.ndarray, " n"],
    others: Num[np.ndarray, " o"],
    *,
    seed: int = 0,
    repeats: int = 1000,
) -> Score:
    """`average_precision` with its percentile bootstrap interval (95 %), both sets resampled on
    their own.

    Args:
        wanted: energies of the items that are looked for, the positive class.
        others: energies of all other items.
        seed: of the resampling.
        repeats: number of resamples.

    Raises:
        ValueError: see `average_precision`.
    """
    first, second, levels = _levels(wanted, others)
    random = np.random.default_rng(seed)
    repeated = np.empty(repeats)
    for i in range(repeats):
        counts = (
            np.bincount(side[random.integers(len(side), size=len(side))], minlength=levels)
            for side in (first, second)
        )
        repeated[i] = _area(*counts)
    low, high = np.quantile(repeated, LEVEL)
    return Score(average_precision(wanted, others), float(low), float(high))


def precision_at(
    energies: Num[np.ndarray, "q i"], relevant: Bool[np.ndarray, "q i"], *, k: int
) -> Float64[np.ndarray, " q"]:
    """The share of relevant items among the k of lowest energy, per query.

    Where the k-th place is shared by items of equal energy, what is expected of a random order of
    these: distances between short codes are equal very often.

    Args:
        energies: distance of every item of the bank to every query.
        relevant: whether an item is what a query looks for.
        k: places counted.

    Raises:
        ValueError: k is not in 1 to i.
    """
    if not 1 <= k <= energies.shape[1]:
        raise ValueError(f"k should be in 1 to {energies.shape[1]}, the bank (got {k}).")
    last = np.partition(energies, k - 1, axis=1)[:, k - 1 : k]  # energy of the k-th place [q 1]
    inside, tied = energies < last, energies == last
    places = k - inside.sum(axis=1)  # left for those that share it
    share = (tied & relevant).sum(axis=1) / tied.sum(axis=1)
    return ((inside & relevant).sum(axis=1) + places * share) / k


def _levels(
    wanted: Num[np.ndarray, " n"], others: Num[np.ndarray, " o"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " o"], int]:
    """The rank of each energy among the distinct ones, and how many of these there are."""
    both = np.concatenate([wanted, others])
    if len(wanted) == 0 or np.isnan(both).any():
        raise ValueError(
            f"{len(wanted)} wanted items and {int(np.isnan(both).sum())} energies that are NaN "
            "have no precision. Pass at least one wanted item, and numbers only."
        )
    levels, place = np.unique(both, return_inverse=True)
    return place[: len(wanted)], place[len(wanted) :], len(levels)


def _area(wanted: Int64[np.ndarray, " levels"], others: Int64[np.ndarray, " levels"]) -> float:
    """From how many items of each kind there are at each energy, ascending."""
    found = np.cumsum(wanted)
    looked = np.maximum(found + np.cumsum(others), 1)
    return float((wanted * (found / looked)).sum() / found[-1])
