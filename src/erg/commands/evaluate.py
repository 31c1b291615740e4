"""erg evaluate: honest scores of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(evaluate, args=list(arguments), prog="erg evaluate")


def evaluate(
    run: Path,
    data: str | None = None,
    /,
    *,
    label: str | None = None,
    test: str | None = None,
    method: str | None = None,
) -> int:
    """Compare a run's encoder with itself before training, PCA and raw pixels.

    With labels: 20- and 200-nearest neighbours, linear probe, clusters. Without: how often an
    image is found again from another crop, which measures invariance, not usefulness.

    Args:
        run: the run folder.
        data: images to learn the probes on; the run's own if not given.
        label: where labels are found: a parquet column, or `folder`.
        test: images to test on; without, data are split 80 / 20 by content.
        method: repeats a method given by path, which is code.
    """
    from erg.apply.scores import score
    from erg.commands.show import tell
    from erg.durable import write_atomically
    from erg.train.fit import load

    fitted = load(run, method=method)
    chosen = data if data is not None else fitted.run.data
    if not chosen:
        raise ValueError("the run was made from data in memory. Name the data to evaluate on.")
    scores = score(fitted, chosen, label=label, test=test, tell=tell)
    write_atomically(run / "scores.json", json.dumps(scores).encode())
    print_scores(scores)
    return 0


def print_scores(scores: dict[str, Any]) -> None:
    """A table of scores with intervals, and the verdict."""
    from rich.table import Table
    from rich.text import Text

    from erg.apply.scores import TITLES
    from erg.commands.show import console, tell

    kinds = list(dict.fromkeys(kind for row in scores["rows"] for kind in row["scores"]))
    title = f"{scores['n_test']} test images, {scores['split']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for kind in kinds:
        table.add_column(TITLES[kind], justify="right")
    for row in scores["rows"]:
        found = [row["scores"].get(kind) for kind in kinds]
        table.add_row(Text(row["name"]), *(_percent(score) for score in found))
    console.print(table)
    clusters = scores.get("clusters")
    if clusters:
        agreement = f"NMI {clusters['nmi']:.3f}, ARI {clusters['ari']:.3f}"
        tell(f"k-means with k = {clusters['k']}: {agreement}")
    tell(
        f"RankMe {scores['rankme']:.1f}, alignment {scores['alignment']:.3f}, "
        f"uniformity {scores['uniformity']:.3f}"
    )
    tell(scores["verdict"]["text"])


def _percent(score: dict[str, float] | None) -> str:
    """Value and interval in percent; nothing where a score is missing."""
    if score is None:
        return ""
    value, low, high = (100 * score[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
