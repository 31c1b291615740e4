"""What does not belong: energies fitted on items known to be normal, low where an item fits in.

Each is fitted on vectors of normal items, once, and is then a function of vectors of others, one
number per item: as many as one likes at a time. They have no common scale: compare items by one of
them, never one with another.

Letters in shapes: n normal items, m asked items, d features, h w pixels, p windows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped, UInt8
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest

from erg.evaluate.baselines import PCA
from erg.evaluate.knn import nearest

Energy = Callable[[np.ndarray], np.ndarray]
"""Of vectors [m d] of asked items: [m]."""

Fit = Callable[[np.ndarray], Energy]
"""Of vectors [n d] of normal items: the energy of others."""


def by_neighbours(
    normal: Float[np.ndarray, "n d"],
    *,
    k: int = 5,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Callable[..., Float32[np.ndarray, " m"]]:
    """1 - cosine similarity, the mean over the k nearest normal items.

    Args:
        normal: vectors of normal items.
        k: neighbours; fewer in a smaller set.
        groups: see `nearest`: an item is no neighbour of itself or of its duplicates.

    Returns:
        The energy of vectors [m d] of asked items and, where there are groups, their groups [m].
        It raises ValueError where an item has no neighbour, all normal ones being of its group.
    """
    most = len(normal) if groups is None else len(normal) - _largest(groups)

    def energy(
        asked: Float[np.ndarray, "m d"], asked_groups: Shaped[np.ndarray, " m"] | None = None
    ) -> Float32[np.ndarray, " m"]:
        if most == 0 and groups is not None and np.any(asked_groups == groups[0]):
            raise ValueError(
                f"all {len(normal)} normal items are the same, and some of the items asked about "
                "are too: they have no neighbour but themselves. Give others with --normal."
            )
        found = nearest(
            normal, asked, k=max(1, min(k, most)), bank_groups=groups, query_groups=asked_groups
        )
        return 1 - found.similarity.mean(axis=1)

    return energy


def by_mahalanobis(normal: Float[np.ndarray, "n d"]) -> Energy:
    """(y - m)^T S^-1 (y - m): the squared distance in units of the normal items' spread.

    S is shrunk towards a multiple of the identity (Ledoit & Wolf 2004), since there are often
    fewer items than features.
    """
    # In float32 its inverse leaves out directions of little variance, in which anomalies are.
    return LedoitWolf().fit(normal.astype(np.float64)).mahalanobis


def by_kmeans(normal: Float[np.ndarray, "n d"], *, k: int = 10, seed: int = 0) -> Energy:
    """min_z ||y - w_z||^2 with k prototypes of the normal items, the best of ten starts.

    Args:
        normal: vectors of normal items.
        k: prototypes; fewer in a smaller set.
        seed: of the starts.
    """
    model = KMeans(min(k, len(normal)), random_state=seed).set_params(n_init=10).fit(normal)
    return lambda asked: model.transform(asked).min(axis=1) ** 2


def by_pca(normal: Float[np.ndarray, "n d"], *, directions: int = 32) -> Energy:
    """||y' - W W^T y'||^2, y' = y - mean: the squared distance to the normal items' plane.

    Args:
        normal: vectors of normal items.
        directions: of the plane; at most half as many as there are normal items, on all of which
            every plane through them would be right.
    """
    pca = PCA.fit(normal, max(1, min(directions, len(normal) // 2)))

    def energy(asked: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        centred = asked - pca.mean
        # What is left of the length, by Pythagoras: no array of all residuals.
        left = np.square(centred).sum(axis=1) - np.square(pca(asked)).sum(axis=1)
        return np.maximum(left, 0)

    return energy


def by_forest(normal: Float[np.ndarray, "n d"], *, directions: int = 32, seed: int = 0) -> Energy:
    """2^(-mean depth / expected depth) in 200 random trees on principal components.

    What is separated from the rest by few random cuts is odd (Liu et al. 2008).

    Args:
        normal: vectors of normal items.
        directions: principal components the trees cut.
        seed: of the trees.
    """
    pca = PCA.fit(normal, directions)
    forest = IsolationForest(n_estimators=200, random_state=seed).fit(pca(normal))
    return lambda asked: -forest.score_samples(pca(asked))


OF_EMBEDDINGS: dict[str, Fit] = {
    "neighbours": by_neighbours,
    "Mahalanobis": by_mahalanobis,
    "k-means": by_kmeans,
}
"""Energies of vectors an encoder made."""

OF_PIXELS: dict[str, Fit] = {
    "pixels, PCA": by_pca,
    "pixels, k-means": by_kmeans,
    "pixels, forest": by_forest,
}
"""What an encoder has to beat."""


def places(height: int, width: int, side: int, stride: int) -> Int64[np.ndarray, "p 2"]:
    """Top and left of windows that cover an image, row by row; the last ones touch its edges.

    Args:
        height: of the image [pixels].
        width: of the image [pixels].
        side: of the windows [pixels].
        stride: from one to the next [pixels].

    Raises:
        ValueError: the image is smaller than a window, or windows leave gaps.
    """
    if not 1 <= side <= min(height, width) or not 1 <= stride <= side:
        raise ValueError(
            f"windows of {side} pixels, {stride} apart, do not cover an image of {height} x "
            f"{width}. Choose 1 <= stride <= side <= {min(height, width)}."
        )
    down, across = (sorted({*range(0, n - side, stride), n - side}) for n in (height, width))
    return np.array([(y, x) for y in down for x in across], dtype=np.int64)


def windows(
    image: UInt8[np.ndarray, "h w 3"], where: Int64[np.ndarray, "p 2"], side: int
) -> list[UInt8[np.ndarray, "side side 3"]]:
    """The windows at these places, in their order."""
    return [image[y : y + side, x : x + side] for y, x in where]


def overlaid(
    energies: Float[np.ndarray, " p"],
    where: Int64[np.ndarray, "p 2"],
    side: int,
    shape: tuple[int, int],
) -> Float32[np.ndarray, "h w"]:
    """A map: each pixel has the mean energy of the windows it lies in.

    Args:
        energies: of the windows.
        where: their places, which cover the image.
        side: of the windows [pixels].
        shape: height and width of the image [pixels].
    """
    total, count = np.zeros(shape), np.zeros(shape)
    for energy, (y, x) in zip(energies, where, strict=True):
        total[y : y + side, x : x + side] += energy
        count[y : y + side, x : x + side] += 1
    return (total / count).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps of images, each made when it is asked for: windows are fewer than pixels.

    Args:
        energies: of the windows of each image [p].
        where: their places in each image [p 2].
        side: of the windows [pixels].
        shapes: height and width of each image [pixels].
    """

    energies: list[np.ndarray]
    where: list[np.ndarray]
    side: int
    shapes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int | np.integer) -> Float32[np.ndarray, "h w"]:
        return overlaid(self.energies[i], self.where[i], self.side, self.shapes[i])

    def __iter__(self) -> Iterator[Float32[np.ndarray, "h w"]]:
        return (self[i] for i in range(len(self)))


def _largest(groups: Shaped[np.ndarray, " n"]) -> int:
    """Items of the largest group."""
    return int(np.unique(groups, return_counts=True)[1].max())
