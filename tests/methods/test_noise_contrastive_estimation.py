"""Noise-contrastive estimation: a loop, known normalisers, and the integral of what it learns."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from erg import inference, noise
from erg.encoders import build_encoder
from erg.methods.noise_contrastive_estimation import NoiseContrastiveEstimation
from erg.testing import check_method
from erg.views.types import View, Views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CENTRES = torch.tensor([[1.5, 0.0], [-0.75, 1.3], [-0.75, -1.3]], dtype=torch.float64)


def mixture(n: int, seed: int = 0, spread: float = 0.5) -> Tensor:
    """Points of three equal Gaussians."""
    return CENTRES[torch.arange(n) % 3] + spread * drawn(n, 2, seed=seed)


def log_density(y: Tensor, spread: float = 0.5) -> Tensor:
    gaps = (y[:, None] - CENTRES).square().sum(2) / (2 * spread**2)
    return (-gaps).logsumexp(1) - math.log(3 * 2 * math.pi * spread**2)


def score(y: Tensor, spread: float = 0.5) -> Tensor:
    """The gradient of the log density: sum_k r_k (m_k - y) / s^2."""
    pulls = (CENTRES - y[:, None]) / spread**2
    shares = (-(y[:, None] - CENTRES).square().sum(2) / (2 * spread**2)).softmax(1)
    return (shares[:, :, None] * pulls).sum(1)


def a_method(d: int = 2, **arguments: Any) -> NoiseContrastiveEstimation:
    torch.manual_seed(0)
    encoder = build_encoder("mlp", d, width=32, dim=16, activation="silu")
    return NoiseContrastiveEstimation(encoder, **{"width": 32, **arguments}).double()


def batch(y: Tensor, step: int = 0) -> Views:
    return Views((View(y),), torch.arange(len(y)), step=step, pairing="alone")


def test_the_loss_is_the_loop() -> None:
    """Odds as densities: h = p / (k q) with p = exp(-F) / Z."""
    method, y, k = a_method(ratio=3, spread=1.4), 2 * drawn(5, 2) + 1, 3
    with torch.no_grad():
        method.log_partition.fill_(0.6)
    loss = method.train().loss(batch(y, 4), 0.0)
    mean, deviation = y.mean(0), 1.4 * y.std(0, correction=0)
    normal = noise.normal(torch.arange(5), 3, 2, purpose="noise", step=4).double()

    def odds(point: Tensor) -> float:
        p = math.exp(-method.energy(None, View(point[None])).item() - 0.6)
        q = norm(mean.numpy(), deviation.numpy()).pdf(point.numpy()).prod()
        return p / (k * float(q))

    of_data = [math.log(1 + 1 / odds(point)) for point in y]
    of_noise = [math.log(1 + odds(mean + deviation * n)) for own in normal for n in own]
    assert loss.pull["data"].item() == pytest.approx(sum(of_data) / 5)
    assert loss.push["noise"].item() == pytest.approx(sum(of_noise) / 5)


def test_energy_is_the_ratio_times_the_noise() -> None:
    method, y = a_method(3), drawn(6, 3)
    method.train().loss(batch(2 * drawn(40, 3, seed=1) - 3), 0.0)
    q = norm(method.mean.numpy(), method.deviation.numpy()).logpdf(y.numpy()).sum(1)
    wanted = method.ratio_of(y).detach().numpy() - q
    np.testing.assert_allclose(method.energy(None, View(y)).detach().numpy(), wanted, rtol=1e-10)


def test_the_noise_has_the_moments_of_all_data_seen() -> None:
    method, y = a_method(3).train(), torch.tensor([5.0, 1.0, 0.1]) * drawn(60, 3) + 7
    for step, part in enumerate(y.split([10, 30, 20])):
        method.loss(batch(part, step), 0.0)
    assert torch.allclose(method.mean, y.mean(0))
    assert torch.allclose(method.variance, y.var(0, correction=0))
    before = method.mean.clone()
    method.eval().loss(batch(10 * y), 0.0)
    assert torch.equal(method.mean, before)


def test_values_that_never_change_leave_it_finite() -> None:
    y = drawn(20, 2)
    y[:, 1] = 3.0
    method = a_method().train()
    assert torch.isfinite(method.loss(batch(y), 0.0).total)
    assert torch.isfinite(method.energy(None, View(y))).all()


class Gaussian(nn.Module):
    """g = ||y - m||^2 / (2 s^2) + log q(y): F is that of a Gaussian without its normaliser."""

    def __init__(self, of: NoiseContrastiveEstimation, centre: Tensor, spread: float) -> None:
        super().__init__()
        self.of, self.centre, self.spread = [of], centre, spread

    def forward(self, y: Tensor) -> Tensor:
        (of,) = self.of
        white = (y - of.mean) / of.deviation
        log_q = -(white.square() / 2 + of.deviation.log() + 0.5 * math.log(2 * math.pi)).sum(1)
        return ((y - self.centre).square().sum(1) / (2 * self.spread**2) + log_q)[:, None]


def test_it_recovers_the_normaliser_of_a_gaussian() -> None:
    spread, n = 0.6, 20_000
    centre = torch.tensor([1.0, -2.0], dtype=torch.float64)
    method = NoiseContrastiveEstimation(build_encoder("identity", 2), spread=1.3).double().train()
    method.head = Gaussian(method, centre, spread)
    y = centre + spread * drawn(n, 2)
    assert torch.allclose(
        method.energy(None, View(y)), (y - centre).square().sum(1) / (2 * spread**2)
    )
    optimiser = torch.optim.LBFGS([method.log_partition], line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimiser.zero_grad()
        total = method.loss(batch(y), 0.0).total
        total.backward()
        return total

    optimiser.step(step)
    wanted = math.log(2 * math.pi * spread**2)
    assert method.log_partition.item() == pytest.approx(wanted, abs=0.02)


def test_what_it_learns_on_a_mixture_is_normalised_and_has_its_field() -> None:
    method = a_method(ratio=4).train().float()
    optimiser = torch.optim.Adam(method.parameters(), lr=5e-3)
    for step in range(450):
        optimiser.zero_grad()
        method.loss(batch(mixture(256, seed=step).float(), step), 0.0).total.backward()
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * (1 - step / 450)
    method = method.eval().double()
    axis = torch.arange(-8, 8, 0.1, dtype=torch.float64)
    with torch.no_grad():
        grid = method.energy(None, View(torch.cartesian_prod(axis, axis)))
        total = (-grid - method.log_partition).exp().sum().item() * 0.01
    assert total == pytest.approx(1, abs=0.05)
    y = mixture(600, seed=99)
    field = -inference.slope(method.of_data, y)
    assert nn.functional.cosine_similarity(field, score(y)).mean() > 0.95
    found = method.energy(None, View(y)) + method.log_partition
    assert (found + log_density(y)).mean().item() == pytest.approx(0, abs=0.06)


def test_contract() -> None:
    check_method(NoiseContrastiveEstimation, arguments={"ratio": 2, "spread": 1.5, "width": 8})
    assert a_method().plan().pairs == "alone"
    method = NoiseContrastiveEstimation(build_encoder("conv", 16, width=4)).train()
    assert not method.encoder.training
