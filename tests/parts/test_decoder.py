"""Patches, positions and decoders."""

import math

import pytest
import torch
from torch import Tensor

from erg.encoders import build_encoder
from erg.parts.decoder import (
    ConvDecoder,
    TokenDecoder,
    decoder_for,
    from_patches,
    patches,
    sincos_positions,
)


def numbered(b: int, c: int, h: int, w: int) -> Tensor:
    return torch.arange(b * c * h * w, dtype=torch.float64).reshape(b, c, h, w)


@pytest.mark.parametrize("grid", [(2, 2), (1, 3), (2, 3)])
def test_patches_are_cut_row_by_row(grid: tuple[int, int]) -> None:
    rows, columns = grid
    images = numbered(2, 3, 4 * rows, 5 * columns)
    found = patches(images, grid)
    assert found.shape == (2, rows * columns, 4 * 5 * 3)
    for b in range(2):
        for r in range(rows):
            for c in range(columns):
                wanted = [
                    float(images[b, channel, 4 * r + i, 5 * c + j])
                    for i in range(4) for j in range(5) for channel in range(3)
                ]  # fmt: skip
                assert found[b, r * columns + c].tolist() == wanted


@pytest.mark.parametrize(("grid", "channels"), [((2, 2), 3), ((3, 2), 1), ((1, 1), 4)])
def test_from_patches_undoes_patches(grid: tuple[int, int], channels: int) -> None:
    images = numbered(2, channels, 4 * grid[0], 4 * grid[1])
    assert torch.equal(from_patches(patches(images, grid), grid, channels), images)


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    dim, grid = 16, (3, 2)
    found = sincos_positions(dim, grid)
    assert found.shape == (6, 16)
    assert found.dtype == torch.float32
    for n in range(6):
        row, column = divmod(n, 2)
        wanted = []
        for position in (row, column):
            angles = [position / 10000 ** (k / (dim / 4)) for k in range(dim // 4)]
            wanted += [*map(math.sin, angles), *map(math.cos, angles)]
        assert found[n].tolist() == pytest.approx(wanted, abs=1e-6)


def test_every_place_has_its_own_position() -> None:
    found = sincos_positions(16, (7, 9))
    distances = torch.cdist(found, found) + 10 * torch.eye(63)
    assert distances.min() > 0.1


def a_decoder() -> TokenDecoder:
    torch.manual_seed(0)
    return TokenDecoder(6, (2, 3), 12, width=8, depth=1, heads=2).eval()


def test_decoder_predicts_every_patch() -> None:
    keep = torch.tensor([[0, 4], [1, 5]])
    assert a_decoder()(torch.randn(2, 2, 6), keep).shape == (2, 6, 12)


def test_tokens_go_to_the_places_they_came_from() -> None:
    """The blocks are symmetric, so only places and positions tell one token from another."""
    decoder, tokens, keep = a_decoder(), torch.randn(1, 3, 6), torch.tensor([[0, 2, 5]])
    order = torch.tensor([2, 0, 1])
    found = decoder(tokens, keep)
    assert torch.allclose(decoder(tokens[:, order], keep[:, order]), found, atol=1e-6)
    assert not torch.allclose(decoder(tokens[:, order], keep), found, atol=1e-3)


def test_with_no_blocks_each_patch_sees_its_own_token_or_the_blank() -> None:
    torch.manual_seed(0)
    decoder = TokenDecoder(6, (2, 3), 12, width=8, depth=0, heads=2)
    tokens, keep = torch.randn(2, 2, 6), torch.tensor([[1, 3], [0, 5]])
    found = decoder(tokens, keep)
    for b in range(2):
        for n in range(6):
            places = keep[b].tolist()
            known = n in places
            inside = decoder.embed(tokens[b, places.index(n)]) if known else decoder.blank
            wanted = decoder.predict(decoder.norm(inside + decoder.positions[n]))
            assert torch.allclose(found[b, n], wanted, atol=1e-6)


def test_positions_are_saved_and_not_learned() -> None:
    decoder = a_decoder()
    assert "positions" in decoder.state_dict()
    assert "positions" not in dict(decoder.named_parameters())


def test_a_width_that_positions_do_not_divide_is_refused() -> None:
    """A fourth each for sines and cosines of rows and columns."""
    with pytest.raises(ValueError, match="4"):
        TokenDecoder(6, (2, 3), 12, width=10, depth=1, heads=2)


@pytest.mark.parametrize("size", [8, 28, 32, 36])
def test_conv_decoder_gives_images_of_the_size(size: int) -> None:
    decoder = ConvDecoder(5, size, width=8)
    z = torch.randn(2, 5, requires_grad=True)
    images = decoder(z)
    assert images.shape == (2, 3, size, size)
    images.square().sum().backward()
    assert z.grad is not None
    assert all(p.grad is not None for p in decoder.parameters())
    assert ConvDecoder(5, size, width=8, channels=1)(z).shape == (2, 1, size, size)


def test_a_decoder_makes_data_of_the_encoders_kind() -> None:
    z = torch.randn(2, 5)
    assert decoder_for(build_encoder("pixels", 32), 5, width=8)(z).shape == (2, 3, 32, 32)
    of_vectors = decoder_for(build_encoder("mlp", 7), 5, width=8)
    assert of_vectors(z).shape == (2, 7)
    assert [m.out_features for m in of_vectors.modules() if hasattr(m, "out_features")] == [32, 7]


def test_decoder_of_all_other_places_is_that_of_the_whole() -> None:
    """Asked for all places that are not known, each in any order, it sees what it always does."""
    decoder, tokens, keep = a_decoder(), torch.randn(1, 3, 6), torch.tensor([[0, 2, 5]])
    wanted = torch.tensor([[4, 1, 3]])
    found = decoder(tokens, keep, wanted)
    assert torch.allclose(found, decoder(tokens, keep)[:, wanted[0]], atol=1e-6)


@pytest.mark.parametrize("wanted", [None, torch.tensor([[4, 1, 3]])])
def test_a_vector_of_the_whole_takes_part_without_a_place(wanted: torch.Tensor | None) -> None:
    """As one more token, whose row is dropped; without blocks it tells nobody anything."""
    decoder, tokens, keep = a_decoder(), torch.randn(1, 3, 6), torch.tensor([[0, 2, 5]])
    vector = torch.randn(1, 6)
    found, without = decoder(tokens, keep, wanted, vector), decoder(tokens, keep, wanted)
    assert found.shape == without.shape
    assert not torch.allclose(found, without, atol=1e-3)
    seen: list[torch.Tensor] = []
    decoder.blocks[0].register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    decoder(tokens, keep, wanted)
    decoder(tokens, keep, wanted, vector)
    assert torch.equal(seen[1][:, 1:], seen[0])
    assert torch.equal(seen[1][:, 0], decoder.embed(vector))
    decoder.blocks = torch.nn.ModuleList()
    assert torch.allclose(
        decoder(tokens, keep, wanted, vector), decoder(tokens, keep, wanted), atol=1e-6
    )


def test_places_that_nobody_asks_for_take_no_part() -> None:
    decoder, tokens, keep = a_decoder(), torch.randn(1, 2, 6), torch.tensor([[1, 3]])
    few = decoder(tokens, keep, torch.tensor([[4]]))
    assert few.shape == (1, 1, 12)
    assert not torch.allclose(few, decoder(tokens, keep, torch.tensor([[4, 0]]))[:, :1], atol=1e-4)


@pytest.mark.parametrize("width", [4, 8, 12])
def test_conv_decoder_is_of_any_width(width: int) -> None:
    decoder = ConvDecoder(5, 32, width=width)
    assert decoder(torch.randn(2, 5)).shape == (2, 3, 32, 32)
    norms = [m for m in decoder.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [math.gcd(8, width)]
