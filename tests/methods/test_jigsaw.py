"""Jigsaw: loops over tiles and orders, and that it learns."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.jigsaw import Jigsaw
from erg.parts.tiles import far_orders
from erg.views.make import make_views
from erg.views.pixels import Pixels
from erg.views.plan import LIGHT, Plan, Tiles
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


def by_hand(method: Jigsaw, view: View) -> list[list[float]]:
    """Scores of every order, tile by tile."""
    found = []
    n = view.data.shape[-1]
    for image in view.data:
        z = []
        for k in range(4):
            tile = image[:, k * n : (k + 1) * n]
            scaled = (tile - tile.mean()) / (tile.var(correction=0) + 1e-5).sqrt()
            z += method.head.each(method.encoder(scaled[None]))[0].tolist()
        last = method.head.classifier
        weight, bias = last.weight.tolist(), last.bias.tolist()
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
    known = method.head.orders.tolist()
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
    known = set(map(tuple, method.head.orders.tolist()))
    possible = [tuple(order) in known for order in every.tolist()]
    assert sum(possible) == 6
    assert torch.isinf(energies[~torch.tensor(possible)]).all()
    found = (-energies[possible]).exp().sum(dim=0)
    assert torch.allclose(found, torch.ones(5, dtype=torch.float64))


def test_guessing_costs_log_k() -> None:
    method = a_method(orders=7)
    torch.nn.init.zeros_(method.head.classifier.weight)
    torch.nn.init.zeros_(method.head.classifier.bias)
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
    assert view.tiles.orders == tuple(map(tuple, method.head.orders.tolist()))
    (other,) = a_method(gap=0.2, jitter=0.1, drop=0.5, grey=0.0, crop=0.6, orders=2).plan().main
    orders = ((0, 1, 2, 3), (1, 0, 3, 2))
    assert other.tiles == Tiles(grid=(2, 2), gap=0.2, jitter=0.1, drop=0.5, orders=orders)
    assert (other.grey, other.crop) == (0.0, (0.6, 1.0))


def test_small_images_are_cut_in_four() -> None:
    assert a_method().head.orders.shape == (24, 4)
    larger = Jigsaw(build_encoder("conv", 64, width=8, stages=2), orders=3)
    assert larger.head.orders.shape == (3, 9)


def test_orders_are_part_of_the_state() -> None:
    assert torch.equal(a_method(orders=5).state_dict()["head.orders"], far_orders(4, 5))


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
    right = (method.head.orders[best] == order_of(x)).all(dim=1)
    assert right.float().mean() > 0.7  # chance: 0.083
