"""What the host makes reaches a device, and keeps none waiting that need not wait."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erg.parts.host import sent


def test_it_stays_what_it_is_where_it_is() -> None:
    made = torch.arange(3)
    assert sent(made, torch.device("cpu")) is made
    there = sent(made, torch.device("meta"))
    assert (there.device.type, there.dtype, there.shape) == ("meta", torch.int64, (3,))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_gpu_fetches_it_by_itself(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    def pinned(made: Tensor) -> Tensor:
        done.append("pinned")
        return made

    def to(made: Tensor, *given: Any, **how: Any) -> Tensor:
        done.append((*given, how))
        return made

    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    monkeypatch.setattr(Tensor, "to", to)
    sent(torch.arange(3), torch.device(device))
    there = torch.device(device)
    gpu = ["pinned", (there, {"non_blocking": True})]
    assert done == ([(there, {})] if device == "mps" else gpu)
