"""Variational autoencoder, with beta."""

import math
from dataclasses import replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, noise
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.decoder import decoder_for
from erg.schedule import Constant, Schedule
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views


class VariationalAutoencoder(Method):
    """F(y) = E_q(z|y)[-log p(y|z)] + beta KL(q(z|y) || p(z)), at beta = 1 a bound on -log p(y).

    Kingma & Welling 2014, eq. 3 and 10; beta of Higgins et al. 2017. q(z|y) is normal with mean
    mu(y) and variances v(y), p(z) standard normal: KL = sum_j (mu_j^2 + v_j - log v_j - 1) / 2. The
    noise of q limits how much z tells of y, and so how much of the space F can be low on. p(y|z)
    is normal with a fixed deviation, or Bernoulli for pixels in [0, 1]. All in nats, summed over
    pixels: a mean over pixels would be a beta as large as their number.

    Departs from the paper: the energy takes z at its mean, so that it is no random number; the
    loss draws it.
    Checked against: KL by Monte Carlo; -log p(y) of a linear model, which F bounds and reaches.

    Args:
        dim: width of z [features].
        beta: weight of the divergence over training; the energy has the last.
        output: `gaussian` for normalised data, `bernoulli` for data in [0, 1].
        deviation: of p(y|z) where it is normal [units of the normalised data].
        width: channels of the decoder before its last layer.
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("latent-variable", "regularised", by="noise in z, and its divergence from a prior")

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 64,
        beta: Schedule = Constant(1.0),
        output: Literal["gaussian", "bernoulli"] = "gaussian",
        deviation: float = 0.5,
        width: int = 32,
        crop: float = 0.5,
    ) -> None:
        super().__init__(encoder)
        if not deviation > 0:
            raise ValueError(f"deviation should be greater than 0 (got {deviation}).")
        self.dim, self.beta, self.crop = dim, beta, crop
        self.output, self.deviation = output, deviation
        self.posterior = nn.Linear(encoder.dim, 2 * dim)
        self.decoder = decoder_for(encoder, dim, width=width)

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(self.crop, 1.0)),), pairs="alone")

    def infer(self, data: Tensor) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """mu and log v of q(z|y)."""
        mean, log_variance = self.posterior(self.encoder(data)).chunk(2, dim=1)
        return energy.at_least_float32(mean), energy.at_least_float32(log_variance)

    def misfit(self, y: View, z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """-log p(y|z)."""
        made = self.decoder(z)
        if self.output == "bernoulli":
            return energy.bernoulli(made, y.unit())
        constant = made[0].numel() * math.log(2 * math.pi * self.deviation**2) / 2
        return energy.squared_distance(made, y.data) / (2 * self.deviation**2) + constant

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        mean, log_variance = self.infer(y.data)
        return self.misfit(y, mean) + self.beta(1.0) * divergence(mean, log_variance)

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        mean, log_variance = self.infer(y.data)
        drawn = noise.normal(views.index, self.dim, purpose="latent", step=views.step)
        z = mean + (log_variance / 2).exp() * drawn.to(mean)
        kl = distributed.mean(divergence(mean, log_variance))
        return Loss(
            pull={"reconstruction": distributed.mean(self.misfit(y, z))},
            push={"divergence": self.beta(progress) * kl},
        )

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """mu [b dim]."""
        return self.infer(data)[0]


def divergence(
    mean: Float[Tensor, "b d"], log_variance: Float[Tensor, "b d"]
) -> Float[Tensor, " b"]:
    """KL from the standard normal distribution of one with this mean and these variances [nats]."""
    return (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
