"""LeJEPA: golden numbers of the statistic, loops over views and directions, shared directions."""

import cmath
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.lejepa import LeJEPA, epps_pulley, sigreg
from erg.views.types import View, Views


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(*data: Tensor, step: int = 0, local: tuple[Tensor, ...] = ()) -> Views:
    small = tuple(View(d) for d in local)
    return Views(tuple(View(d) for d in data), torch.arange(len(data[0])), local=small, step=step)


def a_method(**arguments: Any) -> LeJEPA:
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden": 9, "dim": 5, "views": 2, "directions": 7}
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return LeJEPA(encoder, **{**small, **arguments}).double()


def bare(dim: int = 3, **arguments: Any) -> LeJEPA:
    small: dict[str, Any] = {"views": 2, "directions": 4}
    method = LeJEPA(build_encoder("identity", dim), hidden=2, dim=dim, **{**small, **arguments})
    method.projector = nn.Sequential()
    return method


def statistic(column: list[float]) -> float:
    """With complex numbers, t on 17 points of [0, 3], trapezoids, doubled."""
    n, total = len(column), 0.0
    for i in range(17):
        t = 3 * i / 16
        normal = math.exp(-(t**2) / 2)
        empirical = sum(cmath.exp(1j * t * x) for x in column) / n
        weight = 0.5 if i in (0, 16) else 1.0
        total += weight * abs(empirical - normal) ** 2 * normal * 3 / 16
    return 2 * n * total


def test_statistic_is_golden(golden) -> None:
    line = torch.linspace(-2, 2, 9, dtype=torch.float64)
    columns = torch.stack([line, torch.zeros_like(line), line + 1], dim=1)
    found = epps_pulley(columns)
    for i, name in enumerate(("linspace(-2, 2, 9)", "9 zeros", "linspace(-1, 3, 9)")):
        assert golden.agrees(f"Epps-Pulley, {name}", found[i])
        assert statistic(columns[:, i].tolist()) == pytest.approx(found[i].item(), rel=1e-12)


def test_mean_of_the_statistic_for_normal_draws(golden) -> None:
    found = epps_pulley(drawn(20, 40_000, seed=0))
    error = float(found.std()) / 200
    wanted = golden.oracles["Epps-Pulley, mean for normal draws"]["value"]
    assert float(found.mean()) == pytest.approx(wanted, abs=4 * error)
    assert error < 0.01


def test_mean_of_the_statistic_for_normal_draws_is_golden(golden) -> None:
    """Whatever n: for one draw by Gauss and Hermite's quadrature, which leaves no error."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    found = epps_pulley(torch.from_numpy(nodes)[None])
    mean = (found * torch.from_numpy(weights)).sum() / math.sqrt(2 * math.pi)
    assert golden.agrees("Epps-Pulley, mean for normal draws", mean)


def test_loss_is_the_loop_over_views_and_directions() -> None:
    method = a_method(views=3, weight=0.1)
    batch = of(*(drawn(6, 3, 16, 16, seed=s) for s in range(3)), step=5)
    z = torch.cat([view.data for view in batch.main])
    z = method.projector(method.encoder(z)).reshape(3, 6, 5)
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(7, 5, generator=generator)
    directions = (directions / directions.norm(dim=1, keepdim=True)).double()
    rows: list[list[list[float]]] = z.tolist()
    prediction = normality = 0.0
    for i in range(6):
        for k in range(5):
            mean = sum(rows[v][i][k] for v in range(3)) / 3
            prediction += sum((rows[v][i][k] - mean) ** 2 for v in range(3)) / 3 / 6 / 5
    for v in range(3):
        for a in directions.tolist():
            column = [math.fsum(p * q for p, q in zip(a, row, strict=True)) for row in rows[v]]
            normality += statistic(column) / 3 / 7
    loss = method.loss(batch, 0.0)
    assert loss.pull["prediction"].item() == pytest.approx(0.9 * prediction, rel=1e-9)
    assert loss.push["normality"].item() == pytest.approx(0.1 * normality, rel=1e-6)


def test_the_pull_of_two_views_is_a_quarter_of_the_energy() -> None:
    method, x, y = bare(weight=0.0), drawn(5, 3, seed=1), drawn(5, 3, seed=2)
    energies = method.energy(View(x), View(y))
    assert torch.allclose(energies, (x - y).square().mean(dim=1), atol=1e-12)
    total = method.loss(of(x, y), 0.0).total.item()
    assert total == pytest.approx(energies.mean().item() / 4, rel=1e-12)


def test_gradient_is_the_slope_in_all_views() -> None:
    method = bare(weight=0.5)
    x, y = (drawn(5, 3, seed=s).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(lambda a, b: method.loss(of(a, b), 0.0).total, (x, y))


def test_small_views_of_a_plan_of_ones_own_take_part() -> None:
    method = a_method(weight=0.3).eval()
    large = [drawn(6, 3, 16, 16, seed=s) for s in range(2)]
    small = tuple(drawn(6, 3, 8, 8, seed=s) for s in (2, 3))
    z = torch.stack([method.projector(method.encoder(d)) for d in (*large, *small)])
    pull = 0.7 * (z - z.mean(dim=0)).square().mean()
    loss = method.loss(of(*large, local=small), 0.0)
    assert loss.pull["prediction"].item() == pytest.approx(pull.item(), rel=1e-10)
    assert loss.push["normality"].item() == pytest.approx(0.3 * sigreg(z, 7, 0).item(), rel=1e-10)


def test_directions_are_new_at_every_step_and_drawn_apart_from_training() -> None:
    z = drawn(2, 6, 3, seed=1)
    before = torch.get_rng_state()
    assert sigreg(z, 8, 0).item() == sigreg(z, 8, 0).item()
    assert sigreg(z, 8, 0).item() != pytest.approx(sigreg(z, 8, 1).item(), rel=1e-6)
    assert torch.equal(torch.get_rng_state(), before)


def test_normal_embeddings_cost_least() -> None:
    normal, n = drawn(1, 400, 6, seed=1), 400
    flat = normal.clone()
    flat[..., 3:] = 0
    costs = [sigreg(z, 64, 0).item() for z in (normal, 2 * normal, flat, 0 * normal)]
    assert costs[0] < 3
    assert min(costs[1:]) > 3 * costs[0]
    # Collapse, the largest: n / 9 times the golden number of nine zeros.
    assert costs[3] == pytest.approx(3.61842822 * n / 9, rel=1e-8)


def test_half_precision_is_promoted() -> None:
    z = drawn(2, 6, 3, seed=1).to(torch.bfloat16)
    assert epps_pulley(z[0]).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sigreg(z.float(), 8, 0)
    assert torch.equal(inside, sigreg(z.float(), 8, 0))


def test_plan_has_as_many_equal_views_as_asked() -> None:
    plan = a_method(views=4).plan()
    assert len(plan.main) == 4
    assert len(set(plan.main)) == 1
    view = plan.main[0]
    assert (view.crop, view.solarise, view.blur) == ((0.08, 1.0), 0.2, 0.0)
    assert LeJEPA(build_encoder("conv", 128, width=8)).plan().main[0].blur == 0.5
