"""SwAV (Caron et al. 2020)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, inference
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.bank import Queue
from erg.parts.crops import by_size, swav_crops
from erg.parts.heads import mlp
from erg.views.plan import Plan
from erg.views.types import View, Views


class SwAV(Method):
    """F(x, y) = -sum_k q_k(y) log p_k(x): the code of one view predicted from another.

    p = softmax(C z_x / T) with unit prototypes C; the code q of y is inferred by Sinkhorn-Knopp so
    that the batch uses all prototypes equally (Caron et al. 2020, eq. 1 to 3). Codes are taken
    from the large crops only and predicted from every other crop.

    Departs from the paper: fewer prototypes by default, since its 3,000 are meant for 1,000
    classes. The queue, there for small batches only, is on by default and filled from the first
    step on (the authors' begins to fill when it may be used). It holds z of the last images, whose
    codes share in the balance.
    Checked against: golden numbers of Sinkhorn and of the loss on two views; a loop over crops;
    finite differences with the codes held.

    Args:
        prototypes: rows of C.
        hidden: width of the projector's hidden layers [features].
        dim: width of z [features].
        depth: linear layers of the projector (2 in SwAV, 3 in SEER).
        norm: whether hidden layers are batch-normalised (not in SEER).
        temperature: T of the prediction.
        eps: entropy of the codes; smaller is sharper.
        iterations: of Sinkhorn-Knopp.
        queue: images whose codes share in the balance once it is full; 0 for none.
        queue_from: progress from which the queue is used, in [0, 1].
        freeze: progress until which the prototypes stay fixed, in [0, 1].
        small_crops: number of small crops per image.
    """

    cell = Cell("joint-embedding", "regularised", by="balanced codes inferred by Sinkhorn-Knopp")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        prototypes: int = 512,
        hidden: int = 2048,
        dim: int = 128,
        depth: int = 2,
        norm: bool = True,
        temperature: float = 0.1,
        eps: float = 0.05,
        iterations: int = 3,
        queue: int = 3840,
        queue_from: float = 0.15,
        freeze: float = 0.01,
        small_crops: int = 6,
    ) -> None:
        super().__init__(encoder)
        if small_crops:
            encoder.need_sizes("SwAV")
        self.temperature, self.eps, self.iterations = temperature, eps, iterations
        self.queue_from, self.freeze, self.small_crops = queue_from, freeze, small_crops
        self.projector = mlp(encoder.dim, *[hidden] * (depth - 1), dim, norm=norm)
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        self.queues = nn.ModuleList(Queue(queue, dim) for _ in range(2 if queue else 0))
        self.after_step(0.0)

    def plan(self) -> Plan:
        return swav_crops(self.encoder.image_size, self.small_crops)

    def embed(self, *crops: View) -> Float[Tensor, "all d"]:
        """z of every crop: one encoder pass per resolution, one projector pass for all."""
        return energy.normalise(self.projector(by_size(self.encoder, crops)))

    def scores(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Cosines of z with every prototype."""
        return energy.products(z, self.prototypes.weight)

    def codes(self, z: Float[Tensor, "b d"], queue: Queue | None = None) -> Float[Tensor, "b k"]:
        """q: balanced over the global batch, and over the queue where one is given."""
        z, b = z.detach(), len(z)
        if queue is not None:
            mine = queue.rows.tensor_split(distributed.world())[distributed.rank()]
            z = torch.cat([mine.to(z), z])
        q = inference.sinkhorn(self.scores(z), self.eps, self.iterations)
        return q[len(q) - b :]

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cross_entropy(
            self.scores(self.embed(x)) / self.temperature, self.codes(self.embed(y))
        )

    def loss(self, views: Views, progress: float) -> Loss:
        crops = [*views.need(2), *views.local]
        z = self.embed(*crops).chunk(len(crops))
        scores = [self.scores(each) / self.temperature for each in z]
        codes = [self.codes(z[i], self.queue_in_use(i, progress)) for i in range(2)]
        if self.training:
            for i in range(len(self.queues)):
                self.queue(i).push(distributed.gather(z[i].detach()))
        misfit = energy.between_crops(scores, codes)
        return Loss(pull={"swapped prediction": distributed.mean(misfit)})

    def queue_in_use(self, i: int, progress: float) -> Queue | None:
        if len(self.queues) == 0 or progress < self.queue_from:
            return None
        return self.queue(i) if self.queue(i).full else None

    def queue(self, i: int) -> Queue:
        """Of the large crop i."""
        queue = self.queues[i]
        assert isinstance(queue, Queue)
        return queue

    def frozen(self, progress: float) -> Iterable[nn.Parameter]:
        return self.prototypes.parameters() if progress < self.freeze else ()

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.prototypes.weight.copy_(energy.normalise(self.prototypes.weight))
