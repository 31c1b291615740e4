"""Colours of an image as classes: bins of Lab, how rare each is, and a head that predicts them.

What colourisation and several tasks at once share (Zhang et al. 2016).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.parts.decoder import ConvDecoder
from erg.parts.encoder import Encoder
from erg.views.types import View

NEAREST = 5
"""Bins that share a colour."""


class ColourHead(nn.Module):
    """From a vector to scores of the bins of colours, at a quarter of the image's side; and what
    they should be (Zhang et al. 2016, eq. 2 to 4).

    r are the scores of a place, t the shares of its colour among the nearest bins, w the rarity of
    a bin, 1 in the mean over the colours seen.

    Args:
        encoder: of images, whose vectors it is given.
        step: side of a bin [units of a and b].
        mixing: of the frequencies of colours with equal ones, in (0, 1].
        momentum: of the running mean of the frequencies, per step.
        width: channels of the decoder before its last layer.
    """

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
    ) -> None:
        super().__init__()
        if not encoder.mean or encoder.image_size % 4:
            raise ValueError(
                f"colourisation needs images of a side that is a multiple of 4 (got {encoder.name} "
                f"for {encoder.image_size}). Use an encoder of images and another size."
            )
        self.mean, self.std = encoder.mean, encoder.std
        self.step, self.mixing, self.momentum = step, mixing, momentum
        levels = torch.linspace(0, 1, 33)
        colours = torch.cartesian_prod(levels, levels, levels).T[None, :, :, None]  # [1 3 n 1]
        reached = (lab(colours)[0, 1:, :, 0].T / step).round()
        bins = step * reached.unique(dim=0)
        self.register_buffer("bins", bins)  # [Q 2]
        self.register_buffer("frequencies", torch.full((len(bins),), 1 / len(bins)))
        side = encoder.image_size // 4
        self.decoder = ConvDecoder(encoder.dim, side, width=width, patch=1, channels=len(bins))

    def target(self, data: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "n q"]:
        """t of every place, image by image and row by row."""
        colours = lab_of(data, self.mean, self.std)[:, 1:]
        places = nn.functional.avg_pool2d(colours, 4).movedim(1, -1).flatten(0, 2)  # [n 2]
        squared = energy.to_prototypes(places, self.bins)
        near = squared.topk(NEAREST, dim=1, largest=False)
        # a Gaussian of half a bin: 5 for the paper's 10
        shares = (-near.values / (2 * (self.step / 2) ** 2)).softmax(dim=1)
        return torch.zeros_like(squared).scatter(1, near.indices, shares)

    def rarity(self) -> Float[Tensor, " q"]:
        """w of every bin."""
        p = self.frequencies
        w = 1 / ((1 - self.mixing) * p + self.mixing / len(p))
        return w / (p * w).sum()

    def misfit(self, z: Float[Tensor, "b d"], target: Float[Tensor, "n q"]) -> Float[Tensor, " b"]:
        """-mean_p w_p sum_q t_pq log softmax(r)_pq, r decoded from z."""
        scores = self.decoder(z).movedim(1, -1).flatten(0, 2)  # [n q]
        weights = self.rarity().to(target)[target.argmax(dim=1)]
        errors = weights * energy.cross_entropy(scores, target)
        return errors.reshape(len(z), -1).mean(dim=1)

    @torch.no_grad()
    def remember(self, target: Float[Tensor, "n q"]) -> None:
        """Let the running frequencies follow those of the global batch."""
        seen = distributed.mean(target).to(self.frequencies)
        self.frequencies.lerp_(seen, 1 - self.momentum)


def lab_of(
    data: Float[Tensor, "b 3 h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "b 3 h w"]:
    """Lab of normalised images, in at least float32."""
    unit = View(data, mean=mean, std=std).unit()
    return lab(energy.at_least_float32(unit).clamp(0, 1))


def lightness(
    data: Float[Tensor, "b 3 h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "b 3 h w"]:
    """The lightness of normalised images as grey ones, normalised in the same way."""
    means, stds = (data.new_tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    grey = lab_of(data, mean, std)[:, :1] / 100
    return ((grey - means) / stds).to(data.dtype)


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
