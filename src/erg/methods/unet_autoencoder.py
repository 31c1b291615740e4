"""Autoencoder in the form of a U-Net, without the connections that skip its code."""

import itertools
import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views


class UNetAutoencoder(Method):
    """F(y) = ||y - r(y)||^2 / d, r(y) = g(z), z = f(y) the coarsest feature map of the encoder.

    A U-Net (Ronneberger et al. 2015) whose contracting path is the encoder: g enlarges z by two,
    convolves twice, and so on up to the image. Without the connections that hand each finer map of
    f to g, all of y has to pass through z, whose size keeps F from being low everywhere. With
    `skips` they are there: y passes beside z, which carries little then, and F is low for nearly
    every y. That is a lesson, not a way to learn.

    Departs from the paper: unless `transposed`, maps are enlarged by nearest neighbours, which
    leave no checkerboard, and so is the finest map to the image; transposed convolutions are 4 x 4,
    which their stride divides, not 2 x 2; group normalisation; the encoder has as many convolutions
    per stage as it has.
    Checked against: loops; what is lost when z is taken from another image.

    Args:
        skips: whether the finer maps of the encoder reach g.
        transposed: whether g enlarges maps by transposed convolutions, as a convolutional
            autoencoder mirrors its encoder.
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("latent-variable", "architectural", by="a code with few places")

    def __init__(
        self, encoder: Encoder, *, skips: bool = False, transposed: bool = False, crop: float = 0.5
    ) -> None:
        super().__init__(encoder)
        if not encoder.map_widths:
            raise ValueError(
                f"UNetAutoencoder needs the feature maps of every stage; {encoder.name} shows "
                "none. Use conv."
            )
        self.skips, self.crop = skips, crop
        finer, coarsest = encoder.map_widths[:-1], encoder.map_widths[-1]
        widths = [coarsest, *reversed(finer)]
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(a, a, 4, stride=2, padding=1) if transposed else nn.Identity()
            for a in widths[:-1]
        )
        self.steps = nn.ModuleList(
            nn.Sequential(*_convolved(a + b * skips, b), *_convolved(b, b))
            for a, b in itertools.pairwise(widths)
        )
        self.last = nn.Sequential(*_convolved(widths[-1], widths[-1]), nn.Conv2d(widths[-1], 3, 1))

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(self.crop, 1.0)),), pairs="alone")

    def decode(self, maps: list[Tensor], size: int) -> Float[Tensor, "b c h w"]:
        """g: an image of side `size` from the encoder's maps, the finest first.

        Without skips only the last map is looked at, and of the others their sides.
        """
        *finer, x = maps
        for larger, step, skipped in zip(self.enlarge, self.steps, reversed(finer), strict=True):
            # Transposed convolutions double the sides: a last row may be one too many.
            x = interpolate(larger(x), size=skipped.shape[-2:])
            x = step(torch.cat([x, skipped], dim=1) if self.skips else x)
        return self.last(interpolate(x, size=(size, size)))

    def reconstruct(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """r(y)."""
        return self.decode(self.encoder.maps(data), data.shape[-1])

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return energy.mean_squared_error(self.reconstruct(y.data), y.data)

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        return Loss(pull={"reconstruction": distributed.mean(self.energy(None, y))})


def _convolved(fan_in: int, fan_out: int) -> list[nn.Module]:
    convolution = nn.Conv2d(fan_in, fan_out, 3, padding=1)
    return [convolution, nn.GroupNorm(math.gcd(8, fan_out), fan_out), nn.ReLU(inplace=True)]
