"""What an accelerator wants, told by how the CPU is spoken to: nobody here has one."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from erg import distributed
from erg.train import processes, training
from erg.train.health import HELD_EPOCH, energies
from erg.train.loop import Loop
from erg.train.shortcut import answered
from erg.views.types import Views
from tests.train.test_training import a_run, data

CPU = torch.device("cpu")


class NoDoubles(TorchDispatchMode):
    """Fails where a number in float64 is made, which MPS does not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            raise AssertionError(f"{func} makes float64")
        return made


@pytest.fixture
def loop() -> Loop:
    return Loop(a_run("Rotation"), data(method="Rotation"), device=CPU, threads=0)


def test_looking_at_energies_and_answers_needs_no_float64(loop: Loop) -> None:
    views = loop.loader.make(loop.data.train[:16], epoch=HELD_EPOCH)
    with NoDoubles():
        low, high = energies(loop.method, views, CPU, None)
        share, _ = answered(loop.method, views, CPU, None)
    assert low.dtype == high.dtype == "float64"
    assert 0 <= share <= 1


def test_float32_is_not_rounded_further_in_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    Loop(a_run(), data(), device=CPU, threads=0)
    assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_only_copies_from_pinned_memory_are_not_waited_for(
    loop: Loop, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def to(views: Views, **how: Any) -> Views:
        asked.append(how["non_blocking"])
        return views

    monkeypatch.setattr(Views, "to", to)
    monkeypatch.setattr(loop, "device", torch.device(device))
    loop._to_device(loop.loader.views(0))
    assert asked == [device == "cuda"]


def test_processes_agree_on_the_number_of_steps_on_their_device(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL has no collectives for tensors in the memory of the host."""
    where: list[torch.device] = []

    def mean(x: torch.Tensor) -> torch.Tensor:
        where.append(x.device)
        return torch.tensor(0.5)

    monkeypatch.setattr(distributed, "mean", mean)
    monkeypatch.setattr(loop, "trial", lambda: 0.5)
    monkeypatch.setattr(loop, "device", torch.device("meta"))
    training.measured(loop.run, loop, 1.0, 0.0)
    assert where == [torch.device("meta")] * 2


@pytest.mark.parametrize(
    ("asked", "given"), [("cuda:1", [1]), ("cuda", 1), ("cpu", 1), ("mps:0", 1)]
)
def test_the_device_that_was_asked_for_is_the_one_used(
    asked: str, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}

    class Asked(processes.Fabric):
        def __init__(self, **how: Any) -> None:
            found.update(how)

    monkeypatch.setattr(processes, "Fabric", Asked)
    processes.fabric_for(torch.device(asked))
    assert found == {"accelerator": asked.split(":")[0], "devices": given}
