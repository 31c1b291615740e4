"""Maximum likelihood on a grid: quadratures, closed forms, and a mixture of Gaussians."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from erg import inference
from erg.encoders import build_encoder
from erg.methods.maximum_likelihood import MaximumLikelihood
from erg.testing import check_method
from erg.views.plan import whole
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


def a_method(**arguments: Any) -> MaximumLikelihood:
    torch.manual_seed(0)
    return MaximumLikelihood(build_encoder("identity", 2), **{"width": 32, **arguments}).double()


def batch(y: Tensor, step: int = 0) -> Views:
    return Views((View(y),), torch.arange(len(y)), step=step, pairing="alone")


class Bowl(nn.Module):
    """F(y) = y^T A y / 2."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, y: Tensor) -> Tensor:
        return torch.einsum("bi,ij,bj->b", y, self.matrix, y)[:, None] / 2


def test_the_normaliser_of_a_gaussian_and_its_gradient() -> None:
    method = a_method(points=50)
    method.after_epoch(torch.tensor([[-5.0, -4.0], [5.0, 6.0]], dtype=torch.float64))
    matrix = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    method.head = Bowl(matrix)
    wanted = math.log(2 * math.pi) - 0.5 * math.log(float(torch.linalg.det(matrix)))
    for shift in (None, torch.tensor([0.1, 0.9])):
        assert method.log_partition(shift).item() == pytest.approx(wanted, abs=1e-6)
    y = drawn(30, 2)
    loss = method.eval().loss(batch(y), 0.0)
    loss.total.backward()
    # The gradient of -log p in A: half of the data's second moments minus the model's.
    wanted_gradient = (y.T @ y / 30 - torch.linalg.inv(matrix)) / 2
    assert torch.allclose(method.head.matrix.grad, wanted_gradient, atol=1e-6)
    assert loss.pull["data"].item() == pytest.approx(method.energy(None, View(y)).mean().item())


def test_the_integral_of_a_network_is_that_of_another_quadrature() -> None:
    method = a_method(points=200)
    low, high = np.array([-1.0, -2.0]), np.array([3.0, 0.5])
    method.low.copy_(torch.tensor(low))
    method.high.copy_(torch.tensor(high))
    with torch.no_grad():
        for p in method.head.parameters():
            p.mul_(2)  # far from flat
    places, weights = np.polynomial.legendre.leggauss(30)
    axes = [(places + 1) / 2 * (b - a) + a for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(torch.tensor(axes[0]), torch.tensor(axes[1]))
    densities = (-method.of_features(grid)).exp().detach().numpy().reshape(30, 30)
    assert densities.max() / densities.min() > 1.2
    wanted = weights @ densities @ weights * np.prod((high - low) / 2)
    assert method.log_partition().item() == pytest.approx(math.log(wanted), abs=1e-4)


def test_in_training_the_grid_moves_by_the_step_and_in_evaluation_it_rests() -> None:
    method, y = a_method(points=4), drawn(5, 2)
    with torch.no_grad():
        for p in method.head.parameters():
            p.mul_(3)

    def partition(step: int) -> float:
        return method.loss(batch(y, step), 0.0).push["partition"].item()

    method.train()
    assert partition(1) != partition(2)
    assert partition(1) == partition(1)
    shift = torch.rand(2, generator=torch.Generator().manual_seed(1))
    assert partition(1) == method.log_partition(shift).item()
    method.eval()
    assert partition(1) == partition(2) == method.log_partition().item()


def test_the_box_holds_the_training_set_and_stays() -> None:
    method, y = a_method(margin=0.25), 3 * drawn(40, 2) + 1
    method.after_epoch(y)
    low, high = y.min(0).values, y.max(0).values
    assert torch.allclose(method.low, low - 0.25 * (high - low))
    assert torch.allclose(method.high, high + 0.25 * (high - low))
    before = method.low.clone()
    method.after_epoch(10 * y)
    assert torch.equal(method.low, before)


def test_on_a_mixture_it_finds_likelihood_and_field() -> None:
    method = a_method(points=40, width=64).train()
    method.after_epoch(mixture(1000))
    method = method.float()
    optimiser = torch.optim.Adam(method.parameters(), lr=3e-3)
    for step in range(240):
        optimiser.zero_grad()
        method.loss(batch(mixture(512, seed=step).float(), step), 0.0).total.backward()
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / 240)
    method, y = method.eval().double(), mixture(600, seed=99)
    found = method.loss(batch(y), 0.0).total.item()
    assert found == pytest.approx(-log_density(y).mean().item(), abs=0.05)
    field = -inference.slope(method.of_data, y)
    assert nn.functional.cosine_similarity(field, score(y)).mean() > 0.95


def test_other_than_two_features_are_refused() -> None:
    with pytest.raises(ValueError, match="a grid needs 2 features, and mlp gives 64"):
        MaximumLikelihood(build_encoder("mlp", 2))


def test_half_precision_and_contract() -> None:
    method, y = a_method().float(), drawn(4, 2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method.eval().loss(batch(y), 0.0).total
    assert found.item() == method.loss(batch(y), 0.0).total.item()
    assert method.plan() == whole()
    check_method(
        MaximumLikelihood,
        arguments={"points": 8, "width": 8, "depth": 1},
        encoder_arguments={"width": 1, "stages": 2},
    )
