"""The learning table: every method that learns from images, beside its encoder before training.

    python benchmarks/methods/run.py DATA [--methods SimCLR ...] [--minutes-limit 60]
    python benchmarks/methods/run.py DATA --choose --results FOLDER [--methods SimCLR ...]
    python benchmarks/methods/run.py --table [--results FOLDER]

The first 20,000 training images of CIFAR-10 without their labels, then kNN and a linear probe on
the 10,000 test images, with the same 20,000 as neighbours; before and after training both are
embedded in full precision. Methods share an encoder with those of their family (protocol.py): 3
minutes of training for the convolutional network and for methods without one, 10 for patches and
for plans with small crops. Heads, batches, rates and teachers are those of `recipes.cifar`. These
are never chosen on test images: --choose judges on the 10,000 training images behind those that are
trained on.

A row is one file in results/, whole or absent, and is not measured twice unless its recipe changes:
a stopped script goes on where it was. Methods with two seeds come first, with both, then all
others, the convolutional network before other encoders. What makes views is compiled before the
first row. A row that fails is told and left out, the others go on. `--table` prints the rows and
writes docs/learning_table.md; rows of more minutes than usual (--methods MAE --minutes 30) stand in
a table of their own there.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_table import Row, claims, page
from llvmlite import binding
from protocol import CODES, IMAGES, TESTED, chosen, family_of, in_order, known, minutes_of

import erg
from erg.durable import write_atomically
from erg.evaluate.knn import nearest, vote
from erg.evaluate.linear import linear_accuracy
from erg.evaluate.rank import effective_rank
from erg.train.preempt import Stopped
from erg.train.run import environment
from erg.views.kernels import compile_kernels

__all__ = ["claims", "run"]  # what benchmarks/readme.py asks for, and the script itself

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "learning_table.md"


@dataclass(frozen=True)
class Sets:
    """Images uint8 [n 32 32 3] and their classes [n], to train on and to be judged on.

    Args:
        train: images to train on.
        train_labels: their classes, for neighbours and probes.
        test: images to be judged on.
        test_labels: their classes.
        judged_on: of which file these are, `test` or `train`.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    judged_on: str = "test"

    @classmethod
    def read(cls, data: Path, images: int, tested: int, choose: bool = False) -> "Sets":
        """The first rows of both files; to choose by, the rows behind them of the first one.

        Raises:
            SystemExit: there are fewer than asked for.
        """
        judged_on = "train" if choose else "test"
        found: list[np.ndarray] = []
        for part, start, count in (
            ("train", 0, images), (judged_on, images if choose else 0, tested),
        ):  # fmt: skip
            source = erg.open_source(str(data / f"cifar10_{part}.parquet"), label="label")
            if start + count > len(source):
                raise SystemExit(
                    f"cifar10_{part}.parquet has {len(source)} images, and {start + count} are "
                    "asked for. Give less with --images and --tested."
                )
            rows = range(start, start + count)
            found.append(np.stack([source.read(i) for i in rows]))
            found.append(np.array([source.label(i) for i in rows]))
        return cls(*found, judged_on)


def scores(model: erg.Fitted | Path, sets: Sets) -> dict[str, float]:
    """Accuracies in per cent, and the effective rank of the images to be judged on."""
    bank, asked = (erg.embed(model, images).vectors for images in (sets.train, sets.test))
    found = nearest(bank, asked, k=min(200, len(bank)))
    right = {
        f"knn{k}": vote(found, sets.train_labels, k=min(k, len(bank)), temperature=t)
        == sets.test_labels
        for k, t in ((20, 0.07), (200, 0.1))
    }
    right["linear"] = linear_accuracy(bank, sets.train_labels, asked, sets.test_labels)
    rates = {name: round(100 * float(each.mean()), 2) for name, each in right.items()}
    return {**rates, "rank": round(effective_rank(asked), 2)}


def before(folder: Path, sets: Sets, results: Path) -> dict[str, float]:
    """Scores of an encoder before training, which are the same for many methods."""
    content = [(folder / name).read_bytes() for name in ("config.json", "model.safetensors")]
    sizes = f"{len(sets.train)} {len(sets.test)} {sets.judged_on}".encode()
    file = results / f"before-{hashlib.sha256(b''.join([*content, sizes])).hexdigest()[:16]}.json"
    if not file.exists():
        write_atomically(file, json.dumps(scores(folder, sets), indent=1).encode())
    return json.loads(file.read_text())


def after(fitted: erg.Fitted, sets: Sets) -> dict[str, dict[str, float]]:
    """Scores of what compares with the encoder before training, in full precision as that; of its
    code too where a method makes one."""
    whole = replace(fitted, run=replace(fitted.run, precision="32"))
    if fitted.run.method in CODES:
        return {"after": scores(fitted.folder / "encoder", sets), "code": scores(whole, sets)}
    return {"after": scores(whole, sets)}


def measure(run: erg.Run, sets: Sets, minutes: float, results: Path) -> Row:
    """Train, score, and collect what the run's own log says."""
    with tempfile.TemporaryDirectory() as place:
        health = erg.Health(looks=1, pairs=1000)
        start = time.monotonic()
        fitted = erg.fit(
            run, data=sets.train, out=Path(place) / "run", minutes=minutes, observers=(health,)
        )
        seconds = time.monotonic() - start
        first, *_, last = _logged(fitted.folder / "timing.jsonl")
        looks = [e for e in _logged(fitted.folder / "events.jsonl") if e["kind"] == "health"]
        found = {"before": before(fitted.folder / "encoder_start", sets, results)}
        found |= after(fitted, sets)
    done = fitted.run.batch * (last["step"] - first["step"])
    for when, look in (("before", looks[0]), ("after", looks[-1])):
        found[when]["auroc"] = look.get("auroc")
    return {
        "method": run.method,
        "family": family_of(run.method),
        "seed": run.seed,
        "minutes": minutes,
        "images": len(sets.train),
        "tested": len(sets.test),
        "judged_on": sets.judged_on,
        "training_seconds": round(seconds, 1),
        "steps": fitted.run.steps,
        "images_per_second": round(done / max(1e-3, last["seconds"] - first["seconds"]), 1),
        **found,
        "warning": looks[-1].get("warning"),
        "run": fitted.run.to_json(),
        "machine": {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()},
        "environment": environment(),
    }


def _logged(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return lines * 2 if len(lines) == 1 else lines


def same_recipe(row: Row, run: erg.Run) -> bool:
    """Whether a row is of this run, but for what its minutes and its images decided."""
    return _recipe(erg.Run.from_json(row["run"])) == _recipe(run)


def _recipe(run: erg.Run) -> dict[str, Any]:
    arguments = {name: value for name, value in run.method_args.items() if name != "size"}
    return replace(run, steps=1, method_args=arguments).to_json()


def missing(file: Path, run: erg.Run, options: argparse.Namespace) -> bool:
    """Whether a row is still to be measured, or was with another recipe or on other images."""
    if not file.exists():
        return True
    row = json.loads(file.read_text())
    asked = (options.images, options.tested, "train" if options.choose else "test")
    return (row["images"], row["tested"], row["judged_on"]) != asked or not same_recipe(row, run)


def run() -> None:
    """Measure what is missing, one file a row; or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="folder of the parquet files")
    parser.add_argument("--methods", nargs="+", default=known(), choices=known())
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of one or two of each")
    parser.add_argument("--minutes", type=float, help="of training, instead of the family's")
    parser.add_argument("--minutes-limit", type=float, help="start no row that would end later")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--tested", type=int, default=TESTED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--choose", action="store_true",
        help="judge on the training images behind those trained on; with --results",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULTS, help="for trials: elsewhere")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    options = parser.parse_args()
    if options.table:
        write_page(options.results)
        return
    if options.data is None:
        parser.error("DATA is missing: the folder with cifar10_train.parquet and its like")
    usual = (options.images, options.tested, options.choose) == (IMAGES, TESTED, False)
    if not usual and options.results == RESULTS:
        parser.error("other images than those of the table are for trials: say where by --results")
    torch.set_num_threads(options.threads)
    options.results.mkdir(parents=True, exist_ok=True)
    failed = measure_missing(options)
    if failed:
        sys.exit(f"{len(failed)} rows failed: {', '.join(failed)}. What was printed says why.")


def measure_missing(options: argparse.Namespace) -> list[str]:
    """Names of the rows that failed."""
    began, failed = time.monotonic(), list[str]()
    compile_kernels()  # else it would take of the minutes of the first row
    sets: Sets | None = None
    for method, seed in in_order(options.methods, options.seeds):
        minutes, recipe = options.minutes or minutes_of(method), chosen(method, seed)
        file = options.results / f"{method}-{minutes:g}min-seed{seed}.json"
        if not missing(file, recipe, options):
            continue
        gone = (time.monotonic() - began) / 60
        if options.minutes_limit and gone + minutes + 2.5 > options.minutes_limit:
            continue  # a shorter one may still fit
        sets = sets or Sets.read(options.data, options.images, options.tested, options.choose)
        try:
            row = measure(recipe, sets, minutes, options.results)
        except Stopped as stopped:
            sys.exit(stopped.code)
        except Exception:
            traceback.print_exc()
            failed.append(file.stem)
            continue
        write_atomically(file, json.dumps(row, indent=1).encode())
        gained = row["after"]["knn20"] - row["before"]["knn20"]
        print(f"{file.stem}: 20-NN {row['after']['knn20']:.1f} ({gained:+.1f})", flush=True)
    return failed


def write_page(results: Path) -> None:
    """Print the tables; those of the protocol's own results become the page."""
    done = {file.stem: json.loads(file.read_text()) for file in sorted(results.glob("*.json"))}
    if not any("method" in row for row in done.values()):
        sys.exit(f"There are no rows in {results} yet. Measure some first.")
    text = page(done)
    print(text)
    if results == RESULTS:
        PAGE.write_text(text)


if __name__ == "__main__":
    run()
