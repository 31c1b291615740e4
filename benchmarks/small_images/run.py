"""Which encoder and recipe learn most per minute from small images on a CPU?

    python benchmarks/small_images/run.py DATA [--minutes 5] [--trials NAME ...] [--at-once 2]

Every trial is SimCLR on CIFAR-10 for some minutes of wall clock with the default choices, but for
batch 512, temperature 0.2 and what the trial's name says; `choice` is batch 128, temperature 0.1.
Measured: k-NN (k = 200, T = 0.1) on the test set, the protocol of the claim. Each is a process of
its own; several at once share the cores evenly, so that trials with as many cores compare. Trials
that are in results.json already are not repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np

import erg
from erg.durable import write_atomically
from erg.evaluate.knn import nearest, vote
from erg.recipes.default import Seen, default
from erg.schedule import Step
from erg.train.run import environment
from erg.views.plan import SIMCLR_SMALL, two_views

RESULTS = Path(__file__).parent / "results.json"

BASE: dict[str, Any] = {"batch": 512, "method_args": {"temperature": 0.2}}
CONV = {"width": 64, "stages": 4}
RESIDUAL = {"encoder_args": CONV | {"blocks": [1, 1]}}
EARLY = {"resolution": Step(0.75, 1.0)}
CHOICE: dict[str, Any] = {"batch": 128, "method_args": {"temperature": 0.1}}


def seen(**otherwise: Any) -> dict[str, Any]:
    """Two views, otherwise than by default."""
    return {"plan": two_views(replace(SIMCLR_SMALL, **otherwise))}


# What differs from BASE: fields of Run, arguments of encoder and method, of the optimiser. First
# one thing at a time, then from what was best. Encoders of timm have views of 64 pixels.
TRIALS: dict[str, dict[str, Any]] = {
    "batch 512": {},
    "batch 512, residual 1 1": RESIDUAL,
    "batch 256": {"batch": 256},
    "batch 128": {"batch": 128},
    "batch 128, residual 1 1": {"batch": 128, **RESIDUAL},
    "choice": CHOICE,
    "choice, crop 0.1": CHOICE | seen(crop=(0.1, 1.0)),
    "choice, crop 0.35": CHOICE | seen(crop=(0.35, 1.0)),
    "choice, views of 24 px": CHOICE | seen(size=0.75),
    "choice, lr 2e-3": CHOICE | {"lr": 2e-3},
    "choice, batch 64": CHOICE | {"batch": 64},
    "choice, residual 1 1": CHOICE | RESIDUAL,
    "choice, conv 96 x 4": CHOICE | {"encoder_args": {"width": 96, "stages": 4}},
    "choice, projector 3 layers": CHOICE | {"method_args": {"temperature": 0.1, "depth": 3}},
    "choice, resnet10t at 64 px": CHOICE | {"encoder": "resnet10t"},
    "choice, resnet18 at 64 px": CHOICE | {"encoder": "resnet18"},
    "choice, 24 px at first": CHOICE | EARLY,
    "choice, residual 1 1, 24 px at first": CHOICE | RESIDUAL | EARLY,
    "choice, SGD 0.1": CHOICE | {"optimiser": {"name": "sgd", "lr": 0.1}},
}


def measure(chosen: dict[str, Any], data: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Train, embed both sets, and count what the neighbours get right."""
    given = BASE | {name: value for name, value in chosen.items() if name != "optimiser"}
    run, _ = default(
        Seen(50_000, 32, False), data=str(data / "cifar10_train.parquet"), seed=seed, **given
    )
    run = replace(run, optimiser=replace(run.optimiser, **chosen.get("optimiser", {})))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fitted = erg.fit(run, out=Path(folder) / "run", minutes=minutes)
        seconds = time.monotonic() - start
    sets = [
        erg.embed(fitted, str(data / f"cifar10_{part}.parquet"), label="label")
        for part in ("train", "test")
    ]
    labels = [np.asarray(each.labels) for each in sets]
    found = nearest(sets[0].vectors, sets[1].vectors, k=200)
    right = vote(found, labels[0], temperature=0.1) == labels[1]
    return {
        "knn200": round(float(right.mean()), 4),
        "steps": fitted.run.steps,
        "batch": fitted.run.batch,
        "training_seconds": round(seconds, 1),
        "environment": environment(),
    }


def in_a_process(name: str, cores: list[int], options: argparse.Namespace, seed: int) -> Any:
    """`measure` on some cores."""
    command = [
        sys.executable, __file__, str(options.data), "--one", name, "--minutes",
        str(options.minutes), "--seeds", str(seed),
    ]  # fmt: skip
    printed = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(len(cores))},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    ).stdout  # fmt: skip
    return json.loads(printed.splitlines()[-1])


def run() -> None:
    """Measure what is missing, write after each trial, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--trials", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--at-once", type=int, default=1, help="trials, which share the cores")
    parser.add_argument("--one", choices=list(TRIALS), help="measure it here and print JSON")
    options = parser.parse_args()
    if options.one is not None:
        found = measure(TRIALS[options.one], options.data, options.minutes, options.seeds[0])
        print(json.dumps(found))
        return
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    mine = sorted(os.sched_getaffinity(0))
    each = len(mine) // options.at_once
    free: SimpleQueue[list[int]] = SimpleQueue()
    writing = Lock()
    for first in range(0, each * options.at_once, each):
        free.put(mine[first : first + each])

    def trial(name: str, seed: int) -> None:
        key = f"{name}; {options.minutes:g} minutes on {each} cores; seed {seed}"
        if key not in done:
            cores = free.get()
            try:
                found = in_a_process(name, cores, options, seed)
            finally:
                free.put(cores)
            with writing:
                done[key] = found
                write_atomically(RESULTS, json.dumps(done, indent=1).encode())
            print(key, found["knn200"], found["steps"], flush=True)

    with ThreadPoolExecutor(options.at_once) as pool:
        wanted = [(name, seed) for seed in options.seeds for name in options.trials]
        list(pool.map(trial, *zip(*wanted, strict=True)))
    table(done)


LONG = "; 60 minutes on 2 cores; seed "


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what each recipe reached, the best first."""
    reached: dict[str, list[float]] = {}
    for key, value in done.items():
        name, found, _ = key.partition(LONG)
        if found:
            reached.setdefault(name, []).append(100 * value["knn200"])
    rows: list[tuple[str, str, str]] = []
    for name, seeds in sorted(reached.items(), key=lambda item: -statistics.median(item[1])):
        middle, told = statistics.median(seeds), name.replace("choice", "the default choices")
        spread = f"{middle:.1f} ({min(seeds):.1f} to {max(seeds):.1f}, n = {len(seeds)})"
        rows.append((f"200-NN on CIFAR-10 after 60 minutes: {told}", ">= 64 %", spread))
    return rows


def table(done: dict[str, Any]) -> None:
    """Trials by accuracy, the mean over seeds."""
    found: dict[str, list[float]] = {}
    for key, value in done.items():
        found.setdefault(key.rsplit(";", 1)[0], []).append(100 * value["knn200"])
    for name, values in sorted(found.items(), key=lambda item: -statistics.mean(item[1])):
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        print(f"{statistics.mean(values):6.1f}{spread}  {name}")


if __name__ == "__main__":
    run()
