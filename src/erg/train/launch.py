"""Several processes on this machine, started through torch.distributed.run."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from erg.durable import write_atomically
from erg.train.preempt import INTERRUPTED, STOPPED, code_of, restore

MARKER = "ERG_EXIT_CODE_FILE"
"""Environment variable: where a worker writes the exit code of the command."""


def in_group() -> bool:
    """Whether this process was started by torchrun, SLURM or `relaunch`."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "WORLD_SIZE" in os.environ


def restarted() -> bool:
    """Whether torchrun has started this command again, since a process of it had died."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def first_to_fail() -> bool:
    """Whether no other process of this machine has failed before: its error is the one to show."""
    marker = os.environ.get(MARKER)
    if marker is None:
        return True
    try:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        Path(f"{marker}.failed-{attempt}").touch(exist_ok=False)
    except OSError:
        return False
    return True


def leads() -> bool:
    """Whether this process is the one that writes and talks: the only one, or the first."""
    return int(os.environ.get("RANK", "0")) == 0


def relaunch(arguments: Sequence[str], devices: int, nodes: int = 1) -> int:
    """Run the same `erg` command in several processes and return its exit code.

    torch.distributed.run is used rather than a launcher that ends every rank when one leaves.

    Args:
        arguments: of `erg`.
        devices: processes on this machine.
        nodes: machines; for more than one, start torchrun yourself on each.

    Raises:
        ValueError: several nodes, which only torchrun or SLURM can start.
    """
    if nodes > 1:
        raise ValueError(
            f"--nodes {nodes} cannot be started from one machine. On each node run: torchrun "
            f"--nnodes {nodes} --nproc-per-node {devices} --rdzv-endpoint HOST:PORT -m erg.cli "
            f"{' '.join(arguments)}"
        )
    threads = max(1, (os.cpu_count() or 1) // devices)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={devices}", "-m", "erg.cli", *arguments,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, Forwarding() as asked:
        marker = Path(folder) / "code"
        environment = {"OMP_NUM_THREADS": str(threads), **HANDLED, **os.environ}
        # In a session of its own, so that Ctrl-C reaches it through us, and once.
        group = subprocess.Popen(
            command, env={**environment, MARKER: str(marker)}, start_new_session=True
        )
        asked.start(group)
        code = group.wait()
        told = _told(marker)
        if told == STOPPED and code and asked.number is None:
            return code  # one has died, and the launcher asked the others to stop
        if told is not None:
            return told
        return code if asked.number is None else code_of(asked.number)


HANDLED = {"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}
"""By default SIGUSR1 would end torch.distributed.run alone and leave its workers behind."""


class Forwarding:
    """While active, the first request to stop is passed on to a group of processes.

    Others are dropped: a second signal would end the launcher before its workers have saved. It
    ends them itself where they take longer than half a minute. Outside the main thread, and for
    signals that are ignored (nohup), nothing is changed.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._group: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Forwarding":
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        restore(self._before)

    def start(self, group: "subprocess.Popen[bytes]") -> None:
        """From now on there is somebody to pass signals on to, also one that came before."""
        self._group = group
        if self.number is not None:
            self._send()

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            self._send()

    def _send(self) -> None:
        if self._group is not None:
            interrupted = self.number == signal.SIGINT
            self._group.send_signal(signal.SIGINT if interrupted else signal.SIGTERM)


def leave(code: int) -> int:
    """What a worker should exit with: it tells the parent its code and leaves quietly.

    A launcher that sees a worker fail ends the others, which may still be saving: of those that
    fail with it, or are asked to stop since it did, none takes the place of its code.
    """
    marker = os.environ.get(MARKER)
    if marker is None or code == 0:
        return code
    asked = code in (STOPPED, INTERRUPTED)
    if asked:
        first = _told(Path(marker)) in (None, 1, STOPPED) or code == INTERRUPTED
    else:
        first = code != 1 or _told(Path(marker)) is None
    if first and (leads() or not asked):
        with suppress(OSError):  # the parent is gone, and nobody listens
            write_atomically(Path(marker), str(code).encode())
    return 0 if asked else code


def _told(marker: Path) -> int | None:
    """The exit code that a worker has written, if any has."""
    try:
        return int(marker.read_text())
    except (OSError, ValueError):
        return None
