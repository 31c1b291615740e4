"""Half an hour of training: objects, open files and memory stay as they are.

python benchmarks/soak/run.py [--minutes 30]

Trains on the embedded world with looks and checkpoints all the time, and counts every ten seconds.
The first third warms up: what counts is the growth over the rest. What ends before its time is no
measurement and is not written down.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from erg.durable import write_atomically
from erg.train.fit import fit
from erg.train.health import Health
from erg.train.preempt import Stopped
from erg.train.run import Run, environment
from erg.train.training import Progress

RESULTS = Path(__file__).parent / "results.json"
EVERY = 10.0
MEMORY = 8e6
"""Largest growth of resident memory after the first third [bytes]."""


@dataclass
class Counter:
    """Looks at this process now and then, and asks it to stop when time is up.

    Args:
        minutes: for how long [minutes].
        clock: tells the time [seconds].
    """

    minutes: float
    clock: Callable[[], float] = time.monotonic
    seen: list[dict[str, float]] = field(default_factory=list)
    over: bool = False

    def __post_init__(self) -> None:
        self.start = self.last = self.clock()

    def __call__(self, progress: Progress) -> None:
        now = self.clock()
        if now - self.last >= EVERY:
            self.last = now
            self.seen.append({"minute": (now - self.start) / 60, "step": progress.step, **count()})
        if now - self.start > 60 * self.minutes:
            self.over = True
            os.kill(os.getpid(), 15)


def count() -> dict[str, float]:
    """Objects that Python tracks, open files, and resident memory [bytes]."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "objects": len(gc.get_objects()),
        "files": len(os.listdir("/proc/self/fd")),
        "resident": pages * os.sysconf("SC_PAGE_SIZE"),
    }


def growth(seen: list[dict[str, float]]) -> dict[str, float]:
    """How much each count rose from just after the first third to the end: a tenth of the looks
    on either side, since single ones waver."""
    rest = seen[len(seen) // 3 :]
    few = max(1, len(rest) // 10)
    return {
        name: sum(look[name] for look in rest[-few:]) / few
        - sum(look[name] for look in rest[:few]) / few
        for name in ("objects", "files", "resident")
    }


def soak(minutes: float) -> dict[str, object]:
    """One run of so many minutes, and what grew.

    Raises:
        SystemExit: it ended earlier.
    """
    counter = Counter(minutes)
    told = Run(
        # So many steps that it ends by the clock, and progress is shown every 200 of them.
        method="BYOL", encoder="conv", image_size=32, data="synthetic:2000", batch=64,
        steps=400_000, checkpoint_minutes=0.5,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, suppress(Stopped):  # which is how it ends
        # A look at the held-out images every thousand steps.
        fit(
            told, out=Path(folder) / "run", show=counter,
            observers=(Health(looks=told.steps // 1000),),
        )  # fmt: skip
    if not counter.over:
        lasted = (counter.clock() - counter.start) / 60
        raise SystemExit(
            f"The run ended after {lasted:.1f} of {minutes:g} minutes, so nothing is written. "
            "Start it again."
        )
    found = growth(counter.seen)
    return {
        "minutes": minutes,
        "growth": found,
        "constant": found["objects"] < 100 and found["files"] < 1 and found["resident"] < MEMORY,
        "seen": counter.seen,
        "environment": environment(),
    }


def run() -> None:
    """Soak for so many minutes and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    found = soak(options.minutes)
    write_atomically(RESULTS, json.dumps(found, indent=1).encode())
    print({name: found[name] for name in ("minutes", "growth", "constant")})
    if not found["constant"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run()
