"""RELICv2 (Tomasev et al. 2022)."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import SMALL_LOCAL, by_size
from erg.parts.heads import mlp
from erg.parts.host import sent
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Schedule
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, DINO_LOCAL, LARGE, SIMCLR_SMALL, Plan
from erg.views.types import View, Views


class RELICv2(Method):
    """F(x, y) = -cos(o_x, t_y), t from a slow teacher; against a few other images of the batch.

    With p(x; y) = softmax(-F(x, .) / T) over the candidates y: the same image and n others,
    l(x, y) = -a log p(x; y) + b KL(p(x; y) || sg p(y; x)), where in p(y; x) the teacher asks and
    the candidates are the student's. L is the mean of l over every crop x and every large crop y,
    x itself included (Tomasev et al. 2022, pseudo-code). The teacher is theta' <- m theta' +
    (1 - m) theta after every step and sees large crops only. Where an image came with a mask of
    what is salient (`Run.mask`), each large crop is of the image without its background with
    probability p.

    Departs from the paper: masks have to be given, there is no saliency network here; without them
    backgrounds stay. The n others of an image are a random subset of the batch, drawn at the same
    distances for all. The authors' training code is not public: widths, weights and p are as
    reported by others, and that a background becomes the mean colour is a choice of ours.
    Checked against: golden numbers of the divergence; a loop over crops, images and candidates;
    crops of pictures whose backgrounds are removed in NumPy (tests of `views.make`).

    Args:
        temperature: T, of the softmax over candidates.
        contrast: a, weight of the negative logarithm.
        invariance: b, weight of the divergence.
        negatives: n, other images per image; 0 takes the whole batch.
        hidden: width of the projector's hidden layer [features].
        dim: width of o and t [features].
        momentum: m, from the first step to the last.
        large_crops: number of large crops per image.
        small_crops: number of small crops per image.
        background: p, the probability of removing the background of a large crop.
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over a few images, EMA teacher")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.2,
        contrast: float = 0.3,
        invariance: float = 5.0,
        negatives: int = 10,
        hidden: int = 4096,
        dim: int = 256,
        momentum: Schedule = Cosine(0.996, 1.0),
        large_crops: int = 4,
        small_crops: int = 2,
        background: float = 0.1,
    ) -> None:
        super().__init__(encoder)
        if small_crops:
            encoder.need_sizes("RELICv2")
        self.temperature, self.negatives, self.momentum = temperature, negatives, momentum
        self.contrast, self.invariance = contrast, invariance
        self.large_crops, self.small_crops = large_crops, small_crops
        self.background = background
        self.projector = mlp(encoder.dim, hidden, dim)
        self.teacher = Teacher(nn.Sequential(encoder, self.projector))

    def plan(self) -> Plan:
        if self.encoder.image_size < LARGE:
            large = replace(SIMCLR_SMALL, background=self.background)
            return Plan(main=(large,) * self.large_crops, local=(SMALL_LOCAL,) * self.small_crops)
        kinds = [
            replace(kind, crop=(0.14, 1.0), background=self.background)
            for kind in (BYOL_FIRST, BYOL_SECOND)
        ]
        local = replace(DINO_LOCAL, crop=(0.05, 0.14))
        main = tuple(kinds[i % 2] for i in range(self.large_crops))
        return Plan(main=main, local=(local,) * self.small_crops)

    def embed(self, *crops: View) -> Float[Tensor, "all d"]:
        return energy.normalise(self.projector(by_size(self.encoder, crops)))

    def teach(self, *crops: View) -> Float[Tensor, "all d"]:
        return energy.normalise(self.teacher(torch.cat([crop.data for crop in crops])))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.embed(x), self.teach(y))

    def loss(self, views: Views, progress: float) -> Loss:
        main = views.need(self.large_crops)
        crops = [*main, *views.local]
        online = [distributed.gather(o) for o in self.embed(*crops).chunk(len(crops))]
        target = [distributed.gather(t) for t in self.teach(*main).chunk(len(main))]
        away = sent(self.away(len(target[0]), views.step), target[0].device)
        alignment, divergence, repulsion = (target[0].new_zeros(()) for _ in range(3))
        for o in online:
            for t in target:
                own, pushed, apart = self.parts(o, t, away).mean(dim=0)
                alignment = alignment - own
                repulsion = repulsion + pushed
                divergence = divergence + apart
        pairs = len(online) * len(target)
        return Loss(
            pull={
                "alignment": self.contrast * alignment / pairs,
                "invariance": self.invariance * divergence / pairs,
            },
            push={"repulsion": self.contrast * repulsion / pairs},
        )

    def parts(
        self, o: Float[Tensor, "b d"], t: Float[Tensor, "b d"], away: Int[Tensor, " c"]
    ) -> Float[Tensor, "b 3"]:
        """-F / T of each image itself, the logarithm of what its candidates sum up to, and the
        divergence; of some images at a time where there are many candidates."""

        def of(x: Tensor, y: Tensor, place: Tensor) -> Float[Tensor, "some 3"]:
            among = (place[:, None] + away) % len(o)
            s, asked = self.scores(x, t, among), self.scores(y, o.detach(), among)  # [some 1+n]
            divergence = energy.divergence(s, asked)
            return torch.stack([s[:, 0], s.logsumexp(dim=1), divergence], dim=1)

        place = torch.arange(len(o), device=o.device)
        return shaping.in_blocks(of, o, t, place, columns=len(away) * o.shape[1])

    def away(self, b: int, step: int) -> Int[Tensor, " c"]:
        """How far from itself in the batch those stand that each image is compared with, itself
        first."""
        n = min(self.negatives or b - 1, b - 1)
        generator = torch.Generator().manual_seed(step)  # the same on every process
        distances = 1 + torch.randperm(b - 1, generator=generator)[:n]
        return torch.cat([torch.zeros(1, dtype=torch.int64), distances])

    def scores(
        self, x: Float[Tensor, "some d"], y: Float[Tensor, "b d"], among: Int[Tensor, "some c"]
    ) -> Float[Tensor, "some c"]:
        """-F / T of each row of x and its candidates in y."""
        return (x[:, None] * y[among]).sum(dim=2) / self.temperature

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
