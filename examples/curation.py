"""What do curated images give away? The same encoder from tidy images and from untidy ones.

    python examples/curation.py DATA [--seeds 0 1] [--out FILE.json]
    python examples/curation.py

Data sets such as ImageNet and CIFAR-10 show one object an image, in the middle, every class as
often as the others. Two crops then show the same object, which is what methods of two views count
on. Here 10,000 images of CIFAR-10 are made less tidy, one thing at a time:

- unbalanced: other images of the same classes, each half as often as the one before;
- cluttered: scenes of four of the images, each image in four scenes, with crops of a fourth of the
  usual area: objects are as large as before, but two crops mostly show different ones;
- cluttered, large crops: the same scenes with crops of the usual share of the area;
- digits: other images altogether (MNIST).

SimCLR, which compares two crops, stands beside Rotation, which asks how one is turned. Each trains
for as many steps on every set; all are tested on the 10,000 test images of CIFAR-10 by a linear
probe and by 20 nearest neighbours among the 10,000 tidy images. It takes less than half an hour on
two cores. A row that is in the file is not measured again, so the script can be stopped at any
time.

DATA is the folder with cifar10_train.parquet, cifar10_test.parquet and mnist_train10k.parquet.
Without it the script shows how it goes, on a few images of the embedded world for a few steps, and
writes nothing.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
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

METHODS = {"SimCLR": 8.0, "Rotation": 4.0}
"""Epochs: Rotation makes four views of an image, SimCLR two."""


@dataclass(frozen=True)
class Images:
    """Where all sets are drawn from.

    Args:
        pool: images uint8 [p s s 3]; the first `count` are the tidy set.
        labels: their classes.
        test: images to be tested on.
        test_labels: their classes.
        others: images of something else.
        count: images of a set.
        batch: images per step.
        share: of the epochs that are trained.
    """

    pool: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    others: np.ndarray
    count: int = 10_000
    batch: int = 256
    share: float = 1.0

    @property
    def tidy(self) -> np.ndarray:
        return self.pool[: self.count]


def unbalanced(images: Images, seed: int) -> np.ndarray:
    """Classes in random order, each half as often as the one before; the last takes the rest."""
    random = np.random.default_rng(seed)
    wanted, chosen = images.count, list[np.ndarray]()
    classes = random.permutation(np.unique(images.labels))
    for i, name in enumerate(classes):
        rows = random.permutation(np.flatnonzero(images.labels == name))
        left = wanted - sum(len(each) for each in chosen)
        chosen.append(rows[: left if i == len(classes) - 1 else wanted >> (i + 1)])
    return images.pool[np.concatenate(chosen)]


def scenes(images: Images, seed: int) -> np.ndarray:
    """As many scenes as images, of two by two of them: uint8 [n 2s 2s 3]."""
    random = np.random.default_rng(seed)
    a, b, c, d = (images.tidy[random.permutation(images.count)] for _ in range(4))
    above, below = np.concatenate([a, b], axis=2), np.concatenate([c, d], axis=2)
    return np.concatenate([above, below], axis=1)


SETS: dict[str, tuple[Callable[[Images, int], np.ndarray], float]] = {
    "tidy": (lambda images, seed: images.tidy, 1.0),
    "unbalanced": (unbalanced, 1.0),
    "cluttered": (scenes, 0.25),
    "cluttered, large crops": (scenes, 1.0),
    "digits": (lambda images, seed: images.others[: images.count], 1.0),
}
"""How each set is made, and the area of its crops over the usual one."""


def cifar(data: Path) -> Images:
    """CIFAR-10, with MNIST as something else."""
    found: dict[str, np.ndarray] = {}
    for name in ("cifar10_train", "cifar10_test", "mnist_train10k"):
        source = erg.open_source(str(data / f"{name}.parquet"), label="label")
        found[name] = np.stack([source.read(i) for i in range(len(source))])
        found[f"{name} labels"] = np.array([source.label(i) for i in range(len(source))])
    pool, labels = found["cifar10_train"], found["cifar10_train labels"]
    test, wanted = found["cifar10_test"], found["cifar10_test labels"]
    return Images(pool, labels, test, wanted, found["mnist_train10k"])


def trial() -> Images:
    """A few scenes of the embedded world, whose classes are the shapes in them."""
    made = world(500, size=32)
    pool, shapes = made.images[:400], made.factors["shape"]
    noise = np.random.default_rng(0).integers(256, size=(200, 32, 32, 3), dtype=np.uint8)
    return Images(
        pool, shapes[:400], made.images[400:], shapes[400:], noise, count=160, batch=64, share=0.2
    )


def with_crops(run: erg.Run, share: float) -> erg.Run:
    """The run with the area of all its crops multiplied."""
    plan = run.build().plan()

    def smaller(view: erg.Augmentation) -> erg.Augmentation:
        assert view.crop is not None
        low, high = view.crop
        return replace(view, crop=(share * low, share * high))

    return replace(run, plan=replace(plan, main=tuple(smaller(view) for view in plan.main)))


def scores(encoder: Path, images: Images) -> dict[str, float]:
    """Accuracies of 20 nearest neighbours and of a linear probe on tidy images [%], by the encoder
    of a folder."""
    bank, asked = (erg.embed(encoder, each).vectors for each in (images.tidy, images.test))
    labels = images.labels[: images.count]
    right = {
        "knn20": knn_accuracy(bank, labels, asked, images.test_labels, k=20),
        "linear": linear_accuracy(bank, labels, asked, images.test_labels),
    }
    return {name: round(100 * float(each.mean()), 2) for name, each in right.items()}


def measure(method: str, name: str, images: Images, seed: int) -> dict[str, Any]:
    """Train on a set; scores before and after."""
    make, share = SETS[name]
    run, _ = erg.default(
        erg.Seen(images.count, 32, False), method=method, epochs=images.share * METHODS[method],
        batch=images.batch, seed=seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fitted = erg.fit(
            with_crops(run, share), data=make(images, seed), out=Path(folder) / "run", observers=()
        )
        before, after = (
            scores(fitted.folder / name, images) for name in ("encoder_start", "encoder")
        )
    return {"before": before, "after": after, "steps": run.steps, "environment": environment()}


def main() -> None:
    """Measure what is missing, write after each row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    images = cifar(options.data) if options.data else trial()
    done = json.loads(options.out.read_text()) if options.data and options.out.exists() else {}
    for seed in options.seeds:
        for method in METHODS:
            for name in SETS:
                key = f"{method}; {name}; seed {seed}"
                if key not in done:
                    done[key] = measure(method, name, images, seed)
                    print(key, done[key]["after"], flush=True)
                    if options.data:
                        write_atomically(options.out, json.dumps(done, indent=1).encode())
    table(done)


def table(done: dict[str, Any]) -> None:
    """Means over seeds, and what each set costs against the tidy one."""
    print("| method | trained on | 20-NN [%] | linear probe [%] | 20-NN against tidy |")
    print("|---|---|---|---|---|")
    before = [np.mean([row["before"][k] for row in done.values()]) for k in ("knn20", "linear")]
    print(f"| none | before training | {before[0]:.1f} | {before[1]:.1f} | |")
    for method in METHODS:
        tidy = 0.0
        for name in SETS:
            found = [row for key, row in done.items() if key.startswith(f"{method}; {name};")]
            knn, linear = (
                float(np.mean([row["after"][k] for row in found])) for k in ("knn20", "linear")
            )
            tidy = knn if name == "tidy" else tidy
            print(f"| {method} | {name} | {knn:.1f} | {linear:.1f} | {knn - tidy:+.1f} |")


if __name__ == "__main__":
    main()
