"""Plans are checked data, and the presets are those of the papers."""

import dataclasses
from dataclasses import replace

import pytest

from erg.views import plan as plans
from erg.views.plan import LIGHT, WHOLE, Augmentation, Masking, Plan, two_views, whole

COLOURS = ("jitter", "brightness", "contrast", "saturation", "hue", "grey")


@pytest.mark.parametrize(
    ("name", "colours", "blur", "solarise", "crop"),
    [
        ("SIMCLR", (0.8, 0.8, 0.8, 0.8, 0.2, 0.2), 0.5, 0.0, (0.08, 1.0)),
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
    assert (WHOLE.turns, WHOLE.mask) == (0, None)


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
