"""A process that dies, hangs or fails: the others end in time, say why, and the run goes on."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from erg.cli import main
from erg.train.checkpoint import load_checkpoint
from erg.train.launch import MARKER
from tests.faults.forks import Parent

PATIENCE = 10
SMALL = ["--encoder", "conv", "--image-size", "16", "--batch", "24", "--no-report"]


def child(how: str, out: Path, second: int) -> int:
    """What each of two processes does; the second meets with an accident in the fourth step.

    "asked": the second is dead when the first is asked to stop, which still counts on it then.
    "second asked": it alone is asked to stop, and the first stops with it.
    """
    import torch

    from erg.train.checkpoint import Diverged
    from erg.train.loop import Loop
    from erg.train.run import Run

    torch.set_num_threads(1)
    step, done = Loop.step, []
    build = Run.build

    def accident(*given):
        done.append(None)
        if len(done) == 4 and os.environ["RANK"] == "1":
            (out.parent / "since").write_text(str(time.time()))
            if how == "fails":
                raise Diverged("the second process saw a number that is not finite.")
            numbers = {"hangs": signal.SIGSTOP, "second asked": signal.SIGTERM}
            os.kill(os.getpid(), numbers.get(how, signal.SIGKILL))
        if len(done) == 4 and how == "asked":
            os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)
            os.kill(os.getpid(), signal.SIGTERM)
            (out.parent / "asked").touch()
        return step(*given)

    Loop.step = accident
    Run.build = lambda self, *given, **named: build(often(self), *given, **named)
    return main(["pretrain", "synthetic:120", "--steps", "6", "--out", str(out), *SMALL])


def test_a_signal_to_the_second_alone_stops_both(tmp_path: Path, parent: Parent) -> None:
    first = parent.fork("pair", how="second asked", folder=str(tmp_path), port=free_port()).wait()
    assert (first, (tmp_path / "second").read_text()) == (0, "0")
    assert (tmp_path / "code").read_text() == "75"
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert "stopped after step 4, saved and resumable" in said[0]
    assert "erg:" not in said[1]
    saved = sorted(file.name for file in (tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    assert saved[-1] == "step_000000004.safetensors"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def often(run):
    """The same run, which saves after every step."""
    object.__setattr__(run, "checkpoint_minutes", 0.0)
    return run


def pair(how: str, folder: str, port: int) -> int:
    """Be two processes. How the first ended; what became of the second stands in the folder."""
    second = os.fork()
    rank = 0 if second else 1
    os.environ |= {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "ERG_TIMEOUT": str(PATIENCE), MARKER: str(Path(folder) / "code"),
        "RANK": str(rank), "LOCAL_RANK": str(rank),
    }  # fmt: skip
    os.dup2(os.open(Path(folder) / f"said-{rank}", os.O_WRONLY | os.O_CREAT), 2)
    code = child(how, Path(folder) / "run", second)
    if rank == 1:
        sys.stderr.flush()
        os._exit(code)
    (Path(folder) / "ended").write_text(str(time.time()))
    if how == "hangs":
        os.kill(second, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
    (Path(folder) / "second").write_text(str(ended))
    return code


@pytest.mark.parametrize("how", ["dies", "asked", "hangs", "fails"])
def test_the_others_end_in_time_and_the_run_goes_on(
    how: str, tmp_path: Path, parent: Parent, capsys
) -> None:
    first = parent.fork("pair", how=how, folder=str(tmp_path), port=free_port()).wait()
    told = {name: (tmp_path / name).read_text() for name in ("said-0", "said-1", "second")}
    said, others, second = told["said-0"], told["said-1"], int(told["second"])
    since, ended = (float((tmp_path / name).read_text()) for name in ("since", "ended"))
    assert ended - since < PATIENCE + 10
    assert first == 1, said[-3000:]
    if how == "fails":
        assert second == 4
        assert "a number that is not finite" in others
        assert "erg:" not in said, "the error that is shown is that of the one that failed"
    else:
        assert second == -signal.SIGKILL
        assert "erg: another process of this run has died or does not answer" in said
        assert "should not happen" not in said
        assert "saved and resumable" not in said
        assert (tmp_path / "asked").exists() == (how == "asked")
    run = tmp_path / "run"
    saved = sorted(file.name for file in (run / "checkpoints").glob("*.safetensors"))
    assert saved[-1] == "step_000000003.safetensors"
    assert main(["pretrain", "--resume", str(run), "--no-report"]) == 0
    from erg.train.folder import RunFolder
    from erg.train.run import Run

    method = Run.from_json(RunFolder(run).read_run()).build()
    restored = load_checkpoint(run / "checkpoints", method, None)
    assert restored is not None
    assert (restored.step, restored.skipped) == (6, ())
    capsys.readouterr()
