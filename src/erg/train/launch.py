"""Several processes on this machine, started through torch.distributed.run."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

MARKER = "ERG_EXIT_CODE_FILE"
"""Environment variable: where a worker writes the exit code of the command."""


def in_group() -> bool:
    """Whether this process was started by torchrun, SLURM or `relaunch`."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "WORLD_SIZE" in os.environ


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
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "code"
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, MARKER: str(marker)}
        group = subprocess.Popen(command, env=environment)
        forwarded = [
            (number, signal.signal(number, lambda n, _: group.send_signal(n)))
            for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))
        ]
        # Ctrl-C reaches every process of the terminal by itself: here it is only waited out.
        forwarded.append((signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN)))
        try:
            code = group.wait()
        finally:
            for number, handler in forwarded:
                signal.signal(number, handler)
        return int(marker.read_text()) if marker.exists() else code


def leave(code: int) -> int:
    """What a worker should exit with: it tells the parent its code and leaves quietly.

    A launcher that sees a worker fail ends the others, which may still be saving.
    """
    marker = os.environ.get(MARKER)
    if marker is None or code == 0:
        return code
    if leads() or code not in (75, 130):
        Path(marker).write_text(str(code))
    return 0 if code in (75, 130) else code
