"""Inference of latents against loops: codes, balanced codes, Lloyd's algorithm, k-means++."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

from erg import energy, inference

Rows = list[list[float]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(a: list[float], b: list[float]) -> float:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


def test_nearest_is_the_prototype_of_least_distance() -> None:
    y, w = drawn(20, 3), drawn(6, 3, seed=1)
    wanted = []
    for point in y.tolist():
        distances = [gap(point, p) for p in w.tolist()]
        wanted.append(distances.index(min(distances)))
    assert inference.nearest(y, w).tolist() == wanted
    assert inference.nearest(w, w).tolist() == list(range(6))


def test_some_rows_at_a_time_are_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    y, w = drawn(50, 4), drawn(6, 4, seed=1)
    wanted = energy.to_prototypes(y, w).min(dim=1)
    monkeypatch.setattr(inference, "AT_ONCE", 6 * 7)  # seven rows, and one that is left
    distance, code = inference.closest(y, w)
    torch.testing.assert_close(distance, wanted.values)
    assert torch.equal(code, wanted.indices)


@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0])
def test_responsibilities_are_the_softmin(beta: float) -> None:
    energies = drawn(5, 4).square()
    found = inference.responsibilities(energies, beta)
    for row, r in zip(energies.tolist(), found.tolist(), strict=True):
        weights = [math.exp(-beta * e) for e in row]
        assert r == pytest.approx([w / sum(weights) for w in weights], abs=1e-14)
    cold = inference.responsibilities(energies, 1e6)
    assert cold.argmax(1).tolist() == energies.argmin(1).tolist()
    limit = inference.responsibilities(energies, float("inf"))
    for row, r in zip(energies, limit, strict=True):
        assert r.tolist() == [float(z == int(row.argmin())) for z in range(len(row))]
    assert inference.responsibilities(energies.bfloat16(), 1.0).dtype == torch.float32


def sinkhorn(scores: Rows, eps: float, iterations: int) -> Rows:
    """As the papers write it: prototypes to 1 / k each, then samples to 1 / b each, times b."""
    b, k = len(scores), len(scores[0])
    q = [[math.exp(s / eps) for s in row] for row in scores]
    whole = sum(map(sum, q))
    q = [[v / whole for v in row] for row in q]
    for _ in range(iterations):
        for j in range(k):
            mass = sum(row[j] for row in q)
            for row in q:
                row[j] /= mass * k
        for row in q:
            mass = sum(row)
            row[:] = [v / (mass * b) for v in row]
    return [[v * b for v in row] for row in q]


@pytest.mark.parametrize(("eps", "iterations"), [(0.05, 3), (0.05, 1), (0.2, 10), (1.0, 3)])
def test_sinkhorn_is_the_loop(eps: float, iterations: int) -> None:
    scores = energy.normalise(drawn(9, 4)) @ energy.normalise(drawn(5, 4, seed=1)).T
    found = inference.sinkhorn(scores, eps, iterations)
    wanted = torch.tensor(sinkhorn(scores.tolist(), eps, iterations), dtype=torch.float64)
    assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-15)


def test_sinkhorn_is_golden(golden) -> None:
    scores = golden.unit("Z1") @ golden.unit("C").T
    name = "sinkhorn, eps 0.05, 3 iterations, first row"
    assert golden.agrees(name, inference.sinkhorn(scores)[0])


def test_sinkhorn_balances_prototypes_as_iterations_grow() -> None:
    scores = energy.normalise(drawn(40, 6)) @ energy.normalise(drawn(8, 6, seed=1)).T
    unbalanced = []
    for iterations in (1, 3, 10, 100):
        q = inference.sinkhorn(scores, 0.1, iterations)
        assert torch.allclose(q.sum(1), torch.ones(40, dtype=torch.float64), atol=1e-14)
        unbalanced.append(float((q.sum(0) - 40 / 8).abs().max()))
    assert unbalanced == sorted(unbalanced, reverse=True)
    assert unbalanced[0] > 0.1
    assert unbalanced[-1] < 1e-6


def test_sinkhorn_of_equal_scores_is_uniform() -> None:
    q = inference.sinkhorn(torch.full((6, 4), 0.3))
    assert torch.allclose(q, torch.full((6, 4), 0.25))


def test_sinkhorn_follows_the_order_of_samples_and_prototypes_and_ignores_a_shift() -> None:
    scores, rows, columns = drawn(6, 4), [3, 1, 5, 0, 4, 2], [2, 0, 3, 1]
    q = inference.sinkhorn(scores, 0.5)
    assert torch.allclose(inference.sinkhorn(scores[rows], 0.5), q[rows])
    assert torch.allclose(inference.sinkhorn(scores[:, columns], 0.5), q[:, columns])
    assert torch.allclose(inference.sinkhorn(scores + 7, 0.5), q)


def test_sinkhorn_takes_part_in_no_gradient_and_promotes_half_precision() -> None:
    scores = drawn(6, 4).requires_grad_()
    assert not inference.sinkhorn(scores).requires_grad
    half = scores.detach().clamp(-1, 1).half()
    assert inference.sinkhorn(half).dtype == torch.float32
    assert torch.equal(inference.sinkhorn(half), inference.sinkhorn(half.float()))
    assert torch.isfinite(inference.sinkhorn(1000 * half)).all()


@pytest.mark.parametrize("eps", [0.05, 0.03, 0.01, 0.005])
def test_every_row_sums_to_one_however_sharp(eps: float) -> None:
    """One sample fits its prototype, another fits none: in float32 its row must not vanish."""
    scores = torch.tensor([[1.0, -0.5, -0.9], [-0.8, -0.9, -1.0], [0.1, 0.2, 0.0]])
    q = inference.sinkhorn(scores, eps)
    assert torch.allclose(q.sum(1), torch.ones(3), atol=1e-5)
    assert torch.allclose(q, inference.sinkhorn(scores.double(), eps).float(), atol=1e-4)


def lloyd(y: Rows, w: Rows) -> tuple[Rows, list[int]]:
    distances = [[gap(p, c) for c in w] for p in y]
    codes = [row.index(min(row)) for row in distances]
    moved, held = [], []
    far = sorted(range(len(y)), key=lambda i: -min(distances[i]))
    for k in range(len(w)):
        mine = [p for p, c in zip(y, codes, strict=True) if c == k]
        held.append(len(mine))
        if mine:
            moved.append([sum(v) / len(mine) for v in zip(*mine, strict=True)])
        else:
            moved.append(y[far.pop(0)])
    return moved, held


def test_a_lloyd_step_is_the_loop() -> None:
    y, w = drawn(30, 3), drawn(4, 3, seed=1)
    moved = inference.lloyd_step(y, w)
    wanted, counts = lloyd(y.tolist(), w.tolist())
    assert all(counts)
    assert torch.allclose(moved, torch.tensor(wanted, dtype=torch.float64), atol=1e-13)


def test_empty_prototypes_move_to_the_farthest_points() -> None:
    y = drawn(30, 3)
    w = torch.cat([drawn(2, 3, seed=1), torch.full((3, 3), 1e3, dtype=torch.float64)])
    moved = inference.lloyd_step(y, w)
    wanted, counts = lloyd(y.tolist(), w.tolist())
    assert counts[2:] == [0, 0, 0]
    assert torch.allclose(moved, torch.tensor(wanted, dtype=torch.float64), atol=1e-13)


def test_more_empty_prototypes_than_points() -> None:
    y, w = drawn(2, 3), torch.arange(15.0, dtype=torch.float64).reshape(5, 3)
    assert torch.isfinite(inference.lloyd_step(y, w)).all()


def test_lloyd_never_raises_the_quantisation_error_and_ends_at_a_fixed_point() -> None:
    y, w = drawn(200, 2), drawn(200, 2)[:7]
    errors = []
    for _ in range(60):
        errors.append(float(energy.to_prototypes(y, w).amin(1).sum()))
        w = inference.lloyd_step(y, w)
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]
    assert torch.equal(inference.lloyd_step(y, w), w)


def test_lloyd_step_neither_changes_its_input_nor_takes_part_in_gradients() -> None:
    y, w = drawn(30, 3), drawn(4, 3, seed=1).requires_grad_()
    before = w.detach().clone()
    moved = inference.lloyd_step(y, w)
    assert not moved.requires_grad
    assert torch.equal(w, before)


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_plus_plus_is_the_greedy_loop(seed: int) -> None:
    """The same uniform draws, turned into points by a loop over the cumulated distances."""
    y, k = drawn(40, 3, seed=seed), 6
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(k, 2 + int(math.log(k)), generator=generator, dtype=torch.float64).tolist()
    chosen = [int(draws[0][0] * 40)]
    rows = y.tolist()
    for tries in draws[1:]:
        weights = [min(gap(row, rows[c]) for c in chosen) for row in rows]
        candidates = []
        for draw in tries:
            point, reached = 0, weights[0]
            while reached < draw * sum(weights):
                point += 1
                reached += weights[point]
            left = sum(min(w, gap(r, rows[point])) for w, r in zip(weights, rows, strict=True))
            candidates.append((left, point))
        chosen.append(min(candidates)[1])
    assert len(set(chosen)) == k
    found = inference.kmeans_plus_plus(y, k, torch.Generator().manual_seed(seed))
    assert torch.equal(found, y[chosen])


def test_no_prototypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one prototype \(got k = 0\)"):
        inference.kmeans_plus_plus(torch.ones(3, 2), 0)


def test_kmeans_plus_plus_has_the_distribution_of_the_greedy_one() -> None:
    """Of three candidates for the second of 4 points the best stays: chances by enumeration."""
    points, k, draws = [0.0, 1.0, 3.0, 7.0], 3, 1500
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor(points, dtype=torch.float64)[:, None]
    found = [inference.kmeans_plus_plus(y, k, generator) for _ in range(draws)]
    seen = [tuple(prototypes[:2, 0].tolist()) for prototypes in found]
    for first in points:
        share = [(p - first) ** 2 / sum((o - first) ** 2 for o in points) for p in points]
        left = [sum(min((q - first) ** 2, (q - p) ** 2) for q in points) for p in points]
        chance = [0.0] * 4
        for tries in itertools.product(range(4), repeat=2 + int(math.log(k))):
            best = min(tries, key=lambda i: left[i])
            chance[best] += math.prod(share[i] for i in tries) / 4
        for second, wanted in zip(points, chance, strict=True):
            part = sum(pair == (first, second) for pair in seen) / draws
            assert abs(part - wanted) <= 4 * math.sqrt(wanted / draws)


def test_kmeans_plus_plus_with_fewer_different_points_than_prototypes() -> None:
    y = torch.tensor([[0.0, 0], [0, 0], [2, 2], [2, 2], [0, 0]])
    found = inference.kmeans_plus_plus(y, 4, torch.Generator().manual_seed(1))
    assert {tuple(row) for row in found.tolist()} == {(0.0, 0.0), (2.0, 2.0)}


def test_kmeans_plus_plus_is_a_copy_and_refuses_too_few_points() -> None:
    y = drawn(3, 2)
    found = inference.kmeans_plus_plus(y, 3)
    found.zero_()
    assert (y != 0).all()
    with pytest.raises(ValueError, match=r"at least k = 4 points \(got 3\)\. Use a smaller k\."):
        inference.kmeans_plus_plus(y, 4)


def objective(y: Rows, z: Rows, w: Rows, sparsity: float) -> list[float]:
    found = []
    for point, code in zip(y, z, strict=True):
        made = [
            sum(c * atom[j] for c, atom in zip(code, w, strict=True)) for j in range(len(point))
        ]
        found.append(0.5 * gap(point, made) + sparsity * sum(map(abs, code)))
    return found


def coordinate_descent(y: Tensor, w: Tensor, sparsity: float) -> Tensor:
    """scikit-learn's Lasso, whose objective is divided by the number of features."""
    lasso = Lasso(alpha=sparsity / w.shape[1], fit_intercept=False, tol=1e-14, max_iter=100_000)
    return torch.tensor(np.stack([lasso.fit(w.T.numpy(), point.numpy()).coef_ for point in y]))


def test_soft_threshold_is_the_minimum_of_its_energy() -> None:
    z, threshold = drawn(30), 0.4
    grid = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    for value, found in zip(z, inference.soft_threshold(z, threshold), strict=True):
        energies = 0.5 * (grid - value) ** 2 + threshold * grid.abs()
        assert abs(float(found - grid[energies.argmin()])) < 1e-4


@pytest.mark.parametrize(("k", "d"), [(4, 7), (7, 4)])
def test_largest_eigenvalue_is_the_squared_norm(k: int, d: int) -> None:
    w = drawn(k, d)
    assert inference.largest_eigenvalue(w).item() == pytest.approx(
        torch.linalg.matrix_norm(w, 2).item() ** 2
    )


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("k", [5, 12])
def test_ista_ends_where_coordinate_descent_does(fast: bool, k: int) -> None:
    y, w, sparsity = drawn(6, 8), energy.normalise(drawn(k, 8, seed=1)), 0.3
    wanted = coordinate_descent(y, w, sparsity)
    assert 0 < (wanted == 0).double().mean() < 1
    found = inference.ista(y, w, sparsity, iterations=3000, fast=fast)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_ista_steps_are_the_loop_and_never_raise_the_energy() -> None:
    y, w, sparsity = drawn(4, 6), energy.normalise(drawn(9, 6, seed=1)), 0.2
    rows = w.tolist()
    curvature = float(torch.linalg.matrix_norm(w, 2)) ** 2 * (1 + 1e-6)
    z = [[0.0] * 9 for _ in range(4)]
    energies = [objective(y.tolist(), z, rows, sparsity)]
    for iterations in range(1, 30):
        for point, code in zip(y.tolist(), z, strict=True):
            made = [sum(c * a[j] for c, a in zip(code, rows, strict=True)) for j in range(6)]
            slopes = [
                sum((m - p) * v for m, p, v in zip(made, point, a, strict=True)) for a in rows
            ]
            for k in range(9):
                value = code[k] - slopes[k] / curvature
                code[k] = math.copysign(max(0.0, abs(value) - sparsity / curvature), value)
        found = inference.ista(y, w, sparsity, iterations=iterations, fast=False)
        assert torch.allclose(found, torch.tensor(z, dtype=torch.float64), atol=1e-12)
        energies.append(objective(y.tolist(), z, rows, sparsity))
    for before, after in itertools.pairwise(energies):
        assert all(a <= b + 1e-12 for a, b in zip(after, before, strict=True))


def test_momentum_is_the_published_recursion_and_faster() -> None:
    """v_{n+1} = z_n + (t_n - 1) / t_{n+1} (z_n - z_{n-1}), t_1 = 1: one step at a time."""
    y, w, sparsity = drawn(4, 6), energy.normalise(drawn(20, 6, seed=1)), 0.05
    curvature = float(inference.largest_eigenvalue(w)) * (1 + 1e-6)
    old = v = torch.zeros(4, 20, dtype=torch.float64)
    t = [1.0]
    for n in range(25):
        moved = v - (v @ w - y) @ w.T / curvature
        z = moved.sign() * (moved.abs() - sparsity / curvature).clamp_min(0)
        t.append((1 + math.sqrt(1 + 4 * t[n] ** 2)) / 2)
        v = z + (t[n] - 1) / t[n + 1] * (z - old)
        old = z
    assert torch.allclose(inference.ista(y, w, sparsity, iterations=25), old, atol=1e-12)
    best = sum(objective(y.tolist(), coordinate_descent(y, w, sparsity).tolist(), w.tolist(), 0.05))
    above = []
    for fast in (True, False):
        z = inference.ista(y, w, sparsity, iterations=60, fast=fast)
        above.append(sum(objective(y.tolist(), z.tolist(), w.tolist(), sparsity)) - best)
    assert above[0] < 0.2 * above[1]


def test_a_pull_is_a_ridge_around_where_it_pulls() -> None:
    """With y and sqrt(2 pull) towards stacked, and W beside a diagonal, it is the plain problem."""
    y, w, sparsity, pull = drawn(5, 6), drawn(8, 6, seed=1), 0.3, 0.7
    towards = drawn(5, 8, seed=2)
    root = math.sqrt(2 * pull)
    longer = torch.cat([w, root * torch.eye(8, dtype=torch.float64)], dim=1)
    wanted = coordinate_descent(torch.cat([y, root * towards], dim=1), longer, sparsity)
    found = inference.ista(y, w, sparsity, iterations=3000, towards=towards, pull=pull)
    assert torch.allclose(found, wanted, atol=1e-6)
    far = inference.ista(y, w, 0.0, iterations=500, towards=towards, pull=1e6)
    assert torch.allclose(far, towards, atol=1e-4)


def test_ista_explains_nothing_above_the_largest_product_and_takes_no_gradient() -> None:
    y, w = drawn(5, 6), drawn(8, 6, seed=1).requires_grad_()
    most = float((y @ w.detach().T).abs().max())
    assert (inference.ista(y, w, most + 1e-9) == 0).all()
    assert (inference.ista(y, w, most - 1e-3) != 0).any()
    assert not inference.ista(y, w, 0.1).requires_grad
    assert inference.ista(y.bfloat16(), w.detach().bfloat16(), 0.1).dtype == torch.float32


def wells(y: Tensor) -> Tensor:
    """Two of them along the first axis, one along the others."""
    return (y[:, 0].square() - 1).square() + 0.5 * y[:, 1:].square().flatten(1).sum(1)


def test_slope_is_that_of_central_differences() -> None:
    y = drawn(5, 3)
    found = inference.slope(wells, y)
    assert not y.requires_grad
    assert not found.requires_grad
    for d in range(3):
        e = 1e-5 * torch.eye(3, dtype=torch.float64)[d]
        assert torch.allclose(found[:, d], (wells(y + e) - wells(y - e)) / 2e-5, atol=1e-8)
    with torch.no_grad():
        assert torch.equal(inference.slope(wells, y), found)


def test_a_slope_can_be_differentiated() -> None:
    y = drawn(5, 1).requires_grad_()
    found = inference.slope(wells, y, differentiable=True)
    (bent,) = torch.autograd.grad(found.sum(), y)
    assert torch.allclose(bent, 12 * y.square() - 4)  # the second derivative of (y^2 - 1)^2


def test_langevin_without_noise_descends_into_the_nearest_well() -> None:
    y = drawn(40, 2).clamp(-1.5, 1.5)  # from further out these steps would jump across
    ends = inference.langevin(
        wells, y, lambda i: torch.zeros(40, 2), steps=300, size=0.05, deviation=0.3
    )
    assert torch.allclose(ends[:, 0], y[:, 0].sign(), atol=1e-6)
    assert torch.allclose(ends[:, 1], torch.zeros(40, dtype=torch.float64), atol=1e-3)


def test_langevin_steps_are_the_loop() -> None:
    y = drawn(3, 2)
    normal = [drawn(3, 2, seed=i + 1) for i in range(4)]
    found = inference.langevin(
        wells, y, lambda i: normal[i], steps=4, size=0.1, deviation=0.2, clip=0.7
    )
    for row, (a, b) in enumerate(y.tolist()):
        for n in normal:
            slopes = (4 * a * (a * a - 1), b)
            a -= 0.1 * max(-0.7, min(0.7, slopes[0])) - 0.2 * float(n[row, 0])
            b -= 0.1 * max(-0.7, min(0.7, slopes[1])) - 0.2 * float(n[row, 1])
        assert found[row].tolist() == pytest.approx([a, b])


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_langevin_chains_settle_at_the_variance_of_their_steps(temperature: float) -> None:
    """F = a y^2 / 2 and steps of size s: T / (a (1 - a s / 2)), which is T / a for small ones."""
    a, size, n = 2.0, 0.1, 20_000
    random = torch.Generator().manual_seed(0)
    ends = inference.langevin(
        lambda y: a * y.square().sum(1) / 2, torch.full((n, 1), 3.0),
        lambda i: torch.randn(n, 1, generator=random),
        steps=60, size=size, deviation=math.sqrt(2 * size * temperature),
    )  # fmt: skip
    wanted = temperature / (a * (1 - a * size / 2))
    assert ends.var().item() == pytest.approx(wanted, rel=0.04)
    assert abs(ends.mean().item()) < 4 * math.sqrt(wanted / n)
