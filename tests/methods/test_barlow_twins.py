"""Barlow Twins: golden numbers, loops over the cross-correlation, what it does not see."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.barlow_twins import BarlowTwins
from erg.parts.norm import BatchNorm
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, SIMCLR_SMALL
from erg.views.types import View, Views


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(x: Tensor, y: Tensor) -> Views:
    return Views((View(x), View(y)), torch.arange(len(x)))


def images(b: int = 6) -> Views:
    return pair(drawn(b, 3, 16, 16, seed=0), drawn(b, 3, 16, 16, seed=1))


def a_method(**arguments: Any) -> BarlowTwins:
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden": 9, "dim": 5}
    return BarlowTwins(
        build_encoder("conv", 16, width=8, stages=2), **{**small, **arguments}
    ).double()


def bare(dim: int = 3, **arguments: Any) -> BarlowTwins:
    """Its loss of embeddings as they are."""
    method = BarlowTwins(build_encoder("identity", dim), hidden=2, dim=dim, **arguments)
    method.projector = nn.Sequential()
    return method.double()


def test_loss_is_golden(golden) -> None:
    loss = bare().loss(pair(golden.array("Z1"), golden.array("Z2")), 0.0)
    assert golden.agrees("Barlow Twins, on the diagonal", loss.total - loss.push["redundancy"])
    assert golden.agrees("Barlow Twins, on the diagonal", loss.pull["invariance"])
    assert golden.agrees("Barlow Twins, off the diagonal", loss.push["redundancy"] / 0.0051)
    assert golden.agrees("Barlow Twins, lambda 0.0051", loss.total)


def test_loss_is_the_loop_over_the_cross_correlation() -> None:
    method, views = a_method(redundancy=0.3), images()
    columns = []
    for view in views.main:
        z = method.projector(method.encoder(view.data)).T.tolist()
        standard = []
        for column in z:
            mean = sum(column) / 6
            variance = sum((v - mean) ** 2 for v in column) / 6
            standard.append([(v - mean) / math.sqrt(variance + 1e-5) for v in column])
        columns.append(standard)
    on, off = 0.0, 0.0
    for i, a in enumerate(columns[0]):
        for j, b in enumerate(columns[1]):
            c = sum(p * q for p, q in zip(a, b, strict=True)) / 6
            on += (1 - c) ** 2 if i == j else 0
            off += c**2 if i != j else 0
    loss = method.loss(views, 0.0)
    assert loss.pull["invariance"].item() == pytest.approx(on, rel=1e-9)
    assert loss.push["redundancy"].item() == pytest.approx(0.3 * off, rel=1e-9)
    energies = [-sum(columns[0][i][k] * columns[1][i][k] for i in range(5)) / 5 for k in range(6)]
    assert method.energy(*views.main).tolist() == pytest.approx(energies, rel=1e-9)


def test_gradient_is_the_slope() -> None:
    method = bare(redundancy=0.5)
    x, y = (drawn(5, 3, seed=s).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(lambda a, b: method.loss(pair(a, b), 0.0).total, (x, y))


def test_equal_views_without_correlation_cost_nothing() -> None:
    square = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert bare(2).loss(pair(square, square), 0.0).total.item() == pytest.approx(0, abs=1e-9)


def test_collapse_costs_the_number_of_dimensions() -> None:
    same = torch.ones(4, 3, dtype=torch.float64)
    assert bare().loss(pair(same, same), 0.0).total.item() == pytest.approx(3)


def test_scale_and_offset_of_each_dimension_of_each_view_change_nothing() -> None:
    """Up to the epsilon beside the variance: each view is standardised by itself."""
    x, y, method = drawn(8, 3, seed=1), drawn(8, 3, seed=2), bare(redundancy=0.5)
    scale = torch.tensor([3.0, 0.5, 7.0], dtype=torch.float64)
    total = method.loss(pair(x, y), 0.0).total.item()
    moved = method.loss(pair(x * scale - 4, y), 0.0).total.item()
    assert moved == pytest.approx(total, rel=1e-3)


def test_in_evaluation_an_energy_depends_on_its_own_pair_alone() -> None:
    method, views = a_method(), images()
    method.loss(views, 0.0)
    method.eval()
    x, y = views.main
    assert torch.allclose(
        method.energy(x, y)[:2], method.energy(x.take(slice(2)), y.take(slice(2)))
    )


def test_projector_is_the_papers() -> None:
    method = a_method()
    linears = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    assert [(a.in_features, a.out_features) for a in linears] == [(16, 9), (9, 9), (9, 5)]
    assert all(layer.bias is None for layer in linears)
    assert isinstance(method.projector[-1], nn.Linear)
    assert isinstance(method.standardise, BatchNorm)
    assert not method.standardise.affine


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = BarlowTwins(build_encoder("conv", 128, width=8), hidden=4, dim=4)
    assert large.plan().main == (BYOL_FIRST, BYOL_SECOND)
