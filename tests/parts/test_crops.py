"""Crops of several sizes through one encoder."""

import pytest
import torch
from torch import Tensor

from erg.parts.crops import by_size
from erg.views.types import View


@pytest.mark.parametrize("sides", [(16,), (16, 16), (16, 16, 8, 8, 8), (16, 8, 8, 12), (8, 16, 8)])
def test_one_pass_per_resolution_and_every_crop_its_own_features(sides: tuple[int, ...]) -> None:
    crops = [View(torch.randn(2, 3, side, side)) for side in sides]
    passes: list[tuple[int, ...]] = []

    def encoder(data: Tensor) -> Tensor:
        passes.append(tuple(data.shape))
        return data.mean(dim=(2, 3))

    found = by_size(encoder, crops).chunk(len(crops))
    for z, crop in zip(found, crops, strict=True):
        assert torch.allclose(z, crop.data.mean(dim=(2, 3)), atol=1e-6)
    assert sum(shape[0] for shape in passes) == 2 * len(crops)
    changes = sum(a != b for a, b in zip(sides, (None, *sides), strict=False))
    assert len(passes) == changes
