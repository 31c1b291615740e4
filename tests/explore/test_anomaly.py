"""Energies of what does not belong, each computed another way."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from erg.explore import anomaly
from erg.explore.anomaly import (
    Maps,
    by_forest,
    by_kmeans,
    by_mahalanobis,
    by_neighbours,
    by_pca,
    overlaid,
    places,
    windows,
)


def sets(n: int = 60, m: int = 25, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    mix = random.normal(size=(d, d)) * 1.5 ** -np.arange(d)[:, None]
    normal, asked = random.normal(size=(n, d)) @ mix + 2, random.normal(size=(m, d)) @ mix + 2
    asked[-5:] += 4 * random.normal(size=(5, d))
    return normal.astype(np.float32), asked.astype(np.float32)


def test_neighbours_are_the_mean_cosine_distance_to_the_nearest() -> None:
    normal, asked = sets()
    for y, found in zip(asked, by_neighbours(normal, k=3)(asked), strict=True):
        cosines = sorted(w @ y / np.linalg.norm(w) / np.linalg.norm(y) for w in normal)[-3:]
        assert found == pytest.approx(1 - np.mean(cosines), abs=1e-5)


def test_an_item_is_no_neighbour_of_itself_or_its_duplicates() -> None:
    normal, _ = sets(20)
    twice, names = np.concatenate([normal, normal]), np.tile(np.arange(20), 2)
    alone = by_neighbours(normal, k=2, groups=names[:20])(normal, names[:20])
    other = by_neighbours(twice, k=1, groups=names)(twice, names)
    nearest = by_neighbours(normal, k=1, groups=names[:20])(normal, names[:20])
    np.testing.assert_allclose(other[:20], nearest, atol=1e-6)
    assert (alone > 1e-4).all()
    few = by_neighbours(normal[:3], groups=names[:3])(normal[:3], names[:3])
    assert np.isfinite(few).all()


def test_items_that_are_all_the_same_are_no_neighbours_of_each_other() -> None:
    normal, asked = np.ones((4, 3)), np.array([[1.0, 1, 1], [1, 0, 0]])
    energy = by_neighbours(normal, groups=np.array(["a"] * 4))
    with pytest.raises(ValueError, match=r"all 4 normal items are the same.*--normal"):
        energy(asked, np.array(["a", "b"]))
    assert energy(asked[1:], np.array(["b"])) == pytest.approx(1 - 3**-0.5)


def test_mahalanobis_is_the_quadratic_form_of_the_shrunk_covariance() -> None:
    normal, asked = sets()
    inverse = np.linalg.inv(ledoit_wolf(normal)[0])
    gaps = asked - normal.mean(axis=0)
    wanted = [gap @ inverse @ gap for gap in gaps.astype(np.float64)]
    np.testing.assert_allclose(by_mahalanobis(normal)(asked), wanted, rtol=1e-3)


def test_what_never_varies_among_the_normal_is_odd_where_it_does() -> None:
    normal = np.zeros((1000, 256), dtype=np.float32)
    normal[:, 0] = np.random.default_rng(0).normal(size=1000)
    asked = np.zeros((2, 256), dtype=np.float32)
    asked[0, 0], asked[1, 1] = 2, 1
    usual, odd = by_mahalanobis(normal)(asked)
    assert usual < 10 < 1000 < odd


def test_kmeans_is_zero_on_its_prototypes_and_the_distance_elsewhere() -> None:
    points = np.array([[0, 0], [10, 0], [0, 10]], dtype=np.float32)
    normal = np.repeat(points, 4, axis=0)
    asked = np.array([[0, 0], [10, 3], [1, 9]], dtype=np.float32)
    np.testing.assert_allclose(by_kmeans(normal, k=3)(asked), [0, 9, 2], atol=1e-4)


def test_pca_is_the_length_of_what_the_plane_leaves() -> None:
    normal, asked = sets()
    mean = normal.mean(axis=0)
    axes = np.linalg.svd(normal - mean)[2][:3]
    rest = asked - mean - (asked - mean) @ axes.T @ axes
    found = by_pca(normal, directions=3)(asked)
    np.testing.assert_allclose(found, (rest**2).sum(axis=1), rtol=1e-3, atol=1e-4)
    assert (by_pca(normal[:4], directions=32)(normal[:4]) > 0).any()


@pytest.mark.parametrize("energy", [by_neighbours, by_mahalanobis, by_kmeans, by_pca, by_forest])
def test_what_was_moved_away_has_the_highest_energies(energy) -> None:
    random = np.random.default_rng(1)
    normal = random.normal(size=(200, 6)) * [3, 2, 1, 0.1, 0.1, 0.1] + 5
    asked = random.normal(size=(40, 6)) * [3, 2, 1, 0.1, 0.1, 0.1] + 5
    asked[:4] += np.array([-9, 9, -9, 9, -9, 9]) * random.uniform(1, 2, size=(4, 1))
    options = {"directions": 3} if energy in (by_pca, by_forest) else {}
    found = energy(normal.astype(np.float32), **options)(asked.astype(np.float32))
    assert found.shape == (40,)
    assert found[:4].min() > found[4:].max()


def test_there_are_energies_of_embeddings_and_of_pixels() -> None:
    normal, asked = sets()
    for energy in (*anomaly.OF_EMBEDDINGS.values(), *anomaly.OF_PIXELS.values()):
        assert np.isfinite(energy(normal)(asked)).all()


@pytest.mark.parametrize("energy", [by_neighbours, by_mahalanobis, by_kmeans, by_pca, by_forest])
def test_an_energy_that_was_fitted_takes_as_few_items_at_a_time_as_one_likes(energy) -> None:
    normal, asked = sets()
    fitted = energy(normal)
    pieces = [fitted(asked[start : start + 7]) for start in range(0, len(asked), 7)]
    np.testing.assert_allclose(np.concatenate(pieces), fitted(asked), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("h", "w", "side", "stride"), [(9, 7, 4, 3), (8, 8, 8, 1), (10, 5, 5, 5)])
def test_windows_cover_the_image_and_touch_its_edges(h: int, w: int, side: int, stride: int):
    at = places(h, w, side, stride)
    seen = np.zeros((h, w), dtype=int)
    for y, x in at:
        assert 0 <= y <= h - side
        assert 0 <= x <= w - side
        seen[y : y + side, x : x + side] += 1
    assert (seen > 0).all()
    assert len({tuple(place) for place in at}) == len(at)
    image = np.random.default_rng(0).integers(0, 256, size=(h, w, 3), dtype=np.uint8)
    for piece, (y, x) in zip(windows(image, at, side), at, strict=True):
        assert np.array_equal(piece, image[y : y + side, x : x + side])


def test_a_pixel_has_the_mean_energy_of_its_windows() -> None:
    at = places(6, 7, 3, 2)
    energies = np.random.default_rng(0).normal(size=len(at))
    found = overlaid(energies, at, 3, (6, 7))
    for i in range(6):
        for j in range(7):
            over = [
                e
                for e, (y, x) in zip(energies, at, strict=True)
                if y <= i < y + 3 and x <= j < x + 3
            ]
            assert found[i, j] == pytest.approx(np.mean(over), abs=1e-6)


def test_maps_are_made_when_they_are_asked_for() -> None:
    shapes = [(6, 7), (4, 4)]
    where = [places(*shape, 3, 2) for shape in shapes]
    energies = [np.random.default_rng(len(at)).normal(size=len(at)) for at in where]
    maps = Maps(energies, where, 3, shapes)
    assert len(maps) == len(list(maps)) == 2
    for i, found in enumerate(maps):
        assert np.array_equal(found, overlaid(energies[i], where[i], 3, shapes[i]))
        assert np.array_equal(found, maps[i])


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="9 pixels, 2 apart, do not cover an image of 8 x 20"):
        places(8, 20, 9, 2)
    with pytest.raises(ValueError, match="stride <= side"):
        places(20, 20, 4, 5)
