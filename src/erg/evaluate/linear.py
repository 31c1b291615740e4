"""Linear probe: multinomial logistic regression on frozen, standardised features.

Letters in shapes: n training items, m test items, d features, c classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""C, the inverse of the regularisation, from strong to weak."""

ROWS = 65_536
"""Rows per matrix product; bounds the memory that the probabilities take."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted classifier.

    Args:
        classes: sorted classes.
        mean: of the training features, subtracted first.
        scale: standard deviation of the training features, divided by; 1 where they are constant.
        weight: a row per class.
        bias: per class.
        strength: the C chosen, see `fit_probe`.
        tried: accuracy on the validation split by C, in [0, 1].
    """

    classes: Shaped[np.ndarray, " c"]
    mean: Float32[np.ndarray, " d"]
    scale: Float32[np.ndarray, " d"]
    weight: Float32[np.ndarray, "c d"]
    bias: Float32[np.ndarray, " c"]
    strength: float
    tried: dict[float, float] = field(default_factory=dict)

    def logits(self, vectors: Float[np.ndarray, "m d"]) -> Float32[np.ndarray, "m c"]:
        """Unnormalised log-probabilities of the classes."""
        # Standardisation folded into the weights: no copy of the features.
        weight = self.weight / self.scale
        bias = self.bias - weight @ self.mean
        return (vectors @ weight.T + bias).astype(np.float32)

    def predict(self, vectors: Float[np.ndarray, "m d"]) -> Shaped[np.ndarray, " m"]:
        """The most probable class of every item."""
        return self.classes[self.logits(vectors).argmax(axis=1)]


def linear_accuracy(
    train: Float[np.ndarray, "n d"],
    train_labels: Shaped[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Shaped[np.ndarray, " m"],
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    device: str | torch.device = "cpu",
) -> Bool[np.ndarray, " m"]:
    """Whether a linear probe fitted on the training set is right, per test item.

    The test set is used once, after everything has been chosen. A class that the training set
    lacks is always wrong. The mean is the accuracy; `intervals.bootstrap` gives its interval.

    Args:
        train: features of the training set.
        train_labels: their classes.
        test: features of the test set.
        test_labels: their classes.
        groups: of the training set, see `fit_probe`.
        seed: of the validation split.
        strengths: values of C to choose from.
        device: where the probe is fitted.

    Raises:
        ValueError: see `fit_probe`; or labels do not fit the test set.
    """
    if len(test) != len(test_labels):
        raise ValueError(
            f"there are {len(test_labels)} labels for {len(test)} test vectors. "
            "Pass one per vector."
        )
    probe = fit_probe(
        train, train_labels, groups=groups, seed=seed, strengths=strengths, device=device
    )
    return probe.predict(test) == test_labels


def fit_probe(
    vectors: Float[np.ndarray, "n d"],
    labels: Shaped[np.ndarray, " n"],
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    validation: float = 0.2,
    device: str | torch.device = "cpu",
) -> Probe:
    """Minimise C * (sum of cross-entropies) + |W|^2 / 2 with L-BFGS; C from a validation split.

    C climbs from strong to weak regularisation, each fit starting at the last, and stops once two
    in a row are worse than the best. The smallest C of the best accuracy is refitted on all items.
    Each fit is standardised with its own items only. With one C given, or a class structure that
    leaves nothing to validate on, nothing is split and the (middle) C is used.

    Args:
        vectors: features of the training set.
        labels: their classes, at least two.
        groups: items that must not validate each other (exact duplicates) share one; by default
            every item is its own group.
        seed: of the validation split.
        strengths: values of C to choose from.
        validation: share of every class that validates; at least one item where a class has two.
        device: where the probe is fitted.

    Raises:
        ValueError: labels do not fit, there is one class only, or a feature is NaN or infinite.
    """
    classes, codes = np.unique(labels, return_inverse=True)
    _check(vectors, codes, classes, strengths)
    grid = sorted(strengths)
    random = np.random.default_rng(seed)
    if groups is None:
        held = _validation_rows(codes, validation, random)
    else:
        held = _validation_groups(codes, groups, validation, random)
    tried: dict[float, float] = {}
    best = grid[len(grid) // 2]
    if len(grid) > 1 and held.any():
        tried = _validate(vectors, codes, held, len(classes), grid, device)
        best = max(tried, key=lambda strength: (tried[strength], -strength))
    mean, scale = _moments(vectors)
    features = _standardised(vectors, mean, scale, device)
    fitted = _fit(features, codes, len(classes), best, None, precise=True)
    weight, bias = _split(fitted, len(classes))
    return Probe(classes, mean, scale, weight, bias, best, tried)


def _validate(
    vectors: Float[np.ndarray, "n d"],
    codes: Int64[np.ndarray, " n"],
    held: Bool[np.ndarray, " n"],
    classes: int,
    grid: Sequence[float],
    device: str | torch.device,
) -> dict[float, float]:
    """Accuracy on the held-out rows by C."""
    kept = vectors[~held]
    mean, scale = _moments(kept)
    fit = _standardised(kept, mean, scale, device)
    check = _standardised(vectors[held], mean, scale, device)
    tried: dict[float, float] = {}
    parameters = None
    for strength in grid:
        parameters = _fit(fit, codes[~held], classes, strength, parameters, precise=False)
        weight, bias = (torch.from_numpy(part).to(check) for part in _split(parameters, classes))
        predicted = (check @ weight.T + bias).argmax(dim=1).cpu().numpy()
        tried[strength] = float((predicted == codes[held]).mean())
        if len(tried) > 2 and max(list(tried.values())[-2:]) < max(tried.values()):
            break
    return tried


def _fit(
    features: Float32[torch.Tensor, "n d"],
    codes: Int64[np.ndarray, " n"],
    classes: int,
    strength: float,
    start: Float64[np.ndarray, " p"] | None,
    *,
    precise: bool,
) -> Float64[np.ndarray, " p"]:
    """Weights [c d] and biases [c], flat. The objective is divided by C n: of order 1."""
    n, d = features.shape
    target = torch.from_numpy(codes).to(features.device)
    penalty = 1 / (strength * n)

    def objective(flat: Float64[np.ndarray, " p"]) -> tuple[float, Float64[np.ndarray, " p"]]:
        weight, bias = (torch.from_numpy(part).to(features) for part in _split(flat, classes))
        slope_weight, slope_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        loss = 0.0
        for first in range(0, n, ROWS):
            x, y = features[first : first + ROWS], target[first : first + ROWS, None]
            log_p = torch.log_softmax(torch.addmm(bias, x, weight.T), dim=1)  # [b c]
            loss -= float(log_p.gather(1, y).sum(dtype=torch.float64))
            gap = log_p.exp_().scatter_add_(1, y, torch.full_like(y, -1, dtype=log_p.dtype))
            slope_weight.addmm_(gap.T, x)
            slope_bias += gap.sum(dim=0)
        slope = torch.cat([slope_weight.flatten(), slope_bias]).cpu().numpy().astype(np.float64) / n
        slope[: classes * d] += penalty * flat[: classes * d]
        return loss / n + 0.5 * penalty * float(flat[: classes * d] @ flat[: classes * d]), slope

    flat = np.zeros(classes * (d + 1)) if start is None else start
    # float32 products resolve the objective to about 1e-7: asking for more only searches noise.
    options = {"maxcor": 10, "maxiter": 1000, "ftol": 1e-8, "gtol": 1e-6}
    if not precise:
        options |= {"maxiter": 100, "ftol": 1e-6, "gtol": 1e-4}
    # The threads of SciPy's BLAS, which spin for a while after its small products, would take the
    # cores from torch's: five times as slow on two of them.
    with threadpool_limits(limits=1, user_api="blas"):
        return minimize(objective, flat, jac=True, method="L-BFGS-B", options=options).x


def _split(
    flat: Float64[np.ndarray, " p"], classes: int
) -> tuple[Float32[np.ndarray, "c d"], Float32[np.ndarray, " c"]]:
    parameters = flat.astype(np.float32)
    return parameters[:-classes].reshape(classes, -1), parameters[-classes:]


def _moments(
    vectors: Float[np.ndarray, "n d"],
) -> tuple[Float32[np.ndarray, " d"], Float32[np.ndarray, " d"]]:
    """Mean and standard deviation per feature, summed in float64, without a copy of the whole."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    square = np.zeros_like(mean)
    for start in range(0, len(vectors), ROWS):
        square += ((vectors[start : start + ROWS] - mean) ** 2).sum(axis=0)
    scale = np.sqrt(square / len(vectors))
    # A feature that varies by its rounding only is constant: dividing would blow the rounding up.
    scale[scale <= 1e-6 * np.abs(mean)] = 1
    return mean.astype(np.float32), scale.astype(np.float32)


def _standardised(
    vectors: Float[np.ndarray, "n d"],
    mean: Float32[np.ndarray, " d"],
    scale: Float32[np.ndarray, " d"],
    device: str | torch.device,
) -> Float32[torch.Tensor, "n d"]:
    features = np.subtract(vectors, mean, dtype=np.float32)
    features /= scale
    return torch.from_numpy(features).to(device)


def _validation_rows(
    codes: Int64[np.ndarray, " n"], share: float, random: np.random.Generator
) -> Bool[np.ndarray, " n"]:
    """The same share of every class; never all of a class."""
    counts = np.bincount(codes)
    wanted = np.clip(np.round(share * counts).astype(np.int64), 1, counts - 1)
    order = random.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]  # class by class, random inside
    place = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.zeros(len(codes), dtype=np.bool_)
    held[order] = place < np.repeat(wanted, counts)
    return held


def _validation_groups(
    codes: Int64[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    share: float,
    random: np.random.Generator,
) -> Bool[np.ndarray, " n"]:
    """As `_validation_rows` of the first item of every group; the others follow it."""
    if len(groups) != len(codes):
        raise ValueError(
            f"there are {len(groups)} groups for {len(codes)} items. Pass one per item."
        )
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they come, so that names of groups do not matter
    held = np.empty(len(first), dtype=np.bool_)
    held[order] = _validation_rows(codes[first[order]], share, random)
    return held[group]


def _check(
    vectors: np.ndarray, codes: np.ndarray, classes: np.ndarray, strengths: Sequence[float]
) -> None:
    if len(vectors) != len(codes):
        raise ValueError(
            f"there are {len(codes)} labels for {len(vectors)} vectors. Pass one per vector."
        )
    if len(classes) < 2:
        raise ValueError(
            f"a probe needs at least two classes (got {len(classes)}). Label more items."
        )
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths should be positive, at least one (got {strengths}).")
    if not np.isfinite(vectors).all():
        raise ValueError("a feature is NaN or infinite. Look at the health of the run.")
