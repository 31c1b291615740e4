"""The same step by erg, seconds each, and the forward and backward pass it cannot do without.

    python benchmarks/training_step/ours.py DATA [--encoder resnet18] [--batch 256]

A run of `erg.fit` with default choices but for encoder and batch, watched by a stopwatch; then the
encoder and projector it trained on tensors that are ready, in the same precision and process: two
passes of the batch, as in the step, and backwards from given gradients. One line of JSON is
printed. An encoder that is named is a ResNet of timm, and gets a small stem: without the classifier
ResNet-18 then has 11,168,832 parameters, as torchvision's with the same stem.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

import erg
from erg.allocator import blocks_kept
from erg.encoders import parameter_count
from erg.method import Method
from erg.recipes.default import Seen, default
from erg.train.features import computing_in
from erg.train.health import Watched
from erg.train.run import environment

P = ParamSpec("P")
R = TypeVar("R")

RESNET = "resnet18"


class Stopwatch:
    """An observer that measures every step from end to end, and the wait for views within it."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.waits: list[float] = []

    def start(self, watched: Watched) -> None:
        watched.loader.views = self.timed(watched.loader.views)

    def timed(self, make: Callable[P, R]) -> Callable[P, R]:
        """On a CPU the loop makes the views of a step itself and waits for them."""

        def around(*args: P.args, **kwargs: P.kwargs) -> R:
            start = time.perf_counter()
            made = make(*args, **kwargs)
            self.waits.append(time.perf_counter() - start)
            return made

        return around

    def due(self, step: int) -> bool:
        self.ends.append(time.perf_counter())
        return False

    def look(self, method: Method, step: int) -> dict[str, Any]:
        raise AssertionError("nothing is ever due")


def choose(encoder: str, batch: int | None, steps: int, seed: int) -> erg.Run:
    """The run that default choices give for CIFAR-10 on a CPU."""
    small: dict[str, Any] = {"encoder_args": {"small_stem": True}, "image_size": 32}
    given = {} if encoder == "default" else {"encoder": encoder, **small}
    return default(Seen(50_000, 32, False), batch=batch, steps=steps, seed=seed, **given)[0]


def bare(method: Method, run: erg.Run, seed: int) -> Callable[[], dict[str, float]]:
    """Encoder and projector of SimCLR forward and backward; seconds of each part."""
    torch.manual_seed(seed)
    shape = (run.batch, 3, run.image_size, run.image_size)
    views = [torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(2)]
    projector: Any = method.projector
    given = torch.randn(run.batch, projector[-1].num_features) / run.batch
    device = torch.device("cpu")
    method.train()

    def once() -> dict[str, float]:
        method.zero_grad(set_to_none=True)
        marks = [time.perf_counter()]
        with computing_in(device, run.autocast(device)):
            features = [method.encoder(view) for view in views]
            marks.append(time.perf_counter())
            embedded = [projector(each) for each in features]
            marks.append(time.perf_counter())
        torch.autograd.backward(embedded, [given.to(z.dtype) for z in embedded])
        marks.append(time.perf_counter())
        names = ("encoder forward", "head forward", "backward")
        return {name: b - a for name, a, b in zip(names, marks, marks[1:], strict=False)}

    return once


@blocks_kept()
def run() -> None:
    """Measure one repetition."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default=RESNET, help="or default")
    parser.add_argument("--batch", type=int, help="that of the default choices if not given")
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before those")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count = options.warm_up + options.steps
    chosen = choose(options.encoder, options.batch, count, options.seed)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        data, out = options.data / "cifar10_train.parquet", Path(folder) / "run"
        fitted = erg.fit(chosen, data=str(data), out=out, observers=(watch,))
    once = bare(fitted.method, chosen, options.seed)
    alone = [sum(once().values()) for _ in range(count)]
    lasted = [b - a for a, b in zip(watch.ends, watch.ends[1:], strict=False)]
    timed = slice(options.warm_up, None)
    found = {
        "batch": chosen.batch,
        "seed": options.seed,
        "encoder": chosen.encoder,
        "parameters": parameter_count(fitted.encoder),
        "autocast": str(chosen.autocast(torch.device("cpu"))),
        "seconds": [round(value, 4) for value in lasted[timed]],
        "waiting": [round(value, 5) for value in watch.waits[timed]],
        "bare": [round(value, 4) for value in alone[timed]],
        "versions": environment(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    run()
