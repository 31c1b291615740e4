"""Binary codes against loops over bits; hash functions against what defines them."""

from typing import Any

import numpy as np
import pytest

from erg.explore import search
from erg.explore.search import Codes, Hash, distances, nearest_codes


def bits(n: int, k: int, seed: int = 0, share: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).random((n, k)) < share


def loop(a: np.ndarray, b: np.ndarray, by: str) -> float:
    shared = sum(bool(p and q) for p, q in zip(a, b, strict=True))
    either = sum(bool(p or q) for p, q in zip(a, b, strict=True))
    if by == "hamming":
        return sum(bool(p) != bool(q) for p, q in zip(a, b, strict=True))
    return -shared if by == "dot" else 0.0 if either == 0 else 1 - shared / either


@pytest.mark.parametrize("by", ["hamming", "dot", "jaccard"])
@pytest.mark.parametrize("k", [1, 64, 70, 130])
def test_distances_are_those_counted_bit_by_bit(k: int, by) -> None:
    bank, asked = bits(20, k), bits(7, k, seed=1)
    bank[3] = asked[2] = False  # codes without ones
    found = distances(Codes.pack(bank), Codes.pack(asked), by=by)
    wanted = [[loop(a, b, by) for b in bank] for a in asked]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_codes_take_a_bit_per_bit_up_to_whole_words() -> None:
    given = bits(50, 100)
    codes = Codes.pack(given)
    assert codes.words.shape == (50, 2)
    assert codes.bytes_per_item == 16
    assert codes.ones.tolist() == given.sum(axis=1).tolist()
    floats = np.where(given, 0.25, -1.0)
    assert np.array_equal(Codes.pack(floats).words, codes.words)


@pytest.mark.parametrize("by", ["hamming", "dot", "jaccard"])
@pytest.mark.parametrize("at_once", [100, 7])  # several blocks of queries, and of the bank
def test_nearest_codes_are_those_of_a_stable_sort(
    by, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "AT_ONCE", at_once)
    made: list[int] = []

    def seen(*given: Codes, **by: Any) -> np.ndarray:
        made.append(len(given[0]) * len(given[1]))
        return distances(*given, **by)

    monkeypatch.setattr(search, "distances", seen)
    bank, asked = Codes.pack(bits(40, 12)), Codes.pack(bits(9, 12, seed=1))
    found = nearest_codes(bank, asked, k=6, by=by)
    assert max(made) <= at_once
    every = distances(bank, asked, by=by)
    order = np.argsort(every, axis=1, kind="stable")[:, :6]
    assert np.array_equal(found.rows, order)
    np.testing.assert_allclose(found.distance, np.take_along_axis(every, order, 1), rtol=1e-6)


def test_random_hyperplanes_part_two_vectors_as_often_as_their_angle_says() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(30, 16)).astype(np.float32)
    made = Hash.random(x, 4096, seed=2)(x)
    found = distances(made, made) / 4096
    centred = x - x.mean(axis=0)
    z = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.arccos(np.clip(z @ z.T, -1, 1)) / np.pi, atol=0.04)


def test_pca_bits_are_signs_of_coordinates() -> None:
    x = (np.random.default_rng(0).normal(size=(60, 5)) * [5, 4, 3, 2, 1] + 7).astype(np.float32)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    codes = Hash.pca(x, 3)(x)
    given = np.unpackbits(codes.words.view(np.uint8), axis=1)[:, :3].astype(bool)
    for mine, theirs in zip(given.T, (u * s)[:, :3].T, strict=True):
        assert np.array_equal(mine, theirs > 0) or np.array_equal(mine, theirs < 0)


def correlated() -> np.ndarray:
    """Most of the variance along few directions, as embeddings have it."""
    random = np.random.default_rng(0)
    scale = 1 / np.arange(1, 33)
    return (random.normal(size=(500, 32)) * scale).astype(np.float32)


def error(made: Hash, x: np.ndarray) -> float:
    """||B - V R||^2 per item, with directions of the same length."""
    v = (x - made.mean) @ made.directions.T
    return float(np.square(np.sign(v) - v).mean())


def test_rotation_brings_coordinates_closer_to_their_signs_and_keeps_the_plane() -> None:
    x = correlated()
    plain, turned = Hash.pca(x, 16), Hash.rotated(x, 16)
    assert error(turned, x) < error(plain, x)
    np.testing.assert_allclose(turned.directions @ turned.directions.T, np.eye(16), atol=1e-5)
    np.testing.assert_allclose(
        turned.directions.T @ turned.directions, plain.directions.T @ plain.directions, atol=1e-5
    )
    # No rotation alone, of many, does as well.
    random = np.random.default_rng(1)
    for _ in range(20):
        q = np.linalg.qr(random.normal(size=(16, 16)))[0].astype(np.float32)
        assert error(turned, x) < error(Hash(plain.mean, q @ plain.directions), x)


def test_rotated_bits_keep_more_neighbours_than_signs_of_components() -> None:
    x = correlated()
    v = x - x.mean(axis=0)
    true = np.argsort(((v[:, None] - v) ** 2).sum(axis=2), axis=1)[:, 1:11]
    kept = []
    for make in (Hash.pca, Hash.rotated):
        codes = make(x, 16)(x)
        found = nearest_codes(codes, codes, k=11).rows
        kept.append(np.mean([len({*a} & {*b}) for a, b in zip(true, found, strict=True)]))
    assert kept[1] > kept[0]


def test_what_cannot_be_searched_is_refused() -> None:
    codes = Codes.pack(bits(5, 8))
    with pytest.raises(ValueError, match="8 bits and the queries of 9"):
        distances(codes, Codes.pack(bits(2, 9)))
    with pytest.raises(ValueError, match=r"1 to 5, the size of the bank \(got 6\)"):
        nearest_codes(codes, codes, k=6)
    with pytest.raises(ValueError, match="no 9 principal"):
        Hash.pca(np.ones((20, 8)), 9)
    with pytest.raises(ValueError, match="at least one bit"):
        Codes.pack(np.zeros((3, 0)))
