"""Denoising autoencoder (Vincent et al. 2008, 2010)."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy
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
        relative: whether the error of an image is divided by the variance of its pixels.
        width: channels of the decoder before its last layer.
    """

    cell = Cell("latent-variable", "architectural", by="corruption and a narrow code")

    def __init__(
        self,
        encoder: Encoder,
        *,
        noise: float = 0.1,
        zeroed: float = 0.0,
        relative: bool = True,
        width: int = 32,
    ) -> None:
        super().__init__(encoder)
        self.noise, self.zeroed = noise, zeroed
        self.relative = relative and bool(encoder.mean)
        self.decoder = decoder_for(
            encoder.dim, encoder.image_size, image=bool(encoder.mean), width=width
        )

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

    def loss(self, views: Views, progress: float) -> Loss:
        clean, corrupted = views.need(2)
        error = self.error(corrupted.data, clean.data)
        return Loss(pull={"reconstruction": distributed.mean(error)})
