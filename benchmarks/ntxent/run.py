"""NT-Xent of large batches: memory, time and exactness, beside the dense form and lightly's.

    python benchmarks/ntxent/run.py [--peer-python PYTHON] [--repetitions 5]

Forward and backward pass in float32 for batches of pairs of embeddings with 128 features. Every
repetition is a process of its own (measure.py). What does not fit into nine tenths of the free
memory is noted as too large. PYTHON is one that has lightly; without it lightly is left out. What
is in results.json already is not measured again, unless --again says so.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from llvmlite import binding

from erg.durable import write_atomically

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"

CLAIMED = 16_384
BATCHES = (2_048, 4_096, 8_192, CLAIMED)
FORMS = ("blocked", "dense", "lightly", "exact")


def measure(form: str, batch: int, options: argparse.Namespace, repetition: int) -> dict[str, Any]:
    """One process."""
    python = options.peer_python if form == "lightly" else sys.executable
    command = [
        python, str(HERE / "measure.py"), form, "--batch", str(batch), "--steps",
        str(options.steps), "--seed", str(repetition),
    ]  # fmt: skip
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    machine = {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()}
    return {**json.loads(printed.splitlines()[-1]), "machine": machine}


def run() -> None:
    """Measure what is missing, write after each process, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed in each repetition")
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.again else {}
    for repetition in range(options.repetitions):
        for batch in options.batches:
            for form in options.forms:
                key = f"{form}; batch {batch}; repetition {repetition}"
                if key in done or (form == "lightly" and options.peer_python is None):
                    continue
                done[key] = measure(form, batch, options, repetition)
                write_atomically(RESULTS, json.dumps(done, indent=1).encode())
                print(key, {k: v for k, v in done[key].items() if k != "versions"}, flush=True)
    table(done)


Cell = tuple[str, str, int]


def cells(done: dict[str, Any]) -> dict[Cell, list[float]]:
    """All repetitions of (form, what is measured, pairs)."""
    found: dict[Cell, list[float]] = {}
    for key, value in done.items():
        form, batch, _ = key.split("; ")
        for what in ("median", "grown_mb", "error"):
            if what in value:
                found.setdefault((form, what, int(batch.split()[1])), []).append(value[what])
    return found


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured (lowest to highest of the repetitions)."""
    measured = cells(done)
    found: list[tuple[str, str, str]] = []
    for size in sorted({size for _, _, size in measured}):
        name = f"NT-Xent of {size:,} pairs"
        ours, plain = measured["blocked", "median", size], measured.get(("dense", "median", size))
        if plain:
            ratios = [a / b for a, b in zip(ours, plain, strict=False)]
            middle = statistics.median(ours) / statistics.median(plain)
            spread = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, n = {len(ratios)})"
            found.append((f"{name}: time / dense form", "<= 1.2", spread))
        if size == CLAIMED:
            grown = measured["blocked", "grown_mb", size]
            ends = f"{min(grown):.0f} to {max(grown):.0f}, n = {len(grown)}"
            spread = f"{statistics.median(grown):.0f} MB ({ends})"
            found.append((f"{name}: growth of memory", "<= 300 MB", spread))
            errors = measured.get(("exact", "error", size))
            if errors:
                found.append((f"{name}: error of gradients", "<= 1e-5", f"{max(errors):.1e}"))
    return found


def table(done: dict[str, Any]) -> None:
    """Medians over repetitions for every batch, and what is claimed."""
    middle = {cell: statistics.median(values) for cell, values in cells(done).items()}
    columns = [(form, what) for form in FORMS[:3] for what in ("median", "grown_mb")]
    heads = [f"{form}, {'s' if what == 'median' else 'MB'}" for form, what in columns]
    print(f"| pairs | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    for size in sorted({size for _, _, size in middle}):
        row = [f"{middle[*c, size]:.4g}" if (*c, size) in middle else "-" for c in columns]
        print(f"| {size:,} | {' | '.join(row)} |")
    print("\n| | bar | measured |\n|---|---|---|")
    for row in claims(done):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    run()
