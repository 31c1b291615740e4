"""Recall@1 against a naive loop, and what collapse does to it."""

import numpy as np
import pytest

from erg.evaluate.retrieval import recall_at_1


def versions(n: int = 40, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    content = random.normal(size=(n, 6))
    first, second = (content + noise * random.normal(size=(2, n, 6))).astype(np.float32)
    return first, second


def naive(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> list[bool]:
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    return [
        all(
            cosine(first[i], second[i]) > cosine(first[i], second[j])
            for j in range(len(first))
            if groups[j] != groups[i]
        )
        for i in range(len(first))
    ]


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_recall_is_that_of_a_naive_loop(block: int) -> None:
    first, second = versions()
    found = recall_at_1(first, second, block=block)
    assert found.tolist() == naive(first, second, np.arange(40))
    assert 0.2 < found.mean() < 0.95
    groups = np.arange(40) // 4
    grouped = recall_at_1(first, second, groups=groups, block=block)
    assert grouped.tolist() == naive(first, second, groups)
    assert grouped.sum() > found.sum()


def test_the_same_version_finds_itself_unless_it_has_a_duplicate() -> None:
    first, _ = versions()
    assert recall_at_1(first, first).all()
    doubled = np.concatenate([first, first])
    assert not recall_at_1(doubled, doubled).any()  # a tie is no find
    names = np.array([f"hash {i % 40}" for i in range(80)])
    assert recall_at_1(doubled, doubled, groups=names).all()


def test_an_encoder_that_maps_everything_to_one_point_finds_nothing() -> None:
    point = np.tile(np.array([0.3, -0.7, 0.2], dtype=np.float32), (50, 1))
    assert recall_at_1(point, point).sum() <= 1
    assert not recall_at_1(np.zeros((50, 3)), np.zeros((50, 3))).any()


def test_what_does_not_fit_is_refused() -> None:
    first, second = versions()
    with pytest.raises(ValueError, match="shapes"):
        recall_at_1(first, second[:, :4])
    with pytest.raises(ValueError, match="more items"):
        recall_at_1(first[:1], second[:1])
    second[3] = np.nan
    with pytest.raises(ValueError, match="row 3"):
        recall_at_1(first, second)
