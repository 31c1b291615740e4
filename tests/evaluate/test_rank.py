"""Rank, spread, alignment and uniformity against closed forms and naive loops."""

import math

import numpy as np
import pytest

from erg.evaluate.rank import alignment, effective_rank, rankme, spread, uniformity


def orthonormal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, d)))[0]


def test_rankme_of_isotropic_features_is_their_dimension() -> None:
    assert rankme(5 * orthonormal(200, 16)) == pytest.approx(16, rel=1e-4)
    assert effective_rank(np.concatenate([np.eye(8), -np.eye(8)])) == pytest.approx(8, rel=1e-9)


def test_rankme_of_one_direction_is_one() -> None:
    one = np.outer(np.arange(1.0, 41), np.arange(1.0, 6))
    assert rankme(one) == pytest.approx(1, abs=2e-5)
    assert effective_rank(one) == pytest.approx(1, abs=1e-6)
    assert rankme(np.ones((30, 4), dtype=np.float32)) == pytest.approx(1, abs=2e-5)


def test_rankme_of_known_singular_values() -> None:
    sigma = np.array([4.0, 2.0, 1.0, 1.0])
    features = orthonormal(50, 4) * sigma @ orthonormal(4, 4, seed=1)
    p = [0.5, 0.25, 0.125, 0.125]
    wanted = math.exp(-sum(x * math.log(x) for x in p))  # of sigma, not of sigma squared
    assert rankme(features) == pytest.approx(wanted, rel=1e-5)
    assert rankme(features, epsilon=1e-12) == pytest.approx(wanted, rel=1e-9)
    assert rankme(7 * features) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_ranks_are_those_of_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(5).normal(size=shape) * np.logspace(0, -4, shape[1])
    for centre, value in ((0, rankme(features)), (features.mean(axis=0), effective_rank(features))):
        sigma = np.linalg.svd(features - centre, compute_uv=False)
        p = sigma[sigma > 1e-6 * sigma[0]] / sigma.sum()
        assert value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_rankme_keeps_the_mean_and_effective_rank_does_not() -> None:
    cross = np.concatenate([np.eye(6), -np.eye(6)])
    moved = cross + 100
    assert effective_rank(moved) == pytest.approx(effective_rank(cross), rel=1e-6)
    assert rankme(moved) < 2 < rankme(cross)


def test_rounding_has_no_rank() -> None:
    random = np.random.default_rng(0)
    point = np.tile(random.normal(size=32), (100, 1)).astype(np.float32)
    assert effective_rank(point) == 1.0
    trembling = (point * (1 + 1e-7 * random.normal(size=point.shape))).astype(np.float32)
    assert effective_rank(trembling) < 2
    assert effective_rank(np.zeros((10, 4))) == 1.0


def test_a_sample_stands_for_the_whole() -> None:
    features = np.random.default_rng(1).normal(size=(3000, 8)) * np.arange(1, 9)
    assert rankme(features, items=800) == pytest.approx(rankme(features), rel=0.03)
    assert rankme(features, items=800, seed=1) != rankme(features, items=800, seed=2)
    assert uniformity(features, items=800) == pytest.approx(uniformity(features), rel=0.03)


def test_spread_is_one_where_features_are_isotropic() -> None:
    cross = np.concatenate([np.eye(10), -np.eye(10)])
    assert spread(cross) == pytest.approx(1, rel=1e-6)
    gauss = np.random.default_rng(2).normal(size=(5000, 64))
    assert spread(gauss) == pytest.approx(1, rel=0.01)
    assert spread(9 * gauss) == pytest.approx(spread(gauss), rel=1e-5)
    assert spread(np.tile(gauss[0], (20, 1))) == pytest.approx(0, abs=1e-6)
    halves = np.array([[1.0, 0.0], [-1.0, 0.0]])  # std 1 and 0, mean 1/2, times sqrt(2)
    assert spread(halves) == pytest.approx(math.sqrt(2) / 2, rel=1e-6)


def test_alignment_is_the_mean_squared_distance() -> None:
    random = np.random.default_rng(3)
    x, y = random.normal(size=(2, 30, 5))
    pairs = zip(x, y, strict=True)
    wanted = np.mean(
        [np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2) for a, b in pairs]
    )
    assert alignment(x, y) == pytest.approx(wanted, rel=1e-5)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-10)
    assert alignment(x, -x) == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("n", [30, 1500])
def test_uniformity_is_that_of_a_naive_loop(n: int) -> None:
    x = np.random.default_rng(4).normal(size=(n, 5))
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    potentials = [np.exp(-2 * ((z[i] - z[i + 1 :]) ** 2).sum(axis=1)) for i in range(n - 1)]
    assert uniformity(x) == pytest.approx(np.log(np.concatenate(potentials).mean()), rel=1e-5)
    potentials = [np.exp(-0.5 * ((z[i] - z[i + 1 :]) ** 2).sum(axis=1)) for i in range(n - 1)]
    assert uniformity(x, t=0.5) == pytest.approx(
        np.log(np.concatenate(potentials).mean()), rel=1e-5
    )


def test_uniformity_of_points_that_say_it_all() -> None:
    assert uniformity(np.tile([[0.3, -2.0, 0.1]], (50, 1))) == pytest.approx(0, abs=1e-6)
    assert uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8, rel=1e-6)
    assert uniformity(np.eye(7)) == pytest.approx(-4, rel=1e-6)  # all at a distance of sqrt(2)


def test_what_has_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        rankme(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="two items"):
        uniformity(np.ones((1, 3)))
    with pytest.raises(ValueError, match="shapes"):
        alignment(np.ones((2, 3)), np.ones((3, 3)))
    bad = np.ones((4, 3))
    bad[1, 1] = np.nan
    for function in (rankme, effective_rank, spread, uniformity):
        with pytest.raises(ValueError, match="NaN"):
            function(bad)
