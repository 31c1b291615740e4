"""MoCo (He et al. 2020; v2: Chen et al. 2020)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.bank import Queue
from erg.parts.heads import mlp
from erg.parts.host import sent
from erg.parts.teacher import Teacher
from erg.schedule import Constant, Schedule
from erg.views.plan import LARGE, MOCO2, SIMCLR_SMALL, Plan, two_views
from erg.views.types import View, Views


class MoCo(Method):
    """F(x, y) = -cos(q_x, k_y), k from a slow teacher; keys of earlier images are pushed away.

    L = F(x, y) / T + log [exp(-F(x, y) / T) + sum_j exp(cos(q_x, k_j) / T)] with k_j from a queue
    of the last keys (He et al. 2020, eq. 1); the teacher is theta_k <- m theta_k + (1 - m) theta_q
    (eq. 2). Not symmetric: the first view asks, the second answers.

    Batch statistics are those of groups, as of the authors' 8 GPUs: queries in the order of the
    batch, keys in random order, so that a query and its key share no statistics (section 3.3).

    Departs from the paper: the queue holds 4,096 keys by default, since its 65,536 are meant for
    1.3 million images; the teacher moves after a step instead of before the next, which is the
    same; v1's augmentation needs a plan of one's own.
    Checked against: golden numbers at T = 0.07 and 0.2; a loop over the queue; with the other keys
    of the batch in the queue it is InfoNCE across views.

    Args:
        queue: keys remembered.
        temperature: T, of the softmax over keys (0.07 in v1, 0.2 in v2).
        hidden: width of the projector's hidden layers; 0 takes the encoder's [features].
        dim: width of z [features].
        depth: linear layers of the projector (1 in v1, 2 in v2).
        momentum: m, from the first step to the last.
        groups: parts of the batch with batch statistics of their own; 1 for encoders without
            batch norms.
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over a queue of keys, EMA teacher")

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue: int = 4096,
        temperature: float = 0.2,
        hidden: int = 0,
        dim: int = 128,
        depth: int = 2,
        momentum: Schedule = Constant(0.999),
        groups: int = 8,
    ) -> None:
        super().__init__(encoder)
        self.temperature, self.momentum, self.groups = temperature, momentum, groups
        widths = [encoder.dim, *[hidden or encoder.dim] * (depth - 1), dim]
        self.projector = mlp(*widths, norm=False)
        self.teacher = Teacher(nn.Sequential(encoder, self.projector))
        self.queue = Queue(queue, dim, random=True)

    def plan(self) -> Plan:
        if self.encoder.image_size < LARGE:
            return two_views(SIMCLR_SMALL)
        return two_views(MOCO2)  # v2's

    def query(self, data: Tensor) -> Float[Tensor, "b d"]:
        return energy.normalise(self.projector(self.encoder(data)))

    def key(self, data: Tensor) -> Float[Tensor, "b d"]:
        return energy.normalise(self.teacher(data))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.query(x.data), self.key(y.data))

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = views.need(2)
        in_order, shuffled = self.groups_of(x.data, views.step)
        q = self.by_group(self.query, x.data, in_order)
        k = self.by_group(self.key, y.data, shuffled)
        fits = energy.cosine(q, k) / self.temperature
        others = shaping.log_partition(q / self.temperature, self.queue.rows)
        if self.training:
            self.queue.push(distributed.gather(k))
        return Loss(
            pull={"alignment": distributed.mean(fits)},
            push={"repulsion": distributed.mean(torch.logaddexp(-fits, others))},
        )

    def groups_of(self, data: Tensor, step: int) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
        """The group of each query and of each key of this process, the same for any number."""
        n = sum(distributed.counts(len(data), data.device))
        if self.training and n < 2 * self.groups:
            raise ValueError(
                f"a batch of {n} makes no {self.groups} groups of at least 2 images. Raise the "
                "batch, or lower groups."
            )
        place = torch.arange(distributed.rank(), n, distributed.world())  # in the global batch
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(step))
        return place * self.groups // n, shuffled[place] * self.groups // n

    def by_group(
        self, embed: Callable[[Tensor], Tensor], data: Tensor, group: Int[Tensor, " b"]
    ) -> Float[Tensor, "b d"]:
        """Embed each group by itself; rows stay in the order of the batch.

        Args:
            embed: data to embeddings.
            data: of the batch.
            group: of each row, in the memory of the host.
        """
        if not self.training:
            return embed(data)
        order = group.argsort(stable=True)  # on the host, which has to know the sizes too
        there, back = sent(torch.stack([order, order.argsort()]), data.device)
        parts = data[there].split(group.bincount(minlength=self.groups).tolist())
        return torch.cat([embed(part) for part in parts])[back]

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
