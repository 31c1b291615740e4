"""Masked autoencoder (He et al. 2022)."""

from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.decoder import TokenDecoder, patches
from erg.views.plan import Augmentation, Masking, Plan
from erg.views.types import View, Views


class MAE(Method):
    """F(x, y) = mean over hidden patches p of ||y_p - d(f(x_visible))_p||^2 / n, n values a patch.

    x is what is left of an image when 75 % of its patches are hidden, y the patches that were
    hidden, each normalised by its own mean and standard deviation (He et al. 2022, section 3). The
    decoder d is given the encoder's tokens of what is left, and its vector, a ViT's class token, so
    that this learns too.

    Departs from the paper: the decoder is half as wide as the encoder, with 2 blocks and 4 heads
    (512 features, 8 and 16 there); the encoder's positions are its own (fixed sines and cosines
    there).
    Checked against: a loop over patches; ratio 0 keeps every token in order.

    Args:
        ratio: share of patches hidden.
        width: width of the decoder; 0 takes half the encoder's [features].
        depth: blocks of the decoder.
        heads: attention heads of the decoder.
        normalise: whether each target patch is normalised by its own mean and deviation.
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("latent-variable", "architectural", by="hidden patches and a narrow decoder")

    def __init__(
        self,
        encoder: Encoder,
        *,
        ratio: float = 0.75,
        width: int = 0,
        depth: int = 2,
        heads: int = 4,
        normalise: bool = True,
        crop: float = 0.2,
    ) -> None:
        super().__init__(encoder)
        grid = encoder.need_patches("MAE")
        rows, columns = grid
        size = encoder.image_size
        tall, wide = encoder.patch or (size // rows, size // columns)
        if (rows * tall, columns * wide) != (size, size):
            raise ValueError(
                f"{rows} x {columns} patches of {tall} x {wide} pixels do not fill an image of "
                f"{size} pixels. Use an image size that is a multiple of the patch."
            )
        self.ratio, self.normalise, self.crop, self.grid = ratio, normalise, crop, grid
        values = 3 * tall * wide
        width = width or max(4 * heads, encoder.dim // 2)
        self.decoder = TokenDecoder(
            encoder.dim, grid, values, width=width, depth=depth, heads=heads
        )

    def plan(self) -> Plan:
        masking = Masking(grid=self.grid, ratio=self.ratio)
        return Plan(main=(Augmentation(crop=(self.crop, 1.0), mask=masking),), pairs="itself")

    def predict(self, x: View) -> Float[Tensor, "b n p"]:
        """All patches from the visible ones of x."""
        mask = x.need_mask("MAE")
        vectors, tokens = self.encoder.masked(x.data, mask)
        return self.decoder(tokens, mask.keep(), vector=vectors)

    def target(self, y: View) -> Float[Tensor, "b n p"]:
        cells = energy.at_least_float32(patches(y.data, self.grid))
        if not self.normalise:
            return cells
        centred = cells - cells.mean(dim=-1, keepdim=True)
        return centred / (cells.var(dim=-1, keepdim=True) + 1e-6).sqrt()

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        errors = (energy.at_least_float32(self.predict(x)) - self.target(y)).square().mean(dim=-1)
        return energy.masked_mean(errors, x.need_mask("MAE").hidden.any(dim=1))

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        return Loss(pull={"reconstruction": distributed.mean(self.energy(view, view))})
