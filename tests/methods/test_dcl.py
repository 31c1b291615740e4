"""DCL: a double loop, NT-Xent without the positive in the denominator, the weights of DCLW."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg import shaping
from erg.encoders import build_encoder
from erg.methods.dcl import DCL
from erg.parts.heads import OutputNorm
from erg.views.plan import SIMCLR, SIMCLR_SMALL
from erg.views.types import View, Views


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(x: Tensor, y: Tensor) -> Views:
    return Views((View(x), View(y)), torch.arange(len(x)))


def bare(dim: int = 3, **arguments: Any) -> DCL:
    method = DCL(build_encoder("identity", dim), dim=dim, **arguments)
    method.projector = nn.Sequential()
    return method


def a_method(**arguments: Any) -> DCL:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return DCL(encoder, **{"dim": 5, **arguments}).double()


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_loss_is_the_double_loop_of_the_docstring(sigma: float) -> None:
    method = a_method(temperature=0.3, sigma=sigma)
    views = pair(drawn(5, 3, 16, 16, seed=0), drawn(5, 3, 16, 16, seed=1))
    z = torch.cat([method.project(view) for view in views.main]).tolist()

    def energy(i: int, k: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[k], strict=True))
        return -dot / math.sqrt(sum(a * a for a in z[i])) / math.sqrt(sum(b * b for b in z[k]))

    fits = [energy(i, i + 5) for i in range(5)]
    weights = [1.0] * 5
    if sigma:
        mean = sum(math.exp(-f / sigma) for f in fits) / 5
        weights = [2 - math.exp(-f / sigma) / mean for f in fits]
    pull = sum(w * f for w, f in zip(weights, fits, strict=True)) / 5 / 0.3
    push = 0.0
    for i in range(10):
        others = [math.exp(-energy(i, k) / 0.3) for k in range(10) if k % 5 != i % 5]
        assert len(others) == 8
        push += math.log(sum(others)) / 10
    loss = method.loss(views, 0.0)
    assert loss.pull["alignment"].item() == pytest.approx(pull, rel=1e-10)
    assert loss.push["repulsion"].item() == pytest.approx(push, rel=1e-10)
    assert method.energy(*views.main).tolist() == pytest.approx(fits, rel=1e-10)


def turned_alike() -> tuple[Tensor, Tensor]:
    """Two views of two images, each in a plane of its own: all views see the same cosines."""
    rows = []
    for first, second in ((0.0, 1.1), (0.3, 1.4)):
        rows.append(
            [[math.cos(first), math.sin(first), 0, 0], [0, 0, math.cos(second), math.sin(second)]]
        )
    x, y = torch.tensor(rows, dtype=torch.float64)
    return x, y


def test_it_is_nt_xent_without_the_positive_in_the_denominator() -> None:
    """For views that all see the same cosines exp(NT-Xent) = 1 + exp(DCL)."""
    x, y = turned_alike()
    nt_xent = shaping.alignment(x, y, 0.4) + shaping.repulsion(x, y, 0.4)
    total = bare(4, temperature=0.4).loss(pair(x, y), 0.0).total
    assert math.exp(nt_xent) == pytest.approx(1 + math.exp(total), rel=1e-12)


def test_its_gradient_is_nt_xents_over_the_share_of_the_negatives() -> None:
    """What the paper calls the coupling (proposition 1): a pair that fits loses no gradient."""
    x, y = (z.requires_grad_() for z in turned_alike())
    total = bare(4, temperature=0.4).loss(pair(x, y), 0.0).total
    ours = torch.autograd.grad(total, (x, y))
    nt_xent = shaping.alignment(x, y, 0.4) + shaping.repulsion(x, y, 0.4)
    theirs = torch.autograd.grad(nt_xent, (x, y))
    share = 1 / (1 + math.exp(-total.item()))
    assert share < 0.2
    for a, b in zip(ours, theirs, strict=True):
        assert float(a.abs().max()) > 0.1
        assert torch.allclose(share * a, b, atol=1e-12)


def test_gradient_is_the_slope() -> None:
    method = bare(temperature=0.5)
    x, y = (drawn(4, 3, seed=s).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(lambda a, b: method.loss(pair(a, b), 0.0).total, (x, y))


def test_gradient_of_dclw_is_the_slope_with_the_weights_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = bare(temperature=0.5, sigma=0.5)
    x, y = (drawn(4, 3, seed=s).requires_grad_() for s in (1, 2))
    method.loss(pair(x, y), 0.0).total.backward()
    weights = method.weights(-nn.functional.cosine_similarity(x, y)).clone()
    assert float(weights.std()) > 0.1
    monkeypatch.setattr(method, "weights", lambda _: weights)
    held = torch.autograd.grad(method.loss(pair(x, y), 0.0).total, (x, y))
    for z, wanted in zip((x, y), held, strict=True):
        assert z.grad is not None
        assert torch.allclose(z.grad, wanted, atol=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: method.loss(pair(a, b), 0.0).total, (x, y))


def test_weights_have_mean_1_and_no_gradient_and_are_larger_for_hard_pairs() -> None:
    fits = torch.tensor([-0.9, -0.2, 0.4], dtype=torch.float64, requires_grad=True)
    weights = bare(sigma=0.5).weights(fits)
    assert not weights.requires_grad
    assert weights.mean().item() == pytest.approx(1, rel=1e-12)
    assert weights.tolist() == sorted(weights.tolist())


def test_constant_embeddings_cost_the_logarithm_of_the_others() -> None:
    same = torch.ones(6, 3, dtype=torch.float64)
    loss = bare(temperature=0.3).loss(pair(same, same), 0.0)
    assert loss.total.item() == pytest.approx(math.log(10), rel=1e-12)


def test_projector_and_plan_are_simclrs() -> None:
    method = a_method(hidden=7)
    linears = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    assert [(a.in_features, a.out_features) for a in linears] == [(16, 7), (7, 5)]
    assert all(layer.bias is None for layer in linears)
    assert isinstance(method.projector[-1], OutputNorm)
    assert method.plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    assert DCL(build_encoder("conv", 128, width=8)).plan().main == (SIMCLR, SIMCLR)
