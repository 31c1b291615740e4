"""data2vec for images (Baevski et al. 2022)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.teacher import Teacher
from erg.schedule import Linear, Schedule
from erg.views.plan import Augmentation, Masking, Plan
from erg.views.types import View, Views


class Data2Vec(Method):
    """F(x, y) = mean over hidden patches p of h(f(x)_p - t'(y)_p): a slow teacher's layers guessed.

    x is an image with a learned token in the place of what is hidden, y the whole of it; t' is the
    mean over the teacher's K topmost blocks of their tokens, each normalised over its features,
    and normalised once more (Baevski et al. 2022, eq. 1 and section 3.3); h is |e| - beta / 2, or
    e^2 / (2 beta) where |e| < beta, and the mean over features. The teacher is
    theta' <- m theta' + (1 - m) theta after every step.

    Departs from the paper: positions and initial weights are the encoder's own, and so is the class
    token, of which nothing is asked, so that a ViT is best built with global_pool = avg and
    fc_norm = False; the hidden share is met exactly; m rises in a straight line, as in fairseq's
    port (the authors' own code holds it at 0.9998 throughout).
    Checked against: golden numbers; a loop over patches and blocks.

    Args:
        ratio: share of patches hidden.
        top: K, the number of blocks averaged.
        beta: where the error turns from squared to absolute [deviations of the target].
        momentum: m, from the first step to the last.
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("joint-embedding", "regularised", by="normalised targets of an EMA teacher")

    def __init__(
        self,
        encoder: Encoder,
        *,
        ratio: float = 120 / 196,
        top: int = 6,
        beta: float = 2.0,
        momentum: Schedule = Linear(0.999, 0.9998),
        crop: float = 0.08,
    ) -> None:
        super().__init__(encoder)
        grid = encoder.need_patches("Data2Vec")
        if not 1 <= top <= encoder.depth:
            raise ValueError(
                f"top = {top} of the {encoder.depth} blocks of {encoder.name} cannot be averaged. "
                f"Choose 1 to {encoder.depth}."
            )
        self.top, self.beta, self.momentum, self.crop = top, beta, momentum, crop
        self.masking = Masking(grid=grid, ratio=ratio, kind="blocks")
        self.blank = nn.Parameter(torch.zeros(encoder.dim).normal_(std=0.02))  # the mask token
        self.teacher = Teacher(encoder)

    def plan(self) -> Plan:
        view = Augmentation(
            crop=(self.crop, 1.0), jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4,
            mask=self.masking,
        )  # fmt: skip
        return Plan(main=(view,), pairs="itself")

    def predict(self, x: View) -> Float[Tensor, "b n d"]:
        """f(x), of all patches."""
        return self.encoder.masked(x.data, x.need_mask("Data2Vec"), self.blank)[1]

    @torch.no_grad()
    def target(self, y: View) -> Float[Tensor, "b n d"]:
        """t'(y), of all patches."""
        blocks = self.teacher.network.layers(y.data, self.top)
        each = torch.stack([energy.layer_normalise(tokens) for tokens in blocks])  # [top b n d]
        return energy.layer_normalise(each.mean(dim=0))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        errors = energy.smooth_l1(self.predict(x), self.target(y), self.beta)  # [b n]
        return energy.masked_mean(errors, x.need_mask("Data2Vec").hidden.any(dim=1))

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        return Loss(pull={"prediction": distributed.mean(self.energy(view, view))})

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
