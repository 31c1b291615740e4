"""iBOT (Zhou et al. 2022)."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.centre import Centre, Sharpening
from erg.parts.crops import by_size, multi_crop
from erg.parts.heads import TokenHeads
from erg.parts.hidden import blanked, stacked
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Schedule
from erg.views.plan import Masking, Plan
from erg.views.types import Mask, View, Views


class IBOT(Method):
    """F(x, y) = -sum_k p'_k(y) log p_k(x): DINO's, and the same of every hidden patch of a view.

    p = softmax(s(x) / T) of the student and p' = softmax((s'(y) - c) / T') of a slow teacher, s the
    cosines with k learned prototypes. L is the mean of F over all pairs of a large crop y and any
    other crop x, of which the large ones have blocks of patches hidden behind a learned token; plus
    the mean over large crops, hidden or not, of the mean over their hidden patches of F between the
    teacher's token of the whole view and the student's (Zhou et al. 2022, eq. 1 to 3). Views and
    patches have a centre each. The teacher is theta' <- m theta' + (1 - m) theta after every step.
    `energy` is that of the views alone: two crops share no patch.

    Networks whose tokens are those of their last stage, a Swin for one, have the mean of these for
    their vector; what is hidden are the pixels of such tokens, behind a learned square of pixels.

    Departs from the paper: fewer prototypes by default (8,192 there), their gain always fixed at
    1; hidden shares are met exactly; crops and temperatures are those of the authors' ViT-S. With a
    stride, the blank stands before the patch embedding and not behind it, and patches are hidden
    from the start (the authors' Swins wait 50 epochs).
    Checked against: without masks it is DINO; a loop over patches, of a ViT and of a Swin; the
    entropy of equal codes.

    Args:
        prototypes: k, their number.
        hidden: width of the projector's hidden layers [features].
        dim: width of z, whose cosines are taken [features].
        shared: whether patches have the prototypes of views, or others behind the same projector.
        ratio: middle of the share of patches hidden in a large crop that is masked.
        spread: the share is uniform in ratio - spread to ratio + spread.
        masked: probability that a large crop is masked.
        blocks: whether patches are hidden in rectangles or one by one.
        temperature: T of the student.
        teacher_start: T' of the teacher at the start.
        teacher_end: T' after the warm-up.
        warmup: progress until which T' moves from start to end in a straight line, in [0, 1].
        centre: momentum of both centres.
        momentum: m, from the first step to the last.
        freeze: progress until which the prototypes stay fixed, in [0, 1].
        small_crops: number of small crops per image.
        stride: pixels that a token stands for, for networks in stages (32 for a Swin); 0 for a ViT.
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
        stride: int = 0,
    ) -> None:
        super().__init__(encoder)
        grid = grid_of(encoder, stride)
        if small_crops:
            encoder.need_sizes("IBOT")
        self.temperature, self.momentum, self.freeze = temperature, momentum, freeze
        self.sharpening = Sharpening(teacher_start, teacher_end, warmup)
        self.small_crops = small_crops
        kind: Literal["blocks", "random"] = "blocks" if blocks else "random"
        self.masking = Masking(grid=grid, ratio=ratio, spread=spread, masked=masked, kind=kind)
        # the mask token
        self.blank = nn.Parameter(torch.zeros((3, stride, stride) if stride else encoder.dim))
        self.heads = TokenHeads(
            encoder.dim, hidden, dim, prototypes, tokens="same" if shared else "directions"
        )
        self.teacher, self.teacher_heads = Teacher(encoder), Teacher(self.heads)
        self.centre, self.patch_centre = Centre(prototypes, centre), Centre(prototypes, centre)

    def plan(self) -> Plan:
        size, small = self.encoder.image_size, self.small_crops
        return multi_crop(size, small, share=0.25, mask=self.masking)

    def seen(self, data: Tensor, mask: Mask) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        """The student's vectors and tokens of what is not hidden."""
        if self.blank.ndim == 1:
            return self.encoder.masked(data, mask, self.blank)
        vectors, tokens = self.encoder.with_tokens(blanked(data, mask, self.blank))
        if tokens.shape[1] != mask.hidden.shape[2]:
            raise ValueError(
                f"{self.encoder.name} gives {tokens.shape[1]} tokens, and masks are of "
                f"{mask.hidden.shape[2]}. Set stride to the pixels that one token stands for."
            )
        return vectors, tokens

    @torch.no_grad()
    def taught(self, data: Tensor) -> tuple[Float[Tensor, "b k"], Float[Tensor, "m k"]]:
        """s' of whole views and of all their patches, image by image."""
        vectors, tokens = self.teacher.network.with_tokens(data)
        return self.teacher_heads(vectors, tokens.flatten(0, 1))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        vectors, _ = self.seen(x.data, x.need_mask("IBOT"))
        scores, _ = self.heads(vectors, vectors[:0])  # no patch is asked about
        codes = self.centre.codes(self.taught(y.data)[0], self.sharpening(1.0))
        return energy.cross_entropy(scores / self.temperature, codes)

    def loss(self, views: Views, progress: float) -> Loss:
        data, mask = stacked(views.need(2), "IBOT")
        hidden = mask.hidden.any(dim=1)  # [2b n]
        vectors, tokens = self.seen(data, mask)
        vectors = by_size(self.encoder, views.local, vectors)
        scores, of_patches = (s / self.temperature for s in self.heads(vectors, tokens[hidden]))
        taught, patches = self.taught(data)
        sharp = self.sharpening(progress)
        codes = self.centre.codes(taught, sharp).chunk(2)
        errors = energy.cross_entropy(
            of_patches, self.patch_centre.codes(patches[hidden.flatten()], sharp)
        )
        pairs = scores.chunk(2 + len(views.local))
        if self.training:
            self.centre.update(taught)
            self.patch_centre.update(patches)
        return Loss(
            pull={
                "code": distributed.mean(energy.between_crops(pairs, codes)),
                "patches": distributed.mean(energy.of_hidden(errors, hidden)),
            }
        )

    def frozen(self, progress: float) -> Iterable[nn.Parameter]:
        return self.heads.last_layers() if progress < self.freeze else ()

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
        self.teacher_heads.follow(self.momentum(progress))


def grid_of(encoder: Encoder, stride: int) -> tuple[int, int]:
    """Rows and columns of what can be hidden: a ViT's patches, or squares of `stride` pixels."""
    if not stride:
        return encoder.need_patches("IBOT")
    if encoder.image_size % stride:
        raise ValueError(
            f"tokens of {stride} pixels do not fill an image of {encoder.image_size}. Set stride "
            f"to what a token of {encoder.name} stands for, or change the image size."
        )
    side = encoder.image_size // stride
    return side, side
