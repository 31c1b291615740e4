"""Precision against loops, scikit-learn and the mean over random orders of ties."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score as theirs

from erg.evaluate.precision import average_precision, average_precision_score, precision_at


def energies(ties: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    wanted, others = random.normal(0, 1, size=40), random.normal(0.7, 1.5, size=90)
    return (wanted.round(), others.round()) if ties else (wanted, others)


def loop(wanted: np.ndarray, others: np.ndarray) -> float:
    area = 0.0
    for t in sorted({*wanted, *others}):
        up_to = sum(w <= t for w in wanted)
        area += sum(w == t for w in wanted) * up_to / (up_to + sum(o <= t for o in others))
    return area / len(wanted)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_that_of_loops_and_of_scikit_learn(ties: bool) -> None:
    wanted, others = energies(ties)
    found = average_precision(wanted, others)
    assert found == pytest.approx(loop(wanted, others), abs=1e-12)
    truth = np.repeat([1, 0], [40, 90])
    assert found == pytest.approx(theirs(truth, -np.concatenate([wanted, others])), abs=1e-12)


def test_average_precision_at_its_ends() -> None:
    assert average_precision(np.arange(3), np.arange(3, 9)) == 1.0
    assert average_precision(np.ones(3), np.ones(9)) == pytest.approx(3 / 12)
    assert average_precision(np.array([9]), np.arange(9)) == pytest.approx(1 / 10)
    assert average_precision(np.arange(4), np.zeros(0)) == 1.0


@pytest.mark.parametrize("ties", [False, True])
def test_the_interval_is_that_of_a_plain_bootstrap(ties: bool) -> None:
    wanted, others = energies(ties)
    score = average_precision_score(wanted, others, seed=1)
    assert score.value == average_precision(wanted, others)
    random = np.random.default_rng(2)
    plain = [
        average_precision(random.choice(wanted, size=40), random.choice(others, size=90))
        for _ in range(1000)
    ]
    low, high = np.quantile(plain, [0.025, 0.975])
    assert score.low == pytest.approx(low, abs=0.15 * (high - low))
    assert score.high == pytest.approx(high, abs=0.15 * (high - low))
    assert score == average_precision_score(wanted, others, seed=1)


def test_precision_at_k_is_what_random_orders_of_ties_give_on_average() -> None:
    random = np.random.default_rng(3)
    distances = random.integers(0, 6, size=(5, 30))
    relevant = random.random((5, 30)) < 0.3
    for k in (1, 7, 30):
        orders = [np.lexsort((random.random((5, 30)), distances), axis=1) for _ in range(4000)]
        drawn = [np.take_along_axis(relevant, order[:, :k], 1).mean(axis=1) for order in orders]
        found = precision_at(distances, relevant, k=k)
        np.testing.assert_allclose(found, np.mean(drawn, axis=0), atol=0.03)


def test_precision_at_k_without_ties_counts_the_first_k() -> None:
    random = np.random.default_rng(4)
    distances, relevant = random.normal(size=(6, 20)), random.random((6, 20)) < 0.5
    for row, mine, found in zip(
        distances, relevant, precision_at(distances, relevant, k=8), strict=True
    ):
        assert found == pytest.approx(sum(mine[i] for i in np.argsort(row)[:8]) / 8)


def test_what_has_no_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="0 wanted items"):
        average_precision(np.zeros(0), np.ones(3))
    with pytest.raises(ValueError, match="2 wanted items and 1 energies"):
        average_precision_score(np.zeros(2), np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"1 to 4, the bank \(got 5\)"):
        precision_at(np.ones((2, 4)), np.ones((2, 4), dtype=bool), k=5)
