"""Relative position: loops over pairs of tiles, the shortcuts closed, and that it learns."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from erg.encoders import build_encoder
from erg.method import Method
from erg.methods.relative_position import RelativePosition
from erg.methods.rotation import Rotation
from erg.views.make import make_views
from erg.views.pixels import Pixels
from erg.views.plan import LIGHT, Plan, Tiles
from erg.views.types import View, Views

AROUND = [0, 1, 2, 3, 5, 6, 7, 8]


def pictures(n: int, seed: int = 0) -> Pixels:
    """Noise, in which every cell of a 3 x 3 grid has stripes of its own direction and width."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48]
    angle = (y // 16 * 3 + x // 16) * math.pi / 9
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (0.9 + 0.25 * (x // 16)))
    made = 127 + 80 * wave[..., None] + random.normal(0, 25, (n, 48, 48, 3))
    return Pixels.pack(list(made.clip(0, 255).astype(np.uint8)))


def a_method(**arguments: Any) -> RelativePosition:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 48, width=8, stages=2)
    return RelativePosition(encoder, **{"hidden": 16, **arguments}).double()


def views(method: Method, n: int = 4, step: int = 0, plan: Plan | None = None) -> Views:
    encoder = method.encoder
    made = make_views(
        pictures(n, seed=step), plan or method.plan(), seed=0, epoch=step, step=step,
        index=np.arange(n), image_size=48, mean=encoder.mean, std=encoder.std,
    )  # fmt: skip
    return made.to(dtype=torch.float64)


def order_of(view: View) -> Tensor:
    assert view.made is not None
    assert view.made.order is not None
    return view.made.order


def by_hand(method: RelativePosition, view: View, order: Tensor) -> list[list[float]]:
    """-log probability of its place for every tile around the centre, one pair at a time."""
    found = []
    n = view.data.shape[-1]
    for image, row in zip(view.data, order.tolist(), strict=True):
        z = []
        for k in range(9):
            tile = image[:, k * n : (k + 1) * n]
            scaled = (tile - tile.mean()) / (tile.var(correction=0) + 1e-5).sqrt()
            z.append(method.encoder(scaled[None])[0])
        found.append([])
        for place, cell in enumerate(AROUND):
            pair = torch.cat([z[row.index(4)], z[row.index(cell)]])
            scores = method.head(pair[None])[0].tolist()
            total = math.log(sum(math.exp(s) for s in scores))
            found[-1].append(total - scores[place])
    return found


def test_energy_is_the_loop_over_pairs_of_tiles() -> None:
    method = a_method().eval()
    whole = views(method)
    (x,) = whole.main
    expected = [sum(row) / 8 for row in by_hand(method, x, order_of(x))]
    assert method.energy(x, order_of(x)).tolist() == pytest.approx(expected, rel=1e-9)
    loss = method.loss(whole, 0.0)
    assert loss.total.item() == pytest.approx(sum(expected) / 4, rel=1e-9)
    ((_, other),) = whole.mismatched()
    assert isinstance(other, Tensor)
    expected = [sum(row) / 8 for row in by_hand(method, x, other)]
    assert method.energy(x, other).tolist() == pytest.approx(expected, rel=1e-9)


def test_pull_and_push_are_cross_entropy() -> None:
    method = a_method()
    whole = views(method)
    logits = method.logits(whole.main[0], order_of(whole.main[0]))
    assert logits.shape == (4, 8, 8)
    labels = torch.arange(8).repeat(4)
    loss = method.loss(whole, 0.0)
    assert (loss.pull.keys(), loss.push.keys()) == ({"position"}, {"other positions"})
    expected = F.cross_entropy(logits.reshape(32, 8), labels).item()
    assert loss.total.item() == pytest.approx(expected, rel=1e-10)
    push = logits.exp().sum(dim=2).log().mean().item()
    assert loss.push["other positions"].item() == pytest.approx(push, rel=1e-10)


def test_only_the_layout_counts_not_where_a_tile_stands() -> None:
    """Tiles and their order shuffled alike: the same puzzle."""
    method = a_method().eval()
    (x,) = views(method).main
    shuffle = torch.tensor([8, 3, 0, 4, 1, 7, 5, 2, 6])
    tiles = x.data.reshape(4, 3, 9, -1, x.data.shape[-1])[:, :, shuffle].reshape(x.data.shape)
    assert x.made is not None
    mixed = replace(x, data=tiles, made=replace(x.made, order=order_of(x)[:, shuffle]))
    assert torch.allclose(
        method.energy(mixed, order_of(mixed)), method.energy(x, order_of(x)), atol=1e-12
    )
    assert not torch.allclose(method.energy(mixed, order_of(x)), method.energy(x, order_of(x)))


def test_brightness_and_contrast_of_a_tile_tell_nothing() -> None:
    method = a_method().eval()
    (x,) = views(method).main
    data, n = x.data.clone(), x.data.shape[-1]
    for k in range(9):
        data[:, :, k * n : (k + 1) * n] = (1 + k) * data[:, :, k * n : (k + 1) * n] + k
    changed = method.energy(x.with_data(data), order_of(x))
    assert torch.allclose(changed, method.energy(x, order_of(x)), rtol=1e-3)


def test_guessing_costs_log_8() -> None:
    method = a_method()
    for parameter in method.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    assert method.loss(views(method), 0.0).total.item() == pytest.approx(math.log(8))


def test_everything_learns() -> None:
    method = a_method()
    method.loss(views(method), 0.0).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_plan_closes_the_shortcuts_as_the_paper_does() -> None:
    plan = a_method().plan()
    (view,) = plan.main
    assert plan.pairs == "order"
    paper = Tiles(grid=(3, 3), gap=34 / 144, jitter=14 / 144, drop=1.0)
    assert view.tiles == paper
    assert paper.pixels(432) == (144, 96, 14)
    (other,) = a_method(gap=0.5, jitter=0.1, drop=0.25, crop=0.7).plan().main
    assert other.tiles == Tiles(gap=0.5, jitter=0.1, drop=0.25)
    assert other.crop == (0.7, 1.0)


def test_needs_one_view_of_tiles() -> None:
    method = a_method()
    whole = views(method, plan=Plan(main=(LIGHT,)))
    with pytest.raises(ValueError, match=r"RelativePosition needs .* tiles"):
        method.loss(whole, 0.0)
    with pytest.raises(ValueError, match="needs 1 main view"):
        method.loss(views(method, plan=Plan(main=(LIGHT, LIGHT))), 0.0)


def test_it_learns_where_tiles_belong() -> None:
    """From tiles whose stripes tell it; the energy of other layouts stays up."""
    torch.manual_seed(0)
    encoder = build_encoder("conv", 48, width=16, stages=2)
    method = RelativePosition(encoder, hidden=32, drop=0.3)
    plan = replace(method.plan().main[0], crop=None, flip=0.0)
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    for step in range(30):
        whole = views(method, 24, step, Plan(main=(plan,), pairs="order")).to(dtype=torch.float32)
        optimiser.zero_grad()
        method.loss(whole, 0.0).total.backward()
        optimiser.step()
    whole = views(method, 24, 99, Plan(main=(plan,), pairs="order")).to(dtype=torch.float32)
    (x,) = whole.main
    ((_, other),) = whole.mismatched()
    assert isinstance(other, Tensor)
    with torch.no_grad():
        method.eval()
        right = method.logits(x, order_of(x)).argmax(dim=2) == torch.arange(8)
        assert right.float().mean() > 0.7  # chance is 0.125
        assert (method.energy(x, order_of(x)) < method.energy(x, other)).all()


def test_two_tasks_take_turns_on_one_trunk() -> None:
    """Methods that are given the same encoder share it; each batch trains the head of its task."""
    torch.manual_seed(0)
    encoder = build_encoder("conv", 48, width=16, stages=2)
    position, rotation = RelativePosition(encoder, hidden=32, drop=0.3), Rotation(encoder)
    heads = {position: position.head, rotation: rotation.classifier}
    plans = {
        task: Plan(
            main=tuple(replace(view, crop=None, flip=0.0) for view in task.plan().main),
            pairs=task.plan().pairs,
        )
        for task in heads
    }
    weights = {*position.parameters(), *rotation.parameters()}
    assert len(weights) == sum(len([*m.parameters()]) for m in (encoder, *heads.values()))
    optimiser = torch.optim.Adam(weights, lr=1e-2)
    for step in range(60):
        task, other = (position, rotation) if step % 2 else (rotation, position)
        optimiser.zero_grad()
        batch = views(task, 16, step, plans[task]).to(dtype=torch.float32)
        task.train().loss(batch, 0.0).total.backward()
        assert all(p.grad is not None for m in (encoder, heads[task]) for p in m.parameters())
        assert all(p.grad is None for p in heads[other].parameters())
        optimiser.step()
    with torch.no_grad():
        (tiles,) = views(position, 24, 99, plans[position]).to(dtype=torch.float32).main
        found = position.eval().logits(tiles, order_of(tiles)).argmax(dim=2)
        assert (found == torch.arange(8)).float().mean() > 0.5  # chance is 0.125
        turns = views(rotation, 24, 99, plans[rotation]).to(dtype=torch.float32).main
        found = torch.stack([rotation.eval().logits(view).argmax(dim=1) for view in turns])
        assert (found == torch.arange(4)[:, None]).float().mean() > 0.6  # chance is 0.25
