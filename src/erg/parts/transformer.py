"""A transformer for sequences of tokens."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from erg.parts.attention import Block
from erg.parts.encoder import Encoder
from erg.views.types import Mask


class TokenTransformer(Encoder):
    """A transformer on sequences of whole numbers, whose attention can be looked at.

    Norms stand before attention and before the small networks, and a last one behind all blocks;
    places are learned; the vector of a sequence is the mean of its tokens. Tokens below 0 stand
    behind the end of a sequence: nothing attends to them, and they have no part in the mean.

    Args:
        image_size: largest number of tokens in a sequence.
        vocabulary: number of different tokens, which are 0 to vocabulary - 1; 256 for bytes.
        width: of its tokens and its vector [features].
        depth: number of blocks.
        heads: of the attention in each, a divisor of the width.
    """

    name = "sequence"
    mean, std = (), ()

    def __init__(
        self,
        image_size: int,
        *,
        vocabulary: int = 256,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.image_size, self.vocabulary, self.dim = image_size, vocabulary, width
        self.grid = (1, image_size)
        self.arguments = {
            "vocabulary": vocabulary, "width": width, "depth": depth, "heads": heads,
        }  # fmt: skip
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(image_size, width).normal_(std=0.02))
        nn.init.normal_(self.embedding.weight, std=0.02)  # as BERT's
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, data: Shaped[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        return self.with_tokens(data)[0]

    def tokens(self, data: Shaped[Tensor, "b n"], mask: Mask | None = None) -> Tensor:
        return self._through(data, mask)[1]

    def with_tokens(
        self, data: Shaped[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        return self._through(data)[:2]

    def masked(
        self,
        data: Shaped[Tensor, "b n"],
        mask: Mask,
        blank: Float[Tensor, " d"] | None = None,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b m d"]]:
        return self._through(data, mask, blank)[:2]

    def attention(
        self,
        data: Shaped[Tensor, "b n"],
        mask: Mask | None = None,
        blank: Float[Tensor, " d"] | None = None,
    ) -> Float[Tensor, "layers b h m m"]:
        """What share of its attention each place (last but one axis) gives to each (last) in every
        block and head; arguments as `masked`."""
        return torch.stack(self._through(data, mask, blank)[2])

    def units(self) -> list[nn.Module]:
        return list(self.blocks)

    def _through(
        self, data: Tensor, mask: Mask | None = None, blank: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Vectors [b d], tokens [b n d] and the weights [b h n n] of every block."""
        data, n = data.long(), data.shape[1]  # embedding casts whatever it is given to floats
        self._check(data)
        valid = data >= 0
        x = self.embedding(data.clamp_min(0))
        if mask is not None and blank is not None:
            x = torch.where(mask.hidden.any(dim=1)[..., None], blank.to(x.dtype), x)
        x = x + self.places[:n]
        if mask is not None and blank is None:
            keep = mask.keep()
            x, valid = x.gather(1, keep[..., None].expand(-1, -1, self.dim)), valid.gather(1, keep)
        weights: list[Tensor] = []
        for block in self.blocks:
            x, seen = block(x, valid)
            weights.append(seen)
        x = self.norm(x)
        return (x * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True), x, weights

    def _check(self, data: Tensor) -> None:
        if data.shape[1] > self.image_size:
            raise ValueError(
                f"the sequences have {data.shape[1]} tokens, and this encoder takes at most "
                f"{self.image_size}. Cut them, or build it with image_size = {data.shape[1]}."
            )
        if data.device.type != "cpu":  # an accelerator would have to be waited for
            return
        empty = (data < 0).all(dim=1).nonzero()
        if len(empty):
            raise ValueError(
                f"sequence {int(empty[0])} holds no token: all its numbers are below 0. Leave it "
                "out."
            )
        if bool((data >= self.vocabulary).any()):
            raise ValueError(
                f"there are tokens up to {int(data.max())}, and this encoder knows 0 to "
                f"{self.vocabulary - 1}. Build it with vocabulary = {int(data.max()) + 1}."
            )
