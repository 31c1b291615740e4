"""SeLa v2 (Asano et al. 2020; v2: Caron et al. 2020)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erg import distributed, energy, inference
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.bank import Memory
from erg.parts.crops import by_size, swav_crops
from erg.parts.heads import mlp
from erg.views.plan import Plan
from erg.views.types import View, Views


class SeLa(Method):
    """F(x, y) = -log softmax_k(c_k . z_x / T) at k(y), the label that y's image gave itself.

    Labels minimise the sum of F over all images under the condition that every label is used
    equally often: exp(lambda log p) of a bank with one z of every image is scaled by Sinkhorn-Knopp
    to equal rows and columns, and each image takes its largest entry (Asano et al. 2020). They are
    made anew after every epoch; prototypes c are trained. L is the mean of F over all crops and
    over several heads with labels of their own.

    Departs from the paper: no code of v2 is public, so projector, prototypes of norm 1 and crops
    are SwAV's; labels are made after every epoch (theirs: 100 times, often early on) by a fixed
    number of iterations (theirs: until the scaling changes by less than 0.1), and until an image
    has one it takes that of Sinkhorn-Knopp over its batch (theirs start random). Fewer prototypes
    by default, since 3,000 are meant for 1.3 million images.
    Checked against: a loop over crops and heads; equal use of labels; assignments by brute force;
    finite differences.

    Args:
        size: rows of the memory, at least as many as images.
        prototypes: number of labels of each head.
        heads: number of labellings.
        sharpness: lambda; larger is closer to the exact optimum and slower to balance.
        iterations: of Sinkhorn-Knopp over the bank.
        temperature: T.
        hidden: width of the projector's hidden layer [features].
        dim: width of z [features].
        small_crops: number of small crops per image.
    """

    cell = Cell("joint-embedding", "regularised", by="labels that all images use equally often")
    batch_coupled = True  # while images have no labels yet
    labels: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        size: int = 65_536,
        prototypes: int = 256,
        heads: int = 10,
        sharpness: float = 25.0,
        iterations: int = 50,
        temperature: float = 0.1,
        hidden: int = 2048,
        dim: int = 128,
        small_crops: int = 4,
    ) -> None:
        super().__init__(encoder)
        if small_crops:
            encoder.need_sizes("SeLa")
        self.sharpness, self.iterations, self.temperature = sharpness, iterations, temperature
        self.small_crops = small_crops
        self.projector = mlp(encoder.dim, hidden, dim)
        self.prototypes = nn.Parameter(torch.randn(heads, prototypes, dim))
        self.memory = Memory(size, dim)
        self.memory.rows.zero_()  # nothing seen yet
        self.register_buffer("labels", torch.full((size, heads), -1))
        self.after_step(0.0)

    def plan(self) -> Plan:
        return swav_crops(self.encoder.image_size, self.small_crops)

    def embed(self, *crops: View) -> Float[Tensor, "all d"]:
        return energy.normalise(self.projector(by_size(self.encoder, crops)))

    def logits(self, z: Float[Tensor, "b d"], head: int) -> Float[Tensor, "b k"]:
        return energy.products(z, self.prototypes[head]) / self.temperature

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        z, m = self.embed(x), self.embed(y)
        errors = [
            energy.of_class(self.logits(z, head), self.logits(m, head).argmax(dim=1))
            for head in range(len(self.prototypes))
        ]
        return torch.stack(errors).mean(dim=0)

    def loss(self, views: Views, progress: float) -> Loss:
        crops = [*views.need(2), *views.local]
        z = self.embed(*crops)
        errors: list[Tensor] = []
        for head in range(len(self.prototypes)):
            logits = self.logits(z, head).chunk(len(crops))
            label = self.labels[views.index, head]
            # SwAV's three iterations, since this runs in every step.
            label = torch.where(label < 0, self.balanced(logits[0], 3), label)
            errors += [energy.of_class(each, label) for each in logits]
        if self.training:
            self.memory.update(views.index, z[: len(views)], momentum=0.0)
        return Loss(pull={"label": distributed.mean(torch.stack(errors, dim=1)).mean()})

    @torch.no_grad()
    def balanced(self, logits: Float[Tensor, "b k"], iterations: int) -> Int[Tensor, " b"]:
        """A label for every image, each used about equally often by the images of all ranks."""
        log_p = energy.at_least_float32(logits).log_softmax(dim=1)
        return inference.sinkhorn(log_p, 1 / self.sharpness, iterations).argmax(dim=1)

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        seen = self.memory.rows.any(dim=1).nonzero()[:, 0]
        if not len(seen):
            return
        mine = self.memory.rows[seen[distributed.rank() :: distributed.world()]]
        for head in range(len(self.prototypes)):
            found = self.balanced(self.logits(mine, head), self.iterations)
            self.labels[seen, head] = distributed.gather(found.float()).long()

    def needs_features(self) -> bool:
        return False  # what is remembered is enough

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.prototypes.copy_(energy.normalise(self.prototypes))
