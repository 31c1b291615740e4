"""Convolutional sparse coding (Zeiler et al. 2010): filters instead of atoms at every place."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from erg import distributed, energy, inference
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import Plan, whole
from erg.views.types import View, Views


class ConvolutionalSparseCoding(Method):
    """F(y) = min_z ||y' - sum_k w_k * z_k||^2 / 2 + lambda sum_k ||z_k||_1, y' = (f(y) - m) / s.

    Zeiler et al. 2010, eq. 1 and 2. y' is an image, m its mean colour and s the deviation of its
    pixels over the whole set; each filter w_k, of norm 1, has a map z_k with an entry for every
    place at which it touches the image, found by FISTA. Sparse coding of patches has to learn an
    edge once for each place that it can stand at; here a filter is learned once, for all of them.
    A step of FISTA is one convolution and its transpose.

    Departs from the paper: one layer; the l1 norm by shrinking, not by alternating with an
    auxiliary map; the border of the image is explained by filters that reach over it.
    Checked against: sparse coding whose atoms are the filters at all places; loops; filters that
    made the images, found again.

    Args:
        k: number of filters.
        side: of a filter [pixels of f(y)].
        sparsity: lambda.
        iterations: of FISTA.
    """

    cell = Cell("latent-variable", "regularised", by="an l1 norm on maps, filters of norm 1")
    trains_encoder = False
    mean: Tensor
    scale: Tensor
    started: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        k: int = 64,
        side: int = 7,
        sparsity: float = 0.5,
        iterations: int = 30,
    ) -> None:
        super().__init__(encoder)
        channels = len(encoder.mean) or 1
        rows = math.isqrt(encoder.dim // channels)
        if channels * rows**2 != encoder.dim or side > rows:
            raise ValueError(
                f"ConvolutionalSparseCoding needs square images of at least {side} pixels a side, "
                f"which the {encoder.dim} features of {encoder.name} are not. Use the encoder "
                "pixels, or vectors of the pixels of grey squares."
            )
        self.shape = (channels, rows, rows)
        self.sparsity, self.iterations = sparsity, iterations
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(()))
        drawn = energy.normalise(torch.randn(k, channels * side**2))
        self.filters = nn.Parameter(drawn.reshape(k, channels, side, side))

    def plan(self) -> Plan:
        return whole()

    def centred(self, data: Tensor) -> Float[Tensor, "b c h w"]:
        """y'."""
        image = energy.at_least_float32(self.encoder(data)).unflatten(1, self.shape)
        return (image - self.mean) / self.scale

    @energy.full_precision
    def made(self, z: Float[Tensor, "b k i j"]) -> Float[Tensor, "b c h w"]:
        """sum_k w_k * z_k where the image is."""
        return conv2d(z, self.filters.transpose(0, 1))

    def curvature(self) -> Tensor:
        """Of ||y - made(z)||^2 / 2 in z, at most: the largest power of all filters at a frequency
        (exact for grey images without an end)."""
        around = self.shape[1] + 2 * (self.filters.shape[-1] - 1)
        power = torch.fft.rfft2(self.filters, s=(around, around)).abs().square()
        return power.sum(dim=(0, 1)).amax()

    @torch.no_grad()
    @energy.full_precision
    def infer(self, y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """argmin_z, by FISTA from z = 0."""
        filters = self.filters.transpose(0, 1)
        return inference.proximal_gradient(
            lambda z: conv_transpose2d(conv2d(z, filters) - y, filters),
            torch.zeros_like(conv_transpose2d(y, filters)),
            (1 + 1e-6) * self.curvature(), self.sparsity, iterations=self.iterations,
        )  # fmt: skip

    def of_code(
        self, y: Float[Tensor, "b c h w"], z: Float[Tensor, "b k i j"]
    ) -> Float[Tensor, " b"]:
        """E(y, z)."""
        error = energy.squared_distance(y, self.made(z)) / 2
        return error + self.sparsity * z.abs().flatten(1).sum(dim=1)

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        given = self.centred(y.data)
        return self.of_code(given, self.infer(given))

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        return Loss(pull={"energy": distributed.mean(self.energy(None, view))})

    def encode(self, data: Tensor) -> Float[Tensor, "b k"]:
        """How much of each filter there is: the mean of |z_k| over the map."""
        return self.infer(self.centred(data)).abs().mean(dim=(2, 3))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.filters.copy_(energy.normalise(self.filters.flatten(1)).view_as(self.filters))

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        if not self.started:
            images = features.unflatten(1, self.shape)
            self.mean.copy_(images.mean(dim=(0, 2, 3))[:, None, None])
            self.scale.copy_((images - self.mean).square().mean().sqrt().clamp_min(1e-6))
            self.started.fill_(True)

    def needs_features(self) -> bool:
        return not self.started
