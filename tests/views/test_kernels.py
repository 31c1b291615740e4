"""The kernels against torchvision with the same parameters, and against the hash of random.py."""

import math
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import erase
from torchvision.transforms.v2 import functional as tv

from erg.views import kernels
from erg.views.pixels import Pixels
from erg.views.plan import (
    BYOL_FIRST,
    BYOL_SECOND,
    DINO_FIRST,
    DINO_LOCAL,
    DINO_SECOND,
    LIGHT,
    SIMCLR,
    SIMCLR_SMALL,
    SWAV_GLOBAL,
    SWAV_LOCAL,
    WHOLE,
    Augmentation,
)
from erg.views.random import Purpose, bits, uniform
from erg.views.render import draw, renderer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEAN_COLOUR = torch.tensor(MEAN)[:, None, None]
SIZES = [(32, 32), (1, 1), (3, 200), (200, 3), (17, 23), (61, 40), (2, 2), (150, 97), (1, 9)]


def photos(sizes: list[tuple[int, int]]) -> Pixels:
    """Images with smooth parts, noise, and saturated and colourless pixels."""
    drawn = np.random.default_rng(0)
    images = []
    for height, width in sizes:
        y, x = np.mgrid[:height, :width]
        phase = drawn.uniform(0, 6, 3)
        image = 127 + 140 * np.sin(y[..., None] / 9 + x[..., None] / 13 + phase)
        image += drawn.normal(0, 25, image.shape)
        image[drawn.uniform(size=(height, width)) < 0.05] = drawn.integers(256)
        images.append(image.clip(0, 255).astype(np.uint8))
    return Pixels.pack(images)


def rectangle(row: np.ndarray, side: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the cut-out [pixels of the view]."""
    height, width = (
        max(round(float(row[c]) * side), 1) for c in (kernels.CUT_HEIGHT, kernels.CUT_WIDTH)
    )
    top = math.floor(row[kernels.CUT_TOP] * (side - height + 1))
    left = math.floor(row[kernels.CUT_LEFT] * (side - width + 1))
    return top, left, height, width


def by_torchvision(image: np.ndarray, row: np.ndarray, side: int) -> Tensor:
    """The view that torchvision makes with these parameters, [3 s s] in [0, 1]."""
    data = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    top, left, height, width = (int(v) for v in row[kernels.TOP : kernels.WIDTH + 1])
    data = tv.resized_crop(data, top, left, height, width, [side, side], antialias=True)
    if row[kernels.FLIP]:
        data = tv.horizontal_flip(data)
    data = torch.rot90(data, int(row[kernels.TURNS]), (1, 2))
    if row[kernels.JITTER]:
        steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
        for step in row[kernels.FIRST : kernels.FOURTH + 1].astype(int):
            data = steps[step](data, float(row[kernels.BRIGHTNESS + step]))
    if row[kernels.GREY]:
        data = tv.rgb_to_grayscale(data, num_output_channels=3)
    if row[kernels.BLUR]:
        taps = max(side // 10 + (side // 10 + 1) % 2, 3)
        data = tv.gaussian_blur(data, [taps, taps], [float(row[kernels.SIGMA])] * 2)
    if row[kernels.SOLARISE]:
        data = tv.solarize(data, 0.5)
    return erase(data, *rectangle(row, side), v=MEAN_COLOUR) if row[kernels.CUT] else data


def drawn_for(pixels: Pixels, augmentation: Augmentation, seed: int) -> np.ndarray:
    index = np.arange(len(pixels.height))
    return draw(pixels, augmentation, view=0, geometry=0, seed=seed, epoch=0, index=index)


def rendered(
    pixels: Pixels, augmentation: Augmentation, side: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters, and views as the kernels normalise them [b s s 3]."""
    index = np.arange(len(pixels.height))
    params = drawn_for(pixels, augmentation, seed)
    out = np.full((len(index), side, side, 3), np.nan, dtype=np.float32)
    renderer(pixels, params, augmentation, view=0, seed=seed, epoch=0, index=index, mean=MEAN,
             std=STD, out=out)(slice(0, len(index)))  # fmt: skip
    return params, out


def compare(pixels: Pixels, augmentation: Augmentation, side: int, seed: int = 0) -> float:
    """Largest mean absolute error of any image [fraction of the full range]."""
    params, out = rendered(pixels, augmentation, side, seed)
    worst = 0.0
    for i, row in enumerate(params):
        expected = by_torchvision(pixels.image(i), row, side).permute(1, 2, 0).numpy()
        made = out[i] * np.array(STD, np.float32) + np.array(MEAN, np.float32)
        worst = max(worst, float(np.abs(made - expected).mean()))
    return worst


ALONE = {
    "whole": WHOLE,
    "crop": LIGHT,
    "flip": replace(WHOLE, flip=1.0),
    "turns": replace(LIGHT, turns=None),
    "brightness": replace(WHOLE, jitter=1.0, brightness=0.8),
    "contrast": replace(WHOLE, jitter=1.0, contrast=0.8),
    "saturation": replace(WHOLE, jitter=1.0, saturation=0.8),
    "hue": replace(WHOLE, jitter=1.0, hue=0.5),
    "jitter": replace(WHOLE, jitter=1.0, brightness=2.0, contrast=2.0, saturation=2.0, hue=0.5),
    "grey": replace(WHOLE, grey=1.0),
    "blur": replace(WHOLE, blur=1.0),
    "strong blur": replace(WHOLE, blur=1.0, sigma=(5.0, 9.0)),
    "solarise": replace(WHOLE, solarise=1.0),
    "cut-out": replace(LIGHT, turns=None, cutout=1.0),
    "large cut-out": replace(WHOLE, cutout=1.0, cutout_area=(0.4, 1.0), cutout_ratio=(0.1, 10.0)),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("side", [32, 45])
def test_each_step_equals_torchvision(name: str, side: int) -> None:
    assert compare(photos(SIZES), ALONE[name], side) < 1e-5


RECIPES = {
    "SIMCLR": (SIMCLR, 64),
    "SIMCLR_SMALL": (SIMCLR_SMALL, 32),
    "BYOL_FIRST": (BYOL_FIRST, 96),
    "BYOL_SECOND": (BYOL_SECOND, 96),
    "SWAV_GLOBAL": (SWAV_GLOBAL, 224),
    "SWAV_LOCAL": (SWAV_LOCAL, 40),
    "DINO_FIRST": (DINO_FIRST, 96),
    "DINO_SECOND": (DINO_SECOND, 96),
    "DINO_LOCAL": (DINO_LOCAL, 28),
    "with cut-out": (replace(BYOL_SECOND, turns=None, cutout=0.5), 33),
}
RAGGED = [*SIZES * 3, (500, 333), (256, 256), (700, 301)]
STEPS = {"flip": kernels.FLIP, "jitter": kernels.JITTER, "grey": kernels.GREY,
         "blur": kernels.BLUR, "solarise": kernels.SOLARISE, "cutout": kernels.CUT}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_equal_torchvision(name: str) -> None:
    augmentation, side = RECIPES[name]
    assert compare(photos(RAGGED), augmentation, side, seed=3) < 1e-5


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_compared_in_all_their_steps(name: str) -> None:
    """Every step is on in some image and off in another, and crops are enlarged and shrunk."""
    augmentation, side = RECIPES[name]
    params = drawn_for(photos(RAGGED), augmentation, seed=3)
    for step, column in STEPS.items():
        probability = getattr(augmentation, step)
        assert (params[:, column] == 1).any() == (probability > 0), step
        assert (params[:, column] == 0).any() == (probability < 1), step
    box = params[:, [kernels.HEIGHT, kernels.WIDTH]]
    assert (box < side).all(axis=1).any()
    assert (box > side).all(axis=1).any()


@pytest.mark.parametrize("side", [1, 2, 3, 5, 20])
def test_small_views_equal_torchvision(side: int) -> None:
    # Reflection needs two pixels, so torchvision cannot blur a view of one.
    augmentation = replace(SIMCLR, blur=float(side > 1), solarise=0.5)
    assert compare(photos(SIZES), augmentation, side) < 1e-5


def test_sigma_too_small_to_see_leaves_the_image() -> None:
    pixels = photos([(20, 20)])
    _, plain = rendered(pixels, WHOLE, 20)
    _, blurred = rendered(pixels, replace(WHOLE, blur=1.0, sigma=(0.0, 0.0)), 20)
    assert np.array_equal(plain, blurred)


@pytest.mark.parametrize("side", [1, 5, 32])
def test_cut_out_is_the_mean_colour_and_nothing_else_changes(side: int) -> None:
    pixels = photos([(40, 30)] * 64)
    augmentation = replace(LIGHT, turns=None, cutout=0.7)
    params, cut = rendered(pixels, augmentation, side)
    _, whole = rendered(pixels, replace(augmentation, cutout=0.0), side)
    seen = set()
    for row, before, after in zip(params, whole, cut, strict=True):
        expected = before.copy()
        if row[kernels.CUT]:
            top, left, height, width = rectangle(row, side)
            assert 0 <= top <= side - height
            assert 0 <= left <= side - width
            for y in range(top, top + height):
                for x in range(left, left + width):
                    expected[y, x] = 0.0
            seen.add((row[kernels.FLIP], row[kernels.TURNS]))
        assert np.array_equal(after, expected)
    assert len(seen) == 8


@pytest.mark.parametrize("side", [6, 7])
def test_noise_equals_plain_python(side: int) -> None:
    """Box and Muller on the numbers of random.py, in planes [3, x, y]."""
    pixels = photos([(9, 9)] * 2)
    _, clean = rendered(pixels, WHOLE, side, seed=5)
    _, noisy = rendered(pixels, replace(WHOLE, noise=0.2), side, seed=5)
    values = 3 * side * side
    half = (values + 1) // 2
    for image in range(2):
        planes = np.empty(2 * half)
        for i in range(half):
            word = int(bits(5, 0, image, 0, Purpose.NOISE, i))
            radius = 0.2 * math.sqrt(-2 * math.log(((word >> 32) + 0.5) / 2**32))
            angle = 2 * math.pi * (word % 2**32) / 2**32
            planes[i], planes[half + i] = radius * math.cos(angle), radius * math.sin(angle)
        expected = planes[:values].reshape(3, side, side).transpose(2, 1, 0) / STD
        np.testing.assert_allclose(noisy[image] - clean[image], expected, atol=2e-6)


def test_zeroed_pixels_equal_plain_numpy() -> None:
    side, pixels = 7, photos([(9, 9)] * 2)
    _, clean = rendered(pixels, WHOLE, side, seed=5)
    _, zeroed = rendered(pixels, replace(WHOLE, zeroed=0.4), side, seed=5)
    for image in range(2):
        drawn = uniform(5, 0, image, 0, Purpose.ZEROED, np.arange(side * side))
        off = drawn.reshape(side, side).T < 0.4  # planes [x, y]
        assert np.array_equal(zeroed[image], np.where(off[..., None], np.float32(0), clean[image]))


def naive_draw(size: tuple[int, int], a: Augmentation, words: tuple[int, ...], own: int) -> list:
    """One row of parameters in plain Python, from the numbers of random.py."""
    seed, epoch, index, geometry = words

    def number(purpose: Purpose, draw: int, view: int = geometry) -> float:
        return float(uniform(seed, epoch, index, view, purpose, draw))

    height, width = size
    assert a.crop is not None
    low, high = math.log(a.ratio[0]), math.log(a.ratio[1])
    for k in range(0, 40, 4):
        area = height * width * (a.crop[0] + (a.crop[1] - a.crop[0]) * number(Purpose.CROP, k))
        ratio = math.exp(low + (high - low) * number(Purpose.CROP, k + 1))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top = int(number(Purpose.CROP, k + 2) * (height - h + 1))
            left = int(number(Purpose.CROP, k + 3) * (width - w + 1))
            break
    else:
        h, w = height, width
        if width / height < a.ratio[0]:
            h = round(width / a.ratio[0])
        elif width / height > a.ratio[1]:
            w = round(height * a.ratio[1])
        top, left = (height - h) // 2, (width - w) // 2
    turns = int(4 * number(Purpose.TURNS, 0, own)) if a.turns is None else a.turns
    order = [0, 1, 2, 3]
    for i in range(3):
        j = i + int(number(Purpose.JITTER, 1 + i) * (4 - i))
        order[i], order[j] = order[j], order[i]
    factors = []
    for k, strength in enumerate((a.brightness, a.contrast, a.saturation)):
        least = max(0.0, 1 - strength)
        factors.append(least + (1 + strength - least) * number(Purpose.JITTER, 4 + k))
    hue = a.hue * (2 * number(Purpose.JITTER, 7) - 1)
    sigma = a.sigma[0] + (a.sigma[1] - a.sigma[0]) * number(Purpose.BLUR, 1)
    row = [top, left, h, w, number(Purpose.FLIP, 0) < a.flip, turns]
    row += [number(Purpose.JITTER, 0) < a.jitter, *order, *factors, hue]
    row += [number(Purpose.GREY, 0) < a.grey, number(Purpose.BLUR, 0) < a.blur, sigma]
    row += [number(Purpose.SOLARISE, 0) < a.solarise]
    background = number(Purpose.BACKGROUND, 0) < a.background
    low, high = math.log(a.cutout_ratio[0]), math.log(a.cutout_ratio[1])
    for k in range(1, 41, 4):
        u = [number(Purpose.CUTOUT, k + j, own) for j in range(4)]
        area = a.cutout_area[0] + (a.cutout_area[1] - a.cutout_area[0]) * u[0]
        ratio = math.exp(low + (high - low) * u[1])
        h, w = math.sqrt(area / ratio), math.sqrt(area * ratio)
        if h < 1 and w < 1 and number(Purpose.CUTOUT, 0, own) < a.cutout:
            return [*row, True, u[2], u[3], h, w, background]
    return [*row, *[0] * 5, background]


def test_draw_equals_plain_python() -> None:
    sizes = SIZES * 4 + [(300, 400)]
    augmentation = replace(
        BYOL_SECOND, turns=None, hue=0.3, cutout=0.6, cutout_area=(0.3, 1.0),
        cutout_ratio=(0.2, 2), background=0.4,
    )  # fmt: skip
    index = np.arange(len(sizes)) * 17 + 3
    params = draw(photos(sizes), augmentation, view=4, geometry=1, seed=-8, epoch=6, index=index)
    for size, image, row in zip(sizes, index, params, strict=True):
        expected = naive_draw(size, augmentation, (-8, 6, int(image), 1), 4)
        np.testing.assert_allclose(row, np.array(expected, dtype=float), rtol=1e-14)
    for share in (kernels.CUT, kernels.BACKGROUND):
        assert 0 < params[:, share].sum() < len(sizes)


def drawn(augmentation: Augmentation, n: int = 20_000, size: int = 128) -> np.ndarray:
    """Parameters of n images of the same size (the kernels read no pixel of them)."""
    sizes = np.full(n, size)
    pixels = Pixels(np.zeros(0, np.uint8), np.zeros(n, np.int64), sizes, sizes)
    return draw(pixels, augmentation, view=0, geometry=0, seed=1, epoch=0, index=np.arange(n))


def test_probabilities_of_draws() -> None:
    params = drawn(replace(BYOL_SECOND, flip=0.3, turns=None, cutout=0.4))
    wanted = [(kernels.FLIP, 0.3), (kernels.JITTER, 0.8), (kernels.GREY, 0.2),
              (kernels.BLUR, 0.1), (kernels.SOLARISE, 0.2), (kernels.CUT, 0.4)]  # fmt: skip
    for column, probability in wanted:
        assert set(np.unique(params[:, column])) == {0.0, 1.0}
        spread = math.sqrt(probability * (1 - probability) / len(params))
        assert abs(params[:, column].mean() - probability) < 4 * spread
    on = params[:, [column for column, _ in wanted]]
    assert np.abs(np.corrcoef(on.T) - np.eye(6)).max() < 4.5 / math.sqrt(len(params))
    turns = np.bincount(params[:, kernels.TURNS].astype(int), minlength=4)
    assert ((turns - 5000) ** 2 / 5000).sum() < 16.3  # chi-square, 3, p = 0.001
    orders = np.unique(params[:, kernels.FIRST : kernels.FOURTH + 1], axis=0, return_counts=True)
    assert len(orders[1]) == 24
    expected = len(params) / 24
    assert ((orders[1] - expected) ** 2 / expected).sum() < 49.7  # chi-square, 23, p = 0.001


def test_ranges_of_draws() -> None:
    params = drawn(replace(SIMCLR, brightness=0.4, contrast=1.5, saturation=0.8, hue=0.2))
    ranges = [(kernels.BRIGHTNESS, 0.6, 1.4), (kernels.CONTRAST, 0.0, 2.5),
              (kernels.SATURATION, 0.2, 1.8), (kernels.HUE, -0.2, 0.2),
              (kernels.SIGMA, 0.1, 2.0)]  # fmt: skip
    for column, low, high in ranges:
        unit = np.sort((params[:, column] - low) / (high - low))
        assert unit[0] >= 0
        assert unit[-1] <= 1
        distance = np.abs(unit - np.arange(len(unit)) / len(unit)).max()
        assert distance < 1.95 / math.sqrt(len(unit))


def test_crops_stay_inside_and_have_the_area_asked_for() -> None:
    params = drawn(replace(LIGHT, crop=(0.2, 0.6)))
    top, left, height, width = params[:, :4].T
    assert (params[:, :4] == np.floor(params[:, :4])).all()
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == (left + width).max() == 128
    area = height * width / 128**2
    assert area.min() > 0.19
    assert area.max() < 0.61
    assert abs(area.mean() - 0.4) < 0.003
    ratio = np.log(width / height)
    assert np.abs(ratio).max() < math.log(4 / 3) + 0.03
    assert abs(ratio.mean()) < 0.005


def test_cut_outs_have_the_area_and_the_place_asked_for() -> None:
    params = drawn(replace(WHOLE, cutout=1.0, cutout_area=(0.1, 0.3), cutout_ratio=(0.5, 2.0)))
    top, left, height, width = params[:, kernels.CUT_TOP : kernels.CUT_WIDTH + 1].T
    assert (params[:, kernels.CUT] == 1).all()
    ratio = np.log2(width / height)
    for value, low, high in [(height * width, 0.1, 0.3), (ratio, -1, 1), (top, 0, 1), (left, 0, 1)]:
        unit = np.sort((value - low) / (high - low))
        assert unit[0] > -1e-12
        assert unit[-1] < 1 + 1e-12
        assert np.abs(unit - np.arange(len(unit)) / len(unit)).max() < 1.95 / len(unit) ** 0.5
    together = np.corrcoef([height * width, ratio, top, left]) - np.eye(4)
    assert np.abs(together).max() < 4.5 / math.sqrt(len(params))


def test_a_cut_out_that_never_fits_is_none() -> None:
    long = replace(WHOLE, cutout=1.0, cutout_area=(0.5, 0.5), cutout_ratio=(3.0, 3.0))
    assert (drawn(long, n=100)[:, kernels.CUT :] == 0).all()


def test_no_crop_is_the_largest_centred_square() -> None:
    index = np.arange(len(SIZES))
    params = draw(photos(SIZES), WHOLE, view=0, geometry=0, seed=0, epoch=0, index=index)
    for (height, width), row in zip(SIZES, params, strict=True):
        side = min(height, width)
        assert row[:4].tolist() == [(height - side) // 2, (width - side) // 2, side, side]


def test_hash_and_purposes_equal_those_of_random() -> None:
    kernels.compile_kernels()
    for words in [(0, 0, 0, 0), (2**64 - 1, 5, 2**64 - 3, 1), (9, 8, 7, 6)]:
        made = kernels.key(*(np.uint64(word) for word in words))
        assert int(made) == int(bits(*words))
        assert int(kernels.chain(np.uint64(made), np.uint64(4))) == int(bits(*words, 4))
    names = ("CROP", "FLIP", "TURNS", "JITTER", "GREY", "BLUR", "SOLARISE", "NOISE", "ZEROED",
             "CUTOUT", "TILES", "BACKGROUND")  # fmt: skip
    for name in names:
        assert getattr(kernels, f"_{name}") == Purpose[name]


def test_numbers_equal_those_of_numpy() -> None:
    kernels.compile_kernels()
    for x in np.linspace(-40, 40, 997):
        assert kernels.exp(x) == pytest.approx(math.exp(x), rel=1e-15, abs=0)
    for x in np.concatenate([np.geomspace(1e-12, 1e12, 997), 1 + np.linspace(-1e-6, 1e-6, 11)]):
        assert kernels.log(x) == pytest.approx(math.log(x), rel=1e-15, abs=1e-16)
    for u in np.linspace(0, 1, 997, endpoint=False):
        expected = (math.cos(2 * math.pi * u), math.sin(2 * math.pi * u))
        assert kernels.circle(u) == pytest.approx(expected, abs=2e-15)


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even() -> None:
    kernels.compile_kernels()
    drawn = np.random.default_rng(0).integers(0, 2**32, 2000, dtype=np.uint64)
    upper = drawn[:500] >> 16 << 16
    words = np.concatenate([drawn, upper, upper + 0x7FFF, upper + 0x8000, upper + 0x8001])
    values = words.astype(np.uint32).view(np.float32)
    ends = np.array([0, -0.0, np.inf, -np.inf], dtype=np.float32)
    values = np.append(values[np.isfinite(values)], ends)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    made = np.array([kernels._bfloat16(value) for value in values], dtype=np.uint16)
    assert np.array_equal(made.view(np.int16), expected)


def test_import_does_not_compile() -> None:
    code = (
        "from erg.views import kernels\n"
        "assert len(kernels._KERNELS) > 20\n"
        "assert not any(function.signatures for function, _ in kernels._KERNELS)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_each_kernel_has_one_signature() -> None:
    compare(photos([(8, 8)]), SIMCLR, 32)
    for function, _ in kernels._KERNELS:
        assert len(function.signatures) == 1
        assert function.targetoptions["nogil"]
        assert not function.targetoptions.get("parallel")
        assert not function.targetoptions.get("fastmath")


class Kernel:
    """Stands for one; says whether it is found in the cache."""

    def __init__(self, cached: bool = False, trouble: str = "") -> None:
        self.cached, self.trouble = cached, trouble
        self.signatures: list[str] = []
        self.closed = False
        path = None if trouble else "a folder"
        self.stats = SimpleNamespace(cache_hits=Counter(), cache_path=path)

    def enable_caching(self) -> None:
        if self.trouble:
            raise RuntimeError(self.trouble)

    def compile(self, signature: str) -> None:
        assert not self.closed
        self.signatures.append(signature)
        self.stats.cache_hits.update([signature] * self.cached)

    def disable_compile(self) -> None:
        self.closed = True


def stand_in(monkeypatch: pytest.MonkeyPatch, made: list[Kernel]) -> None:
    monkeypatch.setattr(kernels, "_KERNELS", [(kernel, "void()") for kernel in made])
    monkeypatch.setattr(kernels, "_READY", threading.Event())


def test_what_no_cache_holds_is_shown_as_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Kernel(cached) for cached in (True, False, True, False)]
    stand_in(monkeypatch, made)
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        kernels.compile_kernels(lambda ready, of: seen.append((ready, of)))
    assert seen == [(2, 4), (4, 4)]
    assert all(kernel.signatures == ["void()"] and kernel.closed for kernel in made)
    assert kernels.kept_in() == "a folder"


def test_where_no_folder_takes_the_cache_kernels_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = [Kernel(trouble="cannot cache function 'f': no locator available") for _ in "ab"]
    stand_in(monkeypatch, made)
    kernels.compile_kernels()
    assert all(kernel.closed for kernel in made)
    assert kernels.kept_in() is None
    stand_in(monkeypatch, [Kernel(trouble="something else")])
    with pytest.raises(RuntimeError, match="something else"):
        kernels.compile_kernels()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    code = (
        "from erg.views import kernels\n"
        "seen = []\n"
        "kernels.compile_kernels(lambda *told: seen.append(told))\n"
        "print(len(seen), len(kernels._KERNELS), kernels.kept_in())\n"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            check=True, capture_output=True, text=True, timeout=200,
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert found[0][0] == found[0][1]
    assert found[1][0] == "0"
    assert Path(found[1][2]).is_relative_to(tmp_path)
