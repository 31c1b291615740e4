"""A map: embeddings in two dimensions, for looking at.

Letters in shapes: n items, d features, p principal components.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.distance import pdist, squareform
from sklearn.manifold import TSNE, smacof

from erg.evaluate.baselines import PCA

LARGEST_TSNE = 3000
"""Items up to which t-SNE is quick enough for a report."""

Name = Literal["t-SNE", "PCA", "MDS"]


class Projection(NamedTuple):
    """Points in the plane, and how they came there.

    Args:
        xy: coordinates, without unit.
        name: what made them.
    """

    xy: Float32[np.ndarray, "n 2"]
    name: Name


class _Prepared(NamedTuple):
    """What every map starts from.

    Args:
        reduced: 50 principal components, to a common scale: the first has deviation 1.
        flat: the first two as they are; zero where what they vary by is rounding.
        scale: deviation of the first, 1 where nothing varies.
        spread: whether there are two directions that vary, and 5 items.
    """

    reduced: Float32[np.ndarray, "n p"]
    flat: Float32[np.ndarray, "n 2"]
    scale: float
    spread: bool


def project(vectors: Float[np.ndarray, "n d"], *, seed: int = 0) -> Projection:
    """A picture of who is near whom: t-SNE up to 3,000 items, PCA beyond and where t-SNE fails.

    t-SNE starts at the first two of 50 principal components, with perplexity min(30, (n - 1) / 3).
    Distances are Euclidean: pass L2-normalised vectors where angles matter. PCA also where there
    are fewer than 5 items or they vary along one direction at most (collapse).

    Args:
        vectors: embeddings.
        seed: of t-SNE, and of PCA where that is randomised.

    Raises:
        ValueError: there is no item, or a value is NaN or infinite.
    """
    given = _prepared(vectors, seed)
    if len(vectors) > LARGEST_TSNE or not given.spread:
        return Projection(given.flat, "PCA")
    return _tsne(given, seed)


def projections(vectors: Float[np.ndarray, "n d"], *, seed: int = 0) -> list[Projection]:
    """The same items by PCA, t-SNE and multidimensional scaling, to be set side by side.

    MDS minimises the squared differences of distances on the map and among 50 principal
    components (SMACOF, Kruskal 1964; de Leeuw 1977), from the first two.

    Args:
        vectors: embeddings of at most 3,000 items: the memory that MDS takes grows with the square.
        seed: of t-SNE, and of PCA where that is randomised.

    Raises:
        ValueError: there are too many items, or fewer than 5; they vary along one direction at
            most; or a value is NaN or infinite.
    """
    if len(vectors) > LARGEST_TSNE:
        raise ValueError(
            f"{len(vectors):,} items are too many for MDS. Choose at most {LARGEST_TSNE:,}."
        )
    given = _prepared(vectors, seed)
    if not given.spread:
        raise ValueError(
            f"{len(vectors)} items that vary along one direction at most have no map. Look at the "
            "health of the run that made them."
        )
    return [Projection(given.flat, "PCA"), _tsne(given, seed), _mds(given)]


def _prepared(vectors: Float[np.ndarray, "n d"], seed: int) -> _Prepared:
    reduced = PCA.fit(vectors, 50, seed=seed)(vectors)  # [n p]
    flat = np.zeros((len(vectors), 2), dtype=np.float32)
    flat[:, : reduced.shape[1]] = reduced[:, :2]
    deviation = flat.std(axis=0, dtype=np.float64)
    # Spread within the rounding of float32 is none: the picture would be noise made large.
    rounding = 1e-6 * np.abs(vectors).max()
    flat[:, deviation <= rounding] = 0
    spread = len(vectors) >= 5 and bool(deviation.min() > rounding)
    # To a common scale: t-SNE tells distances by their ratios, and tiny ones underflow.
    scale = float(deviation[0]) if spread else 1.0
    return _Prepared(reduced / scale, flat, scale, spread)


def _tsne(given: _Prepared, seed: int) -> Projection:
    start: Any = (given.flat / given.scale * 1e-4).astype(np.float32)
    perplexity = min(30.0, (len(given.flat) - 1) / 3)
    model = TSNE(init=start, perplexity=perplexity, random_state=seed)
    return Projection(model.fit_transform(given.reduced).astype(np.float32), "t-SNE")


def _mds(given: _Prepared) -> Projection:
    apart = squareform(pdist(given.reduced.astype(np.float64)))
    start = (given.flat / given.scale).astype(np.float64)
    options: dict[str, Any] = {"n_init": 1, "eps": 1e-6, "normalized_stress": False}
    xy = np.asarray(smacof(apart, init=start, **options)[0])
    return Projection((given.scale * xy).astype(np.float32), "MDS")
