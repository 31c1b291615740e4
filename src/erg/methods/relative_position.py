"""Relative position of tiles (Doersch et al. 2015, context prediction)."""

from dataclasses import replace

from jaxtyping import Float, Int
from torch import Tensor

from erg import distributed
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.heads import mlp
from erg.parts.tiles import embed_tiles, of_places, place_scores
from erg.views.plan import LIGHT, Plan, Tiles
from erg.views.types import View, Views


class RelativePosition(Method):
    """F(x, y) = -1/8 sum_k log softmax(h(z_0, z_k))_k: nine tiles x, laid out as the order y says.

    Doersch et al. 2015, section 3: z_0 embeds the tile that y puts in the centre of a 3 x 3 grid,
    z_k the one it puts at the k-th of the eight places around; h is to tell k from the two. Against
    shortcuts there are gaps between tiles, a jitter of their places, and colour dropping; and each
    tile has mean 0 and deviation 1, so that neither brightness nor contrast tells it.

    Departs from the paper: the eight pairs of one grid per image rather than all neighbours of
    several grids; no tile is made coarser; batch normalisation in h.
    Checked against: loops over pairs of tiles, softmax by hand.

    Args:
        gap: smallest distance of two tiles [fraction of a cell's side]; 34 of 144 pixels.
        jitter: range of a tile's place [fraction of a cell's side]; 14 of 144 pixels.
        drop: probability that a tile keeps one colour channel only, the others being noise.
        crop: smallest crop that is cut into tiles, as a fraction of the image's area.
        hidden: width of the hidden layer of h [features].
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over the eight positions")

    def __init__(
        self,
        encoder: Encoder,
        *,
        gap: float = 34 / 144,
        jitter: float = 14 / 144,
        drop: float = 1.0,
        crop: float = 0.3,
        hidden: int = 512,
    ) -> None:
        super().__init__(encoder)
        self.tiles, self.crop = Tiles(grid=(3, 3), gap=gap, jitter=jitter, drop=drop), crop
        self.head = mlp(2 * encoder.dim, hidden, 8)

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(self.crop, 1.0), tiles=self.tiles),), pairs="order")

    def logits(self, view: View, order: Int[Tensor, "b 9"]) -> Float[Tensor, "b 8 8"]:
        """Of every place around the centre, scores of being each of them."""
        return place_scores(self.head, embed_tiles(self.encoder, view), order)

    def energy(self, x: View, y: Int[Tensor, "b 9"]) -> Float[Tensor, " b"]:
        return of_places(self.logits(x, y))

    def loss(self, views: Views, progress: float) -> Loss:
        (x,) = views.need(1)
        if x.made is None or x.made.order is None:
            raise ValueError("RelativePosition needs a view cut into tiles. Use its plan.")
        logits = self.logits(x, x.made.order)
        chosen = logits.diagonal(dim1=1, dim2=2)  # [b 8]
        return Loss(
            pull={"position": -distributed.mean(chosen.mean(dim=1))},
            push={"other positions": distributed.mean(logits.logsumexp(dim=2).mean(dim=1))},
        )
