"""Crops of several sizes through one encoder."""

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from erg.views.types import View


def by_size(encoder: Callable[[Tensor], Tensor], crops: Sequence[View]) -> Float[Tensor, "all d"]:
    """Features of all crops, one after the other, with one encoder pass per resolution.

    Crops of equal size should stand together, as plans order them. A head can then take the result
    in one pass; `.chunk(len(crops))` parts it into crops again.
    """
    groups = itertools.groupby(crops, lambda crop: crop.data.shape)
    return torch.cat([encoder(torch.cat([crop.data for crop in equal])) for _, equal in groups])
