"""Energies against loops over float64 numbers, and at the edges of floating point."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from erg import energy


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def dot(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def gap(a: list[float], b: list[float]) -> float:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


X, Y, W = drawn(5, 3, seed=1), drawn(5, 3, seed=2), drawn(4, 3, seed=3)
ROWS = list(zip(X.tolist(), Y.tolist(), strict=True))


def close(found: Tensor, wanted: object, off: float = 1e-13) -> bool:
    wanted = torch.tensor(wanted, dtype=torch.float64)
    return found.shape == wanted.shape and bool(((found - wanted).abs() <= off).all())


def test_normalise_is_division_by_the_norm() -> None:
    wanted = [[v / math.sqrt(dot(x, x)) for v in x] for x in X.tolist()]
    assert close(energy.normalise(X), wanted)
    assert close(energy.normalise(X.reshape(5, 1, 3)), [[row] for row in wanted])


def test_normalise_leaves_zero_at_zero() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    z = energy.normalise(x)
    z.sum().backward()
    assert torch.equal(z, torch.zeros(2, 3))
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_cosine_is_the_negative_cosine() -> None:
    wanted = [-dot(x, y) / math.sqrt(dot(x, x) * dot(y, y)) for x, y in ROWS]
    assert close(energy.cosine(X, Y), wanted)
    assert close(energy.cosine(X, 7 * X), [-1.0] * 5)
    assert close(energy.cosine(X, -X), [1.0] * 5)


def test_products_are_all_pairs() -> None:
    assert close(energy.products(X, W), [[dot(x, w) for w in W.tolist()] for x in X.tolist()])


def test_squared_distance_sums_and_mean_squared_error_averages() -> None:
    wanted = [gap(x, y) for x, y in ROWS]
    assert close(energy.squared_distance(X, Y), wanted)
    assert close(energy.mean_squared_error(X, Y), [v / 3 for v in wanted])


def test_distances_of_images_run_over_every_dimension_but_the_first() -> None:
    x, y = drawn(2, 3, 4, 5, seed=4), drawn(2, 3, 4, 5, seed=5)
    wanted = [gap(a.flatten().tolist(), b.flatten().tolist()) for a, b in zip(x, y, strict=True)]
    assert close(energy.squared_distance(x, y), wanted, 1e-12)
    assert close(energy.mean_squared_error(x, y), [v / 60 for v in wanted])


def test_to_prototypes_is_every_squared_distance() -> None:
    wanted = [[gap(x, w) for w in W.tolist()] for x in X.tolist()]
    assert close(energy.to_prototypes(X, W), wanted)


def test_to_prototypes_are_found_from_float32_too_where_they_are_float64() -> None:
    found = energy.to_prototypes(X.float(), W)
    assert found.dtype == W.dtype == torch.float64
    assert torch.allclose(found, energy.to_prototypes(X, W), atol=1e-5)


def test_to_prototypes_is_never_negative() -> None:
    y = drawn(64, 8, scale=1e3).float()
    assert (energy.to_prototypes(y, y).diagonal() >= 0).all()


@pytest.mark.parametrize("beta", [1e-3, 0.3, 1.0, 12.0])
def test_free_energy_is_the_sum_over_the_latent(beta: float) -> None:
    energies = energy.to_prototypes(X, W)
    wanted = [
        -math.log(sum(math.exp(-beta * e) for e in row) / len(row)) / beta
        for row in energies.tolist()
    ]
    assert close(energy.free_energy(energies, beta), wanted, 1e-11)


def test_free_energy_goes_from_the_mean_to_the_minimum() -> None:
    energies = energy.to_prototypes(X, W)
    assert close(energy.free_energy(energies, 0.0), [sum(r) / 4 for r in energies.tolist()])
    assert close(energy.free_energy(energies), [min(row) for row in energies.tolist()])
    values = [energy.free_energy(energies, b) for b in (0.0, 0.1, 1.0, 10.0, float("inf"))]
    for warm, cold in itertools.pairwise(values):
        assert (warm > cold).all()
    near = energy.free_energy(energies, 1e4)
    assert ((near - values[-1]) >= 0).all()
    assert ((near - values[-1]) <= math.log(4) / 1e4 + 1e-12).all()


def test_free_energy_keeps_leading_dimensions_and_does_not_overflow() -> None:
    energies = drawn(2, 3, 4, scale=1e5)
    found = energy.free_energy(energies, 50.0)
    assert found.shape == (2, 3)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[1], energy.free_energy(energies[1], 50.0))
    assert torch.isfinite(energy.free_energy(energies.float(), 50.0)).all()


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0, float("inf")])
def test_gradient_of_free_energy_pulls_prototypes_by_their_responsibility(beta: float) -> None:
    """dF/dw_k = 2 r_k (w_k - y), r the softmax of -beta E; at beta = inf the winner's alone."""
    prototypes = W.clone().requires_grad_()
    for y in X:
        energies = energy.to_prototypes(y[None], prototypes)
        (found,) = torch.autograd.grad(energy.free_energy(energies, beta).sum(), prototypes)
        e = [gap(y.tolist(), w) for w in W.tolist()]
        if beta == float("inf"):
            r = [float(v == min(e)) for v in e]
        else:
            whole = sum(math.exp(-beta * v) for v in e)
            r = [math.exp(-beta * v) / whole for v in e]
        wanted = [
            [2 * r[k] * (w - v) for w, v in zip(W[k].tolist(), y.tolist(), strict=True)]
            for k in range(4)
        ]
        assert close(found, wanted, 1e-12)


def test_cross_entropy_of_a_soft_target() -> None:
    scores, target = drawn(5, 4, seed=6, scale=3), drawn(5, 4, seed=7).softmax(dim=1)
    wanted = [
        -sum(q * (s - math.log(sum(map(math.exp, row)))) for q, s in zip(soft, row, strict=True))
        for soft, row in zip(target.tolist(), scores.tolist(), strict=True)
    ]
    assert close(energy.cross_entropy(scores, target), wanted)


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    s, t = drawn(5, 4, seed=6, scale=3), drawn(5, 4, seed=8, scale=3)
    wanted = []
    for a, b in zip(s.tolist(), t.tolist(), strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (a, b))
        wanted.append(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
    assert close(energy.divergence(s, t), wanted)
    assert close(energy.divergence(s, s + 2), [0.0] * 5)


def test_of_class_is_cross_entropy_with_a_one_hot_target() -> None:
    scores, target = drawn(5, 4, seed=6, scale=3), torch.tensor([0, 3, 1, 1, 2])
    wanted = [
        math.log(sum(map(math.exp, row))) - row[k]
        for row, k in zip(scores.tolist(), target.tolist(), strict=True)
    ]
    assert close(energy.of_class(scores, target), wanted)
    one_hot = torch.nn.functional.one_hot(target, 4).double()
    assert torch.allclose(energy.cross_entropy(scores, one_hot), energy.of_class(scores, target))


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_energy_of_a_class_is_infonce_with_a_queue(golden, temperature: float) -> None:
    """Key 0 of [own key, queue] is the class: MoCo's loss."""
    query, key, queue = (golden.array(name) for name in ("Z1", "Z2", "QU"))
    own = -energy.cosine(query, key)[:, None]
    others = energy.products(energy.normalise(query), energy.normalise(queue))
    logits = torch.cat([own, others], dim=1) / temperature
    found = energy.of_class(logits, torch.zeros(4, dtype=torch.long)).mean()
    assert golden.agrees(f"InfoNCE with a queue, temperature {temperature}", found)


def test_masked_mean_is_the_mean_over_the_places_that_count() -> None:
    errors = drawn(3, 5).abs()
    where = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    wanted = []
    for row, mask in zip(errors.tolist(), where.tolist(), strict=True):
        chosen = [e for e, m in zip(row, mask, strict=True) if m]
        wanted.append(sum(chosen) / len(chosen))
    assert close(energy.masked_mean(errors, where), wanted)


def test_masked_mean_is_zero_where_no_place_counts() -> None:
    assert close(energy.masked_mean(drawn(1, 5), torch.zeros(1, 5).bool()), [0.0])


def test_mean_of_the_byol_energy_is_golden(golden) -> None:
    found = (2 + 2 * energy.cosine(golden.array("Z1"), golden.array("Z2"))).mean()
    assert golden.agrees("mean of 2 - 2 cos", found)


def test_the_fixture_is_the_reference_one(golden) -> None:
    assert golden.agrees("first row of Z1", golden.array("Z1")[0])
    assert golden.agrees("last row of Z1", golden.array("Z1")[-1])
    assert golden.agrees("first row of Z2", golden.array("Z2")[0])


TWO_SIDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normalise": lambda x, y: energy.normalise(x),
    "cosine": energy.cosine,
    "products": energy.products,
    "squared_distance": energy.squared_distance,
    "mean_squared_error": energy.mean_squared_error,
    "to_prototypes": energy.to_prototypes,
    "free_energy": lambda x, y: energy.free_energy(x, 2.0),
    "free_energy, no temperature": lambda x, y: energy.free_energy(x),
    "cross_entropy": lambda x, y: energy.cross_entropy(x, y.softmax(dim=1)),
    "of_class": lambda x, y: energy.of_class(x, torch.zeros(len(x), dtype=torch.long)),
}


@pytest.mark.parametrize("name", TWO_SIDED)
def test_half_precision_is_promoted_and_double_kept(name: str) -> None:
    function = TWO_SIDED[name]
    assert function(X, Y).dtype == torch.float64
    assert function(X.float(), Y.float()).dtype == torch.float32
    for half in (torch.float16, torch.bfloat16):
        x, y = X.to(half), Y.to(half)
        assert function(x, y).dtype == torch.float32
        if name != "cross_entropy":  # whose target is made in half precision here
            assert torch.equal(function(x, y), function(x.float(), y.float()))


@pytest.mark.parametrize("name", TWO_SIDED)
def test_autocast_changes_nothing(name: str) -> None:
    """Promotion alone would not do: autocast casts down again for matrix products."""
    function, x, y = TWO_SIDED[name], drawn(6, 32).float(), drawn(6, 32, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = function(x, y)
    assert torch.equal(inside, function(x, y))


def test_full_precision_takes_keywords() -> None:
    assert torch.equal(energy.products(x=X, y=W), energy.products(X, W))
    assert torch.equal(energy.to_prototypes(y=X, prototypes=W), energy.to_prototypes(X, W))


def test_wrong_shapes_are_refused_in_tests() -> None:
    """The import hook is at work: widths that differ would otherwise broadcast."""
    with pytest.raises(Exception, match="Type-check error"):
        energy.cosine(X, Y[:, :1])


def test_bernoulli_is_the_negative_log_likelihood() -> None:
    logits, target = drawn(3, 2, 4, seed=8), drawn(3, 2, 4, seed=9).sigmoid()
    target[0] = target[0].round()
    wanted = []
    for row, wish in zip(logits.flatten(1).tolist(), target.flatten(1).tolist(), strict=True):
        chances = [1 / (1 + math.exp(-a)) for a in row]
        wanted.append(
            -sum(
                t * math.log(p) + (1 - t) * math.log(1 - p)
                for p, t in zip(chances, wish, strict=True)
            )
        )
    assert close(energy.bernoulli(logits, target), wanted, 1e-12)
    assert torch.isfinite(energy.bernoulli(1e4 * logits.float(), target.float())).all()


@pytest.mark.parametrize("wrong", [-0.5, 1.5])
def test_bernoulli_refuses_targets_that_are_no_probabilities(wrong: float) -> None:
    target = torch.full((2, 3), 0.5)
    target[1, 2] = wrong
    with pytest.raises(ValueError, match=r"targets in \[0, 1\] .* Scale the data"):
        energy.bernoulli(torch.zeros(2, 3), target)
    # Rounding when normalisation is undone is no mistake.
    edge = torch.tensor([[1 + 1e-6, -1e-6]])
    assert torch.isfinite(energy.bernoulli(torch.zeros(1, 2), edge)).all()


def test_layer_normalise_takes_out_each_rows_mean_and_deviation() -> None:
    wanted = []
    for row in X.tolist():
        mean = sum(row) / 3
        deviation = math.sqrt(sum((v - mean) ** 2 for v in row) / 3 + 1e-5)
        wanted.append([(v - mean) / deviation for v in row])
    assert close(energy.layer_normalise(X), wanted)
    assert energy.layer_normalise(X.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_smooth_l1_is_square_near_zero_and_absolute_beyond(beta: float) -> None:
    wanted, all_errors = [], (X - Y).abs()
    assert all_errors.min() < beta < all_errors.max()
    for row in all_errors.tolist():
        wanted.append(sum(e * e / (2 * beta) if e < beta else e - beta / 2 for e in row) / 3)
    assert close(energy.smooth_l1(X, Y, beta), wanted)
    assert close(energy.smooth_l1(X[None], Y[None], beta), [wanted])


def plain_cross_entropy(scores: list[float], code: list[float]) -> float:
    whole = math.log(sum(map(math.exp, scores)))
    return -sum(q * (s - whole) for q, s in zip(code, scores, strict=True))


@pytest.mark.parametrize(("crops", "taught"), [(2, 2), (4, 2), (3, 1), (3, 3)])
def test_between_crops_is_the_loop_over_pairs_of_different_crops(crops: int, taught: int) -> None:
    scores = [drawn(5, 4, seed=10 + i) for i in range(crops)]
    codes = [drawn(5, 4, seed=20 + i).softmax(dim=1) for i in range(taught)]
    pairs = [(t, v) for t in range(taught) for v in range(crops) if t != v]
    wanted = [
        sum(plain_cross_entropy(scores[v][i].tolist(), codes[t][i].tolist()) for t, v in pairs)
        / len(pairs)
        for i in range(5)
    ]
    assert close(energy.between_crops(scores, codes), wanted, 1e-12)


def test_of_hidden_is_the_mean_of_each_images_own_errors() -> None:
    hidden = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    errors = torch.tensor([1.0, 4.0, 7.0], dtype=torch.float64, requires_grad=True)
    found = energy.of_hidden(errors, hidden)
    assert found.tolist() == [2.5, 0.0, 7.0]
    found.sum().backward()
    assert errors.grad is not None
    assert errors.grad.tolist() == [0.5, 0.5, 1.0]
    assert energy.of_hidden(errors[:0], torch.zeros(2, 3).bool()).tolist() == [0.0, 0.0]
