"""Which augmentation matters? SimCLR with one operation at a time taken away.

    python examples/augmentations.py DATA [--seeds 0 1] [--out FILE.json]
    python examples/augmentations.py

What two views of an image share is what the encoder keeps, so the augmentation decides what is
learned. Every row trains for as many steps on 20,000 images of CIFAR-10 as the first one, which has
everything, and is tested on the 10,000 test images by their 20 nearest neighbours and by a linear
probe. It takes less than half an hour on two cores. A row that is in the file is not measured
again, so the script can be stopped at any time.

DATA is the folder with cifar10_train.parquet and cifar10_test.parquet. Without it the script shows
how it goes, on a few images of the embedded world for a few steps, and writes nothing.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import erg
from erg.data.scenes import world
from erg.durable import write_atomically
from erg.evaluate.knn import knn_accuracy
from erg.evaluate.linear import linear_accuracy
from erg.train.run import environment
from erg.views.plan import SIMCLR_SMALL, WHOLE

FULL = replace(SIMCLR_SMALL, blur=0.5)
VIEWS = {
    "all": FULL,
    "no crop": replace(FULL, crop=None),
    "no flip": replace(FULL, flip=0.0),
    "no colour jitter": replace(FULL, jitter=0.0),
    "no grey": replace(FULL, grey=0.0),
    "no blur": replace(FULL, blur=0.0),
    "crop only": replace(WHOLE, crop=FULL.crop),
    "nothing": WHOLE,
}


@dataclass(frozen=True)
class Task:
    """What to learn from, for how long, and what to be tested on.

    Args:
        train: images uint8 [n 32 32 3].
        train_labels: their classes, for the test alone.
        test: images uint8 [m 32 32 3].
        test_labels: their classes.
        epochs: passes over the training images.
        batch: images per step.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    epochs: float
    batch: int


def cifar(data: Path) -> Task:
    """The first 20,000 training images, and all that are for tests."""
    found: list[np.ndarray] = []
    for part, count in (("train", 20_000), ("test", 10_000)):
        source = erg.open_source(str(data / f"cifar10_{part}.parquet"), label="label")
        found.append(np.stack([source.read(i) for i in range(count)]))
        found.append(np.array([source.label(i) for i in range(count)]))
    return Task(*found, epochs=6, batch=256)


def trial() -> Task:
    """A few scenes of the embedded world, whose classes are the shapes in them."""
    made = world(300, size=32)
    images, shapes = made.images, made.factors["shape"]
    return Task(images[:200], shapes[:200], images[200:], shapes[200:], epochs=1, batch=64)


def scores(encoder: Path, task: Task) -> dict[str, float]:
    """Accuracies of 20 nearest neighbours and of a linear probe [%], by the encoder of a folder."""
    bank, asked = (erg.embed(encoder, images).vectors for images in (task.train, task.test))
    right = {
        "knn20": knn_accuracy(bank, task.train_labels, asked, task.test_labels, k=20),
        "linear": linear_accuracy(bank, task.train_labels, asked, task.test_labels),
    }
    return {name: round(100 * float(each.mean()), 2) for name, each in right.items()}


def measure(view: erg.Augmentation, task: Task, seed: int) -> dict[str, Any]:
    """Train with two such views of every image; scores before and after."""
    run, _ = erg.default(
        erg.Seen(len(task.train), 32, False), plan=erg.two_views(view), epochs=task.epochs,
        batch=task.batch, seed=seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fitted = erg.fit(run, data=task.train, out=Path(folder) / "run", observers=())
        before, after = (
            scores(fitted.folder / name, task) for name in ("encoder_start", "encoder")
        )
    return {"before": before, "after": after, "steps": run.steps, "environment": environment()}


def main() -> None:
    """Measure what is missing, write after each row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    task = cifar(options.data) if options.data else trial()
    done = json.loads(options.out.read_text()) if options.data and options.out.exists() else {}
    for seed in options.seeds:
        for name, view in VIEWS.items():
            key = f"{name}; seed {seed}"
            if key not in done:
                done[key] = measure(view, task, seed)
                print(key, done[key]["after"], flush=True)
                if options.data:
                    write_atomically(options.out, json.dumps(done, indent=1).encode())
    table(done)


def table(done: dict[str, Any]) -> None:
    """Means over seeds, and what taking the operation away costs."""
    print("| views | 20-NN [%] | linear probe [%] | 20-NN against all |")
    print("|---|---|---|---|")
    rows = {name: [v for k, v in done.items() if k.startswith(f"{name};")] for name in VIEWS}
    full = np.mean([row["after"]["knn20"] for row in rows["all"]])
    before = [np.mean([row["before"][k] for row in done.values()]) for k in ("knn20", "linear")]
    print(f"| before training | {before[0]:.1f} | {before[1]:.1f} | {before[0] - full:+.1f} |")
    for name, found in rows.items():
        knn, linear = (np.mean([row["after"][k] for row in found]) for k in ("knn20", "linear"))
        print(f"| {name} | {knn:.1f} | {linear:.1f} | {knn - full:+.1f} |")


if __name__ == "__main__":
    main()
