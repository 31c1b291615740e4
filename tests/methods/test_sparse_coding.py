"""Sparse coding: scikit-learn's codes, k-means as its one-hot case, networks against loops."""

import math
from typing import Any

import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

from erg import energy, inference
from erg.encoders import build_encoder
from erg.methods.kmeans import KMeans
from erg.methods.sparse_coding import SparseCoding
from erg.testing import check_method
from erg.views.plan import whole
from erg.views.types import View, Views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_method(d: int = 5, **arguments: Any) -> SparseCoding:
    torch.manual_seed(0)
    settings = {"k": 8, "sparsity": 0.2, "iterations": 1000, **arguments}
    return SparseCoding(build_encoder("identity", d), **settings).double()


def batch(y: Tensor) -> Views:
    return Views((View(y),), torch.arange(len(y)), pairing="alone")


def shrink(value: float, threshold: float) -> float:
    return math.copysign(max(0.0, abs(value) - threshold), value)


def test_energy_is_that_of_the_best_code() -> None:
    method, y = a_method(), drawn(6, 5)
    lasso = Lasso(alpha=0.2 / 5, fit_intercept=False, tol=1e-14, max_iter=100_000)
    wanted, codes = [], []
    for point in y:
        z = lasso.fit(method.atoms.detach().T.numpy(), point.numpy()).coef_
        left = point - torch.tensor(z) @ method.atoms.detach()
        wanted.append(float(0.5 * left.square().sum()) + 0.2 * abs(z).sum())
        codes.append(z.tolist())
    assert method.energy(None, View(y)).tolist() == pytest.approx(wanted, abs=1e-9)
    assert torch.allclose(method.encode(y), torch.tensor(codes).double(), atol=1e-6)
    loss = method.loss(batch(y), 0.0)
    assert (list(loss.pull), loss.push) == (["energy"], {})
    assert loss.total.item() == pytest.approx(sum(wanted) / 6, abs=1e-9)


def test_atoms_descend_with_the_codes_held_fixed() -> None:
    """dF/dW = -z^T (y - z W): the code is a minimum, so its own change does not count."""
    method, y = a_method(), drawn(6, 5)
    method.loss(batch(y), 0.0).total.backward()
    z = method.encode(y)
    wanted = torch.zeros(8, 5, dtype=torch.float64)
    for point, code in zip(y, z, strict=True):
        wanted -= torch.outer(code, point - code @ method.atoms.detach()) / 6
    assert method.atoms.grad is not None
    assert torch.allclose(method.atoms.grad, wanted)
    step = 1e-5
    before = method.energy(None, View(y)).mean()
    with torch.no_grad():
        method.atoms[2, 3] += step
    after = method.energy(None, View(y)).mean()
    assert ((after - before) / step).item() == pytest.approx(wanted[2, 3].item(), abs=1e-4)


def test_with_one_hot_codes_it_is_kmeans() -> None:
    method, y = a_method(sparsity=0.3), drawn(20, 5)
    kmeans = KMeans(build_encoder("identity", 5), k=8).double()
    with torch.no_grad():
        method.atoms.copy_(3 * drawn(8, 5, seed=1))
        kmeans.prototypes.copy_(method.atoms)
    one_hot = torch.eye(8, dtype=torch.float64)
    each = torch.stack([method.of_code(y, z.expand(20, 8)) for z in one_hot], dim=1)
    assert torch.allclose(2 * (each - 0.3), kmeans.energies(y))
    best = one_hot[each.argmin(1)]
    assert torch.equal(best, kmeans.encode(y))
    assert torch.allclose(2 * (method.of_code(y, best) - 0.3), kmeans.energy(None, View(y)))
    # A code may do better than one atom with weight one.
    assert (method.energy(None, View(y)) <= method.of_code(y, best)).all()


def test_first_epoch_centres_and_scales_and_atoms_have_norm_one() -> None:
    y = 7 * drawn(200, 5) + 3
    method = a_method()
    method.after_epoch(y)
    given = method.centred(y)
    assert torch.allclose(given.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert given.square().sum(1).mean().item() == pytest.approx(1)
    mean = method.mean.clone()
    method.after_epoch(y + 1)
    assert torch.equal(method.mean, mean)
    with torch.no_grad():
        method.atoms.mul_(5)
    method.after_step(0.0)
    assert torch.allclose(method.atoms.norm(dim=1), torch.ones(8, dtype=torch.float64))


def test_an_atom_that_no_image_uses_moves_to_the_worst_explained() -> None:
    y = drawn(50, 5)
    y[:, 4] = 0
    method = a_method()
    method.after_epoch(y)
    with torch.no_grad():
        method.atoms[3] = torch.tensor([0.0, 0, 0, 0, 1])  # the images have nothing there
    before = method.atoms.detach().clone()
    given = method.centred(y)
    z = method.infer(given)
    assert (z[:, 3] == 0).all()
    left = given - z @ before
    worst = left[left.square().sum(1).argmax()]
    method.after_epoch(y)
    assert torch.allclose(method.atoms[3].detach(), worst / worst.norm())
    used = [i for i in range(8) if (z[:, i] != 0).any()]
    assert torch.equal(method.atoms[used], before[used])


def test_lista_is_the_loop_over_layers() -> None:
    method, y = a_method(learned="lista", layers=3), drawn(4, 5)
    with torch.no_grad():
        method.feed.copy_(drawn(5, 8, seed=1))
        method.inhibit.copy_(0.2 * drawn(8, 8, seed=2))
        method.threshold.copy_(drawn(8, seed=3).abs())
    feed, inhibit, theta = (p.tolist() for p in (method.feed, method.inhibit, method.threshold))
    wanted = []
    for point in y.tolist():
        driven = [sum(point[j] * feed[j][k] for j in range(5)) for k in range(8)]
        z = [shrink(driven[k], theta[k]) for k in range(8)]
        for _ in range(3):
            z = [
                shrink(driven[k] + sum(z[i] * inhibit[i][k] for i in range(8)), theta[k])
                for k in range(8)
            ]
        wanted.append(z)
    assert torch.allclose(method.encode(y), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("layers", [0, 1, 6])
def test_lista_begins_as_ista(layers: int) -> None:
    y = drawn(40, 5)
    method = a_method(learned="lista", layers=layers)
    method.after_epoch(y)
    given = method.centred(y)
    steps = inference.ista(given, method.atoms, 0.2, iterations=layers + 1, fast=False)
    assert torch.allclose(method.predict(given), steps, atol=1e-5)


def test_lista_learns_better_codes_than_as_many_steps_of_ista() -> None:
    """Code error, not the objective, on vectors it was not trained on."""
    atoms = energy.normalise(drawn(12, 6, seed=5))
    sparse = drawn(700, 12, seed=6) * (drawn(700, 12, seed=7) > 1)
    y = sparse @ atoms + 0.01 * drawn(700, 6, seed=8)
    method = a_method(6, k=12, learned="lista", layers=2, sparsity=0.05, iterations=200)
    with torch.no_grad():
        method.atoms.copy_(atoms)
    method.after_epoch(y)
    method.atoms.requires_grad_(False)
    held = View(y[:200])
    z = method.infer(method.centred(held.data))

    def error() -> float:
        return energy.squared_distance(method.encode(held.data), z).mean().item()

    before = error()
    optimiser = torch.optim.Adam([method.feed, method.inhibit, method.threshold], lr=0.03)
    for _ in range(60):
        optimiser.zero_grad()
        method.loss(batch(y[200:]), 0.0).total.backward()
        optimiser.step()
    assert error() < 0.5 * before


def likely(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Atoms that resemble each other, and vectors made of a few of them."""
    common = drawn(1, 16, seed=5)
    atoms = energy.normalise(drawn(32, 16, seed=6) + 1.5 * common)
    sparse = drawn(n, 32, seed=seed) * (drawn(n, 32, seed=seed + 1) > 1)
    return atoms, sparse @ atoms


def test_fista_reaches_what_ista_does_in_a_third_of_the_steps() -> None:
    """Of 90 or more; the first few steps of both are alike."""
    atoms, y = likely(200, seed=7)
    method = a_method(16, k=32, sparsity=0.1)
    with torch.no_grad():
        method.atoms.copy_(atoms)

    def objective(iterations: int, fast: bool) -> float:
        z = inference.ista(y, atoms, 0.1, iterations=iterations, fast=fast)
        return method.of_code(y, z).mean().item()

    for iterations in (90, 300, 900):
        assert objective(iterations // 3, True) <= objective(iterations, False)


def test_seven_layers_of_lista_beat_seven_steps_of_fista() -> None:
    """Code error, not the objective, on vectors it was not trained on."""
    atoms, y = likely(2400, seed=9)
    method = a_method(16, k=32, learned="lista", layers=6, sparsity=0.05, iterations=1500)
    with torch.no_grad():
        method.atoms.copy_(atoms)
    method.after_epoch(y)
    given = method.centred(y).detach()
    z, held = method.infer(given), slice(0, 400)
    few = inference.ista(given[held], method.atoms, 0.05, iterations=7)
    fista = energy.squared_distance(few, z[held]).mean().item()
    optimiser = torch.optim.Adam([method.feed, method.inhibit, method.threshold], lr=3e-3)
    for step in range(150):
        rows = slice(400 + step % 4 * 500, 900 + step % 4 * 500)
        optimiser.zero_grad()
        energy.squared_distance(method.predict(given[rows]), z[rows]).mean().backward()
        optimiser.step()
    with torch.no_grad():
        lista = energy.squared_distance(method.predict(given[held]), z[held]).mean().item()
    assert lista < 0.7 * fista, (lista, fista)


def test_psd_has_a_third_term_that_ties_code_and_network() -> None:
    method, y = a_method(learned="psd", pull=0.6), drawn(4, 5)
    with torch.no_grad():
        method.gain.copy_(drawn(8, seed=2))
        method.bias.copy_(drawn(8, seed=3))
    aim = method.gain * torch.tanh(y @ method.feed + method.bias)
    assert torch.allclose(method.encode(y), aim)

    def wanted(z: Tensor) -> Tensor:
        left = (y - z @ method.atoms).square().sum(1) / 2 + 0.2 * z.abs().sum(1)
        return left + 0.6 * (z - aim).square().sum(1)

    found = method.energy(None, View(y))
    assert torch.allclose(found, wanted(method.infer(y)))
    for seed in range(20):  # no code nearby is better
        assert (wanted(method.infer(y) + 0.01 * drawn(4, 8, seed=seed)) > found).all()
    loss = method.loss(batch(y), 0.0)
    assert loss.total.item() == pytest.approx(found.mean().item())
    loss.total.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_learning_finds_the_atoms_that_made_the_data() -> None:
    atoms = energy.normalise(drawn(6, 8, seed=1))
    sparse = drawn(2000, 6, seed=2) * (drawn(2000, 6, seed=3) > 0.8)
    y = sparse @ atoms
    method = a_method(8, k=6, sparsity=0.05, iterations=30)
    method.after_epoch(y)
    optimiser = torch.optim.Adam(method.parameters(), lr=0.03)
    for step in range(200):
        optimiser.zero_grad()
        rows = slice(step % 4 * 500, step % 4 * 500 + 500)
        method.loss(batch(y[rows]), 0.0).total.backward()
        optimiser.step()
        method.after_step(0.0)
    found = (method.atoms.detach() @ atoms.T).abs().amax(dim=0)  # signs and order are free
    assert found.min().item() > 0.97


@pytest.mark.parametrize("learned", ["lista", "psd"])
def test_learned_codes_keep_the_contract(learned: str) -> None:
    check_method(SparseCoding, arguments={"k": 6, "iterations": 5, "learned": learned})
    assert a_method().plan() == whole()


def test_images_that_are_all_the_same_stay_finite() -> None:
    method, y = a_method(learned="lista"), torch.ones(10, 5, dtype=torch.float64)
    for _ in range(2):
        method.after_epoch(y)
    assert torch.isfinite(method.energy(None, View(y))).all()
    assert torch.isfinite(method.encode(y)).all()
