"""Optimisers against their formulas."""

import math

import pytest
import torch
from torch import nn

from erg.train.optim import LARC, LARS, build_optimiser, groups
from erg.train.run import Optimiser


def test_lars_first_step_golden() -> None:
    """Reference, section 0.2: p = (3, 4), g = (0.8, -0.6), wd 0.1, lr 1."""
    p = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    p.grad = torch.tensor([[0.8, -0.6]], dtype=torch.float64)
    before = p.detach().clone()
    LARS([p], lr=1.0, momentum=0.9, weight_decay=0.1).step()
    moved = (before - p.detach())[0].tolist()
    assert moved == pytest.approx([0.00491935, -0.00089443], abs=5e-9)


def test_larc_first_step_golden() -> None:
    """Reference, section 0.2: the same parameter, gradient and decay."""
    p = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    p.grad = torch.tensor([[0.8, -0.6]], dtype=torch.float64)
    before = p.detach().clone()
    LARC([p], lr=1.0, momentum=0.9, weight_decay=0.1).step()
    moved = (before - p.detach())[0].tolist()
    assert moved == pytest.approx([0.00366667, -0.00066667], abs=5e-9)


def test_larc_leaves_nothing_out_by_loops() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    optimiser = build_optimiser(Optimiser(name="larc", lr=0.5, weight_decay=0.3), layer)
    assert isinstance(optimiser, LARC)
    expected = [p.detach().flatten().tolist() for p in layer.parameters()]
    velocity = [[0.0] * len(values) for values in expected]
    for step in range(4):
        torch.manual_seed(step)
        for p, values, v in zip(layer.parameters(), expected, velocity, strict=True):
            p.grad = torch.randn_like(p)
            gradient = p.grad.flatten().tolist()
            size, norm = math.hypot(*values), math.hypot(*gradient)
            trust = 0.001 * size / (norm + 0.3 * size + 1e-8)
            for i, g in enumerate(gradient):
                v[i] = 0.9 * v[i] + trust * (g + 0.3 * values[i])
                values[i] -= 0.5 * v[i]
        optimiser.step()
    for p, values in zip(layer.parameters(), expected, strict=True):
        assert p.detach().flatten().tolist() == pytest.approx(values, rel=1e-13)


def test_larc_takes_a_plain_step_without_decay_where_a_norm_is_zero() -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    p.grad, q.grad = torch.ones(2), torch.zeros(2)
    LARC([p, q], lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(p.detach(), torch.full((2,), -0.1))
    assert torch.equal(q, torch.ones(2))


def test_lars_momentum_and_exclusion_by_loops() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    optimiser = build_optimiser(Optimiser(name="lars", lr=0.5, weight_decay=0.01), layer)
    assert optimiser is not None
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    v_weight, v_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for step in range(4):
        torch.manual_seed(step)
        layer.weight.grad = torch.randn_like(layer.weight)
        layer.bias.grad = torch.randn_like(layer.bias)
        decayed = layer.weight.grad + 0.01 * weight
        trust = 0.001 * weight.norm() / decayed.norm()
        v_weight = 0.9 * v_weight + trust * decayed
        v_bias = 0.9 * v_bias + layer.bias.grad
        weight, bias = weight - 0.5 * v_weight, bias - 0.5 * v_bias
        optimiser.step()
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(layer.bias.detach(), bias, rtol=1e-12, atol=1e-14)


def test_lars_with_zero_weights_takes_a_plain_step() -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    LARS([p], lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(p.detach(), torch.full((2, 2), -0.1))


def test_groups_by_rule() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    decayed, plain = groups(module, 0.3)
    assert [p.shape for p in decayed["params"]] == [(2, 4)]
    assert all(p.ndim == 1 for p in plain["params"])
    assert len(plain["params"]) == 4
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)


def test_nothing_to_train_is_no_optimiser() -> None:
    assert build_optimiser(Optimiser(), nn.Linear(2, 2).requires_grad_(False)) is None


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "larc"])
def test_every_optimiser_lowers_a_quadratic(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 1)
    lr = {"adamw": 0.05, "sgd": 0.05, "lars": 0.1, "larc": 1.0}[name]
    optimiser = build_optimiser(Optimiser(name=name, lr=lr, weight_decay=0.0), layer)
    assert optimiser is not None
    x, y = torch.randn(64, 4), torch.randn(64, 1)
    losses = []
    for _ in range(40):
        loss = (layer(x) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_torch_has_fused_is_fused(name: str) -> None:
    optimiser = build_optimiser(Optimiser(name=name), nn.Linear(4, 1))
    assert optimiser is not None
    assert all(group["fused"] for group in optimiser.param_groups)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "larc"])
def test_a_parameter_may_have_its_first_gradient_later_than_others(name: str) -> None:
    """As what a method freezes at first: from then on it moves as it would alone."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    chosen = Optimiser(name=name, lr=0.1, weight_decay=0.0)  # type: ignore[arg-type]
    optimiser = build_optimiser(chosen, layer)
    alone = nn.Linear(3, 2)
    alone.load_state_dict(layer.state_dict())
    other = build_optimiser(chosen, alone)
    assert optimiser is not None
    assert other is not None
    weight = layer.weight.detach().clone()
    for step in range(4):
        gradient = torch.randn(2, 3)
        layer.bias.grad = torch.randn(2)
        if step > 1:
            layer.weight.grad, alone.weight.grad = gradient.clone(), gradient.clone()
            other.step()
        optimiser.step()
        optimiser.zero_grad()
        assert torch.equal(layer.weight, alone.weight)
    assert not torch.equal(layer.weight, weight)


def test_sgd_is_its_formula() -> None:
    """v <- m v + g + wd p; p <- p - lr (g + wd p + m v), with Nesterov's look ahead."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
    holder = nn.ParameterList([p])
    optimiser = build_optimiser(Optimiser(name="sgd", lr=0.3, weight_decay=0.1), holder)
    assert optimiser is not None
    expected, v = p.detach().clone(), torch.zeros(2, 3, dtype=torch.float64)
    for _ in range(4):
        p.grad = torch.randn_like(p)
        gradient = p.grad + 0.1 * expected
        v = 0.9 * v + gradient
        expected = expected - 0.3 * (gradient + 0.9 * v)
        optimiser.step()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)


def test_unknown_optimiser() -> None:
    with pytest.raises(ValueError, match="adamw, sgd, lars or larc"):
        Optimiser(name="adam")  # type: ignore[arg-type]
