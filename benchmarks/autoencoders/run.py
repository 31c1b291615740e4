"""What autoencoders and rotation add to what stands beside them.

    python benchmarks/autoencoders/run.py DATA [--seeds 0 1 2] [--rows NAME ...] [--threads 1]
    python benchmarks/autoencoders/run.py DATA --trial [--rows NAME ...] [--batch 128]

MNIST, 10 nearest neighbours by cosine on codes (raw pixels: 94.5 %): a convolutional autoencoder
beside principal components of the same width (bar: 0.5 points more), a denoising one beside its
encoder before training (3 points). CIFAR-10, a linear probe of ten minutes of rotation beside the
network before training (8 points). Before training means the method as it was built: the same
layer of the same network, embedded in the same precision as after. Learning sees the training
images only, labels only the neighbours and the probe. With --trial a fifth of the training images
is tested on instead, for choosing recipes, and nothing is written. Vectors are compared as
`erg evaluate` compares them: codes as they are, principal components about their mean.

What is in results.json already is not measured again, unless its recipe has changed. The bar of
rotation is one of two cores: with one thread the others are measured without it, as in
`--rows "convolutional autoencoder" "denoising autoencoder"`.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import erg
from erg.apply.embed import open_for
from erg.apply.ways import pixels_of
from erg.durable import write_atomically
from erg.evaluate.baselines import PCA
from erg.evaluate.knn import knn_accuracy
from erg.evaluate.linear import linear_accuracy
from erg.recipes.default import Seen, default
from erg.train.run import environment

RESULTS = Path(__file__).parent / "results.json"
MNIST, CIFAR = ("mnist_train10k", "mnist_test"), ("cifar10_train", "cifar10_test")

# Data; minutes; which score; beside what; how many points more; what differs from the defaults.
ROWS: dict[str, dict[str, Any]] = {
    "convolutional autoencoder": {
        "data": MNIST, "minutes": 2.5, "score": "knn10", "beside": "PCA", "bar": 0.5,
        "recipe": {"method": "Autoencoder", "method_args": {"dim": 16},
                   "encoder_args": {"width": 32, "stages": 3}},
    },
    "denoising autoencoder": {
        "data": MNIST, "minutes": 2.5, "score": "knn10", "beside": "before training", "bar": 3.0,
        "recipe": {"method": "DenoisingAutoencoder", "method_args": {"noise": 0.3, "zeroed": 0.3},
                   "encoder_args": {"width": 32, "stages": 3}},
    },
    "rotation": {
        "data": CIFAR, "minutes": 10, "score": "linear", "beside": "before training", "bar": 8.0,
        # Rotation needs steps more than large batches, as in layers.
        "recipe": {"method": "Rotation", "batch": 128},
    },
}  # fmt: skip

SCORES = {"knn10": "10-NN on MNIST", "linear": "linear probe on CIFAR-10"}
BESIDE = {"PCA": "as many principal components", "before training": "its network before training"}


def run_of(row: dict[str, Any], data: str, seed: int) -> erg.Run:
    """What a row trains; its steps are measured to fit."""
    seen = Seen(10_000, 28, False) if row["data"] == MNIST else Seen(50_000, 32, False)
    run, _ = default(seen, data=data, seed=seed, hold_out=0, **row["recipe"])
    if row["data"] == MNIST:  # a mirrored digit is none
        plan = run.build().plan()
        views = tuple(replace(view, flip=0.0, crop=(0.8, 1.0)) for view in plan.main)
        run = replace(run, plan=replace(plan, main=views))
    return run


def of_today(done: dict[str, Any]) -> dict[str, Any]:
    """Without rows of other recipes than those above, which are to be measured again."""
    kept: dict[str, Any] = {}
    for key, found in done.items():
        name, seed = key.split("; seed ")
        row, run = ROWS[name], erg.Run.from_json(found["run"])
        same = recipe(run) == recipe(run_of(row, run.data, int(seed)))
        if same and found["minutes"] == row["minutes"]:
            kept[key] = found
        else:
            print(f"{key}: left out, for its recipe has changed", flush=True)
    return kept


def recipe(run: erg.Run) -> dict[str, Any]:
    """A run but for its steps, which minutes decided."""
    return replace(run, steps=1).to_json()


def untrained(fitted: erg.Fitted) -> erg.Fitted:
    """The method with the weights that its training began with."""
    return replace(fitted, method=fitted.run.build().eval())


def measure(row: dict[str, Any], data: Path, seed: int, trial: bool) -> dict[str, Any]:
    """Train for some minutes, and count what neighbours or a probe get right, in percent."""
    train, test = (str(data / f"{name}.parquet") for name in row["data"])
    run = run_of(row, train, seed)
    with tempfile.TemporaryDirectory() as folder:
        out, start = Path(folder) / "run", time.monotonic()
        fitted = erg.fit(run, out=out, minutes=row["minutes"], observers=())
        seconds = time.monotonic() - start
        first, sets = untrained(fitted), [train] if trial else [train, test]
        ways = {
            "codes": [erg.embed(fitted, each, label="label") for each in sets],
            "before training": [erg.embed(first, each) for each in sets],
        }
        opened = [open_for(fitted.encoder, each) for each in sets]
        pixels = [pixels_of(each, each.rows, fitted.encoder.image_size) for each in opened]
    vectors = {name: [each.vectors for each in made] for name, made in ways.items()}
    width = vectors["codes"][0].shape[1]
    pca = PCA.fit(pixels[0], min(width, pixels[0].shape[1]))
    vectors |= {"PCA": [pca(each) for each in pixels], "raw pixels": pixels}
    labels = [np.asarray(each.labels) for each in ways["codes"]]
    found = {name: score(row["score"], *split(made, labels)) for name, made in vectors.items()
             if not (row["score"] == "linear" and name == "raw pixels")}  # fmt: skip
    return {
        "scores": found, "width": width, "steps": fitted.run.steps, "minutes": row["minutes"],
        "training_seconds": round(seconds, 1), "run": run.to_json(), "environment": environment(),
    }  # fmt: skip


def split(
    vectors: list[np.ndarray], labels: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vectors and labels to learn from and to test on; of one set the last fifth is tested on."""
    if len(vectors) == 1:
        cut = 4 * len(vectors[0]) // 5
        vectors = [vectors[0][:cut], vectors[0][cut:]]
        labels = [labels[0][:cut], labels[0][cut:]]
    return vectors[0], labels[0], vectors[1], labels[1]


def score(kind: str, *sets: np.ndarray) -> float:
    """Share that is right [%]."""
    right = linear_accuracy(*sets) if kind == "linear" else knn_accuracy(*sets, k=10)
    return round(100 * float(right.mean()), 2)


def run() -> None:
    """Measure every seed that is not in results.json yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--trial", action="store_true")
    parser.add_argument("--batch", type=int, help="for trials: instead of the row's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    if options.batch and not options.trial:
        parser.error("other batches are for trials: say --trial, or write the choice into ROWS")
    if options.threads < 2 and "rotation" in options.rows and not options.trial:
        parser.error("the bar of rotation is one of two cores: name others with --rows")
    torch.set_num_threads(options.threads)
    done = of_today(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}
    for seed in options.seeds:
        for name in options.rows:
            row, key = ROWS[name], f"{name}; seed {seed}"
            if options.trial:
                chosen = row["recipe"] | ({"batch": options.batch} if options.batch else {})
                found = measure(row | {"recipe": chosen}, options.data, seed, trial=True)
                print(name, f"{found['steps']} steps", found["scores"], flush=True)
            elif key not in done:
                done[key] = measure(row, options.data, seed, trial=False)
                write_atomically(RESULTS, json.dumps(done, indent=1).encode())
                print(key, done[key]["scores"], flush=True)
    table(done)


def scores_of(done: dict[str, Any], name: str) -> list[dict[str, float]]:
    """What was counted in a row, one for each seed."""
    return [found["scores"] for key, found in done.items() if key.startswith(f"{name};")]


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured: the median, lowest and highest seed."""
    told: list[tuple[str, str, str]] = []
    for name, row in ROWS.items():
        found = scores_of(done, name)
        points = [round(each["codes"] - each[row["beside"]], 2) for each in found]
        if not points:
            continue
        median = statistics.median(points)
        held = "held" if median >= row["bar"] else "missed"
        spread = f"{min(points):+.2f} to {max(points):+.2f}, n = {len(points)}"
        claim = f"{SCORES[row['score']]}: {name} above {BESIDE[row['beside']]} [points]"
        told.append((claim, f">= {row['bar']:g}", f"{median:+.2f} ({spread}): {held}"))
    return told


def table(done: dict[str, Any]) -> None:
    """Each row and what stands beside it, as medians over seeds; then what is claimed."""
    print("| row | score | before training | PCA | raw pixels | seeds |\n|---|---|---|---|---|---|")
    for name in ROWS:
        found = scores_of(done, name)
        if not found:
            continue
        cells = [
            f"{statistics.median(each):.1f}"
            if (each := [s[way] for s in found if way in s])
            else ""
            for way in ("codes", "before training", "PCA", "raw pixels")
        ]
        print(f"| {name} | {' | '.join(cells)} | {len(found)} |")
    print("\n| | bar | measured |\n|---|---|---|")
    for row in claims(done):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    run()
