"""Colourisation (Zhang et al. 2016)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.decoder import ConvDecoder
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views

NEAREST = 5
"""Bins that share a colour."""


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
    bins: Tensor
    frequencies: Tensor

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
        if not encoder.mean or encoder.image_size % 4:
            raise ValueError(
                f"colourisation needs images of a side that is a multiple of 4 (got {encoder.name} "
                f"for {encoder.image_size}). Use an encoder of images and another size."
            )
        self.step, self.mixing, self.momentum, self.crop = step, mixing, momentum, crop
        levels = torch.linspace(0, 1, 33)
        colours = torch.cartesian_prod(levels, levels, levels).T[None, :, :, None]  # [1 3 n 1]
        reached = (lab(colours)[0, 1:, :, 0].T / step).round()
        bins = step * reached.unique(dim=0)
        self.register_buffer("bins", bins)  # [Q 2]
        self.register_buffer("frequencies", torch.full((len(bins),), 1 / len(bins)))
        side = encoder.image_size // 4
        self.decoder = ConvDecoder(encoder.dim, side, width=width, patch=1, channels=len(bins))

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(self.crop, 1.0)),), pairs="itself")

    def lab_of(self, data: Tensor) -> Float[Tensor, "b 3 h w"]:
        unit = View(data, mean=self.encoder.mean, std=self.encoder.std).unit()
        return lab(energy.at_least_float32(unit).clamp(0, 1))

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """Of the lightness alone, as a grey image."""
        mean, std = (
            data.new_tensor(v).view(1, 3, 1, 1) for v in (self.encoder.mean, self.encoder.std)
        )
        grey = self.lab_of(data)[:, :1] / 100
        return self.encoder(((grey - mean) / std).to(data.dtype))

    def target(self, data: Tensor) -> Float[Tensor, "n q"]:
        """t of every place, image by image and row by row."""
        colours = nn.functional.avg_pool2d(self.lab_of(data)[:, 1:], 4)  # [b 2 h/4 w/4]
        squared = energy.to_prototypes(colours.movedim(1, -1).flatten(0, 2), self.bins)
        near = squared.topk(NEAREST, dim=1, largest=False)
        shares = (-near.values / (2 * (self.step / 2) ** 2)).softmax(dim=1)
        return torch.zeros_like(squared).scatter(1, near.indices, shares)

    def rarity(self) -> Float[Tensor, " q"]:
        """w of every bin."""
        p = self.frequencies
        w = 1 / ((1 - self.mixing) * p + self.mixing / len(p))
        return w / (p * w).sum()

    def misfit(self, x: View, target: Float[Tensor, "n q"]) -> Float[Tensor, " b"]:
        scores = self.decoder(self.encode(x.data)).movedim(1, -1).flatten(0, 2)  # [n q]
        weights = self.rarity().to(target)[target.argmax(dim=1)]
        errors = weights * energy.cross_entropy(scores, target)
        return errors.reshape(len(x), -1).mean(dim=1)

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return self.misfit(x, self.target(y.data))

    @torch.no_grad()
    def remember(self, target: Float[Tensor, "n q"]) -> None:
        """Let the running frequencies follow those of the global batch."""
        seen = distributed.mean(target).to(self.frequencies)
        self.frequencies.lerp_(seen, 1 - self.momentum)

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        target = self.target(view.data)
        if self.training:
            self.remember(target)
        return Loss(pull={"colour": distributed.mean(self.misfit(view, target))})


@energy.full_precision
def lab(rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """CIE Lab (D65) of sRGB in [0, 1]: L in [0, 100], a and b in about [-110, 110]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = rgb.new_tensor(  # IEC 61966-2-1, each row divided by its sum: white becomes 1, 1, 1
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    to_xyz = to_xyz / to_xyz.sum(dim=1, keepdim=True)
    xyz = torch.einsum("oi,bihw->bohw", to_xyz, linear)
    d = 6 / 29
    f = torch.where(xyz > d**3, xyz.clamp_min(d**3) ** (1 / 3), xyz / (3 * d**2) + 4 / 29)
    x, y, z = f.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
