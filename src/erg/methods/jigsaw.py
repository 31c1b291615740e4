"""Jigsaw puzzles (Noroozi & Favaro 2016)."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.norm import BatchNorm
from erg.views.plan import LIGHT, Plan, Tiles
from erg.views.types import View, Views


class Jigsaw(Method):
    """F(x, y) = -log softmax(W [g(z_1), ..., g(z_n)])_y: y the order of the n tiles of x.

    Noroozi & Favaro 2016, section 3: each tile is embedded on its own, z_i, by the same encoder; y
    is one of k orders that are far from each other (`far_orders`), and F of any other order is
    infinite. Against shortcuts the places of tiles are jittered, some images are grey, and each
    tile has mean 0 and deviation 1.

    Departs from the paper: the next order is the one furthest from its nearest among those chosen,
    and then on the mean (there: on the mean alone, from a random first one); colour channels are
    not shifted against each other; batch normalisation in g; one layer W.
    Checked against: loops over tiles and orders; the greedy definition of the orders.

    Args:
        grid: rows, and columns; 0 takes 3, and 2 for images of less than 64 pixels.
        orders: k, at most all n!.
        gap: smallest distance of two tiles [fraction of a cell's side]; 1 of 75 pixels.
        jitter: range of a tile's place [fraction of a cell's side]; 10 of 75 pixels.
        drop: probability that a tile keeps one colour channel only, the others being noise.
        grey: probability that an image is grey.
        crop: smallest crop that is cut into tiles, as a fraction of the image's area.
        width: of g(z) [features].
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over the orders")
    orders: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        grid: int = 0,
        orders: int = 100,
        gap: float = 1 / 75,
        jitter: float = 10 / 75,
        drop: float = 0.0,
        grey: float = 0.3,
        crop: float = 0.3,
        width: int = 256,
    ) -> None:
        super().__init__(encoder)
        grid = grid or (3 if encoder.image_size >= 64 else 2)
        chosen = far_orders(grid**2, min(orders, math.factorial(grid**2)))
        self.register_buffer("orders", chosen)  # [k n]
        self.tiles = Tiles(
            grid=(grid, grid), gap=gap, jitter=jitter, drop=drop,
            orders=tuple(map(tuple, chosen.tolist())),
        )  # fmt: skip
        self.grey, self.crop = grey, crop
        self.each = nn.Sequential(nn.Linear(encoder.dim, width), BatchNorm(width), nn.ReLU())
        self.classifier = nn.Linear(grid**2 * width, len(chosen))

    def plan(self) -> Plan:
        view = replace(LIGHT, crop=(self.crop, 1.0), grey=self.grey, tiles=self.tiles)
        return Plan(main=(view,), pairs="order")

    def logits(self, view: View) -> Float[Tensor, "b k"]:
        tiles = view.tiles()
        z = self.each(self.encoder(layer_norm(tiles, tiles.shape[1:])))  # [bn width]
        return energy.at_least_float32(self.classifier(z.reshape(len(view), -1)))

    def of_order(self, logits: Float[Tensor, "b k"], y: Int[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """The logit of an order; that of one which is not among the k is -inf."""
        same = (y[:, None] == self.orders).all(dim=2)  # [b k]
        return logits.masked_fill(~same, float("-inf")).amax(dim=1)

    def energy(self, x: View, y: Int[Tensor, "b n"]) -> Float[Tensor, " b"]:
        logits = self.logits(x)
        return logits.logsumexp(dim=1) - self.of_order(logits, y)

    def loss(self, views: Views, progress: float) -> Loss:
        (x,) = views.need(1)
        if x.made is None or x.made.order is None:
            raise ValueError("Jigsaw needs a view cut into tiles. Use its plan.")
        logits = self.logits(x)
        return Loss(
            pull={"order": -distributed.mean(self.of_order(logits, x.made.order))},
            push={"other orders": distributed.mean(logits.logsumexp(dim=1))},
        )


def far_orders(n: int, k: int) -> Int[Tensor, "k n"]:
    """k orders of n things that differ in many places, chosen greedily, 0 1 ... n - 1 first.

    The next one is that whose Hamming distance to its nearest among those chosen is largest; of
    several, that of the largest mean distance; of several, the first in lexicographic order.

    Raises:
        ValueError: fewer than two things, more than nine (10! orders are too many to look at), or
            more orders than there are.
    """
    if not (2 <= n <= 9 and 1 <= k <= math.factorial(n)):
        raise ValueError(
            f"there are no {k} orders of {n} things to choose. Take 2 to 9 things, a grid of 3 at "
            "most, and 1 to n! orders."
        )
    every = torch.zeros(0, 1, dtype=torch.int8)  # an order per column
    for m in range(1, n + 1):  # in lexicographic order: the first thing, then those left over
        first = torch.arange(m, dtype=torch.int8).repeat_interleave(every.shape[1])
        rest = every.repeat(1, m)
        every = torch.cat([first[None], rest + (rest >= first)])
    most = torch.zeros(every.shape[1], dtype=torch.int32)  # places in common with the nearest
    total = torch.zeros_like(most)  # and with all of them
    chosen = [0]
    while len(chosen) < k:
        same = (every == every[:, chosen[-1], None]).sum(dim=0, dtype=torch.int32)
        most, total = torch.maximum(most, same), total + same
        chosen.append(int((most * (n * k + 1) + total).argmin()))
    return every[:, chosen].T.long().contiguous()
