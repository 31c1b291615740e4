"""What is logged: on a GPU a step late, so that the host never waits for the device."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from erg.train import log as logging
from erg.train.checkpoint import Diverged
from erg.train.folder import RunFolder
from erg.train.log import Clock, Log
from erg.train.run import Run

RUN = Run(method="SimCLR", encoder="conv", image_size=32)


def parts(pull: float) -> dict[str, torch.Tensor]:
    return {"pull/a": torch.tensor(pull), "push/b": torch.tensor(1.0), "grad_norm": torch.tensor(5)}


def written(folder: RunFolder) -> list[tuple[int, float]]:
    folder.flush()
    if not (folder.path / "events.jsonl").exists():
        return []
    lines = [json.loads(line) for line in (folder.path / "events.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


class Event:
    """Stands for what a GPU reaches some time after it was recorded."""

    waited = 0

    def record(self) -> None: ...

    def synchronize(self) -> None:
        Event.waited += 1


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that say they are on one."""
    allocate = torch.empty

    def empty(*shape: Any, pin_memory: bool = False, **how: Any) -> torch.Tensor:
        assert pin_memory
        return allocate(*shape, **how)

    Event.waited = 0
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)


def test_losses_are_written_at_once_where_they_are_at_hand(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = Log(folder, True, RUN)
    log.take(0, parts(2.0))
    assert written(folder) == [(1, 3.0)]
    assert log.last == {"loss": 3.0, "pull/a": 2.0, "push/b": 1.0, "grad_norm": 5.0}


@pytest.mark.usefixtures("on_a_gpu")
def test_on_a_gpu_a_steps_losses_are_read_with_the_next_or_when_asked(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = Log(folder, True, RUN)
    log.take(0, parts(2.0))
    assert Event.waited == 0
    assert written(folder) == []
    log.take(1, parts(4.0))
    assert Event.waited == 1, "for the step before, whose numbers have arrived by then"
    assert written(folder) == [(1, 3.0)]
    log.write()
    assert written(folder) == [(1, 3.0), (2, 5.0)]
    log.write()
    assert Event.waited == 2


@pytest.mark.usefixtures("on_a_gpu")
def test_what_is_not_finite_is_noticed_a_step_late(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = Log(folder, True, RUN)
    log.take(0, parts(float("nan")))
    with pytest.raises(Diverged, match=r"the loss is not finite at step 1 \(pull/a\)"):
        log.take(1, parts(1.0))


def test_speed_is_that_of_the_steps_since_the_last_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 5.0, 6.0, 8.0])
    monkeypatch.setattr(logging, "time", SimpleNamespace(monotonic=lambda: next(now)))
    clock = Clock(RunFolder(tmp_path), writes=False)
    assert clock.tick(1, 8) == 0
    assert clock.tick(2, 8) == 8
    assert clock.tick(12, 8) == 40
