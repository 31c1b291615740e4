"""RELIC (Mitrovic et al. 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import byol_views
from erg.parts.heads import mlp
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Schedule
from erg.views.plan import Plan
from erg.views.types import View, Views


class RELIC(Method):
    """F(x, y) = -cos(q_x, k_y); which image a view is of must not depend on the view that asks.

    p(i | x_i; y) = softmax_j(-F(x_i, y_j) / T) over the images j of the global batch, and
    L = -log p(i | x_i; y) - log p(i | y_i; x) + alpha KL(p(. | x_i; y) || p(. | y_i; x)), averaged
    over the batch (Mitrovic et al. 2021): InfoNCE both ways, plus invariance of the
    whole distribution. k is by a slow teacher theta' <- m theta' + (1 - m) theta, or by the network
    itself.

    Departs from the paper: the critic is one projector, and the teacher's a slow copy of it. The
    authors' code is not public: temperature, alpha and widths are choices of ours.
    Checked against: golden numbers of InfoNCE and of the divergence in both directions; loops; with
    alpha 0 and no teacher it is InfoNCE across views; finite differences.

    Args:
        temperature: T, of the softmax over images.
        alpha: weight of the divergence.
        teacher: whether keys are a slow teacher's; else both sides are the network's own.
        hidden: width of the projector's hidden layer [features].
        dim: width of q and k [features].
        momentum: m, from the first step to the last.
    """

    cell = Cell(
        "joint-embedding", "contrastive", by="softmax over the batch, the same from x and y"
    )
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.1,
        alpha: float = 1.0,
        teacher: bool = True,
        hidden: int = 4096,
        dim: int = 256,
        momentum: Schedule = Cosine(0.996, 1.0),
    ) -> None:
        super().__init__(encoder)
        self.temperature, self.alpha, self.momentum = temperature, alpha, momentum
        self.projector = mlp(encoder.dim, hidden, dim)
        self.teacher = Teacher(nn.Sequential(encoder, self.projector)) if teacher else None

    def plan(self) -> Plan:
        return byol_views(self.encoder.image_size)

    def query(self, view: View) -> Float[Tensor, "b d"]:
        return energy.normalise(self.projector(self.encoder(view.data)))

    def key(self, view: View) -> Float[Tensor, "b d"]:
        """The teacher's; where there is none, the query."""
        if self.teacher is None:
            return self.query(view)
        return energy.normalise(self.teacher(view.data))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.query(x), self.key(y))

    def loss(self, views: Views, progress: float) -> Loss:
        main = views.need(2)
        q = [distributed.gather(self.query(view)) for view in main]  # [global d]
        k = q if self.teacher is None else [distributed.gather(self.key(view)) for view in main]

        def told(x: Tensor, y: Tensor) -> Float[Tensor, "some 2"]:
            """What pushes each image, and its divergence."""
            s, t = (energy.products(z, k[1 - i]) / self.temperature for i, z in enumerate((x, y)))
            pushed = s.logsumexp(dim=1) + t.logsumexp(dim=1)  # over the global batch
            return torch.stack([pushed, energy.divergence(s, t)], dim=1)

        repulsion, divergence = shaping.in_blocks(told, *q, columns=len(q[0])).mean(dim=0)
        fits = -(q[0] * k[1] + q[1] * k[0]).sum(dim=1) / self.temperature
        return Loss(
            pull={
                "alignment": fits.mean(),
                "invariance": self.alpha * divergence,
            },
            push={"repulsion": repulsion},
        )

    def after_step(self, progress: float) -> None:
        if self.teacher is not None:
            self.teacher.follow(self.momentum(progress))
