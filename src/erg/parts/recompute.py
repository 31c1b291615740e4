"""Blocks that are computed again for the backward pass instead of being remembered.

Such a block keeps its input only, so that memory grows with the number of blocks and not with what
happens inside of them, for one more forward pass (Chen et al. 2016, "Training Deep Nets with
Sublinear Memory Cost").
"""

import functools
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


class _Depth(threading.local):
    """How many blocks this thread is computing again; accelerators go backwards in their own."""

    value = 0


_depth = _Depth()


def again() -> bool:
    """Whether a block is being computed again: what it has counted already counts no more."""
    return _depth.value > 0


class _Again(AbstractContextManager["_Again"]):
    def __enter__(self) -> "_Again":
        _depth.value += 1
        return self

    def __exit__(self, *_: object) -> None:
        _depth.value -= 1


def recompute(block: nn.Module) -> None:
    """From now on a block is computed again for the backward pass; names of its weights stay.

    Its class is replaced by one that differs in `forward` alone, so that copies of it, whole or in
    shares, do the same with their own weights.
    """
    block.__class__ = _recomputing(type(block))


@functools.cache
def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *inputs: Any, **further: Any) -> Any:
        inside = functools.partial(kind.forward, self)
        return checkpoint(inside, *inputs, use_reentrant=False, context_fn=_contexts, **further)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _Again()
