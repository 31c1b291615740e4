"""Decoders: from embeddings or tokens back to pixels."""

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erg.parts.encoder import Encoder
from erg.parts.heads import mlp


def patches(images: Float[Tensor, "b c h w"], grid: tuple[int, int]) -> Float[Tensor, "b n p"]:
    """Cut into patches, row-major; p = patch height * patch width * c."""
    b, c, h, w = images.shape
    rows, columns = grid
    cut = images.reshape(b, c, rows, h // rows, columns, w // columns)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, -1)


def from_patches(
    cells: Float[Tensor, "b n p"], grid: tuple[int, int], channels: int = 3
) -> Float[Tensor, "b c h w"]:
    """Undo `patches` for square patches."""
    b = len(cells)
    rows, columns = grid
    side = math.isqrt(cells.shape[-1] // channels)
    cut = cells.reshape(b, rows, columns, side, side, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(b, channels, rows * side, columns * side)


def sincos_positions(dim: int, grid: tuple[int, int]) -> Float[Tensor, "n d"]:
    """Fixed 2-D sine-cosine position embeddings, half of the width for rows, half for columns."""
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64),
        torch.arange(grid[1], dtype=torch.float64),
        indexing="ij",
    )
    rate = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = [position.reshape(-1, 1) * rate for position in (rows, columns)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1).float()


class TokenDecoder(nn.Module):
    """A small transformer that fills in hidden patches (He et al. 2022, MAE).

    Args:
        fan_in: width of the encoder's tokens [features].
        grid: rows and columns of patches.
        patch: values per patch to predict.
        width: width inside [features].
        depth: blocks.
        heads: attention heads.
    """

    positions: Tensor

    def __init__(
        self, fan_in: int, grid: tuple[int, int], patch: int, *, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        if width % 4 or width % heads:
            raise ValueError(
                f"the decoder's width should be a multiple of 4 and of its {heads} heads (got "
                f"{width}). Choose another."
            )
        self.embed = nn.Linear(fan_in, width)
        self.blank = nn.Parameter(torch.zeros(width).normal_(std=0.02))  # the mask token
        self.register_buffer("positions", sincos_positions(width, grid))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                4 * width,
                dropout=0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, patch)

    def forward(
        self,
        tokens: Float[Tensor, "b m d"],
        keep: Int[Tensor, "b m"],
        wanted: Int[Tensor, "b t"] | None = None,
        vector: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b n p"]:
        """Predict every patch from the encoder's tokens of the visible ones at places `keep`.

        With `wanted` only the patches at those places, and no others take part. A vector of the
        whole takes part without a place of its own.
        """
        known = self.embed(tokens)
        blank, positions = self.blank.to(known.dtype), self.positions.to(known.dtype)
        if wanted is None:
            x = blank.expand(len(tokens), *positions.shape)
            x = x.scatter(1, keep[..., None].expand_as(known), known)  # [b n width]
            x, before = x + positions, 0
        else:
            x = torch.cat([known + positions[keep], blank + positions[wanted]], dim=1)
            before = keep.shape[1]  # what is known is not predicted
        if vector is not None:
            x, before = torch.cat([self.embed(vector)[:, None], x], dim=1), before + 1
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x[:, before:]))  # [b n p] or [b t p]


class ConvDecoder(nn.Module):
    """From one vector per image to an image: a linear layer to 4 x 4 or a little more, then
    doublings, then one patch of pixels from each place.

    Each doubling is a nearest-neighbour enlargement and a 3 x 3 convolution, which leaves no
    checkerboard as transposed convolutions do. The last layer works at a fraction of the image's
    side and rearranges its channels into patches (Shi et al. 2016, eq. 4): at 96 pixels that makes
    a training step three to four times faster than doubling up to the image itself.

    Args:
        dim: width of the embedding [features].
        image_size: side of the image [pixels].
        width: channels before the last layer; doubled towards the embedding.
        patch: side of the patches that the last layer makes [pixels].
        channels: of the image.
    """

    def __init__(
        self, dim: int, image_size: int, *, width: int = 32, patch: int = 4, channels: int = 3
    ) -> None:
        super().__init__()
        places = math.ceil(image_size / patch)
        doublings = max(0, int(math.log2(places / 4)))
        self.image_size, self.side = image_size, math.ceil(places / 2**doublings)
        widths = [min(256, width * 2**i) for i in range(doublings, -1, -1)]
        self.start = nn.Linear(dim, widths[0] * self.side**2)
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1),
                nn.GroupNorm(math.gcd(8, b), b),
                nn.ReLU(inplace=True),
            )
            for a, b in itertools.pairwise(widths)
        )
        self.last = nn.Sequential(
            nn.Conv2d(widths[-1], channels * patch**2, 3, padding=1), nn.PixelShuffle(patch)
        )

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        x = self.start(z).unflatten(1, (-1, self.side, self.side))
        for step in self.steps:
            x = step(nn.functional.interpolate(x, scale_factor=2))
        x = self.last(x)
        if x.shape[-1] != self.image_size:
            x = nn.functional.interpolate(x, size=self.image_size)
        return x


def decoder_for(encoder: Encoder, dim: int, *, width: int = 32) -> nn.Module:
    """From a vector [b dim] to data of the encoder's kind.

    Args:
        encoder: of images, made by a `ConvDecoder`, or of vectors: one hidden layer.
        dim: width of the vector [features].
        width: channels before the last layer; a quarter of the width of the hidden layer.
    """
    if encoder.mean:  # images alone are normalised
        return ConvDecoder(dim, encoder.image_size, width=width)
    return mlp(dim, 4 * width, encoder.image_size, norm=False)
