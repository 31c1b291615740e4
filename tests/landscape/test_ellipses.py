"""The ellipse with an angle for its latent: energies by loops, the circle in closed form."""

import math

import pytest
import torch
from scipy.special import i0e
from torch import Tensor

from erg.encoders import build_encoder
from erg.landscape import worlds
from erg.landscape.ellipses import Ellipses
from erg.landscape.learn import learn
from erg.train.run import Optimiser
from erg.views.types import View


def an_ellipse(r1: float, r2: float, beta: float = math.inf) -> Ellipses:
    model = Ellipses(build_encoder("identity", 2), beta=beta).double()
    with torch.no_grad():
        model.direct.copy_(torch.tensor([r1, r2]))
    return model


def points(n: int = 6) -> Tensor:
    return 2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_energies_by_loops() -> None:
    model, y = an_ellipse(2.0, 1.5), points()
    with torch.no_grad():
        found = model.energies(y)
    assert found.shape == (6, 48)
    for i, (a, b) in enumerate(y.tolist()):
        for k in range(48):
            z = k * math.pi / 24
            exact = (a - 2 * math.cos(z)) ** 2 + (b - 1.5 * math.sin(z)) ** 2
            assert float(found[i, k]) == pytest.approx(exact, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_free_energies_of_a_circle(beta: float) -> None:
    """F_beta = rho^2 + r^2 - log I_0(2 beta rho r) / beta, rho the distance from the middle."""
    r, y = 1.3, points()
    rho = y.norm(dim=1)
    argument = 2 * beta * rho * r
    log_bessel = torch.from_numpy(i0e(argument.numpy())).log() + argument
    with torch.no_grad():
        found = an_ellipse(r, r, beta).energy(None, View(y))
    assert torch.allclose(found, rho**2 + r**2 - log_bessel / beta, atol=1e-5)


def test_the_limits_of_cold_and_hot() -> None:
    model, y = an_ellipse(2.0, 1.5), points()
    with torch.no_grad():
        every = model.energies(y)
        assert torch.equal(model.free_energy(y, math.inf), every.amin(dim=1))
        assert torch.allclose(model.free_energy(y, 1e5), every.amin(dim=1), atol=1e-4)
        assert torch.allclose(model.free_energy(y, 1e-6), every.mean(dim=1), atol=1e-4)
        middle = model.free_energy(torch.zeros(1, 2, dtype=torch.float64), math.inf)
    assert float(middle) == pytest.approx(1.5**2)  # finite: the smaller radius squared


def test_the_manifold_has_no_energy() -> None:
    model = an_ellipse(2.0, 1.5)
    with torch.no_grad():
        ring = model.manifold(torch.zeros(1, dtype=torch.float64), 49)[0]
        assert float(model.energy(None, View(ring)).abs().max()) < 1e-9
        assert ring[:, 0].abs().max() == pytest.approx(2.0)


def test_training_finds_the_ellipse() -> None:
    model = Ellipses(build_encoder("identity", 2))
    fast = Optimiser(lr=0.05, weight_decay=0.0)
    learn(model, worlds.ellipse(24), steps=150, batch=24, optimiser=fast)
    assert model.direct.detach().abs().tolist() == pytest.approx(worlds.RADII, abs=0.05)


def test_a_conditional_one_takes_its_first_feature_for_x() -> None:
    torch.manual_seed(0)
    model = Ellipses(build_encoder("identity", 3), conditional=True, latents=16)
    data = torch.randn(5, 3)
    with torch.no_grad():
        radii = model.network(data[:, :1])
        found = model.energies(data)
        for i in range(5):
            for k in range(16):
                z = k * math.pi / 8
                made = radii[i] * torch.tensor([math.cos(z), math.sin(z)])
                assert float(found[i, k]) == pytest.approx(
                    float((data[i, 1:] - made).square().sum()), rel=1e-4, abs=1e-5
                )
        shape = model.manifold(torch.linspace(0, 1, 4), 9).shape
    assert shape == (4, 9, 2)
