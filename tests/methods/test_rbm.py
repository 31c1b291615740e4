"""Restricted Boltzmann machine: against all states of four visible and four hidden units."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from erg import noise
from erg.encoders import build_encoder
from erg.methods.rbm import RBM, drawn
from erg.testing import check_method
from erg.views.plan import whole
from erg.views.types import View, Views

STATES = [list(map(float, state)) for state in itertools.product([0, 1], repeat=4)]
ALL = torch.tensor(STATES, dtype=torch.float64)  # [16 4]


def a_method(scale: float = 1.5, **arguments: Any) -> RBM:
    """Four visible, four hidden units. Half of the probability is near 1100 and half near 0011,
    and the larger the scale, the longer a chain takes from one to the other."""
    method = RBM(build_encoder("identity", 4), hidden=4, **arguments).double()
    random = torch.Generator().manual_seed(1)
    towards = torch.outer(torch.tensor([1.0, -1, 1, -1]), torch.tensor([1.0, 1, -1, -1]))
    with torch.no_grad():
        method.weight.copy_(scale * towards + 0.3 * torch.randn(4, 4, generator=random))
        method.visible_bias.copy_(-method.weight.sum(0) / 2)
        method.hidden_bias.copy_(-method.weight.sum(1) / 2)
    return method


def batch(v: Tensor, step: int = 0) -> Views:
    return Views((View(v),), torch.arange(len(v)), step=step, pairing="alone")


def some_data(n: int) -> tuple[Tensor, Tensor]:
    """n vectors of two kinds, and the shares of all states among them."""
    kinds = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0], [1, 0, 1, 0]], dtype=torch.float64)
    v = kinds[torch.arange(n) % 3]
    shares = (v[:, None] == ALL).all(2).double().mean(0)
    return v, shares


def joint(method: RBM) -> Tensor:
    """E(v, h) of all states [16 16], by loops."""
    w, b, c = (p.tolist() for p in (method.weight, method.visible_bias, method.hidden_bias))
    return torch.tensor(
        [
            [
                -sum(b[i] * v[i] for i in range(4))
                - sum(c[j] * h[j] for j in range(4))
                - sum(h[j] * w[j][i] * v[i] for i in range(4) for j in range(4))
                for h in STATES
            ]
            for v in STATES
        ],
        dtype=torch.float64,
    )


def after(method: RBM, shares: Tensor, k: int) -> Tensor:
    """Shares of all visible states after k turns of an infinitely large batch."""
    weights = (-joint(method)).exp()  # [v h]
    to_hidden = weights / weights.sum(1, keepdim=True)
    to_visible = weights / weights.sum(0)
    for _ in range(k):
        shares = (shares @ to_hidden) @ to_visible.T
    return shares


def gradient(method: RBM, low: Tensor, high: Tensor) -> Tensor:
    """Of mean F under the shares `low` minus mean F under the shares `high`, exact."""
    free = method.free_energy(ALL)
    total = (low * free).sum() - (high * free).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(method.parameters()))])


def model(method: RBM) -> Tensor:
    """p(v) of all states."""
    return joint(method).neg().logsumexp(1).softmax(0)


def estimated(method: RBM, v: Tensor, step: int = 0) -> Tensor:
    total = method.loss(batch(v, step), 0.0).total
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(method.parameters()))])


def test_energy_is_the_free_energy_of_all_hidden_states() -> None:
    method = a_method()
    wanted = -(-joint(method)).logsumexp(1)
    assert torch.allclose(method.energy(None, View(ALL)), wanted)
    on = torch.tensor(STATES, dtype=torch.float64)
    wanted = (-joint(method)).softmax(1) @ on
    assert torch.allclose(method.encode(ALL), wanted)


def test_gradient_of_the_likelihood_is_that_of_f_minus_its_mean() -> None:
    """The identity that all of this rests on, with autograd through the enumerated normaliser."""
    method, (_, shares) = a_method(), some_data(3)
    free = method.free_energy(ALL)
    likelihood = (shares * (free + (-free).logsumexp(0))).sum()
    wanted = torch.autograd.grad(likelihood, list(method.parameters()))
    found = gradient(method, shares, model(method))
    assert torch.allclose(found, torch.cat([g.flatten() for g in wanted]))


def test_chains_leave_the_model_as_it_is() -> None:
    method = a_method()
    assert torch.allclose(after(method, model(method), 3), model(method))


@pytest.mark.parametrize("k", [1, 2])
def test_gradient_of_cd_is_the_enumerated_one(k: int) -> None:
    """Within the error of 100,000 chains; other numbers of turns are told apart."""
    n = 100_000
    method, (v, shares) = a_method(k=k), some_data(n)
    found = estimated(method, v)
    off = {
        turns: float((found - gradient(method, shares, after(method, shares, turns))).abs().max())
        for turns in (k - 1, k, k + 1)
    }
    # Entries are means of products of units, each of deviation 1/2 at most.
    assert off[k] < 4 * 0.5 / math.sqrt(n), off
    assert min(off[k - 1], off[k + 1]) > 2 * off[k], off


def test_many_turns_give_the_gradient_of_the_likelihood() -> None:
    n = 10_000
    method, (v, shares) = a_method(scale=1.0, k=40), some_data(n)
    wanted = gradient(method, shares, model(method))
    assert (estimated(method, v) - wanted).abs().max() < 4 * 0.5 / math.sqrt(n)


def test_persistent_chains_come_closer_than_one_turn() -> None:
    """Although all of them start in one of the two places."""
    n = 4000
    v, shares = some_data(n)
    method = a_method()
    wanted = gradient(method, shares, model(method))
    one = (estimated(method, v) - wanted).norm()
    method = a_method(particles=n).train()
    assert method.chains is not None
    method.chains.copy_(torch.tensor([0.0, 0, 1, 1]).expand(n, 4))
    with torch.no_grad():
        for step in range(150):
            method.loss(batch(v[:3], step), 0.0)
    persistent = (estimated(method, v, step=150) - wanted).norm()
    assert persistent < 0.2 * one, (persistent, one)


def test_learning_approaches_the_distribution_of_the_data() -> None:
    """Exactly, in nats. The data are probabilities, of which all states are drawn."""
    v, _ = some_data(150)
    v = 0.8 * v + 0.1
    shares = (v[:, None] * ALL + (1 - v[:, None]) * (1 - ALL)).prod(2).mean(0)
    gaps = []
    for particles in (0, 150):
        method = a_method(scale=0.0, particles=particles).train()
        optimiser = torch.optim.Adam(method.parameters(), lr=0.02)
        before = (shares * (shares / model(method)).log()).sum().item()
        for step in range(250):
            optimiser.zero_grad()
            method.loss(batch(v, step), 0.0).total.backward()
            optimiser.step()
        gaps.append((shares * (shares / model(method)).log()).sum().item() / before)
    assert max(gaps) < 0.1, gaps


def test_chains_persist_and_only_in_training() -> None:
    method = a_method(particles=6, k=2)
    assert method.chains is not None
    before = method.chains.clone()
    method.eval().loss(batch(ALL, 3), 0.0)
    assert torch.equal(method.chains, before)
    method.train().loss(batch(ALL, 3), 0.0)
    assert torch.equal(method.chains, method.gibbs(before, torch.arange(6), 3))
    assert set(method.chains.flatten().tolist()) <= {0.0, 1.0}
    other = a_method(particles=6, k=2)
    other.load_state_dict(method.state_dict())
    assert other.chains is not None
    assert torch.equal(other.chains, method.chains)


def test_the_loss_is_f_at_the_data_minus_f_at_the_ends() -> None:
    method, index = a_method(k=2), torch.arange(16)
    p = ALL * 0.8 + 0.1
    v = drawn(p, index, "data", 5)
    loss = method.loss(batch(p, step=5), 0.0)
    assert loss.pull["data"].item() == pytest.approx(method.free_energy(v).mean().item())
    ends = method.free_energy(method.gibbs(v, index, 5)).mean()
    assert loss.push["chains"].item() == pytest.approx(-ends.item())


def test_units_are_on_as_often_as_they_should() -> None:
    p = torch.tensor([0.0, 0.1, 0.5, 0.97, 1.0], dtype=torch.float64).expand(20_000, 5)
    index = torch.arange(20_000)
    units = drawn(p, index, "data", 0)
    assert units.dtype == p.dtype
    assert (units.mean(0) - p[0]).abs().max() < 0.015
    assert set(units[:, 0].tolist()) == {0.0}
    assert set(units[:, 4].tolist()) == {1.0}
    order = torch.tensor([7, 3, 11])
    assert torch.equal(drawn(p[:3], order, "data", 0), units[order])
    assert not torch.equal(drawn(p, index, "data", 1), units)
    uniform = noise.uniform(index, 5, purpose="data", step=0)
    assert torch.equal(units == 1, uniform < p)


def test_features_are_scaled_by_the_training_set_once() -> None:
    method = a_method()
    features = torch.tensor([[-2.0, 0, 1, 2], [0, 3, 1, -1]], dtype=torch.float64)
    method.after_epoch(features)
    assert torch.allclose(method.visible(features), (features + 2) / 5)
    method.after_epoch(10 * features)
    assert torch.allclose(method.visible(features), (features + 2) / 5)
    beyond = torch.tensor([[-9.0, 9.0, -2.0, 3.0]], dtype=torch.float64)
    assert method.visible(beyond).tolist() == [[0.0, 1.0, 0.0, 1.0]]


def test_half_precision_plan_and_contract() -> None:
    method = a_method().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method.energy(None, View(ALL.float()))
    assert torch.equal(found, method.energy(None, View(ALL.float())))
    assert method.plan() == whole()
    check_method(RBM, arguments={"hidden": 8, "k": 2, "particles": 5})
