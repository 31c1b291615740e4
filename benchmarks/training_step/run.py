"""Images per second of SimCLR on CIFAR-10, beside lightly and beside the bare network.

    python benchmarks/training_step/run.py DATA --peer-python PYTHON [--repetitions 5]

From end to end: images, views, forward, backward, optimiser. The same ResNet-18 (3 x 3 stem) and
projector in batches of 256: erg with its default choices, lightly as documented (peer.py), lightly
with bf16 autocast added. Beside it the forward and backward pass of encoder and projector alone
(ours.py), and with erg's own default encoder the share of a step spent waiting for views. While it
trains erg has the C library keep the memory that a step frees (erg/allocator.py); what it does
without, and what that would do for lightly in bf16, is measured too, by settings from outside.

Every repetition is one process of each, in turn. PYTHON is one that has lightly and pyarrow. What
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

OURS, NETWORK = "erg, ResNet-18", "erg, its default encoder"
PLAIN, HALF = "lightly, ResNet-18, fp32", "lightly, ResNet-18, bf16"
ARMS: dict[str, tuple[str, list[str]]] = {
    PLAIN: ("peer.py", ["--batch", "256", "--precision", "fp32"]),
    HALF: ("peer.py", ["--batch", "256", "--precision", "bf16"]),
    OURS: ("ours.py", ["--batch", "256"]),
    NETWORK: ("ours.py", ["--encoder", "default"]),
}
MORE_STEPS = {NETWORK: 8}
"""How many times as many steps, where they are short; of those before, too."""

KEPT, GIVEN = f"{HALF}, memory kept", f"{OURS}, memory given back"
ARMS |= {KEPT: ARMS[HALF], GIVEN: ARMS[OURS]}
SETTINGS = {
    KEPT: {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
    GIVEN: {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)},
}
"""Of the C library; GIVEN are those at which glibc arrives by itself."""


def measure(arm: str, options: argparse.Namespace, repetition: int) -> dict[str, Any]:
    """One process of an arm."""
    script, arguments = ARMS[arm]
    python = options.peer_python if script == "peer.py" else sys.executable
    more = MORE_STEPS.get(arm, 1)
    steps, before = str(more * options.steps), str(more * options.warm_up)
    command = [
        python, str(HERE / script), str(options.data), *arguments, "--steps", steps,
        "--warm-up", before, "--seed", str(repetition),
    ]  # fmt: skip
    settings = SETTINGS.get(arm, {})
    printed = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | settings
    ).stdout
    machine = {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()}
    return {**json.loads(printed.splitlines()[-1]), "machine": machine}


def run() -> None:
    """Measure what is missing, write after each process, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="timed in each repetition")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before those")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.again else {}
    for repetition in range(options.repetitions):
        for arm in options.arms:
            key = f"{arm}; repetition {repetition}"
            if key not in done:
                done[key] = measure(arm, options, repetition)
                write_atomically(RESULTS, json.dumps(done, indent=1).encode())
                print(key, done[key]["seconds"], flush=True)
    table(done)


def speeds(done: dict[str, Any]) -> dict[str, list[float]]:
    """Images per second of every repetition, each the median of its steps."""
    found: dict[str, list[float]] = {}
    for key, value in done.items():
        arm = key.rsplit(";", 1)[0]
        found.setdefault(arm, []).append(value["batch"] / statistics.median(value["seconds"]))
        if "bare" in value:
            rate = value["batch"] / statistics.median(value["bare"])
            found.setdefault(f"{arm}: forward and backward alone", []).append(rate)
    return found


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured (lowest to highest of the repetitions)."""
    speed, found = speeds(done), []
    for over, bar in ((PLAIN, 3), (HALF, 1.25), (f"{OURS}: forward and backward alone", 0.93)):
        if over in speed and OURS in speed:
            ratios = [a / b for a, b in zip(speed[OURS], speed[over], strict=False)]
            ratio = statistics.median(speed[OURS]) / statistics.median(speed[over])
            measured = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, n = {len(ratios)})"
            found.append((f"SimCLR images/s: {OURS} / {over}", f">= {bar}", measured))
    shares = [
        100 * sum(value["waiting"]) / sum(value["seconds"])
        for key, value in done.items()
        if key.startswith(NETWORK)
    ]
    if shares:
        spread = f"({min(shares):.1f} to {max(shares):.1f}, n = {len(shares)})"
        measured = f"{statistics.median(shares):.1f} % {spread}"
        found.append((f"share of a step waiting for views: {NETWORK}", "< 3 %", measured))
    return found


def table(done: dict[str, Any]) -> None:
    """Medians over repetitions, then what is claimed."""
    print("| | images/s | lowest | highest |\n|---|---|---|---|")
    for arm, rates in speeds(done).items():
        print(f"| {arm} | {statistics.median(rates):.1f} | {min(rates):.1f} | {max(rates):.1f} |")
    print("\n| | bar | measured |\n|---|---|---|")
    for row in claims(done):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    run()
