"""Inference of a latent: argmin_z or softmin_z of an energy. Pure functions, torch only.

Letters in shapes: b batch, d features, k codes, prototypes or atoms.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from erg import distributed
from erg.energy import at_least_float32, full_precision, to_prototypes

AT_ONCE = 1 << 24
"""Distances that are held at one time."""


@torch.no_grad()
def closest(
    y: Float[Tensor, "b d"], prototypes: Float[Tensor, "k d"]
) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    """min_k ||y - w_k||^2 and argmin_k of it, some rows at a time."""
    rows = max(1, AT_ONCE // len(prototypes))
    starts = range(0, max(1, len(y)), rows)
    found = [to_prototypes(y[start : start + rows], prototypes).min(dim=1) for start in starts]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def nearest(y: Float[Tensor, "b d"], prototypes: Float[Tensor, "k d"]) -> Int[Tensor, " b"]:
    """argmin_k ||y - w_k||^2, the code of k-means."""
    return closest(y, prototypes)[1]


def responsibilities(energies: Float[Tensor, "*b k"], beta: float) -> Float[Tensor, "*b k"]:
    """softmin_z: exp(-beta E_z) / sum_z' exp(-beta E_z').

    beta = inf is the zero-temperature limit: all of it at argmin_z E_z, the first of several.
    """
    energies = at_least_float32(energies)
    if beta == float("inf"):
        return one_hot(energies.argmin(dim=-1), energies.shape[-1]).to(energies)
    return (-beta * energies).softmax(dim=-1)


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "b k"], eps: float = 0.05, iterations: int = 3
) -> Float[Tensor, "b k"]:
    """Soft codes that use every prototype equally (Caron et al. 2020, SwAV, section 3.1).

    exp(s / eps), then in turn: prototypes (columns here) scaled to equal mass over the *global*
    batch, samples (rows) scaled to sum to 1. Ends on the samples, so each row sums to 1 exactly
    and the prototypes are balanced only approximately. All in logarithms, with the largest score
    of all ranks taken out first, so that nothing over- or underflows however small eps is.
    """
    log_q = at_least_float32(scores) / eps
    for _ in range(iterations):
        top = log_q.amax(dim=0) if len(log_q) else log_q.new_full(log_q.shape[1:], float("-inf"))
        if distributed.active():
            torch.distributed.all_reduce(top, op=torch.distributed.ReduceOp.MAX)
        log_q = log_q - top - distributed.sum((log_q - top).exp().sum(dim=0)).log()
        log_q = log_q.log_softmax(dim=1)
    return log_q.exp()


@torch.no_grad()
def lloyd_step(y: Float[Tensor, "b d"], prototypes: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """One step of Lloyd's algorithm: each prototype becomes the mean of the points nearest to it.

    Empty prototypes move to the points that are farthest from theirs, the farthest first.
    """
    distance, code = closest(y, prototypes)
    held = torch.bincount(code, minlength=len(prototypes))
    sums = torch.zeros_like(prototypes).index_add_(0, code, y.to(prototypes.dtype))
    moved = sums / held.clamp_min(1)[:, None].to(sums)
    empty = (held == 0).nonzero().flatten()
    farthest = distance.argsort(descending=True)[: len(empty)]
    moved[empty[: len(farthest)]] = y[farthest].to(moved.dtype)
    return moved


@torch.no_grad()
def kmeans_plus_plus(
    y: Float[Tensor, "b d"], k: int, generator: torch.Generator | None = None
) -> Float[Tensor, "k d"]:
    """k starting prototypes by greedy k-means++ (Arthur & Vassilvitskii 2007).

    Candidates are drawn with probability proportional to their squared distance from the
    prototypes already chosen; of 2 + log k candidates the one that lowers the energy most is kept.

    Raises:
        ValueError: fewer points than prototypes, or no prototype.
    """
    if k < 1:
        raise ValueError(f"k-means needs at least one prototype (got k = {k}).")
    if len(y) < k:
        raise ValueError(f"k-means needs at least k = {k} points (got {len(y)}). Use a smaller k.")
    tries = 2 + int(math.log(k))
    draw = torch.rand(k, tries, generator=generator, dtype=torch.float64)
    chosen = [int(draw[0, 0] * len(y))]
    distance = to_prototypes(y, y[chosen])[:, 0]  # [b]
    for i in range(1, k):
        cumulative = distance.cumsum(0)
        places = torch.searchsorted(cumulative, draw[i].to(cumulative) * cumulative[-1])
        places = places.clamp_max(len(y) - 1)
        after = torch.minimum(distance[:, None], to_prototypes(y, y[places]))  # [b tries]
        best = int(after.sum(dim=0).argmin())
        chosen.append(int(places[best]))
        distance = after[:, best]
    return y[chosen].clone()


def soft_threshold(z: Tensor, threshold: float | Tensor) -> Tensor:
    """sign(z) max(0, |z| - threshold): the proximal map of threshold ||z||_1, same shape as z."""
    return z.sign() * (z.abs() - threshold).clamp_min(0)


def largest_eigenvalue(atoms: Float[Tensor, "k d"]) -> Tensor:
    """Of W W^T, at least 1e-12: the curvature of ||y - z W||^2 / 2 in z."""
    gram = atoms.T @ atoms if atoms.shape[0] > atoms.shape[1] else atoms @ atoms.T
    values = cast(Tensor, torch.linalg.eigvalsh(gram))  # pyright: ignore[reportUnknownMemberType]
    return values[-1].clamp_min(1e-12)


@torch.no_grad()
@full_precision
def ista(
    y: Float[Tensor, "b d"],
    atoms: Float[Tensor, "k d"],
    sparsity: float,
    *,
    iterations: int = 100,
    fast: bool = True,
    towards: Float[Tensor, "b k"] | None = None,
    pull: float = 0.0,
) -> Float[Tensor, "b k"]:
    """argmin_z ||y - z W||^2 / 2 + sparsity ||z||_1 + pull ||z - towards||^2, from z = 0.

    Each step is z <- S_{sparsity/L}(z - gradient / L), S the soft threshold and L the curvature of
    the smooth part. Fast (FISTA; Beck & Teboulle 2009) the step starts from where z is heading to:
    its error falls as 1 / iterations^2 and not as 1 / iterations.

    Args:
        y: what is to be explained.
        atoms: the rows of W.
        sparsity: weight of ||z||_1.
        iterations: number of steps.
        fast: whether there is momentum.
        towards: codes that z is pulled towards.
        pull: weight of the pull.
    """
    w = at_least_float32(atoms)
    y = at_least_float32(y).to(w.dtype)
    curvature = (1 + 1e-6) * largest_eigenvalue(w) + 2 * pull

    def gradient(z: Tensor) -> Tensor:
        slope = (z @ w - y) @ w.T
        return slope if towards is None else slope + 2 * pull * (z - towards)

    start = y.new_zeros(len(y), len(w))
    return proximal_gradient(gradient, start, curvature, sparsity, iterations=iterations, fast=fast)


@torch.no_grad()
def proximal_gradient(
    gradient: Callable[[Tensor], Tensor],
    z: Float[Tensor, "b *k"],
    curvature: Tensor,
    sparsity: float,
    *,
    iterations: int,
    fast: bool = True,
) -> Float[Tensor, "b *k"]:
    """argmin_z E(z) + sparsity ||z||_1 of a smooth convex E, by ISTA or FISTA as in `ista`.

    Args:
        gradient: of E, from z to its like.
        z: where to start.
        curvature: L, of E at most.
        sparsity: weight of ||z||_1.
        iterations: number of steps.
        fast: whether there is momentum.
    """
    v, t = z, 1.0
    for _ in range(iterations):
        after = soft_threshold(v - gradient(v) / curvature, sparsity / curvature)
        faster = (1 + math.sqrt(1 + 4 * t * t)) / 2 if fast else 1.0
        v = after + (t - 1) / faster * (after - z)
        z, t = after, faster
    return z


def slope(
    of: Callable[[Tensor], Tensor], y: Float[Tensor, "b *d"], *, differentiable: bool = False
) -> Float[Tensor, "b *d"]:
    """dF/dy of every item; -dF/dy is the field that a descent follows, and the score of exp(-F).

    Gradients are switched on inside, so that this works in evaluation too.

    Args:
        of: F, from y to one value per item, which depends on that item alone.
        y: points; differentiated as they are if they require a gradient, else as a copy.
        differentiable: whether the slope itself is to be differentiated.
    """
    with torch.enable_grad():
        y = y if y.requires_grad else y.detach().requires_grad_()
        return torch.autograd.grad(of(y).sum(), y, create_graph=differentiable)[0]


def langevin(
    of: Callable[[Tensor], Tensor],
    y: Float[Tensor, "b *d"],
    normal: Callable[[int], Tensor],
    *,
    steps: int,
    size: float,
    deviation: float,
    clip: float = math.inf,
) -> Float[Tensor, "b *d"]:
    """y <- y - size dF/dy + deviation n, n standard normal, so many times; without gradient.

    With deviation = sqrt(2 size T) and small steps y becomes distributed as exp(-F / T) (Roberts &
    Tweedie 1996); with less of it, this is a descent into the wells of F.

    Args:
        of: F, as in `slope`.
        y: where the chains start.
        normal: n of each step, of the shape of y, from the number of the step.
        steps: number of steps.
        size: of a step [squared units of y per unit of F].
        deviation: of the noise of a step [units of y].
        clip: largest absolute value that an entry of dF/dy counts with.
    """
    y = y.detach()
    for i in range(steps):
        y = y - size * slope(of, y).clamp(-clip, clip) + deviation * normal(i).to(y)
    return y
