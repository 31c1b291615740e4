"""PCA: closed forms against the SVD, and the linear autoencoder that finds the same plane."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.pca import PCA
from erg.testing import check_method
from erg.views.plan import whole
from erg.views.types import View, Views


def points(n: int = 60, d: int = 6, seed: int = 0) -> Tensor:
    """Gaussian, with deviations that fall from feature to feature, turned, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return (x / torch.arange(1, d + 1)) @ turn + torch.arange(d)


def fitted(y: Tensor, **arguments: Any) -> PCA:
    torch.manual_seed(0)
    method = PCA(build_encoder("identity", y.shape[1]), **{"k": 2, **arguments}).double()
    method.after_epoch(y)
    return method


def batch(y: Tensor) -> Views:
    return Views((View(y),), torch.arange(len(y)), pairing="alone")


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Principal angles between the column spaces of two matrices [rad]."""
    a, b = torch.linalg.qr(a)[0], torch.linalg.qr(b)[0]
    return torch.linalg.svdvals(a.T @ b).clamp(-1, 1).arccos()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_closed_form_is_the_svd(k: int) -> None:
    y = points()
    method = fitted(y, k=k)
    centred = y - y.mean(0)
    left, singular, right = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(method.variances, singular.square() / 60)
    wanted = (left[:, :k] * singular[:k]).abs()  # directions are found up to their signs
    assert torch.allclose(method.encode(y).abs(), wanted, atol=1e-10)
    rest = centred - centred @ right[:k].T @ right[:k]
    assert torch.allclose(method.energy(None, View(y)), rest.square().sum(1), atol=1e-10)


def test_of_more_features_than_images_no_covariance_is_made() -> None:
    """And what is found is what the covariance tells."""
    y = points(6, 40)
    method = fitted(y, k=4)
    centred = y - y.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / 6)
    assert torch.allclose(method.variances, variances.flip(0), atol=1e-10)
    assert float(angles(method.up, directions[:, -4:]).max()) < 1e-6

    wide = fitted(torch.randn(3, 100_000, generator=torch.Generator().manual_seed(0)))
    assert wide.up.shape == (100_000, 2)  # of 80 GB there would be no memory


@pytest.mark.parametrize("k", [1, 3, 6])
def test_mean_energy_is_the_sum_of_the_variances_left_out(k: int) -> None:
    y = points()
    method = fitted(y, k=k)
    loss = method.loss(batch(y), 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(float(method.variances[k:].sum()), abs=1e-12)
    covariance = torch.cov(y.T, correction=0)
    assert float(method.variances.sum()) == pytest.approx(float(covariance.trace()))


def test_no_other_plane_of_this_width_misses_less() -> None:
    y = points()
    best = fitted(y).loss(batch(y), 0.0).total.item()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        plane = torch.randn(6, 2, generator=generator, dtype=torch.float64)
        plane = torch.linalg.qr(plane)[0]
        centred = y - y.mean(0)
        assert (centred - centred @ plane @ plane.T).square().sum(1).mean().item() > best


def test_standardised_it_diagonalises_the_correlations() -> None:
    y = points()
    y[:, 3] = 5.0  # constant: must not divide by zero
    method = fitted(y, standardise=True)
    kept = [0, 1, 2, 4, 5]
    correlations = torch.corrcoef(y[:, kept].T)
    wanted = torch.linalg.eigvalsh(correlations).flip(0)
    assert torch.allclose(method.variances[:5], wanted)
    assert method.variances[5].abs() < 1e-12
    assert torch.isfinite(method.energy(None, View(points(seed=1)))).all()
    assert not torch.allclose(fitted(y).variances[:5], wanted)


def test_directions_have_a_sign_of_their_own() -> None:
    """Turning all data round turns the mean and nothing else."""
    y = points()
    ahead, back = fitted(y), fitted(-y)
    assert torch.allclose(ahead.down, back.down)
    for row in ahead.down:
        assert row[row.abs().argmax()] > 0


def test_a_linear_autoencoder_finds_the_same_plane() -> None:
    """Spectrum 1/k in 50 dimensions, 5 kept: angles below 0.01 rad, variance within 0.1 %."""
    generator = torch.Generator().manual_seed(0)
    deviations = torch.arange(1, 51, dtype=torch.float64).rsqrt()
    y = torch.randn(400, 50, generator=generator, dtype=torch.float64) * deviations + 3
    closed, trained = fitted(y, k=5), fitted(y, k=5, by="sgd")
    assert trained.loss(batch(y), 0.0).total > 1.2 * closed.loss(batch(y), 0.0).total
    optimiser = torch.optim.LBFGS(
        [trained.down, trained.up], max_iter=400, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def step() -> Tensor:
        optimiser.zero_grad()
        total = trained.loss(batch(y), 0.0).total
        total.backward()
        return total

    optimiser.step(step)
    assert float(angles(trained.up.detach(), closed.up).max()) < 1e-2
    assert float(angles(trained.down.detach().T, closed.up).max()) < 1e-2
    with torch.no_grad():
        found, best = (m.loss(batch(y), 0.0).total.item() for m in (trained, closed))
    whole_variance = float(closed.variances.sum())
    assert (whole_variance - found) / (whole_variance - best) == pytest.approx(1, abs=1e-3)
    # The same plane in other coordinates: weights agree only up to an invertible matrix.
    assert not torch.allclose(trained.down, closed.down, atol=0.05)


def test_by_gradient_the_epoch_only_centres() -> None:
    y = points()
    method = PCA(build_encoder("identity", 6), k=2, by="sgd").double()
    before = method.down.detach().clone(), method.up.detach().clone()
    method.after_epoch(y)
    assert torch.equal(method.down, before[0])
    assert torch.equal(method.up, before[1])
    assert torch.allclose(method.mean, y.mean(0))
    assert method.down.requires_grad
    assert not fitted(y).down.requires_grad


def test_fewer_images_than_features() -> None:
    y = points(4)
    method = fitted(y, k=5)
    assert torch.allclose(method.energy(None, View(y)), torch.zeros(4, dtype=torch.float64))
    assert method.energy(None, View(points(seed=1))).mean() > 0.1


def test_as_many_directions_as_features_miss_nothing() -> None:
    """Over-complete or not narrow: low everywhere, and so no use as an energy."""
    method = fitted(points(), k=6)
    far = 100 * points(seed=3)
    assert float(method.energy(None, View(far)).max()) < 1e-16 * float(far.square().sum())


@pytest.mark.parametrize("k", [0, 7])
def test_more_directions_than_features_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"1 to 6, the width of identity \(got {k}\)"):
        PCA(build_encoder("identity", 6), k=k)


def test_by_gradient_it_keeps_the_contract() -> None:
    check_method(PCA, arguments={"k": 3, "by": "sgd", "standardise": True})
    assert fitted(points()).plan() == whole()
