"""What an energy looks like: maps, wells, gradients, ways down, completion, vector fields.

Pure computations on F as a function of points [n d] -> [n]; `energy_of` makes one from a method.

Letters in shapes: n points, d features, h w rows and columns of a grid, t steps, m minima.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import minimum_filter
from scipy.optimize import minimize_scalar
from torch import Tensor

from erg import inference, noise
from erg.method import Method
from erg.views.types import View

Energy = Callable[[Tensor], Tensor]
"""F: points [n d] to energies [n]."""

BLOCK = 8192
"""Points whose energies are computed at once."""


def energy_of(method: Method) -> Energy:
    """F(y) of a method that needs no x, as it is now.

    In float64, since small differences tell what is a minimum and what is not.
    """
    exact = copy.deepcopy(method).double().eval()
    return lambda y: exact.energy(None, View(y.double()))


class Grid(NamedTuple):
    """Points of a rectangle, row by row from below.

    Args:
        x: first coordinate of the columns, ascending [w].
        y: second coordinate of the rows, ascending [h].
    """

    x: np.ndarray
    y: np.ndarray

    @property
    def points(self) -> Tensor:
        """[h w, 2]."""
        columns, rows = np.meshgrid(self.x, self.y)
        return torch.from_numpy(np.stack([columns, rows], axis=-1).reshape(-1, 2)).float()

    @property
    def shape(self) -> tuple[int, int]:
        """h and w."""
        return len(self.y), len(self.x)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of a picture whose pixels have the points in the middle."""
        dx, dy = (self.x[1] - self.x[0]) / 2, (self.y[1] - self.y[0]) / 2
        ends = (self.x[0] - dx, self.x[-1] + dx, self.y[0] - dy, self.y[-1] + dy)
        left, right, bottom, top = (float(end) for end in ends)
        return left, right, bottom, top


def grid(
    x: tuple[float, float],
    y: tuple[float, float] | None = None,
    shape: tuple[int, int] = (200, 200),
) -> Grid:
    """h rows and w columns over [x0, x1] and [y0, y1], which is [x0, x1] if not given."""
    low, high = y or x
    return Grid(np.linspace(*x, shape[1]), np.linspace(low, high, shape[0]))


@torch.no_grad()
def along(energy: Energy, points: Float[Tensor, "n d"]) -> np.ndarray:
    """F of points [n], as float64."""
    parts = [energy(block) for block in points.split(BLOCK)]
    return torch.cat(parts).double().numpy()


def energy_map(energy: Energy, where: Grid) -> np.ndarray:
    """F on a grid [h w]."""
    return along(energy, where.points).reshape(where.shape)


def descend(
    energy: Energy, start: Float[Tensor, "n d"], *, steps: int = 200, rate: float = 0.1
) -> Float[Tensor, "t n d"]:
    """Gradient descent on y, its whole way: the first of t = steps + 1 is the start.

    Every point has a rate of its own, which grows by a fifth where F fell and is halved, and the
    step not taken, where it did not: F never rises along a way.

    Args:
        energy: F.
        start: points to start from.
        steps: of the descent.
        rate: the first one [squared units of y per unit of F].
    """
    y, way = start.detach(), [start.detach()]
    rates = torch.full((len(y), 1), rate).to(y)
    here = energy(y).detach()
    for _ in range(steps):
        there = y - rates * inference.slope(energy, y)
        fell = energy(there).detach()
        better = (fell <= here)[:, None]
        y, here = torch.where(better, there, y), torch.where(better[:, 0], fell, here)
        rates = torch.where(better, 1.2 * rates, rates / 2)
        way.append(y)
    return torch.stack(way)


def kicked(points: Float[Tensor, "n d"], kick: float, seed: int = 0) -> Float[Tensor, "n d"]:
    """Points moved by Gaussian noise of deviation `kick`, where contrastive divergence starts."""
    drawn = noise.normal(torch.arange(len(points)), points.shape[1], purpose="kick", step=seed)
    return points + kick * drawn.to(points)


def wells(energy: Energy, where: Grid, *, apart: float | None = None) -> Float[Tensor, "m d"]:
    """The local minima of F inside a rectangle, lowest first.

    Points of the grid that are lowest among their eight neighbours, followed down; what ends
    within `apart` of a lower one is the same.

    Args:
        energy: F.
        where: the grid; a minimum must be wider than its step to be seen.
        apart: of two minima [units of y]; the step of the grid if not given.
    """
    levels = energy_map(energy, where)
    lowest = levels == minimum_filter(levels, size=3, mode="nearest")
    lowest[[0, -1]] = lowest[:, [0, -1]] = False  # at the edge F falls on, outside
    starts = where.points[torch.from_numpy(lowest.reshape(-1))]
    step = float(max(where.x[1] - where.x[0], where.y[1] - where.y[0]))
    ends = descend(energy, starts, steps=300, rate=step**2)[-1]
    kept: list[Tensor] = []
    for end in ends[torch.from_numpy(along(energy, ends).argsort())]:
        if all(float((end - other).norm()) > (apart or step) for other in kept):
            kept.append(end)
    return torch.stack(kept) if kept else ends


class Completions(NamedTuple):
    """Every y2 that completes a y1, lowest energy first.

    Args:
        y2: the minima [m].
        energy: F(y1, y2) there [m].
    """

    y2: np.ndarray
    energy: np.ndarray


def complete(
    energy: Energy,
    y1: float,
    between: tuple[float, float],
    *,
    within: float = float("inf"),
    points: int = 1001,
) -> Completions:
    """All local minima of F(y1, .) in an interval: argmin_y2 F, and its rivals.

    Args:
        energy: F of the plane.
        y1: what is known.
        between: where y2 is looked for; minima at its ends do not count.
        within: how far above the lowest minimum others may lie.
        points: looked at first; each minimum among them is then refined between its neighbours.
    """

    def level(y2: float) -> float:
        return float(along(energy, torch.tensor([[y1, y2]], dtype=torch.float64))[0])

    y2 = np.linspace(*between, points)
    line = torch.from_numpy(np.stack([np.full(points, y1), y2], axis=1))
    levels = along(energy, line)
    inner = np.flatnonzero((levels[1:-1] < levels[:-2]) & (levels[1:-1] <= levels[2:])) + 1
    found: list[float] = []
    for i in inner:
        best: Any = minimize_scalar(level, bounds=(y2[i - 1], y2[i + 1]), method="bounded")
        found.append(float(best.x))
    heights = np.array([level(y) for y in found])
    order = heights.argsort()
    order = order[heights[order] <= heights.min(initial=np.inf) + within]
    return Completions(np.array(found)[order], heights[order])


class Field(NamedTuple):
    """Where reconstruction moves points.

    Args:
        move: r(x) - x [n 2].
        travel: its length [n].
    """

    move: np.ndarray
    travel: np.ndarray


@torch.no_grad()
def field(reconstruct: Callable[[Tensor], Tensor], points: Float[Tensor, "n d"]) -> Field:
    """r(x) - x of points."""
    move = (reconstruct(points) - points).double().numpy()
    return Field(move, np.linalg.norm(move, axis=1))


def alignment(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vector fields [n d] taken as one vector each."""
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def gibbs(levels: np.ndarray, beta: float, cell: float = 1.0) -> np.ndarray:
    """p = exp(-beta F) / Z on a grid of cells [h w], a density: its sum times `cell` is 1."""
    weights = np.exp(-beta * (levels - levels.min()))
    return weights / (weights.sum() * cell)
