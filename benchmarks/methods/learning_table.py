"""From the rows of the learning table to its page in the docs, and to what is claimed of it."""

import statistics
from dataclasses import dataclass
from typing import Any

from protocol import (
    CONVNET,
    FAMILIES,
    GAIN,
    IMAGES,
    LEFT_OUT,
    TESTED,
    minutes_of,
    of_family,
)

from erg import catalog

Row = dict[str, Any]


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
        """Of a score before or after training, or of the code; None where there is none."""
        found = [row[when][kind] for row in self.rows if row.get(when, {}).get(kind) is not None]
        return statistics.mean(found) if found else None

    @property
    def gain(self) -> float:
        """Points of 20-NN over the encoder before training."""
        return statistics.mean(row["after"]["knn20"] - row["before"]["knn20"] for row in self.rows)

    def cells(self) -> list[str]:
        """One for each of `COLUMNS`."""
        made = [self.method, f"{self.minutes:g}", str(len(self.rows)), f"{self.gain:+.1f}"]
        for kind, places in (("knn20", 1), ("knn200", 1), ("linear", 1), ("auroc", 2), ("rank", 0)):
            both = [self.mean(when, kind) for when in ("before", "after")]
            made.append(" → ".join(_number(value, places) for value in both))
        made.append(_number(self.mean("code", "knn20"), 1))
        for kind in ("images_per_second", "steps"):
            made.append(f"{statistics.mean(row[kind] for row in self.rows):,.0f}")
        return made


COLUMNS = (
    "method", "minutes", "seeds", "20-NN gained", "20-NN [%]", "200-NN [%]", "linear probe [%]",
    "AUROC of energies", "effective rank", "20-NN of its code [%]", "images/s", "steps",
)  # fmt: skip


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"


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
classified by the 20 and 200 nearest of those 20,000 and by a linear probe; settings that were tried
out were tried on other training images. Where a method makes a code of its encoder's features, it
is the encoder that is judged, and the code has a column of its own. AUROC: how well the method's
energy tells what belongs together from what does not, on 1,000 images held out of training.
Effective rank: of the features of the test images. One encoder for each family of methods: a ViT
where a method needs patches or its paper rests on ViTs, a Swin where on Swins, no network where a
method trains none, else the convolutional network. These are minutes on a CPU with untuned rates;
they say whether a method learns, not which one is best in the end.

Written by `python benchmarks/methods/run.py --table`; the rows are in benchmarks/methods/results.
"""

NOTES = {
    "ClusterFit": "the finished encoder whose clusters it learns was one before training",
    "Colourisation": "judged on the lightness of images, since its encoder sees no colours",
    "GaussianMixture": "its code is the shares of 16 Gaussians: more minutes change little, as for "
    "KMeans",
    "KMeans": "its code is one of 64 wells: more minutes change little, a larger k does much",
    "PCA": "32 directions in closed form: more minutes change nothing",
}
"""What has to be known to understand a method's line."""


def page(done: dict[str, Row]) -> str:
    """The tables as a page of the docs."""
    parts = [INTRODUCTION]
    if any(row.get("judged_on") == "train" for row in done.values()):
        parts.append("These are trials: judged on other training images, not on the test images.\n")
    for name, family in FAMILIES.items():
        lines = usual_lines(done, name)
        if lines:
            parts += [f"## {family.title}\n", _table(lines), _said_of(lines, of_family(name))]
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


def _said_of(lines: list[Line], methods: list[str]) -> str:
    """What stands below the table of a family: who learned, who is missing, and the notes."""
    below = [line.method for line in lines if line.gain < GAIN]
    measured = sorted(line.method for line in lines)
    absent = [method for method in methods if method not in measured]
    said = (
        f"{len(lines) - len(below)} of {len(lines)} gain {GAIN:g} points of 20-NN or more."
        + (f" Not: {', '.join(below)}." if below else "")
        + (f" Not measured yet: {', '.join(absent)}." if absent else "")
    )
    notes = "".join(f"- {method}: {NOTES[method]}.\n" for method in measured if method in NOTES)
    return f"{said}\n\n{notes}" if notes else f"{said}\n"


def _machine(row: Row) -> str:
    machine, versions = row["machine"], row["environment"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {versions['threads']} threads, torch "
        f"{versions['torch']}, erg {versions['erg']}"
    )


def _table(lines: list[Line]) -> str:
    head = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    return "\n".join([*head, *(f"| {' | '.join(line.cells())} |" for line in lines)]) + "\n"
