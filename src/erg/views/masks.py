"""Masks: which patches of a view are hidden, drawn for every image on its own."""

import numpy as np
import torch
from jaxtyping import Int64

from erg.views.plan import Masking
from erg.views.random import Purpose, bits
from erg.views.types import Mask


def random_mask(
    masking: Masking, seed: int, epoch: int, index: Int64[np.ndarray, " b"], view: int
) -> Mask:
    """Hide exactly `masking.hidden` patches of every image, each patch equally likely.

    Args:
        masking: grid and share hidden.
        seed: of the run.
        epoch: number of the epoch.
        index: row of each image in the manifest.
        view: number of the view.
    """
    tokens = np.arange(masking.grid[0] * masking.grid[1])
    keys = bits(seed, epoch, index[:, None], view, Purpose.MASK, tokens[None])  # [b n]
    order = np.argsort(keys, axis=1, kind="stable")
    hidden = np.zeros(keys.shape, dtype=np.bool_)
    np.put_along_axis(hidden, order[:, : masking.hidden], True, axis=1)
    return Mask(hidden=torch.from_numpy(hidden[:, None]), grid=masking.grid)  # [b 1 n]
