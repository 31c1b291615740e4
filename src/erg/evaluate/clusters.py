"""K-means on frozen features, and how well clusters agree with classes.

Letters in shapes: n items, d features.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Shaped
from scipy.optimize import linear_sum_assignment
from sklearn import metrics
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from erg.embeddings import unit

FULL_WORK = 2e9
"""n * k * d above which k-means works on mini-batches: quicker, seldom the best clusters."""


@dataclass(frozen=True)
class Clusters:
    """Agreement of clusters with classes; 1 is perfect.

    Args:
        nmi: normalised mutual information (arithmetic mean of the entropies); biased up when
            there are many clusters.
        ami: the same, adjusted for chance: 0 for random clusters.
        ari: adjusted Rand index, 0 for random clusters.
        acc: accuracy under the best one-to-one naming of the clusters (Hungarian).
        k: number of clusters.
    """

    nmi: float
    ami: float
    ari: float
    acc: float
    k: int


def kmeans(
    vectors: Float[np.ndarray, "n d"], k: int, *, seed: int = 0, restarts: int = 10
) -> Int64[np.ndarray, " n"]:
    """The cluster of every item, by k-means on L2-normalised features.

    The best of several starts. Features with fewer than k distinct points get fewer clusters.

    Args:
        vectors: features.
        k: number of clusters, at most n.
        seed: of the starts.
        restarts: number of starts.

    Raises:
        ValueError: k is not in 1 to n, or a value is NaN or infinite.
    """
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k should be in 1 to {len(vectors)}, the number of items (got {k}).")
    work = float(len(vectors)) * k * vectors.shape[1]
    if work <= FULL_WORK:
        model = KMeans(k, random_state=seed)
    else:
        model = MiniBatchKMeans(k, random_state=seed, batch_size=8192)
    model.set_params(n_init=restarts)
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: a collapsed encoder, which the scores show.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit_predict(unit(vectors)).astype(np.int64)


def agreement(found: Shaped[np.ndarray, " n"], labels: Shaped[np.ndarray, " n"]) -> Clusters:
    """Compare clusters with classes; the names of neither matter.

    Args:
        found: cluster of every item.
        labels: class of every item.

    Raises:
        ValueError: the two have different lengths, or there is no item.
    """
    if len(found) != len(labels) or len(found) == 0:
        raise ValueError(
            f"there are {len(found)} clustered items and {len(labels)} labels. Pass the same one "
            "or more items."
        )
    classes, label = np.unique(labels, return_inverse=True)
    clusters, cluster = np.unique(found, return_inverse=True)
    cells = np.bincount(label * len(clusters) + cluster, minlength=len(classes) * len(clusters))
    counts = cells.reshape(len(classes), len(clusters))
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return Clusters(
        nmi=float(metrics.normalized_mutual_info_score(labels, found)),
        ami=float(metrics.adjusted_mutual_info_score(labels, found)),
        ari=float(metrics.adjusted_rand_score(labels, found)),
        acc=float(counts[rows, columns].sum() / len(labels)),
        k=len(clusters),
    )


def cluster_scores(
    vectors: Float[np.ndarray, "n d"],
    labels: Shaped[np.ndarray, " n"],
    *,
    k: int | None = None,
    seed: int = 0,
    restarts: int = 10,
) -> Clusters:
    """`kmeans` of the features compared with the classes.

    Args:
        vectors: features.
        labels: classes.
        k: number of clusters; as many as classes by default.
        seed: of the starts.
        restarts: number of starts.

    Raises:
        ValueError: see `kmeans` and `agreement`.
    """
    wanted = len(np.unique(labels)) if k is None else k
    return agreement(kmeans(vectors, wanted, seed=seed, restarts=restarts), labels)
