"""What keeps an energy from being low everywhere. Pure functions of embeddings, torch only.

All take the *global* batch (see `distributed.gather`), use at least float32 and leave float64.
Each returns a scalar to be minimised.

Letters in shapes: b batch, d features, v views.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from erg.energy import at_least_float32, cosine, full_precision, normalise


def alignment(x: Float[Tensor, "b d"], y: Float[Tensor, "b d"], temperature: float) -> Tensor:
    """The part of InfoNCE that pulls: mean of -cos(x_i, y_i) / temperature."""
    return cosine(x, y).mean() / temperature


@full_precision
def repulsion(
    x: Float[Tensor, "b d"],
    y: Float[Tensor, "b d"],
    temperature: float,
    remembered: Float[Tensor, "m d"] | None = None,
) -> Tensor:
    """The part of NT-Xent that pushes: mean over the 2b views of log sum_{k != i} exp(s_ik / T).

    s is the cosine similarity among all 2b views. `alignment + repulsion` is NT-Xent (Chen et al.
    2020, eq. 1).

    Args:
        x: first views.
        y: second views.
        temperature: T.
        remembered: embeddings of other images that all views are pushed away from as well.
    """
    z = torch.cat([normalise(x), normalise(y)])
    itself = torch.arange(len(z), device=z.device)[:, None]
    everyone = z if remembered is None else torch.cat([z, normalise(remembered).to(z.dtype)])
    return log_partition(z / temperature, everyone, itself).mean()


@full_precision
def cross_repulsion(x: Float[Tensor, "b d"], y: Float[Tensor, "m d"], temperature: float) -> Tensor:
    """The pushing part of InfoNCE across views: mean_i log sum_j exp(cos(x_i, y_j) / T)."""
    return log_partition(normalise(x) / temperature, normalise(y)).mean()


def variance(z: Float[Tensor, "b d"], floor: float = 1.0, eps: float = 1e-4) -> Tensor:
    """Mean over dimensions of max(0, floor - sqrt(Var(z_j) + eps)) (VICReg, eq. 1 and 2).

    The variance is the unbiased one; eps stands inside the root, so the gradient stays finite
    when a dimension has collapsed.
    """
    std = (at_least_float32(z).var(dim=0) + eps).sqrt()
    return (floor - std).clamp_min(0).mean()


@full_precision
def covariance(z: Float[Tensor, "b d"]) -> Tensor:
    """Sum of squared off-diagonal covariances, divided by d (VICReg, eq. 3 and 4)."""
    z = at_least_float32(z)
    z = z - z.mean(dim=0)
    cov = z.T @ z / (z.shape[0] - 1)
    return (cov.square().sum() - cov.diagonal().square().sum()) / z.shape[1]


def uniformity(z: Float[Tensor, "b d"], t: float = 2.0) -> Tensor:
    """log E exp(-t ||z_i - z_j||^2) over pairs of normalised embeddings (Wang & Isola 2020)."""
    squared = torch.pdist(normalise(z)).square()
    return squared.mul(-t).exp().mean().log()


def rare_activity(activity: Float[Tensor, " d"], rate: float) -> Tensor:
    """sum_j KL(rate || activity_j) between Bernoulli distributions (Lee et al. 2008; Ng 2011).

    Args:
        activity: mean over the batch of each unit's activation in [0, 1].
        rate: the mean that is wanted, in (0, 1).
    """
    active = at_least_float32(activity).clamp(1e-6, 1 - 1e-6)
    silent = (1 - rate) * (math.log(1 - rate) - (1 - active).log())
    return (rate * (math.log(rate) - active.log()) + silent).sum()


@full_precision
def log_partition(
    x: Float[Tensor, "b d"], y: Float[Tensor, "m d"], excluded: Int[Tensor, "b e"] | None = None
) -> Float[Tensor, " b"]:
    """log sum_j exp(x_i . y_j) for every i, in memory that grows with b + m only.

    Args:
        x: queries, already divided by the temperature.
        y: keys.
        excluded: columns j that are left out of the sum of each row i; at least one must stay.
    """
    x = at_least_float32(x)
    return _LogPartition.apply(x, at_least_float32(y).to(x.dtype), excluded)  # type: ignore[return-value]


class _LogPartition(torch.autograd.Function):
    """`log_partition` in blocks of rows, so that memory grows with b + m, not with b m.

    Where keys have a gradient too, the backward pass makes the scores of a block again. Where they
    have none, as those of a memory, the gradient of a row is the mean of y under its softmax, which
    is made with the scores at hand: keys may be written to before the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, excluded: Tensor | None) -> Tensor:
        found = x.new_empty(len(x))
        needed, of_both, _ = ctx.needs_input_grad
        slope = torch.empty_like(x) if needed and not of_both else None
        for rows in _blocks(len(x), len(y)):
            scores = _scores(x, y, excluded, rows)
            high = scores.amax(dim=1)
            total = scores.sub_(high[:, None]).exp_().sum(dim=1)
            if slope is not None:
                slope[rows] = scores @ y / total[:, None]
            found[rows] = total.log_().add_(high)
        if slope is None:
            ctx.save_for_backward(x, y, excluded, found)
        else:
            ctx.save_for_backward(slope)
        return found

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (slope,) = ctx.saved_tensors
            return slope * grads[0][:, None], None, None
        x, y, excluded, found = ctx.saved_tensors
        to_x, to_y = (
            torch.zeros_like(t) if needed else None
            for t, needed in zip((x, y), ctx.needs_input_grad, strict=False)
        )
        with torch.autocast(x.device.type, enabled=False):
            for rows in _blocks(len(x), len(y)):
                # softmax of the row, times the gradient that comes from above
                scores = _scores(x, y, excluded, rows).sub_(found[rows, None]).exp_()
                scores.mul_(grads[0][rows, None])
                if to_x is not None:
                    to_x[rows] = scores @ y
                if to_y is not None:
                    to_y.addmm_(scores.T, x[rows])
        return to_x, to_y, None


def _scores(x: Tensor, y: Tensor, excluded: Tensor | None, rows: slice) -> Tensor:
    scores = x[rows] @ y.T
    if excluded is not None:
        scores.scatter_(1, excluded[rows], float("-inf"))
    return scores


def in_blocks(
    of: Callable[..., Float[Tensor, "b *rest"]], *rows: Shaped[Tensor, "b ..."], columns: int
) -> Float[Tensor, "b *rest"]:
    """`of(*rows)`, of some rows at a time where what it makes on the way would take much memory.

    Each block is made again for the backward pass, so that gradients are exact, those of tensors
    that `of` knows from elsewhere too.

    Args:
        of: what each row gives depends on that row alone.
        rows: tensors with a row each.
        columns: numbers that are made for each row on the way.
    """
    blocks = list(_blocks(len(rows[0]), columns))
    if len(blocks) < 2:
        return of(*rows)
    made: list[Tensor] = [
        checkpoint(of, *(each[block] for each in rows), use_reentrant=False,
                   preserve_rng_state=False)
        for block in blocks
    ]  # fmt: skip
    return torch.cat(made)


BLOCK = 1 << 23
"""Scores that are held at once: 32 MiB in float32, which caches like."""


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // columns)
    return (slice(start, start + step) for start in range(0, rows, step))
