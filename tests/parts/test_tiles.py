"""Orders of tiles by their greedy definition; places by a loop."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from erg.encoders import build_encoder
from erg.parts.tiles import OrderHead, embed_tiles, far_orders, of_places, place_scores
from erg.views.types import How, View

AROUND = [0, 1, 2, 3, 5, 6, 7, 8]


def random_orders(b: int, p: int) -> torch.Tensor:
    return torch.rand(b, p, generator=torch.Generator().manual_seed(b)).argsort(dim=1)


def test_tiles_are_embedded_one_by_one_without_brightness_and_contrast() -> None:
    encoder = build_encoder("conv", 16, width=8, stages=2).double().eval()
    data = torch.randn(3, 3, 4 * 8, 8, dtype=torch.float64)
    made = How(
        torch.zeros(3, 4), torch.zeros(3).bool(), torch.zeros(3).long(), torch.zeros(3, 2).long(),
        order=random_orders(3, 4),
    )  # fmt: skip
    found = embed_tiles(encoder, View(data, made))
    assert found.shape == (3, 4, encoder.dim)
    for i, k in itertools.product(range(3), range(4)):
        tile = data[i, :, 8 * k : 8 * k + 8]
        scaled = (tile - tile.mean()) / (tile.var(correction=0) + 1e-5).sqrt()
        assert torch.allclose(found[i, k], encoder(scaled[None])[0], atol=1e-10)


def test_scores_of_places_are_those_of_every_pair_with_the_centre() -> None:
    torch.manual_seed(0)
    head = nn.Linear(10, 8).double()
    z, order = torch.randn(4, 9, 5, dtype=torch.float64), random_orders(4, 9)
    scores = place_scores(head, z, order)
    energies = of_places(scores)
    for i, row in enumerate(order.tolist()):
        total = 0.0
        for k, cell in enumerate(AROUND):
            pair = head(torch.cat([z[i, row.index(4)], z[i, row.index(cell)]]))
            assert torch.allclose(scores[i, k], pair, atol=1e-12)
            said = pair.tolist()
            total += math.log(sum(map(math.exp, said))) - said[k]
        assert energies[i].item() == pytest.approx(total / 8, rel=1e-12)


def test_an_order_that_is_not_among_those_chosen_has_no_score() -> None:
    torch.manual_seed(0)
    head = OrderHead(5, 2, orders=6, width=3)
    assert head.known() == tuple(map(tuple, far_orders(4, 6).tolist()))
    scores = head(torch.randn(24, 4, 5))
    assert scores.shape == (24, 6)
    every = torch.tensor([*itertools.permutations(range(4))])
    found = head.of_order(scores, every)
    for row, order, score in zip(scores, every.tolist(), found, strict=True):
        if tuple(order) in head.known():
            assert score == row[head.known().index(tuple(order))]
        else:
            assert score == float("-inf")
    assert OrderHead(5, 2, width=3).orders.shape == (24, 4)  # no more than there are


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
