"""Vectors of many images, in evaluation mode, nothing about the model changed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from erg.data.loader import Images, Loader
from erg.data.source import DataError
from erg.encoders import Encoder
from erg.views.plan import whole
from erg.views.types import Views


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
) -> Iterator[Views]:
    """Every row exactly once, in order, as evaluation sees it."""
    loader = Loader(
        images, rows, whole(), batch=batch, seed=0, image_size=image_size, mean=mean, std=std,
        threads=threads,
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
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    with evaluating(module), computing_in(device, autocast):
        for batch in views:
            view = batch.main[0].to(device=device, dtype=dtype)  # tokens stay whole numbers
            found.append(embed(view.data).float().cpu().numpy())
            if progress is not None:
                progress(len(found[-1]))
    return np.concatenate(found) if found else np.zeros((0, 0), dtype=np.float32)
