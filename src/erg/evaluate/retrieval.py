"""Instance retrieval: does one version of an image find the other? Needs no labels.

Letters in shapes: n items, d features.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped

from erg.embeddings import unit


def recall_at_1(
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "n d"],
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
    block: int = 1024,
    device: str | torch.device = "cpu",
) -> Bool[np.ndarray, " n"]:
    """Whether an item's first version is nearer to its own second version than to any other's.

    Nearer by cosine similarity, and strictly: an encoder that maps everything to one point finds
    nothing. Says how invariant the features are to what tells the versions apart, not how useful.

    Args:
        first: features of one version of the items.
        second: features of another version, in the same order.
        groups: items with the same content share a group, and are no rivals of each other.
        block: items compared at once; bounds the memory to block * n floats.
        device: where the similarities are computed.

    Raises:
        ValueError: the versions have different shapes, there are fewer than two items, or a
            vector holds NaN.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"the two versions have shapes {first.shape} and {second.shape}. Pass the same two or "
            "more items, in the same order."
        )
    codes = np.arange(len(first)) if groups is None else np.unique(groups, return_inverse=True)[1]
    group = torch.from_numpy(codes).to(device)
    queries = torch.from_numpy(unit(first)).to(device)
    bank = torch.from_numpy(unit(second)).to(device)
    found = np.empty(len(first), dtype=np.bool_)
    for start in range(0, len(first), block):
        rows = slice(start, start + block)
        similarity = queries[rows] @ bank.T  # [block n]
        own = similarity.diagonal(start).clone()
        similarity.masked_fill_(group[rows, None] == group, -torch.inf)
        found[rows] = (own > similarity.amax(dim=1)).cpu().numpy()
    return found
