"""EsViT (Li et al. 2022)."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.centre import Centre, Sharpening
from erg.parts.crops import multi_crop, of_one_size
from erg.parts.heads import TokenHeads
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Schedule
from erg.views.plan import Plan
from erg.views.types import View, Views


class EsViT(Method):
    """F(x, y) = (1 - r) H(p'(y), p(x)) + r mean_i H(p'(y_j(i)), p(x_i)): of views and of regions.

    H is the cross-entropy, p = softmax(s(x) / T) of the student and p' = softmax((s'(y) - c) / T')
    of a slow teacher, s the cosines with k learned prototypes; x_i are the regions of x, which are
    the encoder's last tokens, and y_j(i) is the region of y whose token is most like that of x_i
    (Li et al. 2022, eq. 1 to 3). Views and regions have a head and a centre each. L is the mean of
    F over all pairs of a large crop y and any other crop x. The teacher is
    theta' <- m theta' + (1 - m) theta after every step.

    Departs from the paper: fewer prototypes by default (65,536 there), their gain always fixed at
    1; both parts from the start (the larger models of the paper begin without regions).
    Checked against: golden numbers of matches and regions; r = 0 is DINO; a loop over regions.

    Args:
        prototypes: k, their number in each head.
        hidden: width of the projectors' hidden layers [features].
        dim: width of what prototypes are compared with [features].
        regions: r, the weight of regions, in [0, 1].
        temperature: T of the student.
        teacher_start: T' of the teacher at the start.
        teacher_end: T' after the warm-up.
        warmup: progress until which T' moves from start to end in a straight line, in [0, 1].
        centre: momentum of both centres.
        momentum: m, from the first step to the last.
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
        regions: float = 0.5,
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
            encoder.need_sizes("EsViT")
        self.temperature, self.momentum, self.freeze = temperature, momentum, freeze
        self.sharpening = Sharpening(teacher_start, teacher_end, warmup)
        self.regions, self.small_crops = regions, small_crops
        self.heads = TokenHeads(encoder.dim, hidden, dim, prototypes, tokens="own")
        self.teacher, self.teacher_heads = Teacher(encoder), Teacher(self.heads)
        self.centre, self.region_centre = Centre(prototypes, centre), Centre(prototypes, centre)

    def plan(self) -> Plan:
        return multi_crop(self.encoder.image_size, self.small_crops)

    def parts(
        self, encoder: Encoder, heads: nn.Module, crops: Sequence[View]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of every crop the scores [b k], the tokens [b n d] and the tokens' scores [b n k].

        One encoder pass per resolution, one pass of each head for all.
        """
        vectors: list[Tensor] = []
        tokens: list[Tensor] = []
        for same in of_one_size(crops):
            vector, cells = encoder.with_tokens(torch.cat(same))
            vectors.append(vector)
            tokens += cells.chunk(len(same))
        scores, regions = heads(torch.cat(vectors), torch.cat([t.flatten(0, 1) for t in tokens]))
        split = regions.split([t.shape[0] * t.shape[1] for t in tokens])
        apart = [s.unflatten(0, t.shape[:2]) for s, t in zip(split, tokens, strict=True)]
        return list(scores.chunk(len(crops))), tokens, apart

    @torch.no_grad()
    def taught(self, crops: Sequence[View]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The same of the teacher."""
        return self.parts(self.teacher.network, self.teacher_heads, crops)

    def compare(
        self,
        crops: Sequence[View],
        taught: tuple[list[Tensor], list[Tensor], list[Tensor]],
        progress: float,
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """H of views and H of regions, means over pairs; the first crops are those taught."""
        sharp = self.sharpening(progress)
        codes = [self.centre.codes(s, sharp) for s in taught[0]]
        of_regions = [
            self.region_centre.codes(s.flatten(0, 1), sharp).unflatten(0, s.shape[:2])
            for s in taught[2]
        ]
        scores, tokens, regions = self.parts(self.encoder, self.heads, crops)
        total, pairs = torch.zeros_like(codes[0][:, 0]), 0
        for i, (mine, s) in enumerate(zip(tokens, regions, strict=True)):
            for j, (theirs, q) in enumerate(zip(taught[1], of_regions, strict=True)):
                if i != j:
                    code = q.gather(1, partners(mine, theirs)[..., None].expand_as(s))
                    errors = energy.cross_entropy(s / self.temperature, code)  # [b n]
                    total, pairs = total + errors.mean(dim=1), pairs + 1
        return energy.between_crops([s / self.temperature for s in scores], codes), total / pairs

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        views, regions = self.compare((y, x), self.taught((y,)), 1.0)
        return (1 - self.regions) * views + self.regions * regions

    def loss(self, views: Views, progress: float) -> Loss:
        main = views.need(2)
        taught = self.taught(main)
        of_views, of_regions = self.compare((*main, *views.local), taught, progress)
        if self.training:
            self.centre.update(torch.cat(taught[0]))
            self.region_centre.update(torch.cat([s.flatten(0, 1) for s in taught[2]]))
        return Loss(
            pull={
                "views": (1 - self.regions) * distributed.mean(of_views),
                "regions": self.regions * distributed.mean(of_regions),
            }
        )

    def frozen(self, progress: float) -> Iterable[nn.Parameter]:
        return self.heads.last_layers() if progress < self.freeze else ()

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
        self.teacher_heads.follow(self.momentum(progress))


@torch.no_grad()
@energy.full_precision
def partners(x: Float[Tensor, "b n d"], y: Float[Tensor, "b m d"]) -> Int[Tensor, "b n"]:
    """For every token of x the one of y, in the same image, that is most like it."""
    return (energy.normalise(x) @ energy.normalise(y).mT).argmax(dim=2)
