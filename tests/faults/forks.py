"""Processes to be killed, forked from one that has everything loaded: importing takes seconds.

`Parent` starts this file as a script, single-threaded, and asks it for one child at a time.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Child:
    """A forked process at work.

    Args:
        pid: to send signals to.
        parent: that waits for it.
    """

    def __init__(self, pid: int, parent: "Parent") -> None:
        self.pid, self.parent = pid, parent

    def kill(self, number: int) -> None:
        """Send a signal; until the next fork the number is kept for it, even dead."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """How it ended: an exit code, or minus a signal."""
        return int(self.parent.answer())


def scaled(count: int) -> int:
    """So many, or the share of them that ERG_SHARE says, for trying a long test."""
    return max(1, round(count * float(os.environ.get("ERG_SHARE", "1"))))


class Parent:
    """The process to fork from, as a context.

    Args:
        log: file for what the children print.
        temporary: folder for temporary files; None for the system's.
    """

    def __init__(self, log: Path, temporary: Path | None = None) -> None:
        self.log, self.temporary = log, temporary

    def __enter__(self) -> "Parent":
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        if self.temporary is not None:
            quiet["TMPDIR"] = str(self.temporary)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **quiet},
            )  # fmt: skip
        try:
            assert self.answer() == "ready"
        except BaseException:
            self.process.kill()
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def answer(self) -> str:
        """The next line it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()[-3000:]
        return line.strip()

    def fork(self, job: str, **told: Any) -> Child:
        """A child that does a job of this file."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"job": job, **told}) + "\n")
        self.process.stdin.flush()
        return Child(int(self.answer()), self)


def train_method(method: str, folder: str, threads: int) -> int:
    """A small run of a method with a checkpoint after every step, from the newest one on."""
    import torch

    from erg.train.folder import RunFolder
    from erg.train.health import Health
    from erg.train.loop import Loop
    from erg.train.training import train
    from tests.train.test_training import a_run, data

    run = a_run(method, checkpoint_minutes=0.0)
    kept = RunFolder(Path(folder))
    kept.lock()
    loop = Loop(run, data(method=method), device=torch.device("cpu"), threads=threads)
    train(loop, kept, observers=(Health(looks=2),), resume=True)
    loop.close()
    kept.unlock()
    return 0


def command(arguments: list[str], phase: str | None = None, mark: str | None = None) -> int:
    """A command of erg, which leaves a mark where a phase begins and waits until it is taken."""
    from erg.cli import main

    if phase is not None and mark is not None:
        wait_in(phase, Path(mark))
    return main(arguments)


def wait_in(phase: str, mark: Path) -> None:
    """Make one moment of a run as long as whoever sends it a signal needs."""
    from erg import durable
    from erg.data.loader import Loader
    from erg.train.health import Health
    from erg.train.loop import Loop

    waited: list[str] = []

    def longer(function: Callable[..., Any], now: Callable[..., bool]) -> Callable[..., Any]:
        def waiting(*given: Any, **named: Any) -> Any:
            if not waited and now(*given):
                waited.append(phase)
                mark.touch()
                until = time.monotonic() + 60
                while mark.exists() and time.monotonic() < until:
                    time.sleep(0.005)
            return function(*given, **named)

        return waiting

    if phase == "data":
        Loader.views = longer(Loader.views, lambda _, step, *__: step == 3)
    elif phase == "forward":
        Loop.step = longer(Loop.step, lambda _, step, __: step == 3)
    elif phase == "epoch":
        # Not the one before the first step.
        Loop.after_epoch = longer(Loop.after_epoch, lambda loop: bool(loop.optimiser.state))
    elif phase == "evaluation":
        Health.look = longer(Health.look, lambda _, __, step: step == 4)
    else:
        durable.settle = longer(durable.settle, lambda _, path: "000000004.safe" in path.name)


POINTS = {
    "checksum written": ("replace", 1, "before"),
    "checksum in place": ("replace", 1, "after"),
    "half written": ("write", 2, "half"),
    "written": ("fsync", 3, "before"),  # of the checksum, its folder, the file
    "flushed": ("replace", 2, "before"),
    "in place": ("replace", 2, "after"),
    "first of the old ones gone": ("unlink", 1, "after"),
}
"""Moments of saving: a call, its how-manieth, and when about it the process dies."""


def save_and_die(folder: str, steps: list[int], point: str) -> int:
    """Save a checkpoint for each step, and be killed at a point of saving the last."""
    import torch
    from torch import nn

    from erg.train.checkpoint import save_checkpoint

    module = nn.Linear(64, 64)
    for step in steps:
        if step == steps[-1]:
            die_at(*POINTS[point])
        with torch.no_grad():
            module.weight.fill_(float(step))
        save_checkpoint(Path(folder), step, module, None)
    return 0


def tidy_and_save(folder: str, step: int) -> int:
    """What the next start does: take the lock of the run folder, and save."""
    from torch import nn

    from erg.train.checkpoint import save_checkpoint
    from erg.train.folder import RunFolder

    run = RunFolder(Path(folder).parent)
    run.lock()
    save_checkpoint(Path(folder), step, nn.Linear(64, 64), None)
    run.unlock()
    return 0


def die_at(call: str, count: int, when: str) -> None:
    """Be killed about the so-manieth of these calls."""
    import signal
    from typing import BinaryIO

    from erg import durable
    from erg.train import checkpoint

    left = [count]

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*given, **named)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    if call == "write":

        def half(path: Path, content: bytes) -> None:
            left[0] -= 1
            with durable.whole_file(path) as stream:
                stream.write(content[: len(content) // 2] if left[0] == 0 else content)
                if left[0] == 0:
                    flush_and_die(stream)

        def flush_and_die(stream: BinaryIO) -> None:
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.write_atomically = half
    elif call == "unlink":
        drop = checkpoint._drop_others
        unlink = Path.unlink

        def dropping(*given: Any) -> None:
            Path.unlink = dying(unlink)  # only here: tidying up unlinks too
            drop(*given)

        checkpoint._drop_others = dropping
    else:
        setattr(os, call, dying(getattr(os, call)))


def lose_a_process(**told: Any) -> int:
    """Two processes of which one meets with an accident."""
    from tests.faults.test_lost_processes import pair

    return pair(**told)


JOBS: dict[str, Callable[..., int]] = {
    "train": train_method,
    "command": command,
    "save": save_and_die,
    "resave": tidy_and_save,
    "pair": lose_a_process,
}


def serve() -> None:
    """Fork a child for every line that comes in; tell its number, then how it ended."""
    import torch

    torch.set_num_threads(1)
    import erg.commands.pretrain  # what it imports, every child has
    import erg.commands.show
    import erg.recipes.default
    import erg.train.fit  # noqa: F401
    from tests.train.test_training import a_run, data

    warm_up(a_run("SimCLR"), data())
    talk = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what children print goes to the log
    talk.write("ready\n")
    unmourned: list[int] = []
    for line in sys.stdin:
        if unmourned:
            os.waitpid(unmourned.pop(), 0)
        told = json.loads(line)
        job = JOBS[told.pop("job")]
        pid = os.fork()
        if pid == 0:
            leave_as(job, told)
        talk.write(f"{pid}\n")
        # Not taken leave of before the next line comes: its number must not be another's meanwhile.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        exited = ended.si_code == os.CLD_EXITED
        talk.write(f"{ended.si_status if exited else -ended.si_status}\n")
        unmourned.append(pid)


def warm_up(run: Any, held: Any) -> None:
    """Compile the kernels once, in this thread: threads do not survive a fork."""
    from erg.train.loop import Loop

    loop = Loop(run, held, threads=0)
    loop.loader.views(0)
    loop.close()


def leave_as(job: Callable[..., int], told: dict[str, Any]) -> None:
    """Do a job and end this process, never to return to the parent's loop."""
    code = 1
    try:
        code = job(**told)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
