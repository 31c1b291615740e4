"""Seconds until CIFAR-10 is known to 40 % and 44 % without labels, beside lightly.

    python benchmarks/time_to_accuracy/run.py DATA --peer-python PYTHON [--seeds 0 1 2 3 4]

Training starts from nothing, with default choices but for what a trial's name says. At some points
of it the clock stops while every image is embedded and the test set is classified by its 200
nearest neighbours in the training set (T = 0.1). Seconds count from the first step. Trainings of
ResNet-18 end where they are good enough, with the schedule of all their images.

lightly's seconds are the images its recipe needs, divided by its images per second here, with bf16
autocast added and in its own fp32, which training_step/peer.py measures before every seed. How many
images it needs is known (KNOWN) with bf16, and taken to be as many in fp32; --peer-curve measures
that again. PYTHON is one that has lightly and pyarrow. What is in results.json already is not
measured again, unless --again says so.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from llvmlite import binding

import erg
from erg.apply.embed import Opened, open_for, vectors_of
from erg.durable import write_atomically
from erg.evaluate.knn import nearest, vote
from erg.method import Method
from erg.recipes.default import Seen, default
from erg.train.health import Watched
from erg.train.run import environment

HERE = Path(__file__).parent
STEP = HERE.parent / "training_step"
RESULTS = HERE / "results.json"

KNOWN = [[50_176, 0.400], [100_352, 0.442]]
"""lightly, ResNet-18, batch 256: images trained on, and accuracy then."""

WANTED = (0.40, 0.44)
PEERS = {"lightly, ResNet-18, bf16": "bf16", "lightly, ResNet-18, fp32": "fp32"}
RESNET: dict[str, Any] = {
    "encoder": "resnet18", "encoder_args": {"small_stem": True}, "image_size": 32, "batch": 128,
}  # fmt: skip

# Images after which to look, the last of them all there are, the accuracy that is enough, and what
# differs from the default.
TRIALS: dict[str, tuple[Sequence[int], float, dict[str, Any]]] = {
    "default, 50k images": (range(14_336, 50_177, 7_168), 1.0, {}),
    "default, 100k images": (range(28_672, 100_353, 14_336), 1.0, {}),
    "ResNet-18, 25k images": (range(12_544, 25_089, 6_272), 0.40, RESNET),
    "ResNet-18, 50k images": (range(25_088, 50_177, 12_544), 0.44, RESNET),
}
PEER_POINTS = range(12_544, 125_441, 12_544)


class Enough(Exception):
    """Nothing that the rest of a training could show is asked for."""


class Curve:
    """An observer that writes down accuracy against seconds of training; its own do not count.

    Args:
        points: steps after which to look.
        enough: accuracy at which training ends.
        sets: images with labels: of the training set, of the test set.
    """

    def __init__(self, points: Sequence[int], enough: float, sets: Sequence[Opened]) -> None:
        self.points, self.enough, self.sets = points, enough, sets
        self.found: list[dict[str, float]] = []
        self.looking = 0.0

    def start(self, watched: Watched) -> None:
        self.watched = watched
        self.began = time.perf_counter()

    def due(self, step: int) -> bool:
        return step in self.points

    def look(self, method: Method, step: int) -> dict[str, Any]:
        now = time.perf_counter()
        accuracy = self.accuracy(method)
        seconds = round(now - self.began - self.looking, 2)
        images = step * self.watched.loader.batch
        self.found.append({"seconds": seconds, "images": images, "accuracy": accuracy})
        if accuracy >= self.enough:
            raise Enough
        self.looking += time.perf_counter() - now
        return {"kind": "accuracy", "knn200": accuracy}

    def accuracy(self, method: Method) -> float:
        """Share of the test set that its neighbours in the training set get right."""
        (bank, labels), (queries, right) = (
            (
                vectors_of(
                    method.encode, method, method.encoder, each, each.rows,
                    autocast=self.watched.autocast,
                ),
                _labels(each),
            )
            for each in self.sets
        )  # fmt: skip
        guess = vote(nearest(bank, queries, k=200), labels, temperature=0.1)
        return round(float((guess == right).mean()), 4)


def _labels(opened: Opened) -> Any:
    assert opened.labels is not None
    return opened.labels[opened.rows]


def measure(trial: str, data: Path, sets: Sequence[Opened], seed: int) -> dict[str, Any]:
    """Train once, looking at some points."""
    points, enough, given = TRIALS[trial]
    file = str(data / "cifar10_train.parquet")
    run, _ = default(Seen(50_000, 32, False), data=file, seed=seed, **given)
    run = replace(run, steps=points[-1] // run.batch)
    curve = Curve([images // run.batch for images in points], enough, sets)
    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        erg.fit(run, out=Path(folder) / "run", observers=(curve,))
    return {
        "batch": run.batch,
        "seed": seed,
        "steps": run.steps,
        "optimiser": run.to_json()["optimiser"],
        "curve": curve.found,
        "machine": {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()},
        "versions": environment(),
    }


def measure_peer(python: str, data: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """One process of training_step/peer.py."""
    command = [python, str(STEP / "peer.py"), str(data), *arguments]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    machine = {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()}
    return {**json.loads(printed.splitlines()[-1]), "machine": machine}


def run() -> None:
    """Measure what is missing, write after each training, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--peer-curve", action="store_true", help="measure lightly's curve too")
    parser.add_argument("--trials", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.again else {}

    def keep(key: str, found: dict[str, Any]) -> None:
        done[key] = found
        write_atomically(RESULTS, json.dumps(done, indent=1).encode())
        print(key, found.get("curve") or found["seconds"], flush=True)

    sized = erg.build_encoder("pixels", 32)
    files = [str(options.data / f"cifar10_{part}.parquet") for part in ("train", "test")]
    sets = [open_for(sized, file, label="label") for file in files]
    for seed in options.seeds:
        for peer, precision in PEERS.items():
            key = f"{peer}; seed {seed}"
            if key not in done:
                arguments = ["--precision", precision, "--seed", str(seed)]
                keep(key, measure_peer(options.peer_python, options.data, arguments))
        for trial in options.trials:
            key = f"{trial}; seed {seed}"
            if key not in done:
                keep(key, measure(trial, options.data, sets, seed))
    if options.peer_curve and "lightly's curve" not in done:
        arguments = ["--precision", "bf16", "--points", *map(str, PEER_POINTS)]
        keep("lightly's curve", measure_peer(options.peer_python, options.data, arguments))
    table(done)


def lightly_seconds(done: dict[str, Any], peer: str) -> dict[float, float]:
    """What lightly takes to each accuracy in one precision, at its images per second here; nothing
    if these are not known."""
    rates = [
        value["batch"] / statistics.median(value["seconds"])
        for key, value in done.items()
        if key.startswith(peer)
    ]
    if not rates:
        return {}
    known = done["lightly's curve"]["curve"] if "lightly's curve" in done else KNOWN
    return {wanted: _images(known, wanted) / statistics.median(rates) for wanted in WANTED}


def seconds(done: dict[str, Any]) -> dict[str, dict[float, list[float]]]:
    """Of every trial and accuracy, one a seed."""
    found: dict[str, dict[float, list[float]]] = {}
    for key, value in done.items():
        trial = key.rsplit(";", 1)[0]
        if trial in TRIALS:
            for wanted in WANTED:
                lasted = _seconds(value["curve"], wanted)
                found.setdefault(trial, {}).setdefault(wanted, []).append(lasted)
    return found


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured (lowest to highest of the seeds)."""
    found = seconds(done)
    rows: list[tuple[str, str, str]] = []
    ours = (("default", {"bf16": 10}), ("ResNet-18", {"bf16": 2.5}))
    for (first, bars), (peer, precision) in product(ours, PEERS.items()):
        theirs = lightly_seconds(done, peer)
        for wanted in theirs:
            # A schedule is chosen before training: the fastest of those that get there.
            tried = [each[wanted] for trial, each in found.items() if trial.startswith(first)]
            if tried:
                best = min(tried, key=statistics.median)
                times = [theirs[wanted] / each for each in best]
                measured = f"{theirs[wanted] / statistics.median(best):.1f}"
                spread = f"{measured} ({min(times):.1f} to {max(times):.1f}, n = {len(times)})"
                if math.isinf(statistics.median(best)):
                    spread = "not reached by the schedules measured so far"
                name = f"speed to {wanted:.0%} on CIFAR-10 / lightly's in {precision}"
                bar = f">= {bars[precision]:g}" if precision in bars else "-"
                rows.append((f"{name}: {first} encoder", bar, spread))
    return rows


def table(done: dict[str, Any]) -> None:
    """Median seconds to each accuracy, and what is claimed."""
    print(f"| | {' | '.join(f'to {w:.0%}, s' for w in WANTED)} |\n|---{'|---' * len(WANTED)}|")
    for peer in PEERS:
        if theirs := lightly_seconds(done, peer):
            print(f"| {peer} | {' | '.join(f'{theirs[w]:.0f}' for w in WANTED)} |")
    for trial, found in seconds(done).items():
        cells = [f"{statistics.median(found[wanted]):.1f}" for wanted in WANTED]
        print(f"| {trial} | {' | '.join(cells)} |")
    print("\n| | bar | measured |\n|---|---|---|")
    for row in claims(done):
        print(f"| {' | '.join(row)} |")


def _images(curve: Sequence[Sequence[float]], wanted: float) -> float:
    """How many images a curve takes to an accuracy; infinitely many if it never gets there."""
    return next((images for images, accuracy in curve if accuracy >= wanted), math.inf)


def _seconds(curve: Sequence[dict[str, float]], wanted: float) -> float:
    """Seconds to the first point that is at least so good."""
    return next((p["seconds"] for p in curve if p["accuracy"] >= wanted), math.inf)


if __name__ == "__main__":
    run()
