"""A run folder of format 1 made of nothing but numbers, for the report to read."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

PAYLOADS = (
    "</script><script>window.PWN=1</script>",
    "<img src=x onerror=window.PWN=1>.png",
    "javascript:window.PWN=1",
    '"><svg onload=window.PWN=1>',
    "' onmouseover='window.PWN=1",
    "line\u2028separator\u2029.png",
    "{{7*7}}.png",
    "{% for x in ().__class__.__base__.__subclasses__() %}",
    "${window.PWN=1}",
    "gpj.\u202eexe\u202c.png",
    "</title><script>alert(1)</script>",
    "</style><style>*{display:none}</style>",
    "<!--<script>",
    "]]><script>window.PWN=1</script>",
    "&lt;b&gt;&amp;",
    "<iframe src=javascript:alert(1)>",
    "<a href='https://example.org/x'>go</a>",
    "<base href=//example.org>",
    "new\nline\tand\x00nul\x1b[31m.png",
    "data:text/html,<script>window.PWN=1</script>",
)
CLASSES = ("cat", "dog", "ship")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a run folder; see `write_run`."""
    return lambda **changes: write_run(tmp_path / "run-1", **changes)


@pytest.fixture
def run_folder(make_run: Callable[..., Path]) -> Path:
    """A complete run folder."""
    return make_run()


@pytest.fixture
def payloads() -> tuple[str, ...]:
    """Names that attack a page that takes them for markup, script or template."""
    return PAYLOADS


@pytest.fixture
def hostile(make_run: Callable[..., Path]) -> Path:
    """A run whose names, labels, reasons and scores all attack the page."""
    names = [*PAYLOADS, *PAYLOADS]
    run = make_run(names=names, labels=names, method=PAYLOADS[0], data=PAYLOADS[1])
    scores = json.loads((run / "scores.json").read_text())
    scores["verdict"]["text"] = PAYLOADS[0]
    scores["split"] = scores["label"] = scores["test"] = PAYLOADS[3]
    scores["rows"][1]["name"] = PAYLOADS[1]
    (run / "scores.json").write_text(json.dumps(scores))
    with (run / "events.jsonl").open("a") as events:
        bad = {"step": 401, "kind": "step", "pull": {PAYLOADS[0]: 1.0}, "loss": float("nan")}
        events.write(json.dumps(bad) + "\n")
        worse = {"step": 401, "kind": "health", "std": 0, "warning": PAYLOADS[0]}
        events.write(json.dumps(worse) + "\n")
    return run


def write_run(
    folder: Path,
    *,
    names: Sequence[str] = (),
    labels: Sequence[str | None] | None = None,
    thumbs: np.ndarray | None = None,
    xy: np.ndarray | None = None,
    steps: int = 400,
    label: bool = True,
    method: str = "SimCLR",
    data: str = "/home/anna/pictures/birds/2024",
) -> Path:
    """Write every file of the format.

    Args:
        folder: to make.
        names: paths of the images on the map; 60 invented ones if empty.
        labels: their classes; drawn from `CLASSES` if not given.
        thumbs: uint8 [n 48 48 3]; noise if not given.
        xy: places on the map [n 2]; random if not given.
        steps: of training.
        label: whether there are labels at all.
        method: its name.
        data: where the images came from.
    """
    rng = np.random.default_rng(0)
    names = list(names) or [f"folder/image_{i:03d}.png" for i in range(60)]
    n = len(names)
    drawn = [CLASSES[i] for i in rng.integers(0, len(CLASSES), n)]
    known = list(drawn if labels is None else labels) if label else None
    folder.mkdir(parents=True)
    (folder / "pictures").mkdir()
    thumbs = rng.integers(0, 255, (n, 48, 48, 3), np.uint8) if thumbs is None else thumbs
    xy = rng.normal(size=(n, 2)) if xy is None else xy

    dump(folder / "run.json", run(method, data, steps, label))
    dump(folder / "scores.json", scores(label))
    write_events(folder, rng, steps)
    write_manifest(folder, names, known)
    dump(
        folder / "pictures/map.json",
        {
            "format": 1,
            "size": 48,
            "columns": 10,
            "projection": "t-SNE",
            "x": xy[:, 0].tolist(),
            "y": xy[:, 1].tolist(),
            "path": names,
            "label": known,
        },
    )
    sheet(thumbs, 10).save(folder / "pictures/thumbnails.webp", "WEBP", quality=80)
    order = np.argsort(((xy[:, None] - xy[None]) ** 2).sum(-1), axis=1) if n <= 3000 else None
    if order is not None:
        queries = [
            {
                "item": int(q),
                "neighbours": [
                    {"item": int(i), "similarity": round(0.98 - 0.03 * k, 3)}
                    for k, i in enumerate(order[q, 1:9])
                ],
            }
            for q in np.linspace(0, n - 1, min(12, n)).astype(int)
        ]
        dump(folder / "pictures/neighbours.json", {"format": 1, "queries": queries})
    views = np.stack([np.kron(thumbs[i // 3], np.ones((2, 2, 1), np.uint8)) for i in range(12)])
    views[1::3] = views[1::3, :, ::-1]
    views[2::3] = 255 - views[2::3]
    sheet(views, 3).save(folder / "pictures/views.webp", "WEBP", quality=80)
    rows = [{"path": names[i], "captions": ["image", "view 1", "view 2"]} for i in range(4)]
    dump(folder / "pictures/views.json", {"format": 1, "size": 96, "columns": 3, "rows": rows})
    energies = {
        when: {
            "matched": rng.normal(m, 0.2, 500).round(5).tolist(),
            "mismatched": rng.normal(1.6, 0.25, 500).round(5).tolist(),
            "auroc": {"value": a, "low": a - 0.01, "high": a + 0.01},
        }
        for when, m, a in (("before", 1.4, 0.7321), ("after", 0.6, 0.9876))
    }
    dump(folder / "pictures/energies.json", {"format": 1, "pairing": "views", **energies})
    return folder


def run(method: str, data: str, steps: int, label: bool) -> dict[str, Any]:
    return {
        "format": 1,
        "method": method,
        "method_args": {"temperature": 0.5, "width": {"type": "Linear", "start": 1, "end": 2}},
        "encoder": "resnet18",
        "encoder_args": {"layers": [1, 1, 1, 1]},
        "image_size": 64,
        "init": None,
        "data": data,
        "label": "label" if label else None,
        "plan": None,
        "optimiser": {"type": "Optimiser", "name": "adamw", "lr": 0.001, "weight_decay": 1e-4},
        "batch": 256,
        "steps": steps,
        "seed": 7,
        "environment": {"python": "3.11.7", "torch": "2.14.1", "HF_TOKEN": "hf_secret"},
    }


def scores(label: bool) -> dict[str, Any]:
    kinds = ("knn20", "knn200", "linear") if label else ("recall", "recall_colour")
    levels = {"encoder": 0.512, "before training": 0.331, "PCA": 0.387, "raw pixels": 0.354}
    rows = [
        {
            "name": name,
            "scores": {
                kind: {"value": v + k, "low": v + k - 0.01, "high": v + k + 0.01}
                for k, kind in zip((0.0, 0.02, 0.04), kinds, strict=False)
                if not (kind == "linear" and name == "raw pixels")
            },
        }
        for name, v in levels.items()
    ]  # fmt: skip
    text = (
        "Worth it: 20-NN accuracy 51.2 %, better than before training by +18.1 points (+16.8 to "
        "+19.4), PCA by +12.5 points (+11.1 to +13.9) and raw pixels by +15.8 points (+14.4 to "
        "+17.2)."
    )
    return {
        "format": 1,
        "data": "birds",
        "test": None,
        "label": "label" if label else None,
        "classes": 10 if label else None,
        "split": "80 / 20 by content hash" if label else "1000 images, each found again",
        "n_train": 8000 if label else 0,
        "n_test": 2000,
        "rows": rows,
        "clusters": {"nmi": 0.31, "ari": 0.22, "k": 10} if label else None,
        "rankme": 87.2,
        "alignment": 0.41,
        "uniformity": -3.1,
        "verdict": {"better": True, "score": "knn20" if label else "recall_colour", "text": text},
    }


def write_events(folder: Path, rng: np.random.Generator, steps: int) -> None:
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        p = step / steps
        if step:
            pull = 1.4 * np.exp(-4 * p) + 0.3 + rng.normal(0, 0.03)
            push = 4.1 + 0.2 * p + rng.normal(0, 0.05)
            lr = 1e-3 * min(1.0, p / 0.05) * 0.5 * (1 + np.cos(np.pi * p))
            parts = {"pull": {"alignment": pull}, "push": {"repulsion": push}}
            line = {"step": step, "kind": "step", "progress": p, "lr": lr, "loss": pull + push}
            lines.append({**line, **parts, "grad_norm": 0.5 + rng.random()})
        if step % max(1, steps // 12) == 0:
            seen = {"std": 0.2 + 0.7 * p**0.5, "rank": 20 + 60 * p, "auroc": 0.73 + 0.25 * p**0.3}
            lines.append({"step": step, "kind": "health", **seen, "knn": 0.33 + 0.18 * p**0.4})
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    timing = [
        {"step": s, "seconds": 0.31 * s, "images_per_second": 825.0 + s % 7}
        for s in range(1, steps + 1)
    ]
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in timing))


def write_manifest(folder: Path, names: list[str], labels: list[str | None] | None) -> None:
    skipped = [
        ("broken/empty.jpg", "The file is empty."),
        ("/home/anna/pictures/birds/2024/bomb.png", "It claims 144 megapixels (limit 89)."),
    ]
    n = len(names)
    hashes = [f"{i:032x}" for i in range(n)]
    hashes[1] = hashes[0]
    table = pa.table(
        {
            "path": pa.array([*names, *(name for name, _ in skipped)], pa.string()),
            "offset": pa.array([0] * (n + 2), pa.int64()),
            "size": pa.array([2500] * n + [0, 0], pa.int64()),
            "hash": pa.array([*hashes, "", ""], pa.string()),
            "height": pa.array([32] * (n - 1) + [64, 0, 0], pa.int32()),
            "width": pa.array([32] * n + [0, 0], pa.int32()),
            "status": pa.array(["ok"] * n + ["skipped"] * 2, pa.string()),
            "reason": pa.array([""] * n + [why for _, why in skipped], pa.string()),
            "label": pa.array([*(labels or [None] * n), None, None], pa.string()),
        }
    ).replace_schema_metadata({"format": "1"})
    pq.write_table(table, folder / "manifest.parquet")


def sheet(cells: np.ndarray, columns: int) -> Image.Image:
    """Square cells [n s s 3] side by side, row-major."""
    n, side = cells.shape[:2]
    rows = -(-n // columns)
    padded = np.zeros((rows * columns, side, side, 3), np.uint8)
    padded[:n] = cells
    grid = padded.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(grid.reshape(rows * side, columns * side, 3))


def dump(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
