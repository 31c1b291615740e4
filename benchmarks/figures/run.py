"""Every figure of the course as a command: is it drawn within a minute?

    python benchmarks/figures/run.py [--figures NAME ...] [--again]

Each is `erg landscape NAME --out FILE.png` in a process of its own, from its start to its end. Bar:
60 seconds on two cores. What is in results.json already is not measured again. A figure that fails
is told and left out, the others go on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from erg.durable import write_atomically
from erg.landscape import FIGURES
from erg.train.run import environment

RESULTS = Path(__file__).parent / "results.json"
BAR = 60


def measure(name: str) -> dict[str, Any] | None:
    """Seconds of the command, and the numbers that it printed; None if it failed, which is told."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{name}.png"
        command = [sys.executable, "-m", "erg.cli", "landscape", name, "--out", str(out)]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - start
        if done.returncode:
            print(f"{name} left with {done.returncode}:\n{done.stderr}", flush=True)
            return None
        size = out.stat().st_size
    facts = [line.rpartition(": ") for line in done.stdout.splitlines() if ": " in line]
    return {
        "seconds": round(seconds, 1), "bytes": size,
        "facts": {fact: value for fact, _, value in facts if fact != "Drawn"},
        "environment": environment(),
    }  # fmt: skip


def run() -> None:
    """Measure what is missing, write after each figure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", nargs="+", default=list(FIGURES), choices=list(FIGURES))
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failed = []
    for name in options.figures:
        if options.again or name not in done:
            found = measure(name)
            if found is None:
                failed.append(name)
                done.pop(name, None)
            else:
                done[name] = found
            write_atomically(RESULTS, json.dumps(done, indent=1).encode())
    table(done)
    if failed:
        sys.exit(f"{len(failed)} figures failed: {', '.join(failed)}. What was printed says why.")


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured, once it was of every figure."""
    if not FIGURES.keys() <= done.keys():
        return []
    name = max(FIGURES, key=lambda each: done[each]["seconds"])
    seconds = done[name]["seconds"]
    held = "held" if seconds <= BAR else "missed"
    what = f"`erg landscape`: the slowest of all {len(FIGURES)} figures"
    return [(what, f"<= {BAR} s", f"{seconds:.1f} s ({name}): {held}")]


def table(done: dict[str, Any]) -> None:
    """Seconds of every figure, and which are too slow."""
    print("| figure | shows | seconds |\n|---|---|---|")
    for name, found in done.items():
        print(f"| {name} | {FIGURES[name][1]} | {found['seconds']:.0f} |")
    slow = [name for name, found in done.items() if found["seconds"] > BAR]
    print(f"Longer than {BAR} s: {', '.join(slow) or 'none'}.")


if __name__ == "__main__":
    run()
