"""Contractive autoencoder (Rifai et al. 2011)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, noise
from erg.encoders import Encoder, Identity
from erg.method import Cell, Loss, Method
from erg.parts.decoder import decoder_for
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views

STEP = 2.0**-12
"""Of the finite difference [units of the data]: near the root of what float32 resolves, where
errors by rounding and by curvature are about equal."""


class ContractiveAutoencoder(Method):
    """F(y) = ||y - r(y)||^2 / d, r(y) = g(W^T h + c), h = sigmoid(W f(y) + b); the loss adds
    lambda ||dh/dy||_F^2.

    Rifai et al. 2011, eq. 3 to 5. A code that hardly changes with y can follow y in few directions,
    those along the data: F rises in all others. The norm is the mean of ||(dh/dy) v||^2 over random
    signs v (Hutchinson 1989), and the product a finite difference, which all encoders allow. On
    vectors as they are (encoder identity) f and g are the identity, and this is the paper's.

    Departs from the paper: W is tied, but not what is in front of it and behind it; f could shrink
    while g grows. So the norm is measured against d times the variance of h, unless `relative` is
    off. Layers with batch statistics are differentiated with those statistics as they are.
    Checked against: the Jacobian by autograd; the closed form of a sigmoid layer.

    Args:
        dim: width of h; 0 takes the encoder's [features].
        contraction: lambda.
        relative: whether the norm is divided by d and by the variance of h over the batch.
        probes: random directions per image and step.
        width: channels of the decoder before its last layer.
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("latent-variable", "regularised", by="a code that hardly changes with y")
    batch_coupled = True  # by the variance of h

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 0,
        contraction: float = 0.1,
        relative: bool = True,
        probes: int = 1,
        width: int = 32,
        crop: float = 0.5,
    ) -> None:
        super().__init__(encoder)
        self.contraction, self.relative, self.probes = contraction, relative, probes
        self.crop = crop
        self.code = nn.Linear(encoder.dim, dim or encoder.dim)  # W, b
        self.offset = nn.Parameter(torch.zeros(encoder.dim))  # c
        self.decoder = (
            nn.Identity()
            if isinstance(encoder, Identity)
            else decoder_for(encoder, encoder.dim, width=width)
        )

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(self.crop, 1.0)),), pairs="alone")

    @energy.full_precision
    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """h [b dim]; never in half precision, in which its small changes would be lost."""
        return self.code(self.encoder(data)).sigmoid()

    def reconstruct(self, h: Float[Tensor, "b d"]) -> Tensor:
        """g(W^T h + c), of the shape of the data."""
        return self.decoder(nn.functional.linear(h, self.code.weight.T, self.offset))

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return energy.mean_squared_error(self.reconstruct(self.encode(y.data)), y.data)

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        h = self.encode(y.data)
        error = energy.mean_squared_error(self.reconstruct(h), y.data)
        slopes: list[Tensor] = []
        for probe in range(self.probes):
            v = noise.signs(
                views.index, *y.data.shape[1:], purpose=f"direction {probe}", step=views.step
            )
            slopes.append(squared_slope(self.encode, y.data, h, v.to(y.data)))
        slope = distributed.mean(torch.stack(slopes, dim=1)).mean()
        if self.relative:
            variance = distributed.gather(h).var(dim=0, correction=0).sum()
            slope = slope / (y.data[0].numel() * variance.clamp_min(1e-12))
        return Loss(
            pull={"reconstruction": distributed.mean(error)},
            push={"contraction": self.contraction * slope},
        )


def squared_slope(
    embed: Callable[[Tensor], Tensor],
    data: Tensor,
    here: Float[Tensor, "b k"],
    direction: Tensor,
) -> Float[Tensor, " b"]:
    """||J v||^2 with J the Jacobian of `embed` at `data`, v `direction` and `here` = embed(data).

    By a difference over `STEP`; its mean over random signs v is ||J||_F^2.
    """
    return energy.squared_distance(embed(data + STEP * direction), here) / STEP**2
