"""Plans are checked data, and the presets are those of the papers."""

import dataclasses
from dataclasses import replace

import pytest

from erg.views import plan as plans
from erg.views.plan import LIGHT, WHOLE, Augmentation, Masking, Plan, Tiles, two_views, whole

COLOURS = ("jitter", "brightness", "contrast", "saturation", "hue", "grey")


@pytest.mark.parametrize(
    ("name", "colours", "blur", "solarise", "crop"),
    [
        ("SIMCLR", (0.8, 0.8, 0.8, 0.8, 0.2, 0.2), 0.5, 0.0, (0.08, 1.0)),
        ("MOCO2", (0.8, 0.4, 0.4, 0.4, 0.1, 0.2), 0.5, 0.0, (0.2, 1.0)),
        ("BYOL_FIRST", (0.8, 0.4, 0.4, 0.2, 0.1, 0.2), 1.0, 0.0, (0.08, 1.0)),
        ("BYOL_SECOND", (0.8, 0.4, 0.4, 0.2, 0.1, 0.2), 0.1, 0.2, (0.08, 1.0)),
        ("SWAV_GLOBAL", (0.8, 0.8, 0.8, 0.8, 0.2, 0.2), 0.5, 0.0, (0.14, 1.0)),
        ("SWAV_LOCAL", (0.8, 0.8, 0.8, 0.8, 0.2, 0.2), 0.5, 0.0, (0.05, 0.14)),
        ("DINO_FIRST", (0.8, 0.4, 0.4, 0.2, 0.1, 0.2), 1.0, 0.0, (0.4, 1.0)),
        ("DINO_SECOND", (0.8, 0.4, 0.4, 0.2, 0.1, 0.2), 0.1, 0.2, (0.4, 1.0)),
        ("DINO_LOCAL", (0.8, 0.4, 0.4, 0.2, 0.1, 0.2), 0.5, 0.0, (0.05, 0.4)),
    ],
)
def test_presets_are_the_recipes(
    name: str, colours: tuple, blur: float, solarise: float, crop: tuple
) -> None:
    """Section 0.4 of the reference on joint embedding."""
    view = getattr(plans, name)
    assert tuple(getattr(view, c) for c in COLOURS) == colours
    assert (view.blur, view.solarise, view.crop) == (blur, solarise, crop)
    assert (view.cutout, view.noise, view.zeroed, view.turns) == (0, 0, 0, 0)
    assert (view.flip, view.ratio, view.sigma) == (0.5, (3 / 4, 4 / 3), (0.1, 2.0))
    assert view.pixels(224) == (96 if name.endswith("LOCAL") else 224)


def test_small_images_get_half_the_strength_and_no_blur() -> None:
    view = plans.SIMCLR_SMALL
    assert tuple(getattr(view, c) for c in COLOURS) == (0.8, 0.4, 0.4, 0.4, 0.1, 0.2)
    assert view.blur == 0


def test_evaluation_is_not_random() -> None:
    assert whole() == Plan(main=(WHOLE,), pairs="alone")
    assert WHOLE.crop is None
    random = ("flip", *COLOURS, "blur", "solarise", "cutout", "noise", "zeroed")
    assert all(getattr(WHOLE, name) == 0 for name in random)
    assert (WHOLE.turns, WHOLE.mask, WHOLE.tiles) == (0, None, None)


def test_two_views() -> None:
    assert two_views(LIGHT).main == (LIGHT, LIGHT)
    assert two_views(LIGHT, WHOLE).main == (LIGHT, WHOLE)


@pytest.mark.parametrize(
    ("size", "image_size", "side"),
    [(1.0, 30, 30), (96 / 224, 224, 96), (96 / 224, 96, 40), (0.5, 32, 16), (0.01, 32, 4)],
)
def test_sides_are_a_fraction_and_a_multiple_of_four(
    size: float, image_size: int, side: int
) -> None:
    assert Augmentation(size=size).pixels(image_size) == side


@pytest.mark.parametrize(
    ("grid", "ratio", "hidden"), [((14, 14), 0.75, 147), ((6, 6), 0.75, 27), ((4, 4), 0.0, 0)]
)
def test_masking_hides_a_rounded_share(grid: tuple[int, int], ratio: float, hidden: int) -> None:
    assert Masking(grid=grid, ratio=ratio).hidden == hidden


@pytest.mark.parametrize(
    ("tiles", "side", "pixels"),
    [
        (Tiles(), 432, (144, 96, 14)),  # Doersch et al. 2015: 96 pixels, 48 apart, +- 7
        (Tiles(gap=1 / 85, jitter=20 / 85), 255, (85, 64, 20)),  # VISSL: 64 of 85 pixels, 0 to 20
        (Tiles(gap=0.0, jitter=0.0), 96, (32, 31, 0)),  # a pixel stays free all the same
        (Tiles(gap=0.0, jitter=0.9), 30, (10, 1, 8)),
        (Tiles(grid=(2, 2), gap=0.0, jitter=0.25), 17, (8, 6, 1)),
        (Tiles(), 6, (2, 1, 0)),
    ],
)
def test_sizes_of_tiles(tiles: Tiles, side: int, pixels: tuple[int, int, int]) -> None:
    assert tiles.pixels(side) == pixels


def test_tiles_need_room() -> None:
    with pytest.raises(ValueError, match=r"view of 5 pixels has no room for 3 x 3 tiles"):
        Tiles().pixels(5)


def test_number_of_tiles() -> None:
    assert Tiles(grid=(2, 4)).count == 8
    assert Tiles(orders=((4, 0), (4, 8))).count == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"grid": (0, 3)}, "at least one row"),
        ({"gap": -0.1}, "leave room for a tile"),
        ({"jitter": -0.1}, "leave room for a tile"),
        ({"gap": 0.5, "jitter": 0.5}, "leave room for a tile"),
        ({"drop": 1.1}, "drop is a probability"),
        ({"orders": ((0, 1), (2,))}, r"equally long .*got \(2,\)"),
        ({"orders": ((0, 9),)}, "cells 0 to 8"),
        ({"orders": ((0, -1),)}, "cells 0 to 8"),
        ({"orders": ((),)}, "equally long"),
    ],
)
def test_wrong_tiles_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Tiles(**wrong)


def test_a_view_has_a_mask_or_tiles() -> None:
    with pytest.raises(ValueError, match="mask or tiles, not both"):
        Augmentation(mask=Masking(grid=(2, 2)), tiles=Tiles())


def test_which_views_bytes_cannot_hold() -> None:
    assert Augmentation(noise=0.1).noisy
    assert Augmentation(tiles=Tiles(drop=0.1)).noisy
    assert not Augmentation(tiles=Tiles()).noisy
    assert not plans.SIMCLR.noisy


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"flip": 1.5}, "flip is a probability"),
        ({"jitter": -0.1}, "jitter is a probability"),
        ({"grey": 2}, "grey is a probability"),
        ({"blur": -1}, "blur is a probability"),
        ({"solarise": 3}, "solarise is a probability"),
        ({"zeroed": 1.01}, "zeroed is a probability"),
        ({"crop": (0.0, 1.0)}, "0 < low <= high <= 1"),
        ({"crop": (0.5, 0.3)}, "0 < low <= high <= 1"),
        ({"crop": (0.5, 1.1)}, "0 < low <= high <= 1"),
        ({"cutout": 1.1}, "cutout is a probability"),
        ({"cutout_area": (0.0, 0.3)}, "cutout_area should be 0 < low <= high <= 1"),
        ({"cutout_area": (0.3, 0.2)}, "cutout_area should be 0 < low <= high <= 1"),
        ({"cutout_area": (0.3, 1.2)}, "cutout_area should be 0 < low <= high <= 1"),
        ({"cutout_ratio": (0.0, 2.0)}, "cutout_ratio should be 0 < low <= high"),
        ({"cutout_ratio": (2.0, 1.0)}, "cutout_ratio should be 0 < low <= high"),
        ({"ratio": (-1.0, 1.0)}, "ratio should be 0 < low <= high"),
        ({"hue": 0.6}, r"hue should be in \[0, 0.5\]"),
        ({"hue": -0.1}, r"hue should be in \[0, 0.5\]"),
    ],
)
def test_wrong_augmentations_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Augmentation(**wrong)
    with pytest.raises(ValueError, match=says):
        replace(LIGHT, **wrong)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
def test_a_masking_ratio_is_a_share(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio should be in"):
        Masking(grid=(2, 2), ratio=ratio)


def test_wrong_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one main view"):
        Plan(main=())
    with pytest.raises(ValueError, match="sorted by size"):
        Plan(main=(LIGHT,), local=(replace(LIGHT, size=0.5), replace(LIGHT, size=0.25)))
    with pytest.raises(ValueError, match="earlier view"):
        Plan(main=(LIGHT, replace(LIGHT, same_as=1)))
    with pytest.raises(ValueError, match="earlier view"):
        Plan(main=(replace(LIGHT, same_as=0),))
    assert Plan(main=(LIGHT, replace(LIGHT, same_as=0)))


def test_a_view_before_the_first_is_no_earlier_view() -> None:
    with pytest.raises(ValueError, match="earlier view"):
        Plan(main=(LIGHT, replace(LIGHT, same_as=-1)))  # itself, without end


def test_a_local_view_repeats_a_main_view_that_is_there() -> None:
    assert Plan(main=(LIGHT,), local=(replace(LIGHT, size=0.5, same_as=0),))
    with pytest.raises(ValueError, match="earlier view"):
        Plan(main=(LIGHT,), local=(replace(LIGHT, size=0.5, same_as=1),))


def test_plans_are_frozen_and_hashable() -> None:
    plan = two_views(LIGHT)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.kind = "array"  # type: ignore[misc]
    assert hash(plan) == hash(two_views(LIGHT))
