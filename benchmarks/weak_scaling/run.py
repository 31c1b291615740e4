"""Weak scaling: two processes on two cores against one process with one thread.

python benchmarks/weak_scaling/run.py [--repetitions 7] [--steps 30]

Each process has one thread and the same number of images a step, so that perfect scaling doubles
the images per second. The two ways take turns. What is in results.json already is not measured
again, unless --again says so.
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
from typing import Any

from erg.durable import write_atomically
from erg.train.run import environment

RESULTS = Path(__file__).parent / "results.json"
BATCH = 128  # of one process
WARM = 5


def child(out: Path, steps: int) -> None:
    """What each process does: steps of a run of all of them, timed after the first few."""
    import numpy as np
    import torch

    from erg import distributed
    from erg.data.cache import Cache
    from erg.data.scenes import world
    from erg.train.loop import Data, Loop
    from erg.train.processes import leave_group
    from erg.train.run import Run

    torch.set_num_threads(1)
    images = world(2000, size=64).images
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    told = Run(
        method="SimCLR", encoder="resnet18", image_size=32, batch=BATCH * processes, steps=10_000
    )
    data = Data(Cache.of(list(images)), np.arange(1900), np.arange(1900, 2000))
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
        found = {
            "images_per_second": round(told.batch * steps / seconds, 2),
            "batch_of_a_process": BATCH, "environment": environment(),
        }  # fmt: skip
        out.write_text(json.dumps(found))
    loop.close()
    leave_group()


def measure(processes: int, steps: int) -> dict[str, Any]:
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
        return json.loads(out.read_text())


def run() -> None:
    """Measure what is missing, in turn, write after each process, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.steps)
        return
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.again else {}
    for repetition in range(options.repetitions):
        for processes in (1, 2):
            key = f"{processes} processes; {options.steps} steps; repetition {repetition}"
            if key not in done:
                done[key] = measure(processes, options.steps)
                write_atomically(RESULTS, json.dumps(done, indent=1).encode())
                print(key, done[key]["images_per_second"], flush=True)
    table(done)


def efficiencies(done: dict[str, Any]) -> dict[str, list[float]]:
    """Images per second of two processes over twice those of one, by number of steps: one for each
    repetition that has both."""
    found: dict[str, list[float]] = {}
    for key, two in done.items():
        processes, steps, repetition = key.split("; ")
        one = done.get(f"1 processes; {steps}; {repetition}")
        if processes == "2 processes" and one is not None:
            share = two["images_per_second"] / (2 * one["images_per_second"])
            found.setdefault(steps, []).append(share)
    return found


def table(done: dict[str, Any]) -> None:
    """Medians over repetitions, lowest and highest."""
    print("| | efficiency | lowest | highest | repetitions |\n|---|---|---|---|---|")
    for steps, shares in efficiencies(done).items():
        cells = [f"{f(shares):.3f}" for f in (statistics.median, min, max)]
        print(f"| {steps} | {' | '.join(cells)} | {len(shares)} |")


if __name__ == "__main__":
    run()
