"""Losses over a batch or a memory: no matrix of all pairs, and the gradients of the whole one."""

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from erg import catalog, shaping
from erg.encoders import build_encoder
from erg.method import Method
from erg.views.types import View, Views

BATCH, MEMORY = 96, 512
ALLOWED = 4096
"""Numbers in the largest tensor: enough for data, weights, memories, and blocks of 1,024."""

HEAD = {"hidden": 8, "dim": 4}
LOSSES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "SimCLR": ("SimCLR", 2, HEAD),
    "DCL": ("DCL", 2, HEAD),
    "DCLW": ("DCL", 2, HEAD | {"sigma": 0.5}),
    "MoCo": ("MoCo", 2, HEAD | {"queue": MEMORY, "groups": 1}),
    "RELIC": ("RELIC", 2, HEAD),
    "RELIC without teacher": ("RELIC", 2, HEAD | {"teacher": False}),
    "instance discrimination": ("InstanceDiscrimination", 1, {"size": MEMORY, "dim": 4}),
    "the same by estimation": (
        "InstanceDiscrimination", 1, {"size": MEMORY, "dim": 4, "negatives": 300},
    ),
    "PIRL": ("PIRL", 2, {"size": MEMORY, "dim": 4, "by": "rotation"}),
}  # fmt: skip


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                held = each.untyped_storage().nbytes() // each.element_size()
                self.numbers = max(self.numbers, held)
        return made


def measured(method: Method, views: Views) -> tuple[int, list[torch.Tensor]]:
    """The largest tensor of a forward and backward pass; the loss and its gradients."""
    method = copy.deepcopy(method).train()
    with Largest() as largest:
        total = method.loss(views, 0.0).total
        total.backward()
    found = [p.grad for p in method.parameters() if p.grad is not None]
    return largest.numbers, [total.detach(), *found]


@pytest.mark.parametrize("name", LOSSES)
def test_memory_grows_with_the_batch_and_not_with_its_square(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    kind, count, arguments = LOSSES[name]
    method = catalog.find(kind)(build_encoder("identity", 8), **arguments).double()
    main = tuple(View(torch.randn(BATCH, 8, dtype=torch.float64)) for _ in range(count))
    views = Views(main, torch.randperm(MEMORY)[:BATCH])
    most, dense = measured(method, views)
    assert most > 2 * ALLOWED, "all pairs at once, where there is room for them"
    monkeypatch.setattr(shaping, "BLOCK", 1024)
    most, found = measured(method, views)
    assert most <= ALLOWED
    assert len(found) == len(dense) > 1
    for a, b in zip(found, dense, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
