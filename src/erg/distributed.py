"""Many processes as one: sums over ranks that keep their gradients.

Every rank computes the loss of the *global* batch. The backward passes here sum over ranks, so a
rank's gradient is world-size times its own share of the global gradient, and the mean that
data-parallel training takes over ranks is exact. With one process every function is the identity
(or the plain mean), without a copy.
"""

import builtins
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

GRACE = 1.0
"""How long a process that lost another waits before it says so [seconds]: the other may have failed
with an error of its own, which is the one to show."""


class Lost(ConnectionError):
    """Another process has died, or does not answer in time."""


@contextmanager
def counting_on_others() -> Iterator[None]:
    """What the back end says where another process died or hangs becomes one sentence.

    Raises:
        Lost: another process has died, or has not answered for as long as the group waits.
    """
    try:
        yield
    except RuntimeError as error:
        if not active() or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        time.sleep(GRACE)
        raise Lost(
            "another process of this run has died or does not answer. Look at what it printed; "
            "then go on with --resume, or let torchrun start the command again (--max-restarts)."
        ) from error


def active() -> bool:
    """Whether more than one process is at work."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if active() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if active() else 0


class _Sum(torch.autograd.Function):
    """Sum over ranks, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def sum(x: Tensor) -> Tensor:
    """Sum of x over ranks, same shape; gradients are summed over ranks too."""
    return _Sum.apply(x) if active() else x  # type: ignore[return-value]


def counts(local: int, device: torch.device | str = "cpu") -> list[int]:
    """How many items each rank holds."""
    if not active():
        return [local]
    held = torch.zeros(world(), dtype=torch.int64, device=device)
    held[rank()] = local
    dist.all_reduce(held)
    return [int(n) for n in held.tolist()]


def gather(x: Float[Tensor, "b *rest"]) -> Float[Tensor, "global *rest"]:
    """Rows of all ranks in the order of the global batch, [b ...] -> [sum of b ...].

    Rank r holds rows r, r + world, r + 2 world, ... of the global batch; ranks may hold uneven
    numbers. The backward pass sums the gradients of all ranks and hands each rank its own rows:
    exact for losses that every rank computes in full. Rows in half precision come back in float32,
    in which many gradients can be added up.
    """
    if not active():
        return x
    x = x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x
    held = torch.tensor(counts(x.shape[0], x.device))
    row = torch.arange(x.shape[0])[:, None]
    earlier = (torch.arange(len(held)) < rank()).long()  # ranks whose row comes before mine
    place = torch.minimum(held, row + earlier).sum(dim=1).to(x.device)
    # A zero-padded sum over ranks: one collective, uneven rows for free, and the gradient of a
    # sum over ranks is already what is wanted.
    everything = x.new_zeros(int(held.sum()), *x.shape[1:])
    return sum(everything.index_copy(0, place, x))


@torch.no_grad()
def of_first(x: Tensor) -> Tensor:
    """What the first rank holds, same shape; without gradient."""
    if not active():
        return x
    held = x.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(held, 0)
    return held


def mean(x: Float[Tensor, "b *rest"]) -> Float[Tensor, "*rest"]:
    """Mean over the rows of all ranks, weighted by how many each holds; [b ...] -> [...]."""
    if not active():
        return x.mean(dim=0)
    return sum(x.sum(dim=0)) / builtins.sum(counts(x.shape[0], x.device))


def agree(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set on any rank: all ranks get the same answer."""
    if not active():
        return flag
    vote = torch.tensor([int(flag)], device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())
