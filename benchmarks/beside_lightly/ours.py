"""One method of erg as same.py says: seconds of training, and vectors of both sets.

    python benchmarks/beside_lightly/ours.py DATA --method SimCLR --vectors FILE.npz

The vectors are those of the encoder after training and, since both sides start alike, before it.
One line of JSON is printed.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import same
import torch

import erg
from erg.encoders import parameter_count
from erg.method import Method
from erg.schedule import Cosine
from erg.train.health import Watched
from erg.train.run import environment
from erg.views.plan import Plan

RESNET10 = {"layers": [1, 1, 1, 1], "zero_init_last": False, "small_stem": True}
"""One block a stage and, as torchvision's, gains that start at 1: 4,898,112 parameters."""

VIEW = erg.Augmentation(
    crop=same.CROP, flip=same.FLIP, jitter=same.JITTER, brightness=same.COLOURS,
    contrast=same.COLOURS, saturation=same.COLOURS, hue=same.HUE, grey=same.GREY,
)  # fmt: skip
CROPS = Plan(
    main=(replace(VIEW, crop=same.LARGE),) * 2,
    local=(replace(VIEW, crop=same.SMALL, size=same.SMALL_SIDE / 32),) * same.SMALL_CROPS,
)
FOLLOWS = {"momentum": Cosine(same.MOMENTUM, 1.0)}
CHOSEN: dict[str, dict[str, Any]] = {
    "SimCLR": same.SIMCLR,
    "BYOL": {**same.BYOL, **FOLLOWS},
    "VICReg": same.VICREG,
    "DINO": {
        **same.DINO, **FOLLOWS, "teacher_start": same.TEACHER, "teacher_end": same.TEACHER,
        "freeze": 0.0, "small_crops": same.SMALL_CROPS,
    },
}  # fmt: skip


class Stopwatch:
    """An observer that notes when training began, and when the last step was done."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def start(self, watched: Watched) -> None:
        self.marks.clear()

    def due(self, step: int) -> bool:
        self.marks.append(time.perf_counter())
        return False

    def look(self, method: Method, step: int) -> dict[str, Any]:
        raise AssertionError("nothing is ever due")


def chosen(method: str, images: int, epochs: int, seed: int) -> erg.Run:
    """The run of a method."""
    return erg.Run(
        method=method, method_args=CHOSEN[method], encoder="resnet18", encoder_args=RESNET10,
        image_size=32, plan=CROPS if method == "DINO" else erg.two_views(VIEW),
        optimiser=erg.Optimiser(lr=same.RATE, weight_decay=0.0, warmup=same.WARMUP),
        batch=same.BATCH, steps=same.steps_of(images, epochs), seed=seed, precision="bf16",
        hold_out=0,
    )  # fmt: skip


def read(file: Path, count: int) -> np.ndarray:
    """The first images of a file, uint8 [n 32 32 3]."""
    source = erg.open_source(str(file))
    return np.stack([source.read(i) for i in range(min(count, len(source)))])


def run() -> None:
    """Train and embed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", choices=same.METHODS, required=True)
    parser.add_argument("--vectors", type=Path, required=True, help="file to write")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--tested", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    same.check(options.data)
    torch.set_num_threads(options.threads)
    images = read(options.data / same.TRAIN, options.images)
    tested = read(options.data / same.TEST, options.tested)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        fitted = erg.fit(
            chosen(options.method, len(images), options.epochs, options.seed), data=images,
            out=Path(folder) / "run", observers=(watch,),
        )  # fmt: skip
        found: dict[str, Any] = {
            f"{part}_{when}": erg.embed(model, data).vectors
            for when, model in (("before", fitted.folder / "encoder_start"), ("after", fitted))
            for part, data in (("train", images), ("test", tested))
        }
    np.savez(options.vectors, **found)
    print(json.dumps({
        "seconds": round(watch.marks[-1] - watch.marks[0], 2),
        "steps": fitted.run.steps,
        "parameters": parameter_count(fitted.encoder),
        "versions": environment(),
    }))  # fmt: skip


if __name__ == "__main__":
    run()
