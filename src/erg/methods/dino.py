"""DINO (Caron et al. 2021)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.centre import Centre, Sharpening
from erg.parts.crops import by_size, multi_crop
from erg.parts.heads import CosineLinear, code_projector
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Schedule
from erg.views.plan import Plan
from erg.views.types import View, Views


class DINO(Method):
    """F(x, y) = -sum_k p'_k(y) log p_k(x): a slow teacher's soft code of y predicted from x.

    p = softmax(s(x) / T) of the student and p' = softmax((s'(y) - c) / T') of the teacher, s the
    cosines with k learned prototypes (Caron et al. 2021, eq. 1 to 3). L is the mean of F over all
    pairs of a large crop y and any other crop x. Subtracting the centre c, a running mean of s'
    (eq. 4), keeps one code from winning; a sharp T' < T keeps them from becoming all alike. The
    teacher is theta' <- m theta' + (1 - m) theta after every step.

    Departs from the paper: fewer prototypes by default, since its 65,536 are meant for 1.3 million
    images, with their gain always fixed at 1 (the authors learn it for ViT-S).
    Checked against: golden numbers of loss and centre; a loop over crops.

    Args:
        prototypes: k, their number.
        hidden: width of the projector's hidden layers [features].
        dim: width of z, whose cosines are taken [features].
        temperature: T of the student.
        teacher_start: T' of the teacher at the start.
        teacher_end: T' after the warm-up.
        warmup: progress until which T' moves from start to end in a straight line, in [0, 1].
        centre: momentum of c.
        momentum: m, from the first step to the last (0.996 is for batches of 1,024; the authors
            advise 0.9995 for 256).
        freeze: progress until which the prototypes stay fixed, in [0, 1].
        small_crops: number of small crops per image.
    """

    cell = Cell("joint-embedding", "regularised", by="EMA teacher, centring and sharpening")

    def __init__(
        self,
        encoder: Encoder,
        *,
        prototypes: int = 4096,
        hidden: int = 2048,
        dim: int = 256,
        temperature: float = 0.1,
        teacher_start: float = 0.04,
        teacher_end: float = 0.07,
        warmup: float = 0.1,
        centre: float = 0.9,
        momentum: Schedule = Cosine(0.996, 1.0),
        freeze: float = 0.01,
        small_crops: int = 8,
    ) -> None:
        super().__init__(encoder)
        if small_crops:
            encoder.need_sizes("DINO")
        self.temperature, self.momentum, self.freeze = temperature, momentum, freeze
        self.sharpening = Sharpening(teacher_start, teacher_end, warmup)
        self.small_crops = small_crops
        self.prototypes = CosineLinear(dim, prototypes)
        self.head = code_projector(encoder.dim, hidden, dim).append(self.prototypes)
        self.teacher = Teacher(nn.Sequential(encoder, self.head))
        self.centre = Centre(prototypes, centre)

    def plan(self) -> Plan:
        return multi_crop(self.encoder.image_size, self.small_crops)

    def scores(self, *crops: View) -> Float[Tensor, "all k"]:
        """s(x) / T of every crop, one crop after the other."""
        return self.head(by_size(self.encoder, crops)) / self.temperature

    def codes(self, s: Float[Tensor, "b k"], progress: float) -> Float[Tensor, "b k"]:
        """p' from s': centred, then sharpened."""
        return self.centre.codes(s, self.sharpening(progress))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cross_entropy(self.scores(x), self.codes(self.teacher(y.data), 1.0))

    def loss(self, views: Views, progress: float) -> Loss:
        crops = [*views.need(2), *views.local]
        taught = self.teacher(torch.cat([y.data for y in views.main]))  # [2b k]
        codes = self.codes(taught, progress).chunk(2)
        misfit = energy.between_crops(self.scores(*crops).chunk(len(crops)), codes)
        if self.training:
            self.centre.update(taught)
        return Loss(pull={"code": distributed.mean(misfit)})

    def frozen(self, progress: float) -> Iterable[nn.Parameter]:
        return self.prototypes.parameters() if progress < self.freeze else ()

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
