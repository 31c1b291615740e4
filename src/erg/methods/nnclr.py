"""NNCLR (Dwibedi et al. 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.bank import Queue
from erg.parts.crops import byol_views
from erg.parts.heads import mlp
from erg.parts.norm import BatchNorm
from erg.views.plan import Plan
from erg.views.types import View, Views


class NNCLR(Method):
    """F(x, y) = -cos(NN(z_x), q(z_y)), NN the nearest of the embeddings remembered.

    l_i = F(x_i, y_i) / T + log sum_k exp(-F(x_i, y_k) / T) over the global batch, and
    L = [l(x, y) + l(y, x)] / 2 (Dwibedi et al. 2021, the loss of nearest neighbours, with its
    predictor): another image that looks alike stands in for x. The first view's z then enter the
    queue.

    Departs from the paper: the queue holds 4,096 embeddings by default, since its 98,304 are meant
    for 1.3 million images.
    Checked against: loops over queue and batch; with the batch's own z in the queue and no
    predictor it is InfoNCE across views, whose numbers are golden; finite differences; l and NN as
    summaries of the paper quote them.

    Args:
        queue: embeddings remembered.
        temperature: T, of the softmax over the batch.
        hidden: width of the projector's hidden layers [features].
        dim: width of z [features].
        predictor: width of the predictor's hidden layer [features].
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over the other views of the batch")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: int = 4096,
        temperature: float = 0.1,
        hidden: int = 2048,
        dim: int = 256,
        predictor: int = 4096,
    ) -> None:
        super().__init__(encoder)
        self.temperature = temperature
        self.projector = mlp(encoder.dim, hidden, hidden, dim).append(BatchNorm(dim))
        self.predictor = mlp(dim, predictor, dim)
        self.queue = Queue(queue, dim, random=True)

    def plan(self) -> Plan:
        return byol_views(self.encoder.image_size)

    def project(self, view: View) -> Float[Tensor, "b d"]:
        return self.projector(self.encoder(view.data))

    def neighbour(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """The row of the queue with the largest cosine, without gradient."""
        rows = self.queue.rows

        def nearest(some: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
            return rows[energy.products(some, rows).argmax(dim=1)]

        with torch.no_grad():
            return shaping.in_blocks(nearest, energy.normalise(z), columns=len(rows))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.neighbour(self.project(x)), self.predictor(self.project(y)))

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = (self.project(view) for view in views.need(2))
        nx, ny = (distributed.gather(self.neighbour(z)) for z in (x, y))  # [global d]
        qx, qy = (distributed.gather(self.predictor(z)) for z in (x, y))
        t = self.temperature
        pull = shaping.alignment(nx, qy, t) + shaping.alignment(ny, qx, t)
        push = shaping.cross_repulsion(nx, qy, t) + shaping.cross_repulsion(ny, qx, t)
        if self.training:
            self.queue.push(distributed.gather(energy.normalise(x.detach())))
        return Loss(pull={"alignment": pull / 2}, push={"repulsion": push / 2})
