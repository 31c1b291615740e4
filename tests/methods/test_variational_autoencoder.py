"""Variational autoencoder: the divergence by Monte Carlo, the bound on a model that is known."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg import noise
from erg.encoders import build_encoder
from erg.methods.variational_autoencoder import VariationalAutoencoder, divergence
from erg.schedule import Constant, Linear
from erg.testing import check_method
from erg.views.plan import LIGHT
from erg.views.types import View, Views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_vectors(d: int = 4, **arguments: Any) -> VariationalAutoencoder:
    torch.manual_seed(0)
    settings = {"dim": 2, **arguments}
    return VariationalAutoencoder(build_encoder("identity", d), **settings).double()


def batch(y: Tensor, step: int = 0) -> Views:
    return Views((View(y),), torch.arange(len(y)), step=step, pairing="alone")


def test_divergence_is_that_of_torch_and_of_monte_carlo() -> None:
    mean, log_variance = drawn(3, 2), drawn(3, 2, seed=1)
    found = divergence(mean, log_variance)
    normal = torch.distributions.Normal
    q, p = normal(mean, (log_variance / 2).exp()), normal(torch.zeros(3, 2), torch.ones(3, 2))
    assert torch.allclose(found, torch.distributions.kl_divergence(q, p).sum(1))
    torch.manual_seed(0)
    z = q.sample((40_000,))
    ratio = (q.log_prob(z) - p.log_prob(z)).sum(2)  # [40000 3]
    off = (ratio.mean(0) - found).abs()
    assert (off < 4 * ratio.std(0) / math.sqrt(40_000)).all()
    assert float(divergence(torch.zeros(1, 2), torch.zeros(1, 2))) == 0


def test_energy_takes_the_code_at_its_mean_and_sums_over_pixels() -> None:
    method, y = of_vectors(deviation=0.3, beta=Linear(0.0, 2.5)), drawn(6, 4)
    mean, log_variance = method.infer(y)
    made = method.decoder(mean)
    wanted = []
    for i in range(6):
        fit = sum(
            (p - q) ** 2 / (2 * 0.3**2) + math.log(0.3 * math.sqrt(2 * math.pi))
            for p, q in zip(y[i].tolist(), made[i].tolist(), strict=True)
        )
        kl = sum(
            (m * m + math.exp(v) - v - 1) / 2
            for m, v in zip(mean[i].tolist(), log_variance[i].tolist(), strict=True)
        )
        wanted.append(fit + 2.5 * kl)
    assert method.energy(None, View(y)).tolist() == pytest.approx(wanted, rel=1e-10)
    assert torch.equal(method.encode(y), mean)


def test_loss_draws_the_code_for_image_and_step() -> None:
    method, y = of_vectors(beta=Linear(0.0, 2.0)), drawn(6, 4)
    index = torch.tensor([7, 3, 11, 0, 5, 6])
    views = replace(batch(y, step=9), index=index)
    mean, log_variance = method.infer(y)
    eps = noise.normal(index, 2, purpose="latent", step=9).double()
    made = method.decoder(mean + (log_variance / 2).exp() * eps)
    fit = (y - made).square().sum(1) / 0.5 + 4 * math.log(0.5 * math.sqrt(2 * math.pi))
    loss = method.loss(views, 0.25)
    assert loss.pull["reconstruction"].item() == pytest.approx(fit.mean().item())
    kl = divergence(mean, log_variance).mean()
    assert loss.push["divergence"].item() == pytest.approx(0.5 * kl.item())
    again = method.loss(replace(views, step=10), 0.25)
    assert again.pull["reconstruction"].item() != loss.pull["reconstruction"].item()
    loss.total.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_the_loss_is_the_negative_log_likelihood_where_q_is_the_posterior_and_above_elsewhere() -> (
    None
):
    """y = W z + m + s eps with orthogonal columns in W: the posterior of z has independent parts,
    and y is normal with covariance W W^T + s^2."""
    d, s, n = 4, 0.6, 5
    columns = torch.linalg.qr(drawn(d, 2, seed=3))[0] * torch.tensor([2.0, 0.7])
    offset, y = drawn(d, seed=4), drawn(n, d, seed=5)
    method = of_vectors(d, deviation=s)
    decoder = nn.Linear(2, d).double()
    method.decoder = decoder
    precision = columns.T @ columns / s**2 + torch.eye(2)  # diagonal
    gain = torch.linalg.inv(precision) @ columns.T / s**2
    with torch.no_grad():
        decoder.weight.copy_(columns)
        decoder.bias.copy_(offset)
        method.posterior.weight.zero_()
        method.posterior.weight[:2] = gain
        method.posterior.bias[:2] = -gain @ offset
        method.posterior.bias[2:] = -precision.diagonal().log()
    spread = columns @ columns.T + s**2 * torch.eye(d)
    wanted = -torch.distributions.MultivariateNormal(offset, spread).log_prob(y)

    def bound() -> tuple[float, float]:
        with torch.no_grad():
            totals = [method.loss(batch(y.repeat(400, 1), step), 0.0).total for step in range(40)]
        values = torch.stack(totals)
        return values.mean().item(), 4 * values.std().item() / math.sqrt(40)

    found, off = bound()
    assert abs(found - wanted.mean().item()) < off < 0.05
    with torch.no_grad():
        method.posterior.bias.data += torch.tensor([0.6, 0.0, -1.0, 0.0])
    found, off = bound()
    assert found > wanted.mean().item() + off


def test_bernoulli_takes_pixels_in_zero_one_and_refuses_others() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    method = VariationalAutoencoder(encoder, dim=3, width=8, output="bernoulli").double()
    unit = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    y = View((unit - 0.5) / 0.25, mean=(0.5,) * 3, std=(0.25,) * 3)
    mean, log_variance = method.infer(y.data)
    chance = method.decoder(mean).sigmoid()
    fit = -(unit * chance.log() + (1 - unit) * (1 - chance).log()).flatten(1).sum(1)
    assert torch.allclose(method.energy(None, y), fit + divergence(mean, log_variance))
    with pytest.raises(ValueError, match=r"targets in \[0, 1\]"):
        method.energy(None, replace(y, mean=(), std=()))


def test_a_large_beta_makes_codes_forget_the_image() -> None:
    y = drawn(200, 4)
    spreads = []
    for beta in (0.01, 30.0):
        method = of_vectors(beta=Constant(beta))
        optimiser = torch.optim.Adam(method.parameters(), lr=0.03)
        for step in range(80):
            optimiser.zero_grad()
            method.loss(batch(y, step), 0.0).total.backward()
            optimiser.step()
        spreads.append(method.encode(y).var(dim=0).mean().item())
    assert spreads[1] < 0.01 < 0.5 < spreads[0]


def test_plan_and_contract() -> None:
    plan = of_vectors(crop=0.7).plan()
    assert plan.main == (replace(LIGHT, crop=(0.7, 1.0)),)
    assert plan.pairs == "alone"
    with pytest.raises(ValueError, match=r"deviation should be greater than 0 \(got 0\)"):
        of_vectors(deviation=0)
    arguments = {"dim": 4, "width": 8, "output": "bernoulli", "beta": Linear(0.0, 4.0)}
    check_method(VariationalAutoencoder, arguments=arguments)
