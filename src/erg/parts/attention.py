"""Attention written out, so that its weights can be looked at.

Letters in shapes: b batch, t tokens that ask, n tokens that are asked, d features, h heads.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear

from erg.energy import at_least_float32


class Attention(nn.Module):
    """A = softmax(Q K^T / sqrt(d)), and A V, for h times d features (Vaswani et al. 2017, eq. 1).

    Query i and key j have the energy -q_i . k_j; a row of A is the distribution of these energies
    over all places j at the inverse temperature 1 / sqrt(d). Queries come from one sequence, keys
    and values from another; the same one twice for attention to itself.

    Args:
        dim: width of the tokens [features].
        heads: h, a divisor of it.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"{dim} features cannot be shared evenly by {heads} heads. Choose a width that "
                "they divide."
            )
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(
        self,
        asking: Float[Tensor, "b t d"],
        asked: Float[Tensor, "b n d"],
        visible: Bool[Tensor, "#b #t n"],
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b h t n"]]:
        """What every place is told, and the weights A: 0 for what it may not see."""
        d = asking.shape[-1]
        (w_q, w_kv), (b_q, b_kv) = (p.split([d, 2 * d]) for p in (self.qkv.weight, self.qkv.bias))
        q = linear(asking, w_q, b_q).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [b h t e]
        k, v = linear(asked, w_kv, b_kv).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = at_least_float32(q @ k.mT) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(dim=-1)
        told = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)  # [b t d]
        return self.out(told), weights


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x), four times as wide inside.

    Args:
        dim: width of the tokens [features].
        heads: of the attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.first, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.second = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self, x: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b h n n"]]:
        """The tokens behind it, and the weights of its attention."""
        seen = self.first(x)
        told, weights = self.attention(seen, seen, valid[:, None])
        x = x + told
        return x + self.mlp(self.second(x)), weights
