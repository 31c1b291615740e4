"""Worlds in the plane: points on curves, clusters, mixtures. Functions of a number and a seed.

Letters in shapes: n points, k curves or Gaussians.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from erg import noise

Points = Float[Tensor, "n 2"]

TURNS = 2.0
"""Of the spiral."""

RADIUS = 2.0
"""Where the spiral ends; its arms are RADIUS / TURNS apart."""

RADII = (2.0, 1.5)
"""Of the ellipse, along y1 and y2."""

MEANS = ((-1.3, -0.8), (1.3, -0.8), (0.0, 1.4))
"""Of the mixture's three Gaussians."""

DEVIATION = 0.45
"""Of each of them."""


def _uniform(n: int, seed: int, purpose: str) -> Float[Tensor, " n"]:
    """One of the n cells of [0, 1] each, a random place inside it: even, and never regular."""
    drawn = noise.normal(torch.arange(n), 1, purpose=purpose, step=seed)[:, 0]
    return (torch.arange(n) + torch.special.ndtr(drawn)) / n


def _jitter(points: Points, deviation: float, seed: int) -> Points:
    moved = noise.normal(torch.arange(len(points)), 2, purpose="jitter", step=seed)
    return points + deviation * moved


def spiral_at(t: Float[Tensor, " n"]) -> Points:
    """The spiral at t in [0, 1]: radius RADIUS t, angle 2 pi TURNS t."""
    angle = 2 * math.pi * TURNS * t
    return RADIUS * t[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def spiral(n: int = 1000, seed: int = 0, *, deviation: float = 0.02) -> Points:
    """A spiral of one arm, about evenly along its length."""
    t = (0.02 + 0.98 * _uniform(n, seed, "spiral")).sqrt()  # its length grows with t^2
    return _jitter(spiral_at(t), deviation, seed)


def moons(n: int = 1000, seed: int = 0, *, deviation: float = 0.1) -> Points:
    """Two half circles, each reaching into the other; the first ceil(n / 2) are the upper one."""
    angle = 2 * math.pi * _uniform(n, seed, "moons")
    upper = angle < math.pi
    arc = torch.stack([angle.cos(), angle.sin()], dim=1)
    shift = torch.where(upper[:, None], torch.tensor([-0.5, -0.25]), torch.tensor([0.5, 0.25]))
    return _jitter(1.5 * (arc + shift), deviation, seed)


def ellipse(n: int = 24, seed: int = 0, *, deviation: float = 0.05) -> Points:
    """An ellipse around the origin."""
    angle = 2 * math.pi * _uniform(n, seed, "ellipse")
    points = torch.stack([RADII[0] * angle.cos(), RADII[1] * angle.sin()], dim=1)
    return _jitter(points, deviation, seed)


def horn_radii(x: Float[Tensor, " n"]) -> Points:
    """Of the ellipse at x in [0, 1]: the two radii change places while both grow as exp(2 x)."""
    a, b = RADII
    grown = torch.stack([(1 - x) * a + x * b, (1 - x) * b + x * a], dim=1)
    return (2 * x).exp()[:, None] * grown


def horn(n: int = 1000, seed: int = 0, *, deviation: float = 0.05) -> Float[Tensor, "n 3"]:
    """(x, y1, y2) with y on an ellipse whose radii depend on x (`horn_radii`)."""
    order = noise.normal(torch.arange(n), 1, purpose="order", step=seed)[:, 0].argsort()
    x, angle = _uniform(n, seed, "x")[order], 2 * math.pi * _uniform(n, seed, "horn")
    y = horn_radii(x) * torch.stack([angle.cos(), angle.sin()], dim=1)
    return torch.cat([x[:, None], _jitter(y, deviation, seed)], dim=1)


def roll(
    n: int = 1500, seed: int = 0, *, deviation: float = 0.01
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, " n"]]:
    """A sheet rolled up one and a half times, in [-1, 1]^3, and how far along it each point lies,
    from 0 inside to 1."""
    order = noise.normal(torch.arange(n), 1, purpose="order", step=seed)[:, 0].argsort()
    along, across = _uniform(n, seed, "roll")[order], 2 * _uniform(n, seed, "width") - 1
    angle = 1.5 * math.pi * (1 + 2 * along)
    flat = angle[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1) / (4.5 * math.pi)
    flat = _jitter(flat, deviation, seed)
    return torch.stack([flat[:, 0], across, flat[:, 1]], dim=1), along


def arcs_at(t: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """y2 of the three arcs at y1 = t, in [-1.5, 1.5]."""
    return torch.stack([1.6 - 0.35 * t**2, 0.45 * torch.sin(1.6 * t), 0.3 * t**2 - 1.7], dim=1)


def arcs(n: int = 999, seed: int = 0, *, deviation: float = 0.06) -> Points:
    """Three curved clusters, one above the other: three y2 for every y1."""
    t = 3 * _uniform(n, seed, "arcs") - 1.5
    which = torch.arange(n) % 3
    return _jitter(torch.stack([t, arcs_at(t)[torch.arange(n), which]], dim=1), deviation, seed)


def bend(n: int = 600, seed: int = 0, *, deviation: float = 0.15) -> Points:
    """An S lying on its side, in [-5, 5]^2."""
    t = 8 * _uniform(n, seed, "bend") - 4
    return _jitter(torch.stack([t, 2.4 * torch.sin(0.8 * t)], dim=1), deviation, seed)


def mixture(n: int = 1500, seed: int = 0) -> Points:
    """Three round Gaussians of equal weight."""
    return _jitter(torch.tensor(MEANS)[torch.arange(n) % 3], DEVIATION, seed)


def mixture_score(y: Points, blur: float = 0.0) -> Points:
    """grad log p of the mixture, of which each point has been moved by noise of deviation `blur`.

    sum_k r_k (m_k - y) / s^2 with s^2 = DEVIATION^2 + blur^2 and r the responsibilities.
    """
    variance = DEVIATION**2 + blur**2
    gaps = torch.tensor(MEANS).to(y) - y[:, None]  # [n k 2]
    shares = (-gaps.square().sum(dim=2) / (2 * variance)).softmax(dim=1)
    return (shares[:, :, None] * gaps).sum(dim=1) / variance


WORLDS: dict[str, Callable[..., Points]] = {
    "spiral": spiral,
    "moons": moons,
    "ellipse": ellipse,
    "arcs": arcs,
    "bend": bend,
    "mixture": mixture,
}
"""The worlds of the plane by name."""


def world(name: str, n: int = 1000, seed: int = 0) -> Points:
    """A world by name.

    Raises:
        ValueError: there is no world of that name.
    """
    if name not in WORLDS:
        raise ValueError(f"no world is called {name!r}. Use one of {', '.join(WORLDS)}.")
    return WORLDS[name](n, seed)
