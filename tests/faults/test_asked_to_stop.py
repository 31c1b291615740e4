"""The command, asked to stop in every phase: it saves, says 75 or 130, and goes on exactly."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from erg.train.run import Optimiser, Run
from tests.faults.forks import Parent, scaled

STEPS = 6
PHASES = ["data", "forward", "epoch", "evaluation", "saving"]
OTHERS = [("forward", signal.SIGUSR1), ("saving", signal.SIGINT)]
NUMBERS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def told(folder: Path) -> Path:
    """A run.json that saves after every step, two epochs of three steps."""
    run = Run(
        method="SimCLR", encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=16,
        data="synthetic:60", batch=18, steps=STEPS, optimiser=Optimiser(lr=1e-3), precision="32",
        checkpoint_minutes=0.0,
    )  # fmt: skip
    file = folder / "told.json"
    file.write_text(json.dumps(run.to_json()))
    return file


def start(tmp_path: Path, name: str) -> list[str]:
    out = str(tmp_path / name)
    return ["pretrain", "--from", str(told(tmp_path)), "--out", out, "--no-report"]


def end(run: Path) -> tuple[dict[str, torch.Tensor], bytes]:
    last = run / "checkpoints" / f"step_{STEPS:09d}.safetensors"
    return load_file(last), (run / "events.jsonl").read_bytes()


def stopped(parent: Parent, tmp_path: Path, name: str, phase: str, number: int) -> float:
    """Seconds from the signal to the end."""
    mark = tmp_path / f"{name}-mark"
    child = parent.fork("command", arguments=start(tmp_path, name), phase=phase, mark=str(mark))
    wait_for(mark, parent)
    child.kill(number)
    since = time.monotonic()
    mark.unlink()
    code = child.wait()
    assert code == (130 if number == signal.SIGINT else 75), parent.log.read_text()[-3000:]
    return time.monotonic() - since


def wait_for(mark: Path, parent: Parent) -> None:
    """Until the run is where it waits for its signal."""
    until = time.monotonic() + 120
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.005)
    assert mark.exists(), parent.log.read_text()[-3000:]


@pytest.fixture(scope="module")
def through(parent: Parent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("through")
    assert parent.fork("command", arguments=start(folder, "through")).wait() == 0
    return folder / "through"


def in_phase(
    parent: Parent, tmp_path: Path, through: Path, phase: str, number: int, i: int
) -> None:
    name = f"stopped-{i}"
    assert stopped(parent, tmp_path, name, phase, number) < 10
    # At the end of the step in which it was asked; saving the fourth, of the fifth.
    saved = sorted(p.name for p in (tmp_path / name / "checkpoints").glob("*.safetensors"))
    step = {"epoch": 3, "saving": 5}.get(phase, 4)
    assert saved[-1] == f"step_{step:09d}.safetensors"
    assert not list((tmp_path / name).rglob("*.tmp"))
    assert not (tmp_path / name / "lock").exists()
    again = ["pretrain", "--resume", str(tmp_path / name), "--no-report"]
    assert parent.fork("command", arguments=again).wait() == 0, parent.log.read_text()[-3000:]
    (weights, events), (wanted, wanted_events) = end(tmp_path / name), end(through)
    assert events == wanted_events
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(("phase", "number"), [*((p, signal.SIGTERM) for p in PHASES), *OTHERS])
def test_asked_to_stop(
    phase: str, number: int, parent: Parent, tmp_path: Path, through: Path
) -> None:
    in_phase(parent, tmp_path, through, phase, number, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", NUMBERS)
def test_asked_to_stop_often(
    phase: str,
    number: signal.Signals,
    parent: Parent,
    tmp_path: Path,
    through: Path,
    tally: Callable[[str, int], None],
) -> None:
    for i in range(scaled(10)):
        in_phase(parent, tmp_path, through, phase, number, i)
        tally("stops that went on exactly", 1)


def test_a_second_run_in_a_live_folder_is_refused(parent: Parent, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    live = tmp_path / "live"
    arguments = start(tmp_path, "live")
    child = parent.fork("command", arguments=arguments, phase="forward", mark=str(mark))
    wait_for(mark, parent)
    child.kill(signal.SIGSTOP)
    from erg.cli import main

    before = (live / "events.jsonl").read_bytes()
    assert main(["pretrain", "--resume", str(live), "--no-report"]) == 2
    assert (live / "events.jsonl").read_bytes() == before
    mark.unlink()
    child.kill(signal.SIGCONT)
    assert child.wait() == 0
    assert len(end(live)[0]) > 1


def test_a_killed_run_leaves_no_lock(parent: Parent, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = parent.fork(
        "command", arguments=start(tmp_path, "run"), phase="forward", mark=str(mark)
    )
    wait_for(mark, parent)
    child.kill(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert (tmp_path / "run" / "lock").exists()
    again = ["pretrain", "--resume", str(tmp_path / "run"), "--no-report"]
    assert parent.fork("command", arguments=again).wait() == 0, parent.log.read_text()[-3000:]
    assert not (tmp_path / "run" / "lock").exists()
