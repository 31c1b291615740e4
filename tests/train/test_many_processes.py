"""Two processes equal one, for every method: losses, gradients and states in float64 to 1e-8.
In float32, for some: losses and the way that weights have gone to 1e-4 of it.

One pair of processes is started for all methods. Each rank trains a few steps on its share of each
global batch of 13 through data-parallel training; the parent trains on the whole batch alone.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from erg import catalog
from erg.data.manifest import Manifest, Row
from erg.data.source import DataError
from erg.train.checkpoint import Diverged
from erg.train.data import check_same
from erg.train.fit import fit
from erg.train.folder import RunFolder
from erg.train.loop import Loop
from erg.train.run import Optimiser, Run
from erg.train.training import train
from tests.train.test_training import a_run, data

STEPS, NAN = 3, float("nan")
NAMES = catalog.names()
SINGLE = ["SimCLR", "BYOL", "SwAV"]


def double(name: str) -> Run:
    """A few steps of the global batch in float64."""
    return replace(a_run(name), precision="64", steps=STEPS, batch=13)


def single(name: str) -> Run:
    """In float32, with steps in proportion to gradients: AdamW's are long where these are noise."""
    return replace(double(name), precision="32", optimiser=Optimiser(name="sgd", lr=0.1))


def trained(run: Run, folder: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Weights and buffers after a run, and what was logged."""
    loop = Loop(run, data(method=run.method), device=torch.device("cpu"), threads=0)
    train(loop, RunFolder(folder))
    loop.close()
    events = folder / "events.jsonl"
    lines = (
        [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    )
    return {k: v.detach().clone() for k, v in loop.method.state_dict().items()}, lines


def child(out: Path) -> None:
    """What each of the two processes does."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    runs = {name: double(name) for name in NAMES}
    for name, run in {**runs, **{f"{name}-32": single(name) for name in SINGLE}}.items():
        state, _ = trained(run, out / name)
        if rank == 0:
            contiguous = {k: v.contiguous().clone() for k, v in state.items()}
            save_file(contiguous, out / f"{name}.safetensors")
    for policy in POLICIES:
        (out / f"{policy}-{rank}").write_text(json.dumps(goes_bad(policy, out / policy, rank)))
    (out / f"differ-{rank}").write_text(differ(out / "differ", rank))
    (out / f"read-{rank}").write_text(reads_other_data(rank))
    (out / f"folder-{rank}").write_text(takes_a_folder(out / "free", rank))


def differ(folder: Path, rank: int) -> str:
    """What each process says where one of them changes a buffer by itself."""
    run = replace(a_run("BYOL"), steps=2)
    loop = Loop(run, data(), device=torch.device("cpu"), threads=0)
    name, buffer = next((n, b) for n, b in loop.method.named_buffers() if b.is_floating_point())
    buffer += rank
    try:
        train(loop, RunFolder(folder))
    except RuntimeError as error:
        return str(error)
    finally:
        loop.close()
    return f"{name} may differ"


def reads_other_data(rank: int) -> str:
    """What each process says where one of them could not read a file."""
    row = Row("a.png", 0, 9, "0" * 32, 8, 8, "ok", "", None)
    lost = row._replace(status="skipped", reason="Gone.", height=0, width=0)
    try:
        check_same(Manifest.of([row, lost if rank else row]))
    except DataError as error:
        return str(error)
    return "nothing"


def takes_a_folder(free: Path, rank: int) -> str:
    """Where each process writes a run whose folder nobody has named, one of them being late."""
    free.mkdir(exist_ok=True)
    os.chdir(free)
    time.sleep(rank)
    run = replace(a_run("SimCLR"), data="synthetic:40", batch=12, steps=2)
    fitted = fit(run, observers=())
    assert (fitted.folder / "encoder" / "config.json").exists() or rank
    return str(fitted.folder)


POLICIES = ["stop", "skip", "rollback"]


def goes_bad(policy: str, folder: Path, rank: int) -> list[str]:
    """What each process says of a run in which a gradient of the second one alone goes bad."""
    run = replace(a_run("BYOL"), steps=4, not_finite=policy, checkpoint_minutes=0.0)
    loop, said = Loop(run, data(), device=torch.device("cpu"), threads=0), []
    check = loop._check

    def flipped(step: int, *given) -> None:
        if step == 2 and rank == 1:
            found = next(p.grad for p in loop.method.parameters() if p.grad is not None)
            found[(0,) * found.ndim] = NAN
        check(step, *given)

    loop._check = flipped
    try:
        train(loop, RunFolder(folder), tell=said.append)
    except Diverged as error:
        said.append(str(error))
    finally:
        loop.close()
    return said


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(Path(__file__)), str(out)],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name: str, together: Path, tmp_path: Path) -> None:
    alone, lines = trained(double(name), tmp_path)
    both = load_file(together / f"{name}.safetensors")
    assert alone.keys() == both.keys()
    for key, value in alone.items():
        if value.is_floating_point():
            off = float((value - both[key]).abs().max()) if value.numel() else 0.0
            assert off < 1e-8, f"{key} is off by {off:.2g}"
        else:
            assert torch.equal(value, both[key]), key
    losses_agree(lines, together / name, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", SINGLE)
def test_two_processes_equal_one_in_float32(name: str, together: Path, tmp_path: Path) -> None:
    run = single(name)
    before = dict(run.build().named_parameters())
    alone, lines = trained(run, tmp_path)
    both = load_file(together / f"{name}-32.safetensors")
    assert alone.keys() == both.keys()
    assert {value.dtype for value in before.values()} == {torch.float32}
    way = {key: float((alone[key] - value).detach().norm()) for key, value in before.items()}
    assert 0.1 < max(way.values()) < 10
    for key, value in alone.items():
        off = float((both[key] - value).double().norm())
        # Where weights hardly move there is only noise: a bias before a batch norm changes nothing.
        least = 0.01 * max(way.values())
        size = max(way[key], least) if key in way else float(value.double().norm())
        assert off <= 1e-4 * size, f"{key} is off by {off:.2g}, and {size:.2g} long"
    losses_agree(lines, together / f"{name}-32", rtol=1e-4, atol=0)


def losses_agree(lines: list[dict], folder: Path, **how: float) -> None:
    """The losses of one process and those that two have logged."""
    logged = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert len(logged) == len(lines) == STEPS
    for mine, theirs in zip(lines, logged, strict=True):
        np.testing.assert_allclose(mine["loss"], theirs["loss"], **how)


@pytest.mark.parametrize("policy", POLICIES)
def test_all_processes_see_in_which_step_one_of_them_goes_bad(policy: str, together: Path) -> None:
    said = [json.loads((together / f"{policy}-{rank}").read_text()) for rank in (0, 1)]
    assert [len(lines) for lines in said] == [1, 1]
    where = ["of another process", "encoder."]
    for (line,), place in zip(said, where, strict=True):
        assert line.lower().startswith(f"a gradient is not finite at step 3 ({place}")
    saved = sorted(p.stem for p in (together / policy / "checkpoints").glob("*.safetensors"))
    last = 2 if policy == "stop" else 4  # at the end both hold the same bits, or saving raises
    assert saved[-1] == f"step_{last:09d}"
    both = load_file(together / policy / "checkpoints" / f"{saved[-1]}.safetensors")
    assert all(bool(t.isfinite().all()) for t in both.values())


def test_a_checkpoint_is_written_only_where_all_processes_hold_the_same(together: Path) -> None:
    for rank in (0, 1):
        assert "differ between processes" in (together / f"differ-{rank}").read_text()
    assert not (together / "differ" / "checkpoints").exists()


def test_processes_that_read_other_data_say_so(together: Path) -> None:
    for rank in (0, 1):
        assert "do not read the same data" in (together / f"read-{rank}").read_text()


def test_processes_agree_on_a_folder_that_nobody_named(together: Path) -> None:
    assert {(together / f"folder-{rank}").read_text() for rank in (0, 1)} == {"runs/simclr-1"}
    assert [p.name for p in (together / "free" / "runs").iterdir()] == ["simclr-1"]


def test_the_comparison_can_fail(together: Path, tmp_path: Path) -> None:
    """Another seed gives other weights, by far more than the tolerance."""
    state, _ = trained(double("SimCLR"), tmp_path)
    other = replace(a_run("SimCLR"), seed=1).build().state_dict()
    assert max(float((state[k] - other[k]).abs().max()) for k in state if "weight" in k) > 1e-2


if __name__ == "__main__":
    child(Path(sys.argv[1]))
