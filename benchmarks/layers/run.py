"""At which depth do the classes lie? A pretext method beside a contrastive one.

    python benchmarks/layers/run.py DATA [--seeds 0 1] [--picture FILE.png] [--threads 1]

Rotation and SimCLR train the same network, from the same weights, with batches of as many images
and for the same minutes of wall clock, on the 50,000 training images of CIFAR-10 without labels;
all else is at its default. Then a linear probe is fitted on every stage and on the output of both,
and of the network before training: 10,000 training images to fit on, the 10,000 test images to be
right about. Stages are averaged down to 512 to 1,024 values; the output has 256.

The best layer of a network is chosen by those of the training images that chose its probe's C, and
only then do the test images tell how far it is ahead of the last stage, which has as many values as
any. What is in results.json already is not measured again, unless its recipe has changed. All takes
about 40 minutes.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import binding

import erg
from erg import landscape
from erg.apply.embed import evenly, open_for
from erg.apply.layers import OUTPUT, layers
from erg.durable import write_atomically
from erg.evaluate.intervals import Score, difference
from erg.landscape.draw import Canvas, Figure
from erg.recipes.default import Seen, default
from erg.train.checkpoint import state_hash
from erg.train.run import environment

RESULTS = Path(__file__).parent / "results.json"
MINUTES, IMAGES, VALUES = 5.0, 10_000, 1024
UNTRAINED, PRETEXT, CONTRASTIVE = NETWORKS = "before training", "Rotation", "SimCLR"

CHOICES: dict[str, Any] = {
    "encoder": "conv",
    "encoder_args": {"width": 16, "stages": 5, "whole": True, "blocks": [1, 1, 1, 1]},
    "batch": 128,
}
"""Nine narrow convolutions, which see every image several times within minutes. No shortcut leads
past a stage, so a stage can lose what it was given; Rotation needs steps more than large batches.
"""


def run_of(network: str, data: str, seed: int) -> erg.Run:
    """What is trained, or would be: before training all are the same network."""
    method = PRETEXT if network == UNTRAINED else network
    seen = Seen(50_000, 32, False)
    return default(seen, data=data, method=method, seed=seed, hold_out=0, **CHOICES)[0]


def of_today(done: dict[str, Any], minutes: float) -> dict[str, Any]:
    """Without networks of other recipes or minutes, which are to be measured again."""
    kept: dict[str, Any] = {}
    for key, row in done.items():
        network, seed = key.split("; seed ")
        run = erg.Run.from_json(row["run"])
        same = recipe(run) == recipe(run_of(network, run.data, int(seed)))
        if same and row["minutes"] == minutes:
            kept[key] = row
        else:
            print(f"{key}: left out, for its recipe has changed", flush=True)
    return kept


def recipe(run: erg.Run) -> dict[str, Any]:
    """A run but for its steps, which minutes decided."""
    return replace(run, steps=1).to_json()


def measure(network: str, data: Path, minutes: float, images: int, seed: int) -> dict[str, Any]:
    """Train for some minutes, if at all, and probe every layer."""
    train, test = (str(data / f"cifar10_{part}.parquet") for part in ("train", "test"))
    run = run_of(network, train, seed)
    encoder = run.build().encoder
    about: dict[str, Any] = {"starts_as": state_hash(encoder), "run": run.to_json()}
    if network != UNTRAINED:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            fitted = erg.fit(run, out=Path(folder) / "run", minutes=minutes, observers=())
        encoder = fitted.encoder
        about |= {
            "steps": fitted.run.steps,
            "training_seconds": round(time.monotonic() - start, 1),
        }
    opened, other = (open_for(encoder, each, label="label") for each in (train, test))
    rows, asked = (evenly(each.rows, images) for each in (opened, other))
    start = time.monotonic()
    curve = layers(encoder, opened, rows, other, asked, values=VALUES)
    # The later of two equal ones: nothing is claimed of a tie.
    best = max(reversed(curve), key=lambda layer: layer.validation)
    last, output = curve[-2:]
    copies = other.manifest.hashes[asked]
    return {
        "layers": [
            {"name": layer.name, "values": layer.values, "accuracy": _three(layer.accuracy),
             "validation": round(100 * layer.validation, 2)}
            for layer in curve
        ],
        "best": best.name,
        "ahead_of_last_stage": _three(difference(best.right, last.right, groups=copies)),
        "ahead_of_output": _three(difference(best.right, output.right, groups=copies)),
        "minutes": minutes, "images": [len(rows), len(asked)],
        "probing_seconds": round(time.monotonic() - start, 1),
        **about,
        "machine": {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()},
        "environment": environment(),
    }  # fmt: skip


def _three(score: Score) -> list[float]:
    """Value, low and high in points."""
    return [round(100 * v, 2) for v in (score.value, score.low, score.high)]


def run() -> None:
    """Measure what is missing, write after each network, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--images", type=int, default=IMAGES, help="to fit on, and to test on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="for trials: elsewhere")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--picture", type=Path, help="draw the curves: .png, .svg or .pdf")
    parser.add_argument("--theme", default="light", choices=("light", "dark"))
    options = parser.parse_args()
    usual = (options.minutes, options.images) == (MINUTES, IMAGES)
    if not usual and options.results == RESULTS:
        parser.error("other minutes or numbers of images are for trials: say where with --results")
    torch.set_num_threads(options.threads)
    done = json.loads(options.results.read_text()) if options.results.exists() else {}
    done = of_today(done, options.minutes)
    for seed in options.seeds:
        for network in options.networks:
            key = f"{network}; seed {seed}"
            if key not in done:
                done[key] = measure(network, options.data, options.minutes, options.images, seed)
                write_atomically(options.results, json.dumps(done, indent=1).encode())
                print(key, [layer["accuracy"][0] for layer in done[key]["layers"]], flush=True)
    table(done)
    if options.picture:
        print(landscape.save(Curves.of(done), options.picture, theme=options.theme))


def by_network(done: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What was measured of each network, one for each seed."""
    found = {n: [row for key, row in done.items() if key.startswith(f"{n};")] for n in NETWORKS}
    return {network: rows for network, rows in found.items() if rows}


@dataclass(frozen=True, eq=False)
class Curves(Figure):
    """Accuracy over depth: means over seeds, lowest and highest seed.

    Args:
        names: of the layers.
        curves: percent by network [seeds layers].
    """

    size = (7.0, 4.4)
    names: tuple[str, ...]
    curves: dict[str, np.ndarray]

    @classmethod
    def of(cls, done: dict[str, Any]) -> "Curves":
        found = by_network(done)
        names = [layer["name"] for layer in next(iter(done.values()))["layers"]]
        return cls(tuple(names), {
            network: np.array([[each["accuracy"][0] for each in row["layers"]] for row in rows])
            for network, rows in found.items()
        })  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {
            f"{network}, {name}": float(value)
            for network, curve in self.curves.items()
            for name, value in zip(self.names, curve.mean(axis=0), strict=True)
        }

    def draw(self, canvas: Canvas) -> None:
        ax, at = canvas.panels(1, 1)[0, 0], np.arange(len(self.names))
        drawn = (canvas.theme.quiet, *canvas.theme.colours)
        colours = dict[str, str](zip(NETWORKS, drawn, strict=False))
        for network, curve in self.curves.items():
            colour = colours[network]
            ax.plot(at, curve.mean(axis=0), color=colour, marker="o", label=network)
            ax.fill_between(
                at, curve.min(axis=0), curve.max(axis=0), color=colour, alpha=0.2, linewidth=0
            )
        ax.set(xticks=at, xticklabels=self.names, ylabel="linear probe [%]")
        ax.set_title("CIFAR-10: linear probe at every depth")
        ax.legend()


def table(done: dict[str, Any]) -> None:
    """A line for each layer, means over seeds with the lowest and the highest; then what is
    claimed."""
    found = by_network(done)
    if not found:
        return
    print(f"| layer | values | {' | '.join(found)} |\n|---|---|{'---|' * len(found)}")
    for i, layer in enumerate(next(iter(done.values()))["layers"]):
        cells = [_spread([row["layers"][i]["accuracy"][0] for row in rows], "{:.1f}")
                 for rows in found.values()]  # fmt: skip
        print(f"| {layer['name']} | {layer['values']} | {' | '.join(cells)} |")
    for network, rows in found.items():
        for row in rows:
            value, low, high = row["ahead_of_output"]
            print(f"{network}: best {row['best']}, {value:+.1f} points above the {OUTPUT} "
                  f"({low:+.1f} to {high:+.1f})")  # fmt: skip
    for what, bar, measured in claims(done):
        print(f"{what}; bar {bar}; measured {measured}")


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured: the mean over seeds, lowest to highest."""
    found = by_network(done)
    told: list[tuple[str, str, str]] = []
    for network, bar in ((PRETEXT, "> 0"), (CONTRASTIVE, f"less than {PRETEXT}")):
        if network in found:
            rows = found[network]
            best = " and ".join(dict.fromkeys(row["best"] for row in rows))
            ahead = _spread([row["ahead_of_last_stage"][0] for row in rows], "{:+.1f}")
            what = f"linear probe by depth, {network}: best layer above the last stage [points]"
            told.append((what, bar, f"{ahead}: {best}"))
    return told


def _spread(values: list[float], form: str) -> str:
    """Mean (lowest to highest)."""
    mean, low, high = (form.format(f(values)) for f in (statistics.mean, min, max))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


if __name__ == "__main__":
    run()
