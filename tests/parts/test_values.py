"""No network: pixels by a loop, vectors as they are."""

import torch
from torch import Tensor

from erg.encoders import build_encoder, parameter_count
from erg.parts.values import averaged


def images(b: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(b, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_pixels_averages_and_flattens() -> None:
    encoder, data = build_encoder("pixels", 8, side=4), images(2, 8)
    assert encoder.dim == 48
    found = encoder(data).reshape(2, 3, 4, 4)
    for r in range(4):
        for c in range(4):
            wanted = data[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean(dim=(2, 3))
            assert torch.allclose(found[:, :, r, c], wanted, atol=1e-6)
    assert build_encoder("pixels", 8).dim == 3 * 8 * 8
    assert encoder(images(2, 20)).shape == (2, 48)


def test_vectors_stay_as_they_are() -> None:
    data, identity = torch.randn(4, 5), build_encoder("identity", 5)
    assert identity(data) is data
    assert (identity.dim, identity.mean) == (5, ())
    assert parameter_count(identity) == 0


def test_places_that_do_not_divide_the_data_overlap() -> None:
    data = images(2, 5)
    found = averaged(data, 3)
    edges = [(0, 2), (1, 4), (3, 5)]  # from floor(5 i / 3) to ceil(5 (i + 1) / 3)
    for r, (top, bottom) in enumerate(edges):
        for c, (left, right) in enumerate(edges):
            wanted = data[:, :, top:bottom, left:right].mean(dim=(2, 3))
            assert torch.allclose(found[:, :, r, c], wanted, atol=1e-6)


def test_whole_numbers_become_floats() -> None:
    data = torch.arange(10).reshape(2, 5)
    found = build_encoder("identity", 5)(data)
    assert found.dtype == torch.float32
    assert found.tolist() == data.tolist()
