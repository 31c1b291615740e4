"""Where the milliseconds of a training step go, and how far it is from the bare network.

    python benchmarks/training_step/breakdown.py DATA [--encoders default resnet18]

SimCLR on CIFAR-10 with default choices (ResNet-18 in batches of 256), through the loop of erg
itself, whose parts are timed in place. Beside them stands what the forward and backward pass of
encoder and projector take alone (see ours.py), in the same process. Repetitions alternate between
the encoders. Written to breakdown.json; what is there is not measured again, unless --again.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from llvmlite import binding
from ours import RESNET, bare, choose
from torch import nn

from erg.allocator import blocks_kept
from erg.data.source import open_source
from erg.durable import write_atomically
from erg.train.data import open_data
from erg.train.folder import RunFolder
from erg.train.loop import Data, Loop
from erg.train.run import environment
from erg.train.training import train

RESULTS = Path(__file__).parent / "breakdown.json"
BATCH = {"default": None, RESNET: 256}

P = ParamSpec("P")
R = TypeVar("R")

PARTS = (
    "views", "host copies", "encoder forward", "head and loss", "backward", "optimiser",
    "after_step", "rest of the step", "logging and all else",
)  # fmt: skip


class Parts:
    """Seconds of each part of every step.

    Args:
        loop: whose parts are wrapped; what it computes stays the same.
    """

    def __init__(self, loop: Loop) -> None:
        self.now: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self.began = 0.0
        loop.loader.views = self.timed("views", loop.loader.views)
        loop._to_device = self.timed("host copies", loop._to_device)
        loop.step_loss = self.timed("loss", loop.step_loss)
        loop.fabric.backward = self.timed("backward", loop.fabric.backward)
        loop._optimise = self.timed("optimiser", loop._optimise)
        method: Any = loop.method
        method.after_step = self.timed("after_step", method.after_step)
        loop.step = self.timed("step", loop.step)
        self.handles = [
            method.encoder.register_forward_pre_hook(self._forward),
            method.encoder.register_forward_hook(self._forwarded),
        ]

    def timed(self, part: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, and what it took added to a part of the step that is going on."""

        def around(*args: P.args, **kwargs: P.kwargs) -> R:
            if part == "views":  # the first thing in every step
                self._next()
            start = time.perf_counter()
            made = function(*args, **kwargs)
            self.now[part] += time.perf_counter() - start
            return made

        return around

    def _forward(self, module: nn.Module, given: Any) -> None:
        self.now["encoder forward"] -= time.perf_counter()

    def _forwarded(self, module: nn.Module, given: Any, made: Any) -> None:
        self.now["encoder forward"] += time.perf_counter()

    def _next(self) -> None:
        now = time.perf_counter()
        if self.now:
            self.steps.append(self._settled(now - self.began))
        self.now.clear()
        self.began = now

    def _settled(self, total: float) -> dict[str, float]:
        """Parts that add up to the whole step."""
        found = dict(self.now)
        step = found.pop("step")
        found["head and loss"] = found.pop("loss") - found["encoder forward"]
        found["rest of the step"] = step - sum(found.values()) + found["views"]
        found["logging and all else"] = total - step - found["views"]
        return {part: found[part] for part in PARTS}


@blocks_kept()
def measure(encoder: str, data: Data, count: int, warm_up: int, seed: int) -> dict[str, Any]:
    """One repetition: steps of the loop, then as many of the bare network."""
    run = choose(encoder, BATCH[encoder], warm_up + count + 1, seed)
    loop = Loop(run, data)
    parts = Parts(loop)
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(loop, RunFolder(Path(folder) / "run"))
        finally:
            loop.close()
    for handle in parts.handles:
        handle.remove()
    once = bare(loop.method, run, seed)
    alone = [once() for _ in range(warm_up + count)]
    return {
        "batch": run.batch,
        "seed": seed,
        "steps": [_milliseconds(step) for step in parts.steps[warm_up:]],
        "bare": [_milliseconds(each) for each in alone[warm_up:]],
        "machine": {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()},
        "versions": environment(),
    }


def _milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(1000 * value, 3) for name, value in seconds.items()}


def run() -> None:
    """Measure what is missing, write after each repetition, print a table for each encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoders", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="timed in each repetition")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before those")
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.again else {}
    wanted = [(e, r) for r in range(options.repetitions) for e in options.encoders]
    missing = [(e, r) for e, r in wanted if f"{e}; repetition {r}" not in done]
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            source = open_source(str(options.data / "cifar10_train.parquet"))
            data, _ = open_data(source, RunFolder(Path(folder) / "images"), image_size=32)
            for encoder, repetition in missing:
                found = measure(encoder, data, options.steps, options.warm_up, repetition)
                done[f"{encoder}; repetition {repetition}"] = found
                write_atomically(RESULTS, json.dumps(done, indent=1).encode())
    for encoder in options.encoders:
        table(encoder, [done[key] for key in done if key.startswith(f"{encoder};")])


def table(encoder: str, found: list[dict[str, Any]]) -> None:
    """Medians over all steps of all repetitions."""
    steps = [step for each in found for step in each["steps"]]
    alone = [step for each in found for step in each["bare"]]
    ours = {part: statistics.median(step[part] for step in steps) for part in PARTS}
    theirs = {part: statistics.median(step[part] for step in alone) for part in alone[0]}
    theirs["head and loss"] = theirs.pop("head forward")
    whole = statistics.median(sum(step.values()) for step in steps)
    least = statistics.median(sum(step.values()) for step in alone)
    print(f"\n| {encoder}, batch {found[0]['batch']} | ms | share | alone, ms |\n|---|---|---|---|")
    for part in PARTS:
        beside = f"{theirs[part]:.2f}" if part in theirs else ""
        print(f"| {part} | {ours[part]:.2f} | {ours[part] / whole:.1%} | {beside} |")
    print(f"| all | {whole:.2f} | | {least:.2f} |")
    print(f"| alone / all | {least / whole:.3f} | | |")


if __name__ == "__main__":
    run()
