"""Denoising autoencoder (Vincent et al. 2008, 2010)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy, noise
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.decoder import decoder_for
from erg.views.plan import LIGHT, Augmentation, Plan
from erg.views.types import View, Views


class DenoisingAutoencoder(Method):
    """F(y) = ||y - r(y)||^2 / (d var y) with r trained to undo a corruption: r(y~) ~ y.

    Vincent et al. 2010, eq. 5 and 6 (squared error); for small Gaussian noise r(y) - y points up
    the density (Alain & Bengio 2014). Capacity is limited by the encoder's width, and the
    corruption keeps r from being the identity: both keep F from being low everywhere.

    Departs from the paper: convolutional; the energy of an image is its reconstruction error
    without corruption, and relative to the variance of its pixels (0.01 at least), without which
    pale images have a low energy for being pale. Vectors have the plain error.
    Checked against: loops; the closed form on Gaussian data.

    Args:
        noise: standard deviation of Gaussian noise [fraction of the full range].
        zeroed: probability with which a pixel is set to the mean colour.
        extreme: probability with which a pixel becomes white or black, with equal chances (salt and
            pepper); a feature of a vector the largest or the least value of any seen so far, or 0.
        relative: whether the error of an image is divided by the variance of its pixels.
        width: channels of the decoder before its last layer.
    """

    cell = Cell("latent-variable", "architectural", by="corruption and a narrow code")
    least: Tensor
    largest: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        noise: float = 0.1,
        zeroed: float = 0.0,
        extreme: float = 0.0,
        relative: bool = True,
        width: int = 32,
    ) -> None:
        super().__init__(encoder)
        if not 0 <= extreme <= 1:
            raise ValueError(f"extreme is a probability in [0, 1] (got {extreme}).")
        self.noise, self.zeroed, self.extreme = noise, zeroed, extreme
        self.relative = relative and bool(encoder.mean)
        self.decoder = decoder_for(encoder, encoder.dim, width=width)

        if extreme:  # of normalised pixels, black and white; of vectors what is seen
            mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
            for name, end in (("least", 0.0), ("largest", 1.0)):
                value = (end - mean) / std if encoder.mean else torch.tensor(0.0)
                self.register_buffer(name, value)

    def plan(self) -> Plan:
        clean: Augmentation = replace(LIGHT, crop=(0.5, 1.0))
        corrupted = replace(clean, noise=self.noise, zeroed=self.zeroed, same_as=0)
        return Plan(main=(clean, corrupted), pairs="alone")

    def reconstruct(self, data: Tensor) -> Tensor:
        """r(y), of the shape of y."""
        return self.decoder(self.encoder(data))

    def error(self, given: Tensor, y: Tensor) -> Float[Tensor, " b"]:
        """||y - r(given)||^2 / d, divided by the variance of y where that is wanted."""
        error = energy.mean_squared_error(self.reconstruct(given), y)
        if not self.relative:
            return error
        variance = energy.at_least_float32(y).var(dim=(2, 3), correction=0).mean(dim=1)
        return error / variance.clamp_min(0.01)

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return self.error(y.data, y.data)

    def peppered(self, views: Views) -> Tensor:
        """The corrupted data, with values at the ends of their range besides."""
        clean, corrupted = (view.data for view in views.main)
        if not self.extreme:
            return corrupted
        if self.training and clean.ndim == 2:
            ends = distributed.gather(torch.stack([clean.amin(dim=1), clean.amax(dim=1)], dim=1))
            self.least.copy_(torch.minimum(self.least, ends[:, 0].amin()))
            self.largest.copy_(torch.maximum(self.largest, ends[:, 1].amax()))
        places = clean.shape[1:] if clean.ndim == 2 else (1, *clean.shape[2:])
        drawn = noise.uniform(views.index, *places, purpose="extreme", step=views.step)
        low, high = self.least.to(corrupted), self.largest.to(corrupted)
        ends_of_range = torch.where(drawn < self.extreme / 2, low, high)
        return torch.where(drawn < self.extreme, ends_of_range, corrupted)

    def loss(self, views: Views, progress: float) -> Loss:
        clean, _ = views.need(2)
        error = self.error(self.peppered(views), clean.data)
        return Loss(pull={"reconstruction": distributed.mean(error)})
