"""Denoising autoencoder: loops, the closed form on Gaussian data, the field beside a spiral."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.landscape import worlds
from erg.landscape.fields import alignment, field
from erg.landscape.learn import MLP, learn
from erg.landscape.learn import method as build
from erg.methods.denoising_autoencoder import DenoisingAutoencoder
from erg.testing import check_method
from erg.views.plan import LIGHT
from erg.views.types import View, Views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_images(**arguments: Any) -> DenoisingAutoencoder:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return DenoisingAutoencoder(encoder, **{"width": 8, "relative": False, **arguments}).double()


def of_vectors(d: int, **arguments: Any) -> DenoisingAutoencoder:
    torch.manual_seed(0)
    return DenoisingAutoencoder(build_encoder("identity", d), **arguments).double()


def squared_error(a: Tensor, b: Tensor) -> list[float]:
    found = []
    for p, q in zip(a.flatten(1).tolist(), b.flatten(1).tolist(), strict=True):
        found.append(sum((v - w) ** 2 for v, w in zip(p, q, strict=True)) / len(p))
    return found


def test_loss_compares_what_is_made_of_the_corrupted_with_the_clean() -> None:
    method = of_images()
    clean, corrupted = (View(drawn(4, 3, 16, 16, seed=seed)) for seed in range(2))
    wanted = squared_error(method.reconstruct(corrupted.data), clean.data)
    loss = method.loss(Views((clean, corrupted), torch.arange(4), pairing="alone"), 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(sum(wanted) / 4, rel=1e-10)
    loss.total.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_energy_is_the_reconstruction_error_without_corruption() -> None:
    for method, y in ((of_images(), drawn(4, 3, 16, 16)), (of_vectors(5), drawn(4, 5))):
        found = method.energy(None, View(y))
        assert found.shape == (4,)
        assert found.tolist() == pytest.approx(squared_error(method.reconstruct(y), y), rel=1e-10)
        assert method.reconstruct(y).shape == y.shape


def test_a_relative_energy_is_the_share_of_the_variance_that_is_missed() -> None:
    method = of_images(relative=True)
    y = drawn(4, 3, 16, 16)
    y[3] *= 1e-3  # hardly any variance: the floor of 0.01 counts
    wanted = []
    for image, made in zip(y, method.reconstruct(y), strict=True):
        missed = sum(((a - b) ** 2).sum().item() for a, b in zip(image, made, strict=True))
        there = sum((c - c.mean()).square().sum().item() for c in image)
        wanted.append(missed / max(there, 0.01 * image.numel()))
    assert method.energy(None, View(y)).tolist() == pytest.approx(wanted, rel=1e-10)
    views = Views((View(y), View(y)), torch.arange(4), pairing="alone")
    assert method.loss(views, 0.0).total.item() == pytest.approx(sum(wanted) / 4, rel=1e-10)


def test_on_gaussian_data_the_best_linear_map_is_tweedies() -> None:
    """r*(x) = x v / (v + s^2) per principal direction, found by minimising the method's loss."""
    variances, s, n = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64), 0.5, 20000
    turn, _ = torch.linalg.qr(drawn(3, 3, seed=7))
    clean = (drawn(n, 3) * variances.sqrt()) @ turn.T
    corrupted = clean + s * drawn(n, 3, seed=1)
    method = of_vectors(3)
    method.decoder = nn.Linear(3, 3).double()
    views = Views((View(clean), View(corrupted)), torch.arange(n), pairing="alone")
    optimiser = torch.optim.LBFGS(method.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimiser.zero_grad()
        total = method.loss(views, 0.0).total
        total.backward()
        return total

    optimiser.step(step)
    wanted = turn @ torch.diag(variances / (variances + s**2)) @ turn.T
    assert (method.decoder.weight - wanted).abs().max().item() < 0.015
    assert method.decoder.bias.abs().max().item() < 0.02
    # What is left is the mean over directions of v s^2 / (v + s^2).
    left = (variances * s**2 / (variances + s**2)).mean().item()
    assert method.loss(views, 0.0).total.item() == pytest.approx(left, rel=0.02)
    # r(x) - x = s^2 grad log p_s(x): it points up the density of the corrupted data.
    x = drawn(10, 3, seed=3)
    score = -x @ torch.linalg.inv(turn @ torch.diag(variances + s**2) @ turn.T)
    assert torch.allclose(method.reconstruct(x) - x, s**2 * score, atol=0.05)


def test_beside_a_spiral_the_field_leads_back_to_it() -> None:
    """v = r(x) - x is short on the curve, and v . n = -delta at a distance delta <= s from it."""
    s, points = 0.2, worlds.spiral(1000)
    model: Any = build("DenoisingAutoencoder", 2, noise=s, **MLP)
    learn(model, points, steps=1500)
    assert field(model.reconstruct, points).travel.mean() < 0.2 * s
    # The outer half, where the curve bends little within s; its arms are 5 s apart.
    t = torch.linspace(0.4, 0.95, 60, dtype=torch.float64)
    along = worlds.spiral_at(t + 1e-5) - worlds.spiral_at(t - 1e-5)
    normal = torch.stack([-along[:, 1], along[:, 0]], dim=1) / along.norm(dim=1, keepdim=True)
    deltas = s * torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    offsets = torch.cat([deltas, -deltas])[:, None]
    beside = (worlds.spiral_at(t) + offsets[..., None] * normal).float()
    moved = field(model.reconstruct, beside.reshape(-1, 2)).move
    v = (torch.from_numpy(moved).reshape(beside.shape) * normal).sum(dim=2)  # v . n
    assert bool((v.sign() == -offsets.sign())[offsets[:, 0].abs() > s / 3].all())
    # The curve bends, which draws v inwards on both sides: what is odd in delta is the slope.
    inside, outside = v.mean(dim=1).chunk(2)
    slope = (inside - outside) / (2 * deltas)
    assert slope.tolist() == pytest.approx([-1.0] * 4, abs=0.1)
    # The best r of these very points is their mean, each weighted by how near it is (Tweedie).
    gaps = points[:, None] - beside.reshape(-1, 2)
    near = (-gaps.square().sum(dim=2) / (2 * s**2)).softmax(dim=0)
    best = (near[:, :, None] * gaps).sum(dim=0)
    assert alignment(moved, best.double().numpy()) > 0.98


def test_plan_corrupts_a_copy_of_the_clean_view() -> None:
    plan = of_images(noise=0.3, zeroed=0.2).plan()
    clean, corrupted = plan.main
    assert (clean.noise, clean.zeroed, clean.same_as) == (0.0, 0.0, None)
    assert (corrupted.noise, corrupted.zeroed, corrupted.same_as) == (0.3, 0.2, 0)
    assert corrupted.crop == clean.crop
    assert corrupted.flip == clean.flip == LIGHT.flip
    assert plan.pairs == "alone"


def test_needs_a_clean_and_a_corrupted_view() -> None:
    with pytest.raises(ValueError, match="needs 2 main views"):
        of_vectors(3).loss(Views((View(drawn(4, 3)),), torch.arange(4)), 0.0)


def pair(y: Tensor, step: int = 0, first: int = 0) -> Views:
    views = (View(y), View(y + 0.01))
    return Views(views, torch.arange(first, first + len(y)), step=step, pairing="alone")


def test_salt_and_pepper_are_white_and_black_whole_pixels() -> None:
    method, y = of_images(extreme=0.3), drawn(40, 3, 16, 16)
    encoder, given = method.encoder, method.peppered(pair(y))
    hit = (given != y + 0.01).any(dim=1)
    assert hit.double().mean().item() == pytest.approx(0.3, abs=0.015)
    black, white = (
        torch.tensor([(end - m) / s for m, s in zip(encoder.mean, encoder.std, strict=True)])
        for end in (0, 1)
    )
    pixels = given.movedim(1, -1)[hit]
    kinds = [torch.isclose(pixels, end.double()).all(dim=1) for end in (black, white)]
    assert (kinds[0] ^ kinds[1]).all()
    assert kinds[0].double().mean().item() == pytest.approx(0.5, abs=0.03)
    loss = method.loss(pair(y), 0.0).total
    wanted = squared_error(method.reconstruct(given), y)
    assert loss.item() == pytest.approx(sum(wanted) / 40, rel=1e-10)
    # The energy knows of no corruption.
    assert torch.equal(method.energy(None, View(y)), of_images().energy(None, View(y)))


def test_salt_and_pepper_depend_on_image_and_step_alone() -> None:
    method, y = of_images(extreme=0.5), drawn(6, 3, 16, 16)
    whole = method.peppered(pair(y))
    assert torch.equal(whole[4:], method.peppered(pair(y[4:], first=4)))
    assert not torch.equal(whole, method.peppered(pair(y, step=1)))
    assert torch.equal(of_images().peppered(pair(y)), y + 0.01)


def test_of_vectors_the_extremes_are_those_seen_in_training() -> None:
    method = of_vectors(5, extreme=0.5)
    first, second = drawn(30, 5), 3 * drawn(30, 5, seed=1)
    for y in (first, second):
        method.train().loss(pair(y), 0.0)
    low, high = (float(torch.cat([first, second]).aminmax()[i]) for i in (0, 1))
    assert [float(method.least), float(method.largest)] == pytest.approx([low, high])
    method.eval().loss(pair(100 * first), 0.0)
    assert float(method.largest) == pytest.approx(high)
    given = method.peppered(pair(first))
    hit = given != first + 0.01
    assert 0.35 < hit.double().mean().item() < 0.65
    assert set(given[hit].tolist()) == {float(method.least), float(method.largest)}


def test_with_extremes_it_keeps_the_contract() -> None:
    check_method(DenoisingAutoencoder, arguments={"width": 16, "extreme": 0.2})
    with pytest.raises(ValueError, match=r"extreme is a probability in \[0, 1\] \(got 1.5\)"):
        of_images(extreme=1.5)
