"""iBOT (Zhou et al. 2022)."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.center import Center
from erg.parts.crops import by_size
from erg.parts.heads import TokenHeads
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Linear, Schedule
from erg.views.plan import DINO_FIRST, DINO_LOCAL, DINO_SECOND, LARGE, SIMCLR_SMALL, Masking, Plan
from erg.views.types import Mask, View, Views


class IBOT(Method):
    """F(x, y) = -sum_k p'_k(y) log p_k(x): DINO's, and the same of every hidden patch of a view.

    p = softmax(s(x) / T) of the student and p' = softmax((s'(y) - c) / T') of a slow teacher, s the
    cosines with k learned directions. L is the mean of F over all pairs of a large crop y and any
    other crop x, of which the large ones have blocks of patches hidden behind a learned token; plus
    the mean over large crops, hidden or not, of the mean over their hidden patches of F between the
    teacher's token of the whole view and the student's (Zhou et al. 2022, eq. 1 to 3). Views and
    patches have a centre each.

    Departs from the paper: fewer directions by default (8,192 there), their gain always fixed at
    1; hidden shares are met exactly; crops and temperatures are those of the authors' ViT-S.
    Checked against: without masks it is DINO; a loop over patches; the entropy of equal codes.

    Args:
        prototypes: k, the number of directions.
        hidden: width of the projector's hidden layers [features].
        dim: width of z, whose cosines are taken [features].
        shared: whether patches have the directions of views, or others behind the same projector.
        ratio: middle of the share of patches hidden in a large crop that is masked.
        spread: the share is uniform in ratio - spread to ratio + spread.
        masked: probability that a large crop is masked.
        blocks: whether patches are hidden in rectangles or one by one.
        temperature: T of the student.
        teacher_start: T' of the teacher at the start.
        teacher_end: T' after the warm-up.
        warmup: progress until which T' moves from start to end in a straight line, in [0, 1].
        centre: momentum of both centres.
        momentum: of the teacher, from the first step to the last.
        freeze: progress until which the directions stay fixed, in [0, 1].
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
        shared: bool = True,
        ratio: float = 0.3,
        spread: float = 0.2,
        masked: float = 0.5,
        blocks: bool = True,
        temperature: float = 0.1,
        teacher_start: float = 0.04,
        teacher_end: float = 0.07,
        warmup: float = 0.1,
        centre: float = 0.9,
        momentum: Schedule = Cosine(0.996, 1.0),
        freeze: float = 0.01,
        small_crops: int = 10,
    ) -> None:
        super().__init__(encoder)
        grid = encoder.need_patches("IBOT")
        if small_crops:
            encoder.need_sizes("IBOT")
        self.temperature, self.momentum, self.freeze = temperature, momentum, freeze
        self.teacher_start, self.teacher_end, self.warmup = teacher_start, teacher_end, warmup
        self.small_crops = small_crops
        kind: Literal["blocks", "random"] = "blocks" if blocks else "random"
        self.masking = Masking(grid=grid, ratio=ratio, spread=spread, masked=masked, kind=kind)
        self.blank = nn.Parameter(torch.zeros(encoder.dim))
        self.heads = TokenHeads(
            encoder.dim, hidden, dim, prototypes, tokens="same" if shared else "directions"
        )
        self.teacher, self.teacher_heads = Teacher(encoder), Teacher(self.heads)
        self.centre, self.patch_centre = Center(prototypes, centre), Center(prototypes, centre)

    def plan(self) -> Plan:
        if self.encoder.image_size >= LARGE:
            large = (replace(DINO_FIRST, crop=(0.25, 1.0)), replace(DINO_SECOND, crop=(0.25, 1.0)))
            local = replace(DINO_LOCAL, crop=(0.05, 0.25))
        else:
            large = (replace(SIMCLR_SMALL, crop=(0.4, 1.0)),) * 2
            local = replace(SIMCLR_SMALL, crop=(0.1, 0.4), size=0.5)
        main = tuple(replace(view, mask=self.masking) for view in large)
        return Plan(main=main, local=(local,) * self.small_crops)

    @torch.no_grad()
    def taught(self, data: Tensor) -> tuple[Float[Tensor, "b k"], Float[Tensor, "m k"]]:
        """s' of whole views and of all their patches, image by image."""
        vectors, tokens = self.teacher.network.with_tokens(data)
        return self.teacher_heads(vectors, tokens.flatten(0, 1))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        vectors, tokens = self.encoder.masked(x.data, x.need_mask("IBOT"), self.blank)
        scores, _ = self.heads(vectors, tokens[:, :0].flatten(0, 1))
        codes = self.centre.codes(self.taught(y.data)[0], self.teacher_end)
        return energy.cross_entropy(scores / self.temperature, codes)

    def loss(self, views: Views, progress: float) -> Loss:
        main = views.need(2)
        data, mask = torch.cat([view.data for view in main]), both(main)
        hidden = mask.hidden.any(dim=1)  # [2b n]
        vectors, tokens = self.encoder.masked(data, mask, self.blank)
        if views.local:
            vectors = torch.cat([vectors, by_size(self.encoder, views.local)])
        scores, of_patches = (s / self.temperature for s in self.heads(vectors, tokens[hidden]))
        taught, patches = self.taught(data)
        part = progress / self.warmup if self.warmup else 1.0
        sharp = Linear(self.teacher_start, self.teacher_end)(part)
        codes = self.centre.codes(taught, sharp)
        crops = scores.chunk(2 + len(views.local))
        errors = energy.cross_entropy(
            of_patches, self.patch_centre.codes(patches[hidden.flatten()], sharp)
        )
        if self.training:
            self.centre.update(taught)
            self.patch_centre.update(patches)
        return Loss(
            pull={
                "code": distributed.mean(energy.between_crops(crops, codes.chunk(2))),
                "patches": distributed.mean(energy.of_hidden(errors, hidden)),
            }
        )

    def frozen(self, progress: float) -> Iterable[nn.Parameter]:
        return self.heads.last_layers() if progress < self.freeze else ()

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
        self.teacher_heads.follow(self.momentum(progress))


def both(views: tuple[View, ...]) -> Mask:
    """The masks of several views, one after the other."""
    masks = [view.need_mask("IBOT") for view in views]
    return Mask(torch.cat([mask.hidden for mask in masks]), masks[0].grid)
