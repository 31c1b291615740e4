"""Reads a run folder, once, into a `Record`. Needs numpy, pyarrow and Pillow only.

Everything but run.json may be missing or damaged: the record then says so in one sentence, and
the report leaves that part out.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from erg import parquet
from erg.durable import LONGEST, open_regular, read_json
from erg.report.record import (
    MAX_SKIPPED,
    Curve,
    Difference,
    Energies,
    Interval,
    Manifest,
    Map,
    Neighbours,
    Record,
    Scores,
    Sheet,
    ViewGrid,
)

MAX_PICTURE = 32_000_000  # bytes; a sprite sheet of 10,000 thumbnails is about 10 MB
PIECES = {
    "scores.json": "There are no scores, since the encoder has not been evaluated yet.",
    "manifest.parquet": "There is no list of the files that were read.",
    "pictures/map.json": "There is no map, since none was drawn for this run.",
    "pictures/neighbours.json": "There are no neighbours, since none were searched for.",
    "pictures/views.json": "There are no pictures of the views the method saw.",
    "pictures/energies.json": "There are no energies, since none were measured.",
    "events.jsonl": "There are no curves, since nothing was logged.",
    "timing.jsonl": "Speed was not recorded.",
}

# What reading a damaged or hostile file may raise; anything else is a fault of ours.
DAMAGE = (
    *(OSError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, RecursionError, Image.DecompressionBombError, pa.ArrowException),
)

T = TypeVar("T")


class UnknownFormatError(ValueError):
    """A file written in a format this version has no reader for."""


def read_record(folder: Path) -> Record:
    """Read a run folder, whatever of it is there.

    Raises:
        FileNotFoundError: there is no run.json.
        ValueError: run.json is no JSON object.
        UnknownFormatError: a file has a format number this version cannot read.
    """
    try:
        run = read_json(folder / "run.json")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no run.json, so it is no run folder. Give the folder that "
            "`erg pretrain` wrote."
        ) from None
    except DAMAGE as error:
        raise ValueError(
            f"{folder / 'run.json'} cannot be read ({_one_line(error)}). Restore it from a backup, "
            "or repeat the run."
        ) from None
    return _reader({1: _record_1}, run, "run.json")(folder, run)


def _record_1(folder: Path, run: dict[str, Any]) -> Record:
    missing: dict[str, str] = {}
    notes: list[str] = []

    def piece(name: str, read: Callable[[Path], T]) -> T | None:
        """One optional file; damage is told, only an unknown format is an error."""
        if not (folder / name).exists():
            missing[name] = PIECES[name]
            return None
        try:
            return read(folder / name)
        except UnknownFormatError:
            raise
        except DAMAGE as error:
            missing[name] = f"This part is left out: {name} cannot be read ({_one_line(error)})."
            return None

    events = piece("events.jsonl", lambda path: list(_lines(path, notes))) or []
    steps = [e for e in events if e.get("kind") == "step"]
    health = [e for e in events if e.get("kind") == "health"]
    drawn = piece("pictures/map.json", lambda path: _read(path, {1: _map_1}))
    found = piece("pictures/neighbours.json", lambda path: _read(path, {1: _neighbours_1}))
    pairs = piece("pictures/energies.json", lambda path: _read(path, {1: _energies_1}))
    if found is not None and drawn is None:
        missing["pictures/neighbours.json"] = (
            "Neighbours are left out, since the map that holds their pictures is not there."
        )
        found = None
    if found is not None and drawn is not None:
        found = _within(found, len(drawn.path))
    warnings = [
        (_step(e), str(e["warning"]))
        for e in events
        if e.get("kind") in ("health", "shortcut", "left out", "lost") and e.get("warning")
    ]
    return Record(
        folder=folder,
        run=run,
        curves=_curves(steps),
        health=_curves(health),
        warnings=tuple(sorted(set(warnings))),
        timing=_curves(piece("timing.jsonl", lambda path: list(_lines(path, notes))) or []),
        scores=piece("scores.json", lambda path: _read(path, {1: _scores_1})),
        manifest=piece("manifest.parquet", _manifest),
        map=drawn,
        neighbours=found,
        views=piece("pictures/views.json", lambda path: _read(path, {1: _views_1})),
        energies=pairs[1] if pairs else None,
        pairing=pairs[0] if pairs else "",
        missing=missing,
        notes=tuple(notes),
    )


def _reader(readers: Mapping[int, T], data: Mapping[Any, Any], name: str) -> T:
    number = data.get("format")
    if type(number) is not int or number not in readers:
        raise UnknownFormatError(
            f"{name} has format {number!r}; this erg reads {', '.join(map(str, readers))}. "
            "Read it with the erg that wrote it, or a newer one."
        )
    return readers[number]


def _read(path: Path, readers: Mapping[int, Callable[[dict[str, Any], Path], T]]) -> T:
    data = _object(json.loads(_content(path)))  # not a number is a place, too: nowhere
    return _reader(readers, data, path.name)(data, path)


def _content(path: Path) -> bytes:
    """All of a file of bounded size."""
    with open_regular(path) as file:  # a pipe would be waited for
        content = file.read(MAX_PICTURE + 1)
    if len(content) > MAX_PICTURE:
        raise ValueError(f"{path.name} is larger than {MAX_PICTURE // 10**6} MB")
    return content


def _lines(path: Path, notes: list[str]) -> Iterable[dict[str, Any]]:
    """The objects of a .jsonl; a killed run leaves a half-written last line, which is dropped."""
    damaged = 0
    with open_regular(path) as file:
        while line := file.readline(LONGEST):
            try:
                event = _object(json.loads(line))
                _step(event)
            except DAMAGE:
                half_written = not line.endswith(b"\n")
                damaged += bool(line.strip()) and not half_written
                continue
            yield event
    if damaged:
        notes.append(f"{damaged} damaged line(s) of {path.name} were left out.")


def _curves(events: list[dict[str, Any]]) -> dict[str, Curve]:
    """The numbers of the events by name; where a step occurs twice the later line counts."""
    columns: dict[str, dict[int, float]] = {}
    for event in events:
        step = _step(event)
        for key, value in event.items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            for name, number in parts:
                if isinstance(number, int | float) and key not in ("step", "progress"):
                    with suppress(OverflowError):  # a whole number beyond all floats
                        value = float(number)
                        columns.setdefault(f"{key}/{name}" if name else key, {})[step] = value
    return {
        name: Curve(np.array(sorted(column), float), np.array([column[s] for s in sorted(column)]))
        for name, column in columns.items()
    }


def _scores_1(data: dict[str, Any], path: Path) -> Scores:
    rows = {
        str(row["name"]): {str(k): _interval(v) for k, v in _object(row["scores"]).items()}
        for row in data["rows"]
    }
    more = {**(data.get("clusters") or {})}
    more.update({k: data[k] for k in ("rankme", "alignment", "uniformity") if k in data})
    verdict = data.get("verdict") or {}
    gaps = {
        str(name): Difference(
            _interval(gap), bool(gap["clear"]), bool(gap.get("behind", _interval(gap).high < 0))
        )
        for name, gap in _object(verdict.get("gaps") or {}).items()
    }
    return Scores(
        split=str(data.get("split") or ""),
        label=None if data.get("label") is None else str(data["label"]),
        classes=None if data.get("classes") is None else int(data["classes"]),
        n_train=int(data.get("n_train") or 0),
        n_test=int(data.get("n_test") or 0),
        test=None if data.get("test") is None else str(data["test"]),
        rows=rows,
        more=_numbers(more),
        before=_numbers(_object(data.get("before") or {})),
        gaps=gaps,
        voters={str(k): int(v) for k, v in _object(data.get("voters") or {}).items()},
        seen=int(data.get("n_seen") or 0),
        primary=str(verdict.get("score") or ""),
        better=None if verdict.get("better") is None else bool(verdict["better"]),
        text=str(verdict.get("text") or ""),
    )


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {str(k): float(v) for k, v in values.items() if isinstance(v, int | float)}


def _map_1(data: dict[str, Any], path: Path) -> Map:
    names = tuple(str(name) for name in data["path"])
    x, y = np.asarray(data["x"], float), np.asarray(data["y"], float)
    label = data.get("label")
    labels = None if label is None else tuple(str(v) if v else None for v in label)
    if not len(x) == len(y) == len(names) == len(names if labels is None else labels):
        raise ValueError(f"{len(x)} x, {len(y)} y and {len(names)} paths")
    sheet = _sheet(path.with_name("thumbnails.webp"), data, len(names))
    return Map(sheet, str(data.get("projection") or ""), x, y, names, labels)


def _neighbours_1(data: dict[str, Any], path: Path) -> Neighbours:
    return tuple(
        (
            int(query["item"]),
            tuple((int(n["item"]), float(n["similarity"])) for n in query["neighbours"]),
        )
        for query in data["queries"]
    )


def _within(found: Neighbours, items: int) -> Neighbours:
    """Only the queries and neighbours that have a picture on the map."""
    return tuple(
        (query, tuple(n for n in near if 0 <= n[0] < items))
        for query, near in found
        if 0 <= query < items
    )


def _views_1(data: dict[str, Any], path: Path) -> ViewGrid:
    rows = tuple((str(r["path"]), tuple(str(c) for c in r["captions"])) for r in data["rows"])
    sheet = _sheet(path.with_name("views.webp"), data, len(rows) * int(data["columns"]))
    return ViewGrid(sheet, tuple((name, texts[: sheet.columns]) for name, texts in rows))


def _energies_1(data: dict[str, Any], path: Path) -> tuple[str, dict[str, Energies]]:
    measured = {
        when: Energies(
            np.asarray(data[when]["matched"], float),
            np.asarray(data[when]["mismatched"], float),
            _interval(data[when]["auroc"]) if data[when].get("auroc") else None,
        )
        for when in ("before", "after")
        if data.get(when)
    }
    return str(data.get("pairing") or ""), measured


def _sheet(path: Path, data: dict[str, Any], cells: int) -> Sheet:
    """A sprite sheet, after checking that it is a WebP large enough for its cells."""
    size, columns = int(data["size"]), int(data["columns"])
    content = _content(path)
    with Image.open(BytesIO(content), formats=["WEBP"]) as picture:
        width, height = picture.size
    if size < 1 or columns < 1 or size * columns > width or -(-cells // columns) * size > height:
        raise ValueError(f"{path.name} has no room for {cells} cells of {size} px")
    return Sheet(content, width, height, size, columns)


def _manifest(path: Path) -> Manifest:
    with open_regular(path) as file:
        opened = parquet.Table(file)
        table = opened.read(opened.schema.names)
    raw = (table.schema.metadata or {}).get(b"format", b"")
    meta = {"format": int(raw) if raw.isdigit() else None}
    return _reader({1: _manifest_1}, meta, path.name)(table)


def _manifest_1(table: pa.Table) -> Manifest:
    ok = table.filter(pc.field("status") == "ok")
    bad = table.filter(pc.field("status") != "ok")
    hashes = ok.filter(pc.field("hash") != "")["hash"]
    first = bad.slice(0, MAX_SKIPPED)
    labels = _counts(ok["label"]) if "label" in table.column_names else None
    return Manifest(
        total=len(table),
        skipped=len(bad),
        skipped_rows=tuple(
            (str(name), str(why))
            for name, why in zip(
                first["path"].to_pylist(), first["reason"].to_pylist(), strict=True
            )
        ),
        reasons=_counts(bad["reason"]),
        size=int(ok["size"].to_numpy().sum()),
        duplicates=len(hashes) - len(hashes.unique()),
        height=_spread(ok["height"]),
        width=_spread(ok["width"]),
        labels=labels or None,
    )


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, most frequent first, then by name."""
    pairs = [(v["values"], v["counts"]) for v in column.value_counts().to_pylist()]
    named = [(str(value), int(count)) for value, count in pairs if value is not None]
    return dict(sorted(named, key=lambda pair: (-pair[1], pair[0])))


def _spread(column: pa.ChunkedArray) -> tuple[int, int, int] | None:
    values = column.drop_null().to_numpy()
    if not len(values):
        return None
    return int(values.min()), int(np.median(values)), int(values.max())


def _interval(value: Any) -> Interval:
    middle = float(value["value"])
    low, high = value.get("low"), value.get("high")
    return Interval(
        middle, middle if low is None else float(low), middle if high is None else float(high)
    )


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, found {type(value).__name__}")
    return value


def _step(event: dict[str, Any]) -> int:
    step = int(event["step"])
    if abs(step) > 1 << 53:
        raise ValueError("no run has so many steps")
    return step


def _one_line(error: BaseException) -> str:
    name = type(error).__name__
    return " ".join(f"{name}: {error}".split())[:160]
