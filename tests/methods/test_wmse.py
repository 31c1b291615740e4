"""W-MSE: golden numbers, whiteness, what is singular, loops over groups, gradients."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.wmse import WMSE, whiten
from erg.views.plan import SIMCLR, SIMCLR_SMALL
from erg.views.types import View, Views


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(*data: Tensor, step: int = 0) -> Views:
    return Views(tuple(View(d) for d in data), torch.arange(len(data[0])), step=step)


def bare(dim: int = 3, **arguments: Any) -> WMSE:
    method = WMSE(build_encoder("identity", dim), hidden=2, dim=dim, **arguments)
    method.projector = nn.Sequential()
    return method


def white(z: Tensor) -> Tensor:
    """By the inverse of the Cholesky factor, written out."""
    z = z - z.mean(dim=0)
    return z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T


def between(a: Tensor, b: Tensor, normalised: bool) -> float:
    rows = zip(a, b, strict=True)
    if normalised:
        return sum(float(2 - 2 * (p @ q) / p.norm() / q.norm()) for p, q in rows)
    return sum(float((p - q).square().mean()) for p, q in rows)


@pytest.mark.parametrize(("name", "normalised"), [("directions", True), ("plain", False)])
def test_loss_is_golden(golden, name: str, normalised: bool) -> None:
    method = bare(group=8, normalised=normalised)
    total = method.loss(of(golden.array("W1"), golden.array("W2")), 0.0).total
    assert golden.agrees(f"W-MSE, {name}", total)


def test_golden_arrays_are_white_to_twelve_digits(golden) -> None:
    for name in ("W1", "W2"):
        v = whiten(golden.array(name))
        assert float((torch.cov(v.T) - torch.eye(3)).abs().max()) < 1e-12


def test_whitened_embeddings_are_white() -> None:
    z = drawn(9, 4, seed=1) @ drawn(4, 4, seed=2) + 7
    v = whiten(z)
    assert torch.allclose(v.mean(dim=0), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.cov(v.T), torch.eye(4, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(v, white(z), atol=1e-10)
    assert whiten(z.to(torch.bfloat16)).dtype == torch.float32


SINGULAR: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "all alike": lambda z: z[:1].expand_as(z),
    "two dimensions equal": lambda z: z[:, [0, 1, 0, 3]],
    "one a sum of others": lambda z: torch.cat([z[:, :3], z[:, :1] - 2 * z[:, 1:2]], dim=1),
    "one constant": lambda z: torch.cat([z[:, :3], z[:1, 3:].expand(len(z), 1)], dim=1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SINGULAR)
def test_a_singular_covariance_is_refused(kind: str, dtype: torch.dtype) -> None:
    """Of many draws, since rounding leaves a singular one positive in some and not in others."""
    for seed in range(30):
        flat = SINGULAR[kind](drawn(9, 4, seed=seed).to(dtype))
        with pytest.raises(ValueError, match="of 9 embeddings in 4 dimensions is singular"):
            whiten(flat)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 0.02), (torch.float64, 1e-8)])
def test_what_is_no_more_than_nearly_singular_is_whitened(dtype: torch.dtype, off: float) -> None:
    """Dimensions of any scale, and one that another explains but for a ten-thousandth."""
    z = drawn(9, 4, seed=1)
    z[:, 2] = z[:, 0] + 0.01 * z[:, 2]
    for scale in (torch.ones(4), torch.tensor([1e-6, 1.0, 1e5, 1e-3])):
        v = whiten((z * scale).to(dtype))
        assert float((torch.cov(v.T) - torch.eye(4)).abs().max()) < off


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(("b", "views", "repeats"), [(12, 2, 1), (13, 3, 2)])
def test_loss_is_the_loop_over_groups_and_pairs(
    b: int, views: int, repeats: int, normalised: bool
) -> None:
    method = bare(group=5, views=views, repeats=repeats, normalised=normalised)
    z = [drawn(b, 3, seed=s) for s in range(views)]
    generator, total = torch.Generator().manual_seed(3), 0.0
    for _ in range(repeats):
        order = torch.randperm(b, generator=generator)
        cut = (b + 1) // 2
        for group in (order[:cut], order[cut:]):
            v = [white(each[group]) for each in z]
            total += sum(between(p, q, normalised) for p, q in itertools.combinations(v, 2))
    wanted = total / b / repeats / (views * (views - 1) / 2)
    assert method.loss(of(*z, step=3), 0.0).total.item() == pytest.approx(wanted, rel=1e-9)


def test_groups_are_drawn_anew_at_every_step() -> None:
    method, z = bare(group=5), (drawn(12, 3, seed=1), drawn(12, 3, seed=2))
    totals = [method.loss(of(*z, step=s), 0.0).total.item() for s in (0, 0, 1)]
    assert totals[0] == totals[1]
    assert totals[0] != pytest.approx(totals[2], rel=1e-6)


def test_gradient_is_the_slope_in_both_views() -> None:
    method = bare(2, group=4)
    x, y = (drawn(8, 2, seed=s).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(lambda a, b: method.loss(of(a, b), 0.0).total, (x, y))


def test_a_linear_map_of_a_view_changes_nothing_but_a_turn() -> None:
    """Whitening takes out scale and offset of each dimension."""
    method, x, y = bare(group=6), drawn(6, 3, seed=1), drawn(6, 3, seed=2)
    scale = torch.tensor([5.0, 0.1, 2.0], dtype=torch.float64)
    total = method.loss(of(x, y), 0.0).total.item()
    assert method.loss(of(x * scale - 3, y), 0.0).total.item() == pytest.approx(total, rel=1e-9)
    assert method.loss(of(x, x), 0.0).total.item() == pytest.approx(0, abs=1e-12)


def test_energy_is_that_of_z_as_it_is() -> None:
    method, x, y = bare(group=6), drawn(2, 3, seed=1), drawn(2, 3, seed=2)
    wanted = 2 - 2 * nn.functional.cosine_similarity(x, y)
    assert torch.allclose(method.energy(View(x), View(y)), wanted, atol=1e-12)


def test_groups_and_batches_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images have no full covariance in 3 dimensions"):
        bare(group=3)
    with pytest.raises(ValueError, match="a batch of 5 images cannot be whitened in groups of 6"):
        bare(group=6).loss(of(drawn(5, 3, seed=1), drawn(5, 3, seed=2)), 0.0)
    assert bare().group == 6


def test_head_and_plan() -> None:
    method = WMSE(build_encoder("conv", 16, width=8, stages=2), hidden=9, dim=5, views=4)
    linears = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    assert [(a.out_features, a.bias is not None) for a in linears] == [(9, True), (5, True)]
    assert method.plan().main == (SIMCLR_SMALL,) * 4
    large = WMSE(build_encoder("conv", 128, width=8), hidden=4, dim=4)
    assert large.plan().main == (SIMCLR,) * 2
