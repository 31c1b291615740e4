"""Maximum likelihood in two dimensions, the normaliser a sum over a grid."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.heads import mlp
from erg.parts.host import sent
from erg.views.plan import Plan, whole
from erg.views.types import View, Views


class MaximumLikelihood(Method):
    """F(y) = g(f(y)), a number, with L = F(y) + log Z, Z the integral of exp(-F) over a square.

    L is -log p(y) for p = exp(-F) / Z (LeCun et al. 2006): its gradient is that of F at the data
    minus its mean under the model, so every other method that samples or avoids the second term
    can be held against this one. f(y), of a frozen encoder, has two features; a vector of two is
    taken as it is by the encoder identity. Z is a sum over a grid on the smallest box around the
    features of all training data, made larger by `margin`.

    Departs from the paper: in training the grid is shifted by a random part of a cell at every
    step. Were it fixed, F could be low at data between its places for nothing.
    Checked against: the closed form of a Gaussian; Gauss-Legendre quadrature; a mixture of
    Gaussians, whose likelihood and field it must find.

    Args:
        points: places of the grid per axis.
        margin: by which the box is larger at each edge, as a fraction of its sides.
        width: of the hidden layers of g [features].
        depth: number of those.
    """

    cell = Cell("latent-variable", "contrastive", by="normalisation, summed over a grid")
    trains_encoder = False
    started: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        points: int = 64,
        margin: float = 0.5,
        width: int = 128,
        depth: int = 3,
    ) -> None:
        super().__init__(encoder)
        if encoder.dim != 2:
            raise ValueError(
                f"a grid needs 2 features, and {encoder.name} gives {encoder.dim}. Use vectors of "
                "2 features with the encoder identity."
            )
        self.points, self.margin = points, margin
        widths = [2, *[width] * depth, 1]
        self.head = mlp(*widths, norm=False, last_bias=False, activation=nn.SiLU)
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("low", torch.full((2,), -3.0))
        self.register_buffer("high", torch.full((2,), 3.0))

    def plan(self) -> Plan:
        return whole()

    @energy.full_precision
    def of_features(self, y: Float[Tensor, "b 2"]) -> Float[Tensor, " b"]:
        """g of each point."""
        return self.head(y.to(self.low.dtype))[:, 0]

    def of_data(self, data: Tensor) -> Float[Tensor, " b"]:
        """F of each item."""
        return self.of_features(self.encoder(data))

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return self.of_data(y.data)

    def log_partition(self, shift: Float[Tensor, " 2"] | None = None) -> Tensor:
        """log Z by the midpoint rule; `shift` places the grid elsewhere in its cells, in [0, 1)."""
        shift = torch.full((2,), 0.5) if shift is None else shift
        steps = torch.arange(self.points, device=self.low.device)[:, None]
        axes = (steps + shift.to(self.low)) / self.points * (self.high - self.low) + self.low
        energies = self.of_features(torch.cartesian_prod(axes[:, 0], axes[:, 1]))
        cell = (self.high - self.low).log().sum() - 2 * math.log(self.points)
        return (-energies).logsumexp(dim=0) + cell

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        shift = None
        if self.training:  # the same on every process
            drawn = torch.rand(2, generator=torch.Generator().manual_seed(views.step))
            shift = sent(drawn, self.low.device)
        return Loss(
            pull={"data": distributed.mean(self.energy(None, y))},
            push={"partition": self.log_partition(shift)},
        )

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        if not self.started:
            low, high = features.aminmax(dim=0)
            edge = self.margin * (high - low).clamp_min(1e-6)
            self.low.copy_(low - edge)
            self.high.copy_(high + edge)
            self.started.fill_(True)

    def needs_features(self) -> bool:
        return not self.started
