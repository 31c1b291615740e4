"""Raw pixels and PCA against plain loops, scikit-learn, and the numbers of real data sets."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn import decomposition

from erg.evaluate import baselines
from erg.evaluate.baselines import PCA, raw_pixels
from erg.evaluate.knn import knn_accuracy

DATA = Path(__file__).parents[3] / "shared" / "data"


def decaying(n: int, p: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.normal(size=(p, p)))[0]
    return (random.normal(size=(n, p)) * 0.8 ** np.arange(p) @ turn + 3).astype(np.float32)


def test_pixels_are_averages_of_their_area() -> None:
    images = np.random.default_rng(0).integers(256, size=(3, 12, 8, 3)).astype(np.uint8)
    small = raw_pixels(images, size=4).reshape(3, 4, 4, 3)
    for row in range(4):
        for column in range(4):
            area = images[:, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2].astype(np.float64)
            np.testing.assert_allclose(
                small[:, row, column], area.mean(axis=(1, 2)) / 255, atol=1e-6
            )


def test_small_images_stay_as_they_are() -> None:
    images = np.random.default_rng(0).integers(256, size=(5, 9, 6, 1)).astype(np.uint8)
    vectors = raw_pixels(images, size=32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, images.reshape(5, -1) / 255, atol=1e-6)
    with pytest.raises(ValueError, match=r"float64 and shape \(5, 9\)"):
        raw_pixels(np.zeros((5, 9)))


@pytest.mark.parametrize(("n", "p"), [(200, 30), (25, 60)])
def test_components_are_those_of_scikit_learn(n: int, p: int) -> None:
    train, test = decaying(n, p), decaying(50, p, seed=1)
    pca = PCA.fit(train, 8)
    other: Any = decomposition.PCA(8, svd_solver="full").fit(train.astype(np.float64))
    sign = np.sign((pca.components * other.components_).sum(axis=1))
    np.testing.assert_allclose(pca.components * sign[:, None], other.components_, atol=1e-4)
    projected = pca(test)
    assert projected.dtype == np.float32
    np.testing.assert_allclose(projected * sign, other.transform(test), atol=1e-3)
    rows = np.arange(8)
    assert (pca.components[rows, np.abs(pca.components).argmax(axis=1)] > 0).all()
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(8), atol=1e-5)


def test_the_randomised_way_finds_the_same_subspace(monkeypatch: pytest.MonkeyPatch) -> None:
    train = decaying(300, 40)
    exact = PCA.fit(train, 5)
    monkeypatch.setattr(baselines, "LARGEST_EXACT", 20)
    fast = PCA.fit(train, 5, seed=1)
    np.testing.assert_allclose(fast.components, exact.components, atol=1e-3)
    np.testing.assert_array_equal(fast.components, PCA.fit(train, 5, seed=1).components)


def test_blocks_and_single_precision_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    train = decaying(300, 20)
    whole = PCA.fit(train, 5)
    monkeypatch.setattr(baselines, "BLOCK", 37)
    np.testing.assert_allclose(PCA.fit(train, 5).components, whole.components, atol=1e-6)
    np.testing.assert_allclose(PCA.fit(train, 5)(train), whole(train), atol=1e-4)


def test_no_more_components_than_the_items_have() -> None:
    few = decaying(4, 30)
    pca = PCA.fit(few, 100)
    assert pca.components.shape == (4, 30)
    assert not pca.components[3].any()  # four items vary in three directions
    np.testing.assert_allclose(pca(few)[:, :3] @ pca.components[:3] + pca.mean, few, atol=1e-4)
    for shape in ((5, 3), (3, 5), (1, 4)):
        assert not PCA.fit(np.full(shape, 2.5), 2)(np.full(shape, 2.5)).any()


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="0 items"):
        PCA.fit(np.zeros((0, 3)), 2)
    with pytest.raises(ValueError, match="d = 0"):
        PCA.fit(np.zeros((4, 3)), 0)
    with pytest.raises(ValueError, match="NaN"):
        PCA.fit(np.array([[1.0, np.nan], [0.0, 1.0]]), 1)


def real(name: str, mode: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    path = DATA / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"needs the real images of ../shared/data/{path.name}")
    table = pq.read_table(path, columns=["image", "label"]).slice(0, n)
    files = [io.BytesIO(row) for row in table["image"].to_pylist()]
    images = [Image.open(file).convert(mode) for file in files]
    pixels = np.stack([np.asarray(image) for image in images])
    return pixels.reshape(*pixels.shape[:3], -1), table["label"].to_numpy()


def test_raw_pixels_of_mnist_are_a_strong_baseline() -> None:
    """The data's README says 94.5 % for plain 10-NN on the whole 10,000 and 10,000."""
    train, labels = real("mnist_train10k", "L", 10_000)
    test, test_labels = real("mnist_test", "L", 10_000)
    x, y = raw_pixels(train), raw_pixels(test)
    plain = knn_accuracy(x, labels, y, test_labels, k=10, temperature=math.inf).mean()
    assert plain == pytest.approx(0.945, abs=0.01)
    pca = PCA.fit(x, 64)
    assert knn_accuracy(pca(x), labels, pca(y), test_labels, k=10).mean() > 0.94


def test_raw_pixels_of_cifar_are_weak_and_pca_is_better() -> None:
    """The data's README says 30.7 % for plain 10-NN; chance is 10 %."""
    train, labels = real("cifar10_train", "RGB", 5000)
    test, test_labels = real("cifar10_test", "RGB", 1000)
    x, y = raw_pixels(train, size=16), raw_pixels(test, size=16)
    plain = knn_accuracy(x, labels, y, test_labels, k=10, temperature=math.inf).mean()
    assert 0.24 < plain < 0.38
    pca = PCA.fit(x, 128)
    better = knn_accuracy(pca(x), labels, pca(y), test_labels, k=10, temperature=math.inf).mean()
    assert plain < better < 0.5
