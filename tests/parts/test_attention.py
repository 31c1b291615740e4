"""Attention: by loops over places, and by torch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from erg.parts.attention import Attention, Block


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


VALID = torch.tensor([[True] * 5, [True, True, True, False, False]])


@pytest.mark.parametrize("itself", [True, False])
def test_weights_and_values_by_loops(itself: bool) -> None:
    torch.manual_seed(0)
    attention, asked = Attention(6, heads=2).double(), drawn(2, 5, 6, seed=1)
    asking = asked if itself else drawn(2, 4, 6)
    t = asking.shape[1]
    out, weights = attention(asking, asked, VALID[:, None])
    assert weights.shape == (2, 2, t, 5)
    for b in range(2):
        told = torch.zeros(t, 6, dtype=torch.float64)
        q = attention.qkv(asking[b]).split(6, dim=1)[0]
        _, k, v = attention.qkv(asked[b]).split(6, dim=1)
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            for i in range(t):
                each = {
                    j: math.exp((q[i, part] @ k[j, part]).item() / math.sqrt(3))
                    for j in range(5) if VALID[b, j]
                }  # fmt: skip
                for j in range(5):
                    share = each.get(j, 0.0) / sum(each.values())
                    assert weights[b, head, i, j].item() == pytest.approx(share, abs=1e-12)
                    told[i, part] += share * v[j, part]
        torch.testing.assert_close(out[b], attention.out(told))


def test_it_is_torchs() -> None:
    torch.manual_seed(0)
    attention, x = Attention(8, heads=4).double(), drawn(2, 5, 8)
    q, k, v = (p.unflatten(2, (4, 2)).transpose(1, 2) for p in attention.qkv(x).split(8, dim=2))
    told = F.scaled_dot_product_attention(q, k, v, attn_mask=VALID[:, None, None])
    torch.testing.assert_close(
        attention(x, x, VALID[:, None])[0], attention.out(told.transpose(1, 2).flatten(2))
    )


def test_a_block_adds_attention_and_then_its_network() -> None:
    torch.manual_seed(0)
    block, x = Block(8, heads=2).double(), drawn(2, 5, 8)
    out, weights = block(x, VALID)
    seen = F.layer_norm(x, (8,))  # norms start as plain ones
    told, same = block.attention(seen, seen, VALID[:, None])
    between = x + told
    torch.testing.assert_close(out, between + block.mlp(F.layer_norm(between, (8,))))
    torch.testing.assert_close(weights, same)
    assert block.mlp[0].out_features == 32


def test_softmax_stays_in_single_precision_under_autocast() -> None:
    attention, x = Attention(8, heads=2), drawn(2, 5, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, weights = attention(x, x, VALID[:, None])
    assert (weights.dtype, out.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 5))


def test_heads_share_the_width() -> None:
    with pytest.raises(ValueError, match="8 features cannot be shared evenly by 3 heads"):
        Attention(8, heads=3)
