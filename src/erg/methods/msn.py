"""MSN (Assran et al. 2022)."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, inference
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import by_size
from erg.parts.heads import CosineLinear, mlp
from erg.parts.teacher import Teacher
from erg.schedule import Linear, Schedule
from erg.views.plan import LARGE, MOCO2, SIMCLR_SMALL, Masking, Plan
from erg.views.types import View, Views


class MSN(Method):
    """F(x, y) = -sum_k q_k(y) log p_k(x): the prototypes of a whole view from a part of another.

    p = softmax(s(x) / T), s the cosines of z with k learned prototypes and x a view with patches
    left out, or a small crop; q is that of a slow teacher's whole view y, raised to 1 / sharpen and
    divided by its sum, and then balanced over the batch (Assran et al. 2022, eq. 1). L is the mean
    of F over all x, plus weight (log k - H(mean over all x of p)), which keeps all prototypes in
    use. The teacher is theta' <- m theta' + (1 - m) theta after every step.

    Departs from the paper: every image leaves out patches of its own, where the authors leave out
    the same for all of a batch; m is 1 in the end (0.9992 in the authors' code, whose schedules are
    those of a run longer by a quarter).
    Checked against: golden numbers, with and without balance; a loop over crops.

    Args:
        prototypes: k.
        hidden: width of the head's two hidden layers [features].
        dim: width of z [features].
        ratio: share of patches left out (0.15 for ViT-S, 0.3 for B, 0.7 for L); 0 for none, with
            any encoder.
        temperature: T.
        sharpen: exponent 1 / sharpen of q; smaller is sharper.
        sinkhorn: steps of Sinkhorn-Knopp that balance q over the batch; 0 for none.
        weight: of the entropy of the mean.
        momentum: m, from the first step to the last.
        small_crops: number of small crops per image.
    """

    cell = Cell("joint-embedding", "regularised", by="entropy of mean codes, sharp EMA teacher")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        prototypes: int = 1024,
        hidden: int = 2048,
        dim: int = 256,
        ratio: float = 0.15,
        temperature: float = 0.1,
        sharpen: float = 0.25,
        sinkhorn: int = 3,
        weight: float = 1.0,
        momentum: Schedule = Linear(0.996, 1.0),
        small_crops: int = 10,
    ) -> None:
        super().__init__(encoder)
        if ratio and encoder.grid is None:
            raise ValueError(
                f"MSN leaves out patches, and {encoder.name} has none. Use a ViT, for example "
                "vit_tiny_patch16_224, or ratio = 0."
            )
        if small_crops:
            encoder.need_sizes("MSN")
        self.temperature, self.sharpen, self.sinkhorn = temperature, sharpen, sinkhorn
        self.weight, self.momentum, self.small_crops = weight, momentum, small_crops
        self.masking = Masking(grid=encoder.grid, ratio=ratio) if ratio and encoder.grid else None
        self.head = mlp(encoder.dim, hidden, hidden, dim, activation=nn.GELU)
        self.prototypes = CosineLinear(dim, prototypes)
        self.teacher = Teacher(nn.Sequential(encoder, self.head))

    def plan(self) -> Plan:
        small = self.encoder.image_size < LARGE
        view = replace(SIMCLR_SMALL if small else MOCO2, crop=(0.3, 1.0))
        local = replace(
            view, crop=(0.1, 0.3) if small else (0.05, 0.3), size=0.5 if small else 96 / 224
        )
        main = (replace(view, mask=self.masking), view)
        return Plan(main=main, local=(local,) * self.small_crops)

    def scores(self, x: View, *local: View) -> Float[Tensor, "all k"]:
        """Cosines of x's visible part, and of small crops, with all prototypes, / T."""
        if x.mask is None:
            z = self.encoder(x.data)
        else:
            z, _ = self.encoder.masked(x.data, x.mask)
        z = by_size(self.encoder, local, z)
        return self.prototypes(self.head(z)) / self.temperature

    @torch.no_grad()
    def codes(self, y: View, sinkhorn: int) -> Float[Tensor, "b k"]:
        """q of whole views."""
        scores = self.prototypes(self.teacher(y.data)) / self.temperature
        sharp = (scores / self.sharpen).log_softmax(dim=1)
        return inference.sinkhorn(sharp, eps=1.0, iterations=sinkhorn)

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cross_entropy(self.scores(x), self.codes(y, 0))

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = views.need(2)
        scores, codes = self.scores(x, *views.local), self.codes(y, self.sinkhorn)
        errors = energy.cross_entropy(scores, codes.repeat(1 + len(views.local), 1))
        p = distributed.mean(energy.at_least_float32(scores).softmax(dim=1))
        smallest = torch.finfo(p.dtype).tiny  # the slope of p log p is infinite at 0
        missing = math.log(len(p)) + (p * p.clamp_min(smallest).log()).sum()
        return Loss(
            pull={"code": distributed.mean(errors)}, push={"unused codes": self.weight * missing}
        )

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
