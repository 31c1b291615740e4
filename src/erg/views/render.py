"""Calls the compiled kernels: parameters drawn for every image, views rendered with them, and a
check that there is nothing to read outside the pixels.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from erg.views import kernels
from erg.views.masks import Cut
from erg.views.pixels import Pixels
from erg.views.plan import Augmentation

Renderer = Callable[[slice], None]
"""Renders a slice of the batch, in any thread."""

PARTS = 4
"""Parts for each thread, so that one that comes late leaves its share to others."""


def settings(augmentation: Augmentation) -> Float64[np.ndarray, " p"]:
    """The numbers of an augmentation in the order in which `kernels.draw_batch` reads them."""
    a = augmentation
    crop = (0.0, 1.0, 1.0) if a.crop is None else (1.0, *a.crop)
    turns = -1 if a.turns is None else a.turns % 4
    colours = (a.jitter, a.brightness, a.contrast, a.saturation, a.hue)
    rest = (a.grey, a.blur, *a.sigma, a.solarise)
    cut = (a.cutout, *a.cutout_area, *a.cutout_ratio)
    every = [*crop, *a.ratio, a.flip, turns, *colours, *rest, *cut, a.background]
    return np.array(every, dtype=np.float64)


def draw(
    pixels: Pixels,
    augmentation: Augmentation,
    *,
    view: int,
    geometry: int,
    seed: int,
    epoch: int,
    index: Int64[np.ndarray, " b"],
) -> Float64[np.ndarray, "b p"]:
    """Parameters of a view for every image; the columns are named in `kernels`.

    Args:
        pixels: the images, of which only the sizes matter here.
        augmentation: how the view is made.
        view: number of the view, which the quarter turns and the cut-out depend on.
        geometry: number of the view whose crop, background, flip and colours are drawn.
        seed: of the run.
        epoch: number of the epoch.
        index: row of each image in the manifest.
    """
    kernels.compile_kernels()
    out = np.empty((len(index), kernels.COLUMNS))
    kernels.draw_batch(
        settings(augmentation),
        _integers(pixels.height),
        _integers(pixels.width),
        _word(seed),
        _word(epoch),
        _integers(index),
        _word(view),
        _word(geometry),
        out,
    )
    return out


def renderer(
    pixels: Pixels,
    params: Float64[np.ndarray, "b p"],
    augmentation: Augmentation,
    *,
    view: int,
    seed: int,
    epoch: int,
    index: Int64[np.ndarray, " b"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Shaped[np.ndarray, "b h w 3"],
    cut: Cut | None = None,
) -> Renderer:
    """What renders views with given parameters into `out`, channels last, in the form of its
    numbers.

    Args:
        pixels: the images.
        params: from `draw`.
        augmentation: of which noise and zeroed are read here.
        view: number of the view, which noise, zeroed pixels and dropped colours depend on.
        seed: of the run.
        epoch: number of the epoch.
        index: row of each image in the manifest.
        mean: subtracted per channel.
        std: divided by per channel.
        out: square views, or square tiles one below the other, filled here: float32, uint16 (the
            bits of bfloat16) or uint8 (values clipped to [0, 1] and rounded to [0, 255], not
            normalised).
        cut: which tiles to cut out of the views, if any.

    Raises:
        ValueError: `out` has numbers of another form, or one that cannot hold the view's noise.
    """
    if out.dtype not in (np.float32, np.uint16, np.uint8) or not out.flags.c_contiguous:
        raise ValueError(
            f"out is {out.dtype}, contiguous: {out.flags.c_contiguous}. Give float32, uint16 (for "
            "bfloat16) or uint8, contiguous."
        )
    if out.dtype == np.uint8 and augmentation.noisy:
        raise ValueError(
            f"a view with noise of {augmentation.noise} or dropped colours has values outside "
            "[0, 1] or finer than a byte, which uint8 would clip. Make it in float32 or bfloat16."
        )
    kernels.compile_kernels()
    if cut is None:
        side, places = out.shape[1], np.empty((len(index), 0, 3), dtype=np.int64)
        memory = out.view(np.uint8)[:, None]  # [b 1 s s bytes]
    else:
        side, places = cut.side, cut.places
        shape = (len(index), places.shape[1], cut.tile, cut.tile)
        memory = out.view(np.uint8).reshape(*shape, 3 * out.itemsize)
    flat, offset = _readable(pixels)
    masks, mask_offset = flat, np.full_like(offset, -1)
    if pixels.masks is not None:
        masks, mask_offset = _readable(pixels.masks)
        mask_offset = np.where(pixels.masks.height > 0, mask_offset, -1)
    width, rows = _integers(pixels.width), _integers(index)
    means, stds = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)

    def run(part: slice) -> None:
        kernels.render_batch(
            flat,
            offset[part],
            width[part],
            masks,
            mask_offset[part],
            params[part],
            _word(seed),
            _word(epoch),
            rows[part],
            _word(view),
            augmentation.noise,
            augmentation.zeroed,
            means,
            stds,
            side,
            places[part],
            memory[part],
        )

    return run


def render(
    renderers: Sequence[Renderer],
    count: int,
    pool: ThreadPoolExecutor | None = None,
    worth: float = 0.0,
) -> None:
    """Render every item of several views, part after part, in this thread and those of a pool. Who
    renders what depends on the clock, and no bit on that.

    Args:
        renderers: of each view.
        count: items of each.
        pool: threads that help; None renders in this thread alone.
        worth: what has to be left to do before they are asked to [s].
    """
    threads = 1 if pool is None else 1 + pool._max_workers  # only there it says how many it has
    size = max(1, count * len(renderers) // (PARTS * threads))
    parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    waiting = deque(product(renderers, parts))

    def work() -> None:
        while True:
            try:
                run, part = waiting.popleft()
            except IndexError:
                return
            run(part)

    others: list[Future[None]] = []
    try:
        left = math.inf
        if worth and waiting:
            start = time.perf_counter()
            run, part = waiting.popleft()
            run(part)
            left = len(waiting) * (time.perf_counter() - start)
        if pool is not None and left > worth:
            others = [pool.submit(work) for _ in range(min(threads, len(waiting)) - 1)]
        work()
    finally:
        waiting.clear()  # after an error
        for other in others:
            if not other.cancel():
                other.result()


def check(
    pixels: Pixels, index: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Refuse what would make the kernels read outside the buffer.

    Args:
        pixels: the images.
        index: row of each image in the manifest.
        mean: of each channel.
        std: of each channel.

    Raises:
        ValueError: sizes and offsets do not fit the buffer, the masks or each other.
    """
    _check_images(pixels, index)
    if pixels.masks is not None:
        _check_masks(pixels.masks, pixels, index)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(
            f"mean has {len(mean)} and std {len(std)} values. Give one of each per channel (3)."
        )


def _check_images(pixels: Pixels, index: np.ndarray) -> None:
    flat, offset = pixels.flat, _integers(pixels.offset)
    height, width = _integers(pixels.height), _integers(pixels.width)
    if flat.dtype != np.uint8 or flat.ndim != 1 or not flat.flags.c_contiguous:
        raise ValueError(
            f"the buffer of the pixels is {flat.dtype} {flat.shape}. "
            "Give one contiguous axis of uint8, as Pixels.pack does."
        )
    _check_counts(pixels, index)
    end = offset + height * width * 3
    wrong = np.flatnonzero((height < 1) | (width < 1) | (offset < 0) | (end > len(flat)))
    if len(wrong):
        i = wrong[0]
        raise ValueError(
            f"image {i} of the batch, row {index[i]} of the manifest ({height[i]} x {width[i]} at "
            f"byte {offset[i]}), is empty or outside the buffer of {len(flat)} bytes. Give sizes "
            "and offsets of whole images."
        )


def _check_counts(pixels: Pixels, index: np.ndarray) -> None:
    counts = (len(index), len(pixels.offset), len(pixels.height), len(pixels.width))
    if len(set(counts)) > 1:
        raise ValueError(
            f"there are {counts[0]} indices for {counts[1]} offsets, {counts[2]} heights and "
            f"{counts[3]} widths. Give one of each per image."
        )


def _check_masks(masks: Pixels, pixels: Pixels, index: np.ndarray) -> None:
    _check_counts(masks, index)
    there = np.flatnonzero(masks.height)
    found, wanted = ((p.height[there], p.width[there]) for p in (masks, pixels))
    if wrong := np.argwhere(np.not_equal(found, wanted))[:, 1].tolist():
        i = there[wrong[0]]
        raise ValueError(
            f"the mask of image {i} of the batch, row {index[i]} of the manifest, is "
            f"{masks.height[i]} x {masks.width[i]}, and the image {pixels.height[i]} x "
            f"{pixels.width[i]}. Give masks of the sizes of their images."
        )
    _check_images(Pixels(masks.flat, masks.offset[there], *found), index[there])


def _word(number: int) -> np.uint64:
    """A word of the hash, modulo 2^64 as in `random.bits`."""
    return np.uint64(int(number) & 0xFFFFFFFFFFFFFFFF)


def _readable(pixels: Pixels) -> tuple[np.ndarray, Int64[np.ndarray, " b"]]:
    """Buffer and offsets as the kernel wants them."""
    flat = np.asarray(pixels.flat).view()
    flat.flags.writeable = False  # the kernel's one signature reads memory maps too
    return flat, _integers(pixels.offset)


def _integers(values: np.ndarray) -> Int64[np.ndarray, " b"]:
    return np.ascontiguousarray(values, dtype=np.int64)
