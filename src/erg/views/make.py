"""Makes the views of a batch as a plan asks: of images, rendered; of vectors, which are the vectors
with noise; and of tokens, which are the tokens with masks.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped

from erg.views import kernels
from erg.views.masks import Cut, draw_mask, random_tiles
from erg.views.pixels import Pixels
from erg.views.plan import WHOLE, Augmentation, Plan
from erg.views.random import Purpose, uniform
from erg.views.render import Renderer, check, draw, render, renderer
from erg.views.types import How, Output, View, Views

MEMORY: dict[Output, str] = {"float32": "float32", "bfloat16": "uint16", "uint8": "uint8"}
"""What the kernels write for each form of output: NumPy has no bfloat16, so its bits."""


def begin_view(
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
    output: Output = "float32",
    pin: bool = False,
    out: Shaped[np.ndarray, "b h w 3"] | None = None,
    step: int = 0,
    among: Int64[np.ndarray, " global"] | None = None,
) -> tuple[View, Renderer]:
    """Draw how one view of every image is made, and allocate it.

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
        output: numbers of the view: float32 or bfloat16, normalised; or uint8, which `View.to`
            normalises and which cannot hold noise.
        pin: allocate memory that a GPU copies from by itself; there has to be one.
        out: memory of the view, where it should not be allocated anew: float32, uint16 for
            bfloat16, or uint8.
        step: optimiser step the batch belongs to, which sizes that a batch shares depend on.
        among: rows of the whole batch, over all processes, where these images are not all of it
            (see `masks`).

    Returns:
        A view of data [b 3 s s], or of p tiles [b 3 p*t t], in channels-last memory, that of `out`;
        and what renders it (see `render`): before, its data is whatever the memory held.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    side = augmentation.pixels(image_size)
    check(pixels, index, mean, std)
    tiles = augmentation.tiles
    cut = random_tiles(tiles, side, seed, epoch, index, view) if tiles else None
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
    rendering = renderer(
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
    )
    masking = augmentation.mask
    data = data.view(torch.bfloat16) if output == "bfloat16" else data
    begun = View(
        data=data.permute(0, 3, 1, 2),  # [b 3 s s]
        made=_how(pixels, params, cut),
        mask=draw_mask(masking, seed, epoch, step, index, view, among) if masking else None,
        mean=tuple(mean),
        std=tuple(std),
    )
    return begun, rendering


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
    worth: float = 0.0,
    output: Output = "float32",
    pin: bool = False,
    among: Int64[np.ndarray, " global"] | None = None,
) -> Views:
    """Make all views of a plan; arguments as `begin_view`.

    Args:
        plan: of kind image.
        step: optimiser step the batch belongs to.
        pool: threads to share the work with, which changes no bit; None works in this thread.
        worth: what has to be left to do before they are asked to help [s].
        output: numbers of the views. Views with noise or dropped colours, which uint8 cannot hold,
            are made in float32 instead: methods are given the same normalised floats after
            `Views.to`.

    Raises:
        ValueError: the plan is not of images, or the arguments do not fit each other.
    """
    if plan.kind != "image":
        raise ValueError(f"the plan is of kind {plan.kind}. Pixels need a plan of kind image.")
    begun: list[tuple[View, Renderer]] = []
    for number, wanted in enumerate(plan.main + plan.local):
        augmentation, geometry = _resolve(plan, wanted, number)
        begun.append(
            begin_view(
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
                output="float32" if output == "uint8" and augmentation.noisy else output,
                pin=pin,
                step=step,
                among=among,
            )
        )
    render([rendering for _, rendering in begun], len(index), pool, worth)
    return _together([view for view, _ in begun], plan, step, index)


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
    data = np.ascontiguousarray(vectors, dtype=np.float32)
    draws = np.arange(data.shape[1])
    made: list[View] = []
    for number, wanted in enumerate(plan.main):
        view, words = data, (seed, epoch, index[:, None], number)
        if wanted.noise:  # Box & Muller 1958
            radius, turn = (uniform(*words, Purpose.NOISE, draws + k * len(draws)) for k in (0, 1))
            normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * turn)
            view = view + np.float32(wanted.noise) * normal.astype(np.float32)
        if wanted.zeroed:
            lost = uniform(*words, Purpose.ZEROED, draws) < wanted.zeroed
            view = np.where(lost, np.float32(0), view)
        made.append(View(torch.from_numpy(view)))
    return _together(made, plan, step, index)


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
        among: as of `begin_view`.

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
    return _together(made, plan, step, index)


def _together(made: list[View], plan: Plan, step: int, index: Int64[np.ndarray, " b"]) -> Views:
    """The views of a batch, main ones first as in the plan."""
    n = len(plan.main)
    rows = torch.from_numpy(np.array(index, dtype=np.int64))  # a copy: the caller's may change
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
    source = np.stack([pixels.height, pixels.width], axis=1).astype(np.int64)
    return How(
        box=torch.from_numpy(box),
        flip=torch.from_numpy(params[:, kernels.FLIP] > 0),
        turns=torch.from_numpy(params[:, kernels.TURNS].astype(np.int64)),
        source=torch.from_numpy(source),
        order=None if cut is None else torch.from_numpy(cut.order),
    )


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
