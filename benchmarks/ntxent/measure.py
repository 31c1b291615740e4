"""NT-Xent in a process of its own: seconds and memory of one form, or how exact ours is.

    python benchmarks/ntxent/measure.py blocked|dense|lightly --batch 16384
    python benchmarks/ntxent/measure.py exact --batch 16384

`blocked` is erg.shaping's, `dense` the plain one that holds all scores at once, `lightly` that of
the library (which then has to be there; erg need not be). `exact` compares the gradients of the
first with float64 ones, which autograd makes some rows at a time. One line of JSON is printed.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.2
WARM_UP = 64  # pairs, which load the libraries

Form = Callable[[Tensor, Tensor], Tensor]


def dense(x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy over the matrix of all scores [2b 2b]; the other view is the right class."""
    z = F.normalize(torch.cat([x, y]))
    scores = (z / TEMPERATURE) @ z.T
    scores.fill_diagonal_(float("-inf"))
    return F.cross_entropy(scores, torch.arange(len(z)).roll(len(x)))


def form_called(name: str) -> Form:
    """One of the forms, from the library that has it."""
    if name == "dense":
        return dense
    if name == "lightly":
        from lightly.loss import NTXentLoss  # pyright: ignore[reportMissingImports]

        return NTXentLoss(temperature=TEMPERATURE)
    from erg.shaping import alignment, repulsion

    return lambda x, y: alignment(x, y, TEMPERATURE) + repulsion(x, y, TEMPERATURE)


def embeddings(batch: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Pairs that are alike, as during training [b 128]."""
    torch.manual_seed(seed)
    x = torch.randn(batch, 128)
    y = x + torch.randn(batch, 128)
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def measure(form: Form, batch: int, steps: int, seed: int) -> dict[str, Any]:
    """Seconds of forward and backward after a first one, and how far memory grew at its most."""
    form(*embeddings(WARM_UP, seed)).backward()
    x, y = embeddings(batch, seed)
    # The peak until now would hide as much growth as it exceeds what is in use now.
    before, seconds = _of_this_process()[1], []
    for _ in range(steps + 1):
        x.grad = y.grad = None
        start = time.perf_counter()
        form(x, y).backward()
        seconds.append(time.perf_counter() - start)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "seconds": [round(value, 4) for value in seconds[1:]],
        "median": round(statistics.median(seconds[1:]), 4),
        "grown_mb": round(grown / 1e6, 1),
    }


def exact(form: Form, batch: int, seed: int) -> dict[str, Any]:
    """Largest error of a gradient, as a fraction of the largest gradient."""
    right = by_rows(*embeddings(batch, seed, torch.float64))
    x, y = embeddings(batch, seed)
    form(x, y).backward()
    errors = [
        float((_gradient(mine) - wanted).abs().max() / wanted.abs().max())
        for mine, wanted in zip((x, y), right, strict=True)
    ]
    return {"error": max(errors)}


def by_rows(x: Tensor, y: Tensor, rows: int = 1024) -> list[Tensor]:
    """Gradients of the definition, with the scores of some rows at a time."""
    for start in range(0, 2 * len(x), rows):
        z = F.normalize(torch.cat([x, y]))
        mine = torch.arange(start, min(start + rows, len(z)))
        scores = (z[mine] @ z.T / TEMPERATURE).scatter(1, mine[:, None], float("-inf"))
        F.cross_entropy(scores, (mine + len(x)) % len(z), reduction="sum").div(len(z)).backward()
    return [_gradient(x), _gradient(y)]


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def _of_this_process() -> tuple[int, int]:
    """Memory it has mapped, and memory in use [bytes]."""
    pages = [int(word) for word in Path("/proc/self/statm").read_text().split()]
    return pages[0] * resource.getpagesize(), pages[1] * resource.getpagesize()


def limit_memory() -> None:
    """Let what would take over nine tenths of the free memory fail, rather than end others."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _of_this_process()[0] + free * 1024 * 9 // 10
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def run() -> None:
    """Measure one repetition."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("form", choices=["blocked", "dense", "lightly", "exact"])
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    form = form_called(options.form)
    limit_memory()
    try:
        if options.form == "exact":
            found = exact(form, options.batch, options.seed)
        else:
            found = measure(form, options.batch, options.steps, options.seed)
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        found = {"too_large": True}
    library = "lightly" if options.form == "lightly" else "erg"
    versions = {name: version(name) for name in (library, "torch", "numpy")}
    threads = torch.get_num_threads()
    print(json.dumps({"seed": options.seed, **found, "threads": threads, "versions": versions}))


if __name__ == "__main__":
    run()
