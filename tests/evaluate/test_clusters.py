"""Clusters: known labellings, formulas written out, and scikit-learn's own k-means."""

import itertools
import math

import numpy as np
import pytest

from erg.evaluate import clusters
from erg.evaluate.clusters import agreement, cluster_scores, kmeans


def cones(n: int = 300, k: int = 5, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Directions with very different lengths: only the angle tells the class."""
    random = np.random.default_rng(0)
    labels = random.integers(k, size=n)
    vectors = np.eye(8)[labels] + noise * random.normal(size=(n, 8))
    return (vectors * random.uniform(0.01, 100, size=(n, 1))).astype(np.float32), labels


def entropy(labels: np.ndarray) -> float:
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return -sum(p * math.log(p) for p in shares)


def test_the_same_labels_under_other_names_agree() -> None:
    labels = np.array(["a", "b", "c", "a", "b", "c", "a"])
    found = np.array([7, 3, 5, 7, 3, 5, 7])
    score = agreement(found, labels)
    assert (score.nmi, score.ami, score.ari, score.acc) == pytest.approx((1, 1, 1, 1))
    assert score.k == 3


def test_independent_labels_do_not_agree() -> None:
    labels, found = np.repeat([0, 1], 200), np.tile([0, 1, 2, 3], 100)
    exact = agreement(found, labels)  # independent to the last item
    assert exact.nmi == pytest.approx(0, abs=1e-9)
    assert abs(exact.ari) < 0.01
    random = np.random.default_rng(0)
    score = agreement(random.integers(100, size=400), random.integers(10, size=400))
    assert abs(score.ami) < 0.05
    assert abs(score.ari) < 0.02
    assert score.nmi > 0.2  # why AMI is reported too


def test_scores_are_their_formulas() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(3, size=60)
    found = np.where(random.random(60) < 0.6, labels, random.integers(4, size=60))
    score = agreement(found, labels)
    joint = entropy(labels * 10 + found)
    mutual = entropy(labels) + entropy(found) - joint
    assert score.nmi == pytest.approx(mutual / (0.5 * (entropy(labels) + entropy(found))))
    best = max(
        sum(found[i] == names[labels[i]] for i in range(60))
        for names in itertools.permutations(range(4), 3)
    )
    assert score.acc == pytest.approx(best / 60)
    pairs = list(itertools.combinations(range(60), 2))
    together = np.array([(labels[i] == labels[j], found[i] == found[j]) for i, j in pairs])
    both, first, second = together.all(axis=1).sum(), *together.sum(axis=0)
    chance = first * second / len(pairs)
    assert score.ari == pytest.approx((both - chance) / (0.5 * (first + second) - chance))


def test_kmeans_finds_directions_whatever_their_length() -> None:
    vectors, labels = cones()
    score = cluster_scores(vectors, labels)
    assert score.acc > 0.99
    assert score.k == 5
    assert cluster_scores(vectors, labels, k=15).k == 15
    np.testing.assert_array_equal(kmeans(vectors, 5, seed=3), kmeans(vectors, 5, seed=3))


def test_kmeans_is_a_fixed_point_of_lloyds_step() -> None:
    vectors, _ = cones(noise=0.6)
    z = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = kmeans(vectors, 5)
    means = np.stack([z[found == c].mean(axis=0) for c in range(5)])
    again = ((z[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (again == found).mean() > 0.99


def test_mini_batches_find_the_same_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = cones()
    monkeypatch.setattr(clusters, "FULL_WORK", 0)
    assert cluster_scores(vectors, labels).acc > 0.99


@pytest.mark.parametrize("work", [0, 1e12])
def test_collapsed_features_get_fewer_clusters_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, work: float
) -> None:
    monkeypatch.setattr(clusters, "FULL_WORK", work)
    labels = np.arange(40) % 4
    score = cluster_scores(np.ones((40, 3), dtype=np.float32), labels)
    assert score.k == 1
    assert score.nmi == pytest.approx(0, abs=1e-9)
    assert score.acc == 0.25


def test_what_cannot_be_clustered_is_refused() -> None:
    vectors, labels = cones(20)
    for k in (0, 21):
        with pytest.raises(ValueError, match=f"1 to 20.*got {k}"):
            kmeans(vectors, k)
    with pytest.raises(ValueError, match="20 clustered items and 19 labels"):
        agreement(labels, labels[:19])
    vectors[5] = np.inf
    with pytest.raises(ValueError, match="row 5"):
        kmeans(vectors, 2)
