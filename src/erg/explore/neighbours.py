"""Panels of nearest neighbours: what the encoder takes for similar, over the whole set.

Letters in shapes: n items, q queries, k neighbours, d features.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64

from erg.embeddings import unit
from erg.evaluate.knn import nearest


class Panels(NamedTuple):
    """Queries with their nearest neighbours, nearest first.

    Args:
        queries: items, the most typical first, then each the farthest from those before.
        neighbours: items nearest to each query, never the query itself.
        similarity: their cosine similarity to the query, in [-1, 1].
    """

    queries: Int64[np.ndarray, " q"]
    neighbours: Int64[np.ndarray, "q k"]
    similarity: Float32[np.ndarray, "q k"]


def panels(vectors: Float[np.ndarray, "n d"], *, queries: int = 8, k: int = 6) -> Panels:
    """Diverse queries and their nearest neighbours by cosine similarity.

    Args:
        vectors: embeddings, of at least two items.
        queries: number of queries; fewer in a smaller set.
        k: neighbours of each; fewer in a smaller set.

    Raises:
        ValueError: there are fewer than two items, or a value is NaN or infinite.
    """
    if len(vectors) < 2:
        raise ValueError(f"neighbours need at least two items (got {len(vectors)}).")
    chosen = diverse(vectors, queries)
    found = nearest(
        vectors,
        vectors[chosen],
        k=min(k, len(vectors) - 1),
        bank_groups=np.arange(len(vectors)),
        query_groups=chosen,
    )
    return Panels(chosen, found.rows, found.similarity)


def diverse(vectors: Float[np.ndarray, "n d"], count: int) -> Int64[np.ndarray, " q"]:
    """Items that cover the set: farthest-point sampling by cosine similarity (Gonzalez 1985).

    Starts at the item nearest to the mean direction; needs no seed. Outliers come early.

    Args:
        vectors: embeddings.
        count: number of items; all of them in a smaller set.

    Raises:
        ValueError: there is no item, count is below 1, or a value is NaN or infinite.
    """
    if len(vectors) == 0 or count < 1:
        raise ValueError(
            f"cannot choose {count} of {len(vectors)} items. Ask for at least one of at least one."
        )
    z = unit(vectors)
    chosen = [int((z @ z.mean(axis=0)).argmax())]
    closest = z @ z[chosen[0]]  # similarity to the nearest item chosen so far
    while len(chosen) < min(count, len(z)):
        closest[chosen[-1]] = np.inf  # never twice, even where all items are equal
        chosen.append(int(closest.argmin()))
        closest = np.maximum(closest, z @ z[chosen[-1]])
    return np.array(chosen, dtype=np.int64)
