"""The report: one HTML file made from a run folder, with no network and nothing to install.

The page carries a strict content security policy: only the style and the script of this file run,
by a nonce, and only pictures inside the file load. Names of files and classes are text everywhere:
Jinja escapes them in the page, `_json` in the data, and the script writes them with textContent.
"""

import base64
import json
import math
import secrets
from collections import Counter
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from erg.durable import write_atomically
from erg.report import charts, words
from erg.report.charts import Bar, Series
from erg.report.read import read_record
from erg.report.record import Curve, Map, Record, Sheet, ViewGrid

ASSETS = Path(__file__).parent / "page"
MAX_SHEET = 3_000_000  # bytes; larger sprite sheets are compressed harder, the page stays < 6 MB
NOTHING = (math.nan,) * 3
MAX_QUERIES, MAX_NEIGHBOURS, MAX_VIEWS, MAX_LABELS = 24, 12, 16, 24


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run: complete, or not at all.

    Args:
        run: the run folder.
        out: the file to write; report.html in the run folder if not given.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: `run` is no run folder.
        ValueError: run.json is damaged, or a file has an unknown format.
    """
    run = Path(run)
    target = run / "report.html" if out is None else Path(out)
    # Names may hold what HTML and UTF-8 cannot (NUL, undecodable bytes of old file systems).
    page = render(read_record(run)).replace("\0", "\ufffd").encode("utf-8", errors="replace")
    write_atomically(target, page)
    return target


def render(record: Record) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(path=words.short_path, shared=words.shared)
    name = words.shared(str(record.run.get("method") or "run"))
    return environment.get_template("template.html.j2").render(
        title=f"{name}, {record.folder.resolve().name}",
        nonce=secrets.token_urlsafe(16),
        style=Markup((ASSETS / "page.css").read_text("utf-8")),
        script=Markup((ASSETS / "page.js").read_text("utf-8")),
        missing=record.missing,
        notes=record.notes,
        verdict=words.verdict(record),
        scores=_scores(record),
        facts=words.run_facts(record),
        python=words.python(record.run),
        environment=words.environment(record.run),
        curves=_curves(record),
        health=_health(record),
        warnings=words.warnings(record),
        map=_map(record.map),
        neighbours=_neighbours(record),
        views=_views(record.views),
        energies=_energies(record),
        pairing=words.PAIRINGS.get(record.pairing, ""),
        manifest=record.manifest,
        data_facts=words.data_facts(record.manifest) if record.manifest else [],
        labels=_label_chart(record),
    )


def _scores(record: Record) -> dict[str, Any] | None:
    scores = record.scores
    if scores is None or not scores.rows:
        return None
    kinds = [kind for kind in words.METRICS if any(kind in row for row in scores.rows.values())]
    figures = []
    for kind in kinds:
        title, hint = words.metric(scores, kind)
        bars = [Bar(name, *row.get(kind, NOTHING)) for name, row in scores.rows.items()]
        figures.append((title, hint, charts.bars(bars, label=title)))
    best = {k: max(row[k].value for row in scores.rows.values() if k in row) for k in kinds}
    table = [
        (
            name,
            [
                (charts.percent(s.value, 1), words.interval(s), s.value == best[kind])
                if (s := row.get(kind)) is not None
                else None
                for kind in kinds
            ],
        )
        for name, row in scores.rows.items()
    ]
    more = [
        (*text, charts.number(scores.more[key]), _number(scores.before.get(key)))
        for key, text in words.FIGURES.items()
        if key in scores.more
    ]
    heads = [words.metric(scores, kind)[0] for kind in kinds]
    return {"figures": figures, "heads": heads, "table": table, "more": more, "about": scores}


def _number(value: float | None) -> str:
    return "" if value is None else charts.number(value)


def _curves(record: Record) -> list[tuple[str, str, Markup]]:
    """Title, hint and chart of every training curve."""
    curves = record.curves

    def parts(kind: str) -> list[Series]:
        found = {k.split("/", 1)[1]: c for k, c in curves.items() if k.startswith(kind + "/")}
        return [Series(name, *curve) for name, curve in found.items()]

    wanted = [
        ("Loss", "The sum of all parts.", [Series("loss", *curves["loss"])])
        if "loss" in curves
        else ("", "", []),
        ("Pull", "What draws matched pairs together.", parts("pull")),
        ("Push", "What keeps energies from being low everywhere.", parts("push")),
        ("Learning rate", "", [Series("lr", *curves["lr"])] if "lr" in curves else []),
        (
            "Gradient norm",
            "Before clipping.",
            [Series("norm", *curves["grad_norm"])] if "grad_norm" in curves else [],
        ),
    ]
    drawn = [
        (title, hint, charts.lines(series, label=title, smooth=title != "Learning rate"))
        for title, hint, series in wanted
        if series
    ]
    return [figure for figure in drawn if figure[2]]


def _health(record: Record) -> dict[str, Any]:
    figures, table = [], []
    marks = [(float(step), text) for step, text in record.warnings]
    for key, (title, hint) in words.HEALTH.items():
        curve = record.health.get(key)
        if curve is None:
            continue
        start = _before(curve)
        reference = None if start is None else ("before training", start)
        series = [Series(title, *curve)]
        chart = charts.lines(series, label=title, reference=reference, marks=marks)
        figures.append((title, hint, chart))
        before = "" if start is None else charts.number(start)
        table.append((title, before, charts.number(float(curve.value[-1]))))
    return {"figures": [f for f in figures if f[2]], "table": table}


def _before(curve: Curve) -> float | None:
    return float(curve.value[0]) if curve.step[0] == 0 else None


def _map(drawn: Map | None) -> dict[str, Any] | None:
    if drawn is None:
        return None
    classes = Counter(label for label in drawn.label or () if label is not None).most_common()
    classes.sort(key=lambda pair: (-pair[1], pair[0]))
    code = {name: i for i, (name, _) in enumerate(classes)}
    x, y = _unit_square(drawn.x, drawn.y)
    data = {
        "size": drawn.sheet.size,
        "columns": drawn.sheet.columns,
        "x": x,
        "y": y,
        "path": [words.short_path(path) for path in drawn.path],
        "label": [code.get(label or "", -1) for label in drawn.label] if drawn.label else None,
        "classes": classes,
    }
    count = len(drawn.path)
    return {
        "data": _json(data),
        "sheet": _sheet(drawn.sheet),
        "projection": drawn.projection,
        "count": count,
        "labelled": bool(classes),
    }


def _unit_square(x: np.ndarray, y: np.ndarray) -> tuple[list[float | None], list[float | None]]:
    """Coordinates in [0, 1], one scale for both axes; None for points that are nowhere."""
    fine = np.isfinite(x) & np.isfinite(y)
    if not fine.any():
        return [None] * len(x), [None] * len(y)
    low = np.array([x[fine].min(), y[fine].min()])
    high = np.array([x[fine].max(), y[fine].max()])
    span = float((high - low).max()) or 1.0
    centre = (low + high) / 2
    both = [
        [
            round(float(v), 4) if ok else None
            for v, ok in zip(0.5 + (a - c) / span, fine, strict=True)
        ]
        for a, c in ((x, centre[0]), (y, centre[1]))
    ]
    return both[0], both[1]


def _neighbours(record: Record) -> dict[str, Any] | None:
    if record.neighbours is None or record.map is None:
        return None
    drawn = record.map

    def cell(item: int) -> dict[str, Any]:
        row, column = divmod(item, drawn.sheet.columns)
        size = drawn.sheet.size
        label = drawn.label[item] if drawn.label else None
        path = words.short_path(drawn.path[item])
        return {"x": column * size, "y": row * size, "size": size, "path": path, "label": label}

    panels, alike = [], []
    for query, near in record.neighbours[:MAX_QUERIES]:
        mine = cell(query)
        cells = []
        for item, similarity in near[:MAX_NEIGHBOURS]:
            other = cell(item)
            known = None not in (mine["label"], other["label"])
            differs = known and mine["label"] != other["label"]
            alike += [not differs] if known else []
            cells.append({**other, "similarity": f"{similarity:.2f}", "differs": differs})
        panels.append((mine, cells))
    told = ""
    if alike:
        sizes = np.array(list(Counter(filter(None, drawn.label or ())).values()), float)
        chance = float(((sizes / sizes.sum()) ** 2).sum())
        told = (
            f"{sum(alike)} of the {len(alike)} neighbours shown share the label of their query "
            f"({charts.percent(sum(alike) / len(alike), 0)}; by chance "
            f"about {charts.percent(chance, 0)})."
        )
    return {"panels": panels, "told": told}


def _views(grid: ViewGrid | None) -> dict[str, Any] | None:
    if grid is None:
        return None
    size = grid.sheet.size
    rows = [
        (words.short_path(path), [(k * size, i * size, text) for k, text in enumerate(captions)])
        for i, (path, captions) in enumerate(islice(grid.rows, MAX_VIEWS))
    ]
    return {"sheet": _sheet(grid.sheet), "size": size, "rows": rows}


def _energies(record: Record) -> list[tuple[str, str, Markup]]:
    figures = []
    for when, energies in (record.energies or {}).items():
        title = f"{when.capitalize()} training"
        pairs = [("matched", energies.matched), ("mismatched", energies.mismatched)]
        hint = ""
        if energies.auroc is not None:
            value, low, high = energies.auroc
            hint = f"AUROC {value:.3f} ({low:.3f} to {high:.3f})"
        chart = charts.histograms(pairs, label=f"Energies, {title.lower()}")
        if chart:
            figures.append((title, hint, chart))
    return figures


def _label_chart(record: Record) -> list[tuple[str, int]]:
    labels = record.manifest.labels if record.manifest else None
    return list((labels or {}).items())[:MAX_LABELS]


def _sheet(sheet: Sheet) -> dict[str, Any]:
    data = sheet.data
    for quality in (60, 30):
        if len(data) > MAX_SHEET:
            with Image.open(BytesIO(sheet.data), formats=["WEBP"]) as picture:
                lighter = BytesIO()
                picture.convert("RGB").save(lighter, "WEBP", quality=quality)
            data = lighter.getvalue()
    text = base64.b64encode(data).decode("ascii")
    return {"width": sheet.width, "height": sheet.height, "data": f"data:image/webp;base64,{text}"}


def _json(data: Any) -> Markup:
    """JSON that is inert inside a script element: no "<", no "&", ASCII only.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
