"""Attention written out, so that its weights can be looked at.

Letters in shapes: b batch, n tokens, d features, h heads.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from erg.energy import at_least_float32


class Attention(nn.Module):
    """A = softmax(Q K^T / sqrt(d)), and A V, for h times d features (Vaswani et al. 2017, eq. 1).

    Query i and key j have the energy -q_i . k_j; a row of A is the distribution of these energies
    over all places j at the inverse temperature 1 / sqrt(d).

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
        self, x: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b h n n"]]:
        """What every place is told, and the weights A: places that are not valid get none."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [b h n d]
        scores = at_least_float32(q @ k.mT) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~valid[:, None, None], float("-inf")).softmax(dim=-1)
        told = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)  # [b n d]
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
        told, weights = self.attention(self.first(x), valid)
        x = x + told
        return x + self.mlp(self.second(x)), weights
