"""Colourisation (Zhang et al. 2016)."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from erg import distributed
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.colours import ColourHead, lightness
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views


class Colourisation(Method):
    """F(x, y) = -mean_p w_p sum_q t_pq log softmax(r(x)_p)_q: x the lightness of an image, y its
    colours.

    Zhang et al. 2016, eq. 2 to 4. Colours are the a and b of CIE Lab, on a grid of the bins that
    sRGB reaches; t shares a colour among its 5 nearest bins by their distance. w is inverse to how
    common the colour is, ((1 - mixing) p_q + mixing / Q)^-1 with mean 1 over p: else all would come
    out grey. The softmax pushes every other colour up. The encoder sees lightness alone, and so it
    does afterwards: `encode` takes the colours out.

    Departs from the paper: colours, at a quarter of the image's side, are made from one vector; p
    is a running mean over the images seen, not blurred over the bins; the bins and their number
    follow from `step`, by default twice the paper's 10, since one vector tells few colours apart.
    Checked against: Lab from the chromaticities of sRGB's primaries; loops over pixels.

    Args:
        step: side of a bin [units of a and b].
        mixing: of the frequencies of colours with equal ones, in (0, 1].
        momentum: of the running mean of the frequencies, per step.
        width: channels of the decoder before its last layer.
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over colours")
    batch_coupled = True  # by the frequencies of colours

    def __init__(
        self,
        encoder: Encoder,
        *,
        step: float = 20.0,
        mixing: float = 0.5,
        momentum: float = 0.99,
        width: int = 32,
        crop: float = 0.3,
    ) -> None:
        super().__init__(encoder)
        self.head = ColourHead(encoder, step=step, mixing=mixing, momentum=momentum, width=width)
        self.crop = crop

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(self.crop, 1.0)),), pairs="itself")

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """Of the lightness alone, as a grey image."""
        return self.encoder(lightness(data, self.encoder.mean, self.encoder.std))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return self.head.misfit(self.encode(x.data), self.head.target(y.data))

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        target = self.head.target(view.data)
        if self.training:
            self.head.remember(target)
        errors = self.head.misfit(self.encode(view.data), target)
        return Loss(pull={"colour": distributed.mean(errors)})
