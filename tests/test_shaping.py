"""What shapes energies: values and gradients against loops, invariants, collapse."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from erg import shaping

Rows = list[list[float]]


def drawn(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(rows: Rows) -> Rows:
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows]


def dot(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def alignment(x: Rows, y: Rows, temperature: float) -> float:
    x, y = unit(x), unit(y)
    return -sum(dot(a, b) for a, b in zip(x, y, strict=True)) / len(x) / temperature


def repulsion(x: Rows, y: Rows, temperature: float) -> float:
    z = unit(x) + unit(y)
    total = 0.0
    for i in range(len(z)):
        others = [math.exp(dot(z[i], z[k]) / temperature) for k in range(len(z)) if k != i]
        total += math.log(sum(others))
    return total / len(z)


def cross_repulsion(x: Rows, y: Rows, temperature: float) -> float:
    x, y = unit(x), unit(y)
    return sum(math.log(sum(math.exp(dot(a, b) / temperature) for b in y)) for a in x) / len(x)


def variance(z: Rows, floor: float = 1.0, eps: float = 1e-4) -> float:
    total = 0.0
    for column in zip(*z, strict=True):
        mean = sum(column) / len(column)
        var = sum((v - mean) ** 2 for v in column) / (len(column) - 1)
        total += max(0.0, floor - math.sqrt(var + eps))
    return total / len(z[0])


def covariance(z: Rows) -> float:
    columns = [list(c) for c in zip(*z, strict=True)]
    means = [sum(c) / len(c) for c in columns]
    total = 0.0
    for i, a in enumerate(columns):
        for j, b in enumerate(columns):
            if i == j:
                continue
            both = sum((p - means[i]) * (q - means[j]) for p, q in zip(a, b, strict=True))
            total += (both / (len(z) - 1)) ** 2
    return total / len(columns)


def uniformity(z: Rows, t: float = 2.0) -> float:
    z = unit(z)
    terms = [
        math.exp(-t * sum((p - q) ** 2 for p, q in zip(z[i], z[j], strict=True)))
        for i in range(len(z))
        for j in range(i)
    ]
    return math.log(sum(terms) / len(terms))


ONE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Rows], float]]] = {
    "variance": (shaping.variance, variance),
    "variance, floor 2": (
        partial(shaping.variance, floor=2.0, eps=0.01), partial(variance, floor=2.0, eps=0.01),
    ),
    "covariance": (shaping.covariance, covariance),
    "uniformity": (shaping.uniformity, uniformity),
    "uniformity, t = 0.5": (partial(shaping.uniformity, t=0.5), partial(uniformity, t=0.5)),
}  # fmt: skip
TWO: dict[
    str, tuple[Callable[[Tensor, Tensor, float], Tensor], Callable[[Rows, Rows, float], float]]
] = {
    "alignment": (shaping.alignment, alignment),
    "repulsion": (shaping.repulsion, repulsion),
    "cross_repulsion": (shaping.cross_repulsion, cross_repulsion),
}
ALL = [*ONE, *TWO]


def both(name: str, temperature: float) -> tuple[Callable[..., Tensor], Callable[..., float]]:
    """A function of the code and its loop, of x and y, whichever of them it looks at."""
    if name in ONE:
        code, loop = ONE[name]
        return lambda x, y: code(x), lambda x, y: loop(x)
    code2, loop2 = TWO[name]
    return (
        lambda x, y: code2(x, y, temperature),
        lambda x, y: loop2(x, y, temperature),
    )


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("name", ALL)
def test_value_is_that_of_the_loop(name: str, temperature: float) -> None:
    code, loop = both(name, temperature)
    x, y = drawn(6, 4, 1) * 0.7, drawn(6, 4, 2)
    assert code(x, y).shape == ()
    assert float(code(x, y)) == pytest.approx(loop(x.tolist(), y.tolist()), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_the_slope_of_the_loop(name: str) -> None:
    code, loop = both(name, 0.5)
    x, y = (0.7 * drawn(4, 3, 1)).requires_grad_(), drawn(4, 3, 2).requires_grad_()
    code(x, y).backward()
    h = 1e-5
    for side, tensor in enumerate((x, y)):
        grad = torch.zeros(4, 3) if tensor.grad is None else tensor.grad
        for i in range(4):
            for j in range(3):
                values = []
                for step in (h, -h):
                    moved = [x.detach().clone(), y.detach().clone()]
                    moved[side][i, j] += step
                    values.append(loop(*(m.tolist() for m in moved)))
                slope = (values[0] - values[1]) / (2 * h)
                assert float(grad[i, j]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_cross_repulsion_takes_any_number_of_others() -> None:
    x, y = drawn(3, 4, 1), drawn(7, 4, 2)
    wanted = cross_repulsion(x.tolist(), y.tolist(), 0.3)
    assert float(shaping.cross_repulsion(x, y, 0.3)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_the_batch_does_not_matter(name: str) -> None:
    code, _ = both(name, 0.2)
    x, y, order = drawn(9, 5, 1), drawn(9, 5, 2), torch.tensor([4, 0, 8, 2, 1, 7, 3, 6, 5])
    assert float(code(x[order], y[order])) == pytest.approx(float(code(x, y)), rel=1e-12)


def test_the_pairing_of_the_batch_matters_to_what_pulls_alone() -> None:
    x, y = drawn(9, 5, 1), drawn(9, 5, 2)
    rolled = y.roll(1, dims=0)
    assert float(shaping.alignment(x, rolled, 0.2)) != pytest.approx(
        float(shaping.alignment(x, y, 0.2)), rel=1e-3
    )
    assert float(shaping.repulsion(x, rolled, 0.2)) == pytest.approx(
        float(shaping.repulsion(x, y, 0.2)), rel=1e-12
    )


@pytest.mark.parametrize("name", ["alignment", "repulsion"])
def test_swapping_the_views_changes_nothing(name: str) -> None:
    code, _ = both(name, 0.2)
    x, y = drawn(6, 5, 1), drawn(6, 5, 2)
    assert float(code(y, x)) == pytest.approx(float(code(x, y)), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_alignment_and_repulsion_are_nt_xent(golden, temperature: float) -> None:
    x, y = golden.array("Z1"), golden.array("Z2")
    loss = shaping.alignment(x, y, temperature) + shaping.repulsion(x, y, temperature)
    assert golden.agrees(f"NT-Xent, temperature {temperature}", loss)


def test_nt_xent_is_cross_entropy_with_the_other_view_as_the_class() -> None:
    """InfoNCE = pull + push, by torch's own cross-entropy."""
    x, y = drawn(7, 5, 1), drawn(7, 5, 2)
    z = F.normalize(torch.cat([x, y]), dim=1)
    logits = (z @ z.T / 0.3).fill_diagonal_(float("-inf"))
    wanted = F.cross_entropy(logits, torch.arange(14).roll(7))
    found = shaping.alignment(x, y, 0.3) + shaping.repulsion(x, y, 0.3)
    assert float(found) == pytest.approx(float(wanted), rel=1e-12)


def test_alignment_and_cross_repulsion_are_infonce_across_views(golden) -> None:
    x, y = golden.array("Z1"), golden.array("Z2")

    def both_ways(temperature: float) -> Tensor:
        return 2 * shaping.alignment(x, y, temperature) + (
            shaping.cross_repulsion(x, y, temperature) + shaping.cross_repulsion(y, x, temperature)
        )

    name = "InfoNCE across views, both ways, temperature"
    assert golden.agrees(f"{name} 0.1", both_ways(0.1))
    for temperature in (1.0, 0.2):
        loss = 2 * temperature * both_ways(temperature)
        assert golden.agrees(f"2 T {name} {temperature}", loss)


def test_variance_and_covariance_are_golden(golden) -> None:
    x, y = golden.array("Z1"), golden.array("Z2")
    assert golden.agrees("VICReg, variance", (shaping.variance(x) + shaping.variance(y)) / 2)
    assert golden.agrees("VICReg, covariance", shaping.covariance(x) + shaping.covariance(y))


def test_collapse_has_the_known_values() -> None:
    n, same = 6, torch.ones(6, 4, dtype=torch.float64)
    assert float(shaping.alignment(same, same, 0.5)) == pytest.approx(-2)
    nt_xent = shaping.alignment(same, same, 0.5) + shaping.repulsion(same, same, 0.5)
    assert float(nt_xent) == pytest.approx(math.log(2 * n - 1))
    across = shaping.alignment(same, same, 0.5) + shaping.cross_repulsion(same, same, 0.5)
    assert float(across) == pytest.approx(math.log(n))
    assert float(shaping.variance(same)) == pytest.approx(1 - 0.01)
    assert float(shaping.covariance(same)) == 0
    assert float(shaping.uniformity(same)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_gradients_stay_finite_at_collapse(name: str) -> None:
    code, _ = both(name, 0.1)
    x = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)
    code(x, x * 1.0).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_variance_is_silent_above_the_floor_and_covariance_without_correlation() -> None:
    square = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert float(shaping.variance(3 * square)) == 0
    assert float(shaping.covariance(square)) == pytest.approx(0, abs=1e-15)
    assert float(shaping.covariance(square + 100)) == pytest.approx(0, abs=1e-12)


def test_low_temperature_does_not_overflow() -> None:
    x, y = drawn(6, 4, 1).float(), drawn(6, 4, 2).float()
    assert torch.isfinite(shaping.repulsion(x, y, 0.001))
    assert torch.isfinite(shaping.cross_repulsion(x, y, 0.001))


@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_promoted_and_double_kept(name: str) -> None:
    code, _ = both(name, 0.2)
    x, y = drawn(6, 4, 1), drawn(6, 4, 2)
    assert code(x, y).dtype == torch.float64
    for half in (torch.float16, torch.bfloat16):
        a, b = x.to(half), y.to(half)
        assert code(a, b).dtype == torch.float32
        assert torch.equal(code(a, b), code(a.float(), b.float()))


@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_nothing(name: str) -> None:
    code, _ = both(name, 0.2)
    x, y = drawn(6, 32, 1).float(), drawn(6, 32, 2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = code(x, y)
    assert torch.equal(inside, code(x, y))


@pytest.mark.parametrize("block", [1, 20, 1 << 20])
def test_log_partition_in_blocks_is_the_plain_one(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values against loops, gradients against autograd of the dense form, for any block size."""
    monkeypatch.setattr(shaping, "BLOCK", block)
    x, y, weight = drawn(6, 3, 0), drawn(8, 3, 1), drawn(1, 6, 2)[0]
    excluded = torch.tensor([[i, (i + 3) % 8] for i in range(6)])
    for left_out in (None, excluded):
        x.requires_grad_(), y.requires_grad_()
        found = shaping.log_partition(x, y, left_out)
        for i, row in enumerate(x.tolist()):
            out = [] if left_out is None else left_out[i].tolist()
            kept = [math.exp(dot(row, other)) for j, other in enumerate(y.tolist()) if j not in out]
            assert found[i].item() == pytest.approx(math.log(sum(kept)), rel=1e-12)
        scores = x @ y.T
        if left_out is not None:
            scores = scores.scatter(1, left_out, float("-inf"))
        wanted = torch.autograd.grad((scores.logsumexp(dim=1) * weight).sum(), (x, y))
        for a, b in zip(torch.autograd.grad((found * weight).sum(), (x, y)), wanted, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(shaping.log_partition, (x, y, excluded))


@pytest.mark.parametrize("block", [1, 20, 1 << 20])
def test_a_bank_has_no_gradient_and_may_be_written_to_before_the_backward_pass(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shaping, "BLOCK", block)
    x, bank, weight = drawn(4, 3, 0).requires_grad_(), drawn(9, 3, 1), drawn(1, 4, 2)[0]
    excluded = torch.tensor([[i, i + 4] for i in range(4)])
    scores = (x @ bank.T).scatter(1, excluded, float("-inf"))
    (wanted,) = torch.autograd.grad((scores.logsumexp(dim=1) * weight).sum(), x)
    found = shaping.log_partition(x, bank, excluded)
    bank.zero_()
    (found * weight).sum().backward()
    assert x.grad is not None
    assert bank.grad is None
    torch.testing.assert_close(x.grad, wanted, rtol=1e-12, atol=1e-14)


def test_log_partition_stays_in_float32_under_autocast() -> None:
    x, y = drawn(40, 16, 0).float().requires_grad_(), drawn(50, 16, 1).float()
    plain = torch.autograd.grad(shaping.log_partition(5 * x, y).sum(), x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = shaping.log_partition(5 * x, y)
        cast = torch.autograd.grad(found.sum(), x)[0]
    assert found.dtype == torch.float32
    assert torch.equal(cast, plain)


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_rare_activity_is_the_divergence_from_the_rate(rate: float) -> None:
    activity = drawn(1, 6, 3)[0].sigmoid()
    wanted = 0.0
    for a in activity.tolist():
        pairs = ((rate, a), (1 - rate, 1 - a))
        wanted += sum(p * math.log(p / q) for p, q in pairs)
    assert shaping.rare_activity(activity, rate).item() == pytest.approx(wanted, rel=1e-12)
    at = torch.full((6,), rate, dtype=torch.float64).requires_grad_()
    least = shaping.rare_activity(at, rate)
    assert least.item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(least, at)
    assert torch.allclose(gradient, torch.zeros(6, dtype=torch.float64), atol=1e-12)


def test_rare_activity_of_a_dead_unit_is_finite() -> None:
    dead = torch.tensor([0.0, 1.0], requires_grad=True)
    total = shaping.rare_activity(dead, 0.1)
    total.backward()
    assert torch.isfinite(total)
    assert dead.grad is not None
    assert torch.isfinite(dead.grad).all()


@pytest.mark.parametrize("block", [1, 20, 1 << 20])
def test_in_blocks_gives_the_same_numbers_and_gradients(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of what a block knows from elsewhere, and nothing is made where none is asked."""
    monkeypatch.setattr(shaping, "BLOCK", block)
    x, y, weight = drawn(7, 3, 0), drawn(8, 3, 1).requires_grad_(), drawn(7, 2, 2)
    places = torch.arange(7)
    calls: list[int] = []

    def of(x: Tensor, place: Tensor) -> Tensor:
        calls.append(len(x))
        scores = x @ y.T
        return torch.stack([scores.logsumexp(dim=1) * place, scores.square().sum(dim=1)], dim=1)

    x.requires_grad_()
    found = shaping.in_blocks(of, x, places, columns=8)
    assert sum(calls) == 7
    assert max(calls) == min(7, max(1, block // 8))
    wanted = of(x, places)
    assert torch.equal(found, wanted)
    gradients = [torch.autograd.grad((t * weight).sum(), (x, y)) for t in (found, wanted)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
