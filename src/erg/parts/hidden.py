"""What masks hide: of several views at once, as pixels, and behind a learned square."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from erg.views.types import Mask, View


def stacked(views: Sequence[View], who: str) -> tuple[Shaped[Tensor, "all *rest"], Mask]:
    """The data and the masks of several views, one view after the other.

    Args:
        views: with masks on one grid.
        who: name of the method that asks.

    Raises:
        ValueError: a view has no mask.
    """
    masks = [view.need_mask(who) for view in views]
    hidden = torch.cat([mask.hidden for mask in masks])
    return torch.cat([view.data for view in views]), Mask(hidden, masks[0].grid)


def hidden_pixels(mask: Mask, unit: int) -> Bool[Tensor, "b 1 h w"]:
    """Where pixels are hidden, patches being squares of `unit` pixels."""
    patches = mask.hidden.any(dim=1).reshape(len(mask.hidden), 1, *mask.grid)
    return patches.repeat_interleave(unit, dim=2).repeat_interleave(unit, dim=3)


def blanked(
    data: Float[Tensor, "b c h w"], mask: Mask, blank: Float[Tensor, "c u u"]
) -> Float[Tensor, "b c h w"]:
    """Images with the same square in the place of every hidden patch.

    Args:
        data: the images, as large as the grid of u x u pixels.
        mask: of which it matters what is hidden.
        blank: the square, before any network.
    """
    everywhere = blank.to(data.dtype).repeat(1, *mask.grid)
    return torch.where(hidden_pixels(mask, blank.shape[-1]), everywhere, data)
