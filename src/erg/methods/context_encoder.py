"""Context encoder (Pathak et al. 2016)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.decoder import ConvDecoder
from erg.parts.hidden import hidden_pixels
from erg.views.plan import Augmentation, Masking, Plan
from erg.views.types import View, Views

SQUARES = 8
"""Squares along a side, of which some are hidden where the region is random."""


class ContextEncoder(Method):
    """F(x, y) = sum_p w_p (y_p - r(x)_p)^2 / sum_p w_p, over the pixels p of a hole in x.

    Pathak et al. 2016, eq. 1, without the adversary. x is an image with the mean colour in a hole,
    y what was there. The hole is a centred square, whose border stays visible and counts 10 times,
    so that there is no seam; or a quarter of the image in random squares. r is made from one
    vector: what fits into the hole has to be told from its surroundings.

    Departs from the paper: no adversary; random regions are squares instead of blobs; the decoder
    makes the whole image, of which the hole counts.
    Checked against: loops over pixels.

    Args:
        region: a hole in the `centre`, or `random` squares.
        hole: side of the centred hole, as a fraction of the image's.
        border: width of its visible border, as a fraction of the image's side.
        border_weight: w of the border; 1 inside.
        ratio: share of the image that random squares hide.
        width: channels of the decoder before its last layer.
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell(
        "latent-variable", "architectural", by="a hole, and a narrow code of what is around"
    )

    def __init__(
        self,
        encoder: Encoder,
        *,
        region: Literal["centre", "random"] = "centre",
        hole: float = 0.5,
        border: float = 1 / 32,
        border_weight: float = 10.0,
        ratio: float = 0.25,
        width: int = 32,
        crop: float = 0.5,
    ) -> None:
        super().__init__(encoder)
        size = encoder.image_size
        if not 2 * border < hole <= 1:
            raise ValueError(
                f"a hole of {hole} with borders of {border} is empty or larger than the image. "
                "Choose hole at most 1 and more than two borders."
            )
        if region == "random" and size % SQUARES:
            raise ValueError(
                f"{SQUARES} squares do not fill an image of {size} pixels. Use a multiple of "
                f"{SQUARES}, or region = centre."
            )
        self.region, self.ratio, self.crop = region, ratio, crop
        self.hole, self.border, self.border_weight = hole, border, border_weight
        self.decoder = ConvDecoder(encoder.dim, size, width=width)

    def plan(self) -> Plan:
        masking = Masking(grid=(SQUARES, SQUARES), ratio=self.ratio)
        view = Augmentation(
            crop=(self.crop, 1.0), mask=masking if self.region == "random" else None
        )
        return Plan(main=(view,), pairs="itself")

    def hidden(self, x: View) -> Bool[Tensor, "b 1 h w"]:
        """Where x is hidden."""
        if self.region == "centre":
            return self.square(x, round(self.border * x.data.shape[-1]))
        return hidden_pixels(x.need_mask("ContextEncoder"), x.data.shape[-1] // SQUARES)

    def square(self, x: View, margin: int) -> Bool[Tensor, "b 1 h w"]:
        """The centred hole without a margin."""
        size = x.data.shape[-1]
        side = round(self.hole * size)
        first = (size - side) // 2
        inside = slice(first + margin, first + side - margin)
        found = torch.zeros(len(x), 1, size, size, dtype=torch.bool, device=x.data.device)
        found[:, :, inside, inside] = True
        return found

    def weights(self, x: View) -> Float[Tensor, "b 1 h w"]:
        """w: 0 outside, `border_weight` on the visible border of a hole, 1 where x is hidden."""
        w = self.hidden(x).to(x.data)
        if self.region == "centre":
            w = torch.where(self.square(x, 0) & (w == 0), self.border_weight, w)
        return w

    def predict(self, x: View) -> Float[Tensor, "b c h w"]:
        """The whole image from x without what its hole hides."""
        return self.decoder(self.encoder(torch.where(self.hidden(x), 0, x.data)))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        w = self.weights(x)
        errors = (energy.at_least_float32(self.predict(x)) - y.data).square().mean(dim=1)
        return (w[:, 0] * errors).flatten(1).sum(dim=1) / w.flatten(1).sum(dim=1)

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        return Loss(pull={"reconstruction": distributed.mean(self.energy(view, view))})
