"""k-NN against naive loops and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from erg.evaluate import knn
from erg.evaluate.knn import Neighbours, knn_accuracy, leave_one_out, nearest, vote


def blobs(n: int, seed: int, d: int = 8, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes with the same centres for every seed."""
    centres = np.random.default_rng(99).normal(size=(classes, d))
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=n)
    return (centres[labels] + 1.2 * random.normal(size=(n, d))).astype(np.float32), labels


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def naive(
    train: np.ndarray, labels: np.ndarray, x: np.ndarray, k: int, temperature: float
) -> object:
    order = sorted(range(len(train)), key=lambda j: -cosine(x, train[j]))[:k]
    votes: dict[object, float] = {}
    for j in order:
        votes[labels[j]] = votes.get(labels[j], 0) + math.exp(cosine(x, train[j]) / temperature)
    return max(votes, key=lambda c: votes[c])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5), (60, 0.1)])
def test_votes_are_those_of_a_naive_loop(k: int, temperature: float) -> None:
    train, labels = blobs(60, 0)
    test, test_labels = blobs(40, 1)
    names = np.array(["d", "b", "a", "c"])
    wanted = [naive(train, names[labels], x, k, temperature) for x in test]
    found = vote(nearest(train, test, k=k), names[labels], temperature=temperature)
    assert found.tolist() == wanted
    correct = knn_accuracy(
        train, names[labels], test, names[test_labels], k=k, temperature=temperature
    )
    assert correct.dtype == np.bool_
    np.testing.assert_array_equal(correct, np.array(wanted) == names[test_labels])
    assert 0.3 < correct.mean() < 1


def test_equal_votes_are_those_of_scikit_learn() -> None:
    train, labels = blobs(300, 0)
    test, test_labels = blobs(200, 1)
    other = KNeighborsClassifier(9, metric="cosine").fit(train, labels).predict(test)
    found = knn_accuracy(train, labels, test, test_labels, k=9, temperature=math.inf)
    np.testing.assert_array_equal(found, other == test_labels)


def test_neighbours_are_sorted_and_exact() -> None:
    train, _ = blobs(70, 2)
    test, _ = blobs(9, 3)
    found = nearest(train, test, k=70)
    for i in range(9):
        similarity = np.array([cosine(test[i], y) for y in train])
        np.testing.assert_allclose(found.similarity[i], np.sort(similarity)[::-1], atol=2e-6)
        np.testing.assert_allclose(similarity[found.rows[i]], found.similarity[i], atol=2e-6)
        assert sorted(found.rows[i]) == list(range(70))
    assert np.abs(nearest(train, train, k=1).similarity).max() <= 1


@pytest.mark.parametrize("bank_block", [7, 30, 64])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, bank_block: int) -> None:
    train, _ = blobs(64, 4)
    test, _ = blobs(33, 5)
    groups = np.arange(64) % 20, np.arange(33) % 20
    whole = nearest(train, test, k=12)
    apart = nearest(train, test, k=12, bank_groups=groups[0], query_groups=groups[1])
    monkeypatch.setattr(knn, "BANK_BLOCK", bank_block)
    found = nearest(train, test, k=12, block=5)
    np.testing.assert_array_equal(found.rows, whole.rows)
    np.testing.assert_allclose(found.similarity, whole.similarity, atol=1e-6)
    found = nearest(train, test, k=12, block=5, bank_groups=groups[0], query_groups=groups[1])
    np.testing.assert_array_equal(found.rows, apart.rows)


def test_few_classes_make_no_larger_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    count, made = np.bincount, list[int]()

    def seen(cells: np.ndarray, *rest: np.ndarray, **further: int) -> np.ndarray:
        made.append(len(cells))
        return count(cells, *rest, **further)

    rows = np.zeros((60_000, 200), dtype=np.int64)
    rows[:, 0] = np.arange(60_000) % 2
    found = Neighbours(rows, np.ones(rows.shape, dtype=np.float32))
    monkeypatch.setattr(np, "bincount", seen)
    assert not vote(found, np.array([0, 1])).any()
    assert max(made) <= 1 << 22


def test_leave_one_out_is_the_loop_without_the_item() -> None:
    vectors, labels = blobs(50, 6)
    found = leave_one_out(vectors, labels, k=5)
    for i in range(50):
        rest = np.arange(50) != i
        assert found[i] == (naive(vectors[rest], labels[rest], vectors[i], 5, 0.07) == labels[i])


def test_groups_keep_duplicates_from_voting() -> None:
    vectors, labels = blobs(40, 7)
    doubled = np.concatenate([vectors, vectors])
    twice = np.concatenate([labels, labels])
    assert leave_one_out(doubled, twice, k=1).all()  # the copy gives every item away
    groups = np.array([f"image {i % 40}" for i in range(80)])
    honest = leave_one_out(doubled, twice, k=1, groups=groups)
    np.testing.assert_array_equal(honest[:40], leave_one_out(vectors, labels, k=1))
    found = nearest(doubled, doubled, k=78, bank_groups=groups, query_groups=groups)
    assert all(i % 40 not in found.rows[i] % 40 for i in range(80))
    with pytest.raises(ValueError, match="k = 79"):
        nearest(doubled, doubled, k=79, bank_groups=groups, query_groups=groups)


def test_fewer_voters_than_neighbours() -> None:
    train, labels = blobs(80, 8)
    test, _ = blobs(30, 9)
    many = nearest(train, test, k=40)
    np.testing.assert_array_equal(vote(many, labels, k=5), vote(nearest(train, test, k=5), labels))


def test_a_low_temperature_is_the_nearest_neighbour() -> None:
    train, labels = blobs(80, 10)
    found = nearest(train, blobs(30, 11)[0], k=40)
    np.testing.assert_array_equal(vote(found, labels, temperature=1e-5), labels[found.rows[:, 0]])


def test_what_does_not_fit_is_refused() -> None:
    train, labels = blobs(10, 0)
    for k in (0, 11):
        with pytest.raises(ValueError, match=f"1 to 10.*got {k}"):
            knn_accuracy(train, labels, train, labels, k=k)
    with pytest.raises(ValueError, match="fewer than k = 10"):
        leave_one_out(train, labels, k=10)
    with pytest.raises(ValueError, match="9 labels for 10"):
        leave_one_out(train, labels[:9], k=3)
    with pytest.raises(ValueError, match="8 features and the queries have 5"):
        nearest(train, train[:, :5], k=1)
    with pytest.raises(ValueError, match="Pass both"):
        nearest(train, train, k=1, bank_groups=labels)
    with pytest.raises(ValueError, match="temperature"):
        vote(nearest(train, train, k=2), labels, temperature=0)
    with pytest.raises(ValueError, match="1 to 2"):
        vote(nearest(train, train, k=2), labels, k=3)
    bad = train.copy()
    bad[4, 4] = np.nan
    with pytest.raises(ValueError, match="row 4"):
        nearest(bad, train, k=1)
