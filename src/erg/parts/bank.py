"""A first-in, first-out memory of embeddings, as persistent buffers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Queue(nn.Module):
    """The last `size` embeddings. All ranks hold the same, since they push the global batch.

    Args:
        size: rows kept.
        dim: width of a row [features].
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, dim))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def full(self) -> bool:
        """Whether every row has been written."""
        return int(self.pushed) >= len(self.rows)

    @torch.no_grad()
    def push(self, z: Float[Tensor, "b d"]) -> None:
        """Write rows over the oldest ones; of more than `size` rows only the last are kept."""
        size = len(self.rows)
        kept = z.detach()[-size:].to(self.rows)
        start = int(self.pushed) + len(z) - len(kept)
        place = (start + torch.arange(len(kept), device=kept.device)) % size
        self.rows[place] = kept
        self.pushed += len(z)
