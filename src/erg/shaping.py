"""What keeps an energy from being low everywhere. Pure functions of embeddings, torch only.

All take the *global* batch (see `distributed.gather`), use at least float32 and leave float64.
Each returns a scalar to be minimised.

Letters in shapes: b batch, d features, v views.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from erg.energy import at_least_float32, full_precision, normalise


def alignment(x: Float[Tensor, "b d"], y: Float[Tensor, "b d"], temperature: float) -> Tensor:
    """The part of InfoNCE that pulls: mean of -cos(x_i, y_i) / temperature."""
    return -(normalise(x) * normalise(y)).sum(dim=-1).mean() / temperature


@full_precision
def repulsion(x: Float[Tensor, "b d"], y: Float[Tensor, "b d"], temperature: float) -> Tensor:
    """The part of NT-Xent that pushes: mean over the 2b views of log sum_{k != i} exp(s_ik / T).

    s is the cosine similarity among all 2b views. `alignment + repulsion` is NT-Xent (Chen et al.
    2020, eq. 1).
    """
    z = torch.cat([normalise(x), normalise(y)])
    scores = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return scores.masked_fill(itself, float("-inf")).logsumexp(dim=1).mean()


@full_precision
def cross_repulsion(x: Float[Tensor, "b d"], y: Float[Tensor, "m d"], temperature: float) -> Tensor:
    """The pushing part of InfoNCE across views: mean_i log sum_j exp(cos(x_i, y_j) / T)."""
    return (normalise(x) @ normalise(y).T / temperature).logsumexp(dim=1).mean()


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
