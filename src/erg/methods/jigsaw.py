"""Jigsaw puzzles (Noroozi & Favaro 2016)."""

from dataclasses import replace

from jaxtyping import Float, Int
from torch import Tensor

from erg import distributed
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.tiles import OrderHead, embed_tiles
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
        self.head = OrderHead(encoder.dim, grid, orders=orders, width=width)
        self.tiles = Tiles(
            grid=(grid, grid), gap=gap, jitter=jitter, drop=drop, orders=self.head.known()
        )
        self.grey, self.crop = grey, crop

    def plan(self) -> Plan:
        view = replace(LIGHT, crop=(self.crop, 1.0), grey=self.grey, tiles=self.tiles)
        return Plan(main=(view,), pairs="order")

    def logits(self, view: View) -> Float[Tensor, "b k"]:
        return self.head(embed_tiles(self.encoder, view))

    def energy(self, x: View, y: Int[Tensor, "b n"]) -> Float[Tensor, " b"]:
        logits = self.logits(x)
        return logits.logsumexp(dim=1) - self.head.of_order(logits, y)

    def loss(self, views: Views, progress: float) -> Loss:
        (x,) = views.need(1)
        if x.made is None or x.made.order is None:
            raise ValueError("Jigsaw needs a view cut into tiles. Use its plan.")
        logits = self.logits(x)
        return Loss(
            pull={"order": -distributed.mean(self.head.of_order(logits, x.made.order))},
            push={"other orders": distributed.mean(logits.logsumexp(dim=1))},
        )
