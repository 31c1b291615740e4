"""Making views: the same bits however the work is split, and a How that tells the truth."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from erg.views import kernels
from erg.views.masks import random_mask
from erg.views.pixels import Pixels
from erg.views.plan import (
    BYOL_SECOND,
    DINO_FIRST,
    DINO_LOCAL,
    DINO_SECOND,
    LIGHT,
    WHOLE,
    Augmentation,
    Masking,
    Plan,
    two_views,
)
from erg.views.render import make_view, make_views
from erg.views.types import View

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
EVERYTHING = replace(BYOL_SECOND, blur=0.5, turns=None, noise=0.1, zeroed=0.1)
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


def make(augmentation: Augmentation, rows: list[int] | None = None, **changed: object) -> View:
    rows = list(range(len(SIZES))) if rows is None else rows
    arguments: dict = {"view": 0, "geometry": 0, "seed": 2, "epoch": 1, "image_size": 32}
    arguments |= {"mean": MEAN, "std": STD, "index": INDEX[rows]}
    arguments |= changed
    return make_view(some(PIXELS, rows), augmentation, **arguments)


@pytest.mark.parametrize("side", [32, 21])
@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_threads_change_no_bit(threads: int, side: int) -> None:
    alone = make(EVERYTHING, image_size=side)
    with ThreadPoolExecutor(threads) as pool:
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
    for changed in ({"epoch": 2}, {"seed": 3}, {"geometry": 1}, {"index": INDEX + 1}):
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


def make_plan(plan: Plan, **changed: object):
    arguments: dict = {"seed": 2, "epoch": 1, "step": 9, "image_size": 32, "index": INDEX}
    return make_views(PIXELS, plan, **(arguments | {"mean": MEAN, "std": STD} | changed))


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
    with ThreadPoolExecutor(2) as pool:
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


def test_reads_memory_maps_and_compiles_nothing_for_them(tmp_path: Path) -> None:
    PIXELS.flat.tofile(tmp_path / "images.bin")
    flat = np.memmap(tmp_path / "images.bin", dtype=np.uint8, mode="r")
    mapped = make_view(PIXELS._replace(flat=flat), LIGHT, view=0, geometry=0, seed=2, epoch=1,
                       index=INDEX, image_size=32, mean=MEAN, std=STD)  # fmt: skip
    assert torch.equal(mapped.data, make(LIGHT).data)
    assert len(kernels.render_batch.signatures) == 1
    assert PIXELS.flat.flags.writeable


def test_integers_of_other_widths_are_welcome() -> None:
    narrow = Pixels(PIXELS.flat, *(a.astype(np.int32) for a in PIXELS[1:]))
    made = make_view(narrow, LIGHT, view=0, geometry=0, seed=2, epoch=1, image_size=32,
                     index=INDEX.astype(np.int32), mean=MEAN, std=STD)  # fmt: skip
    assert torch.equal(made.data, make(LIGHT).data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}],
)
def test_no_index_leaves_its_array_and_other_processors_give_the_same_bits(
    settings: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import hashlib, runpy, sys\n"
        "tests = runpy.run_path(sys.argv[1])\n"
        "for side in (1, 2, 7, 32, 224):\n"
        "    data = tests['make'](tests['EVERYTHING'], image_size=side).data\n"
        "    print(hashlib.sha256(data.contiguous().numpy().tobytes()).hexdigest())\n"
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
    assert len(hashes[0]) == 5
    assert hashes[0] == hashes[1]


def test_empty_batch() -> None:
    assert make(LIGHT, []).data.shape == (0, 3, 32, 32)
    with ThreadPoolExecutor(2) as pool:
        assert make(LIGHT, [], pool=pool).data.shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offset": PIXELS.offset + 1}, "outside the buffer"),
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
