"""The network that takes away what is laid over images.

As an energy: F(x, y) = log(||r(x) - y||^2 / n), x an image with something laid over it, y the image
and n its hidden values: a denoising autoencoder (Vincent et al. 2008) whose corruption is an
overlay, as in Xie et al. 2012. F is the PSNR of the hidden pixels with its sign turned, in other
units; without the logarithm the many errors of images of which nothing is known drown those of
images of which it is, and these end worse than they began. The network may be told where the
overlay is or find it itself (blind).

The decoders of our methods make an image from one vector, in which fine detail is lost
(benchmarks/inpainting measures how much). So r keeps the resolution, and what it does not replace
stays as it is.
"""

import functools
import itertools

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from erg.apply.restorer import Restorer, within
from erg.energy import at_least_float32
from erg.parts.conv import Residual

TILE, MARGIN = 256, 96
"""Side of the pieces of a large image, and how far the network looks beyond them [pixels]."""

LEVELS = 3
"""Resolutions of a network that nobody says more about."""


class Inpainter(Restorer):
    """r(x): a U-Net that says for every pixel what is to be added to a smooth filling, and whether
    the pixel is hidden.

    Works at half the resolution and at ever halved ones below it, with skips between; its last
    layer rearranges channels into pixels (Shi et al. 2016). Nothing is normalised, so a pixel
    depends on its surroundings only, and images of any size go through.

    Args:
        width: channels at half the resolution; twice as many below.
        levels: resolutions.
        blocks: residual convolutions at each, on the way down and on the way up.
    """

    command = "inpaint"

    def __init__(self, *, width: int = 32, levels: int = LEVELS, blocks: int = 1) -> None:
        super().__init__()
        self.arguments = {
            "width": within("width", width, 1, 512),
            "levels": within("levels", levels, 1, 5),
            "blocks": within("blocks", blocks, 1, 8),
        }
        widths = [width, *[2 * width] * (levels - 1)]
        self.stride = 2**levels
        self.first = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, width, 3, padding=1))
        self.down = nn.ModuleList(_blocks(w, blocks) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in itertools.pairwise(widths))
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(_blocks(w, blocks) for w in widths[:-1])
        last = nn.Conv2d(width, 16, 3, padding=1)
        for parameter in last.parameters():  # at first what is told is filled smoothly, and no more
            nn.init.zeros_(parameter)
        self.last = nn.Sequential(last, nn.PixelShuffle(2))

    def forward(
        self, x: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b 1 h w"]
    ) -> Float[Tensor, "b 4 h w"]:
        """What to add to three colours, and the logit of being hidden.

        Sides are multiples of `stride`; what is told is filled in x already.
        """
        z = self.first(torch.cat([x - 0.5, told], dim=1))
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            z = block(z)
            if level < len(self.shrink):
                kept.append(z)
                z = self.shrink[level](z)
        for level in reversed(range(len(self.up))):
            z = nn.functional.interpolate(self.grow[level](z), scale_factor=2.0)
            z = self.up[level](z + kept[level])
        return self.last(z)

    def find(
        self, x: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b 1 h w"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
        """r(x) and the logit of being hidden, as the network sees it.

        r(x) = x + g (s + d - x): s is x with told pixels filled smoothly, d what the network
        adds to it, g what was told, or else the probability of being hidden.

        Args:
            x: images in [0, 1].
            told: 1 where an image is hidden; all 0 for an image of which nothing is known.
        """
        smooth = smooth_fill(x, told)
        found = at_least_float32(self(smooth, told))
        known = (told.amax(dim=(2, 3), keepdim=True) > 0).expand_as(told)
        gate = torch.where(known, told, found[:, 3:].sigmoid())
        return x + gate * (smooth + found[:, :3] - x), found[:, 3:]

    def restore(
        self, x: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b 1 h w"]
    ) -> Float[Tensor, "b 3 h w"]:
        """r(x); arguments as `find`."""
        return self.find(x, told)[0]

    def energy(
        self,
        x: Float[Tensor, "b 3 h w"],
        y: Float[Tensor, "b 3 h w"],
        hidden: Float[Tensor, "b 1 h w"],
        told: Float[Tensor, "b 1 h w"],
    ) -> Float[Tensor, " b"]:
        """F(x, y) = log(||r(x) - y||^2 / n), n the hidden pixels times colours."""
        return _energy(self.restore(x, told), y, hidden)

    def loss(
        self,
        x: Float[Tensor, "b 3 h w"],
        y: Float[Tensor, "b 3 h w"],
        hidden: Float[Tensor, "b 1 h w"],
        told: Float[Tensor, "b 1 h w"],
    ) -> Float[Tensor, ""]:
        """Mean F(x, y), and the cross-entropy of what is hidden: without it a closed gate stays
        closed, since nothing that is behind it is seen."""
        made, logit = self.find(x, told)
        seen = nn.functional.binary_cross_entropy_with_logits(logit, hidden)
        return _energy(made, y, hidden).mean() + seen

    @torch.no_grad()
    def inpaint(
        self, image: UInt8[np.ndarray, "h w 3"], hidden: Bool[np.ndarray, "h w"] | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        """An image of any size without what is laid over it, piece by piece.

        Args:
            image: with something laid over it.
            hidden: where; the network looks for it itself if not given.
        """
        height, width = image.shape[:2]
        below, right = -height % self.stride, -width % self.stride
        device = next(self.parameters()).device
        padded = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
        told = np.zeros(padded.shape[:2], dtype=bool)
        if hidden is not None:
            told[:height, :width] = hidden
        out = padded.copy()
        for top in range(0, padded.shape[0], TILE):
            for left in range(0, padded.shape[1], TILE):
                y, x = max(0, top - MARGIN), max(0, left - MARGIN)
                place = np.s_[y : top + TILE + MARGIN, x : left + TILE + MARGIN]
                if hidden is not None and not told[top : top + TILE, left : left + TILE].any():
                    continue
                colours = torch.from_numpy(padded[place]).to(device).permute(2, 0, 1)[None] / 255
                known = torch.from_numpy(told[place]).to(device)[None, None].float()
                made = self.restore(colours, known)[0, :, top - y :, left - x :][:, :TILE, :TILE]
                pixels = (made.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
                out[top : top + TILE, left : left + TILE] = pixels
        return out[:height, :width]


def smooth_fill(
    x: Float[Tensor, "b 3 h w"],
    told: Float[Tensor, "b 1 h w"],
    *,
    rounds: int = 16,
    bends: int = 48,
) -> Float[Tensor, "b 3 h w"]:
    """Hidden pixels become means of the 3 x 3 around them, again and again, from the rim inwards;
    then the squared Laplacian goes down by gradient with momentum, towards `biharmonic_fill`.

    Args:
        x: images.
        told: 1 where they are hidden.
        rounds: of means; what lies deeper stays grey.
        bends: steps of the descent, enough for the strokes of letters.
    """
    pool = functools.partial(nn.functional.avg_pool2d, kernel_size=3, stride=1, padding=1)
    filled, weight = torch.where(told > 0, 0.5, x), 1 - told
    for _ in range(rounds):
        count = pool(weight)
        near = pool(filled * weight) / count.clamp_min(1e-6)
        filled = torch.where((told > 0) & (count > 0), near, filled)
        weight = (count > 0).to(x)
    speed = torch.zeros_like(filled)
    for _ in range(bends):
        # The largest eigenvalue of the squared Laplacian is 64: steps of 1 / 32 are stable.
        speed = 0.7 * speed - told * _laplacian(_laplacian(filled)) / 32
        filled = filled + speed
    return filled


def _laplacian(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Per pixel, its neighbours inside the image counted times its value, minus theirs."""
    y = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    around = y[..., :-2, 1:-1] + y[..., 2:, 1:-1] + y[..., 1:-1, :-2] + y[..., 1:-1, 2:]
    return 4 * x - around


def _energy(
    made: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"], hidden: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, " b"]:
    """log of the sum of squared errors per hidden pixel and colour; at 50 dB enough is enough."""
    errors = (made - y).square().sum(dim=(1, 2, 3))
    return (errors / (3 * hidden.sum(dim=(1, 2, 3))).clamp_min(1) + 1e-5).log()


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(
        Residual(nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
        ))
        for _ in range(count)
    ))  # fmt: skip
