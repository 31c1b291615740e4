"""DINOv2 (Oquab et al. 2024), with the Gram anchoring of DINOv3 (Siméoni et al. 2025)."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, inference
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.centre import Centre, Sharpening
from erg.parts.crops import by_size, multi_crop
from erg.parts.heads import TokenHeads
from erg.parts.hidden import stacked
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Schedule
from erg.views.plan import Masking, Plan
from erg.views.types import View, Views


class DINOv2(Method):
    """F(x, y) = -sum_k q_k(y) log p_k(x): of views and of hidden patches; neighbours keep apart.

    p = softmax(s(x) / T) of the student; q = softmax((s'(y) - c) / T') of a slow teacher, or its
    s'(y) / T' balanced over the batch by Sinkhorn-Knopp; s are the cosines with k learned
    prototypes. L is the mean of F over all pairs of a large crop and any other crop; plus the mean
    over large crops of the mean of F over their hidden patches; plus koleo times the sum over both
    large crops of -mean_i log ||z_i - z_j||, z the student's normalised vectors and j the nearest
    to i (Oquab et al. 2024, section 4). Registers are the encoder's, with `reg_tokens`. The teacher
    is theta' <- m theta' + (1 - m) theta after every step. `energy` is that of the views alone: two
    crops share no patch.

    With `gram`, from progress `gram_from` on, plus gram times the mean over large crops of
    mean_ij (p_i . p_j - g_i . g_j)^2, p the student's normalised patches and g those of the
    teacher as it was then: what patches are like each other stays, while views go on to be learned
    (Siméoni et al. 2025).

    Departs from the paper: fewer prototypes by default (65,536 there), their gain always fixed at
    1; shares of hidden patches are spread over the global batch of each view, not over both views
    of a process, and met exactly (fewer at times there), by rectangles from a ninth of the grid's
    smaller side squared on, as iBOT's (from 4 patches there); neighbours are those of the global
    batch; prototypes are frozen at first and not learned at rate 0. Anchors see the student's own
    crops, where DINOv3 shows them twice as many pixels with the colours as they are, and stay,
    where it renews them three times.
    Checked against: golden numbers of KoLeo and of the Gram distance; without its parts it is iBOT;
    loops over patches.

    Args:
        prototypes: k, their number.
        hidden: width of the projectors' hidden layers [features].
        dim: width of what prototypes are compared with [features].
        untied: whether patches have a projector and prototypes of their own.
        centring: how codes are kept apart: a running mean, or Sinkhorn-Knopp.
        koleo: weight of what keeps vectors apart.
        ratio: middle of the share of patches hidden in a large crop that is masked.
        spread: the shares of a batch are spread evenly over ratio - spread to ratio + spread.
        masked: share of the large crops that are masked.
        temperature: T of the student.
        teacher_start: T' of the teacher at the start.
        teacher_end: T' after the warm-up.
        warmup: progress until which T' moves from start to end in a straight line, in [0, 1].
        centre: momentum of both running means.
        momentum: m, from the first step to the last.
        freeze: progress until which the prototypes stay fixed, in [0, 1].
        small_crops: number of small crops per image.
        gram: weight of what holds patches' likeness to the anchor's; 0 for DINOv2.
        gram_from: progress at which the anchor is taken, and from which it holds, in [0, 1].
    """

    cell = Cell("joint-embedding", "regularised", by="EMA teacher, balanced codes, KoLeo")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        prototypes: int = 4096,
        hidden: int = 2048,
        dim: int = 256,
        untied: bool = True,
        centring: Literal["mean", "sinkhorn"] = "sinkhorn",
        koleo: float = 0.1,
        ratio: float = 0.3,
        spread: float = 0.2,
        masked: float = 0.5,
        temperature: float = 0.1,
        teacher_start: float = 0.04,
        teacher_end: float = 0.07,
        warmup: float = 0.3,
        centre: float = 0.9,
        momentum: Schedule = Cosine(0.992, 1.0),
        freeze: float = 0.01,
        small_crops: int = 8,
        gram: float = 0.0,
        gram_from: float = 0.8,
    ) -> None:
        super().__init__(encoder)
        grid = encoder.need_patches("DINOv2")
        if small_crops:
            encoder.need_sizes("DINOv2")
        self.temperature, self.momentum, self.freeze = temperature, momentum, freeze
        self.sharpening = Sharpening(teacher_start, teacher_end, warmup)
        self.centring, self.koleo, self.small_crops = centring, koleo, small_crops
        self.masking = Masking(
            grid=grid, ratio=ratio, spread=spread, masked=masked, stratified=True, kind="blocks"
        )
        self.blank = nn.Parameter(torch.zeros(encoder.dim))  # the mask token
        self.heads = TokenHeads(
            encoder.dim, hidden, dim, prototypes, tokens="own" if untied else "same"
        )
        self.teacher, self.teacher_heads = Teacher(encoder), Teacher(self.heads)
        self.centre, self.patch_centre = Centre(prototypes, centre), Centre(prototypes, centre)
        self.gram, self.gram_from = gram, gram_from
        self.anchor = Teacher(self.teacher.network) if gram else None

    def plan(self) -> Plan:
        size, small = self.encoder.image_size, self.small_crops
        return multi_crop(size, small, share=0.32, mask=self.masking)

    def codes(self, s: Float[Tensor, "b k"], centre: Centre, progress: float) -> Tensor:
        """q [b k] from the teacher's scores; a running mean moves afterwards, in training."""
        sharp = self.sharpening(progress)
        if self.centring == "sinkhorn":
            return inference.sinkhorn(s, eps=sharp)
        codes = centre.codes(s, sharp)
        if self.training and sum(distributed.counts(len(s), s.device)):
            centre.update(s)
        return codes

    @torch.no_grad()
    def taught(self, data: Tensor, hidden: Tensor) -> tuple[Float[Tensor, "b k"], Tensor]:
        """The teacher's scores of whole views, and of the patches hidden in them [m k]."""
        vectors, tokens = self.teacher.network.with_tokens(data)
        return self.teacher_heads(vectors, tokens[hidden])

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        mask = x.need_mask("DINOv2")
        nothing = torch.zeros_like(mask.hidden[:, 0])  # no patch is asked about
        vectors, tokens = self.encoder.masked(x.data, mask, self.blank)
        scores, _ = self.heads(vectors, tokens[nothing])
        codes = self.centre.codes(self.taught(y.data, nothing)[0], self.sharpening(1.0))
        return energy.cross_entropy(scores / self.temperature, codes)

    def loss(self, views: Views, progress: float) -> Loss:
        data, mask = stacked(views.need(2), "DINOv2")
        hidden = mask.hidden.any(dim=1)  # [2b n]
        vectors, tokens = self.encoder.masked(data, mask, self.blank)
        crops = by_size(self.encoder, views.local, vectors)
        scores, patches = (s / self.temperature for s in self.heads(crops, tokens[hidden]))
        taught, hints = self.taught(data, hidden)
        codes = self.codes(taught, self.centre, progress).chunk(2)
        errors = energy.cross_entropy(patches, self.codes(hints, self.patch_centre, progress))
        pairs = energy.between_crops(scores.chunk(2 + len(views.local)), codes)
        near = [crowding(distributed.gather(z)) for z in vectors.chunk(2)]
        pull = {
            "code": distributed.mean(pairs),
            "patches": distributed.mean(energy.of_hidden(errors, hidden)),
        }
        if self.anchor is not None and progress >= self.gram_from:
            _, anchors = self.anchor.network.with_tokens(data)
            pull["gram"] = self.gram * distributed.mean(gram_distance(tokens, anchors))
        return Loss(pull=pull, push={"crowding": self.koleo * torch.stack(near).sum()})

    def frozen(self, progress: float) -> Iterable[nn.Parameter]:
        return self.heads.last_layers() if progress < self.freeze else ()

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
        self.teacher_heads.follow(self.momentum(progress))
        if self.anchor is not None and progress < self.gram_from:
            self.anchor.follow(0.0)  # the teacher itself, until it is held


@energy.full_precision
def crowding(z: Float[Tensor, "b d"], eps: float = 1e-8) -> Float[Tensor, ""]:
    """-mean_i log ||z_i - z_j||, z normalised and j the nearest to i.

    KoLeo (Sablayrolles et al. 2019); eps is added to every difference and to the distance.
    """
    z = energy.normalise(z)
    likeness = (z @ z.T).detach().fill_diagonal_(-2)
    distance = (z - z[likeness.argmax(dim=1)] + eps).norm(dim=1)
    return -(distance + eps).log().mean()


@energy.full_precision
def gram_distance(x: Float[Tensor, "b n d"], y: Float[Tensor, "b n e"]) -> Float[Tensor, " b"]:
    """Mean over pairs of an image's patches of (x_i . x_j - y_i . y_j)^2, all normalised."""
    x, y = energy.normalise(x), energy.normalise(y)
    return energy.mean_squared_error(x @ x.mT, y @ y.mT)
