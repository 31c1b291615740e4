"""Mixture of Gaussians: scipy's densities, scikit-learn's steps, and an integral of one."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Sklearn
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.gaussian_mixture import GaussianMixture
from erg.methods.kmeans import KMeans
from erg.testing import check_method
from erg.views.plan import whole
from erg.views.types import View, Views

KINDS = {"full": "full", "diagonal": "diag", "isotropic": "spherical"}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clouds(n: int = 90, d: int = 2) -> Tensor:
    """Three clouds of different shapes."""
    centres, shapes = 4 * drawn(3, d, seed=1), drawn(3, d, d, seed=2)
    which = torch.arange(n) % 3
    return centres[which] + torch.einsum("ndc,nc->nd", shapes[which], drawn(n, d))


def a_method(d: int = 2, **arguments: Any) -> GaussianMixture:
    return GaussianMixture(build_encoder("identity", d), **{"k": 3, **arguments}).double()


def any_mixture(covariance: Any, d: int = 2) -> GaussianMixture:
    """Weights, means and covariances fitted to nothing."""
    method = a_method(d, covariance=covariance)
    method.log_weights.copy_(drawn(3, seed=3).log_softmax(0))
    method.means.copy_(drawn(3, d, seed=4))
    if covariance == "full":
        spread = drawn(3, d, d, seed=5)
        spread = spread @ spread.mT + 0.3 * torch.eye(d, dtype=torch.float64)
        method.factors.copy_(torch.linalg.cholesky(spread))
    elif covariance == "diagonal":
        method.factors.copy_(drawn(3, d, seed=5).exp())
    else:
        method.factors.copy_(drawn(3, 1, seed=5).exp().expand(3, d))
    return method


def covariances(method: GaussianMixture) -> Tensor:
    if method.factors.ndim == 3:
        return method.factors @ method.factors.mT
    return method.factors.square().diag_embed()


def log_density(y: Tensor, mean: Tensor, spread: Any) -> np.ndarray:
    return multivariate_normal(mean.numpy(), spread.numpy()).logpdf(y.numpy())


def batch(y: Tensor) -> Views:
    return Views((View(y),), torch.arange(len(y)), pairing="alone")


@pytest.mark.parametrize("kind", KINDS)
def test_energy_is_the_negative_log_density(kind: str) -> None:
    method, y = any_mixture(kind, 3), drawn(20, 3)
    parts = np.stack(
        [
            float(log_weight) + log_density(y, mean, spread)
            for log_weight, mean, spread in zip(
                method.log_weights, method.means, covariances(method), strict=True
            )
        ]
    )
    np.testing.assert_allclose(method.of_features(y).T.numpy(), -parts, rtol=1e-10)
    wanted = -logsumexp(parts, axis=0)
    np.testing.assert_allclose(method.energy(None, View(y)).numpy(), wanted, rtol=1e-10)
    loss = method.loss(batch(y), 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(wanted.mean())
    np.testing.assert_allclose(method.encode(y).numpy().T, np.exp(parts + wanted), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_exp_of_minus_the_energy_integrates_to_one(kind: str) -> None:
    method = any_mixture(kind)
    reach, step = 25.0, 0.05
    axis = torch.arange(-reach, reach, step, dtype=torch.float64)
    y = torch.cartesian_prod(axis, axis)
    total = (-method.energy(None, View(y))).exp().sum().item() * step**2
    assert total == pytest.approx(1, abs=1e-3)


def test_gradient_is_the_score_in_closed_form() -> None:
    """-dF/dy = sum_k r_k S_k^-1 (m_k - y)."""
    method, y = any_mixture("full", 3), drawn(5, 3).requires_grad_()
    (found,) = torch.autograd.grad(method.energy(None, View(y)).sum(), y)
    inverses = torch.linalg.inv(covariances(method))
    shares = method.encode(y.detach())
    for i, point in enumerate(y.detach()):
        pulls = [shares[i, k] * inverses[k] @ (method.means[k] - point) for k in range(3)]
        assert torch.allclose(-found[i], torch.stack(pulls).sum(0))


def test_with_equal_isotropic_gaussians_it_is_the_free_energy_of_kmeans() -> None:
    method, y, s, d = a_method(3, covariance="isotropic"), drawn(20, 3), 0.7, 3
    method.means.copy_(drawn(3, 3, seed=4))
    method.factors.fill_(s)
    beta = 1 / (2 * s**2)
    kmeans = KMeans(build_encoder("identity", 3), k=3, beta=beta).double()
    with torch.no_grad():
        kmeans.prototypes.copy_(method.means)
    wanted = beta * kmeans.energy(None, View(y)) + 0.5 * d * math.log(2 * math.pi * s**2)
    assert torch.allclose(method.energy(None, View(y)), wanted)
    assert torch.allclose(method.encode(y), kmeans.encode(y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 4])
def test_steps_are_those_of_scikit_learn(kind: str, steps: int) -> None:
    y = clouds()
    method = a_method(covariance=kind, steps=0)
    method.after_epoch(y)
    spread = covariances(method)
    precisions = torch.linalg.inv(spread).numpy()
    if kind == "diagonal":
        precisions = np.diagonal(precisions, axis1=1, axis2=2)
    elif kind == "isotropic":
        precisions = precisions[:, 0, 0]
    theirs: Any = Sklearn(
        3, covariance_type=KINDS[kind], max_iter=steps, tol=0.0, reg_covar=1e-6,
        weights_init=method.log_weights.exp().numpy(), means_init=method.means.numpy(),
        precisions_init=precisions,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(y.numpy())
    method.steps = steps
    method.after_epoch(y)
    np.testing.assert_allclose(method.log_weights.exp().numpy(), theirs.weights_, rtol=1e-6)
    np.testing.assert_allclose(method.means.numpy(), theirs.means_, rtol=1e-6)
    wanted = -theirs.score_samples(y.numpy())
    np.testing.assert_allclose(method.energy(None, View(y)).numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_never_falls(kind: str) -> None:
    y, method = clouds(), a_method(covariance=kind, steps=1)
    values = []
    for _ in range(30):
        method.after_epoch(y)
        values.append(method.loss(batch(y), 0.0).total.item())
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(values))
    assert values[-1] < values[0] - 1e-3


def test_one_gaussian_is_the_sample_mean_and_covariance() -> None:
    y = clouds(d=3)
    method = a_method(3, k=1, covariance="full", floor=0.0)
    method.after_epoch(y)
    assert torch.allclose(method.means[0], y.mean(0))
    assert torch.allclose(covariances(method)[0], torch.cov(y.T, correction=0))


def test_on_a_flat_set_the_floor_keeps_the_energy_finite() -> None:
    """Points on a line: the thinner the Gaussians may be, the lower the energy, without end."""
    line = drawn(50, 1) * torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    energies = []
    for floor in (1e-2, 1e-4, 1e-6):
        method = a_method(3, k=2, covariance="full", floor=floor)
        method.after_epoch(line)
        energies.append(method.loss(batch(line), 0.0).total.item())
        assert math.isfinite(energies[-1])
    # Two directions are flat: each factor of 100 in variance adds log 100 to log p.
    for wide, thin in itertools.pairwise(energies):
        assert wide - thin == pytest.approx(math.log(100), rel=0.1)


def test_float32_and_a_gaussian_that_holds_nothing_stay_finite() -> None:
    y = torch.cat([torch.zeros(5, 2), torch.ones(5, 2)]).float()
    method = GaussianMixture(build_encoder("identity", 2), k=4, covariance="full")
    for _ in range(5):
        method.after_epoch(y)
    assert torch.isfinite(method.energy(None, View(y))).all()
    assert torch.isfinite(method.encode(torch.randn(6, 2))).all()


def test_having_started_is_saved_and_full_covariances_keep_the_contract() -> None:
    first, second = a_method(seed=2), a_method()
    first.after_epoch(clouds())
    second.load_state_dict(first.state_dict())
    for method in (first, second):
        method.after_epoch(clouds())
    assert torch.equal(first.means, second.means)
    assert first.plan() == whole()
    check_method(GaussianMixture, arguments={"k": 2, "covariance": "full", "floor": 1e-2})


def test_half_precision_is_promoted() -> None:
    method = GaussianMixture(build_encoder("identity", 3), k=2)
    y = drawn(4, 3).bfloat16()
    assert method.energy(None, View(y)).dtype == torch.float32
