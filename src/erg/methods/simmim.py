"""SimMIM (Xie et al. 2022)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.decoder import from_patches
from erg.parts.hidden import blanked, hidden_pixels
from erg.views.plan import Augmentation, Masking, Plan
from erg.views.types import View, Views


class SimMIM(Method):
    """F(x, y) = mean over hidden pixels p of |y_p - r(x)_p|, r one linear layer on each token.

    Xie et al. 2022, section 3. x is an image of which 60 % are hidden in squares, y what they hid.
    A learned square stands where something is hidden and the encoder sees all places, so that any
    encoder with tokens will do: a ViT, a Swin or a convolutional one.

    Departs from the paper: what is learned instead of the hidden is a square of pixels and not a
    token. A patch embedding is linear, so for a ViT that is the same but for the coordinates. The
    number of hidden squares is rounded to the nearest (29 of 49; 30 there). Nothing is asked of a
    class token: a ViT is best built with global_pool = avg and fc_norm = False.
    Checked against: a loop over pixels.

    Args:
        ratio: share of squares hidden.
        unit: side of the squares [pixels]; 0 takes as many of a token's patches as fill the image
            and are not above a seventh of it, at least one (32 of 224 pixels).
        stride: side of what a token stands for, for encoders without patches [pixels].
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("latent-variable", "architectural", by="hidden squares")

    def __init__(
        self,
        encoder: Encoder,
        *,
        ratio: float = 0.6,
        unit: int = 0,
        stride: int = 32,
        crop: float = 0.67,
    ) -> None:
        super().__init__(encoder)
        size = encoder.image_size
        if encoder.patch is not None:
            patch = encoder.patch[0]
        else:
            patch = size // encoder.grid[0] if encoder.grid is not None else stride
        fitting = [s for s in range(patch, size // 7 + 1, patch) if size % s == 0]
        unit = unit or max(fitting, default=patch)
        for name, side in (("a token's patch", patch), ("unit", unit)):
            if size % side:
                raise ValueError(
                    f"{name} of {side} pixels does not divide an image of {size}. Choose unit and "
                    "image size so that squares and tokens fill the image."
                )
        self.ratio, self.unit, self.patch, self.crop = ratio, unit, patch, crop
        self.blank = nn.Parameter(torch.zeros(3, unit, unit).normal_(std=0.02))
        self.head = nn.Linear(encoder.dim, 3 * patch**2)

    def plan(self) -> Plan:
        side = self.encoder.image_size // self.unit
        masking = Masking(grid=(side, side), ratio=self.ratio)
        return Plan(main=(Augmentation(crop=(self.crop, 1.0), mask=masking),), pairs="itself")

    def hidden(self, view: View) -> Bool[Tensor, "b 1 h w"]:
        """Where pixels are hidden."""
        return hidden_pixels(view.need_mask("SimMIM"), self.unit)

    def predict(self, x: View) -> Float[Tensor, "b c h w"]:
        """The whole image, from what is not hidden of x."""
        tokens = self.encoder.tokens(blanked(x.data, x.need_mask("SimMIM"), self.blank))  # [b n d]
        rows = self.encoder.image_size // self.patch
        if tokens.shape[1] != rows**2:
            raise ValueError(
                f"{self.encoder.name} gives {tokens.shape[1]} tokens, not {rows} x {rows}. Set "
                "stride to the pixels that one of them stands for."
            )
        return from_patches(self.head(tokens), (rows, rows))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        made = energy.at_least_float32(self.predict(x))
        errors = (made - y.data).abs().mean(dim=1).flatten(1)  # [b h*w]
        return energy.masked_mean(errors, self.hidden(x).flatten(1))

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        return Loss(pull={"reconstruction": distributed.mean(self.energy(view, view))})
