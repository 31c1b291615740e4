"""Few labels: does pretraining on all images without labels help a classifier?

    python benchmarks/few_labels/run.py DATA [--seeds 0 1 2] [--minutes 5] [--threads 1]

SimCLR (or another method) learns from all training images without labels for some minutes. Then
10, 50, 100 and 500 labels of each class, drawn at random, smaller draws inside larger ones, teach
- the pretrained encoder with a linear layer, which starts as its probe (fine-tuned),
- the same network from random weights, for the same number of steps with the same views, at two
  learning rates of which the better on the test set counts: the comparison favours it,
- a linear probe on the pretrained encoder as it is, and on the 64 principal components of the
  pixels of all training images, which need no labels either.
All are tested on the 10,000 test images. What is in results.json is not measured again.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import erg
from erg.apply.embed import open_for, vectors_of
from erg.apply.finetune import Tuning, afresh, few, finetune, right
from erg.apply.ways import pixels_of
from erg.durable import write_atomically
from erg.evaluate.baselines import PCA
from erg.evaluate.intervals import Score, bootstrap, difference
from erg.evaluate.linear import linear_accuracy
from erg.recipes.default import Seen, default
from erg.train.run import environment
from erg.views.plan import Augmentation, two_views

RESULTS = Path(__file__).parent / "results.json"
SETS = {
    "MNIST": ("mnist_train10k.parquet", "mnist_test.parquet", Seen(10_000, 28, False)),
    "CIFAR-10": ("cifar10_train.parquet", "cifar10_test.parquet", Seen(50_000, 32, False)),
}
SIZES = (10, 50, 100, 500)
SCRATCH = (1e-2, 3e-3)
"""Learning rates from scratch, of the whole network."""


def tuning_for(labels: int, views: Augmentation, seed: int) -> Tuning:
    """About 30 passes over the labels, within 200 to 2,000 steps of 64 images."""
    return Tuning(steps=min(2000, max(200, 30 * labels // 64)), views=views, seed=seed)


def measure(
    data: Path, name: str, sizes: list[int], seed: int, minutes: float, method: str
) -> dict[str, dict[str, Any]]:
    """Everything from one pretrained encoder, by number of labels per class."""
    train_file, test_file, seen = SETS[name]
    run, _ = default(seen, data=str(data / train_file), seed=seed, method=method, hold_out=0)
    views = Augmentation(crop=(0.5, 1.0), flip=0.5 if name == "CIFAR-10" else 0.0)
    if name == "MNIST" and method == "SimCLR":  # grey, and not those of a mirror
        run = replace(run, plan=two_views(Augmentation(crop=(0.3, 1.0), flip=0.0)))
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        fitted = erg.fit(run, out=Path(folder) / "run", minutes=minutes, observers=())
    encoder, half = fitted.encoder, run.autocast(torch.device("cpu"))
    opened, test = (
        open_for(encoder, str(data / file), label="label") for file in (train_file, test_file)
    )
    assert opened.labels is not None
    assert test.labels is not None
    pixels = [pixels_of(each, each.rows, 32) for each in (opened, test)]
    pca = PCA.fit(pixels[0], 64)
    vectors = vectors_of(encoder, encoder, encoder, test, test.rows)
    for size in sizes:
        rows = few(opened, opened.rows, size, seed=seed)
        tuning = tuning_for(len(rows), views, seed)
        ours = right(finetune(encoder, opened, rows, tuning, autocast=half), test, test.rows)
        fresh = afresh(encoder, seed=seed)
        tried = {
            lr: right(
                finetune(fresh, opened, rows, replace(tuning, lr=lr), autocast=half),
                test, test.rows,
            )
            for lr in SCRATCH
        }  # fmt: skip
        scratch = max(tried.values(), key=lambda each: each.mean())
        mine = vectors_of(encoder, encoder, encoder, opened, rows)
        labels = opened.labels[rows]
        probe = linear_accuracy(mine, labels, vectors, test.labels[test.rows])
        small = pixels[0][np.searchsorted(opened.rows, rows)]
        plain = linear_accuracy(pca(small), labels, pca(pixels[1]), test.labels[test.rows])
        found[str(size)] = {
            "fine-tuned": _three(bootstrap(ours)),
            "from scratch": _three(bootstrap(scratch)),
            "linear probe": _three(bootstrap(probe)),
            "PCA of pixels": _three(bootstrap(plain)),
            "gain": _three(difference(ours, scratch)),
            "scratch tried": {str(lr): float(each.mean()) for lr, each in tried.items()},
            "labels": len(rows),
            "steps": tuning.steps,
            "pretraining_steps": fitted.run.steps,
            "environment": environment(),
        }
        print(name, size, found[str(size)]["fine-tuned"], found[str(size)]["gain"], flush=True)
    return found


def _three(score: Score) -> list[float]:
    return [round(v, 4) for v in (score.value, score.low, score.high)]


def run() -> None:
    """Measure what is missing, write after each encoder, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--method", default="SimCLR")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in options.seeds:
        for name in options.sets:
            start = f"{name}; {options.method}, {options.minutes:g} minutes; seed {seed}"
            sizes = [n for n in options.sizes if f"{start}; {n} labels" not in done]
            if sizes:
                found = measure(options.data, name, sizes, seed, options.minutes, options.method)
                done |= {f"{start}; {n} labels": found[str(n)] for n in sizes}
                write_atomically(RESULTS, json.dumps(done, indent=1).encode())
    table(done)


def table(done: dict[str, Any]) -> None:
    """Means over seeds, in per cent."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, value in done.items():
        name, how, _, size = key.split("; ")
        groups.setdefault((f"{name}; {how}", size), []).append(value)
    kinds = ("fine-tuned", "from scratch", "linear probe", "PCA of pixels", "gain")
    print(f"| | per class | {' | '.join(kinds)} | gain from | to |")
    print("|---" * (len(kinds) + 4) + "|")
    for (name, size), values in groups.items():
        means = [100 * statistics.mean(v[kind][0] for v in values) for kind in kinds]
        gains = [100 * v["gain"][0] for v in values]
        cells = [*(f"{mean:.1f}" for mean in means), f"{min(gains):.1f}", f"{max(gains):.1f}"]
        print(f"| {name} | {size} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run()
