"""PIRL: pretext-invariant representations (Misra & van der Maaten 2020)."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.bank import Memory
from erg.parts.heads import mlp
from erg.parts.host import sent
from erg.views.plan import LARGE, SIMCLR_SMALL, Plan, Tiles
from erg.views.types import View, Views


class PIRL(Method):
    """F(x, y) = -cos(f(x), g(y)): x an image, y its tiles in any order, its quarter turn, or both.

    What a pretext task would have to predict is to leave no trace. With m_i what is remembered of
    image i, D others, and NCE(z) = -log h_i(z) - sum_{j in D} log(1 - h_j(z)), where h is the
    softmax of cos(m_j, z) / T over i and D, the loss is split in two terms that share the m_i:
    L = w NCE(g(y)) + (1 - w) NCE(f(x)) (Misra & van der Maaten 2020, eq. 3 to 5). After each step
    m_i <- normalise((m_i + f(x)) / 2). g embeds each tile and mixes them in the order they are in.

    Departs from the paper: D is drawn once per step for the whole batch, not for each image; tiles
    are cut from an image as large as the encoder's, and share its flip and colours (drawn for each
    there); both is tiles of the turned image; colours change by jitter and grey alone (the authors'
    code also posterises, sharpens, solarises or stretches the contrast). (That code has no softmax
    but divides by a constant that the first batch sets, as instance discrimination does.)
    Checked against: loops over images, tiles and others; the paper's text for the two terms, w, T,
    the momentum, what is remembered and the heads.

    Args:
        size: rows of the memory: the number of images. Those of images held out stay random
            directions.
        by: what y is: tiles (jigsaw), a turn (rotation), or tiles of the turned image (both).
        grid: rows, and columns, of tiles; 0 takes 3, and 2 for images of less than 64 pixels.
        gap: smallest distance of two tiles [fraction of a cell's side]; 1 of 85 pixels.
        jitter: range of a tile's place [fraction of a cell's side]; 20 of 85 pixels.
        weight: w, of the term of y.
        negatives: number of D; all other images where there are no more.
        temperature: T, of the softmax.
        momentum: share of m_i that stays.
        hidden: width of a hidden layer in both heads, as in the authors' later runs; 0 for none, as
            in the paper [features].
        softmax: whether the loss is -log h_i alone (InfoNCE), as in those runs, with T = 0.1.
        dim: width of f(x) and g(y) [features].
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over a memory of other images")

    def __init__(
        self,
        encoder: Encoder,
        *,
        size: int = 65_536,
        by: Literal["jigsaw", "rotation", "both"] = "jigsaw",
        grid: int = 0,
        gap: float = 1 / 85,
        jitter: float = 20 / 85,
        weight: float = 0.5,
        negatives: int = 32_000,
        temperature: float = 0.07,
        momentum: float = 0.5,
        hidden: int = 0,
        softmax: bool = False,
        dim: int = 128,
    ) -> None:
        super().__init__(encoder)
        self.by, self.weight, self.negatives = by, weight, negatives
        self.temperature, self.momentum, self.softmax = temperature, momentum, softmax
        grid = grid or (3 if encoder.image_size >= 64 else 2)
        tiles = Tiles(grid=(grid, grid), gap=gap, jitter=jitter)
        self.tiles = None if by == "rotation" else tiles
        widths = (encoder.dim, *[hidden] * (hidden > 0), dim)
        self.of_image, self.of_piece = mlp(*widths, norm=False), mlp(*widths, norm=False)
        self.mixed = nn.Linear(grid**2 * dim, dim) if self.tiles else nn.Identity()
        self.memory = Memory(size, dim)

    def plan(self) -> Plan:
        large = self.encoder.image_size >= LARGE
        image = replace(SIMCLR_SMALL, crop=(0.08 if large else 0.2, 1.0), jitter=1.0, hue=0.2)
        changed = replace(image, turns=0 if self.by == "jigsaw" else None)
        if self.tiles is not None:
            changed = replace(changed, crop=(0.6, 1.0), tiles=self.tiles)
        return Plan(main=(image, changed))

    def f(self, x: View) -> Float[Tensor, "b d"]:
        return energy.normalise(self.of_image(self.encoder(x.data)))

    def g(self, y: View) -> Float[Tensor, "b d"]:
        pieces = self.of_piece(self.encoder(y.data if self.tiles is None else y.tiles()))
        return energy.normalise(self.mixed(pieces.reshape(len(y), -1)))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.f(x), self.g(y))

    def nce(
        self, z: Float[Tensor, "b d"], views: Views, others: Int[Tensor, " D"]
    ) -> tuple[Tensor, Tensor]:
        """What draws z to what is remembered of its image, and what keeps it from others."""
        own = -(self.memory.of(views.index).to(z) * z).sum(dim=1) / self.temperature  # F / T
        remembered = self.memory.rows[others]

        def missed(z: Tensor, own: Tensor, index: Tensor) -> Float[Tensor, " some"]:
            scores = energy.products(z, remembered) / self.temperature  # [some D]
            scores = scores.masked_fill(others == index[:, None], float("-inf"))
            log_sum = torch.logaddexp(-own, scores.logsumexp(dim=1))
            if self.softmax:
                return log_sum
            h = (scores - log_sum[:, None]).exp().clamp_max(1 - 1e-6)
            return log_sum - (-h).log1p().sum(dim=1)

        away = shaping.in_blocks(missed, z, own, views.index, columns=len(others))
        return distributed.mean(own), distributed.mean(away)

    def others(self, views: Views) -> Int[Tensor, " D"]:
        """Rows of D; the same on every process."""
        n, device = len(self.memory.rows), views.index.device
        if n <= self.negatives:
            return torch.arange(n, device=device)
        generator = torch.Generator().manual_seed(views.step)
        return sent(torch.randint(n, (self.negatives,), generator=generator), device)

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = views.need(2)
        f, others = self.f(x), self.others(views)
        to_f, from_f = self.nce(f, views, others)
        to_g, from_g = self.nce(self.g(y), views, others)
        if self.training:
            self.memory.update(views.index, f, self.momentum)
        w = self.weight
        return Loss(
            pull={"changed": w * to_g, "image": (1 - w) * to_f},
            push={"changed from others": w * from_g, "image from others": (1 - w) * from_f},
        )
