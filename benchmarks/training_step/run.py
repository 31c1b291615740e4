"""Images per second of SimCLR on CIFAR-10, beside lightly and beside the bare network.

    python benchmarks/training_step/run.py DATA --peer-python PYTHON [--repetitions 5]

From end to end: images, views, forward, backward, optimiser. The same ResNet-18 (3 x 3 stem) and
projector in batches of 256: erg with its default choices, lightly as documented (peer.py), lightly
with bf16 autocast added. Beside it the forward and backward pass of encoder and projector alone
(ours.py), and with erg's own default encoder the share of a step spent waiting for views.

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
MORE_STEPS = {NETWORK: 4}
"""How many times as many steps, where they are short."""


def measure(arm: str, options: argparse.Namespace, repetition: int) -> dict[str, Any]:
    """One process of an arm."""
    script, arguments = ARMS[arm]
    python = options.peer_python if script == "peer.py" else sys.executable
    steps = options.steps * MORE_STEPS.get(arm, 1)
    command = [
        python, str(HERE / script), str(options.data), *arguments, "--steps", str(steps),
        "--warm-up", str(options.warm_up), "--seed", str(repetition),
    ]  # fmt: skip
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
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
                RESULTS.write_text(json.dumps(done, indent=1))
                print(key, done[key]["seconds"], flush=True)
    table(done)


def table(done: dict[str, Any]) -> None:
    """Medians over repetitions (of which each is the median of its steps), then their ratios."""
    speed: dict[str, list[float]] = {}
    shares: list[float] = []
    for key, found in done.items():
        arm = key.rsplit(";", 1)[0]
        speed.setdefault(arm, []).append(found["batch"] / statistics.median(found["seconds"]))
        if "bare" in found:
            rate = found["batch"] / statistics.median(found["bare"])
            speed.setdefault(f"{arm}: forward and backward alone", []).append(rate)
        if arm == NETWORK:
            shares.append(sum(found["waiting"]) / sum(found["seconds"]))
    print("| | images/s | lowest | highest |\n|---|---|---|---|")
    for arm, rates in speed.items():
        print(f"| {arm} | {statistics.median(rates):.1f} | {min(rates):.1f} | {max(rates):.1f} |")
    rate = {arm: statistics.median(rates) for arm, rates in speed.items()}
    print("\n| | measured | bar |\n|---|---|---|")
    for over, bar in ((PLAIN, 3), (HALF, 1.25), (f"{OURS}: forward and backward alone", 0.93)):
        if over in rate and OURS in rate:
            print(f"| {OURS} / {over} | {rate[OURS] / rate[over]:.2f} | >= {bar} |")
    if shares:
        print(f"| {NETWORK}: waiting for views | {statistics.median(shares):.1%} | < 3 % |")


if __name__ == "__main__":
    run()
