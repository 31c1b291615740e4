"""A map: embeddings in two dimensions, for looking at.

Letters in shapes: n items, d features.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from sklearn.manifold import TSNE

from erg.evaluate.baselines import PCA

LARGEST_TSNE = 3000
"""Items up to which t-SNE is quick enough for a report."""


class Projection(NamedTuple):
    """Points in the plane, and how they came there.

    Args:
        xy: coordinates, without unit.
        name: what made them.
    """

    xy: Float32[np.ndarray, "n 2"]
    name: Literal["t-SNE", "PCA"]


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
    reduced = PCA.fit(vectors, 50, seed=seed)(vectors)  # [n 50]
    flat = np.zeros((len(vectors), 2), dtype=np.float32)
    flat[:, : reduced.shape[1]] = reduced[:, :2]
    deviation = flat.std(axis=0, dtype=np.float64)
    # Spread within the rounding of float32 is none: the picture would be noise made large.
    rounding = 1e-6 * np.abs(vectors).max()
    flat[:, deviation <= rounding] = 0
    if len(vectors) < 5 or len(vectors) > LARGEST_TSNE or deviation.min() <= rounding:
        return Projection(flat, "PCA")
    # To a common scale: t-SNE tells distances by their ratios, and tiny ones underflow.
    scale = deviation[0]
    model = TSNE(
        init=(flat / scale * 1e-4).astype(np.float32),
        perplexity=min(30.0, (len(vectors) - 1) / 3),
        random_state=seed,
    )
    return Projection(model.fit_transform(reduced / scale).astype(np.float32), "t-SNE")
