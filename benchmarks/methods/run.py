"""The learning table: every method that learns from images, beside its encoder before training.

    python benchmarks/methods/run.py DATA [--methods SimCLR ...] [--minutes-limit 60]
    python benchmarks/methods/run.py --table

The first 20,000 training images of CIFAR-10 without their labels, then kNN and a linear probe on
the 10,000 test images, with the same 20,000 as neighbours. Methods share an encoder with those of
their family (`family_of`): 3 minutes of training for the convolutional network and for methods
without one, 10 for patches and for plans with small crops. Heads, batches and rates are those of
`recipes.cifar`; teachers start at momentum 0.99, since slower ones hardly move in minutes.

A row is one file in results/, whole or absent, and is not measured twice: a stopped script goes on
where it was. All methods come once, the convolutional network first, before any comes again. A row
that fails is told and left out, the others go on. `--table` prints the rows and writes
docs/learning_table.md; rows of more minutes than usual stand in a table of their own there.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import binding

import erg
from erg import catalog
from erg.durable import write_atomically
from erg.evaluate.knn import nearest, vote
from erg.evaluate.linear import linear_accuracy
from erg.evaluate.rank import effective_rank
from erg.recipes.cifar import small
from erg.recipes.default import (
    OF_MANY_PATCHES,
    OF_PATCHES,
    OF_TOKENS,
    WITHOUT_A_CLASS,
    Seen,
)
from erg.schedule import Cosine, Schedule
from erg.train.preempt import Stopped
from erg.train.run import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "learning_table.md"
IMAGES, TESTED = 20_000, 10_000
GAIN = 3.0
"""Points of 20-NN that a method should gain over its encoder before training."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Methods that share an encoder.

    Args:
        title: of their table.
        minutes: of training, without small crops.
        choices: fields of the run, over those of `recipes.cifar`.
    """

    title: str
    minutes: float
    choices: dict[str, Any] = field(default_factory=dict)


CONVNET, PIXELS, VIT, SWIN = "convnet", "pixels", "ViT", "Swin"
FAMILIES = {
    CONVNET: Family("Convolutional network of 4 stages, the default for small images", 3),
    PIXELS: Family("No network: pixels, contrast taken out", 3),
    VIT: Family(
        "ViT of width 128, patches of 4 pixels, 6 blocks", 10,
        {
            "encoder": "vit_tiny_patch16_224",
            "encoder_args": {
                "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4,
                "dynamic_img_size": True,
            },
            "batch": 128,
        },
    ),
    SWIN: Family(
        "Swin of widths 64 and 128, patches of 4 pixels, 6 blocks", 10,
        {
            "encoder": "swin_tiny_patch4_window7_224",
            "encoder_args": {
                "embed_dim": 64, "depths": [2, 4], "num_heads": [2, 4], "window_size": 4,
                "strict_img_size": False,
            },
            "batch": 128,
        },
    ),
}  # fmt: skip
CROPPED_MINUTES = 10

OF_VIT = (*OF_PATCHES, *OF_MANY_PATCHES, "DINO", "LeJEPA", "MoCoV3")
"""Which need patches, or whose papers rest on ViTs (recipes/leaderboard.py)."""
OF_SWIN = ("EsViT",)
LEFT_OUT = {
    **dict.fromkeys(OF_TOKENS, "takes sequences of tokens"),
    "Distillation": "needs a classifier that has seen labels",
    "MaximumLikelihood": "adds up over a plane: its encoder has two features",
}
TWICE = ("SimCLR", "BYOL", "VICReg", "SwAV", "DINO", "MAE")
"""Which are measured with two seeds, the others with one."""


def family_of(method: str) -> str:
    """By the published form: the networks of the paper, and none where none is trained."""
    if not catalog.find(method).trains_encoder:
        return PIXELS
    return VIT if method in OF_VIT else SWIN if method in OF_SWIN else CONVNET


def chosen(method: str, seed: int) -> erg.Run:
    """The run of a row; its steps are measured to fit."""
    run = small(Seen(IMAGES, 32, False), method, seed=seed, **FAMILIES[family_of(method)].choices)
    momentum = catalog.arguments(catalog.find(method)).get("momentum")
    follows = momentum is not None and isinstance(momentum.default, Schedule)
    quick = {"momentum": Cosine(0.99, 1.0)} if follows else {}
    form = WITHOUT_A_CLASS.get(method, {}) if family_of(method) == VIT else {}
    return replace(
        run, method_args={**quick, **run.method_args}, encoder_args={**run.encoder_args, **form}
    )


@cache
def minutes_of(method: str) -> float:
    """How long a method trains [minutes]."""
    usual = FAMILIES[family_of(method)].minutes
    return max(usual, CROPPED_MINUTES) if chosen(method, 0).build().plan().local else usual


@dataclass(frozen=True)
class Sets:
    """Images uint8 [n 32 32 3] and their classes [n], to train on and to test on."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    @classmethod
    def read(cls, data: Path, images: int, tested: int) -> "Sets":
        """The first rows of both files."""
        found: list[np.ndarray] = []
        for part, count in (("train", images), ("test", tested)):
            source = erg.open_source(str(data / f"cifar10_{part}.parquet"), label="label")
            rows = range(min(count, len(source)))
            found.append(np.stack([source.read(i) for i in rows]))
            found.append(np.array([source.label(i) for i in rows]))
        return cls(*found)


def scores(model: erg.Fitted | Path, sets: Sets) -> dict[str, float]:
    """Accuracies in per cent, and the effective rank of the test set."""
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
    sizes = f"{len(sets.train)} {len(sets.test)}".encode()
    file = results / f"before-{hashlib.sha256(b''.join([*content, sizes])).hexdigest()[:16]}.json"
    if not file.exists():
        write_atomically(file, json.dumps(scores(folder, sets), indent=1).encode())
    return json.loads(file.read_text())


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
        earlier = before(fitted.folder / "encoder_start", sets, results)
        later = scores(fitted, sets)
    done = fitted.run.batch * (last["step"] - first["step"])
    return {
        "method": run.method,
        "family": family_of(run.method),
        "seed": run.seed,
        "minutes": minutes,
        "images": len(sets.train),
        "tested": len(sets.test),
        "training_seconds": round(seconds, 1),
        "steps": fitted.run.steps,
        "images_per_second": round(done / max(1e-3, last["seconds"] - first["seconds"]), 1),
        "before": {**earlier, "auroc": looks[0].get("auroc")},
        "after": {**later, "auroc": looks[-1].get("auroc")},
        "warning": looks[-1].get("warning"),
        "run": fitted.run.to_json(),
        "machine": {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()},
        "environment": environment(),
    }


def _logged(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return lines * 2 if len(lines) == 1 else lines


def of_family(family: str) -> list[str]:
    """The methods of the table that share an encoder."""
    return [name for name in known() if family_of(name) == family]


def in_order(methods: list[str], seeds: list[int] | None) -> Iterator[tuple[str, int]]:
    """All methods once, family after family, before any comes again."""
    order = sorted(methods, key=lambda name: list(FAMILIES).index(family_of(name)))
    for seed in seeds or (0, 1):
        yield from ((name, seed) for name in order if seeds or seed == 0 or name in TWICE)


def known() -> list[str]:
    """The methods of the table."""
    return [name for name in catalog.names() if name not in LEFT_OUT]


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
    parser.add_argument("--results", type=Path, default=RESULTS, help="for trials: elsewhere")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    options = parser.parse_args()
    if options.table:
        write_page(options.results)
        return
    if options.data is None:
        parser.error("DATA is missing: the folder with cifar10_train.parquet and its like")
    usual = (options.images, options.tested) == (IMAGES, TESTED)
    if not usual and options.results == RESULTS:
        parser.error("other numbers of images are for trials: say where with --results")
    torch.set_num_threads(options.threads)
    options.results.mkdir(parents=True, exist_ok=True)
    failed = measure_missing(options)
    if failed:
        sys.exit(f"{len(failed)} rows failed: {', '.join(failed)}. What was printed says why.")


def measure_missing(options: argparse.Namespace) -> list[str]:
    """Names of the rows that failed."""
    began, failed = time.monotonic(), list[str]()
    sets: Sets | None = None
    for method, seed in in_order(options.methods, options.seeds):
        minutes = options.minutes or minutes_of(method)
        file = options.results / f"{method}-{minutes:g}min-seed{seed}.json"
        if file.exists():
            continue
        gone = (time.monotonic() - began) / 60
        if options.minutes_limit and gone + minutes + 1.5 > options.minutes_limit:
            continue  # a shorter one may still fit
        sets = sets or Sets.read(options.data, options.images, options.tested)
        try:
            row = measure(chosen(method, seed), sets, minutes, options.results)
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


@dataclass(frozen=True)
class Line:
    """The rows of one method at one number of minutes: means over seeds.

    Args:
        method: by name.
        minutes: of training.
        rows: one for each seed.
    """

    method: str
    minutes: float
    rows: list[Row]

    def mean(self, when: str, kind: str) -> float | None:
        found = [row[when][kind] for row in self.rows if row[when][kind] is not None]
        return statistics.mean(found) if found else None

    @property
    def gain(self) -> float:
        """Points of 20-NN over the encoder before training."""
        return statistics.mean(row["after"]["knn20"] - row["before"]["knn20"] for row in self.rows)

    def cells(self) -> list[str]:
        made = [self.method, f"{self.minutes:g}", str(len(self.rows)), f"{self.gain:+.1f}"]
        for kind, places in (("knn20", 1), ("knn200", 1), ("linear", 1), ("auroc", 2), ("rank", 0)):
            both = [self.mean(when, kind) for when in ("before", "after")]
            made.append(" → ".join("-" if v is None else f"{v:.{places}f}" for v in both))
        speed = statistics.mean(row["images_per_second"] for row in self.rows)
        return [*made, f"{speed:,.0f}", f"{statistics.mean(r['steps'] for r in self.rows):,.0f}"]


COLUMNS = (
    "method", "minutes", "seeds", "20-NN gained", "20-NN [%]", "200-NN [%]", "linear probe [%]",
    "AUROC of energies", "effective rank", "images/s", "steps",
)  # fmt: skip


def lines_of(done: dict[str, Row]) -> list[Line]:
    """Rows of the protocol, by method and minutes, the largest gain first."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in done.values():
        if "method" in row and (row["images"], row["tested"]) == (IMAGES, TESTED):
            groups.setdefault((row["method"], row["minutes"]), []).append(row)
    lines = [Line(*key, rows) for key, rows in groups.items()]
    return sorted(lines, key=lambda line: -line.gain)


def usual_lines(done: dict[str, Row], family: str) -> list[Line]:
    """Those of a family that trained as long as the protocol says."""
    return [
        line for line in lines_of(done)
        if line.rows[0]["family"] == family and line.minutes == minutes_of(line.method)
    ]  # fmt: skip


def claims(done: dict[str, Row]) -> list[tuple[str, str, str]]:
    """What is claimed of the convolutional network, the bar, and what was measured."""
    lines = usual_lines(done, CONVNET)
    if not lines:
        return []
    learned = sum(line.gain >= GAIN for line in lines)
    least = lines[-1]
    measured = (
        f"{learned} of {len(of_family(CONVNET))} ({len(lines)} measured; least: {least.method} "
        f"{least.gain:+.1f})"
    )
    usual = FAMILIES[CONVNET].minutes
    claim = f"methods that gain {GAIN:g} points of 20-NN in {usual:g} minutes"
    longer = [f"{line.method}: {line.minutes:g}" for line in lines if line.minutes > usual]
    claim += f" ({', '.join(longer)})" if longer else ""
    return [(f"{claim}, convnet", "all", measured)]


INTRODUCTION = """\
# The learning table

Every method that learns from images, trained without labels on the first 20,000 training images of
CIFAR-10, beside its own encoder before training (before → after). The 10,000 test images are
classified by the 20 and 200 nearest of those 20,000 and by a linear probe. AUROC: how well the
method's energy tells what belongs together from what does not, on 1,000 images held out of
training. Effective rank: of the features of the test images. One encoder for each family of
methods: a ViT where a method needs patches or its paper rests on ViTs, a Swin where on Swins, no
network where a method trains none, else the convolutional network. These are minutes on a CPU with
untuned rates; they say whether a method learns, not which one is best in the end.

Written by `python benchmarks/methods/run.py --table`; the rows are in benchmarks/methods/results.
"""


def page(done: dict[str, Row]) -> str:
    """The tables as a page of the docs."""
    parts = [INTRODUCTION]
    for name, family in FAMILIES.items():
        lines = usual_lines(done, name)
        if lines:
            parts += [f"## {family.title}\n", _table(lines)]
            below = [line for line in lines if line.gain < GAIN]
            measured = {line.method for line in lines}
            absent = [method for method in of_family(name) if method not in measured]
            parts.append(
                f"{len(lines) - len(below)} of {len(lines)} gain {GAIN:g} points of 20-NN or more."
                + (f" Not: {', '.join(line.method for line in below)}." if below else "")
                + (f" Not measured yet: {', '.join(absent)}." if absent else "")
                + "\n"
            )
    longer = [line for line in lines_of(done) if line.minutes > minutes_of(line.method)]
    if longer:
        parts += ["## Longer runs\n", _table(longer)]
    warned = sorted(
        {f"- {row['method']}: {row['warning']}" for row in done.values() if row.get("warning")}
    )
    if warned:
        parts += ["## What the health monitor said\n", "\n".join(warned) + "\n"]
    out = "; ".join(f"{name} {why}" for name, why in LEFT_OUT.items() if name in catalog.names())
    parts.append(f"Left out: {out}.\n")
    rows = [row for row in done.values() if "machine" in row]
    told = sorted({_machine(row) for row in rows})
    return "\n".join([*parts, f"Measured on: {'; '.join(told)}.\n"])


def _machine(row: Row) -> str:
    machine, versions = row["machine"], row["environment"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {versions['threads']} threads, torch "
        f"{versions['torch']}, erg {versions['erg']}"
    )


def _table(lines: list[Line]) -> str:
    head = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    return "\n".join([*head, *(f"| {' | '.join(line.cells())} |" for line in lines)]) + "\n"


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
