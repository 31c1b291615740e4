"""Vectors of many images, in evaluation mode, nothing about the model changed."""

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, product
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from erg.allocator import blocks_kept
from erg.data.loader import Images, Loader
from erg.data.source import DataError
from erg.encoders import Encoder
from erg.views.plan import WHOLE, Plan, whole
from erg.views.types import Views


def device_of(module: nn.Module) -> torch.device:
    """Where a module's numbers are; the CPU where it has none. Not all methods have parameters:
    what a Gaussian mixture learns of pixels are buffers."""
    held = chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in held), torch.device("cpu"))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every submodule comes back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def check_takes(
    encoder: Encoder, holds: Literal["images", "vectors", "tokens"], width: int = 0
) -> None:
    """Refuse data of a kind that an encoder is not made for.

    Args:
        encoder: that is to see the data.
        holds: what the data are.
        width: of vectors [features].

    Raises:
        DataError: it takes data of another kind, or vectors of another width.
    """
    takes = "tokens" if encoder.vocabulary else "images" if encoder.mean else "vectors"
    if holds != takes and not (holds == "tokens" and encoder.name == "identity"):
        raise DataError(
            f"the data are {holds}, and the encoder {encoder.name} takes {takes}. Give data like "
            "those it was made for, or another encoder."
        )
    if holds == "vectors" and width != encoder.image_size:
        raise DataError(
            f"the vectors have {width} features, and the encoder {encoder.name} takes "
            f"{encoder.image_size}. Give data like those it was made for."
        )


def check_plan(
    plan: Plan,
    own: Plan,
    encoder: Encoder,
    holds: Literal["images", "vectors", "tokens"],
    method: str,
    sides: Collection[int],
) -> None:
    """Refuse views that the energy, the data or the encoder cannot take, before any is made.

    Args:
        plan: that is to be carried out.
        own: the method's.
        encoder: that is to see the views.
        holds: what the data are.
        method: name of the method.
        sides: of views that fill the encoder's input in the course of training [pixels].

    Raises:
        ValueError: x and y are not what the energy is of, there is no pair of them, the data have
            nothing to turn, cut, hide or crop, or views are of sizes that the encoder refuses.
    """
    views = (*plan.main, *plan.local)
    if plan.pairs != own.pairs:
        raise ValueError(
            f"the pairs of the plan are {plan.pairs!r}, and the energy of {method} is of "
            f"{own.pairs!r}. Give the plan pairs = {own.pairs!r}."
        )
    if plan.pairs == "views" and len(plan.main) < 2:
        raise ValueError(
            f"{method} compares two main views of an image, and its plan has {len(plan.main)}. Ask "
            "for two or more."
        )
    cuts = any(view.tiles is not None or view.mask is not None for view in views)
    if holds == "vectors" and (cuts or plan.pairs in ("turn", "order", "tasks")):
        raise ValueError(
            f"the plan of {method} turns, cuts or hides parts of images, and the data are vectors. "
            "Use a method that takes them whole, for example VICReg."
        )
    if holds == "tokens" and any(replace(view, mask=None) != WHOLE for view in views):
        raise ValueError(
            f"the plan of {method} crops or colours, which tokens cannot be. Use a method of "
            "tokens: BERT."
        )
    if {*sides} != {encoder.image_size} and (cuts or holds != "images" or plan.pairs != "views"):
        raise ValueError(
            f"views change their size in the course of training (to {min(sides)} of "
            f"{encoder.image_size}), which those of {method} cannot: it compares parts of images, "
            "or what it makes with what it was given. Leave resolution out."
        )
    if holds != "images":
        return
    seen = {encoder.image_size}
    for view, full in product(views, sides):
        side = view.pixels(full)
        seen.add(side if view.tiles is None else view.tiles.pixels(side)[1])
    for side in sorted(seen):
        refused = encoder.refuses(side)
        if refused:
            raise ValueError(
                f"{method} shows {encoder.name} images of {side} pixels, and {refused}"
            )


def at_once(most: int, image_size: int, mean: tuple[float, ...]) -> int:
    """How many items to make views of at once, so that large images do not fill the memory.

    Args:
        most: images of up to 224 pixels; of larger ones as many as have no more pixels together,
            but at least 4.
        image_size: side of the encoder's input [pixels].
        mean: of its images; empty for vectors and tokens, which are always `most`.
    """
    return min(most, max(4, most * 224**2 // image_size**2)) if mean else most


FEW_TOKENS = 160
"""Up to so many tokens plain attention is the faster one to train with in bfloat16 on a CPU: the
fused one's forward and backward pass takes 3 to 4 times as long at 10 to 37 tokens, 1.3 times at
145, and less at 197."""


@contextmanager
def plain_attention(
    encoder: Encoder, device: torch.device, dtype: torch.dtype | None
) -> Iterator[None]:
    """Attention as two matrix products where that is faster than fused; the same numbers."""
    tokens = encoder.grid[0] * encoder.grid[1] if encoder.grid is not None else 0
    if dtype is not None and device.type == "cpu" and 0 < tokens <= FEW_TOKENS:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


@contextmanager
def computing_in(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast to half precision where `dtype` says so."""
    if dtype is None:
        yield
    else:
        with torch.autocast(device.type, dtype=dtype):
            yield


def whole_images(
    images: Images | np.ndarray,
    rows: np.ndarray,
    *,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch: int = 256,
    threads: int = 0,
    pin: bool = False,
) -> Generator[Views, None, None]:
    """Every row exactly once, in order, as evaluation sees it; arguments as of `Loader`."""
    batch = at_once(batch, image_size, mean)
    loader = Loader(
        images, rows, whole(), batch=batch, seed=0, image_size=image_size, mean=mean, std=std,
        threads=threads, pin=pin,
    )  # fmt: skip
    try:
        for start in range(0, len(rows), batch):
            yield loader.make(rows[start : start + batch], epoch=0)
    finally:
        loader.close()


def features(
    embed: Callable[[Tensor], Tensor],
    module: nn.Module,
    views: Iterator[Views],
    *,
    device: torch.device,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """`embed` of the first view of every batch, as float32 [n d].

    Args:
        embed: data to vectors, usually a method's `encode` or its encoder.
        module: what is put into evaluation mode meanwhile.
        views: batches.
        device: to compute on.
        autocast: half-precision type to compute in.
        progress: called with the number of images done.
    """
    found: list[np.ndarray] = []
    pinned = device.type == "cuda"
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    with evaluating(module), computing_in(device, autocast), ExitStack() as stack:
        for batch in views:
            if len(found) == 1:  # what a single batch frees has no next one to serve
                stack.enter_context(blocks_kept())
            # Tokens stay whole numbers. Only what is pinned is copied without being waited for.
            view = batch.main[0].to(device=device, dtype=dtype, non_blocking=pinned)
            found.append(embed(view.data).float().cpu().numpy())
            if progress is not None:
                progress(len(found[-1]))
    return np.concatenate(found) if found else np.zeros((0, 0), dtype=np.float32)
