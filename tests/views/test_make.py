"""Making views: the same bits however the work is split, and a How that tells the truth."""

import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from erg.views import kernels
from erg.views.make import begin_view, make_tokens, make_vectors, make_views
from erg.views.masks import random_mask, random_tiles
from erg.views.pixels import Pixels
from erg.views.plan import (
    BYOL_SECOND,
    DINO_FIRST,
    DINO_LOCAL,
    DINO_SECOND,
    LIGHT,
    SIMCLR,
    WHOLE,
    Augmentation,
    Masking,
    Plan,
    Tiles,
    two_views,
)
from erg.views.random import Purpose, bits, uniform
from erg.views.render import render
from erg.views.types import Output, View
from tests.views.pools import Early

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
EVERYTHING = replace(BYOL_SECOND, blur=0.5, turns=None, cutout=0.5, noise=0.1, zeroed=0.1)
SIZES = [
    (20, 31),
    (64, 40),
    (48, 48),
    (33, 33),
    (90, 12),
    (25, 70),
    (1, 1),
]  # 1 x 1 ends the buffer


def images(sizes: list[tuple[int, int]]) -> Pixels:
    drawn = np.random.default_rng(5)
    return Pixels.pack([drawn.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes])


PIXELS = images(SIZES)
INDEX = np.array([4, 90, 17, 3, 1000, 55, 8])


def some(pixels: Pixels, rows: list[int]) -> Pixels:
    return Pixels(pixels.flat, pixels.offset[rows], pixels.height[rows], pixels.width[rows])


MASKS = PIXELS._replace(flat=(PIXELS.flat[::-1].astype(int) * 3 - 300).clip(0, 255).astype("uint8"))
"""Black, white and grey, of other noise."""


def with_masks(rows: list[int], without: Sequence[int] = ()) -> Pixels:
    """Some images with masks, of 0 x 0 where there is none."""
    there = np.array([row not in without for row in rows], dtype=np.int64)
    masks = some(MASKS, rows)
    masks = masks._replace(height=masks.height * there, width=masks.width * there)
    return some(PIXELS, rows)._replace(masks=masks)


def make_view(
    pixels: Pixels, augmentation: Augmentation, pool: ThreadPoolExecutor | None = None, **how: Any
) -> View:
    view, rendering = begin_view(pixels, augmentation, **how)
    render([rendering], len(how["index"]), pool)
    return view


def make(augmentation: Augmentation, rows: list[int] | None = None, **changed: Any) -> View:
    rows = list(range(len(SIZES))) if rows is None else rows
    arguments: dict = {"view": 0, "geometry": 0, "seed": 2, "epoch": 1, "image_size": 32}
    arguments |= {"mean": MEAN, "std": STD, "index": INDEX[rows]}
    arguments |= changed
    pixels = arguments.pop("pixels", None) or some(PIXELS, rows)
    return make_view(pixels, augmentation, **arguments)


@pytest.mark.parametrize("side", [32, 21])
@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_threads_change_no_bit(threads: int, side: int) -> None:
    alone = make(EVERYTHING, image_size=side)
    with Early(threads) as pool:
        shared = make(EVERYTHING, image_size=side, pool=pool)
    assert torch.equal(alone.data, shared.data)
    assert torch.isfinite(alone.data).all()


def test_batches_change_no_bit() -> None:
    together = make(EVERYTHING)
    for rows in ([0, 1, 2], [3], [4, 5, 6], [6, 2, 0]):
        apart = make(EVERYTHING, rows)
        assert torch.equal(apart.data, together.data[rows])
        assert apart.made is not None
        assert together.made is not None
        assert torch.equal(apart.made.box, together.made.box[rows])


# Of the views before there were cut-outs and other forms than float32: no default changed a bit.
KNOWN = {
    "SIMCLR": (SIMCLR, 0x6D841459),
    "BYOL_SECOND": (BYOL_SECOND, 0x98881990),
    "DINO_LOCAL": (DINO_LOCAL, 0x7FF67FBA),
}


@pytest.mark.parametrize("name", KNOWN)
def test_presets_make_the_bits_they_always_made(name: str) -> None:
    waves = []
    for k, (height, width) in enumerate([(40, 40), (7, 90), (90, 7), (64, 33), (1, 1), (120, 150)]):
        for number in (k, k + 6):
            y, x, c = np.ogrid[:height, :width, :3]
            wave = 3 * y + 5 * x + x * y // 7 + 60 * c + 37 * number
            waves.append((number, (wave % 256).astype(np.uint8)))
    pixels = Pixels.pack([image for _, image in sorted(waves, key=lambda item: item[0])])
    augmentation, known = KNOWN[name]
    view = make_view(
        pixels, augmentation, view=1, geometry=1, seed=7, epoch=3, index=100 + 17 * np.arange(12),
        image_size=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    assert zlib.crc32(view.data.permute(0, 2, 3, 1).numpy().tobytes()) == known


@pytest.mark.parametrize("side", [32, 21])
@pytest.mark.parametrize("augmentation", [EVERYTHING, SIMCLR, DINO_LOCAL])
def test_bfloat16_is_float32_rounded_bit_for_bit(augmentation: Augmentation, side: int) -> None:
    full = make(augmentation, image_size=side)
    half = make(augmentation, image_size=side, output="bfloat16")
    assert half.data.dtype == torch.bfloat16
    assert half.data.is_contiguous(memory_format=torch.channels_last)
    expected = full.data.to(torch.bfloat16)
    assert torch.equal(half.data.view(torch.int16), expected.view(torch.int16))
    assert (half.mean, half.std, half.raw) == (MEAN, STD, False)
    assert torch.allclose(half.unit(), full.unit(), atol=2**-8)


QUIET = replace(EVERYTHING, noise=0.0)


@pytest.mark.parametrize("side", [32, 21])
@pytest.mark.parametrize("augmentation", [QUIET, SIMCLR, BYOL_SECOND, DINO_LOCAL])
def test_bytes_become_the_float32_view_where_they_arrive(
    augmentation: Augmentation, side: int
) -> None:
    full = make(augmentation, image_size=side)
    raw = make(augmentation, image_size=side, output="uint8")
    assert raw.raw
    assert raw.data.dtype == torch.uint8
    assert raw.data.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(raw.unit(), full.unit(), atol=0.5 / 255 + 1e-6)
    arrived = raw.to("cpu", torch.float32)
    error = (arrived.data - full.data).abs().amax(dim=(0, 2, 3))
    bound = 0.5 / 255 / torch.tensor(STD)
    assert (error <= bound + 1e-5).all()
    assert (error > 0.9 * bound).all(), "something is rounded"


def test_bytes_are_rounded_to_the_nearest() -> None:
    plain: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    values = make(SIMCLR, **plain).data.numpy()
    expected = np.floor(np.clip(values, 0, 1) * np.float32(255) + np.float32(0.5))
    assert np.array_equal(make(SIMCLR, **plain, output="uint8").data.numpy(), expected)
    pixels = images([(24, 24)])
    whole = make_view(pixels, WHOLE, view=0, geometry=0, seed=0, epoch=0, index=np.zeros(1, int),
                      image_size=24, mean=MEAN, std=STD, output="uint8")  # fmt: skip
    assert np.array_equal(whole.data[0].permute(1, 2, 0).numpy(), pixels.image(0))


@pytest.mark.parametrize("output", ["bfloat16", "uint8"])
def test_threads_and_batches_change_no_bit_of_any_output(output: Output) -> None:
    alone = make(QUIET, output=output)
    with Early(3) as pool:
        assert torch.equal(make(QUIET, output=output, pool=pool).data, alone.data)
    assert torch.equal(make(QUIET, [6, 2], output=output).data, alone.data[[6, 2]])
    assert make(QUIET, [], output=output).data.shape == (0, 3, 32, 32)


def test_bytes_hold_no_noise() -> None:
    noisy = replace(LIGHT, noise=0.1)
    with pytest.raises(ValueError, match=r"noise of 0\.1 .* uint8 would clip\. Make it in float32"):
        make(noisy, output="uint8")
    clean, noised = make_plan(Plan(main=(LIGHT, noisy)), output="uint8").main
    assert clean.data.dtype == torch.uint8
    assert noised.data.dtype == torch.float32
    assert torch.equal(noised.data, make(noisy, view=1, geometry=1).data)


def test_plans_are_made_in_the_form_asked_for() -> None:
    plan = Plan(main=(DINO_FIRST,), local=(DINO_LOCAL,))
    for output, dtype in (("bfloat16", torch.bfloat16), ("uint8", torch.uint8)):
        views = make_plan(plan, output=output)
        assert [view.data.dtype for view in (*views.main, *views.local)] == [dtype, dtype]


@pytest.mark.parametrize(
    ("output", "memory"), [("float32", np.float32), ("bfloat16", np.uint16), ("uint8", np.uint8)]
)
def test_memory_that_is_given_is_filled_or_refused(output: Output, memory: type) -> None:
    out = np.full((7, 32, 32, 3), 77, dtype=memory)
    view = make(LIGHT, output=output, out=out)
    assert view.data.data_ptr() == out.ctypes.data
    assert torch.equal(view.data, make(LIGHT, output=output).data)
    wrong = [
        out.astype(np.float64),
        out.astype(np.uint8 if memory is not np.uint8 else np.float32),
        np.empty((7, 32, 31, 3), dtype=memory),
        np.empty((7, 32, 64, 3), dtype=memory)[:, :, ::2],
        np.asfortranarray(out),
    ]
    for bad in wrong:
        with pytest.raises(ValueError, match=rf"Give contiguous {out.dtype} \(7, 32, 32, 3\)"):
            make(LIGHT, output=output, out=bad)


def test_data_is_channels_last_memory_without_a_copy() -> None:
    out = np.empty((7, 32, 32, 3), dtype=np.float32)
    view = make(LIGHT, out=out)
    assert view.data.shape == (7, 3, 32, 32)
    assert view.data.dtype == torch.float32
    assert view.data.is_contiguous(memory_format=torch.channels_last)
    assert view.data.data_ptr() == out.ctypes.data
    assert view.mean == MEAN
    assert view.std == STD
    assert view.mask is None


def test_whole_of_the_right_size_is_the_image() -> None:
    pixels = images([(24, 24)])
    view = make_view(pixels, WHOLE, view=0, geometry=0, seed=0, epoch=0, index=np.zeros(1, int),
                     image_size=24, mean=MEAN, std=STD)  # fmt: skip
    expected = torch.from_numpy(pixels.image(0).copy()).permute(2, 0, 1) / 255
    assert torch.allclose(view.unit()[0], expected, atol=1e-6)


def test_undoing_turns_then_flip_gives_the_plain_crop() -> None:
    rows = [0, 1, 3, 5] * 16
    index = np.arange(64)
    turned = make(replace(LIGHT, turns=None), rows, index=index)
    plain = make(replace(LIGHT, flip=0.0), rows, index=index)
    assert turned.made is not None
    seen = set()
    for i, (flip, turns) in enumerate(
        zip(turned.made.flip.tolist(), turned.made.turns.tolist(), strict=True)
    ):
        data = torch.rot90(turned.data[i], -turns, (1, 2))
        data = data.flip(2) if flip else data
        assert torch.equal(data, plain.data[i])
        seen.add((flip, turns))
    assert len(seen) == 8


@pytest.mark.parametrize("turns", range(4))
def test_turns_are_those_asked_for(turns: int) -> None:
    view = make(replace(WHOLE, turns=turns))
    assert view.made is not None
    assert (view.made.turns == turns).all()
    assert torch.equal(view.data, torch.rot90(make(WHOLE).data, turns, (2, 3)))


def test_how_tells_the_sources() -> None:
    made = make(LIGHT).made
    assert made is not None
    assert made.source.tolist() == [list(size) for size in SIZES]
    assert (made.box[:, :2] >= 0).all()
    assert (made.box[:, :2] + made.box[:, 2:] <= made.source).all()


def test_epochs_seeds_views_and_images_differ() -> None:
    first = make(LIGHT).data
    others: list[dict[str, Any]] = [
        {"epoch": 2}, {"seed": 3}, {"geometry": 1}, {"index": INDEX + 1},
    ]  # fmt: skip
    for changed in others:
        other = make(LIGHT, **changed).data
        assert not torch.equal(first[3], other[3])
    assert torch.equal(first, make(LIGHT, view=1).data)  # `view` is not in crop, flip and colours


def test_noise_is_normal_and_independent() -> None:
    rows = [3] * 60
    noisy = replace(WHOLE, noise=0.25)
    index = np.arange(60)
    clean = make(WHOLE, rows, image_size=31, index=index).unit()
    noise = (make(noisy, rows, image_size=31, index=index).unit() - clean).double() / 0.25
    n = noise.numel()
    assert (noise != 0).any(dim=0).all()
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((noise**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / n) ** 0.5
    ordered = noise.flatten().sort().values
    expected = torch.special.ndtr(ordered)
    assert (expected - torch.arange(n) / n).abs().max() < 1.95 / n**0.5
    limit = 4.5 / (n / 3) ** 0.5
    channels = torch.corrcoef(noise.transpose(0, 1).flatten(1)) - torch.eye(3)
    assert channels.abs().max() < limit
    for shift, dim in [(1, 0), (1, 2), (1, 3)]:  # images, rows, columns
        assert abs((noise * noise.roll(shift, dim)).mean()) < limit
    other = make(noisy, rows, image_size=31, index=index, view=1).unit() - clean
    assert abs((noise * other).mean() / 0.25) < limit


def test_zeroed_pixels_are_zero_in_all_channels() -> None:
    rows = [3] * 20
    index = np.arange(20)
    clean = make(WHOLE, rows, index=index).data
    zeroed = make(replace(WHOLE, zeroed=0.3), rows, index=index).data
    off = (zeroed == 0).all(dim=1)
    assert abs(off.double().mean() - 0.3) < 4 * (0.21 / off.numel()) ** 0.5
    assert torch.equal(zeroed, clean * ~off[:, None])
    assert not torch.equal(off[0], off[1])


def test_mask_is_that_of_the_view() -> None:
    masking = Masking(grid=(4, 4), ratio=0.5)
    view = make(replace(LIGHT, mask=masking), view=3, geometry=0)
    assert view.mask is not None
    assert torch.equal(view.mask.hidden, random_mask(masking, 2, 1, INDEX, 3).hidden)


def naive_tiles(whole: torch.Tensor, tiles: Tiles, index: np.ndarray, view: int = 0):
    """Tiles cut one by one out of whole views [b 3 s s], stacked; and which colours are dropped."""
    cut = random_tiles(tiles, whole.shape[-1], 2, 1, index, view)
    n = cut.tile
    rows = [
        torch.cat([image[:, top : top + n, left : left + n] for top, left, _ in places], dim=1)
        for image, places in zip(whole, cut.places.tolist(), strict=True)
    ]
    dropped = torch.tensor([
        [[kept >= 0 and c != kept for _, _, kept in places] for c in range(3)]
        for places in cut.places.tolist()
    ]).repeat_interleave(n, dim=2)[..., None]  # fmt: skip
    return torch.stack(rows), dropped, torch.from_numpy(cut.order)


COLOURFUL = replace(QUIET, cutout=0.2, zeroed=0.02)
PUZZLE = Tiles(grid=(3, 2), gap=0.0, jitter=0.3)


@pytest.mark.parametrize("output", ["float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("tiles", [PUZZLE, Tiles(orders=((4, 0), (4, 7), (4, 5)))])
@pytest.mark.parametrize("side", [32, 21])
def test_tiles_are_cut_out_of_the_flipped_and_turned_view(
    side: int, tiles: Tiles, output: Output
) -> None:
    rows = list(range(7)) * 6
    index = 5 * np.arange(len(rows))
    shared: dict[str, Any] = {"image_size": side, "output": output, "index": index}
    whole = make(COLOURFUL, rows, **shared)
    view = make(replace(COLOURFUL, tiles=tiles), rows, **shared)
    expected, _, order = naive_tiles(whole.data, tiles, index)
    assert torch.equal(view.data, expected)
    assert view.data.is_contiguous(memory_format=torch.channels_last)
    assert view.made is not None
    assert whole.made is not None
    assert view.made.order is not None
    assert torch.equal(view.made.order, order)
    assert whole.made.order is None
    assert torch.equal(view.made.box, whole.made.box)
    assert len({*zip(view.made.flip.tolist(), view.made.turns.tolist(), strict=True)}) == 8
    # Of an image all tiles, then of the next; nothing is copied.
    each = view.tiles()
    n = expected.shape[-1]
    stacked = [image[:, k : k + n] for image in expected for k in range(0, image.shape[1], n)]
    assert torch.equal(each, torch.stack(stacked))
    assert each.data_ptr() == view.data.data_ptr()


@pytest.mark.parametrize("side", [32, 27])
def test_what_is_dropped_is_replaced_by_noise(side: int) -> None:
    rows = [0, 1, 2, 3, 4, 5] * 10
    index = np.arange(60)
    tiles = replace(PUZZLE, drop=0.6)
    whole = make(LIGHT, rows, image_size=side, index=index)
    view = make(replace(LIGHT, tiles=tiles), rows, image_size=side, index=index)
    expected, dropped, _ = naive_tiles(whole.data, tiles, index)
    dropped = dropped.expand_as(expected)
    assert torch.equal(view.data[~dropped], expected[~dropped])
    assert 0.3 < dropped.float().mean() < 0.5
    # In units of the kept channel's deviation (unit scale), a hundredth.
    whole_unit = naive_tiles(whole.unit(), tiles, index)[0].double()
    noise = []
    n = view.data.shape[-1]
    for item in range(60):
        for top in range(0, view.data.shape[2], n):
            gone = dropped[item, :, top, 0]
            if gone.any():
                (kept,) = (~gone).nonzero()[:, 0].tolist()
                deviation = whole_unit[item, kept, top : top + n].std(correction=0)
                made = view.data[item, gone, top : top + n].double()
                scale = torch.tensor(STD, dtype=torch.float64)[gone][:, None, None]
                noise.append((made * scale / deviation.clamp_min(1e-9) / 0.01).reshape(2, -1))
    values = torch.cat(noise, dim=1)
    m = values.numel()
    assert m > 3000
    assert (values != 0).all()
    assert abs(values.mean()) < 4 / m**0.5
    assert abs(values.var() - 1) < 4 * (2 / m) ** 0.5
    assert abs((values[0] * values[1]).mean()) < 4.5 / (m / 2) ** 0.5
    first, second = noise[0], noise[1]
    assert not torch.allclose(first, second), "two tiles have noise of their own"


def test_dropped_colours_are_not_for_bytes() -> None:
    dropping = replace(LIGHT, tiles=replace(PUZZLE, drop=0.5))
    with pytest.raises(ValueError, match=r"dropped colours .* uint8 would clip"):
        make(dropping, output="uint8")
    first, second = make_plan(Plan(main=(dropping, LIGHT)), output="uint8").main
    assert (first.data.dtype, second.data.dtype) == (torch.float32, torch.uint8)
    assert torch.equal(first.data, make(dropping).data)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_batches_change_no_bit_of_tiles(threads: int) -> None:
    recipe = replace(EVERYTHING, tiles=replace(PUZZLE, drop=0.5))
    alone = make(recipe)
    assert torch.isfinite(alone.data).all()
    with Early(threads) as pool:
        assert torch.equal(make(recipe, pool=pool).data, alone.data)
    assert torch.equal(make(recipe, [6, 2]).data, alone.data[[6, 2]])
    assert make(recipe, []).data.shape == (0, 3, 6 * 7, 7)
    half = make(recipe, output="bfloat16").data
    assert torch.equal(half.view(torch.int16), alone.data.to(torch.bfloat16).view(torch.int16))


def test_tiles_are_a_views_own() -> None:
    plan = Plan(main=(SIMCLR, Augmentation(tiles=PUZZLE, same_as=0)), pairs="order")
    views = make_plan(plan)
    assert views.pairing == "order"
    whole, cut = views.main
    assert torch.equal(cut.data, naive_tiles(whole.data, PUZZLE, INDEX, view=1)[0])


def make_plan(plan: Plan, **changed: Any):
    arguments: dict[str, Any] = {"seed": 2, "epoch": 1, "step": 9, "image_size": 32}
    arguments |= {"index": INDEX, "mean": MEAN, "std": STD}
    return make_views(PIXELS, plan, **(arguments | changed))


def test_plan_of_two_views() -> None:
    views = make_plan(two_views(LIGHT))
    assert views.step == 9
    assert views.pairing == "views"
    assert views.index.tolist() == INDEX.tolist()
    assert views.index.dtype == torch.int64
    assert torch.equal(views.main[0].data, make(LIGHT).data)
    assert torch.equal(views.main[1].data, make(LIGHT, view=1, geometry=1).data)
    assert not torch.equal(views.main[0].data, views.main[1].data)


def test_plan_with_local_views_and_threads() -> None:
    plan = Plan(main=(DINO_FIRST, DINO_SECOND), local=(DINO_LOCAL, DINO_LOCAL), pairs="itself")
    with Early(2) as pool:
        views = make_plan(plan, pool=pool, image_size=48)
    assert [view.data.shape[-1] for view in (*views.main, *views.local)] == [48, 48, 20, 20]
    assert views.pairing == "itself"
    local = make(DINO_LOCAL, view=3, geometry=3, image_size=48)
    assert torch.equal(views.local[1].data, local.data)


def test_same_as_repeats_crop_flip_and_colours() -> None:
    # Even where the second view states other ranges: a shared draw alone would crop elsewhere.
    again = Augmentation(noise=0.1, turns=1, same_as=0)
    third = replace(again, noise=0.0, same_as=1)
    first, second, last = make_plan(Plan(main=(BYOL_SECOND, again, third))).main
    assert first.made is not None
    assert second.made is not None
    assert torch.equal(first.made.box, second.made.box)
    assert torch.equal(first.made.flip, second.made.flip)
    assert torch.equal(torch.rot90(first.data, 1, (2, 3)), last.data)
    noise = (second.unit() - last.unit()).double()
    assert noise.std() == pytest.approx(0.1, rel=0.03)


def test_a_cut_out_is_the_views_own() -> None:
    rows = [3] * 32
    plan = Plan(main=(SIMCLR, Augmentation(cutout=0.5, same_as=0)))
    whole, cut = make_views(some(PIXELS, rows), plan, seed=0, epoch=0, step=0, index=np.arange(32),
                            image_size=32, mean=MEAN, std=STD).main  # fmt: skip
    changed = (whole.data != cut.data).flatten(1).any(dim=1)
    assert 5 < int(changed.sum()) < 27
    hidden = (cut.data == 0).all(dim=1, keepdim=True)
    assert torch.equal(cut.data, whole.data * ~hidden)
    area = hidden.double().mean(dim=(1, 2, 3))[changed]
    assert float(area.min()) > 0.01
    assert float(area.max()) < 0.36


def test_reads_memory_maps_and_compiles_nothing_for_them(tmp_path: Path) -> None:
    PIXELS.flat.tofile(tmp_path / "images.bin")
    flat = np.memmap(tmp_path / "images.bin", dtype=np.uint8, mode="r")
    mapped = make_view(PIXELS._replace(flat=flat), LIGHT, view=0, geometry=0, seed=2, epoch=1,
                       index=INDEX, image_size=32, mean=MEAN, std=STD)  # fmt: skip
    assert torch.equal(mapped.data, make(LIGHT).data)
    assert len(kernels.render_batch.signatures) == 1
    assert PIXELS.flat.flags.writeable


def test_integers_of_other_widths_are_welcome() -> None:
    offset, height, width = (a.astype(np.int32) for a in PIXELS[1:4])
    narrow = Pixels(PIXELS.flat, offset, height, width)
    made = make_view(narrow, LIGHT, view=0, geometry=0, seed=2, epoch=1, image_size=32,
                     index=INDEX.astype(np.int32), mean=MEAN, std=STD)  # fmt: skip
    assert torch.equal(made.data, make(LIGHT).data)


BARE = replace(EVERYTHING, noise=0.0, background=1.0)
ALL = list(range(len(SIZES)))


def front(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image without its background, in whole numbers."""
    kept, colour = mask.astype(int), np.array([int(255 * m + 0.5) for m in MEAN])
    return ((kept * picture + (255 - kept) * colour + 127) // 255).astype(np.uint8)


@pytest.mark.parametrize("output", ["float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("side", [32, 21])
def test_a_crop_is_of_the_image_without_its_background(side: int, output: Output) -> None:
    """To the last bit: the mask takes part in crop, resize, flip, turn and colours."""
    without = [2, 5]
    how: dict[str, Any] = {"image_size": side, "output": output}
    view = make(BARE, ALL, pixels=with_masks(ALL, without), **how)
    pictures = [
        PIXELS.image(i) if i in without else front(PIXELS.image(i), MASKS.image(i)) for i in ALL
    ]
    assert torch.equal(view.data, make(BARE, ALL, pixels=Pixels.pack(pictures), **how).data)
    plain = make(BARE, **how)
    changed = (view.data != plain.data).flatten(1).any(dim=1).tolist()
    assert changed == [i not in without for i in ALL]
    assert view.made is not None
    assert plain.made is not None
    assert torch.equal(view.made.box, plain.made.box)


def test_a_view_is_the_plain_view_and_the_mask_seen_alike() -> None:
    """Crops, flips and turns of both agree. Nothing is resized here, where edges would mix."""
    drawn = np.random.default_rng(1)
    pictures, masks = (list(drawn.integers(0, 256, (20, 40, 32, 3), dtype=np.uint8)) for _ in "pm")
    recipe = Augmentation(crop=None, turns=None, background=1.0)
    how: dict[str, Any] = {"index": np.arange(20), "mean": (0.4, 0.2, 0.6)}
    both = Pixels.pack(pictures)._replace(masks=Pixels.pack(masks))
    view, plain, kept = (
        make(recipe, pixels=pixels, **how).unit().numpy()
        for pixels in (both, Pixels.pack(pictures), Pixels.pack(masks))
    )
    colour = np.array(how["mean"], dtype=np.float32)[:, None, None]
    np.testing.assert_allclose(view, kept * plain + (1 - kept) * colour, atol=0.51 / 255)
    assert np.abs(view - plain).max() > 0.5


def test_a_background_is_removed_as_often_as_the_plan_says_and_only_with_a_mask() -> None:
    n = 600
    rows = [int(row) for row in np.arange(n) % len(SIZES)]
    how: dict[str, Any] = {"pixels": with_masks(rows), "index": np.arange(n), "image_size": 8}
    part = replace(SIMCLR, background=0.3)
    for view in (0, 3):
        given = make(part, rows, view=view, geometry=view, **how)
        plain = make(part, rows, view=view, geometry=view, index=np.arange(n), image_size=8)
        changed = (given.data != plain.data).flatten(1).any(dim=1).numpy()
        drawn = uniform(2, 1, np.arange(n), view, Purpose.BACKGROUND, 0) < 0.3
        assert (changed <= drawn).all()
        assert (changed == drawn).mean() > 0.9  # some crops lie where nothing is dark
        assert 0.2 < changed.mean() < 0.4
    repeated = make(part, rows, view=5, geometry=3, **how)
    assert torch.equal(repeated.data, given.data), "a repeated crop repeats its background"


def test_without_masks_a_background_changes_no_bit() -> None:
    everything = replace(EVERYTHING, background=1.0)
    assert torch.equal(make(everything).data, make(EVERYTHING).data)
    never = make(EVERYTHING, ALL, pixels=with_masks(ALL))
    assert torch.equal(never.data, make(EVERYTHING).data), "nor do masks that no plan asks for"


def test_threads_and_batches_change_no_bit_of_views_without_background() -> None:
    recipe = replace(EVERYTHING, background=0.7)
    together = make(recipe, ALL, pixels=with_masks(ALL, without=[1]))
    with Early(3) as pool:
        shared = make(recipe, ALL, pixels=with_masks(ALL, without=[1]), pool=pool)
    assert torch.equal(together.data, shared.data)
    for rows in ([0, 1, 2], [1], [6, 2, 0]):
        apart = make(recipe, rows, pixels=with_masks(rows, without=[1]))
        assert torch.equal(apart.data, together.data[rows])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offset": MASKS.offset + 1}, "outside the buffer"),
        ({"height": MASKS.height + (MASKS.height == 64)}, "mask of image 1 .* is 65 x 40"),
        ({"width": MASKS.width[:-1]}, "7 heights and 6 widths"),
        ({"flat": MASKS.flat.astype(np.int16)}, "int16"),
    ],
)
def test_refuses_masks_that_would_crash(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(BARE, ALL, pixels=PIXELS._replace(masks=MASKS._replace(**change)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "settings",
    [{"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}],
)
def test_no_index_leaves_its_array_and_other_processors_give_the_same_bits(
    settings: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import hashlib, runpy, sys, torch\n"
        "tests = runpy.run_path(sys.argv[1])\n"
        "for side in (1, 2, 7, 32, 224):\n"
        "    for output in ('float32', 'bfloat16', 'uint8'):\n"
        "        recipe = tests['EVERYTHING' if output != 'uint8' else 'QUIET']\n"
        "        for tiles in (None, tests['PUZZLE'] if side > 6 else None):\n"
        "            cut = tests['replace'](recipe, tiles=tiles)\n"
        "            data = tests['make'](cut, image_size=side, output=output).data\n"
        "            data = data.permute(0, 2, 3, 1).view(torch.uint8)\n"
        "            print(hashlib.sha256(data.numpy().tobytes()).hexdigest())\n"
    )
    hashes = []
    for number, changed in enumerate(({}, settings)):
        done = subprocess.run(
            [sys.executable, "-c", code, __file__],
            env={**os.environ, **changed, "NUMBA_CACHE_DIR": str(tmp_path / str(number))},
            check=True,
            capture_output=True,
            text=True,
        )
        hashes.append(done.stdout.split())
    assert len(hashes[0]) == 30
    assert hashes[0] == hashes[1]


def test_tokens_are_views_with_masks_of_what_is_there() -> None:
    tokens = np.random.default_rng(0).integers(0, 9, (40, 20)).astype(np.int16)
    tokens[7, 12:] = -1
    masking = Masking(grid=(1, 20), ratio=0.4)
    plan = Plan(main=(replace(WHOLE, mask=masking), WHOLE), pairs="itself", kind="tokens")
    index = np.arange(40)
    made = make_tokens(tokens, plan, seed=1, epoch=2, step=3, index=index)
    view, plain = made.main
    assert (made.step, made.pairing, made.index.tolist()) == (3, "itself", index.tolist())
    assert view.data.dtype == torch.int64
    assert view.data.tolist() == tokens.tolist()
    assert view.length is not None
    assert view.length.tolist() == [12 if i == 7 else 20 for i in range(40)]
    assert view.mask is not None
    drawn = random_mask(masking, 1, 2, index, 0).hidden
    # Of the shorter sequence the same share of what there is: its 5 places with the lowest keys.
    keys = [int(bits(1, 2, 7, 0, Purpose.MASK, place)) for place in range(12)]
    drawn[7] = False
    drawn[7, 0, sorted(range(12), key=keys.__getitem__)[:5]] = True
    assert torch.equal(view.mask.hidden, drawn)
    assert plain.mask is None
    rows = make_tokens(tokens[5:9], plan, seed=1, epoch=2, step=3, index=index[5:9]).main[0]
    assert rows.mask is not None
    assert torch.equal(rows.mask.hidden, drawn[5:9])
    other = make_tokens(tokens[8:], plan, seed=1, epoch=3, step=3, index=index[8:]).main[0]
    assert other.length is None
    assert other.mask is not None
    assert not torch.equal(other.mask.hidden, drawn[8:])


@pytest.mark.parametrize("kind", ["random", "blocks"])
@pytest.mark.parametrize(("ratio", "spread"), [(0.15, 0.0), (0.4, 0.0), (0.4, 0.3), (0.0, 0.0)])
def test_a_share_of_the_tokens_there_are_is_hidden_at_least_one(
    kind: Any, ratio: float, spread: float
) -> None:
    n, index = 12, np.arange(2400)
    tokens = np.random.default_rng(0).integers(0, 9, (2400, n))
    length = 1 + index % n
    tokens[np.arange(n) >= length[:, None]] = -1
    masking = Masking(grid=(1, n), ratio=ratio, spread=spread, kind=kind)
    plan = Plan(main=(replace(WHOLE, mask=masking),), pairs="itself", kind="tokens")
    (view,) = make_tokens(tokens, plan, seed=3, epoch=1, step=0, index=index).main
    assert view.mask is not None
    hidden = view.mask.hidden[:, 0].numpy()
    assert not hidden[tokens < 0].any(), "nothing behind the end"
    for i in range(2400):
        share = ratio + spread * (2 * float(uniform(3, 1, i, 0, Purpose.MASK, -1, 0)) - 1)
        assert hidden[i].sum() == (max(1, round(share * int(length[i]))) if ratio else 0)
    for size in range(1, n + 1) if ratio else ():
        assert hidden[length == size, :size].any(axis=0).all(), "each place there is, now and then"
    # Whatever else is in the batch, of however many processes.
    rows = np.array([17, 3, 2399])
    few = make_tokens(tokens[rows], plan, seed=3, epoch=1, step=0, index=rows, among=index).main[0]
    assert few.mask is not None
    assert np.array_equal(few.mask.hidden[:, 0].numpy(), hidden[rows])


def test_sequences_without_a_token_and_targets_in_short_ones_are_refused() -> None:
    tokens, index = np.zeros((3, 16), np.int64), np.array([4, 9, 2])
    tokens[0, 5:], tokens[1] = -1, -1
    how: dict[str, Any] = {"seed": 0, "epoch": 0, "step": 0}
    plain = Plan(main=(WHOLE,), pairs="itself", kind="tokens")
    with pytest.raises(ValueError, match=r"sequence 1 of the batch, row 9 .* holds no token"):
        make_tokens(tokens, plain, **how, index=index)
    masking = Masking(grid=(1, 16), kind="targets", targets=2)
    plan = Plan(main=(replace(WHOLE, mask=masking),), pairs="itself", kind="tokens")
    with pytest.raises(ValueError, match="some sequences have fewer than 16 tokens"):
        make_tokens(tokens[[0, 2]], plan, **how, index=index[[0, 2]])
    whole = make_tokens(tokens[2:], plan, **how, index=index[2:]).main[0]
    assert whole.length is None
    assert whole.mask is not None
    assert whole.mask.hidden.shape == (1, 3, 16)


def test_tokens_are_not_cropped_and_masks_fit_them() -> None:
    tokens, index = np.zeros((2, 6), np.int64), np.arange(2)
    how = {"seed": 0, "epoch": 0, "step": 0, "index": index}
    with pytest.raises(ValueError, match="crops or colours, which tokens cannot be"):
        make_tokens(tokens, two_views(LIGHT), **how)
    plan = Plan(main=(replace(WHOLE, mask=Masking(grid=(1, 5))),), kind="tokens")
    with pytest.raises(ValueError, match="mask is of 1 x 5 places, and sequences have 6 tokens"):
        make_tokens(tokens, plan, **how)


def test_empty_batch() -> None:
    assert make(LIGHT, []).data.shape == (0, 3, 32, 32)
    with Early(2) as pool:
        assert make(LIGHT, [], pool=pool).data.shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offset": PIXELS.offset + 1}, "image 6 of the batch, row 8 of the manifest"),
        ({"offset": PIXELS.offset - 1}, "outside the buffer"),
        ({"height": PIXELS.height * 0}, "is empty"),
        ({"width": PIXELS.width[:-1]}, "widths"),
        ({"flat": PIXELS.flat.astype(np.int16)}, "int16"),
        ({"flat": PIXELS.flat[::2]}, "contiguous"),
    ],
)
def test_refuses_pixels_that_would_crash(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_view(PIXELS._replace(**change), LIGHT, view=0, geometry=0, seed=0, epoch=0,
                  index=INDEX, image_size=32, mean=MEAN, std=STD)  # fmt: skip


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="indices"):
        make(LIGHT, index=INDEX[:-1])
    with pytest.raises(ValueError, match="per channel"):
        make(LIGHT, mean=(0.5,))
    with pytest.raises(ValueError, match="float64"):
        make(LIGHT, out=np.empty((7, 32, 32, 3)))
    with pytest.raises(ValueError, match="kind tokens"):
        make_plan(Plan(main=(LIGHT,), kind="tokens"))


def test_vectors_are_corrupted_as_the_plan_says() -> None:
    vectors, rows = np.ones((3000, 3)), np.arange(3000)

    def of(plan: Plan, rows: np.ndarray = rows, seed: int = 5, epoch: int = 2) -> list[np.ndarray]:
        made = make_vectors(vectors[rows], plan, seed=seed, epoch=epoch, step=9, index=rows)
        assert made.step == 9
        assert made.index.tolist() == rows.tolist()
        return [view.data.numpy() for view in made.main]

    plan = Plan(main=(WHOLE, replace(WHOLE, noise=0.2)), pairs="alone")
    clean, noisy = of(plan)
    assert np.array_equal(clean, vectors)
    assert clean.dtype == noisy.dtype == np.float32
    assert stats.kstest(((noisy - 1) / 0.2).ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(noisy, rowvar=False) - np.eye(3)).max() < 4.5 / np.sqrt(3000)
    few = np.array([17, 3, 2999])
    assert np.array_equal(of(plan, few)[1], noisy[few])  # whatever else is in the batch
    assert not np.array_equal(of(plan, epoch=3)[1], noisy)
    assert not np.array_equal(of(plan, seed=6)[1], noisy)
    twice = of(replace(plan, main=(replace(WHOLE, noise=0.2),) * 2))
    assert not np.array_equal(*twice)
    (lost,) = of(replace(plan, main=(replace(WHOLE, zeroed=0.3),)))
    assert set(np.unique(lost)) == {0.0, 1.0}
    assert abs((lost == 0).mean() - 0.3) < 4.5 * np.sqrt(0.21 / 9000)
