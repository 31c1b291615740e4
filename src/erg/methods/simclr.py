"""SimCLR and SimCLRv2 (Chen et al. 2020)."""

from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.bank import Queue
from erg.parts.heads import OutputNorm, mlp
from erg.parts.teacher import Teacher
from erg.schedule import Constant, Schedule
from erg.views.plan import LARGE, SIMCLR, SIMCLR_SMALL, Plan, two_views
from erg.views.types import View, Views


class SimCLR(Method):
    """F(x, y) = -cos(z_x, z_y); l_i = F(x_i, y_i) / T + log sum_{k != i} exp(-F(i, k) / T).

    Chen et al. 2020, eq. 1 (NT-Xent): the sum runs over the 2b - 1 other views of the global
    batch, and the loss is the mean over all 2b views.

    SimCLRv2 (Chen et al. 2020, "Big Self-Supervised Models", section 2) adds a third layer to the
    projector and, with little gain, a memory: the sum also runs over what a slow teacher made of
    earlier images, with theta' <- m theta' + (1 - m) theta.

    Departs from the paper: T is 0.2 by default, between its 0.1 for ImageNet and 0.5 for CIFAR-10;
    batch statistics are taken per view, not over both; linear layers start as torch's do; small
    images get the strength 0.5 of its CIFAR-10 appendix, without blur. That the memory takes second
    views and that positives come from the student are choices of ours: the paper does not say, and
    its code has no memory.
    Checked against: golden numbers of NT-Xent at temperatures 0.5 and 0.1, naive double loops with
    memory and without, finite differences.

    Args:
        temperature: T, of the softmax over the other views.
        hidden: width of the projector's hidden layers; 0 takes the encoder's [features].
        dim: width of z [features].
        depth: linear layers of the projector (2 in SimCLR, 3 in SimCLRv2).
        memory: embeddings of earlier images that are remembered (65,536 in SimCLRv2); 0 for none.
        momentum: m of the teacher that makes them, from the first step to the last.
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over the other views of the batch")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.2,
        hidden: int = 0,
        dim: int = 128,
        depth: int = 2,
        memory: int = 0,
        momentum: Schedule = Constant(0.999),
    ) -> None:
        super().__init__(encoder)
        self.temperature, self.momentum = temperature, momentum
        hidden = hidden or encoder.dim
        widths = [encoder.dim, *[hidden] * (depth - 1), dim]
        self.projector = mlp(*widths, hidden_bias=False, last_bias=False).append(OutputNorm(dim))
        self.teacher = Teacher(nn.Sequential(encoder, self.projector)) if memory else None
        self.queue = Queue(memory, dim, random=True) if memory else None

    def plan(self) -> Plan:
        return two_views(SIMCLR if self.encoder.image_size >= LARGE else SIMCLR_SMALL)

    def project(self, view: View) -> Float[Tensor, "b d"]:
        return self.projector(self.encoder(view.data))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.project(x), self.project(y))

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = (distributed.gather(self.project(view)) for view in views.need(2))  # [global d]
        remembered = None if self.queue is None else self.queue.rows
        found = Loss(
            pull={"alignment": shaping.alignment(x, y, self.temperature)},
            push={"repulsion": shaping.repulsion(x, y, self.temperature, remembered)},
        )
        if self.training and self.teacher is not None and self.queue is not None:
            z = energy.normalise(self.teacher(views.main[1].data))
            self.queue.push(distributed.gather(z))
        return found

    def after_step(self, progress: float) -> None:
        if self.teacher is not None:
            self.teacher.follow(self.momentum(progress))
