"""Nearest neighbours by cosine similarity, and the k-NN score of frozen features.

Letters in shapes: n items of the bank (training set), m queries (test set), d features.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped

from erg.embeddings import unit

BANK_BLOCK = 65_536
"""Rows of the bank compared at once; with 1,024 queries 256 MB of similarities."""


class Neighbours(NamedTuple):
    """The nearest items of the bank per query, nearest first.

    Args:
        rows: of the bank.
        similarity: cosine similarity, in [-1, 1].
    """

    rows: Int64[np.ndarray, "m k"]
    similarity: Float32[np.ndarray, "m k"]


def nearest(
    bank: Float[np.ndarray, "n d"],
    queries: Float[np.ndarray, "m d"],
    *,
    k: int,
    bank_groups: Shaped[np.ndarray, " n"] | None = None,
    query_groups: Shaped[np.ndarray, " m"] | None = None,
    block: int = 1024,
    device: str | torch.device = "cpu",
) -> Neighbours:
    """The k items of the bank with the largest cosine similarity, exactly.

    Both sides are scaled to length 1 first. Which of equally similar items comes first is not
    defined. With groups, a query never finds an item of its own group: itself, its duplicates.

    Args:
        bank: vectors to search.
        queries: vectors to search for.
        k: neighbours per query.
        bank_groups: group of each item of the bank (any type that compares).
        query_groups: group of each query; both or neither.
        block: queries compared at once; bounds the memory.
        device: where the similarities are computed.

    Raises:
        ValueError: k is not in 1 to n, too few items are left outside a query's group, the sides
            have different features, or a vector holds NaN.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k should be in 1 to {len(bank)}, the size of the bank (got {k}).")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"the bank has {bank.shape[1]} features and the queries have {queries.shape[1]}. "
            "Embed both with the same encoder."
        )
    codes = _codes(bank_groups, query_groups, len(bank), len(queries))
    bank_unit = torch.from_numpy(unit(bank))
    query_unit = torch.from_numpy(unit(queries))
    rows = np.empty((len(queries), k), dtype=np.int64)
    similarity = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), block):
        batch = slice(start, start + block)
        own = None if codes is None else (codes[0], codes[1][batch])
        best, where = _nearest_of_block(bank_unit, query_unit[batch], k, own, device)
        similarity[batch], rows[batch] = best.cpu().numpy(), where.cpu().numpy()
    if codes is not None and np.isneginf(similarity).any():
        raise ValueError(
            f"a query has fewer than k = {k} items outside its own group. Use a smaller k."
        )
    return Neighbours(rows, np.clip(similarity, -1, 1))


def vote(
    found: Neighbours,
    labels: Shaped[np.ndarray, " n"],
    *,
    k: int | None = None,
    temperature: float = 0.07,
) -> Shaped[np.ndarray, " m"]:
    """The class with the most weight among the neighbours, each weighing exp(similarity / T).

    The protocol of instance discrimination and DINO (Wu et al. 2018, Caron et al. 2021). Of
    classes with equal weight the first in sorted order wins.

    Args:
        found: neighbours of the queries.
        labels: classes of the bank.
        k: how many of the neighbours vote; all by default.
        temperature: T; `math.inf` makes every vote equal (plain k-NN).

    Returns:
        The predicted class of every query.

    Raises:
        ValueError: there are fewer neighbours than k, or T is not positive.
    """
    available = found.rows.shape[1]
    voters = available if k is None else k
    if not 1 <= voters <= available:
        raise ValueError(f"k should be in 1 to {available}, the neighbours found (got {voters}).")
    if not temperature > 0:
        raise ValueError(f"temperature should be positive (got {temperature}).")
    classes, codes = np.unique(labels, return_inverse=True)
    winners = np.empty(len(found.rows), dtype=np.int64)
    block = max(1, 2**22 // max(len(classes), voters))
    for start in range(0, len(winners), block):
        batch = slice(start, start + block)
        similarity = found.similarity[batch, :voters].astype(np.float64)
        # Relative to the nearest: the same winner, and no overflow at a low temperature.
        weight = np.exp((similarity - similarity[:, :1]) / temperature)
        row = np.arange(len(weight))[:, None]
        cell = row * len(classes) + codes[found.rows[batch, :voters]]
        total = np.bincount(cell.ravel(), weight.ravel(), minlength=len(weight) * len(classes))
        winners[batch] = total.reshape(-1, len(classes)).argmax(axis=1)
    return classes[winners]


def knn_accuracy(
    train: Float[np.ndarray, "n d"],
    train_labels: Shaped[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Shaped[np.ndarray, " m"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    block: int = 1024,
    device: str | torch.device = "cpu",
) -> Bool[np.ndarray, " m"]:
    """Whether the neighbours in the training set vote for the right class, per test item.

    The mean is the accuracy; `intervals.bootstrap` gives it with its interval. For several k,
    call `nearest` once with the largest and `vote` for each.

    Args:
        train: features of the training set, made without augmentation.
        train_labels: their classes.
        test: features of the test set.
        test_labels: their classes.
        k: neighbours that vote.
        temperature: see `vote`.
        block: see `nearest`.
        device: see `nearest`.

    Raises:
        ValueError: k is larger than the training set (a smaller k would be another score), or
            labels do not fit.
    """
    _check_labels(train, train_labels)
    _check_labels(test, test_labels)
    found = nearest(train, test, k=k, block=block, device=device)
    return vote(found, train_labels, temperature=temperature) == test_labels


def leave_one_out(
    vectors: Float[np.ndarray, "n d"],
    labels: Shaped[np.ndarray, " n"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    groups: Shaped[np.ndarray, " n"] | None = None,
    block: int = 1024,
    device: str | torch.device = "cpu",
) -> Bool[np.ndarray, " n"]:
    """As `knn_accuracy` for one set: every item is classified by the others.

    Args:
        vectors: features.
        labels: classes.
        k: neighbours that vote, at most n - 1.
        temperature: see `vote`.
        groups: items that must not vote for each other (exact duplicates); by default every item
            is its own group.
        block: see `nearest`.
        device: see `nearest`.

    Raises:
        ValueError: k is too large, or labels do not fit.
    """
    _check_labels(vectors, labels)
    own = np.arange(len(vectors)) if groups is None else groups
    found = nearest(
        vectors, vectors, k=k, bank_groups=own, query_groups=own, block=block, device=device
    )
    return vote(found, labels, temperature=temperature) == labels


def _nearest_of_block(
    bank: Float32[torch.Tensor, "n d"],
    queries: Float32[torch.Tensor, "b d"],
    k: int,
    codes: tuple[torch.Tensor, torch.Tensor] | None,
    device: str | torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities and rows of the k nearest, merged over blocks of the bank."""
    queries = queries.to(device)
    best = torch.empty(len(queries), 0, device=device)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    for start in range(0, len(bank), BANK_BLOCK):
        rows = slice(start, start + BANK_BLOCK)
        similarity = queries @ bank[rows].to(device).T  # [b block]
        if codes is not None:
            same = codes[1].to(device)[:, None] == codes[0][rows].to(device)
            similarity.masked_fill_(same, -torch.inf)
        value, index = similarity.topk(min(k, similarity.shape[1]), dim=1)
        value, index = torch.cat([best, value], dim=1), torch.cat([where, index + start], dim=1)
        best, order = value.topk(min(k, value.shape[1]), dim=1)
        where = index.gather(1, order)
    return best, where


def _codes(
    bank: np.ndarray | None, queries: np.ndarray | None, n: int, m: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Groups of both sides as integers that compare across the sides."""
    if bank is None and queries is None:
        return None
    if bank is None or queries is None or len(bank) != n or len(queries) != m:
        raise ValueError(
            f"groups are needed for all {n} items of the bank and all {m} queries. Pass both."
        )
    codes = np.unique(np.concatenate([bank, queries]), return_inverse=True)[1]
    return torch.from_numpy(codes[:n]), torch.from_numpy(codes[n:])


def _check_labels(vectors: np.ndarray, labels: np.ndarray) -> None:
    if len(vectors) != len(labels):
        raise ValueError(
            f"there are {len(labels)} labels for {len(vectors)} vectors. Pass one per vector."
        )
