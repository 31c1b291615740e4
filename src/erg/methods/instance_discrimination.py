"""Instance discrimination with a memory bank (Wu et al. 2018)."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.bank import Memory
from erg.parts.heads import mlp
from erg.parts.host import sent
from erg.views.plan import SIMCLR_SMALL, Plan
from erg.views.types import View, Views


class InstanceDiscrimination(Method):
    """F(i, y) = -cos(m_i, z_y): image i, remembered as m_i, against a view y; every image a class.

    L = F(i, y) / T + log sum_j exp(-F(j, y) / T) over all n images remembered (Wu et al. 2018,
    eq. 2). With `negatives` = k > 0 instead noise contrastive estimation (eq. 4 to 7): with
    h_j = exp(-F(j, y) / T) / Z, L = -log h_i / (h_i + k / n) - sum_j log (k / n) / (h_j + k / n)
    over k random j, and Z the n-fold mean of the first batch, fixed from then on (eq. 8). After
    each step m_i <- normalise((m_i + z_y) / 2), as in the authors' code. A view alone has the free
    energy -T log sum_j exp(-F(j, y) / T).

    Departs from the paper: the full softmax by default, which costs little here; the random j are
    drawn once per step for the whole batch, not for each image; no proximal regularisation;
    views turn grey after the jitter, not before, and small images are mirrored too.
    Checked against: the golden number of NCE; loops over the memory.

    Args:
        size: n, rows of the memory: the number of images. Those of images held out stay random
            directions.
        negatives: k, of noise contrastive estimation (4,096 in the paper); 0 for the full softmax.
        temperature: T, of the softmax over images.
        momentum: share of m_i that stays.
        dim: width of z [features].
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over a memory of all images")
    partition: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        size: int = 65_536,
        negatives: int = 0,
        temperature: float = 0.07,
        momentum: float = 0.5,
        dim: int = 128,
    ) -> None:
        super().__init__(encoder)
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.projector = mlp(encoder.dim, dim)
        self.memory = Memory(size, dim)
        self.register_buffer("partition", torch.zeros(()))  # Z; 0 before the first batch

    def plan(self) -> Plan:
        return Plan(main=(replace(SIMCLR_SMALL, jitter=1.0, hue=0.4),), pairs="alone")

    def project(self, view: View) -> Float[Tensor, "b d"]:
        return energy.normalise(self.projector(self.encoder(view.data)))

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        """Of two views; or, without x, the free energy of y over all images remembered."""
        z = self.project(y)
        if x is not None:
            return energy.cosine(self.project(x), z)
        rows = self.memory.rows
        return -self.temperature * shaping.log_partition(z / self.temperature, rows)

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        z = self.project(y)
        own = -(self.memory.of(views.index).to(z) * z).sum(dim=1) / self.temperature  # F / T
        found = self.estimation(own, z, views.step) if self.negatives else self.softmax(own, z)
        if self.training:
            self.memory.update(views.index, z, self.momentum)
        return found

    def softmax(self, own: Float[Tensor, " b"], z: Float[Tensor, "b d"]) -> Loss:
        """Against every image remembered."""
        others = shaping.log_partition(z / self.temperature, self.memory.rows)
        return Loss(
            pull={"instance": distributed.mean(own)}, push={"others": distributed.mean(others)}
        )

    def estimation(self, own: Float[Tensor, " b"], z: Float[Tensor, "b d"], step: int) -> Loss:
        """Against k random images: is it this image, or noise?"""
        rows, k = self.memory.rows, self.negatives
        generator = torch.Generator().manual_seed(step)  # the same on every process
        drawn = torch.randint(len(rows), (k,), generator=generator)
        noise = rows[sent(drawn, rows.device)]
        # -F / T - shift = log (h n / k), whose sigmoid is h / (h + k / n)
        shift = self.log_partition(own, z, noise) + math.log(k / len(rows))

        def missed(z: Tensor) -> Float[Tensor, " some"]:
            return softplus(self.scores(z, noise) - shift).sum(dim=1)

        return Loss(
            pull={"instance": distributed.mean(softplus(own + shift))},
            push={"noise": distributed.mean(shaping.in_blocks(missed, z, columns=k))},
        )

    def scores(self, z: Float[Tensor, "b d"], noise: Float[Tensor, "k d"]) -> Float[Tensor, "b k"]:
        """-F / T of each view and each image that is noise to it."""
        return energy.products(z, noise) / self.temperature

    @torch.no_grad()
    def log_partition(
        self, own: Float[Tensor, " b"], z: Float[Tensor, "b d"], noise: Float[Tensor, "k d"]
    ) -> Tensor:
        """log Z: of the first batch, positives and negatives together, and kept."""
        if self.partition == 0:

            def mean(own: Tensor, z: Tensor) -> Float[Tensor, " some"]:
                return torch.cat([-own[:, None], self.scores(z, noise)], dim=1).exp().mean(dim=1)

            drawn = shaping.in_blocks(mean, own, z, columns=len(noise))
            found = len(self.memory.rows) * distributed.mean(drawn)
            if not self.training:
                return found.log()
            self.partition.copy_(found)
        return self.partition.log().to(own)
