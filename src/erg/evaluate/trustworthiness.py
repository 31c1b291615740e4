"""How true a map is to what it shows: neighbours that are new, lost, and distances in order.

Letters in shapes: n items, d features, p features of the map (2).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import pdist
from scipy.stats import rankdata
from sklearn import manifold


@dataclass(frozen=True)
class Faithful:
    """How true a map is; 1 is perfect.

    Args:
        trustworthiness: 1 - 2 / (n k (2n - 3k - 1)) sum_i sum_j (r(i, j) - k) over the k nearest j
            of i on the map that are not among its k nearest in truth, where j is the r-th: who is
            near on the map is near (Venna & Kaski 2001).
        continuity: the same with map and truth exchanged: who is near is near on the map.
        shepard: rank correlation of all distances on the map and in truth.
        k: neighbours looked at.
    """

    trustworthiness: float
    continuity: float
    shepard: float
    k: int


def faithful(
    vectors: Float[np.ndarray, "n d"], xy: Float[np.ndarray, "n p"], *, k: int = 12
) -> Faithful:
    """Compare a map with the vectors it shows, by Euclidean distances.

    Takes memory for n^2 distances: a few thousand items.

    Args:
        vectors: what is shown.
        xy: where each is shown.
        k: neighbours looked at, below n / 2.

    Raises:
        ValueError: the two have different numbers of items, or too few for k.
    """
    if len(vectors) != len(xy) or not 1 <= k < len(vectors) / 2:
        raise ValueError(
            f"a map of {len(xy)} points for {len(vectors)} items cannot be judged by {k} "
            "neighbours. Pass as many points as items, and k below half of that."
        )
    return Faithful(
        float(manifold.trustworthiness(vectors, xy, n_neighbors=k)),
        float(manifold.trustworthiness(xy, vectors, n_neighbors=k)),
        _spearman(pdist(vectors), pdist(xy)),
        k,
    )


def _spearman(a: Float[np.ndarray, " pairs"], b: Float[np.ndarray, " pairs"]) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
