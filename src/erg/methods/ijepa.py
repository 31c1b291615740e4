"""I-JEPA (Assran et al. 2023)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.decoder import TokenDecoder
from erg.parts.teacher import Teacher
from erg.schedule import Linear, Schedule
from erg.views.plan import Augmentation, Masking, Plan
from erg.views.types import Mask, View, Views


class IJEPA(Method):
    """F(x, y) = mean over p of h(g(f(x), p) - s'(y)_p): what a slow teacher makes of y's places p.

    x is a context of patches, p the places of four rectangles, f the encoder and g a predictor that
    is told p; s' is the teacher's tokens of the whole image, each normalised over its features
    (Assran et al. 2023, eq. 1); h is |e| - 1/2, or e^2 / 2 where |e| < 1, and the mean over
    features. The teacher is theta' <- m theta' + (1 - m) theta after every step.

    Departs from the paper: h is the authors' code's (the paper writes a squared error); positions
    and the class token, where there is one, are the encoder's own, and since nothing is asked of
    that token a ViT is best built with global_pool = avg and fc_norm = False; the predictor is half
    as wide as the encoder, with 6 blocks and 8 heads (384 features, 12 and the encoder's there);
    area and ratio of targets are drawn apart, the ratio log-uniformly (one number gives both
    there); a context may fill the grid (there it lacks a row and a column at least);
    targets may lie in the last row and column (never in the authors' code); contexts are cut to one
    size at random and not at the bottom of the image, and to the size that is left where no two
    targets overlap and not to the batch's smallest.
    Checked against: golden numbers; a loop over targets.

    Args:
        targets: number of rectangles.
        area: range of the area of each [fraction of the image].
        aspect: range of their height / width.
        context: range of the context's area before targets are taken out [fraction of the image].
        width: width of the predictor; 0 takes half the encoder's [features].
        depth: blocks of the predictor.
        heads: attention heads of the predictor.
        momentum: m, from the first step to the last.
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("joint-embedding", "regularised", by="predictor, stop-gradient, EMA teacher")

    def __init__(
        self,
        encoder: Encoder,
        *,
        targets: int = 4,
        area: tuple[float, float] = (0.15, 0.2),
        aspect: tuple[float, float] = (0.75, 1.5),
        context: tuple[float, float] = (0.85, 1.0),
        width: int = 0,
        depth: int = 6,
        heads: int = 8,
        momentum: Schedule = Linear(0.996, 1.0),
        crop: float = 0.3,
    ) -> None:
        super().__init__(encoder)
        grid = encoder.need_patches("IJEPA")
        self.momentum, self.crop = momentum, crop
        self.masking = Masking(
            grid=grid, kind="targets", targets=targets, area=area, aspect=aspect,
            context=context,
        )  # fmt: skip
        self.predictor = TokenDecoder(
            encoder.dim, grid, encoder.dim, depth=depth, heads=heads,
            width=width or max(4 * heads, encoder.dim // 2),
        )  # fmt: skip
        self.teacher = Teacher(encoder)

    def plan(self) -> Plan:
        view = Augmentation(crop=(self.crop, 1.0), flip=0.0, mask=self.masking)
        return Plan(main=(view,), pairs="itself")

    def predict(self, x: View) -> Float[Tensor, "b kt d"]:
        """The tokens of all targets, one target after the other, each on its own."""
        mask = mask_of(x)
        wanted, keep = places(mask), mask.keep()
        k = wanted.shape[1]
        context = self.encoder.tokens(x.data, mask).repeat_interleave(k, dim=0)  # [b*k m d]
        made = self.predictor(context, keep.repeat_interleave(k, dim=0), wanted.flatten(0, 1))
        return made.reshape(len(x), -1, made.shape[-1])

    @torch.no_grad()
    def target(self, y: View, mask: Mask) -> Float[Tensor, "b kt d"]:
        """s' at the places of all targets."""
        tokens = energy.layer_normalise(self.teacher.network.tokens(y.data))  # [b n d]
        wanted = places(mask).flatten(1)[..., None]
        return tokens.gather(1, wanted.expand(-1, -1, tokens.shape[-1]))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.smooth_l1(self.predict(x), self.target(y, mask_of(x))).mean(dim=1)

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        return Loss(pull={"prediction": distributed.mean(self.energy(view, view))})

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))


def places(mask: Mask) -> Int[Tensor, "b k t"]:
    """Indices of the patches of every target; the last block of a mask is none."""
    targets = mask.hidden[:, :-1]
    return targets.nonzero()[:, 2].reshape(*targets.shape[:2], -1)


def mask_of(view: View) -> Mask:
    """The mask of a view, or an error that says how to get one."""
    if view.mask is None or view.mask.hidden.shape[1] < 2:
        raise ValueError("IJEPA needs views with targets (got none). Use IJEPA's own plan.")
    return view.mask
