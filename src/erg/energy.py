"""Energies F(x, y): low where x and y belong together. Pure functions, torch only.

A similarity is a negative energy: cosine similarity s is the energy -s. Maths that is delicate in
half precision (norms, softmax, sums over a batch) is done in at least float32 and float64 stays.

Letters in shapes: b batch, d features, k codes or prototypes, n tokens, m other side of a product.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Switch autocast off inside a function, so that its matrix products stay in float32.

    Promoting the inputs is not enough: autocast would cast them down again for the product.
    """

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        given = (*args, *kwargs.values())
        device = next(a.device.type for a in given if isinstance(a, Tensor))
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return inside


def at_least_float32(x: Tensor) -> Tensor:
    """Promote half precision to float32 and leave float32 and float64 alone."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normalise(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Divide by the Euclidean norm (at least 1e-12)."""
    return F.normalize(at_least_float32(x), dim=-1)


def layer_normalise(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Each row to mean 0 and variance 1 over its features (plus 1e-5), nothing learned."""
    return F.layer_norm(at_least_float32(x), x.shape[-1:])


def cosine(x: Float[Tensor, "*b d"], y: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """-cos(x, y), in [-1, 1]."""
    return -(normalise(x) * normalise(y)).sum(dim=-1)


@full_precision
def products(x: Float[Tensor, "b d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "b m"]:
    """x_i . y_j for all i and j."""
    x = at_least_float32(x)
    return x @ y.to(x.dtype).T


def squared_distance(x: Float[Tensor, "b *d"], y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """||x - y||^2, summed over all dimensions but the first."""
    return (at_least_float32(x) - at_least_float32(y)).square().flatten(1).sum(dim=1)


def mean_squared_error(x: Float[Tensor, "b *d"], y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """||x - y||^2 / d, the mean over all dimensions but the first."""
    return (at_least_float32(x) - at_least_float32(y)).square().flatten(1).mean(dim=1)


def smooth_l1(
    x: Float[Tensor, "*b d"], y: Float[Tensor, "*b d"], beta: float = 1.0
) -> Float[Tensor, "*b"]:
    """Mean over features of |e| - beta / 2 or, where |e| < beta, of e^2 / (2 beta); e = x - y."""
    x = at_least_float32(x)
    return F.smooth_l1_loss(x, y.to(x.dtype), beta=beta, reduction="none").mean(dim=-1)


@full_precision
def to_prototypes(
    y: Float[Tensor, "b d"], prototypes: Float[Tensor, "k d"]
) -> Float[Tensor, "b k"]:
    """E(y, z = k) = ||y - w_k||^2, the energy of k-means for every code."""
    w = at_least_float32(prototypes)
    y = at_least_float32(y).to(w.dtype)
    cross = y @ w.T
    return (y.square().sum(1, keepdim=True) - 2 * cross + w.square().sum(1)).clamp_min(0)


def free_energy(energies: Float[Tensor, "*b k"], beta: float = float("inf")) -> Float[Tensor, "*b"]:
    """F_beta = -(1/beta) log (1/k) sum_z exp(-beta E_z): the energy with the latent summed out.

    beta = inf is the zero-temperature limit min_z E_z; beta -> 0 the mean. The 1/k keeps F finite
    as beta -> 0.
    """
    energies = at_least_float32(energies)
    if beta == float("inf"):
        return energies.amin(dim=-1)
    if beta == 0:
        return energies.mean(dim=-1)
    return -(torch.logsumexp(-beta * energies, dim=-1) - math.log(energies.shape[-1])) / beta


def cross_entropy(
    scores: Float[Tensor, "*b k"], target: Float[Tensor, "*b k"]
) -> Float[Tensor, "*b"]:
    """-sum_k q_k log softmax(s)_k against a soft target q that sums to 1."""
    return -(at_least_float32(target) * at_least_float32(scores).log_softmax(dim=-1)).sum(dim=-1)


def divergence(s: Float[Tensor, "*b k"], t: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    """KL(softmax(s) || softmax(t)) = sum_k p_k (log p_k - log q_k), of scores."""
    p = at_least_float32(s).softmax(dim=-1)
    return cross_entropy(t, p) - cross_entropy(s, p)


def between_crops(
    scores: Sequence[Float[Tensor, "b k"]], codes: Sequence[Float[Tensor, "b k"]]
) -> Float[Tensor, " b"]:
    """Mean of -sum_k q_k(y) log p_k(x) over all pairs of a crop y with a code and another crop x.

    Args:
        scores: of every crop, log p but for a constant; those with a code come first.
        codes: q of the first crops.
    """
    total, pairs = torch.zeros_like(codes[0][:, 0]), 0
    for i, each in enumerate(scores):
        others = [q for j, q in enumerate(codes) if j != i]
        if others:  # linear in the code: those of all others, added up
            total = total + cross_entropy(each, torch.stack(others).sum(dim=0))
            pairs += len(others)
    return total / pairs


def of_class(logits: Float[Tensor, "b k"], target: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """-log softmax(logits)[target]: the energy of a class."""
    return F.cross_entropy(at_least_float32(logits), target, reduction="none")


def masked_mean(errors: Float[Tensor, "b n"], where: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Mean of a per-place error over the places of each item where it counts; 0 where none does."""
    weight = where.to(errors.dtype)
    return (errors * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


def of_hidden(errors: Float[Tensor, " m"], hidden: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """`masked_mean` of errors that are given for hidden places alone, item by item."""
    return masked_mean(errors.new_zeros(hidden.shape).masked_scatter(hidden, errors), hidden)


def bernoulli(logits: Float[Tensor, "b *d"], target: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """-log p(target) for independent Bernoulli pixels of probability sigmoid(logits) [nats].

    Targets between 0 and 1 are probabilities themselves. Summed over all dimensions but the first.

    Raises:
        ValueError: a target outside [0, 1], for which this has no lower bound; looked for on the
            CPU alone.
    """
    if target.device.type == "cpu":  # an accelerator would have to be waited for
        low, high = (float(edge) for edge in target.aminmax())
        if low < -1e-3 or high > 1.001:
            raise ValueError(
                f"binary cross-entropy needs targets in [0, 1] (got {low:.3g} to {high:.3g}). "
                "Scale the data, or use an output with squared error."
            )
    logits = at_least_float32(logits)
    target = at_least_float32(target).clamp(0, 1).to(logits.dtype)
    errors = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return errors.flatten(1).sum(dim=1)
