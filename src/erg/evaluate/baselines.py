"""What an encoder has to beat: raw pixels and their principal components.

Letters in shapes: n items, h w pixels, p raw features, d components.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from scipy.linalg import eigh
from sklearn.utils.extmath import randomized_svd

LARGEST_EXACT = 4096
"""Side of the largest matrix whose eigenvectors are computed exactly (a minute on two cores)."""

BLOCK = 4096
"""Rows worked on at once."""


def raw_pixels(
    images: UInt8[np.ndarray, "n h w c"], *, size: int = 32
) -> Float32[np.ndarray, "n p"]:
    """Images as vectors in [0, 1], averaged down to at most size x size pixels.

    Args:
        images: of one size.
        size: largest height and width kept [pixels]; smaller images stay as they are.

    Raises:
        ValueError: the images are not uint8 [n h w c].
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"images have type {images.dtype} and shape {images.shape}. Pass uint8 [n h w c]."
        )
    n, height, width, channels = images.shape
    height, width = min(height, size), min(width, size)
    vectors = np.empty((n, height * width * channels), dtype=np.float32)
    for start in range(0, n, BLOCK):
        block = images[start : start + BLOCK].transpose(0, 3, 1, 2).astype(np.float32)
        small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(block), (height, width))
        rows = small.permute(0, 2, 3, 1).reshape(len(block), -1).numpy()
        vectors[start : start + BLOCK] = rows / 255
    return vectors


@dataclass(frozen=True, eq=False)
class PCA:
    """Principal components, the best linear autoencoder.

    Args:
        mean: of the items it was fitted on.
        components: orthonormal rows, by falling variance; the sign makes each one's largest entry
            positive. Rows of zeros where the items vary in fewer directions.
    """

    mean: Float32[np.ndarray, " p"]
    components: Float32[np.ndarray, "d p"]

    @classmethod
    def fit(cls, vectors: Float[np.ndarray, "n p"], d: int, *, seed: int = 0) -> "PCA":
        """The d directions of most variance (fewer where n or p is smaller).

        Exact where n or p is at most 4,096, from the smaller of covariance and Gram matrix;
        randomised beyond.

        Args:
            vectors: items to fit on, the training set only.
            d: number of components.
            seed: of the randomised method.

        Raises:
            ValueError: there is no item, d is below 1, or a value is NaN or infinite.
        """
        n, p = vectors.shape
        if n == 0 or d < 1:
            raise ValueError(f"PCA needs an item and a component (got {n} items, d = {d}).")
        mean = vectors.mean(axis=0, dtype=np.float64)
        if not np.isfinite(mean).all():
            raise ValueError("a feature is NaN or infinite. Look at the health of the run.")
        d = min(d, n, p)
        if min(n, p) > LARGEST_EXACT:
            centred = (vectors - mean).astype(np.float32)
            components = randomized_svd(centred, d, random_state=seed)[2]
        elif p <= n:
            components = _top(_covariance(vectors, mean), d).T
        else:
            components = _through_gram(vectors - mean, d)
        largest = np.abs(components).argmax(axis=1)[:, None]
        components = components * np.where(np.take_along_axis(components, largest, 1) < 0, -1, 1)
        return cls(mean.astype(np.float32), components.astype(np.float32))

    def __call__(self, vectors: Float[np.ndarray, "m p"]) -> Float32[np.ndarray, "m d"]:
        """Coordinates along the components, not whitened."""
        projected = np.empty((len(vectors), len(self.components)), dtype=np.float32)
        for start in range(0, len(vectors), BLOCK):
            rows = slice(start, start + BLOCK)
            projected[rows] = (vectors[rows] - self.mean) @ self.components.T
        return projected


def _covariance(
    vectors: Float[np.ndarray, "n p"], mean: Float64[np.ndarray, " p"]
) -> Float64[np.ndarray, "p p"]:
    """Sum of outer products of centred rows. Products in float32 where float64 takes minutes."""
    n, p = vectors.shape
    precision = np.float64 if float(n) * p * p < 1e11 else np.float32
    total = np.zeros((p, p))
    for start in range(0, n, BLOCK):
        rows = (vectors[start : start + BLOCK] - mean).astype(precision)
        total += rows.T @ rows
    return total


def _top(matrix: Float64[np.ndarray, "r r"], d: int) -> Float64[np.ndarray, "r d"]:
    """Eigenvectors of the d largest eigenvalues, largest first."""
    r = len(matrix)
    return eigh(matrix, subset_by_index=(r - d, r - 1))[1][:, ::-1]


def _through_gram(centred: Float64[np.ndarray, "n p"], d: int) -> Float64[np.ndarray, "d p"]:
    """Components of fewer items than features, from their inner products."""
    components = _top(centred @ centred.T, d).T @ centred  # [d p], lengths = singular values
    length = np.linalg.norm(components, axis=1, keepdims=True)
    real = length > 1e-7 * length.max()  # the rest is what rounding left, the mean's at least
    return np.divide(components, length, out=np.zeros_like(components), where=real & (length > 0))
