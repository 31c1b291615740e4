"""Noise-contrastive estimation (Gutmann & Hyvarinen 2010)."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from erg import distributed, energy, noise
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.heads import mlp
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views

LEAST = 1e-6
"""Variance of the noise where the data have none."""


class NoiseContrastiveEstimation(Method):
    """F(y) = g(f(y)) - log q(y), with q the density of a known noise and -log p(y) = F(y) + log Z.

    Is y of the data or one of k times as many draws from q? The log odds are
    r = log p(y) - log(k q(y)) = -g(f(y)) - log Z - log k, and
    L = E log(1 + exp(-r)) + k E_q log(1 + exp(r)) (Gutmann & Hyvarinen 2010). At its minimum p is
    the density of the data and normalised, although log Z is a mere parameter: an F that is low
    everywhere would call the noise data.

    Departs from the paper: -log q is taken into F, so that g learns the log ratio of densities
    alone, and F rises far away as -log q does. q is a Gaussian with the mean and the variances of
    all data seen. The encoder may be any; its batch normalisation, if it has one, is that of
    evaluation throughout, since F is a function of y alone.
    Checked against: a loop; the known normaliser of a Gaussian; the integral of exp(-F) / Z.

    Args:
        ratio: k, draws from the noise for each item.
        spread: factor by which the deviations of the noise exceed those of the data.
        width: of the hidden layer of g [features].
    """

    cell = Cell("latent-variable", "contrastive", by="data told from a known noise")
    encoder_evaluates = True
    batch_coupled = True  # by the variances of q
    seen: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(
        self, encoder: Encoder, *, ratio: int = 4, spread: float = 1.0, width: int = 128
    ) -> None:
        super().__init__(encoder)
        self.ratio, self.spread = ratio, spread
        self.head = mlp(encoder.dim, width, 1, norm=False, last_bias=False, activation=nn.SiLU)
        self.log_partition = nn.Parameter(torch.zeros(()))  # log Z
        d = 3 * encoder.image_size**2 if encoder.mean else encoder.image_size
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("variance", torch.ones(d))

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(0.5, 1.0)),), pairs="alone")

    def ratio_of(self, data: Tensor) -> Float[Tensor, " b"]:
        """g(f(y)) = log q(y) - log p(y) - log Z."""
        return energy.at_least_float32(self.head(self.encoder(data)))[:, 0]

    @property
    def deviation(self) -> Float[Tensor, " d"]:
        """Of the noise, per value."""
        return self.spread * self.variance.clamp_min(LEAST).sqrt()

    def of_data(self, data: Tensor) -> Float[Tensor, " b"]:
        """F of each item."""
        white = (energy.at_least_float32(data).flatten(1) - self.mean) / self.deviation
        log_scale = (self.deviation.log() + 0.5 * math.log(2 * math.pi)).sum()
        return self.ratio_of(data) + 0.5 * white.square().sum(dim=1) + log_scale

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return self.of_data(y.data)

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        if self.training:
            self.look(energy.at_least_float32(y.data).flatten(1))
        shape = y.data.shape[1:]
        drawn = noise.normal(
            views.index, self.ratio, len(self.mean), purpose="noise", step=views.step
        ).to(self.mean)
        draws = (self.mean + self.deviation * drawn).reshape(-1, *shape)  # [b*k ...]
        shift = self.log_partition + math.log(self.ratio)
        of_data = softplus(self.ratio_of(y.data) + shift)
        of_noise = softplus(-self.ratio_of(draws) - shift).reshape(-1, self.ratio).sum(dim=1)
        return Loss(
            pull={"data": distributed.mean(of_data)}, push={"noise": distributed.mean(of_noise)}
        )

    @torch.no_grad()
    def look(self, y: Float[Tensor, "b d"]) -> None:
        """Take a batch into the mean and the variance of all data seen."""
        n = sum(distributed.counts(len(y), y.device))
        mean = distributed.mean(y)
        variance = distributed.mean((y - mean).square())
        share = n / (self.seen + n)
        gap = mean - self.mean
        self.variance.lerp_(variance, share).add_(share * (1 - share) * gap.square())
        self.mean.add_(share * gap)
        self.seen.add_(n)
