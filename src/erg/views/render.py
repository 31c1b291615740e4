"""From pixels to views: carries out the augmentations of a plan with the compiled kernels; from
vectors to views, which are the vectors with noise; and from tokens to views, the tokens with masks.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped

from erg.views import kernels
from erg.views.masks import Cut, draw_mask, random_tiles
from erg.views.pixels import Pixels
from erg.views.plan import WHOLE, Augmentation, Plan
from erg.views.random import Purpose, uniform
from erg.views.types import How, Output, View, Views

MEMORY: dict[Output, str] = {"float32": "float32", "bfloat16": "uint16", "uint8": "uint8"}
"""What the kernels write for each form of output: NumPy has no bfloat16, so its bits."""


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


def render(
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
    pool: ThreadPoolExecutor | None = None,
) -> None:
    """Render views with given parameters into `out`, channels last, in the form of its numbers.

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
        pool: threads to share the batch; None renders in this thread. Must not be a pool whose
            workers are all waiting in this function.

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

    if pool is None:
        run(slice(0, len(rows)))
        return
    workers = pool._max_workers  # the only place where the executor says how many it has
    bounds = [len(rows) * i // workers for i in range(workers + 1)]
    parts = [slice(a, b) for a, b in pairwise(bounds) if a < b]
    for done in [pool.submit(run, part) for part in parts]:
        done.result()


def make_view(
    pixels: Pixels,
    augmentation: Augmentation,
    *,
    view: int,
    geometry: int,
    seed: int,
    epoch: int,
    index: Int64[np.ndarray, " b"],
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    pool: ThreadPoolExecutor | None = None,
    output: Output = "float32",
    pin: bool = False,
    out: Shaped[np.ndarray, "b h w 3"] | None = None,
    step: int = 0,
    among: Int64[np.ndarray, " global"] | None = None,
) -> View:
    """Make one view of every image.

    Args:
        pixels: the images.
        augmentation: how the view is made.
        view: number of the view (main views first, then local ones), which quarter turns, cut-out,
            noise, zeroed pixels, mask and tiles depend on.
        geometry: number of the view whose crop, background, flip and colours this one has; usually
            `view`.
        seed: of the run.
        epoch: number of the epoch.
        index: row of each image in the manifest.
        image_size: of the encoder [pixels].
        mean: subtracted per channel from values in [0, 1].
        std: divided by per channel.
        pool: threads to share the batch, which changes no bit; None works in this thread.
        output: numbers of the view: float32 or bfloat16, normalised; or uint8, which `View.to`
            normalises and which cannot hold noise.
        pin: allocate memory that a GPU copies from by itself; there has to be one.
        out: memory of the view, where it should not be allocated anew: float32, uint16 for
            bfloat16, or uint8.
        step: optimiser step the batch belongs to, which sizes that a batch shares depend on.
        among: rows of the whole batch, over all processes, where these images are not all of it
            (see `masks`).

    Returns:
        A view of data [b 3 s s], or of p tiles [b 3 p*t t], in channels-last memory, that of `out`.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    side = augmentation.pixels(image_size)
    _check(pixels, index, mean, std)
    tiles, rows = augmentation.tiles, _integers(index)
    cut = random_tiles(tiles, side, seed, epoch, rows, view) if tiles else None
    shape = (len(index), side, side, 3)
    if cut is not None:
        shape = (len(index), cut.order.shape[1] * cut.tile, cut.tile, 3)
    data = _memory(shape, output, pin) if out is None else _given(out, shape, output)
    params = draw(
        pixels,
        augmentation,
        view=view,
        geometry=geometry,
        seed=seed,
        epoch=epoch,
        index=index,
    )
    render(
        pixels,
        params,
        augmentation,
        view=view,
        seed=seed,
        epoch=epoch,
        index=index,
        mean=mean,
        std=std,
        out=data.numpy(),
        cut=cut,
        pool=pool,
    )
    masking = augmentation.mask
    data = data.view(torch.bfloat16) if output == "bfloat16" else data
    return View(
        data=data.permute(0, 3, 1, 2),  # [b 3 s s]
        made=_how(pixels, params, cut),
        mask=draw_mask(masking, seed, epoch, step, index, view, among) if masking else None,
        mean=tuple(mean),
        std=tuple(std),
    )


def make_views(
    pixels: Pixels,
    plan: Plan,
    *,
    seed: int,
    epoch: int,
    step: int,
    index: Int64[np.ndarray, " b"],
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    pool: ThreadPoolExecutor | None = None,
    output: Output = "float32",
    pin: bool = False,
    among: Int64[np.ndarray, " global"] | None = None,
) -> Views:
    """Make all views of a plan; arguments as `make_view`.

    Args:
        plan: of kind image.
        step: optimiser step the batch belongs to.
        output: numbers of the views. Views with noise or dropped colours, which uint8 cannot hold,
            are made in float32 instead: methods are given the same normalised floats after
            `Views.to`.

    Raises:
        ValueError: the plan is not of images, or the arguments do not fit each other.
    """
    if plan.kind != "image":
        raise ValueError(f"the plan is of kind {plan.kind}. Pixels need a plan of kind image.")
    made = []
    for number, wanted in enumerate(plan.main + plan.local):
        augmentation, geometry = _resolve(plan, wanted, number)
        made.append(
            make_view(
                pixels,
                augmentation,
                view=number,
                geometry=geometry,
                seed=seed,
                epoch=epoch,
                index=index,
                image_size=image_size,
                mean=mean,
                std=std,
                pool=pool,
                output="float32" if output == "uint8" and augmentation.noisy else output,
                pin=pin,
                step=step,
                among=among,
            )
        )
    n = len(plan.main)
    rows = torch.from_numpy(_integers(index).copy())
    return Views(tuple(made[:n]), rows, local=tuple(made[n:]), step=step, pairing=plan.pairs)


def make_vectors(
    vectors: Shaped[np.ndarray, "b d"],
    plan: Plan,
    *,
    seed: int,
    epoch: int,
    step: int,
    index: Int64[np.ndarray, " b"],
) -> Views:
    """Make all views of vectors, float32: with the noise and the zeros that the plan asks for.

    Of crops and colours vectors know nothing; noise is in their own units, and zeros stand for
    what is missing.

    Args:
        vectors: one per item.
        plan: of which `noise` and `zeroed` count.
        seed: of the run.
        epoch: number of the epoch.
        step: optimiser step the batch belongs to.
        index: row of each vector in the manifest.
    """
    rows = _integers(index)
    data = np.ascontiguousarray(vectors, dtype=np.float32)
    draws = np.arange(data.shape[1])
    made: list[View] = []
    for number, wanted in enumerate(plan.main):
        view, words = data, (seed, epoch, rows[:, None], number)
        if wanted.noise:  # Box & Muller 1958
            radius, turn = (uniform(*words, Purpose.NOISE, draws + k * len(draws)) for k in (0, 1))
            normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * turn)
            view = view + np.float32(wanted.noise) * normal.astype(np.float32)
        if wanted.zeroed:
            lost = uniform(*words, Purpose.ZEROED, draws) < wanted.zeroed
            view = np.where(lost, np.float32(0), view)
        made.append(View(torch.from_numpy(view)))
    return Views(tuple(made), torch.from_numpy(rows.copy()), step=step, pairing=plan.pairs)


def make_tokens(
    tokens: Shaped[np.ndarray, "b n"],
    plan: Plan,
    *,
    seed: int,
    epoch: int,
    step: int,
    index: Int64[np.ndarray, " b"],
    among: Int64[np.ndarray, " global"] | None = None,
) -> Views:
    """Make all views of sequences: the tokens as they are, and which of them are hidden.

    A mask hides its share of the tokens of each sequence, at least one, and nothing behind its end.

    Args:
        tokens: whole numbers, with -1 behind the end of shorter sequences.
        plan: of whole views, with masks or without.
        seed: of the run.
        epoch: number of the epoch.
        step: optimiser step the batch belongs to.
        index: row of each sequence in the manifest.
        among: as of `make_view`.

    Raises:
        ValueError: the plan crops or colours, its masks are of another length, or a sequence holds
            no token.
    """
    data = torch.from_numpy(tokens.astype(np.int64))
    valid = tokens >= 0
    empty = np.flatnonzero(~valid.any(axis=1))
    if len(empty):
        raise ValueError(
            f"sequence {empty[0]} of the batch, row {index[empty[0]]} of the manifest, holds no "
            "token: all its numbers are below 0. Leave it out."
        )
    length = None if valid.all() else torch.from_numpy(valid.sum(axis=1))
    made: list[View] = []
    for number, wanted in enumerate(plan.main + plan.local):
        if replace(wanted, mask=None) != WHOLE:
            raise ValueError(
                "this plan crops or colours, which tokens cannot be. Use a method of tokens: BERT."
            )
        masking, mask = wanted.mask, None
        if masking is not None:
            if masking.grid != (1, data.shape[1]):
                raise ValueError(
                    f"the mask is of {masking.grid[0]} x {masking.grid[1]} places, and sequences "
                    f"have {data.shape[1]} tokens. Build the encoder with that image_size."
                )
            mask = draw_mask(masking, seed, epoch, step, index, number, among, valid)
        made.append(View(data, mask=mask, length=length))
    n = len(plan.main)
    rows = torch.from_numpy(_integers(index).copy())
    return Views(tuple(made[:n]), rows, local=tuple(made[n:]), step=step, pairing=plan.pairs)


_OWN = (
    "size", "turns", "cutout", "cutout_area", "cutout_ratio", "noise", "zeroed", "mask", "tiles",
)  # fmt: skip
"""What a view that repeats another has of its own."""


def _resolve(plan: Plan, wanted: Augmentation, number: int) -> tuple[Augmentation, int]:
    """The augmentation to carry out, and the number of the view whose draws it shares.

    A view that repeats another takes that one's ranges too: the same draws in other ranges would
    be another crop.
    """
    if wanted.same_as is None:
        return wanted, number
    first, geometry = _resolve(plan, plan.main[wanted.same_as], wanted.same_as)
    own = {name: getattr(wanted, name) for name in _OWN}
    return replace(first, **own), geometry


def _how(pixels: Pixels, params: Float64[np.ndarray, "b p"], cut: Cut | None) -> How:
    box = params[:, kernels.TOP : kernels.WIDTH + 1].astype(np.float32)
    source = np.stack([_integers(pixels.height), _integers(pixels.width)], axis=1)
    return How(
        box=torch.from_numpy(box),
        flip=torch.from_numpy(params[:, kernels.FLIP] > 0),
        turns=torch.from_numpy(params[:, kernels.TURNS].astype(np.int64)),
        source=torch.from_numpy(source),
        order=None if cut is None else torch.from_numpy(cut.order),
    )


def _word(number: int) -> np.uint64:
    """A word of the hash, modulo 2^64 as in `random.bits`."""
    return np.uint64(number & 0xFFFFFFFFFFFFFFFF)


def _readable(pixels: Pixels) -> tuple[np.ndarray, Int64[np.ndarray, " b"]]:
    """Buffer and offsets as the kernel wants them."""
    flat = np.asarray(pixels.flat).view()
    flat.flags.writeable = False  # the kernel's one signature reads memory maps too
    return flat, _integers(pixels.offset)


def _integers(values: np.ndarray) -> Int64[np.ndarray, " b"]:
    return np.ascontiguousarray(values, dtype=np.int64)


def _memory(shape: tuple[int, ...], output: Output, pin: bool) -> torch.Tensor:
    """New memory: NumPy's, which asks for large pages, or what a GPU copies from by itself."""
    if pin:
        return torch.empty(shape, dtype=getattr(torch, MEMORY[output]), pin_memory=True)
    return torch.from_numpy(np.empty(shape, dtype=MEMORY[output]))


def _given(out: np.ndarray, shape: tuple[int, ...], output: Output) -> torch.Tensor:
    wanted = MEMORY[output]
    if out.dtype != wanted or out.shape != shape or not out.flags.c_contiguous:
        raise ValueError(
            f"out is {out.dtype} {out.shape}, contiguous: {out.flags.c_contiguous}. "
            f"Give contiguous {wanted} {shape} for an output in {output}."
        )
    return torch.from_numpy(out)


def _check(
    pixels: Pixels, index: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Refuse what would make the kernels read outside the buffer."""
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
