"""Memory is kept between the batches of many images, and nothing is changed for a single one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from erg import allocator
from erg.train.features import features
from erg.views.types import View, Views


@pytest.mark.parametrize(("batches", "expected"), [(0, 0), (1, 0), (2, 1), (5, 1)])
def test_memory_is_kept_for_the_next_batch(
    batches: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc, was = SimpleNamespace(malloc_trim=lambda pad: None), []
    monkeypatch.setattr(allocator, "chosen", lambda: None)
    monkeypatch.setattr(allocator, "_glibc", lambda: libc)
    monkeypatch.setattr(allocator, "_set", lambda libc, options: was.append(options))
    network = torch.nn.Flatten()
    views = (Views((View(torch.full((2, 3, 1, 1), i)),), torch.arange(2)) for i in range(batches))
    found = features(network, network, views, device=torch.device("cpu"))
    assert np.array_equal(found.reshape(-1), np.repeat(np.arange(batches), 6))
    assert was == expected * [allocator.KEEPING, allocator.USUAL]
