"""Contrastive divergence: descents and losses against loops, particles, the field of a mixture."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg import inference, noise
from erg.encoders import build_encoder
from erg.methods.contrastive_divergence import ContrastiveDivergence
from erg.testing import check_method
from erg.views.types import View, Views

INDEX = torch.tensor([5, 3, 9, 2, 0, 7])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CENTRES = torch.tensor([[1.5, 0.0], [-0.75, 1.3], [-0.75, -1.3]], dtype=torch.float64)


def mixture(n: int, seed: int = 0, spread: float = 0.5) -> Tensor:
    """Points of three equal Gaussians."""
    return CENTRES[torch.arange(n) % 3] + spread * drawn(n, 2, seed=seed)


def log_density(y: Tensor, spread: float = 0.5) -> Tensor:
    gaps = (y[:, None] - CENTRES).square().sum(2) / (2 * spread**2)
    return (-gaps).logsumexp(1) - math.log(3 * 2 * math.pi * spread**2)


def score(y: Tensor, spread: float = 0.5) -> Tensor:
    """The gradient of the log density: sum_k r_k (m_k - y) / s^2."""
    pulls = (CENTRES - y[:, None]) / spread**2
    shares = (-(y[:, None] - CENTRES).square().sum(2) / (2 * spread**2)).softmax(1)
    return (shares[:, :, None] * pulls).sum(1)


def a_method(**arguments: Any) -> ContrastiveDivergence:
    torch.manual_seed(0)
    encoder = build_encoder("mlp", 2, width=32, dim=16, activation="silu")
    return ContrastiveDivergence(encoder, **{"width": 32, **arguments}).double()


def batch(y: Tensor, step: int = 0, index: Tensor | None = None) -> Views:
    index = torch.arange(len(y)) if index is None else index
    return Views((View(y),), index, step=step, pairing="alone")


def trained(method: ContrastiveDivergence, steps: int, lr: float = 6e-3) -> ContrastiveDivergence:
    optimiser = torch.optim.Adam(method.train().float().parameters(), lr=lr)
    for step in range(steps):
        optimiser.zero_grad()
        y = mixture(128, seed=step).float()
        method.loss(batch(y, step), step / steps).total.backward()
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - step / steps)
    return method.eval().double()


def descents(method: ContrastiveDivergence, start: Tensor, step: int) -> Tensor:
    """One point at a time, slopes by central differences."""
    found: list[Tensor] = []
    for n, point in zip(INDEX, start, strict=True):
        at = point.clone()
        for i in range(method.steps):
            normal = noise.normal(n[None], 2, purpose=f"descent {i}", step=step)[0].double()
            slopes = []
            for d in range(2):
                e = 1e-5 * torch.eye(2, dtype=torch.float64)[d]
                high, low = method.of_data(torch.stack([at + e, at - e])).tolist()
                slopes.append((high - low) / 2e-5)
            limit = method.clip
            slope = torch.tensor([max(-limit, min(limit, s)) for s in slopes]).double()
            at = at - method.step * slope + method.deviation * normal
        found.append(at)
    return torch.stack(found).detach()


def kicked(y: Tensor, size: float, step: int) -> Tensor:
    return y + size * noise.normal(INDEX, 2, purpose="kick", step=step).double()


@pytest.mark.parametrize("clip", [math.inf, 0.02])
def test_negatives_are_kicked_and_descend(clip: float) -> None:
    method, y = a_method(steps=4, step=0.5, clip=clip), drawn(6, 2)
    wanted = descents(method, kicked(y, 0.5, 8), 8)
    found = method.negatives(batch(y, 8, INDEX))
    assert torch.allclose(found, wanted, atol=1e-7)
    assert not found.requires_grad


def test_losses_are_the_loops() -> None:
    y = drawn(6, 2)
    for by in ("difference", "hinge", "log"):
        method = a_method(by=by, steps=2, margin=0.05, magnitude=0.3)
        low = method.of_data(y).tolist()
        high = method.of_data(method.negatives(batch(y))).tolist()
        pairs = list(zip(low, high, strict=True))
        wanted = {
            "difference": sum(a - b for a, b in pairs) / 6,
            "hinge": sum(max(0.0, 0.05 + a - b) for a, b in pairs) / 6,
            "log": sum(math.log(1 + math.exp(a - b)) for a, b in pairs) / 6,
        }[by]
        loss = method.loss(batch(y), 0.0)
        size = 0.3 * sum(a * a + b * b for a, b in pairs) / 6
        assert loss.push["magnitude"].item() == pytest.approx(size)
        assert loss.total.item() == pytest.approx(wanted + size)
        assert set(loss.pull) == {"data" if by == "difference" else by}


def test_no_gradient_flows_through_the_descent() -> None:
    method, y = a_method(magnitude=0.0), drawn(6, 2)
    ends = method.negatives(batch(y))
    wanted = method.of_data(y).mean() - method.of_data(ends).mean()
    weights = [p for p in method.parameters() if p.requires_grad]
    for found, other in zip(
        torch.autograd.grad(method.loss(batch(y), 0.0).total, weights, allow_unused=True),
        torch.autograd.grad(wanted, weights, allow_unused=True),
        strict=True,
    ):
        assert found is not None
        assert other is not None
        assert torch.allclose(found, other, atol=1e-12)


class Bowl(nn.Module):
    """F(y) = a ||y||^2 / 2."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        return self.a * y.square().sum(1, keepdim=True) / 2


def test_on_a_gaussian_the_gradient_is_that_of_the_likelihood() -> None:
    """d/da: E ||y||^2 / 2 of the data minus that of the model, 1 / a in two dimensions."""
    n, a, size = 4000, 2.0, 0.02
    method = ContrastiveDivergence(
        build_encoder("identity", 2), magnitude=0.0, step=size, deviation=math.sqrt(2 * size),
        steps=20, particles=n, restart=0.0,
    ).double()  # fmt: skip
    method.head = Bowl(a)
    y = 1.5 * drawn(n, 2)
    for step in range(12):
        with torch.no_grad():
            method.train().loss(batch(y, step), 0.0)
    (found,) = torch.autograd.grad(method.loss(batch(y, 12), 0.0).total, [method.head.a])
    wanted = float(y.square().sum(1).mean() / 2) - 1 / (a * (1 - a * size / 2))
    assert found.item() == pytest.approx(wanted, abs=4 * (1 / a) / math.sqrt(n))


def test_particles_go_on_where_they_ended() -> None:
    method = a_method(particles=12, restart=0.0, steps=3)
    method.train()
    assert method.memory is not None
    ends = []
    for step in range(2):  # until the memory is full, descents start at kicked data
        y = drawn(6, 2, seed=step)
        assert torch.equal(method.starts(batch(y, step, INDEX)), kicked(y, 0.5, step))
        method.loss(batch(y, step, INDEX), 0.0)
        ends.append(descents(method, kicked(y, 0.5, step), step))
        assert torch.allclose(method.memory.rows[6 * step : 6 * step + 6], ends[-1], atol=1e-6)
    for step in range(2, 5):  # then where the oldest ended
        y = drawn(6, 2, seed=step)
        start = method.starts(batch(y, step, INDEX))
        assert torch.allclose(start, ends[step - 2], atol=1e-6)
        method.loss(batch(y, step, INDEX), 0.0)
        ends.append(descents(method, start, step))
    before = method.memory.rows.clone()
    method.eval().loss(batch(drawn(6, 2), 9, INDEX), 0.0)
    assert torch.equal(method.memory.rows, before)


@pytest.mark.parametrize("restart", [0.0, 0.3, 1.0])
def test_a_share_starts_anew(restart: float) -> None:
    method, n = a_method(particles=2000, restart=restart, steps=0), 2000
    assert method.memory is not None
    method.memory.push(torch.full((n, 2), 50.0, dtype=torch.float64))
    anew = method.starts(batch(drawn(n, 2)))[:, 0] < 25
    assert anew.double().mean().item() == pytest.approx(restart, abs=0.04)


def test_it_finds_the_field_of_a_mixture() -> None:
    y, cosines = mixture(600, seed=99), []
    for steps in (0, 160):
        field = -inference.slope(trained(a_method(steps=8), steps).of_data, y)
        cosines.append(nn.functional.cosine_similarity(field, score(y)).mean().item())
    assert cosines[0] < 0.5, cosines
    assert cosines[1] > 0.8, cosines


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [({"by": "hinge"}, 80), ({"by": "log"}, 80), ({"particles": 512, "deviation": 0.3}, 150)],
)
def test_wells_are_dug_at_the_data(arguments: dict[str, Any], steps: int) -> None:
    y = mixture(300, seed=99)
    around = 2.5 * (2 * torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)) - 1)
    far = around.double()[log_density(around.double()) < -6]
    shares = []
    for done in (0, steps):
        method = trained(a_method(steps=5, **arguments), done)
        low, high = method.energy(None, View(y)), method.energy(None, View(far))
        shares.append((low[:, None] < high).double().mean().item())
    assert shares[1] > 0.9 > shares[0] + 0.1, shares


def test_the_encoder_works_as_in_evaluation() -> None:
    """F(y) is the same whatever else is in the batch, also while training."""
    method = ContrastiveDivergence(build_encoder("conv", 16, width=4, stages=2), width=8).train()
    assert method.training
    assert not method.encoder.training
    y = drawn(4, 3, 16, 16).float()
    together = method.of_data(y)
    alone = torch.cat([method.of_data(item[None]) for item in y])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("arguments", [{"by": "log"}, {"particles": 12, "restart": 0.5}])
def test_contract(arguments: dict[str, Any]) -> None:
    check_method(ContrastiveDivergence, arguments={"steps": 2, "width": 8, **arguments})
    assert a_method().plan().pairs == "alone"
