"""SimCLR, BYOL, VICReg and DINO beside lightly: do both learn as much, and how long do they take?

    python benchmarks/beside_lightly/run.py DATA --peer-python PYTHON [--seeds 0 1 2]

Two epochs of the first 10,000 training images of CIFAR-10 with all that same.py says: the same
ResNet-10, batch, augmentation, heads, optimiser and schedules, bf16 on both sides. Then 20 nearest
neighbours on the 10,000 test images, with the same function for the vectors of both sides. Seconds
are those of training, from the first batch to the last step; nothing is decoded in them.

Every row is one process of each side, in turn. PYTHON is one that has lightly and pyarrow. What is
in results.json already is not measured again. A process that fails is told, the others go on; two
networks that are not of one size end the script.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import same
from llvmlite import binding

import erg
from erg.durable import write_atomically
from erg.evaluate.knn import knn_accuracy

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
SIDES = {"erg": "ours.py", "lightly": "peer.py"}
BAR = -1.0
"""Points of 20-NN that erg may lie below lightly, beside two standard errors."""


def classes(file: Path, count: int) -> np.ndarray:
    """Of the first images of a file, as text."""
    source = erg.open_source(str(file), label="label")
    return np.array([source.label(i) for i in range(min(count, len(source)))])


def measure(side: str, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One process of a side, and what its vectors are worth."""
    python = options.peer_python if side == "lightly" else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.npz"
        command = [
            python, str(HERE / SIDES[side]), str(options.data), "--method", method, "--vectors",
            str(file), "--images", str(options.images), "--tested", str(options.tested),
            "--epochs", str(options.epochs), "--seed", str(seed), "--threads",
            str(options.threads),
        ]  # fmt: skip
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        vectors = dict(np.load(file))
    found: dict[str, Any] = {**json.loads(printed.splitlines()[-1]), "seed": seed}
    labels = classes(options.data / same.TRAIN, options.images)
    wanted = classes(options.data / same.TEST, options.tested)
    for when in ("before", "after"):
        if f"train_{when}" in vectors:
            bank, asked = vectors[f"train_{when}"], vectors[f"test_{when}"]
            right = knn_accuracy(bank, labels, asked, wanted, k=20, temperature=0.07)
            found[f"knn20_{when}"] = round(100 * float(right.mean()), 2)
    found["images"], found["tested"] = len(labels), len(wanted)
    found["machine"] = {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()}
    return found


def run() -> None:
    """Measure what is missing, write after each process, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=same.METHODS, choices=same.METHODS)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--tested", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="for trials: elsewhere")
    options = parser.parse_args()
    same.check(options.data)
    usual = (options.images, options.tested, options.epochs) == (10_000, 10_000, 2)
    if not usual and options.results == RESULTS:
        parser.error("other numbers of images and epochs are for trials: say where with --results")
    done = json.loads(options.results.read_text()) if options.results.exists() else {}
    failed: list[str] = []
    for seed in options.seeds:
        for method in options.methods:
            for side in SIDES:
                key = f"{method}; seed {seed}; {side}"
                if key in done:
                    continue
                try:
                    done[key] = measure(side, method, seed, options)
                except subprocess.CalledProcessError as error:
                    print(f"{key}: {error}", file=sys.stderr, flush=True)
                    failed.append(key)
                    continue
                write_atomically(options.results, json.dumps(done, indent=1).encode())
                print(key, done[key]["knn20_after"], done[key]["seconds"], flush=True)
            check_alike(done, method)
    table(done)
    if failed:
        sys.exit(f"{len(failed)} rows failed: {', '.join(failed)}. What was printed says why.")


def pairs(done: dict[str, Any], method: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of erg and lightly of the seeds that both have."""
    found = []
    for key, row in done.items():
        other = key.replace("; erg", "; lightly")
        if key.startswith(f"{method};") and key != other and other in done:
            found.append((row, done[other]))
    return found


def check_alike(done: dict[str, Any], method: str) -> None:
    """Refuse rows whose networks or numbers of steps differ between the two sides, in words."""
    for ours, theirs in pairs(done, method):
        for what in ("parameters", "steps"):
            if ours[what] != theirs[what]:
                raise SystemExit(
                    f"{method}, seed {ours['seed']}: {ours[what]:,} {what} of erg beside "
                    f"{theirs[what]:,} of lightly, so that they do not compare. Repair ours.py or "
                    "peer.py, and take the rows out of the results."
                )


def difference(both: list[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[float, float]:
    """Mean of erg's 20-NN minus lightly's over seeds, and its standard error [points].

    The error is that of two independent means; infinite with a single seed.
    """
    ours, theirs = ([row["knn20_after"] for row in side] for side in zip(*both, strict=True))
    mean = statistics.mean(ours) - statistics.mean(theirs)
    if len(both) == 1:
        return mean, math.inf
    return mean, math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / len(both))


def ratios(both: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[float]:
    """Seconds of lightly over seconds of erg, of every seed."""
    return [theirs["seconds"] / ours["seconds"] for ours, theirs in both]


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed of each method, the bar, and what was measured."""
    found = []
    for method in same.METHODS:
        both = pairs(done, method)
        if len(both) < 2:
            continue
        mean, error = difference(both)
        speed = ratios(both)
        measured = (
            f"{mean:+.1f} (standard error {error:.1f}, {len(both)} seeds); "
            f"{statistics.median(speed):.2f} times as fast ({min(speed):.2f} to {max(speed):.2f})"
        )
        claim = f"{method}, two epochs of 10,000 images: 20-NN beside lightly [points]"
        found.append((claim, f">= {BAR:g} - 2 standard errors", measured))
    return found


def table(done: dict[str, Any]) -> None:
    """Means over seeds, and whether the bar is reached."""
    print("| | before | erg | lightly | difference | standard error | bar | erg is faster |")
    print("|---" * 8 + "|")
    for method in same.METHODS:
        both = pairs(done, method)
        if not both:
            continue
        mean, error = difference(both)
        before, ours = (statistics.mean(o[k] for o, _ in both) for k in KINDS)
        theirs = statistics.mean(row[KINDS[1]] for _, row in both)
        held = "held" if mean >= BAR else "within 2 standard errors"
        held = held if mean >= BAR - 2 * error else "missed"
        held = held if len(both) > 1 else "one seed"
        print(
            f"| {method} | {before:.1f} | {ours:.1f} | {theirs:.1f} | {mean:+.1f} | {error:.1f} "
            f"| {held} | {statistics.median(ratios(both)):.2f} times |"
        )


KINDS = ("knn20_before", "knn20_after")

if __name__ == "__main__":
    run()
