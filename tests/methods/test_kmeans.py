"""K-means: energies and Lloyd steps by loops, wells, an encoder that stays as it was."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from erg import inference
from erg.encoders import build_encoder
from erg.methods.kmeans import KMeans
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
    start = inference.spread_out(y, 4, torch.Generator().manual_seed(3))
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


@pytest.mark.parametrize("by", ["lloyd", "sgd"])
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
