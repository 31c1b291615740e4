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
    seed: int = 0,
    repeats: int = 1000,
) -> Score:
    """`auroc` with its percentile bootstrap interval (95 %), both sets resampled on their own.

    Args:
        matched: energies of pairs that belong together.
        mismatched: energies of pairs that do not.
        seed: of the resampling.
        repeats: number of resamples.

    Raises:
        ValueError: either is empty or holds NaN.
    """
    value = auroc(matched, mismatched)
    n, m = len(matched), len(mismatched)
    levels, mismatched_level = np.unique(mismatched, return_inverse=True)
    below = np.searchsorted(levels, matched, side="left")  # levels lower than each matched one
    up_to = np.searchsorted(levels, matched, side="right")
    random = np.random.default_rng(seed)
    repeated = np.empty(repeats)
    for i in range(repeats):
        drawn = mismatched_level[random.integers(m, size=m)]
        count = np.bincount(drawn, minlength=len(levels))
        lower = np.concatenate([[0], np.cumsum(count)])  # mismatched in the first so many levels
        losses = 0.5 * (lower[below] + lower[up_to])  # [n]
        repeated[i] = 1 - losses[random.integers(n, size=n)].mean() / m
    low, high = np.quantile(repeated, LEVEL)
    return Score(value, float(low), float(high))


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
