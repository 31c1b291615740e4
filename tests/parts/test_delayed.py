"""The delayed transformer: by loops over places, by torch's decoder layer, and what it may see."""

import pytest
import torch
from torch import Tensor, nn

from erg.parts.delayed import Delayed, DelayedBlock


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


VALID = torch.tensor([[True] * 5, [True, True, True, False, False]])


def test_a_block_is_torchs_decoder_layer() -> None:
    torch.manual_seed(0)
    block = DelayedBlock(8, heads=2).double()
    theirs = nn.TransformerDecoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    with torch.no_grad():
        for mine, other in (
            (block.own, theirs.self_attn), (block.given, theirs.multihead_attn)
        ):  # fmt: skip
            other.in_proj_weight.copy_(mine.qkv.weight)
            other.in_proj_bias.copy_(mine.qkv.bias)
            other.out_proj.load_state_dict(mine.out.state_dict())
        theirs.linear1.load_state_dict(block.mlp[0].state_dict())
        theirs.linear2.load_state_dict(block.mlp[2].state_dict())
    y, x = drawn(2, 4, 8), drawn(2, 5, 8, seed=1)
    later = torch.ones(4, 4, dtype=torch.bool).triu(1)
    wanted = theirs(y, x, tgt_mask=later, memory_key_padding_mask=~VALID)
    torch.testing.assert_close(block(y, x, VALID)[0], wanted)


def small() -> Delayed:
    torch.manual_seed(0)
    return Delayed(7, 4, 8, depth=2, heads=2).double()


def test_a_place_sees_what_is_before_it_and_all_that_is_valid_of_x() -> None:
    delayed, x = small(), drawn(2, 5, 8)
    y = torch.tensor([[1, 2, 3, 4], [5, 6, 0, -1]])
    before = delayed(y, x, VALID)
    assert before.logits.shape == (2, 4, 7)
    for place in range(4):
        changed = y.clone()
        changed[:, place] = (changed[:, place] + 1).clamp_min(0) % 7
        moved = (delayed(changed, x, VALID).logits - before.logits).abs().amin(dim=(0, 2))
        # Behind a delay of one: its own logits stay, all later ones move.
        assert (moved > 1e-6).tolist() == [other > place for other in range(4)]
    for place in range(5):
        other = x.clone()
        other[:, place] += 1
        moved = (delayed(y, other, VALID).logits - before.logits).abs().amax(dim=(1, 2)) > 1e-9
        assert moved.tolist() == VALID[:, place].tolist()


def test_weights_are_shares() -> None:
    told = small()(torch.tensor([[1, 2, 3], [5, 6, -1]]), drawn(2, 5, 8), VALID)
    assert (told.own.shape, told.given.shape) == ((2, 2, 2, 3, 3), (2, 2, 2, 3, 5))
    for weights in (told.own, told.given):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]).double())
    assert (told.own.triu(1) == 0).all()
    assert (told.given[:, 1, :, :, 3:] == 0).all()


def test_softmax_stays_in_single_precision_under_autocast() -> None:
    delayed = small().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        told = delayed(torch.tensor([[1, 2], [3, 4]]), drawn(2, 5, 8).float(), VALID)
    assert (told.own.dtype, told.given.dtype) == (torch.float32, torch.float32)
    assert told.logits.dtype == torch.bfloat16


def test_heads_share_the_width() -> None:
    with pytest.raises(ValueError, match="8 features cannot be shared evenly by 3 heads"):
        DelayedBlock(8, heads=3)
