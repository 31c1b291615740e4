"""Contractive autoencoder: its penalty against the Jacobian and the closed form of a layer."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from erg import noise
from erg.encoders import build_encoder
from erg.methods.contractive_autoencoder import ContractiveAutoencoder, squared_slope
from erg.testing import check_method
from erg.views.plan import LIGHT
from erg.views.types import View, Views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_method(encoder: str = "identity", d: int = 4, **arguments: Any) -> ContractiveAutoencoder:
    torch.manual_seed(0)
    further: dict[str, Any] = {"width": 8, "depth": 1, "dim": 5} if encoder == "mlp" else {}
    built = build_encoder(encoder, d, **further)
    settings = {"dim": 3, "width": 8, **arguments}
    return ContractiveAutoencoder(built, **settings).double()


def batch(y: Tensor, step: int = 0) -> Views:
    return Views((View(y),), torch.arange(len(y)), step=step, pairing="alone")


def frobenius(method: ContractiveAutoencoder, y: Tensor) -> list[float]:
    """||dh/dy||_F^2 of each item, by autograd."""
    found = []
    for point in y:
        jacobian = torch.autograd.functional.jacobian(lambda p: method.encode(p[None])[0], point)
        found.append(float(jacobian.square().sum()))
    return found


@pytest.mark.parametrize("encoder", ["identity", "mlp"])
def test_mean_over_all_signs_is_the_norm_of_the_jacobian(encoder: str) -> None:
    method, y = a_method(encoder), drawn(6, 4)
    h = method.encode(y)
    signs = list(itertools.product([-1.0, 1.0], repeat=4))
    slopes = [
        squared_slope(method.encode, y, h, torch.tensor(v, dtype=torch.float64).expand(6, 4))
        for v in signs
    ]
    found = torch.stack(slopes).mean(0)
    assert found.tolist() == pytest.approx(frobenius(method, y), rel=1e-5)


def test_of_a_sigmoid_layer_it_is_the_closed_form() -> None:
    """sum_j [h_j (1 - h_j)]^2 sum_i W_ji^2."""
    method, y = a_method(), drawn(6, 4)
    weights = method.code.weight.tolist()
    wanted = []
    for row in method.encode(y).tolist():
        wanted.append(
            sum((h * (1 - h)) ** 2 * sum(w * w for w in weights[j]) for j, h in enumerate(row))
        )
    assert frobenius(method, y) == pytest.approx(wanted)


@pytest.mark.parametrize("encoder", ["identity", "mlp"])
def test_the_loss_adds_the_norm(encoder: str) -> None:
    """Many probes instead of all signs, so within their error."""
    method, y = a_method(encoder, relative=False, probes=400, contraction=0.7), drawn(6, 4)
    loss = method.loss(batch(y), 0.0)
    wanted = sum(frobenius(method, y)) / 6
    assert loss.push["contraction"].item() == pytest.approx(0.7 * wanted, rel=0.05)
    made = method.reconstruct(method.encode(y))
    error = (made - y).square().mean(1)
    assert loss.pull["reconstruction"].item() == pytest.approx(error.mean().item())
    assert torch.allclose(method.energy(None, View(y)), error)


def test_relative_it_is_divided_by_the_size_of_y_and_the_variance_of_h() -> None:
    y = drawn(6, 4)
    plain, relative = (
        a_method(relative=r).loss(batch(y), 0.0).push["contraction"] for r in (False, True)
    )
    h = a_method().encode(y)
    variance = sum(h[:, j].var(correction=0).item() for j in range(3))
    assert relative.item() == pytest.approx(plain.item() / (4 * variance))


def test_the_gradient_is_that_of_the_closed_form() -> None:
    """All signs as probes, so that nothing is left to chance."""
    method, y = a_method(), drawn(5, 4)
    h = method.encode(y)
    weights = method.code.weight
    closed = ((h * (1 - h)).square() * weights.square().sum(1)).sum(1).mean()
    wanted = torch.autograd.grad(closed, weights)[0]
    slopes = [
        squared_slope(method.encode, y, method.encode(y), torch.tensor(v).double().expand(5, 4))
        for v in itertools.product([-1, 1], repeat=4)
    ]
    found = torch.autograd.grad(torch.stack(slopes).mean(), weights)[0]
    assert torch.allclose(found, wanted, atol=1e-6)


def test_directions_depend_on_image_and_step() -> None:
    method, y = a_method(relative=False, contraction=1.0), drawn(6, 4)
    index = torch.tensor([5, 3, 9, 2, 0, 7])
    views = replace(batch(y, step=4), index=index)
    v = noise.signs(index, 4, purpose="direction 0", step=4).double()
    wanted = squared_slope(method.encode, y, method.encode(y), v).mean()
    assert method.loss(views, 0.0).push["contraction"].item() == pytest.approx(wanted.item())


def test_on_vectors_weights_are_tied() -> None:
    method, y = a_method(), drawn(6, 4)
    w, b, c = method.code.weight, method.code.bias, method.offset
    wanted = torch.sigmoid(y @ w.T + b) @ w + c
    assert torch.allclose(method.reconstruct(method.encode(y)), wanted)


def test_contraction_leaves_the_directions_of_the_data() -> None:
    """Data on a line in 4 dimensions: with the penalty the code follows the line alone."""
    line = drawn(1, 4, seed=1)
    line = line / line.norm()
    y = drawn(200, 1) @ line + 0.02 * drawn(200, 4, seed=2)
    shares = []
    for contraction in (0.0, 0.3):
        method = a_method(contraction=contraction, dim=6)
        optimiser = torch.optim.Adam(method.parameters(), lr=0.02)
        for step in range(200):
            optimiser.zero_grad()
            method.loss(batch(y, step), 0.0).total.backward()
            optimiser.step()
        along = squared_slope(method.encode, y, method.encode(y), line.expand(200, 4)).sum()
        shares.append(along.item() / sum(frobenius(method, y)))
    assert 1 - shares[1] < 0.3 * (1 - shares[0]), shares


def test_in_half_precision_slopes_are_those_of_float32() -> None:
    method, y = a_method("mlp").float(), drawn(6, 4).float()
    wanted = method.loss(batch(y), 0.0).push["contraction"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method.loss(batch(y), 0.0).push["contraction"]
    assert found.item() == wanted.item()
    exact = a_method("mlp").loss(batch(y.double()), 0.0).push["contraction"]
    assert found.item() == pytest.approx(exact.item(), rel=0.02)


def test_plan_and_contract() -> None:
    plan = a_method(crop=0.7).plan()
    assert plan.main == (replace(LIGHT, crop=(0.7, 1.0)),)
    assert plan.pairs == "alone"
    check_method(ContractiveAutoencoder, arguments={"width": 8, "relative": False, "probes": 2})
