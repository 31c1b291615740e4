"""Weak scaling: two processes on two cores against one process with one thread.

python benchmarks/weak_scaling/run.py [--repetitions 7] [--steps 30]

Each process has one thread and the same number of images a step, so that perfect scaling doubles
the images per second. The two ways take turns; every repetition is kept in results.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from erg.train.run import environment

RESULTS = Path(__file__).parent / "results.json"
BATCH = 128  # of one process
WARM = 5


def child(out: Path, steps: int) -> None:
    """What each process does: steps of a run of all of them, timed after the first few."""
    import numpy as np
    import torch

    from erg import distributed
    from erg.data.synthetic import world
    from erg.train.fit import InMemory
    from erg.train.loop import Data, Loop
    from erg.train.processes import leave_group
    from erg.train.run import Run

    torch.set_num_threads(1)
    images = world(2000, size=64).images
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    told = Run(
        method="SimCLR", encoder="resnet18", image_size=32, batch=BATCH * processes, steps=10_000
    )
    data = Data(InMemory(list(images)), np.arange(1900), np.arange(1900, 2000))
    loop = Loop(told, data, device=torch.device("cpu"), threads=0)
    for step in range(WARM):
        loop.step(step, loop.loader.batches(step))
    distributed.agree(False)  # all are here
    start = time.perf_counter()
    for step in range(WARM, WARM + steps):
        loop.step(step, loop.loader.batches(step))
    distributed.agree(False)
    seconds = time.perf_counter() - start
    if distributed.rank() == 0:
        out.write_text(json.dumps(told.batch * steps / seconds))
    loop.close()
    leave_group()


def measure(processes: int, steps: int) -> float:
    """Images per second of so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speed"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        launcher = launcher if processes > 1 else []
        told = ["--child", str(out), "--steps", str(steps)]
        one = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, *launcher, __file__, *told], check=True, env={**os.environ, **one}
        )
        return float(json.loads(out.read_text()))


def run() -> None:
    """Measure in turn and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.steps)
        return
    found: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(options.repetitions):
        for processes, speeds in found.items():
            speeds.append(round(measure(int(processes), options.steps), 2))
    efficiencies = [two / (2 * one) for one, two in zip(found["1"], found["2"], strict=True)]
    result = {
        "images_per_second": found,
        "efficiency": round(statistics.median(efficiencies), 3),
        "efficiencies": [round(value, 3) for value in efficiencies],
        "batch_of_a_process": BATCH,
        "environment": environment(),
    }
    RESULTS.write_text(json.dumps(result, indent=1))
    print({name: result[name] for name in ("efficiency", "images_per_second")})


if __name__ == "__main__":
    run()
