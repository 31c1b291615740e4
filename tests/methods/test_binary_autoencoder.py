"""Binary codes: losses by loops, Hamming distances, codes that become binary by the noise."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from erg import noise
from erg.encoders import build_encoder
from erg.methods.binary_autoencoder import BinaryAutoencoder
from erg.views.plan import LIGHT
from erg.views.types import View, Views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_method(d: int = 6, **arguments: Any) -> BinaryAutoencoder:
    torch.manual_seed(0)
    settings = {"bits": 10, "width": 8, **arguments}
    return BinaryAutoencoder(build_encoder("identity", d), **settings).double()


def batch(y: Tensor, step: int = 0) -> Views:
    return Views((View(y),), torch.arange(len(y)), step=step, pairing="alone")


def test_codes_are_bits_and_their_distances_hamming() -> None:
    method, y = a_method(), drawn(12, 6)
    z = method.encode(y)
    assert set(z.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(z.bool(), method.inputs(y) > 0)
    rows = [[int(v) for v in row] for row in z.tolist()]
    for i in range(12):
        for j in range(12):
            differ = sum(p ^ q for p, q in zip(rows[i], rows[j], strict=True))
            assert float((z[i] - z[j]).square().sum()) == differ
            shared = sum(p & q for p, q in zip(rows[i], rows[j], strict=True))
            assert differ == sum(rows[i]) + sum(rows[j]) - 2 * shared


def test_energy_is_the_error_of_what_the_bits_alone_give() -> None:
    method, y = a_method(), drawn(5, 6)
    made = method.decoder((method.inputs(y) > 0).double())
    wanted = [
        sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / 6
        for a, b in zip(y.tolist(), made.tolist(), strict=True)
    ]
    assert method.energy(None, View(y)).tolist() == pytest.approx(wanted)


def test_loss_adds_noise_before_the_sigmoid_and_asks_for_few_ones() -> None:
    method, y = a_method(noise=1.5, active=0.2, weight=0.3), drawn(5, 6)
    index = torch.tensor([4, 9, 1, 7, 30])
    a = method.inputs(y)
    z = torch.sigmoid(a + 1.5 * noise.normal(index, 10, purpose="bits", step=0).double())
    error = (method.decoder(z) - y).square().mean(1).mean()
    divergence = 0.0
    for column in (a > 0).T.tolist():
        share = min(0.99, max(0.01, sum(column) / 5))
        divergence += 0.2 * math.log(0.2 / share) + 0.8 * math.log(0.8 / (1 - share))
    views = replace(batch(y), index=index)
    loss = method.loss(views, 0.0)
    assert loss.pull["reconstruction"].item() == pytest.approx(error.item())
    assert loss.push["activity"].item() == pytest.approx(0.3 * divergence)
    # The noise of an image is the same at every step, and another one's is not.
    assert method.loss(replace(views, step=8), 0.0).total == loss.total
    assert method.loss(replace(views, index=index + 1), 0.0).total != loss.total
    loss.total.backward()
    assert all(p.grad is not None for p in method.parameters())


def trained(y: Tensor, **arguments: Any) -> BinaryAutoencoder:
    method = a_method(**arguments)
    optimiser = torch.optim.Adam(method.parameters(), lr=0.03)
    for step in range(150):
        optimiser.zero_grad()
        method.loss(batch(y, step), 0.0).total.backward()
        optimiser.step()
    return method


def test_noise_makes_activations_binary_and_the_share_of_ones_is_kept() -> None:
    y = drawn(300, 6)
    noisy, plain = trained(y), trained(y, noise=0.0)
    unsure = []
    for method in (noisy, plain):
        h = method.inputs(y).sigmoid()
        unsure.append((h * (1 - h)).mean().item())
    assert unsure[0] < 0.5 * unsure[1]
    shares = [trained(y, active=share, weight=1.0).encode(y).mean() for share in (0.1, 0.5)]
    assert shares[0].item() == pytest.approx(0.1, abs=0.05)
    assert shares[1].item() == pytest.approx(0.5, abs=0.05)


def test_the_gradient_of_the_share_of_ones_is_that_of_the_sigmoid() -> None:
    method, y = a_method(active=0.3, weight=1.0), drawn(40, 6)
    found = torch.autograd.grad(method.loss(batch(y), 0.0).push["activity"], method.code.bias)[0]
    a = method.inputs(y).detach()
    share = (a > 0).double().mean(0)
    assert ((share > 0.01) & (share < 0.99)).all()
    slope = (a.sigmoid() * (1 - a.sigmoid())).mean(0)
    assert torch.allclose(found, slope * (-0.3 / share + 0.7 / (1 - share)))


def test_a_bit_that_is_never_one_is_pulled_up_and_not_without_bound() -> None:
    method, y = a_method(active=0.3, weight=1.0), drawn(40, 6)
    with torch.no_grad():
        method.code.bias[0] = -6.0
    assert (method.encode(y)[:, 0] == 0).all()
    gradient = torch.autograd.grad(method.loss(batch(y), 0.0).push["activity"], method.code.bias)[0]
    assert -0.5 < gradient[0].item() < 0


def test_near_images_get_near_codes() -> None:
    y = drawn(200, 6)
    method = trained(y)
    z, close = method.encode(y), method.encode(y + 0.05 * drawn(200, 6, seed=1))
    assert (z - close).abs().sum(1).mean() < 0.3 * (z - z.roll(1, 0)).abs().sum(1).mean()


def test_plan_and_impossible_shares() -> None:
    plan = a_method(crop=0.7).plan()
    assert plan.main == (replace(LIGHT, crop=(0.7, 1.0)),)
    assert plan.pairs == "alone"
    with pytest.raises(ValueError, match=r"active is a share of ones in \(0, 1\) \(got 1\)"):
        a_method(active=1)
