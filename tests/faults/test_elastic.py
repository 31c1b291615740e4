"""Another number of processes or threads: the same batches; a process that dies: the same run."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from erg import catalog
from erg.data.loader import Loader
from erg.train.folder import RunFolder
from erg.train.loop import Loop
from erg.train.preempt import Stopped
from erg.train.processes import leave_group
from erg.train.run import Run
from erg.train.training import train
from tests.train.test_training import a_run, data

STEPS = 6
NAMES = catalog.names()


def loader(rank: int, world: int, threads: int) -> Loader:
    given = data(53)
    return Loader(
        given.images, given.train, a_run("SimCLR").build().plan(), batch=12, seed=3,
        image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, rank=rank, world=world, threads=threads,
    )  # fmt: skip


@pytest.mark.parametrize(("world", "threads"), [(1, 3), (2, 0), (2, 3), (4, 1)])
def test_any_number_of_processes_and_threads_makes_the_same_batches(
    world: int, threads: int
) -> None:
    alone = loader(0, 1, 0)
    ranks = [loader(rank, world, threads) for rank in range(world)]
    seen: list[int] = []
    for step in range(2 * alone.steps_per_epoch):
        wanted = alone.views(step)
        shared = [rank.views(step) for rank in ranks]
        index = torch.stack([views.index for views in shared], dim=1).flatten()
        assert torch.equal(index, wanted.index)
        for i, view in enumerate(wanted.main):
            made = torch.stack([views.main[i].data for views in shared], dim=1).flatten(0, 1)
            assert torch.equal(made, view.data)
        seen += index.tolist()
    half = alone.steps_per_epoch * 12
    for epoch in (seen[:half], seen[half:]):
        assert len(set(epoch)) == half, "each image at most once an epoch"
    assert seen[:half] != seen[half:]
    for each in (alone, *ranks):
        each.close()


class StopAfter:
    """Asks the process it is in to stop, or ends it, after a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def __call__(self, progress) -> None:
        if progress.step == self.step:
            os.kill(os.getpid(), self.number)


def sitting(name: str, folder: Path, until: int | None, threads: int = 0) -> None:
    """Go on with a run of a method until some step, or to its end."""
    run = exact(name)
    loop = Loop(run, data(method=name), device=torch.device("cpu"), threads=threads)
    try:
        if until is None:
            train(loop, RunFolder(folder), resume=True)
            return
        with pytest.raises(Stopped) as stopped:
            train(loop, RunFolder(folder), resume=True, show=StopAfter(until, signal.SIGTERM))
        assert stopped.value.step == until
    finally:
        loop.close()


def exact(name: str) -> Run:
    return replace(a_run(name), precision="64", steps=STEPS, batch=12, checkpoint_minutes=0.0)


class Dies:
    """In place of the optimiser's step of the second process: it is killed at the fourth."""

    def __init__(self, loop: Loop) -> None:
        self.step, self.done = loop.step, 0

    def __call__(self, *given):
        self.done += 1
        if self.done == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.step(*given)


def child(what: str, out: Path) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    if what == "elastic":
        for name in NAMES:
            sitting(name, out / name, 4, threads=3)
    else:
        loop = Loop(exact("BYOL"), data(), device=torch.device("cpu"), threads=0)
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            loop.step = Dies(loop)
        train(loop, RunFolder(out), resume=True)
        loop.close()
    leave_group()


def in_two_processes(what: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         *options, str(Path(__file__)), what, str(out)],
        capture_output=True, text=True, timeout=800, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )  # fmt: skip


def close_to(folder: Path, name: str, tmp_path: Path) -> None:
    """The last checkpoint is that of an uninterrupted run in one process, to 1e-8."""
    sitting(name, tmp_path / "alone", None)
    file = Path("checkpoints") / f"step_{STEPS:09d}.safetensors"
    found, wanted = load_file(folder / file), load_file(tmp_path / "alone" / file)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-8, err_msg=key)


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process to step 2, two to step 4, one to the end."""
    out = tmp_path_factory.mktemp("elastic")
    for name in NAMES:
        sitting(name, out / name, 2)
    done = in_two_processes("elastic", out)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in NAMES:
        assert (out / name / "checkpoints" / "step_000000004.safetensors").exists()
        sitting(name, out / name, None)
    return out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_one_two_one_processes(name: str, elastic: Path, tmp_path: Path) -> None:
    close_to(elastic / name, name, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_dies_ends_the_others_and_a_restart_goes_on(tmp_path: Path) -> None:
    alone = in_two_processes("dying", tmp_path / "ended")
    assert alone.returncode != 0
    assert "SIGKILL" in alone.stderr or "-9" in alone.stderr
    saved = sorted((tmp_path / "ended" / "checkpoints").glob("*.safetensors"))
    assert saved[-1].name == "step_000000003.safetensors"
    again = in_two_processes("dying", tmp_path / "again", "--max-restarts=1")
    assert again.returncode == 0, again.stderr[-3000:]
    close_to(tmp_path / "again", "BYOL", tmp_path)


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]))
