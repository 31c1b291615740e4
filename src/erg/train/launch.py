"""Several processes on this machine, started through torch.distributed.run."""

import os
import subprocess
import sys
from collections.abc import Sequence


def in_group() -> bool:
    """Whether this process was started by torchrun, SLURM or `relaunch`."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "WORLD_SIZE" in os.environ


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
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    return subprocess.run(command, env=environment, check=False).returncode
