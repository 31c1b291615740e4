"""Maps: deterministic, true to neighbourhoods, calm about degenerate sets."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from erg.explore import project as module
from erg.explore.project import project, projections


def groups(n: int = 120, d: int = 20) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.arange(n) % 4
    return (6 * np.eye(d)[labels] + random.normal(size=(n, d))).astype(np.float32), labels


def test_a_map_keeps_groups_together() -> None:
    vectors, labels = groups()
    xy, name = project(vectors)
    assert name == "t-SNE"
    assert xy.shape == (120, 2)
    assert xy.dtype == np.float32
    distance = ((xy[:, None] - xy) ** 2).sum(axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()
    assert trustworthiness(vectors, xy, n_neighbors=10) > 0.85


def test_the_same_seed_gives_the_same_map() -> None:
    vectors, _ = groups(90, 60)
    first, second = project(vectors, seed=3), project(vectors, seed=3)
    np.testing.assert_array_equal(first.xy, second.xy)


def test_the_scale_of_the_vectors_does_not_matter() -> None:
    vectors, _ = groups(60)
    wanted = project(vectors).xy
    for scale in (2.0**-75, 2.0**50):
        np.testing.assert_allclose(project(scale * vectors).xy, wanted, rtol=0.05, atol=0.5)


def test_large_sets_are_shown_by_pca(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = groups()
    monkeypatch.setattr(module, "LARGEST_TSNE", 100)
    xy, name = project(vectors)
    assert name == "PCA"
    centred = (vectors - vectors.mean(axis=0)).astype(np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    wanted = u[:, :2] * s[:2]
    sign = np.sign((wanted * xy).sum(axis=0))
    np.testing.assert_allclose(xy * sign, wanted, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 10, 31])
def test_sets_of_any_size_get_a_map(n: int) -> None:
    xy, name = project(groups(n)[0])
    assert xy.shape == (n, 2)
    assert np.isfinite(xy).all()
    assert name == ("PCA" if n < 5 else "t-SNE")


@pytest.mark.parametrize("value", [0.0, 1.0, -3.3e5])
def test_one_point_stays_one_point(value: float) -> None:
    for d in (1, 7):
        xy, name = project(np.full((40, d), value, dtype=np.float32))
        assert name == "PCA"
        assert not xy.any()


def test_points_on_a_line_stay_on_it() -> None:
    line = np.outer(np.arange(30), [1.0, 2.0, -1.0]).astype(np.float32)
    for vectors in (line, line[:, :1]):
        xy, name = project(vectors)
        assert name == "PCA"
        assert not xy[:, 1].any()
        steps = np.diff(xy[:, 0])
        np.testing.assert_allclose(steps, steps[0], rtol=1e-3)


def test_many_copies_of_few_points_get_a_map() -> None:
    xy, name = project(np.repeat(np.eye(3, dtype=np.float32), 20, axis=0))
    assert name == "t-SNE"
    assert np.isfinite(xy).all()


def test_two_dimensions_are_enough() -> None:
    xy, name = project(np.random.default_rng(0).normal(size=(50, 2)))
    assert name == "t-SNE"
    assert np.isfinite(xy).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    vectors, _ = groups(20)
    vectors[3, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        project(vectors)
    with pytest.raises(ValueError, match="0 items"):
        project(np.zeros((0, 4)))


def stress(vectors: np.ndarray, xy: np.ndarray) -> float:
    """Sum of squared differences of distances in truth and on the map."""
    true, drawn = (np.linalg.norm(x[:, None] - x, axis=2) for x in (vectors, xy))
    return float(((true - drawn) ** 2).sum())


def test_three_maps_of_the_same_items() -> None:
    vectors, _ = groups(80)
    made = {each.name: each.xy for each in projections(vectors)}
    assert list(made) == ["PCA", "t-SNE", "MDS"]
    np.testing.assert_array_equal(made["t-SNE"], project(vectors).xy)
    assert stress(vectors, made["MDS"]) < 0.9 * stress(vectors, made["PCA"])
    near = [trustworthiness(vectors, made[name], n_neighbors=10) for name in ("t-SNE", "PCA")]
    assert near[0] > near[1]


def test_mds_keeps_distances_that_fit_in_a_plane() -> None:
    random = np.random.default_rng(0)
    axes = np.linalg.qr(random.normal(size=(9, 2)))[0].T
    vectors = (7 * random.normal(size=(40, 2)) @ axes + 3).astype(np.float32)
    xy = projections(vectors)[2].xy
    true, drawn = (np.linalg.norm(x[:, None] - x, axis=2) for x in (vectors, xy))
    np.testing.assert_allclose(drawn, true, atol=1e-2 * true.max())


def test_what_has_no_maps_side_by_side_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="one direction"):
        projections(np.ones((30, 4), dtype=np.float32))
    monkeypatch.setattr(module, "LARGEST_TSNE", 20)
    with pytest.raises(ValueError, match="30 items are too many for MDS"):
        projections(groups(30)[0])
