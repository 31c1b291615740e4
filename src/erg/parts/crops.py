"""Plans that several methods share, and crops of several sizes through one encoder."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from erg.views.plan import (
    BYOL_FIRST,
    BYOL_SECOND,
    DINO_FIRST,
    DINO_LOCAL,
    DINO_SECOND,
    LARGE,
    SIMCLR_SMALL,
    SWAV_GLOBAL,
    SWAV_LOCAL,
    Masking,
    Plan,
    two_views,
)
from erg.views.types import View

SMALL_LOCAL = replace(SIMCLR_SMALL, crop=(0.1, 0.4), size=0.5)
"""A small crop of a small image."""


def multi_crop(
    image_size: int, small: int, *, share: float = 0.4, mask: Masking | None = None
) -> Plan:
    """DINO's plan: two large crops of every image and some small ones (Caron et al. 2021).

    Args:
        image_size: of the encoder [pixels].
        small: number of small crops.
        share: of the image's area that parts large from small crops, in the recipe of ImageNet.
        mask: of the large crops.
    """
    if image_size >= LARGE:
        large = [replace(view, crop=(share, 1.0)) for view in (DINO_FIRST, DINO_SECOND)]
        local = replace(DINO_LOCAL, crop=(0.05, share))
    else:
        large = [replace(SIMCLR_SMALL, crop=(0.4, 1.0))] * 2
        local = SMALL_LOCAL
    main = tuple(replace(view, mask=mask) for view in large)
    return Plan(main=main, local=(local,) * small)


def swav_crops(image_size: int, small: int) -> Plan:
    """SwAV's plan: two large crops of every image and some small ones (Caron et al. 2020).

    Args:
        image_size: of the encoder [pixels].
        small: number of small crops.
    """
    if image_size >= LARGE:
        return Plan(main=(SWAV_GLOBAL,) * 2, local=(SWAV_LOCAL,) * small)
    return Plan(main=(SIMCLR_SMALL,) * 2, local=(SMALL_LOCAL,) * small)


def byol_views(image_size: int) -> Plan:
    """BYOL's two views (Grill et al. 2020), and SimCLR's for small images."""
    if image_size < LARGE:
        return two_views(SIMCLR_SMALL)
    return two_views(BYOL_FIRST, BYOL_SECOND)


def by_size(
    encoder: Callable[[Tensor], Tensor], crops: Sequence[View], *before: Float[Tensor, "_ d"]
) -> Float[Tensor, "all d"]:
    """Features of all crops, one after the other, with one encoder pass per resolution.

    Crops of equal size should stand together, as plans order them. A head can then take the result
    in one pass; `.chunk(len(crops))` parts it into crops again.

    Args:
        encoder: from data to features.
        crops: each of as many images.
        before: features that are already known, to stand before these.
    """
    return torch.cat([*before, *(encoder(torch.cat(equal)) for equal in of_one_size(crops))])


def of_one_size(crops: Sequence[View]) -> Iterator[list[Shaped[Tensor, "b *rest"]]]:
    """The data of crops that stand together and are equally large, one resolution at a time."""
    for _, equal in itertools.groupby(crops, lambda crop: crop.data.shape):
        yield [crop.data for crop in equal]
