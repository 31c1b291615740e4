"""How much of the space the features fill, without labels: rank, spread, alignment, uniformity.

None of them has a scale common to all methods: read them beside the encoder before training.
Letters in shapes: n items, d features.
"""

import numpy as np
from jaxtyping import Float, Float64

from erg.embeddings import unit

RANKME_ITEMS = 25_600
"""Items the paper of RankMe found enough."""


def rankme(
    vectors: Float[np.ndarray, "n d"],
    *,
    epsilon: float = 1e-7,
    items: int = RANKME_ITEMS,
    seed: int = 0,
) -> float:
    """RankMe = exp(-sum_k p_k log p_k), p_k = sigma_k / sum sigma + epsilon (Garrido et al. 2023).

    sigma are singular values of the features as they are: not centred, not squared. Between 1
    and min(n, d), up to epsilon. Comparable between runs of one method only.

    Args:
        vectors: features.
        epsilon: of the paper, against log 0.
        items: at most so many are used, drawn at random.
        seed: of the draw.

    Raises:
        ValueError: a value is NaN or infinite, or all are zero.
    """
    chosen = _sample(vectors, items, seed)
    sigma = _singular_values(chosen.astype(np.float64))
    if sigma.sum() == 0:
        raise ValueError("all features are zero, which have no rank. Look at the run's health.")
    p = sigma / sigma.sum() + epsilon
    return float(np.exp(-(p * np.log(p)).sum()))


def effective_rank(
    vectors: Float[np.ndarray, "n d"], *, items: int = RANKME_ITEMS, seed: int = 0
) -> float:
    """Exponential of the entropy of the normalised singular values of the centred features.

    Roy & Vetterli (2007). Centred, unlike RankMe, so that a large common mean (features after a
    ReLU) does not hide what varies. What is below the rounding of float32 does not count: features
    that have collapsed to one point have rank 1, not that of their rounding errors.

    Args:
        vectors: features.
        items: at most so many are used, drawn at random.
        seed: of the draw.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    chosen = _sample(vectors, items, seed).astype(np.float64)
    sigma = _singular_values(chosen - chosen.mean(axis=0))
    rounding = np.finfo(np.float32).eps * np.linalg.norm(chosen)
    sigma = sigma[sigma > rounding]
    if len(sigma) == 0:
        return 1.0
    p = sigma / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def spread(vectors: Float[np.ndarray, "n d"]) -> float:
    """Standard deviation of the features on the unit sphere, 1 where they are isotropic.

    The mean over dimensions of the std of L2-normalised features, times sqrt(d). 0 where
    everything has collapsed to one point.

    Args:
        vectors: features.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    deviation = unit(vectors).std(axis=0, dtype=np.float64)
    return float(deviation.mean() * np.sqrt(vectors.shape[1]))


def alignment(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "n d"]) -> float:
    """E |x - y|^2 over matched pairs on the unit sphere (Wang & Isola 2020, alpha = 2); 0 to 4.

    Args:
        first: features of one view of the items.
        second: features of another view, in the same order.

    Raises:
        ValueError: the shapes differ, or a value is NaN or infinite.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"the two views have shapes {first.shape} and {second.shape}. Pass the same items, in "
            "the same order."
        )
    gap = unit(first) - unit(second)
    return float(np.einsum("nd,nd->n", gap, gap, dtype=np.float64).mean())


def uniformity(
    vectors: Float[np.ndarray, "n d"], *, t: float = 2.0, items: int = 8192, seed: int = 0
) -> float:
    """log E exp(-t |x - y|^2) over pairs of different items on the unit sphere; -4 t to 0.

    Wang & Isola (2020). Lower is more uniform; 0 where everything is one point. Depends on d.

    Args:
        vectors: features, of at least two items.
        t: of the Gaussian potential.
        items: at most so many are used, drawn at random.
        seed: of the draw.

    Raises:
        ValueError: there are fewer than two items, or a value is NaN or infinite.
    """
    if len(vectors) < 2:
        raise ValueError(f"uniformity needs at least two items (got {len(vectors)}).")
    z = unit(_sample(vectors, items, seed))
    total, block = 0.0, 1024
    for start in range(0, len(z), block):
        rows = z[start : start + block]
        square = np.clip(2 - 2 * (rows @ z.T), 0, 4)  # [block n], |x - y|^2
        potential = np.exp(-t * square)
        potential[np.arange(len(rows)), start + np.arange(len(rows))] = 0
        total += float(potential.sum(dtype=np.float64))
    return float(np.log(total / (len(z) * (len(z) - 1))))


def _singular_values(matrix: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " r"]:
    """From the smaller Gram matrix: right to 1e-8 of the largest, many times faster than an SVD."""
    if not np.isfinite(matrix).all():
        raise ValueError("a feature is NaN or infinite. Look at the health of the run.")
    n, d = matrix.shape
    gram = matrix.T @ matrix if d <= n else matrix @ matrix.T
    return np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))


def _sample(vectors: Float[np.ndarray, "n d"], items: int, seed: int) -> Float[np.ndarray, "m d"]:
    if len(vectors) <= items:
        return vectors
    chosen = np.random.default_rng(seed).choice(len(vectors), size=items, replace=False)
    return vectors[np.sort(chosen)]
