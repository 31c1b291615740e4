"""A process that dies, hangs or fails: the others end in time, say why, and the run goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from erg.cli import main
from erg.train.checkpoint import load_checkpoint
from erg.train.launch import MARKER

PATIENCE = 10
ROOT = Path(__file__).parents[2]
SMALL = ["--encoder", "conv", "--image-size", "16", "--batch", "24", "--no-report"]


def child(how: str, out: Path) -> int:
    """What each of two processes does; the second meets with an accident in the fourth step."""
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
            os.kill(os.getpid(), signal.SIGKILL if how == "dies" else signal.SIGSTOP)
        return step(*given)

    Loop.step = accident
    Run.build = lambda self, *given: build(often(self), *given)
    return main(["pretrain", "synthetic:120", "--steps", "6", "--out", str(out), *SMALL])


def often(run):
    """The same run, which saves after every step."""
    object.__setattr__(run, "checkpoint_minutes", 0.0)
    return run


def pair(how: str, tmp_path: Path) -> tuple[list[subprocess.Popen[str]], float]:
    """Two processes, the first of them at its end, and how long after the accident that was."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ERG_TIMEOUT": str(PATIENCE),
        MARKER: str(tmp_path / "code"),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__)), how, str(tmp_path / "run")],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        processes[0].wait(timeout=240)
        return processes, time.time() - float((tmp_path / "since").read_text())
    except BaseException:
        for process in processes:
            process.kill()
        raise


@pytest.mark.parametrize("how", ["dies", "hangs", "fails"])
def test_the_others_end_in_time_and_the_run_goes_on(how: str, tmp_path: Path, capsys) -> None:
    (first, second), seconds = pair(how, tmp_path)
    if how == "hangs":
        second.kill()
    said, others = first.communicate()[1], second.communicate()[1]
    assert seconds < PATIENCE + 10
    assert first.returncode == 1, said[-3000:]
    if how == "fails":
        assert second.returncode == 4
        assert "a number that is not finite" in others
        assert "erg:" not in said, "the error that is shown is that of the one that failed"
    else:
        assert second.returncode == -signal.SIGKILL
        assert "erg: another process of this run has died or does not answer" in said
        assert "should not happen" not in said
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


if __name__ == "__main__":
    sys.exit(child(sys.argv[1], Path(sys.argv[2])))
