"""K-means: energies and Lloyd steps by loops, wells, an encoder that stays as it was."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from erg import inference
from erg.encoders import build_encoder
from erg.methods.kmeans import KMeans
from erg.testing import check_method
from erg.views.plan import whole
from erg.views.types import View, Views


def points(n: int = 30, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_method(**arguments: Any) -> KMeans:
    method = KMeans(build_encoder("identity", 3), **{"k": 4, **arguments}).double()
    with torch.no_grad():
        method.prototypes.copy_(points(4, seed=1))
    return method


def gap(a: list[float], b: list[float]) -> float:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


def batch(y: Tensor) -> Views:
    return Views((View(y),), torch.arange(len(y)), pairing="alone")


def test_energy_is_the_distance_to_the_nearest_prototype() -> None:
    method, y = a_method(), points()
    rows = [[gap(p, w) for w in method.prototypes.tolist()] for p in y.tolist()]
    assert torch.allclose(method.energies(y), torch.tensor(rows, dtype=torch.float64))
    assert method.energy(None, View(y)).tolist() == pytest.approx([min(row) for row in rows])
    total = method.loss(batch(y), 0.0)
    assert total.push == {}
    assert total.total.item() == pytest.approx(sum(map(min, rows)) / 30)


def test_with_a_temperature_energy_is_the_free_energy() -> None:
    method, y, beta = a_method(beta=0.7), points(), 0.7
    wanted = []
    for p in y.tolist():
        terms = [math.exp(-beta * gap(p, w)) for w in method.prototypes.tolist()]
        wanted.append(-math.log(sum(terms) / 4) / beta)
    assert method.energy(None, View(y)).tolist() == pytest.approx(wanted)
    assert method.loss(batch(y), 0.0).total.item() == pytest.approx(sum(wanted) / 30)


@pytest.mark.parametrize("beta", [0.7, float("inf")])
def test_gradient_pulls_each_prototype_by_its_responsibilities(beta: float) -> None:
    method, y = a_method(by="sgd", beta=beta), points()
    method.loss(batch(y), 0.0).total.backward()
    wanted = torch.zeros(4, 3, dtype=torch.float64)
    for p in y:
        e = [gap(p.tolist(), w) for w in method.prototypes.tolist()]
        if beta == float("inf"):
            r = [float(v == min(e)) for v in e]
        else:
            r = [math.exp(-beta * v) / sum(math.exp(-beta * u) for u in e) for v in e]
        for k in range(4):
            wanted[k] += 2 * r[k] * (method.prototypes[k].detach() - p) / 30
    assert method.prototypes.grad is not None
    assert torch.allclose(method.prototypes.grad, wanted, atol=1e-12)


def test_there_are_k_wells() -> None:
    method = a_method()
    at_wells = method.energy(None, View(method.prototypes.detach()))
    assert torch.allclose(at_wells, torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert (method.energy(None, View(points())) > 0).all()


def test_encode_is_one_hot_or_soft() -> None:
    y = points()
    hard, soft = a_method().encode(y), a_method(beta=0.7).encode(y)
    energies = a_method().energies(y)
    assert hard.argmax(1).tolist() == energies.argmin(1).tolist()
    assert hard.sum(1).tolist() == [1.0] * 30
    assert set(hard.flatten().tolist()) == {0.0, 1.0}
    assert torch.allclose(soft, (-0.7 * energies).softmax(1))


def test_first_epoch_starts_and_later_ones_take_lloyd_steps() -> None:
    method, y = a_method(seed=3), points()
    method.after_epoch(y)
    start = inference.kmeans_plus_plus(y, 4, torch.Generator().manual_seed(3))
    assert torch.equal(method.prototypes, start)
    assert bool(method.started)
    w = start.tolist()
    for _ in range(3):
        method.after_epoch(y)
        codes = []
        for p in y.tolist():
            distances = [gap(p, c) for c in w]
            codes.append(distances.index(min(distances)))
        for k in range(4):
            mine = [p for p, c in zip(y.tolist(), codes, strict=True) if c == k]
            w[k] = [sum(v) / len(mine) for v in zip(*mine, strict=True)]
        wanted = torch.tensor(w, dtype=torch.float64)
        assert torch.allclose(method.prototypes, wanted, atol=1e-12)


def soft(w: list[list[float]], y: Tensor, beta: float) -> list[list[float]]:
    """Each prototype becomes the mean of the points, by their shares of it."""
    held, sums = [0.0] * len(w), [[0.0] * y.shape[1] for _ in w]
    for p in y.tolist():
        terms = [math.exp(-beta * gap(p, c)) for c in w]
        for k, term in enumerate(terms):
            held[k] += term / sum(terms)
            sums[k] = [s + v * term / sum(terms) for s, v in zip(sums[k], p, strict=True)]
    return [[v / h for v in s] for s, h in zip(sums, held, strict=True)]


def test_with_a_temperature_lloyd_steps_are_soft_and_never_raise_the_free_energy() -> None:
    method, y = a_method(beta=0.7), points()
    method.after_epoch(y)
    w, levels = method.prototypes.tolist(), [method.loss(batch(y), 0.0).total.item()]
    for _ in range(4):
        method.after_epoch(y)
        w = soft(w, y, 0.7)
        assert torch.allclose(method.prototypes, torch.tensor(w, dtype=torch.float64))
        levels.append(method.loss(batch(y), 0.0).total.item())
    assert all(b < a for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize("beta", [0.7, float("inf")])
def test_a_winner_is_the_mean_of_what_it_has_won(beta: float) -> None:
    """w_k <- w_k + (y - w_k) r_k / n_k: one point after the other, shares as the step began."""
    method, y = a_method(by="winner", beta=beta), points(60)
    w, n = method.prototypes.tolist(), [0.0] * 4
    for step in range(3):
        some = y[20 * step : 20 * step + 20]
        began = [list(c) for c in w]
        for p in some.tolist():
            e = [gap(p, c) for c in began]
            terms = [math.exp(-beta * v) if beta < math.inf else float(v == min(e)) for v in e]
            for k, term in enumerate(terms):
                r = term / sum(terms)
                n[k] += r
                if n[k]:
                    w[k] = [c + (v - c) * r / n[k] for c, v in zip(w[k], p, strict=True)]
        before = method.prototypes.clone()
        method.train().loss(batch(some), 0.0)
        assert torch.equal(method.prototypes, before)
        method.after_step(0.0)
        assert torch.allclose(method.prototypes, torch.tensor(w, dtype=torch.float64))
    assert method.won.tolist() == pytest.approx(n)
    assert float(method.won.sum()) == pytest.approx(60)
    saved = {name: value.clone() for name, value in method.state_dict().items()}
    method.after_step(0.0)  # nothing won, nothing moved
    method.eval().loss(batch(y), 0.0)
    assert all(torch.equal(value, saved[name]) for name, value in method.state_dict().items())


def test_winners_find_well_separated_clusters() -> None:
    centres = 10 * torch.eye(4, 3, dtype=torch.float64)
    y = centres[torch.arange(400) % 4] + 0.1 * points(400)
    method = a_method(by="winner")
    method.after_epoch(y)
    for step in range(20):
        method.loss(batch(y[20 * step : 20 * step + 20]), 0.0)
        method.after_step(0.0)
    assert float(torch.cdist(centres, method.prototypes).amin(dim=1).max()) < 0.05


def test_beta_rises_by_equal_factors_and_the_energy_has_the_last() -> None:
    method, y = a_method(by="sgd", beta=8.0, warm=0.5), points()
    assert [method.beta_at(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.5, 1, 2, 8])
    for progress in (0.0, 0.5, 1.0):
        fixed = a_method(beta=method.beta_at(progress))
        found = method.loss(batch(y), progress).total
        assert found.item() == pytest.approx(fixed.energy(None, View(y)).mean().item())
    assert torch.equal(method.energy(None, View(y)), a_method(beta=8.0).energy(None, View(y)))


def test_annealing_leads_out_of_a_start_that_lloyd_steps_are_caught_in() -> None:
    """Three prototypes in the first of four clusters: Lloyd's steps leave two clusters to one."""
    centres = torch.tensor([[-6.0, 0, 0], [-2, 0, 0], [2, 0, 0], [6, 0, 0]], dtype=torch.float64)
    y = (centres[:, None] + 0.1 * points(160).reshape(4, 40, 3)).reshape(160, 3)
    bad = torch.cat([y[:3], y[90:91]])
    found = {}
    for name, warm in (("caught", 0.0), ("annealed", 0.002)):
        method = a_method(beta=20.0, warm=warm)
        with torch.no_grad():
            method.prototypes.copy_(bad)
        method.started.fill_(True)
        spread = []
        for epoch in range(60):
            method.after_step(epoch / 59)
            method.after_epoch(y)
            spread.append(torch.cdist(method.prototypes, method.prototypes).max().item())
        found[name] = method.eval().energy(None, View(y)).mean().item()
        if warm:  # hot, all are near the mean; then they part
            assert spread[10] < 0.5 < 11.0 < spread[-1]
            gaps = torch.cdist(centres, method.prototypes).amin(dim=1)
            assert float(gaps.max()) < 0.1
    assert found["annealed"] < 0.1 * found["caught"]


@pytest.mark.parametrize(("warm", "beta"), [(0.5, float("inf")), (2.0, 1.0), (-1.0, 1.0)])
def test_beta_that_cannot_rise_is_refused(warm: float, beta: float) -> None:
    with pytest.raises(ValueError, match=rf"cannot rise from warm = {warm} to beta = {beta}"):
        a_method(warm=warm, beta=beta)


@pytest.mark.parametrize("by", ["lloyd", "sgd"])
def test_annealed_it_keeps_the_contract(by: str) -> None:
    check_method(KMeans, arguments={"k": 4, "by": by, "beta": 3.0, "warm": 0.3})


@pytest.mark.parametrize("beta", [3.0, float("inf")])
def test_winners_keep_the_contract_and_are_not_annealed(beta: float) -> None:
    check_method(KMeans, arguments={"k": 4, "by": "winner", "beta": beta})
    with pytest.raises(ValueError, match="Anneal by lloyd or sgd"):
        a_method(by="winner", beta=3.0, warm=0.3)


def test_by_gradient_the_epoch_only_starts() -> None:
    method, y = a_method(by="sgd"), points()
    method.after_epoch(y)
    start = method.prototypes.detach().clone()
    method.after_epoch(y)
    assert torch.equal(method.prototypes, start)
    assert method.prototypes.requires_grad
    assert not a_method().prototypes.requires_grad


def test_having_started_is_saved() -> None:
    first, second = a_method(), a_method()
    first.after_epoch(points())
    second.load_state_dict(first.state_dict())
    for method in (first, second):
        method.after_epoch(points())
    assert torch.equal(first.prototypes, second.prototypes)


def test_finds_well_separated_clusters() -> None:
    centres = 10 * torch.eye(4, 3, dtype=torch.float64)
    y = (centres[:, None] + 0.1 * points(80).reshape(4, 20, 3)).reshape(80, 3)
    method = a_method()
    for _ in range(5):
        method.after_epoch(y)
    codes = method.energies(y).argmin(1).reshape(4, 20)
    assert (codes == codes[:, :1]).all()
    assert len(set(codes[:, 0].tolist())) == 4
    assert method.loss(batch(y), 0.0).total.item() < 0.05


def test_fewer_images_than_prototypes_are_refused() -> None:
    with pytest.raises(ValueError, match="Use a smaller k"):
        a_method().after_epoch(points(3))


@pytest.mark.parametrize("by", ["lloyd", "winner", "sgd"])
def test_an_encoder_that_is_not_trained_stays_as_it_was(by: Any) -> None:
    """Also the running averages of its batch norms, with which `after_epoch` saw the images."""
    torch.manual_seed(0)
    method = KMeans(build_encoder("conv", 16, width=8, stages=2), k=3, by=by)
    before = {name: t.clone() for name, t in method.encoder.state_dict().items()}
    y = View(torch.randn(6, 3, 16, 16))
    loss = method.train().loss(Views((y,), torch.arange(6), pairing="alone"), 0.0).total
    if by == "sgd":
        loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.encoder.parameters())
    for name, tensor in method.encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_plan_is_the_whole_image() -> None:
    assert a_method().plan() == whole()
    with pytest.raises(ValueError, match="needs 1 main view"):
        a_method().loss(Views((View(points()),) * 2, torch.arange(30)), 0.0)
