"""Score matching: finite differences, closed forms, and the field of a mixture of Gaussians."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg import inference, noise
from erg.encoders import build_encoder
from erg.methods.score_matching import ScoreMatching
from erg.testing import check_method
from erg.views.types import View, Views


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


def a_method(**arguments: Any) -> ScoreMatching:
    torch.manual_seed(0)
    encoder = build_encoder("mlp", 2, width=32, dim=16, activation="silu")
    return ScoreMatching(encoder, **{"width": 32, **arguments}).double()


def batch(y: Tensor, step: int = 0) -> Views:
    return Views((View(y),), torch.arange(len(y)), step=step, pairing="alone")


def slope(method: ScoreMatching, point: Tensor) -> Tensor:
    """dF/dy by central differences."""
    found = []
    for d in range(len(point)):
        e = 1e-5 * torch.eye(len(point), dtype=torch.float64)[d]
        high, low = method.of_data(torch.stack([point + e, point - e]))
        found.append((high - low) / 2e-5)
    return torch.stack(found)


def test_denoising_is_the_loop() -> None:
    method, y, s = a_method(deviation=0.4), drawn(5, 2), 0.4
    n = noise.normal(torch.arange(5), 2, purpose="denoising", step=3).double()
    wanted = []
    for point, normal in zip(y, n, strict=True):
        gap = s * slope(method, point + s * normal) - normal
        wanted.append(gap.square().sum().item() / 4)
    loss = method.loss(batch(y, 3), 0.0)
    assert (list(loss.pull), loss.push) == (["score"], {})
    assert loss.total.item() == pytest.approx(sum(wanted) / 5, rel=1e-7)


def test_sliced_is_the_loop() -> None:
    method, y = a_method(by="sliced"), drawn(5, 2)
    v = noise.signs(torch.arange(5), 2, purpose="sliced", step=3).double()
    slopes, curvatures = [], []
    for point, sign in zip(y, v, strict=True):
        slopes.append(slope(method, point).square().sum().item() / 4)
        near = torch.stack([point + 1e-3 * sign, point, point - 1e-3 * sign])
        ahead, here, behind = method.of_data(near)
        curvatures.append((ahead - 2 * here + behind).item() / 1e-6 / 2)
    loss = method.loss(batch(y, 3), 0.0)
    assert loss.pull["slope"].item() == pytest.approx(sum(slopes) / 5, rel=1e-7)
    assert loss.push["curvature"].item() == pytest.approx(-sum(curvatures) / 5, rel=1e-4)


@pytest.mark.parametrize("by", ["denoising", "sliced"])
def test_weights_get_the_gradient_of_the_loss(by: str) -> None:
    method, views = a_method(by=by), batch(drawn(5, 2))
    method.loss(views, 0.0).total.backward()
    for p in method.parameters():
        place = tuple(n // 2 for n in p.shape)
        assert p.grad is not None
        found, values = p.grad[place].item(), []
        for change in (1e-5, -1e-5):
            with torch.no_grad():
                p[place] += change
                values.append(method.loss(views, 0.0).total.item())
                p[place] -= change
        assert found == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-9)


class Bowl(nn.Module):
    """F(y) = sum_i a_i y_i^2 / 2, the energy of a Gaussian of variances 1 / a_i."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, y: Tensor) -> Tensor:
        return (self.a * y.square()).sum(1, keepdim=True) / 2


@pytest.mark.parametrize("by", ["denoising", "sliced"])
def test_on_a_gaussian_the_minimum_is_its_inverse_variance(by: str) -> None:
    """Of the data, or where these are blurred by s, of both: 1 / (v + s^2)."""
    variances, s, n = torch.tensor([0.5, 3.0, 1.5], dtype=torch.float64), 0.7, 200_000
    encoder = build_encoder("identity", 3)
    method = ScoreMatching(encoder, by=by, deviation=s).double()
    wanted = 1 / (variances + (s**2 if by == "denoising" else 0))
    y = drawn(n, 3) * variances.sqrt()
    for factor, sign in ((1.0, 0), (1.2, 1), (0.8, -1)):
        method.head = Bowl(factor * wanted)
        (found,) = torch.autograd.grad(method.loss(batch(y), 0.0).total, [method.head.a])
        if sign:
            assert (found * sign > 0.01).all(), found
        else:
            assert found.abs().max() < 0.005, found


def trained(method: ScoreMatching, steps: int) -> ScoreMatching:
    optimiser = torch.optim.Adam(method.train().float().parameters(), lr=5e-3)
    for step in range(steps):
        optimiser.zero_grad()
        method.loss(batch(mixture(256, seed=step).float(), step), 0.0).total.backward()
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
    return method.eval().double()


@pytest.mark.parametrize(("by", "blur"), [("denoising", 0.25), ("sliced", 0.0)])
def test_it_finds_the_field_of_a_mixture(by: str, blur: float) -> None:
    spread = math.sqrt(0.5**2 + blur**2)
    y = mixture(600, seed=99, spread=spread)
    cosines = []
    for steps in (0, 500):
        method = trained(a_method(by=by, deviation=blur), steps)
        field = -inference.slope(method.of_data, y)
        cosines.append(nn.functional.cosine_similarity(field, score(y, spread)).mean().item())
    assert cosines[0] < 0.5, cosines
    assert cosines[1] > 0.95, cosines


def test_sliced_refuses_what_has_no_second_derivative() -> None:
    with pytest.raises(ValueError, match="made of ReLUs"):
        ScoreMatching(build_encoder("mlp", 2), by="sliced")
    ScoreMatching(build_encoder("mlp", 2), by="denoising")


def test_under_autocast_slopes_are_those_of_full_precision() -> None:
    y = drawn(6, 2).float()
    for by in ("denoising", "sliced"):
        method = a_method(by=by).float()
        wanted = method.loss(batch(y), 0.0).total
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = method.loss(batch(y), 0.0).total
        assert found.item() == wanted.item()


def test_in_evaluation_without_gradients_it_gives_the_same_loss() -> None:
    for by in ("denoising", "sliced"):
        method, y = a_method(by=by).train(), drawn(6, 2)
        wanted = method.loss(batch(y), 0.0).total.item()
        with torch.no_grad():
            assert method.eval().loss(batch(y), 0.0).total.item() == pytest.approx(wanted)


def test_contract() -> None:
    check_method(
        ScoreMatching,
        arguments={"by": "sliced", "width": 8},
        encoder_arguments={"width": 4, "activation": "silu"},
    )
    method = a_method()
    assert method.plan().pairs == "alone"
    y = drawn(3, 2)
    assert torch.equal(method.energy(None, View(y)), method.of_data(y))
    method = ScoreMatching(build_encoder("conv", 16, width=4)).train()
    assert not method.encoder.training
