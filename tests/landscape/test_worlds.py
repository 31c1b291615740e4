"""Worlds: on their curves, even, the same for the same seed; the score by differences."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from erg.landscape import worlds


@pytest.mark.parametrize("name", worlds.WORLDS)
def test_a_world_is_a_function_of_its_seed(name: str) -> None:
    first, again, other = (worlds.world(name, 50, seed) for seed in (3, 3, 4))
    assert first.shape == (50, 2)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    assert float(first.abs().max()) < 6


def test_an_unknown_world_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"no world is called 'moon'\. Use one of spiral, moons"):
        worlds.world("moon")


def test_the_arms_of_the_spiral_are_equally_far_apart() -> None:
    t = torch.linspace(0.05, 0.5, 7)
    gap = worlds.spiral_at(t + 1 / worlds.TURNS) - worlds.spiral_at(t)
    assert gap.norm(dim=1).tolist() == pytest.approx([worlds.RADIUS / worlds.TURNS] * 7, rel=1e-5)


def test_the_spiral_lies_on_its_curve_and_is_even() -> None:
    exact = worlds.spiral(2000, deviation=0.0)
    radius, angle = exact.norm(dim=1), torch.atan2(exact[:, 1], exact[:, 0])
    of_radius = radius / worlds.RADIUS * 2 * math.pi * worlds.TURNS
    assert torch.allclose(of_radius.cos(), angle.cos(), atol=1e-3)
    # As many points on the inner as on the outer half of its length.
    fine = worlds.spiral_at(torch.linspace(0, 1, 20001)).double()
    length = np.concatenate([[0], np.cumsum((fine[1:] - fine[:-1]).norm(dim=1).numpy())])
    places = np.interp(radius.numpy() / worlds.RADIUS, np.linspace(0, 1, 20001), length)
    assert abs((places < length[-1] / 2).mean() - 0.5) < 0.03
    off = (worlds.spiral(2000, deviation=0.02) - exact).std()
    assert float(off) == pytest.approx(0.02, rel=0.1)


def test_moons_are_half_circles_around_two_centres() -> None:
    upper, lower = worlds.moons(100, deviation=0.0).chunk(2)
    for half, x, y, side in ((upper, -0.75, -0.375, 1), (lower, 0.75, 0.375, -1)):
        gap = half - torch.tensor([x, y])
        assert torch.allclose(gap.norm(dim=1), torch.tensor(1.5), atol=1e-5)
        assert (side * gap[:, 1] >= -1e-5).all()


def test_ellipse_and_horn_have_their_radii() -> None:
    y = worlds.ellipse(24, deviation=0.0)
    a, b = worlds.RADII
    assert torch.allclose((y[:, 0] / a) ** 2 + (y[:, 1] / b) ** 2, torch.ones(24), atol=1e-5)
    ends = worlds.horn_radii(torch.tensor([0.0, 1.0]))
    e2 = math.e**2
    assert ends.flatten().tolist() == pytest.approx([a, b, e2 * b, e2 * a], rel=1e-5)
    horn = worlds.horn(200, deviation=0.0)
    x, y = horn[:, 0], horn[:, 1:]
    assert 0 <= float(x.min()) < 0.02 < 0.98 < float(x.max()) <= 1
    of_one = (y / worlds.horn_radii(x)).square().sum(dim=1)
    assert torch.allclose(of_one, torch.ones(200), atol=1e-4)
    # x and the angle are independent: the angle says nothing of x.
    angle = torch.atan2(y[:, 1], y[:, 0])
    assert abs(np.corrcoef(x.numpy(), angle.numpy())[0, 1]) < 0.15


def test_arcs_stand_one_above_the_other() -> None:
    y = worlds.arcs(99, deviation=0.0)
    of = worlds.arcs_at(y[:, 0])
    for k in range(3):
        assert torch.allclose(y[k::3, 1], of[k::3, k], atol=1e-6)
    assert (of[:, 0] > of[:, 1] + 0.2).all()
    assert (of[:, 1] > of[:, 2] + 0.2).all()


def log_density(y: Tensor, variance: float) -> Tensor:
    parts = [
        -sum((a - b) ** 2 for a, b in zip(y.unbind(1), mean, strict=True)) / (2 * variance)
        for mean in worlds.MEANS
    ]
    return torch.stack([torch.as_tensor(p) for p in parts], dim=1).exp().sum(dim=1).log()


@pytest.mark.parametrize("blur", [0.0, 0.3])
def test_the_score_of_the_mixture_by_differences(blur: float) -> None:
    y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance, h = worlds.DEVIATION**2 + blur**2, 1e-5
    slopes = [
        (log_density(y + h * unit, variance) - log_density(y - h * unit, variance)) / (2 * h)
        for unit in torch.eye(2, dtype=torch.float64)
    ]
    assert torch.allclose(worlds.mixture_score(y, blur), torch.stack(slopes, dim=1), atol=1e-6)


def test_the_mixture_is_drawn_from_its_gaussians() -> None:
    y = worlds.mixture(6000)
    for k, mean in enumerate(worlds.MEANS):
        part = y[k::3]
        assert part.mean(dim=0).tolist() == pytest.approx(mean, abs=0.05)
        assert part.std(dim=0).tolist() == pytest.approx([worlds.DEVIATION] * 2, rel=0.06)
