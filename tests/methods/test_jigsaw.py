"""Jigsaw: loops over tiles, the orders by their definition, and that it learns."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.jigsaw import Jigsaw, far_orders
from erg.views.pixels import Pixels
from erg.views.plan import LIGHT, Plan, Tiles
from erg.views.render import make_views
from erg.views.types import View, Views


def pictures(n: int, seed: int = 0) -> Pixels:
    """Noise, in which every quarter has stripes of its own direction."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    angle = (y // 16 * 2 + x // 16) * math.pi / 4
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 0.9)
    made = 127 + 80 * wave[..., None] + random.normal(0, 25, (n, 32, 32, 3))
    return Pixels.pack(list(made.clip(0, 255).astype(np.uint8)))


def a_method(**arguments: Any) -> Jigsaw:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 32, width=8, stages=2)
    return Jigsaw(encoder, **{"width": 6, **arguments}).double()


def views(method: Jigsaw, n: int = 5, step: int = 0, plan: Plan | None = None) -> Views:
    encoder = method.encoder
    made = make_views(
        pictures(n, seed=step), plan or method.plan(), seed=0, epoch=step, step=step,
        index=np.arange(n), image_size=32, mean=encoder.mean, std=encoder.std,
    )  # fmt: skip
    return made.to(dtype=torch.float64)


def order_of(view: View) -> Tensor:
    assert view.made is not None
    assert view.made.order is not None
    return view.made.order


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return sum(i != j for i, j in zip(a, b, strict=True))


@pytest.mark.parametrize(("n", "k"), [(2, 2), (4, 1), (4, 9), (4, 24), (5, 30), (6, 15)])
def test_orders_are_chosen_by_the_greedy_definition(n: int, k: int) -> None:
    chosen = [tuple(range(n))]
    while len(chosen) < k:
        best = None
        for order in itertools.permutations(range(n)):
            if order in chosen:
                continue
            apart = [distance(order, other) for other in chosen]
            if best is None or (min(apart), sum(apart)) > best[0]:
                best = (min(apart), sum(apart)), order
        assert best is not None
        chosen.append(best[1])
    assert list(map(tuple, far_orders(n, k).tolist())) == chosen


def test_a_hundred_orders_of_nine_tiles_are_far_apart() -> None:
    orders = far_orders(9, 100).numpy()
    assert orders.shape == (100, 9)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    apart = (orders[:, None] != orders[None]).sum(axis=2)[~np.eye(100, dtype=bool)]
    random = np.random.default_rng(0).permuted(np.tile(np.arange(9), (100, 1)), axis=1)
    by_chance = (random[:, None] != random[None]).sum(axis=2)[~np.eye(100, dtype=bool)]
    assert apart.min() >= 6 > by_chance.min()
    assert apart.mean() > by_chance.mean()
    # The first nine differ from each other everywhere: more cannot.
    assert (orders[:9, None] != orders[None, :9]).sum(axis=2)[~np.eye(9, dtype=bool)].min() == 9


@pytest.mark.parametrize(("n", "k"), [(1, 1), (10, 5), (3, 7), (3, 0)])
def test_orders_that_are_not_there_are_refused(n: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"no {k} orders of {n} things"):
        far_orders(n, k)


def by_hand(method: Jigsaw, view: View) -> list[list[float]]:
    """Scores of every order, tile by tile."""
    found = []
    n = view.data.shape[-1]
    for image in view.data:
        z = []
        for k in range(4):
            tile = image[:, k * n : (k + 1) * n]
            scaled = (tile - tile.mean()) / (tile.var(correction=0) + 1e-5).sqrt()
            z += method.each(method.encoder(scaled[None]))[0].tolist()
        weight, bias = method.classifier.weight.tolist(), method.classifier.bias.tolist()
        found.append(
            [b + sum(w * v for w, v in zip(row, z, strict=True))
             for row, b in zip(weight, bias, strict=True)]
        )  # fmt: skip
    return found


def test_energy_is_the_loop_over_tiles_and_orders() -> None:
    method = a_method(orders=10).eval()
    whole = views(method)
    (x,) = whole.main
    scores = by_hand(method, x)
    known = list(map(tuple, far_orders(4, 10).tolist()))
    ((_, other),) = whole.mismatched()
    assert isinstance(other, Tensor)
    for y in (order_of(x), other):
        expected = [
            math.log(sum(map(math.exp, row))) - row[known.index(tuple(order))]
            for row, order in zip(scores, y.tolist(), strict=True)
        ]
        assert method.energy(x, y).tolist() == pytest.approx(expected, rel=1e-9)
    total = method.loss(whole, 0.0).total.item()
    assert total == pytest.approx(method.energy(x, order_of(x)).mean().item(), rel=1e-12)


def test_pull_and_push_are_cross_entropy() -> None:
    method = a_method()
    whole = views(method)
    (x,) = whole.main
    logits = method.logits(x)
    assert logits.shape == (5, 24)
    known = method.orders.tolist()
    labels = torch.tensor([known.index(order) for order in order_of(x).tolist()])
    loss = method.loss(whole, 0.0)
    assert (loss.pull.keys(), loss.push.keys()) == ({"order"}, {"other orders"})
    assert loss.total.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-10)
    push = logits.exp().sum(dim=1).log().mean().item()
    assert loss.push["other orders"].item() == pytest.approx(push, rel=1e-10)


def test_energies_of_the_orders_are_minus_log_probabilities_and_others_impossible() -> None:
    method = a_method(orders=6).eval()
    (x,) = views(method).main
    every = far_orders(4, 24)
    energies = torch.stack([method.energy(x, order.expand(5, 4)) for order in every])
    possible = [tuple(order) in set(map(tuple, method.orders.tolist())) for order in every.tolist()]
    assert sum(possible) == 6
    assert torch.isinf(energies[~torch.tensor(possible)]).all()
    found = (-energies[possible]).exp().sum(dim=0)
    assert torch.allclose(found, torch.ones(5, dtype=torch.float64))


def test_guessing_costs_log_k() -> None:
    method = a_method(orders=7)
    torch.nn.init.zeros_(method.classifier.weight)
    torch.nn.init.zeros_(method.classifier.bias)
    assert method.loss(views(method), 0.0).total.item() == pytest.approx(math.log(7))


def test_everything_learns() -> None:
    method = a_method()
    method.loss(views(method), 0.0).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_plan_closes_the_shortcuts_and_knows_the_orders() -> None:
    method = a_method(grid=3, orders=20)
    plan = method.plan()
    (view,) = plan.main
    assert (plan.pairs, view.grey, view.crop) == ("order", 0.3, (0.3, 1.0))
    assert view.tiles is not None
    assert view.tiles.pixels(225) == (75, 64, 10)  # Noroozi & Favaro 2016: 64 of 75 pixels
    assert view.tiles.orders == tuple(map(tuple, method.orders.tolist()))
    (other,) = a_method(gap=0.2, jitter=0.1, drop=0.5, grey=0.0, crop=0.6, orders=2).plan().main
    orders = ((0, 1, 2, 3), (1, 0, 3, 2))
    assert other.tiles == Tiles(grid=(2, 2), gap=0.2, jitter=0.1, drop=0.5, orders=orders)
    assert (other.grey, other.crop) == (0.0, (0.6, 1.0))


def test_small_images_are_cut_in_four() -> None:
    assert a_method().orders.shape == (24, 4)
    larger = Jigsaw(build_encoder("conv", 64, width=8, stages=2), orders=3)
    assert larger.orders.shape == (3, 9)


def test_orders_are_part_of_the_state() -> None:
    assert torch.equal(a_method(orders=5).state_dict()["orders"], far_orders(4, 5))


def test_needs_one_view_of_tiles() -> None:
    method = a_method()
    with pytest.raises(ValueError, match=r"Jigsaw needs .* tiles"):
        method.loss(views(method, plan=Plan(main=(LIGHT,))), 0.0)


def test_it_learns_the_order_of_tiles() -> None:
    """From tiles whose stripes tell it; other orders have a higher energy."""
    torch.manual_seed(0)
    method = Jigsaw(build_encoder("conv", 32, width=16, stages=2), width=16, orders=12)
    plan = Plan(main=(replace(method.plan().main[0], crop=None, flip=0.0),), pairs="order")
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    for step in range(40):
        optimiser.zero_grad()
        method.loss(views(method, 32, step, plan).to(dtype=torch.float32), 0.0).total.backward()
        optimiser.step()
    whole = views(method, 64, 99, plan).to(dtype=torch.float32)
    (x,) = whole.main
    with torch.no_grad():
        best = method.eval().logits(x).argmax(dim=1)
    assert (method.orders[best] == order_of(x)).all(dim=1).float().mean() > 0.7  # chance: 0.083
