"""Crops of several sizes: their plan, and one encoder for all."""

import pytest
import torch
from torch import Tensor

from erg.parts.crops import by_size, multi_crop, of_one_size
from erg.views.plan import DINO_FIRST, DINO_LOCAL, DINO_SECOND, SIMCLR_SMALL, Masking
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


def test_features_known_before_stand_before() -> None:
    def encoder(data: Tensor) -> Tensor:
        return data.mean(dim=(2, 3))

    known = torch.randn(5, 3)
    crops = [View(torch.randn(2, 3, 8, 8)), View(torch.randn(2, 3, 4, 4))]
    found = by_size(encoder, crops, known)
    assert torch.equal(found, torch.cat([known, by_size(encoder, crops)]))
    assert torch.equal(by_size(encoder, [], known), known)


def test_crops_of_one_size_stand_together() -> None:
    crops = [View(torch.full((2, 3, side, side), float(i))) for i, side in enumerate((8, 8, 4, 8))]
    found = [[float(data.flatten()[0]) for data in equal] for equal in of_one_size(crops)]
    assert found == [[0, 1], [2], [3]]


def test_plan_has_two_large_crops_and_as_many_small_ones_as_asked_for() -> None:
    mask = Masking(grid=(14, 14), ratio=0.3)
    plan = multi_crop(224, 3, mask=mask)
    assert (plan.pairs, plan.kind) == ("views", "image")
    for view, like in zip(plan.main, (DINO_FIRST, DINO_SECOND), strict=True):
        assert view.mask == mask
        assert (view.crop, view.blur, view.solarise) == ((0.4, 1.0), like.blur, like.solarise)
    assert plan.local == (DINO_LOCAL,) * 3
    assert multi_crop(224, 3).main == (DINO_FIRST, DINO_SECOND)
    parted = multi_crop(224, 2, share=0.3)
    assert [view.crop for view in parted.main + parted.local] == [(0.3, 1), (0.3, 1)] + 2 * [
        (0.05, 0.3)
    ]


def test_plan_of_small_images_has_the_colours_of_cifar() -> None:
    plan = multi_crop(32, 2, share=0.3)
    assert [view.crop for view in plan.main + plan.local] == 2 * [(0.4, 1)] + 2 * [(0.1, 0.4)]
    assert [view.pixels(32) for view in plan.main + plan.local] == [32, 32, 16, 16]
    assert {(view.jitter, view.brightness, view.blur) for view in plan.main + plan.local} == {
        (SIMCLR_SMALL.jitter, SIMCLR_SMALL.brightness, 0.0)
    }
