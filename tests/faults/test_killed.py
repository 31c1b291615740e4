"""Runs that are killed at any moment end as if they had not been, bit for bit.

Every run saves after every step, so that kills fall into saving as often as into anything else. The
seeds choose how many events are waited for before each kill, and how much longer.
"""

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from erg import catalog
from erg.train.checkpoint import load_checkpoint
from tests.faults.forks import POINTS, Parent, scaled

Tally = Callable[[str, int], None]
STEPS = 6  # of `a_run`
KILLS = 3


class Sittings(NamedTuple):
    """Of a run that was killed again and again.

    Args:
        started: steps it had saved each time it started.
        kills: how often it was killed; where it had ended before, there was nothing to kill.
    """

    started: list[int]
    kills: int


def content(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], bytes]:
    """Weights, buffers and optimiser after the last step, and everything that was logged."""
    path = folder / "checkpoints" / f"step_{STEPS:09d}.safetensors"
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
        return tensors, file.metadata(), (folder / "events.jsonl").read_bytes()


def events(folder: Path) -> int:
    file = folder / "events.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def killed_and_resumed(
    parent: Parent, method: str, folder: Path, threads: int, chance: random.Random, least: int
) -> Sittings:
    """Where no event is waited for (`least` = 0), it may be killed while it starts."""
    started, kills = list[int](), 0
    for sitting in range(KILLS + 1):
        saved = sorted((folder / "checkpoints").glob("step_*.safetensors"))
        started.append(int(saved[-1].stem.removeprefix("step_")) if saved else 0)
        child = parent.fork("train", method=method, folder=str(folder), threads=threads)
        if sitting == KILLS:
            assert child.wait() == 0, parent.log.read_text()[-3000:]
            break
        more = chance.randint(least, 2)
        wanted = events(folder) + more
        until = time.monotonic() + 60
        while events(folder) < wanted and time.monotonic() < until and not finished(folder):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03 if more else 0.1))
        child.kill(signal.SIGKILL)
        code = child.wait()
        assert code in (0, -signal.SIGKILL), parent.log.read_text()[-3000:]
        kills += code == -signal.SIGKILL
    return Sittings(started, kills)


def finished(folder: Path) -> bool:
    return (folder / "checkpoints" / f"step_{STEPS:09d}.safetensors").exists()


def compare(
    parent: Parent, method: str, tmp_path: Path, threads: int, seed: int, least: int = 0
) -> Sittings:
    through, killed = tmp_path / f"through-{threads}", tmp_path / f"killed-{threads}-{seed}"
    if not through.exists():
        child = parent.fork("train", method=method, folder=str(through), threads=0)
        assert child.wait() == 0, parent.log.read_text()[-3000:]
    # A text as seed: the numbers are the same in every process and version.
    chance = random.Random(f"{method} {threads} {seed}")
    sittings = killed_and_resumed(parent, method, killed, threads, chance, least)
    (mine, about, log), (wanted, wanted_about, wanted_log) = content(killed), content(through)
    assert about == wanted_about
    assert log == wanted_log
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():
        assert mine[name].dtype == value.dtype
        same = mine[name].contiguous().view(-1).view(torch.uint8)
        assert torch.equal(same, value.contiguous().view(-1).view(torch.uint8)), name
    left = [p.name for p in killed.rglob("*") if p.name.endswith(".tmp") or p.name == "lock"]
    assert not left
    kept = sorted(path.name for path in (killed / "checkpoints").iterdir())
    whole = [f"{stem}.{kind}" for stem in sorted({name.partition(".")[0] for name in kept})
             for kind in ("safetensors", "sha256")]  # fmt: skip
    # Three where the last kill fell between saving the last one and dropping an old one.
    assert kept == whole
    assert len(kept) in (4, 6)
    return sittings


@pytest.mark.parametrize(("method", "threads"), [("BYOL", 0), ("SwAV", 3)])
def test_killed_runs_end_bit_equal(
    method: str, threads: int, parent: Parent, tmp_path: Path
) -> None:
    sittings = compare(parent, method, tmp_path, threads, 0, least=1)
    assert sittings.kills >= 2  # with those of the command at least five
    inside = any(0 < step < STEPS for step in sittings.started)
    assert inside, f"no kill fell inside the run: {sittings.started}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", catalog.names())
def test_every_method_ends_bit_equal(
    method: str, parent: Parent, tmp_path: Path, tally: Tally
) -> None:
    """Two ways of loading, three runs each with three kills: 18 kills a method."""
    started: list[list[int]] = []
    for seed in range(scaled(3)):
        for threads in (0, 3):
            # Some also while they start; the others come to a checkpoint before the last kill.
            sittings = compare(parent, method, tmp_path, threads, seed, least=(seed + 1) % 2)
            started.append(sittings.started)
            tally("kills of runs that then ended bit-equal", sittings.kills)
    inside = sum(0 < step < STEPS for steps in started for step in steps)
    assert inside >= len(started) // 2, f"nearly no kill fell inside a run: {started}"


SMALL = ["--encoder", "conv", "--image-size", "16", "--batch", "24", "--steps", "6", "--no-report"]


def command_killed(parent: Parent, folder: Path, chance: random.Random) -> int:
    """The whole command, killed while it looks at data, starts, trains, saves or ends."""
    kills = 0
    for sitting in range(KILLS + 1):
        begun = (folder / "run.json").exists()
        arguments = ["--resume", str(folder), "--no-report"]
        if not begun:
            arguments = ["synthetic:120", *SMALL, "--out", str(folder)]
        child = parent.fork("command", arguments=["pretrain", *arguments])
        if sitting < KILLS:
            time.sleep(chance.uniform(0, 1.5))
            child.kill(signal.SIGKILL)
        code = child.wait()
        killed = sitting < KILLS and code == -signal.SIGKILL
        assert code == 0 or killed, parent.log.read_text()[-3000:]
        kills += killed
    return kills


def compare_commands(parent: Parent, tmp_path: Path, seeds: int) -> int:
    through = tmp_path / "through"
    arguments = ["pretrain", "synthetic:120", *SMALL, "--out", str(through)]
    assert parent.fork("command", arguments=arguments).wait() == 0, parent.log.read_text()[-3000:]
    kills = 0
    for seed in range(seeds):
        folder = tmp_path / str(seed)
        kills += command_killed(parent, folder, random.Random(f"command {seed}"))
        for name in ("encoder", "encoder_start"):
            mine, wanted = (load_file(f / name / "model.safetensors") for f in (folder, through))
            assert mine.keys() == wanted.keys()
            assert all(torch.equal(mine[key], wanted[key]) for key in wanted)
        for name in ("events.jsonl", "pictures/energies.json"):
            assert (folder / name).read_bytes() == (through / name).read_bytes(), name
        assert {p.name for p in folder.iterdir()} == {p.name for p in through.iterdir()}
    return kills


def test_a_killed_command_ends_bit_equal(parent: Parent, tmp_path: Path) -> None:
    assert compare_commands(parent, tmp_path, 1) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_commands_end_bit_equal_often(parent: Parent, tmp_path: Path, tally: Tally) -> None:
    kills = compare_commands(parent, tmp_path, scaled(20))
    tally("kills of commands that then ended bit-equal", kills)


# Inside the window of saving -------------------------------------------------------------------


def save_window(parent: Parent, folder: Path, point: str) -> None:
    child = parent.fork("save", folder=str(folder), steps=[1, 2, 3], point=point)
    assert child.wait() == -signal.SIGKILL, parent.log.read_text()[-3000:]
    module = torch.nn.Linear(64, 64)
    restored = load_checkpoint(folder, module, None)
    assert restored is not None
    complete = point in ("in place", "first of the old ones gone")
    assert restored.step == (3 if complete else 2)
    assert restored.skipped == ()
    assert bool((module.weight == restored.step).all())
    # The next start tidies up, and saving the next one leaves two whole ones and nothing else.
    child = parent.fork("resave", folder=str(folder), step=restored.step + 1)
    assert child.wait() == 0, parent.log.read_text()[-3000:]
    names = sorted(p.name for p in folder.iterdir())
    assert names == [
        f"step_{step:09d}.{kind}"
        for step in (restored.step, restored.step + 1)
        for kind in ("safetensors", "sha256")
    ]


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_saving(point: str, parent: Parent, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save_window(parent, tmp_path / "run" / "checkpoints", point)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("point", POINTS)
def test_killed_while_saving_often(
    point: str, parent: Parent, tmp_path: Path, tally: Tally
) -> None:
    for i in range(scaled(20)):
        (tmp_path / str(i)).mkdir()
        save_window(parent, tmp_path / str(i) / "checkpoints", point)
        tally("kills while saving", 1)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    """A process whose temporary files lie on another disk than its checkpoints."""
    here = tmp_path_factory.mktemp("here")
    for place in map(Path, ("/dev/shm", "/tmp", "/var/tmp", "/run")):
        if os.access(place, os.W_OK) and place.stat().st_dev != here.stat().st_dev:
            break
    else:
        pytest.skip("there is only one file system that can be written to")
    with (
        tempfile.TemporaryDirectory(dir=place) as folder,
        Parent(here / "log", temporary=Path(folder)) as started,
    ):
        yield started
        assert not list(Path(folder).rglob("*step_*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("point", POINTS)
def test_killed_while_saving_with_temporary_files_elsewhere(
    point: str, elsewhere: Parent, tmp_path: Path, tally: Tally
) -> None:
    """Where what moves files between the two loses them."""
    for i in range(scaled(20)):
        (tmp_path / str(i)).mkdir()
        save_window(elsewhere, tmp_path / str(i) / "checkpoints", point)
        tally("kills while saving, temporary files elsewhere", 1)


def test_events_are_those_of_the_steps_that_are_saved(parent: Parent, tmp_path: Path) -> None:
    """A run killed before its first checkpoint starts again, and says nothing twice."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "events.jsonl").write_text('{"step": 1, "kind": "step", "loss": 0}\n{"st')
    assert parent.fork("train", method="SimCLR", folder=str(folder), threads=0).wait() == 0
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert steps == list(range(1, STEPS + 1))
    assert lines[1]["loss"] != 0
