"""The von Mises-Fisher distribution: its golden normalisers, its moments, what is drawn."""

import math

import pytest
import torch
from scipy.special import ive
from torch import Tensor, nn

from erg.parts.von_mises_fisher import REACH, VonMisesFisher, tabulated


@pytest.mark.parametrize(("dim", "k"), [(256, 10), (256, 1024), (256, 16384), (3, 10)])
def test_log_normaliser_is_golden(golden, dim: int, k: int) -> None:
    assert golden.agrees(f"vMF, log C_{dim}({k})", tabulated(dim, k)[1])


def test_log_normaliser_is_that_of_the_bessel_functions() -> None:
    for dim, k in ((3, 0.5), (8, 16.0), (64, 300.0), (128, 2.0), (512, 16384.0)):
        order = dim / 2 - 1
        bessel = math.log(ive(order, k)) + k
        wanted = order * math.log(k) - dim / 2 * math.log(2 * math.pi) - bessel
        assert tabulated(dim, k)[1] == pytest.approx(wanted, abs=1e-7)


def test_density_is_that_of_the_cosine() -> None:
    """In three dimensions C_3(k) = k / (4 pi sinh k)."""
    z, mu = nn.functional.normalize(torch.randn(2, 4, 3, dtype=torch.float64), dim=2)
    found = VonMisesFisher(3, 2.5).double().log_density(z, mu)
    for i in range(4):
        cos = sum(float(z[i, d] * mu[i, d]) for d in range(3))
        wanted = 2.5 / (4 * math.pi * math.sinh(2.5)) * math.exp(2.5 * cos)
        assert found[i].exp().item() == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize(("dim", "k"), [(3, 10.0), (16, 50.0), (256, 16384.0), (128, 10.0)])
def test_table_of_angles_has_the_moments_of_the_distribution(dim: int, k: float) -> None:
    """E cos = I_{d/2}(k) / I_{d/2-1}(k) = A and E cos^2 = 1 - (d - 1) A / k, by quadrature."""
    around = VonMisesFisher(dim, k).double()
    normal = torch.linspace(-REACH, REACH, 20_001, dtype=torch.float64)
    weight = torch.exp(-normal.square() / 2)
    cos = around.angle(normal[:, None])[:, 0].cos()
    mean, square = ((weight * m).sum() / weight.sum() for m in (cos, cos.square()))
    a = ive(dim / 2, k) / ive(dim / 2 - 1, k)
    assert mean.item() == pytest.approx(a, abs=2e-6)
    assert square.item() == pytest.approx(1 - (dim - 1) * a / k, abs=2e-6)


def test_table_is_where_the_angles_are_in_many_dimensions() -> None:
    """Its quantiles are those of a sum over all angles, not only over those around the mode."""
    d, angles = 65_536, tabulated(65_536, 65_536.0)[0]
    t = torch.linspace(1e-6, math.pi, 400_001, dtype=torch.float64)
    log_density = d * t.cos() + (d - 2) * t.sin().clamp_min(1e-300).log()
    below = (log_density - log_density.max()).exp().cumsum(dim=0)
    for place, quantile in ((840, 0.15865525), (1040, 0.5), (1240, 0.84134475)):  # -1, 0, 1
        wanted = t[torch.searchsorted(below, quantile * below[-1])]
        assert angles[place].item() == pytest.approx(wanted.item(), abs=2e-5)
    assert angles[1040].item() == pytest.approx(0.9046, abs=1e-4)


def test_draws_lie_on_the_sphere_around_mu_on_all_sides() -> None:
    around, n = VonMisesFisher(4, 20.0).double(), 20_000
    mu = torch.tensor([[0.5, 0.5, -0.5, 0.5]], dtype=torch.float64).expand(n, 4)
    z = around.drawn(mu, torch.arange(n), purpose="a test", step=0)
    assert torch.allclose(z.norm(dim=1), torch.ones(n, dtype=torch.float64), atol=1e-6)
    a = ive(2, 20.0) / ive(1, 20.0)
    off = (z.mean(dim=0) - a * mu[0]).abs().max().item()
    assert off < 5 * math.sqrt((1 - a * a) / n)
    across = z - (z @ mu[0])[:, None] * mu
    spread = across.T @ across / n  # equal in all directions but mu
    wanted = (1 - z @ mu[0]).mul(1 + z @ mu[0]).mean() / 3 * (torch.eye(4) - mu[:1].T @ mu[:1])
    assert torch.allclose(spread, wanted, atol=0.003)


def test_draws_are_those_of_the_image_the_purpose_and_the_step() -> None:
    around, index, some = VonMisesFisher(5, 40.0).double(), torch.arange(6), torch.tensor([4, 1])
    mu = nn.functional.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1)
    z = around.drawn(mu, index, purpose="one", step=2)
    assert torch.equal(around.drawn(mu[some], index[some], purpose="one", step=2), z[some])
    assert not torch.allclose(around.drawn(mu, index, purpose="other", step=2), z)
    assert not torch.allclose(around.drawn(mu, index, purpose="one", step=3), z)


def test_gradients_pass_through_the_draw() -> None:
    around = VonMisesFisher(5, 40.0).double()
    mu = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)

    def drawn(mu: Tensor) -> Tensor:
        unit = nn.functional.normalize(mu, dim=1)
        return around.drawn(unit, torch.arange(6), purpose="a test", step=1)

    assert torch.autograd.gradcheck(drawn, (mu,))
