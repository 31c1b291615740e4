"""How near to what the processor can do at all a training step is.

    python benchmarks/training_step/ceiling.py [--repetitions 7]

Floating-point operations per second of the largest matrix products, and of SimCLR's ResNet-18 (3 x
3 stem) and projector forward and backward, two passes of 256 images of 32 pixels, in float32 and in
bf16. Where the network comes close to the matrix products, no other way to train it on this
processor is much faster: what is left between two libraries is the ratio of the two precisions.
Operations with padding are counted, which the compiled convolutions leave out on small maps, so
that more than 1 is possible. Written to ceiling.json.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from llvmlite import binding
from ours import RESNET, bare, choose
from torch.utils.flop_counter import FlopCounterMode

from erg.allocator import blocks_kept
from erg.durable import write_atomically
from erg.train.run import Precision, environment

RESULTS = Path(__file__).parent / "ceiling.json"
PRECISIONS: dict[Precision, torch.dtype] = {"32": torch.float32, "bf16": torch.bfloat16}
SIDE = 4096  # of the matrices


def rate(work: Callable[[], object], operations: float, repetitions: int) -> list[float]:
    """10^9 operations per second, of each repetition."""
    work()
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        found.append(round(operations / (time.perf_counter() - start) / 1e9, 1))
    return found


@blocks_kept()
def run() -> None:
    """Measure both in both precisions, write and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    for precision, dtype in PRECISIONS.items():
        a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
        found[f"matrix products, {precision}"] = rate(
            lambda a=a, b=b: a @ b, 2 * SIDE**3, options.repetitions
        )
        chosen = replace(choose(RESNET, 256, 1, 0), precision=precision)
        once = bare(chosen.build(torch.device("cpu")), chosen, 0)
        with FlopCounterMode(display=False) as counter:
            once()
        found[f"ResNet-18 forward and backward, {precision}"] = rate(
            once, counter.get_total_flops(), options.repetitions
        )
    machine = {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()}
    written = {"gflops": found, "machine": machine, "versions": environment()}
    write_atomically(RESULTS, json.dumps(written, indent=1).encode())
    print("| | GFLOP/s | lowest | highest |\n|---|---|---|---|")
    for what, rates in found.items():
        print(f"| {what} | {statistics.median(rates):.0f} | {min(rates):.0f} | {max(rates):.0f} |")


if __name__ == "__main__":
    run()
