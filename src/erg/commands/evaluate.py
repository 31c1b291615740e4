"""erg evaluate: honest scores of a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


def main(arguments: Sequence[str]) -> int:
    return evaluate(tyro.cli(Options, args=list(arguments), prog="erg evaluate"), list(arguments))


@dataclass(frozen=True)
class Options:
    """Compare a run's encoder with itself before training, PCA and raw pixels.

    With labels: 20- and 200-nearest neighbours, linear probe, clusters. Without: how often an
    image is found again from another crop, which measures invariance, not usefulness.

    Args:
        run: the run folder.
        data: images to learn the probes on; the run's own if not given.
        label: where labels are found: a parquet column, or `folder`; where neither data nor test
            is given the run's own, if it has one.
        test: images to test on; without, data are split 80 / 20 by content.
        method: repeats a method given by path, which is code.
        device: cpu, cuda or mps; what is there if not given.
        devices: processes on this machine that share the embedding, and go on where it stopped;
            under torchrun or SLURM those it started.
    """

    run: tyro.conf.Positional[Path]
    data: tyro.conf.Positional[str | None] = None
    label: str | None = None
    test: str | None = None
    method: str | None = None
    device: str | None = None
    devices: int = 1


def evaluate(options: Options, arguments: list[str]) -> int:
    """Carry out the command; the exit code."""
    from erg.train.launch import in_group, relaunch

    if options.devices > 1 and not in_group():
        return relaunch(["evaluate", *arguments], options.devices)
    from erg.apply.scores import score
    from erg.commands.options import where
    from erg.commands.show import compiling, tell
    from erg.durable import write_atomically
    from erg.train.fitted import load
    from erg.train.processes import join

    device = where(options.device)
    compiling()
    if in_group():
        device = join(device)
    fitted = load(options.run, method=options.method, device=str(device))
    data = options.data if options.data is not None else fitted.run.data
    if not data:
        raise ValueError("the run was made from data in memory. Name the data to evaluate on.")
    own = options.label is None and options.data is None and options.test is None
    label = fitted.run.label if own else options.label
    sets: dict[str, Any] = {"data": data}
    if options.test is not None:
        sets["test"] = options.test
    if in_group():
        opened = _with_others(fitted, sets, label)
        if opened is None:
            return 0
        sets = opened
    test = sets.get("test")
    scores = score(fitted, sets["data"], label=label, test=test, tell=tell)
    scores |= {"data": data[:200], "test": options.test}
    write_atomically(options.run / "scores.json", json.dumps(scores).encode())
    print_scores(scores)
    return 0


def _with_others(fitted: Any, sets: dict[str, Any], label: str | None) -> dict[str, Any] | None:
    """The data with their vectors, which all processes made; None for all but the first."""
    from erg.apply.parts import Shared
    from erg.apply.ways import Ways
    from erg.commands.show import counting, tell

    start = Ways.of(fitted).start
    with counting("Embedding") as progress:
        shared = Shared(fitted, start, fitted.folder / "vectors")
        return shared.open(sets, label=label, tell=tell, progress=progress)


def print_scores(scores: dict[str, Any]) -> None:
    """A table of scores with intervals, and the verdict."""
    from rich.table import Table
    from rich.text import Text

    from erg.apply.verdict import title_of
    from erg.commands.show import console, tell

    kinds = list(dict.fromkeys(kind for row in scores["rows"] for kind in row["scores"]))
    title = f"{scores['n_test']} test images, {scores['split']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for kind in kinds:
        table.add_column(title_of(kind, scores.get("voters")), justify="right")
    for row in scores["rows"]:
        found = [row["scores"].get(kind) for kind in kinds]
        table.add_row(Text(row["name"]), *(_percent(score) for score in found))
    console.print(table)
    clusters = scores.get("clusters")
    if clusters:
        start = scores["before"]
        agreement = ", ".join(
            f"{key.upper()} {clusters[key]:.3f} (before training {_number(start.get(key), 3)})"
            for key in ("nmi", "ami", "ari")
        )
        tell(f"k-means with k = {clusters['k']}: {agreement}")
    before = scores["before"]
    told = [
        f"{name} {scores[key]:.{places}f} (before training {_number(before[key], places)})"
        for name, key, places in (
            ("RankMe", "rankme", 1), ("alignment", "alignment", 3), ("uniformity", "uniformity", 3)
        )
        if scores[key] is not None
    ]  # fmt: skip
    if told:
        tell(", ".join(told))
    if scores.get("n_seen"):
        tell(f"The encoder was trained on {scores['n_seen']:,} of the test images, without labels.")
    tell(scores["verdict"]["text"])


def _number(value: float | None, places: int) -> str:
    return "none" if value is None else f"{value:.{places}f}"


def _percent(score: dict[str, float] | None) -> str:
    """Value and interval in percent; nothing where a score is missing."""
    if score is None:
        return ""
    value, low, high = (100 * score[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
