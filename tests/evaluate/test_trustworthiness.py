"""Trustworthiness and continuity against loops over ranks."""

import numpy as np
import pytest

from erg.evaluate.trustworthiness import faithful


def ranks(x: np.ndarray) -> list[list[int]]:
    """rank[i][j]: j is the so-manieth nearest of i, counted from 1."""
    found = []
    for i in range(len(x)):
        order = sorted(
            (j for j in range(len(x)) if j != i), key=lambda j: ((x[i] - x[j]) ** 2).sum()
        )
        found.append([0 if j == i else order.index(j) + 1 for j in range(len(x))])
    return found


def trust(true: list[list[int]], shown: list[list[int]], k: int) -> float:
    n = len(true)
    penalty = 0
    for i in range(n):
        for j in range(n):
            if i != j and shown[i][j] <= k < true[i][j]:
                penalty += true[i][j] - k
    return 1 - 2 * penalty / (n * k * (2 * n - 3 * k - 1))


def points(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 6))
    return x, x[:, :2] + 0.3 * random.normal(size=(n, 2))


@pytest.mark.parametrize("k", [1, 5, 12])
def test_values_are_those_of_loops_over_ranks(k: int) -> None:
    x, xy = points()
    found = faithful(x, xy, k=k)
    true, shown = ranks(x), ranks(xy)
    assert found.trustworthiness == pytest.approx(trust(true, shown, k), abs=1e-12)
    assert found.continuity == pytest.approx(trust(shown, true, k), abs=1e-12)
    apart = [np.linalg.norm(x[i] - x[j]) for i in range(40) for j in range(i)]
    drawn = [np.linalg.norm(xy[i] - xy[j]) for i in range(40) for j in range(i)]
    places = [np.argsort(np.argsort(each)) for each in (apart, drawn)]
    assert found.shepard == pytest.approx(np.corrcoef(places)[0, 1], abs=1e-9)
    assert found.k == k


def test_a_turned_and_scaled_copy_is_perfectly_true() -> None:
    _, xy = points()
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    found = faithful(xy, 5 * xy @ turn + 3)
    assert (found.trustworthiness, found.continuity) == (1.0, 1.0)
    assert found.shepard == pytest.approx(1.0)


def test_a_torn_map_is_trustworthy_and_not_continuous_a_folded_one_the_reverse() -> None:
    line = np.linspace(0, 1, 60)[:, None]
    torn = np.where(line > 0.5, line + 10, line)[np.r_[0:60]] * [1.0, 0.0]
    torn[15:45] += [0, 50]
    folded = np.minimum(line, 1 - line) * [1.0, 0.0]
    a, b = faithful(line, torn, k=5), faithful(line, folded, k=5)
    assert a.trustworthiness > b.trustworthiness
    assert b.continuity > b.trustworthiness
    assert b.trustworthiness < 0.8


def test_what_cannot_be_judged_is_refused() -> None:
    x, xy = points()
    with pytest.raises(ValueError, match="39 points for 40 items"):
        faithful(x, xy[1:])
    with pytest.raises(ValueError, match="by 20 neighbours"):
        faithful(x, xy, k=20)
