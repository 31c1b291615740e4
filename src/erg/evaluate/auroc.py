"""AUROC of energies: how well they tell what belongs together from what does not.

Letters in shapes: n matched pairs, m mismatched pairs.
"""

import numpy as np
from jaxtyping import Float, Int64

from erg.evaluate.intervals import LEVEL, Score


def auroc(matched: Float[np.ndarray, " n"], mismatched: Float[np.ndarray, " m"]) -> float:
    """Probability that a matched pair has the lower energy, ties counting one half.

    1 where every matched energy is below every mismatched one; 0.5 where they tell nothing. It is
    the Mann-Whitney statistic over n m, computed from ranks.

    Args:
        matched: energies of pairs that belong together.
        mismatched: energies of pairs that do not.

    Raises:
        ValueError: either is empty or holds NaN.
    """
    below, equal = _counts(matched, mismatched)
    wins = len(mismatched) - below - 0.5 * equal
    return float(wins.mean() / len(mismatched))


def auroc_score(
    matched: Float[np.ndarray, " n"],
    mismatched: Float[np.ndarray, " m"],
    *,
    items: int | None = None,
    seed: int = 0,
    repeats: int = 1000,
) -> Score:
    """`auroc` with its percentile bootstrap interval (95 %), both sets resampled on their own.

    With `items`, what is resampled are these, with all their pairs of both sets: pairs of the same
    views say nearly the same thing, and many of them are no more evidence than one.

    Args:
        matched: energies of pairs that belong together.
        mismatched: energies of pairs that do not.
        items: number of items that the pairs are of: pair j of either set is of item j % items.
        seed: of the resampling.
        repeats: number of resamples.

    Raises:
        ValueError: either is empty or holds NaN, or the pairs are not as many of every item.
    """
    value = auroc(matched, mismatched)
    n, m = len(matched), len(mismatched)
    if items is not None and (items < 1 or n % items or m % items):
        raise ValueError(
            f"{n} matched and {m} mismatched pairs are not as many of each of {items} items. Pass "
            "the number of items they are of."
        )
    levels, mismatched_level = np.unique(mismatched, return_inverse=True)
    below = np.searchsorted(levels, matched, side="left")  # levels lower than each matched one
    up_to = np.searchsorted(levels, matched, side="right")
    random = np.random.default_rng(seed)
    repeated = np.empty(repeats)
    for i in range(repeats):
        if items is None:
            theirs, mine = random.integers(m, size=m), random.integers(n, size=n)
        else:
            drawn = random.integers(items, size=items)
            theirs, mine = (_pairs_of(drawn, items, pairs) for pairs in (m, n))
        count = np.bincount(mismatched_level[theirs], minlength=len(levels))
        lower = np.concatenate([[0], np.cumsum(count)])  # mismatched in the first so many levels
        losses = 0.5 * (lower[below] + lower[up_to])  # [n]
        repeated[i] = 1 - losses[mine].mean() / m
    low, high = np.quantile(repeated, LEVEL)
    return Score(value, float(low), float(high))


def _pairs_of(
    drawn: Int64[np.ndarray, " items"], items: int, pairs: int
) -> Int64[np.ndarray, " pairs"]:
    return (np.arange(0, pairs, items)[:, None] + drawn).ravel()


def _counts(
    matched: Float[np.ndarray, " n"], mismatched: Float[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Per matched energy, how many mismatched ones are below it and how many equal it."""
    for name, energies in (("matched", matched), ("mismatched", mismatched)):
        if len(energies) == 0 or np.isnan(energies).any():
            raise ValueError(
                f"{len(energies)} {name} energies, {int(np.isnan(energies).sum())} of them NaN, "
                "cannot be ranked. Pass at least one, and numbers only."
            )
    ordered = np.sort(mismatched)
    below = np.searchsorted(ordered, matched, side="left")
    return below, np.searchsorted(ordered, matched, side="right") - below
