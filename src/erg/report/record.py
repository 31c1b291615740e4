"""What a run folder holds, as frozen data: what the report is written from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAX_SKIPPED = 200  # rows of the table of skipped files


class Interval(NamedTuple):
    """A number and its bootstrap interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """How far the encoder is ahead of a baseline over the same items, and whether it is clearly
    ahead or behind."""

    interval: Interval
    clear: bool
    behind: bool


class Curve(NamedTuple):
    """A number against the optimiser step; steps ascend and occur once."""

    step: np.ndarray  # float64 [n]
    value: np.ndarray  # float64 [n], may hold NaN and infinity


class Sheet(NamedTuple):
    """A WebP picture made of square cells, row-major."""

    data: bytes
    width: int  # pixels
    height: int  # pixels
    size: int  # side of a cell, pixels
    columns: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """scores.json; `rows` maps the name of a way to embed to its scores in [0, 1]."""

    split: str
    label: str | None
    classes: int | None
    n_train: int
    n_test: int
    test: str | None
    rows: dict[str, dict[str, Interval]]
    more: dict[str, float]
    before: dict[str, float]  # the same of the encoder before training
    gaps: dict[str, Difference]  # to the score of each baseline; empty in older files
    voters: dict[str, int]  # neighbours that voted, by score
    seen: int  # test images that training saw, without labels
    primary: str  # the score the verdict rests on
    better: bool | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.parquet in numbers, and its skipped files (the first `MAX_SKIPPED` of them)."""

    total: int
    skipped: int
    skipped_rows: tuple[tuple[str, str], ...]
    reasons: dict[str, int]
    size: int  # bytes, of the images that were read
    duplicates: int  # images whose content occurs earlier
    height: tuple[int, int, int] | None  # smallest, median, largest; pixels
    width: tuple[int, int, int] | None
    labels: dict[str, int] | None


@dataclass(frozen=True)
class Map:
    """pictures/map.json: a point and a thumbnail per image."""

    sheet: Sheet
    projection: str
    x: np.ndarray  # float64 [n]
    y: np.ndarray
    path: tuple[str, ...]
    label: tuple[str | None, ...] | None


@dataclass(frozen=True)
class ViewGrid:
    """pictures/views.json: per row the path of an image and the captions of its cells."""

    sheet: Sheet
    rows: tuple[tuple[str, tuple[str, ...]], ...]


Neighbours = tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
"""Queries and their (item, similarity) in descending order; items index the map."""


class Energies(NamedTuple):
    """Energies of pairs that belong together and of pairs that do not."""

    matched: np.ndarray  # float64 [n]
    mismatched: np.ndarray
    auroc: Interval | None


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run folder.

    Args:
        folder: where it was read.
        run: run.json.
        curves: of training: "loss", "lr", "grad_norm", "pull/NAME", "push/NAME", ...
        health: "std", "rank", "auroc", "knn"; step 0 is the encoder before training.
        warnings: step and text of every warning of those who watched.
        timing: "seconds" since the start, "images_per_second".
        neighbours: of some items of the map (see `Neighbours`).
        energies: "before" and "after" training.
        pairing: what the pairs of `energies` are (see `erg.views.plan.Plan`).
        missing: file name -> one sentence why that part is not there.
        notes: what else the reader of the report should know about damaged files.
    """

    folder: Path
    run: dict[str, Any]
    curves: dict[str, Curve] = field(default_factory=dict)
    health: dict[str, Curve] = field(default_factory=dict)
    warnings: tuple[tuple[int, str], ...] = ()
    timing: dict[str, Curve] = field(default_factory=dict)
    scores: Scores | None = None
    manifest: Manifest | None = None
    map: Map | None = None
    neighbours: Neighbours | None = None
    views: ViewGrid | None = None
    energies: dict[str, Energies] | None = None
    pairing: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
