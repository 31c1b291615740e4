"""Maps, minima, ways down and fields of energies whose answers are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from erg import inference
from erg.encoders import build_encoder
from erg.landscape import fields
from erg.methods.kmeans import KMeans


def bowl(y: Tensor) -> Tensor:
    """(y1 - 1)^2 + 3 (y2 + 0.5)^2 + 0.2."""
    return (y[:, 0] - 1) ** 2 + 3 * (y[:, 1] + 0.5) ** 2 + 0.2


def eggs(y: Tensor) -> Tensor:
    """Minima where both cosines are -1: at odd multiples of pi."""
    return y.cos().sum(dim=1) + 0.01 * y[:, 0]


def a_kmeans(k: int = 6) -> KMeans:
    model = KMeans(build_encoder("identity", 2), k=k)
    with torch.no_grad():
        model.prototypes.copy_(torch.randn(k, 2, generator=torch.Generator().manual_seed(1)))
    return model


def test_a_grid_goes_by_rows_from_below() -> None:
    where = fields.grid((0.0, 2.0), (10.0, 11.0), (2, 3))
    assert where.shape == (2, 3)
    assert where.points.tolist() == [[0, 10], [1, 10], [2, 10], [0, 11], [1, 11], [2, 11]]
    assert where.extent == (-0.5, 2.5, 9.5, 11.5)


def test_a_map_is_the_energy_of_every_point() -> None:
    where = fields.grid((-1.0, 1.0), (-2.0, 2.0), (5, 4))
    levels = fields.energy_map(bowl, where)
    for i, y2 in enumerate(where.y):
        for j, y1 in enumerate(where.x):
            assert levels[i, j] == pytest.approx((y1 - 1) ** 2 + 3 * (y2 + 0.5) ** 2 + 0.2)


def test_more_points_than_a_block_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.randn(23, 2)
    wanted = fields.along(bowl, y)
    monkeypatch.setattr(fields, "BLOCK", 5)
    assert np.array_equal(fields.along(bowl, y), wanted)
    assert wanted.dtype == np.float64


def test_an_energy_is_that_of_the_method_when_it_was_asked() -> None:
    model = a_kmeans()
    y = torch.randn(9, 2)
    energy = fields.energy_of(model)
    before = fields.along(energy, y)
    gaps = (y[:, None].double() - model.prototypes.detach().double()).square().sum(dim=2)
    assert np.allclose(before, gaps.amin(dim=1).numpy(), atol=1e-12)
    with torch.no_grad():
        model.prototypes.add_(1.0)
    assert np.array_equal(fields.along(energy, y), before)
    assert not np.allclose(fields.along(fields.energy_of(model), y), before)


def test_the_gradient_of_a_bowl() -> None:
    y = torch.randn(7, 2, dtype=torch.float64)
    exact = torch.stack([2 * (y[:, 0] - 1), 6 * (y[:, 1] + 0.5)], dim=1)
    assert torch.allclose(inference.slope(bowl, y), exact)
    assert not inference.slope(bowl, y).requires_grad


def test_no_way_down_ever_rises() -> None:
    start = 3 * torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    way = fields.descend(eggs, start, steps=300, rate=5.0)  # too long a first step, on purpose
    assert way.shape == (301, 30, 2)
    assert torch.equal(way[0], start)
    levels = torch.stack([eggs(y) for y in way])
    assert float((levels[1:] - levels[:-1]).max()) <= 0
    assert float(inference.slope(eggs, way[-1]).abs().max()) < 1e-5


def test_a_kick_has_the_deviation_asked_for() -> None:
    y = torch.zeros(4000, 2)
    moved = fields.kicked(y, 0.3)
    assert float(moved.std()) == pytest.approx(0.3, rel=0.05)
    assert torch.equal(moved, fields.kicked(y, 0.3))
    assert not torch.allclose(moved, fields.kicked(y, 0.3, seed=1))


def test_the_wells_of_eggs() -> None:
    """Four minima inside [-5, 5]^2, lowest first; those of the edge do not count."""
    found = fields.wells(eggs, fields.grid((-5.0, 5.0), shape=(80, 80)))
    tilt = math.asin(0.01)  # where -sin y1 + 0.01 = 0
    expected = [(s * math.pi - tilt, t * math.pi) for s in (-1, 1) for t in (-1, 1)]
    assert len(found) == 4
    for e in expected:
        assert min(math.dist(y, e) for y in found.tolist()) < 1e-3
    levels = eggs(found)
    assert torch.equal(levels, levels.sort().values)


def test_kmeans_has_as_many_wells_as_prototypes_and_they_are_at_zero() -> None:
    model = a_kmeans()
    energy = fields.energy_of(model)
    found = fields.wells(energy, fields.grid((-4.0, 4.0)))
    assert len(found) == 6
    gaps = torch.cdist(found.double(), model.prototypes.detach().double())
    assert sorted(gaps.argmin(dim=1).tolist()) == list(range(6))
    assert float(gaps.amin(dim=1).max()) < 1e-5
    assert fields.along(energy, model.prototypes.detach()).tolist() == [0.0] * 6


def test_completion_returns_every_minimum() -> None:
    """(y2^2 - 1)^2 + y2 y1 / 4 at y1 = 0.4: the roots of its derivative, two of them minima."""

    def energy(y: Tensor) -> Tensor:
        return (y[:, 1] ** 2 - 1) ** 2 + y[:, 1] * y[:, 0] / 4

    found = fields.complete(energy, 0.4, (-2.0, 2.0), points=101)
    roots = np.sort(np.roots([4, 0, -4, 0.1]).real)
    assert found.y2.tolist() == pytest.approx([roots[0], roots[2]], abs=1e-4)  # lowest first
    heights = [(r**2 - 1) ** 2 + 0.1 * r for r in found.y2]
    assert found.energy.tolist() == pytest.approx(heights)
    only = fields.complete(energy, 0.4, (-2.0, 2.0), within=0.1)
    assert only.y2.tolist() == pytest.approx([roots[0]], abs=1e-4)
    assert len(fields.complete(lambda y: y[:, 1], 0.0, (-1.0, 1.0)).y2) == 0  # only an end


def test_completion_with_kmeans_is_what_its_prototypes_say() -> None:
    """On the line y1 = c a prototype gives a minimum at its own y2 where it is the nearest."""
    model = a_kmeans(12)
    w = model.prototypes.detach().double().numpy()
    c = 0.3
    energies = (c - w[:, 0, None]) ** 2 + (w[:, 1, None].T - w[:, 1, None]) ** 2  # [k, at y2 of j]
    wins = energies.argmin(axis=0) == np.arange(12)
    found = fields.complete(fields.energy_of(model), c, (-4.0, 4.0))
    assert np.sort(found.y2).tolist() == pytest.approx(np.sort(w[wins, 1]).tolist(), abs=1e-4)
    assert 2 <= wins.sum() < 12


def test_fields_and_their_alignment() -> None:
    points = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    found = fields.field(lambda y: 0.5 * y, points)
    assert found.move.tolist() == [[-1.5, -2.0], [0.0, -0.5]]
    assert found.travel.tolist() == [2.5, 0.5]
    a, b = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 1.0], [0.0, 0.0]])
    assert fields.alignment(a, a) == pytest.approx(1)
    assert fields.alignment(a, b) == pytest.approx(3 / math.sqrt(5 * 10))


def test_gibbs_is_a_density_whose_ratios_are_energies() -> None:
    where = fields.grid((-3.0, 3.0), shape=(60, 60))
    levels, cell = fields.energy_map(bowl, where), (6 / 59) ** 2
    p = fields.gibbs(levels, 2.0, cell)
    assert p.sum() * cell == pytest.approx(1)
    ratio = p[10, 20] / p[30, 31]
    assert ratio == pytest.approx(math.exp(-2.0 * (levels[10, 20] - levels[30, 31])))
    cold = fields.gibbs(levels, 1e4, cell)
    assert cold.argmax() == levels.argmin()
    assert fields.gibbs(levels, 0.0, cell).std() == 0
