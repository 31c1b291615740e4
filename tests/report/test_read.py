import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from erg.report.read import UnknownFormatError, read_record

PICTURES = ("map", "neighbours", "views", "energies")


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_everything_of_a_complete_run_is_read(run_folder: Path) -> None:
    record = read_record(run_folder)
    assert record.missing == {}
    assert record.notes == ()
    assert record.run["method"] == "SimCLR"
    assert set(record.curves) == {
        "loss", "lr", "grad_norm", "pull/alignment", "push/repulsion",
    }  # fmt: skip
    loss, pull, push = (record.curves[k] for k in ("loss", "pull/alignment", "push/repulsion"))
    np.testing.assert_array_equal(loss.step, np.arange(1, 401))
    np.testing.assert_allclose(loss.value, pull.value + push.value, rtol=1e-12)
    assert set(record.health) == {"std", "rank", "auroc", "knn"}
    assert record.health["auroc"].step[0] == 0
    assert record.timing["seconds"].value[-1] == pytest.approx(124)
    assert record.scores is not None
    assert record.scores.rows["encoder"]["knn20"].low == pytest.approx(0.502)
    assert record.map is not None
    assert len(record.map.path) == 60
    assert record.neighbours is not None
    assert record.neighbours[0][1][0][1] == pytest.approx(0.98)
    assert record.energies is not None
    assert record.energies["after"].auroc is not None
    assert record.energies["after"].auroc.value == pytest.approx(0.9876)


def test_manifest_in_numbers(run_folder: Path) -> None:
    manifest = read_record(run_folder).manifest
    assert manifest is not None
    assert (manifest.total, manifest.skipped, manifest.duplicates) == (62, 2, 1)
    assert manifest.size == 60 * 2500
    assert manifest.height == (32, 32, 64)
    assert manifest.width == (32, 32, 32)
    assert manifest.labels is not None
    assert sum(manifest.labels.values()) == 60
    assert list(manifest.labels.values()) == sorted(manifest.labels.values(), reverse=True)
    assert manifest.skipped_rows[0] == ("broken/empty.jpg", "The file is empty.")


def test_run_json_alone_is_enough(run_folder: Path) -> None:
    for path in sorted(run_folder.rglob("*"), reverse=True):
        if path.is_file() and path.name != "run.json":
            path.unlink()
    record = read_record(run_folder)
    assert len(record.missing) == 8
    assert all(text.endswith(".") for text in record.missing.values())
    assert record.scores is record.map is record.manifest is None


def test_a_folder_without_run_json_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no run\.json"):
        read_record(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "", "\xff", "[" * 100_000])
def test_damaged_run_json_is_one_line(run_folder: Path, text: str) -> None:
    (run_folder / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="cannot be read") as caught:
        read_record(run_folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["run.json", "scores.json", *(f"pictures/{p}.json" for p in PICTURES)]
)
@pytest.mark.parametrize("number", [2, "1", None, True])
def test_unknown_format_is_an_error(run_folder: Path, name: str, number: Any) -> None:
    change(run_folder / name, format=number)
    with pytest.raises(UnknownFormatError, match=f"has format {number!r}; this erg reads 1"):
        read_record(run_folder)


def test_unknown_format_of_the_manifest(run_folder: Path) -> None:
    path = run_folder / "manifest.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"format": "2"}), path)
    with pytest.raises(UnknownFormatError, match=r"manifest\.parquet has format 2"):
        read_record(run_folder)


def test_a_half_written_last_line_is_dropped_silently(run_folder: Path) -> None:
    path = run_folder / "events.jsonl"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    length = len(whole) - last
    for cut, steps in ((1, 399), (5, 399), (20, 399), (length - 2, 399), (length - 1, 400)):
        path.write_bytes(whole[: last + cut])
        record = read_record(run_folder)
        assert record.notes == ()
        assert len(record.curves["loss"].step) == steps
    path.write_bytes(whole + '{"step": 401, "kind": "é'.encode()[:-1])
    assert read_record(run_folder).notes == ()


def test_damaged_lines_in_the_middle_are_told(run_folder: Path) -> None:
    path = run_folder / "events.jsonl"
    path.write_text('nonsense\n[1]\n{"step": Infinity}\n' + path.read_text())
    record = read_record(run_folder)
    assert record.notes == ("3 damaged line(s) of events.jsonl were left out.",)
    assert len(record.curves["loss"].step) == 400


def test_numbers_beyond_all_floats_are_left_out(run_folder: Path) -> None:
    path = run_folder / "events.jsonl"
    huge = "9" * 401
    step = '{"kind": "step", "step": '
    line = f'{step} 1, "loss": {huge}, "new": {huge}, "pull": {{"a": {huge}}}}}\n'
    path.write_text(path.read_text() + line + f'{step} {huge}, "loss": 1}}\n')
    record = read_record(run_folder)
    assert record.notes == ("1 damaged line(s) of events.jsonl were left out.",)
    assert len(record.curves["loss"].step) == 400
    assert "new" not in record.curves
    assert "pull/a" not in record.curves


def test_a_manifest_of_other_types_is_left_out(run_folder: Path) -> None:
    """Arrow has errors of its own, among them for what it cannot compare."""
    path = run_folder / "manifest.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("status")
    numbers = pa.array([1] * len(table), pa.int64())
    pq.write_table(table.set_column(place, "status", numbers), path)
    assert "manifest.parquet cannot be read" in read_record(run_folder).missing["manifest.parquet"]


def test_the_later_line_of_a_step_counts(run_folder: Path) -> None:
    path = run_folder / "events.jsonl"
    path.write_text(path.read_text() + '{"step": 7, "kind": "step", "loss": 99.0}\n')
    loss = read_record(run_folder).curves["loss"]
    assert len(loss.step) == 400
    assert loss.value[loss.step == 7] == [99.0]


def test_warnings_and_numbers_that_are_not_finite(run_folder: Path) -> None:
    path = run_folder / "events.jsonl"
    lines = '{"step": 401, "kind": "step", "loss": NaN}\n'
    lines += '{"step": 401, "kind": "health", "std": 0.0, "warning": "Collapse: <b>"}\n'
    lines += '{"step": 402, "kind": "left out", "warning": "The step was left out."}\n'
    lines += '{"step": 403, "kind": "lost", "images": 2, "warning": "2 images vanished."}\n'
    path.write_text(path.read_text() + lines)
    record = read_record(run_folder)
    assert record.warnings == (
        (401, "Collapse: <b>"),
        (402, "The step was left out."),
        (403, "2 images vanished."),
    )
    assert np.isnan(record.curves["loss"].value[-1])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("scores.json", {"rows": [{"name": "encoder", "scores": {"knn20": {"value": "x"}}}]}),
        ("scores.json", {"rows": 5}),
        ("scores.json", {"verdict": "good"}),
        ("pictures/map.json", {"x": [1.0]}),
        ("pictures/map.json", {"columns": 0}),
        ("pictures/map.json", {"size": 4800}),
        ("pictures/views.json", {"columns": 99}),
        ("pictures/energies.json", {"after": {"matched": ["x"]}}),
        ("pictures/neighbours.json", {"queries": [{}]}),
    ],
)
def test_a_damaged_part_is_left_out_with_a_reason(
    run_folder: Path, name: str, changes: dict[str, Any]
) -> None:
    change(run_folder / name, **changes)
    record = read_record(run_folder)
    assert f"{name} cannot be read" in record.missing[name]
    assert "\n" not in record.missing[name]


def test_a_picture_that_is_no_webp_is_not_taken(run_folder: Path) -> None:
    path = run_folder / "pictures/thumbnails.webp"
    Image.new("RGB", (480, 480)).save(path, "PNG")
    record = read_record(run_folder)
    assert record.map is None
    assert "cannot be read" in record.missing["pictures/map.json"]
    assert "the map" in record.missing["pictures/neighbours.json"]


@pytest.mark.parametrize("name", ["pictures/thumbnails.webp", "pictures/map.json", "events.jsonl"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run_folder: Path, name: str) -> None:
    (run_folder / name).unlink()
    os.mkfifo(run_folder / name)
    record = read_record(run_folder)
    part = "events.jsonl" if name == "events.jsonl" else "pictures/map.json"
    assert "it is no regular file" in record.missing[part]


def test_neighbours_without_a_picture_are_dropped(run_folder: Path) -> None:
    near = [{"item": 3, "similarity": 0.9}, {"item": 60, "similarity": 0.8}]
    queries = [{"item": 1, "neighbours": near}, {"item": -1, "neighbours": near}]
    change(run_folder / "pictures/neighbours.json", queries=queries)
    assert read_record(run_folder).neighbours == ((1, ((3, 0.9),)),)


def test_no_labels(make_run: Callable[..., Path]) -> None:
    record = read_record(make_run(label=False))
    assert record.map is not None
    assert record.map.label is None
    assert record.manifest is not None
    assert record.manifest.labels is None
    assert record.scores is not None
    assert set(record.scores.rows["encoder"]) == {"recall", "recall_colour"}
