"""What an accelerator wants, told by how the CPU is spoken to: nobody here has one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from erg import distributed
from erg.train import processes, training
from erg.train.features import device_of, features
from erg.train.health import HELD_EPOCH, energies
from erg.train.loop import Loop
from erg.train.shortcut import answered
from erg.views.types import View, Views
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


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_features_too_wait_for_all_copies_but_those_to_a_gpu(
    loop: Loop, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def to(view: View, **how: Any) -> View:
        asked.append(how["non_blocking"])
        return view

    views, encoder = loop.loader.views(0), loop.method.encoder
    monkeypatch.setattr(View, "to", to)
    found = features(encoder, encoder, iter([views]), device=torch.device(device))
    assert asked == [device == "cuda"]
    assert found.shape == (12, encoder.dim)


def test_a_module_is_where_its_parameters_are_or_else_its_buffers() -> None:
    meta = torch.device("meta")
    run = replace(a_run("GaussianMixture"), encoder="pixels", encoder_args={"side": 4})
    mixture = run.build(meta)
    assert not [*mixture.parameters()]
    assert device_of(mixture) == device_of(nn.Linear(2, 2, device=meta)) == meta
    assert device_of(nn.Identity()) == device_of(run.build()) == CPU


def test_a_run_in_float64_is_refused_where_there_is_none() -> None:
    """Before anything is made, and with what to do."""
    with pytest.raises(ValueError, match=r"mps has no numbers of 64 bits.*--device cpu"):
        a_run(precision="64").build("mps")
