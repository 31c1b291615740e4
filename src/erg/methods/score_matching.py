"""Score matching, denoising and sliced."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, inference, noise
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.heads import mlp
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views

KINKED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh)


class ScoreMatching(Method):
    """F(y) = g(f(y)), a number whose field -dF/dy is that of the data's log density.

    - `denoising` (Vincent 2011; times s^2): L = ||s dF/dy(y + s n) - n||^2 / (2 d). At
      y + s n, F rises along the noise n: the field points back to the data, and is that of the
      data blurred by s.
    - `sliced` (Song et al. 2019): L = (||dF/dy||^2 / 2 - v^T d^2F/dy^2 v) / d with random
      signs v: slope zero and curvature positive at the data. Nothing is blurred, but second
      derivatives are needed.

    No point is pushed up, and no normaliser occurs: slopes do not know an offset of F.

    Departs from the paper: d, the number of values of y, divides L. The encoder may be any; its
    batch normalisation, if it has one, is that of evaluation throughout, since F is a function of
    y alone. Smooth activations (mlp and conv: activation = silu) make a smooth field.
    Checked against: finite differences; the closed form on a Gaussian; the field of a mixture.

    Args:
        by: which of the two.
        deviation: s of the noise [units of the data].
        width: of the hidden layer of g [features].
    """

    cell = Cell("latent-variable", "regularised", by="slopes matched at the data")
    encoder_evaluates = True
    differentiates_twice = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        by: Literal["denoising", "sliced"] = "denoising",
        deviation: float = 0.1,
        width: int = 128,
    ) -> None:
        super().__init__(encoder)
        if by == "sliced" and any(isinstance(part, KINKED) for part in encoder.modules()):
            raise ValueError(
                f"sliced score matching needs second derivatives, and those of {encoder.name} are "
                "zero: it is made of ReLUs. Use mlp or conv with activation = silu."
            )
        self.by, self.deviation = by, deviation
        self.head = mlp(encoder.dim, width, 1, norm=False, last_bias=False, activation=nn.SiLU)

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(0.5, 1.0)),), pairs="alone")

    def of_data(self, data: Tensor) -> Float[Tensor, " b"]:
        """F of each item."""
        return energy.at_least_float32(self.head(self.encoder(data)))[:, 0]

    @energy.full_precision
    def denoising(self, y: Float[Tensor, "b *d"], n: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """||s dF/dy(y + s n) - n||^2 / (2 d)."""
        slope = inference.slope(self.of_data, y + self.deviation * n, differentiable=True)
        return 0.5 * energy.mean_squared_error(self.deviation * slope, n)

    @energy.full_precision
    def sliced(
        self, y: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """||dF/dy||^2 / (2 d) and v^T d^2F/dy^2 v / d."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            slope = inference.slope(self.of_data, y, differentiable=True)
            (bent,) = torch.autograd.grad((slope * v).sum(), y, create_graph=True)
            return 0.5 * slope.square().flatten(1).mean(1), (bent * v).flatten(1).mean(1)

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return self.of_data(y.data)

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        y = energy.at_least_float32(view.data)
        draw = noise.normal if self.by == "denoising" else noise.signs
        drawn = draw(views.index, *y.shape[1:], purpose=self.by, step=views.step).to(y)
        if self.by == "denoising":
            return Loss(pull={"score": distributed.mean(self.denoising(y, drawn))})
        slope, curvature = self.sliced(y, drawn)
        return Loss(
            pull={"slope": distributed.mean(slope)},
            push={"curvature": -distributed.mean(curvature)},
        )
