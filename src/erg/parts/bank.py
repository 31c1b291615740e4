"""Memories of embeddings, as persistent buffers: the last ones, or one of every image."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erg import distributed
from erg.energy import normalise


class Queue(nn.Module):
    """The last `size` embeddings. All ranks hold the same, since they push the global batch.

    Args:
        size: rows kept.
        dim: width of a row [features].
        random: whether rows start as random directions of norm 1, to be used at once; else as 0.
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int, *, random: bool = False) -> None:
        super().__init__()
        rows = normalise(torch.randn(size, dim)) if random else torch.zeros(size, dim)
        self.register_buffer("rows", rows)
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self._known: tuple[Tensor, int, int] | None = None
        self._know(0)

    @property
    def full(self) -> bool:
        """Whether every row has been written.

        A device is asked, and waited for, only where its number has come from elsewhere: a state
        that was loaded, or put back.
        """
        number = self._number()
        if number is None:
            number = int(self.pushed)
            self._know(number)
        return number >= len(self.rows)

    @torch.no_grad()
    def push(self, z: Float[Tensor, "b d"]) -> None:
        """Write rows over the oldest ones; of more than `size` rows only the last are kept."""
        size, number = len(self.rows), self._number()
        kept = z.detach()[-size:].to(self.rows)
        start = self.pushed + len(z) - len(kept)  # stays on the device: nothing waits for it
        place = (start + torch.arange(len(kept), device=kept.device)) % size
        self.rows[place] = kept
        self.pushed += len(z)
        if number is not None:
            self._know(number + len(z))

    def _number(self) -> int | None:
        """What `pushed` is, by our own count; None where somebody else has written to it since.

        Whoever writes to a tensor raises its version, and who moves a module gives it another.
        """
        if self._known is None:
            return None
        counted, version, number = self._known
        ours = counted is self.pushed and version == self.pushed._version
        return number if ours else None

    def _know(self, number: int) -> None:
        versioned = not self.pushed.is_inference()  # tensors of inference mode have no version
        self._known = (self.pushed, self.pushed._version, number) if versioned else None

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, whose tensors have versions of their own."""
        return {**super().__getstate__(), "_known": None}


class Memory(nn.Module):
    """One embedding of every image, by its row in the manifest; all start as random directions.

    Args:
        size: rows, at least as many as the manifest has.
        dim: width of a row [features].
    """

    rows: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", normalise(torch.randn(size, dim)))

    def of(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """What is remembered of some images.

        Raises:
            ValueError: an image has no row; looked for on the CPU alone, since an accelerator would
                have to be waited for.
        """
        looked = index.device.type == "cpu" and len(index)
        if looked and int(index.max()) >= len(self.rows):
            raise ValueError(
                f"image {int(index.max())} has no place in a memory of {len(self.rows)} rows. Set "
                "size to the number of images."
            )
        return self.rows[index]

    @torch.no_grad()
    def update(self, index: Int[Tensor, " b"], z: Float[Tensor, "b d"], momentum: float) -> None:
        """m_i <- normalise(momentum m_i + (1 - momentum) z_i) for the images of all ranks."""
        z = distributed.gather(z.detach()).to(self.rows)
        index = _everyones(index)
        moved = normalise(momentum * self.rows[index] + (1 - momentum) * z)
        self.rows.index_copy_(0, index, moved)


def _everyones(index: Int[Tensor, " b"]) -> Int[Tensor, " global"]:
    """Row numbers of all ranks, in the order of the global batch."""
    if not distributed.active():
        return index
    n = sum(distributed.counts(len(index), index.device))
    everyone = index.new_zeros(n)
    everyone[distributed.rank() :: distributed.world()] = index
    return distributed.sum(everyone)
