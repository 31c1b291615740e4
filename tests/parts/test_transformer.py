"""The transformer for sequences: tokens and their mean, its attention, what is hidden."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erg.encoders import TokenTransformer, build_encoder
from erg.views.types import Mask

SEQUENCE: dict[str, Any] = {"vocabulary": 11, "width": 8, "depth": 2, "heads": 2}


def sequences() -> Tensor:
    """The first is whole, the second ends after four of seven tokens."""
    data = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0))
    data[1, 4:] = -1
    return data


def test_a_sequence_gives_tokens_and_their_mean() -> None:
    encoder, data = build_encoder("sequence", 7, **SEQUENCE).eval(), sequences()
    assert (encoder.vocabulary, encoder.grid, encoder.dim, encoder.mean) == (11, (1, 7), 8, ())
    tokens, vectors = encoder.tokens(data), encoder(data)
    assert tokens.shape == (2, 7, 8)
    torch.testing.assert_close(vectors[0], tokens[0].mean(dim=0))
    torch.testing.assert_close(vectors[1], tokens[1, :4].mean(dim=0))
    torch.testing.assert_close(encoder(data.double()), vectors)  # as numbers of any type
    both = encoder.with_tokens(data)
    assert torch.equal(both[0], vectors)
    assert torch.equal(both[1], tokens)
    # Nothing behind the end matters, and neither does how much of it there is.
    torch.testing.assert_close(encoder(data[1:, :4]), vectors[1:])
    # The order of the tokens does.
    assert not torch.allclose(encoder(data[:1].flip(1)), vectors[:1])


def test_attention_of_a_sequence_can_be_looked_at() -> None:
    encoder, data = build_encoder("sequence", 7, **SEQUENCE).eval(), sequences()
    assert isinstance(encoder, TokenTransformer)
    weights = encoder.attention(data)
    assert weights.shape == (2, 2, 2, 7, 7)  # blocks, sequences, heads, from, to
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 2, 7))
    assert (weights[:, 1, :, :, 4:] == 0).all()
    assert (weights[:, 0] > 0).all()
    # They are those of the first block's attention on embeddings and places.
    x = encoder.embedding(data[:1]) + encoder.places
    block = encoder.blocks[0]
    seen = block.first(x)
    found = block.attention(seen, seen, torch.ones(1, 1, 7).bool())[1]
    torch.testing.assert_close(weights[0, :1], found)


def test_hidden_tokens_of_a_sequence_are_blank_or_left_out() -> None:
    encoder, data = build_encoder("sequence", 7, **SEQUENCE).eval(), sequences()[:1]
    hidden = torch.tensor([[[False, True, False, False, True, False, False]]])
    mask, blank = Mask(hidden, (1, 7)), torch.randn(8)
    vector, tokens = encoder.masked(data, mask, blank)
    other = torch.where(hidden[:, 0], (data + 1) % 11, data)
    assert torch.equal(encoder.masked(other, mask, blank)[1], tokens)
    assert not torch.allclose(encoder.masked(data, mask, -blank)[0], vector)
    # A token whose embedding is the blank is hidden already.
    with torch.no_grad():
        encoder.get_submodule("embedding").weight[10] = blank
    same = torch.where(hidden[:, 0], torch.tensor(10), data % 10)
    torch.testing.assert_close(encoder.masked(data % 10, mask, blank)[1], encoder.tokens(same))
    # Left out, hidden tokens are not attended to: as if they stood behind the end.
    left = encoder.tokens(data, mask)
    assert left.shape == (1, 5, 8)
    behind = torch.where(hidden[:, 0], torch.tensor(-1), data)
    torch.testing.assert_close(left, encoder.tokens(behind)[~hidden[:, 0]][None])
    torch.testing.assert_close(encoder.masked(data, mask)[0], left.mean(dim=1))


def test_sequences_that_do_not_fit_are_one_line() -> None:
    encoder = build_encoder("sequence", 6, **SEQUENCE)
    with pytest.raises(ValueError, match="have 7 tokens, and this encoder takes at most 6"):
        encoder(sequences())
    with pytest.raises(ValueError, match=r"tokens up to 11, .* 0 to 10\. .*vocabulary = 12"):
        encoder(torch.full((1, 3), 11))
    data = sequences()[:, :6]
    data[1] = -1
    with pytest.raises(ValueError, match="sequence 1 holds no token: all its numbers are below 0"):
        encoder(data)
    with pytest.raises(ValueError, match="8 features cannot be shared evenly by 3 heads"):
        build_encoder("sequence", 6, **{**SEQUENCE, "heads": 3})
