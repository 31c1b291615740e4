"""Neighbour panels against naive loops."""

import numpy as np
import pytest

from erg.explore.neighbours import diverse, panels


def vectors(n: int = 60, d: int = 5) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(n, d)) + 0.5).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)


def test_queries_are_each_the_farthest_from_those_before() -> None:
    z = unit(vectors())
    chosen = diverse(vectors(), 10)
    assert chosen[0] == (z @ z.mean(axis=0)).argmax()
    for i in range(1, 10):
        distance = [min(np.linalg.norm(z[j] - z[c]) for c in chosen[:i]) for j in range(60)]
        assert chosen[i] == np.argmax(distance)


def test_one_query_falls_in_every_group() -> None:
    labels = np.arange(80) % 8
    random = np.random.default_rng(1)
    x = np.eye(8)[labels] + 0.05 * random.normal(size=(80, 8))
    assert sorted(labels[diverse(x, 8)]) == list(range(8))


def test_panels_hold_the_nearest_of_all_others() -> None:
    x = vectors()
    z = unit(x)
    found = panels(x, queries=6, k=4)
    assert found.queries.shape == (6,)
    assert found.neighbours.shape == (6, 4)
    for query, rows, similarity in zip(*found, strict=True):
        others = [j for j in range(60) if j != query]
        wanted = sorted(others, key=lambda j: -(z[query] @ z[j]))[:4]
        assert rows.tolist() == wanted
        np.testing.assert_allclose(similarity, z[wanted] @ z[query], atol=1e-6)


def test_small_and_collapsed_sets_get_what_there_is() -> None:
    found = panels(vectors(3), queries=8, k=6)
    assert sorted(found.queries) == [0, 1, 2]
    assert found.neighbours.shape == (3, 2)
    for same in (np.ones((10, 4)), np.zeros((10, 4))):
        found = panels(same, queries=5, k=3)
        assert len(set(found.queries.tolist())) == 5
        assert all(q not in row for q, row in zip(found.queries, found.neighbours, strict=True))


def test_what_has_no_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1"):
        panels(vectors(1))
    with pytest.raises(ValueError, match="0 of 60"):
        diverse(vectors(), 0)
    bad = vectors()
    bad[2] = np.nan
    with pytest.raises(ValueError, match="row 2"):
        panels(bad)
