"""Tiles of an image: embedded one by one, and the questions where they belong and how they stand.

What relative position, the jigsaw and several tasks at once share. Letters in shapes: p tiles.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from erg import energy
from erg.parts.encoder import Encoder
from erg.parts.norm import BatchNorm
from erg.views.types import View

CENTRE = 4
"""The middle cell of a 3 x 3 grid, row-major."""


def embed_tiles(encoder: Encoder, view: View) -> Float[Tensor, "b p d"]:
    """A vector of each tile, on its own and with mean 0 and deviation 1: neither brightness nor
    contrast tells where it is from."""
    tiles = view.tiles()
    return encoder(layer_norm(tiles, tiles.shape[1:])).unflatten(0, (len(view), -1))


def place_scores(
    head: nn.Module, z: Float[Tensor, "b 9 d"], order: Int[Tensor, "b 9"]
) -> Float[Tensor, "b 8 8"]:
    """Of every place around the centre, scores of being each of them (Doersch et al. 2015).

    Args:
        head: from a pair of vectors, that of the centre first, to eight scores.
        z: of the tiles as they stand.
        order: the cell of the 3 x 3 grid, row-major, that each is said to be from.
    """
    tile_of = order.argsort(dim=1)  # of each cell
    z = z.gather(1, tile_of[:, :, None].expand_as(z))
    around = torch.cat([z[:, :CENTRE], z[:, CENTRE + 1 :]], dim=1)  # [b 8 d]
    pairs = torch.cat([z[:, CENTRE, None].expand_as(around), around], dim=2)  # [b 8 2d]
    return energy.at_least_float32(head(pairs.flatten(0, 1))).unflatten(0, (-1, 8))


def of_places(scores: Float[Tensor, "b 8 8"]) -> Float[Tensor, " b"]:
    """-1/8 sum_k log softmax(s_k)_k: the energy of the layout that the scores are of."""
    places = torch.arange(8, device=scores.device).repeat(len(scores))
    return energy.of_class(scores.flatten(0, 1), places).reshape(-1, 8).mean(dim=1)


class OrderHead(nn.Module):
    """Scores of k orders, W [g(z_1), ..., g(z_p)]: in which the p tiles of an image stand (Noroozi
    & Favaro 2016).

    Args:
        dim: width of z [features].
        grid: rows, and columns; p = grid^2.
        orders: k, at most all p!.
        width: of g(z) [features].
    """

    orders: Tensor

    def __init__(self, dim: int, grid: int, *, orders: int = 100, width: int = 256) -> None:
        super().__init__()
        chosen = far_orders(grid**2, min(orders, math.factorial(grid**2)))
        self.register_buffer("orders", chosen)  # [k p]
        self.each = nn.Sequential(nn.Linear(dim, width), BatchNorm(width), nn.ReLU())
        self.classifier = nn.Linear(grid**2 * width, len(chosen))

    def known(self) -> tuple[tuple[int, ...], ...]:
        """The orders, for a plan."""
        return tuple(map(tuple, self.orders.tolist()))

    def forward(self, z: Float[Tensor, "b p d"]) -> Float[Tensor, "b k"]:
        g = self.each(z.flatten(0, 1))  # [bp width]
        return energy.at_least_float32(self.classifier(g.reshape(len(z), -1)))

    def of_order(self, scores: Float[Tensor, "b k"], y: Int[Tensor, "b p"]) -> Float[Tensor, " b"]:
        """The score of an order; that of one which is not among the k is -inf."""
        same = (y[:, None] == self.orders).all(dim=2)  # [b k]
        return scores.masked_fill(~same, float("-inf")).amax(dim=1)


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
