"""A transformer that is told y one place late, and x by attention to it.

Letters in shapes: b batch, t places of y, n places of x, d features, h heads, v vocabulary.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from erg.parts.attention import Attention


class DelayedBlock(nn.Module):
    """y + attention to y so far, + attention to x, + a network of one place (a convolution of
    width 1), each behind a norm.

    Args:
        dim: width of the tokens [features].
        heads: of both attentions.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.own, self.given = Attention(dim, heads), Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self,
        y: Float[Tensor, "b t d"],
        x: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b h t t"], Float[Tensor, "b h t n"]]:
        """The tokens behind it, and the weights of its attention to y and to x."""
        t = y.shape[1]
        so_far = torch.ones(1, t, t, dtype=torch.bool, device=y.device).tril()
        seen = self.norms[0](y)
        told, own = self.own(seen, seen, so_far)
        y = y + told
        told, given = self.given(self.norms[1](y), x, valid[:, None])
        y = y + told
        return y + self.mlp(self.norms[2](y)), own, given


class Told(NamedTuple):
    """What a `Delayed` makes of a y and an x.

    Args:
        logits: of every token at each place of y [b t v].
        own: attention of each place to those before it, itself delayed [layers b h t t].
        given: attention of each place to x [layers b h t n].
    """

    logits: Tensor
    own: Tensor
    given: Tensor


class Delayed(nn.Module):
    """Logits of y_t from y_1 ... y_{t-1} and all of x: y goes in behind a unit delay.

    Args:
        vocabulary: v; a further token stands where the delay has nothing yet.
        places: t, largest length of y.
        dim: width of the tokens, and of those of x [features].
        depth: number of blocks.
        heads: of the attention in each.
    """

    def __init__(self, vocabulary: int, places: int, dim: int, *, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary + 1, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.places = nn.Parameter(torch.zeros(places, dim).normal_(std=0.02))
        self.blocks = nn.ModuleList(DelayedBlock(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary)

    def forward(
        self, y: Int[Tensor, "b t"], x: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> Told:
        """Tokens of y below 0 stand behind its end; those of x that are not valid are not seen."""
        nothing = torch.full_like(y[:, :1], self.embedding.num_embeddings - 1)
        late = torch.cat([nothing, y[:, :-1].clamp_min(0)], dim=1)
        tokens = self.embedding(late) + self.places[: y.shape[1]]
        own: list[Tensor] = []
        given: list[Tensor] = []
        for block in self.blocks:
            tokens, to_own, to_given = block(tokens, x, valid)
            own.append(to_own)
            given.append(to_given)
        return Told(self.head(self.norm(tokens)), torch.stack(own), torch.stack(given))
