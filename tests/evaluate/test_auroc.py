"""AUROC against counting all pairs, the rank sum and scikit-learn."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from erg.evaluate.auroc import auroc, auroc_score


def count(matched: np.ndarray, mismatched: np.ndarray) -> float:
    wins = 0.0
    for a in matched:
        for b in mismatched:
            wins += 1.0 if a < b else 0.5 if a == b else 0.0
    return wins / (len(matched) * len(mismatched))


def energies(ties: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    matched, mismatched = random.normal(0, 1, size=70), random.normal(0.8, 1.5, size=45)
    return (matched.round(), mismatched.round()) if ties else (matched, mismatched)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_the_share_of_pairs_in_order(ties: bool) -> None:
    matched, mismatched = energies(ties)
    value = auroc(matched, mismatched)
    assert value == pytest.approx(count(matched, mismatched), abs=1e-12)
    # The rank sum of the mismatched energies, and the textbook ROC with them as positives.
    statistic = mannwhitneyu(mismatched, matched).statistic
    assert value == pytest.approx(statistic / (70 * 45), abs=1e-12)
    truth = np.repeat([0, 1], [70, 45])
    other = roc_auc_score(truth, np.concatenate([matched, mismatched]))
    assert value == pytest.approx(other, abs=1e-12)
    assert auroc(mismatched, matched) == pytest.approx(1 - value, abs=1e-12)


def test_one_where_every_matched_energy_is_lower() -> None:
    assert auroc(np.array([0.0, 1.0]), np.array([1.5, 2.0, np.inf])) == 1.0
    assert auroc(np.array([3.0, 4.0]), np.array([1.5, 2.0])) == 0.0
    assert auroc(np.ones(4), np.ones(3)) == 0.5


@pytest.mark.parametrize("ties", [False, True])
def test_the_interval_is_that_of_a_plain_bootstrap(ties: bool) -> None:
    matched, mismatched = energies(ties)
    score = auroc_score(matched, mismatched, seed=1, repeats=3000)
    assert score.value == auroc(matched, mismatched)
    random = np.random.default_rng(2)
    plain = [
        auroc(random.choice(matched, size=70), random.choice(mismatched, size=45))
        for _ in range(3000)
    ]
    low, high = np.quantile(plain, [0.025, 0.975])
    assert score.low == pytest.approx(low, abs=0.08 * (high - low))
    assert score.high == pytest.approx(high, abs=0.08 * (high - low))


def test_the_interval_is_the_analytic_one_where_energies_tell_nothing() -> None:
    random = np.random.default_rng(3)
    n = 400
    matched, mismatched = random.normal(size=(2, n))
    score = auroc_score(matched, mismatched, seed=5)
    half = 1.96 * np.sqrt((2 * n + 1) / (12 * n * n))  # Mann & Whitney 1947
    assert score.high - score.low == pytest.approx(2 * half, rel=0.15)
    assert score == auroc_score(matched, mismatched, seed=5)
    assert score != auroc_score(matched, mismatched, seed=6)


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="0 matched"):
        auroc(np.zeros(0), np.ones(3))
    with pytest.raises(ValueError, match="3 mismatched energies, 1 of them NaN"):
        auroc_score(np.zeros(2), np.array([1.0, np.nan, 2.0]))


def test_many_pairs_of_the_same_items_are_no_evidence() -> None:
    random = np.random.default_rng(4)
    items = 50
    own = random.normal(size=items)  # what all pairs of an item share
    matched = (own + 0.1 * random.normal(size=(6, items))).ravel()
    mismatched = (own + 0.7 + 0.1 * random.normal(size=(2, items))).ravel()
    found = auroc_score(matched, mismatched, items=items, repeats=4000)
    assert found.value == auroc(matched, mismatched)
    plain = []
    for _ in range(4000):
        drawn = random.integers(items, size=items)
        mine = np.concatenate([matched.reshape(6, items)[:, i] for i in drawn])
        theirs = np.concatenate([mismatched.reshape(2, items)[:, i] for i in drawn])
        plain.append(auroc(mine, theirs))
    low, high = np.quantile(plain, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.08 * (high - low))
    assert found.high == pytest.approx(high, abs=0.08 * (high - low))
    # The same pairs over and over: the interval stays what it is.
    again = auroc_score(np.tile(matched, 5), np.tile(mismatched, 5), items=items, repeats=4000)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=1e-9)
    with pytest.raises(ValueError, match="300 matched and 100 mismatched pairs"):
        auroc_score(matched, mismatched, items=7)
