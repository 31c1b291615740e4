"""How long erg takes to start: its help, and what makes views, compiled from nothing.

    python benchmarks/starting/run.py [--repetitions 5] [--again]

Each is a process of its own. The first use of the view kernels compiles them into a folder that was
empty; any other loads them from there, which is measured too. What is in results.json already is
not measured again, unless --again says so.
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
KERNELS = "from erg.views.kernels import compile_kernels; compile_kernels()"

# Command, and the largest median [seconds].
WANTED: dict[str, tuple[list[str], float]] = {
    "erg --help": (["-m", "erg.cli", "--help"], 0.3),
    "view kernels from nothing": (["-c", KERNELS], 15.0),
    "view kernels from the cache": (["-c", KERNELS], 15.0),
}


def lasted(command: list[str], cache: str) -> float:
    """Seconds of a process, with a folder for what is compiled."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command], check=True, stdout=subprocess.DEVNULL,
        env=os.environ | {"NUMBA_CACHE_DIR": cache},
    )  # fmt: skip
    return round(time.perf_counter() - start, 3)


def run() -> None:
    """Measure if nothing was, write, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.again else {}
    if not done:
        seconds: dict[str, list[float]] = {name: [] for name in WANTED}
        for _ in range(options.repetitions):
            with tempfile.TemporaryDirectory() as cache:
                for name, (command, _) in WANTED.items():  # the third finds what the second made
                    seconds[name].append(lasted(command, cache))
        done = {"seconds": seconds, "environment": environment()}
        write_atomically(RESULTS, json.dumps(done, indent=1).encode())
    table(done)


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured."""
    return [
        (
            f"seconds until it is done: {name}",
            f"<= {WANTED[name][1]:g}",
            f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f}, n = {len(each)})",
        )
        for name, each in done.get("seconds", {}).items()
    ]


def table(done: dict[str, Any]) -> None:
    """What is claimed and what was measured."""
    print("| | bar | measured |\n|---|---|---|")
    for row in claims(done):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    run()
