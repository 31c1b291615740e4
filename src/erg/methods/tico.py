"""TiCo (Zhu et al. 2022)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import byol_views
from erg.parts.heads import mlp
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Schedule
from erg.views.plan import Plan
from erg.views.types import View, Views


class TiCo(Method):
    """F(x, y) = 1 - cos(z_x, z'_y), z' from a slow teacher; z is pushed off where z has been.

    L = mean of F(x, y) + rho mean of z_x^T C z_x with unit z and the running second moments
    C <- beta C + (1 - beta) mean of z_x z_x^T, without gradient (Zhu et al. 2022, eq. 4,
    transformation invariance and covariance contrast). Since z^T C z is the weighted mean of
    (z . z_j)^2 over all earlier z_j, C is a memory bank without bounds. The teacher is
    theta' <- m theta' + (1 - m) theta after every step.

    Departs from the paper: nowhere known; rho = 8 is what a port of its listing says it recommends.
    Checked against: a loop over all earlier embeddings; gradients with C held, by finite
    differences too; both terms as a summary of the paper quotes them; eq. 4, and that C has no
    gradient, as its figure shows, from discussions of another port. The paper was not seen itself.

    Args:
        hidden: width of the projector's hidden layer [features].
        dim: width of z [features].
        beta: share of C that stays at each step.
        rho: weight of the covariance contrast.
        momentum: m, from the first step to the last.
    """

    cell = Cell("joint-embedding", "regularised", by="contrast with running second moments")
    batch_coupled = True
    moments: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 4096,
        dim: int = 256,
        beta: float = 0.9,
        rho: float = 8.0,
        momentum: Schedule = Cosine(0.99, 1.0),
    ) -> None:
        super().__init__(encoder)
        self.beta, self.rho, self.momentum = beta, rho, momentum
        self.projector = mlp(encoder.dim, hidden, dim)
        self.teacher = Teacher(nn.Sequential(encoder, self.projector))
        self.register_buffer("moments", torch.zeros(dim, dim))  # C

    def plan(self) -> Plan:
        return byol_views(self.encoder.image_size)

    def project(self, view: View) -> Float[Tensor, "b d"]:
        return energy.normalise(self.projector(self.encoder(view.data)))

    def teach(self, view: View) -> Float[Tensor, "b d"]:
        return energy.normalise(self.teacher(view.data))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return 1 - (self.project(x) * self.teach(y)).sum(dim=1)

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = views.need(2)
        z, taught = distributed.gather(self.project(x)), distributed.gather(self.teach(y))
        moments = self.remember(z.detach())
        return Loss(
            pull={"invariance": 1 - (z * taught).sum(dim=1).mean()},
            push={"covariance": self.rho * (energy.products(z, moments) * z).sum(dim=1).mean()},
        )

    @torch.no_grad()
    def remember(self, z: Float[Tensor, "global d"]) -> Float[Tensor, "d d"]:
        """C with this batch in it; kept in training."""
        now = energy.products(z.T, z.T) / len(z)
        moments = self.beta * self.moments.to(now) + (1 - self.beta) * now
        if self.training:
            self.moments.copy_(moments)
        return moments

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
