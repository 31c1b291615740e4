"""Embeddings: what they refuse, and the file they are kept in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erg import parquet
from erg.embeddings import Embeddings, merge, unit


def some(n: int = 6, d: int = 3, **changes: Any) -> Embeddings:
    random = np.random.default_rng(0)
    values: dict[str, Any] = {
        "vectors": random.normal(size=(n, d)).astype(np.float32),
        "ids": np.arange(n) * 10,
        "labels": np.array([["cat", "", "Möwe"][i % 3] for i in range(n)]),
        "origin": {"encoder": "resnet18", "step": 12, "nested": [1.5, None]},
        "paths": [f"a/{i}.png" for i in range(n)],
    }
    return Embeddings(**(values | changes))


def same(first: Embeddings, second: Embeddings) -> bool:
    return (
        np.array_equal(first.vectors, second.vectors)
        and np.array_equal(first.ids, second.ids)
        and np.array_equal(np.asarray(first.labels), np.asarray(second.labels))
        and first.origin == second.origin
        and first.paths == second.paths
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"labels": None}, {"paths": None}, {"labels": None, "paths": None, "origin": {}}],
)
def test_a_file_gives_back_what_was_saved(tmp_path: Path, changes: dict[str, Any]) -> None:
    written = some(**changes)
    written.save(tmp_path / "e.parquet")
    read = Embeddings.load(tmp_path / "e.parquet")
    assert same(read, written)
    assert read.vectors.dtype == np.float32
    assert read.ids.dtype == np.int64
    assert [p.name for p in tmp_path.iterdir()] == ["e.parquet"]


def test_the_file_has_the_columns_of_format_1(tmp_path: Path) -> None:
    some().save(tmp_path / "e.parquet")
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.schema.names == ["id", "path", "vector", "label"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 3)
    assert table.schema.metadata[b"format"] == b"1"
    assert json.loads(table.schema.metadata[b"origin"])["encoder"] == "resnet18"
    assert table["label"].to_pylist() == ["cat", None, "Möwe"] * 2
    assert table["id"].to_pylist() == [0, 10, 20, 30, 40, 50]


def test_an_empty_set_and_a_slice_survive_the_file(tmp_path: Path) -> None:
    for rows in (slice(0, 0), slice(2, 5)):
        written = some(labels=None)[rows]
        written.save(tmp_path / "e.parquet")
        read = Embeddings.load(tmp_path / "e.parquet")
        assert np.array_equal(read.vectors, written.vectors)
        assert read.vectors.shape[1] == 3


def test_slices_masks_and_row_numbers_agree() -> None:
    e = some()
    mask = np.array([False, True, True, True, False, False])
    assert same(e[1:4], e[mask])
    assert same(e[1:4], e[np.array([1, 2, 3])])
    turned = e[np.array([5, 0])]
    assert len(turned) == 2
    assert turned.paths == ["a/5.png", "a/0.png"]
    assert turned.ids.tolist() == [50, 0]
    assert np.array_equal(turned.vectors, np.stack([e.vectors[5], e.vectors[0]]))
    with pytest.raises(TypeError, match=r"e\[i : i \+ 1\]"):
        e[3]  # type: ignore[index]
    with pytest.raises(IndexError):
        e[np.array([True, False])]


def test_other_number_types_are_converted() -> None:
    e = some(vectors=np.ones((6, 3)), ids=np.arange(6, dtype=np.uint8))
    assert e.vectors.dtype == np.float32
    assert e.ids.dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": np.ones(6)}, r"shape \(6,\)"),
        ({"vectors": np.ones((6, 0))}, r"shape \(6, 0\)"),
        ({"vectors": np.ones((6, 3), dtype=np.int64)}, "int64"),
        ({"ids": np.arange(5)}, r"ids have shape \(5,\) for 6"),
        ({"ids": np.arange(6.0)}, "float64"),
        ({"labels": np.array(["a"])}, r"labels have shape \(1,\)"),
        ({"paths": ["a"] * 7}, r"paths have shape \(7,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        some(**changes)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "e.parquet"
    some().save(path)

    def full(table: pa.Table, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        some(n=2).save(path)
    with pytest.raises((TypeError, ValueError)):
        some(origin={"model": object()}).save(path)
    monkeypatch.undo()
    assert same(Embeddings.load(path), some())
    assert [p.name for p in tmp_path.iterdir()] == ["e.parquet"]


def test_a_path_that_is_not_unicode_is_written_with_escapes(tmp_path: Path) -> None:
    some(n=1, paths=["b\udcff.png"]).save(tmp_path / "e.parquet")
    assert Embeddings.load(tmp_path / "e.parquet").paths == ["b\\udcff.png"]


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        Embeddings.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def changed(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None) -> Path:
    """A parquet file of format 1 but for what is said."""
    whole: dict[str, Any] = {
        "id": pa.array([1, 2], pa.int64()),
        "path": pa.array(["a", "b"]),
        "vector": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "label": pa.array([None, None], pa.string()),
    }
    whole = {k: v for k, v in (whole | columns).items() if v is not None}
    table = pa.table(whole).replace_schema_metadata(metadata or {"format": "1", "origin": "{}"})
    pq.write_table(table, path)
    return path


def test_the_unchanged_file_of_the_next_tests_loads(tmp_path: Path) -> None:
    e = Embeddings.load(changed(tmp_path / "e.parquet", {}, None))
    assert e.vectors.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert e.labels is None


@pytest.mark.parametrize(
    ("columns", "metadata", "message"),
    [
        ({}, {"format": "2"}, "format is '2'"),
        ({}, {"other": "1"}, "format is 'none'"),
        ({}, {"format": "1", "origin": "[1]"}, "origin is a list"),
        ({}, {"format": "1", "origin": "{"}, "Expecting"),
        ({}, {"format": "1", "origin": "[" * 100_000}, "recursion"),
        ({"vector": None}, None, "0 columns 'vector'"),
        ({"label": None}, None, "0 columns 'label'"),
        ({"vector": pa.array([[1.0], [2.0, 3.0]], pa.list_(pa.float32()))}, None, "fixed size"),
        ({"vector": pa.array([[1.0], [2.0]], pa.list_(pa.float64(), 1))}, None, "fixed size"),
        ({"vector": pa.array([[1.0], None], pa.list_(pa.float32(), 1))}, None, "is missing"),
        ({"vector": pa.array([[1.0], [None]], pa.list_(pa.float32(), 1))}, None, "is missing"),
        ({"id": pa.array([1, None], pa.int64())}, None, "is missing"),
        ({"id": pa.array(["1", "2"])}, None, "'id' is string"),
        ({"label": pa.array([1, 2])}, None, "'label' is int64"),
        ({"path": pa.array(["a", None])}, None, "1 of 2 paths"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    tmp_path: Path, columns: dict[str, Any], metadata: dict[str, str] | None, message: str
) -> None:
    assert message in refusal(changed(tmp_path / "e.parquet", columns, metadata))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "e.parquet", {}, None)
    table = pq.read_table(path)
    pq.write_table(table.append_column("id", table["id"]), path)
    assert "2 columns 'id'" in refusal(path)


def test_bytes_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    some(n=200).save(path)
    good = path.read_bytes()
    for bad in (b"", b"not parquet", good[:-1], good[: len(good) // 2], b"PAR1" * 20):
        path.write_bytes(bad)
        refusal(path)
    with pytest.raises(FileNotFoundError):
        Embeddings.load(tmp_path / "none.parquet")


def test_damaged_bytes_give_a_value_error_or_the_file(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    some(n=50).save(path)
    good = path.read_bytes()
    random = np.random.default_rng(0)
    messages = []
    for _ in range(200):
        bad = bytearray(good)
        for place in random.integers(len(bad), size=3):
            bad[place] = random.integers(256)
        path.write_bytes(bytes(bad))
        try:
            Embeddings.load(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)


def test_unit_gives_rows_of_length_one_at_any_scale() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(4, 5)) * np.array([[1.0], [1e-25], [1e25], [0.0]])
    for kind in (np.float32, np.float64):
        given = rows.astype(kind)
        kept = given.copy()
        z = unit(given)
        assert z.dtype == np.float32
        np.testing.assert_array_equal(given, kept)
        np.testing.assert_allclose(np.linalg.norm(z[:3], axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(z[2], rows[2] / np.linalg.norm(rows[2]), rtol=1e-5)
        assert not z[3].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unit_names_the_row_that_is_not_finite(bad: float) -> None:
    rows = np.ones((5, 2), dtype=np.float32)
    rows[3, 1] = bad
    with pytest.raises(ValueError, match="row 3"):
        unit(rows)


def test_parts_become_one_file_in_their_order(tmp_path: Path) -> None:
    whole = some()
    files = [tmp_path / f"{i}.parquet" for i in range(4)]
    for file, rows in zip(files, (slice(0, 2), slice(0, 0), slice(2, 3), slice(3, 6)), strict=True):
        whole[rows].save(file)
    some(d=7)[:0].save(files[1])  # without rows the width is of no account
    assert merge(files, tmp_path / "all.parquet", whole.origin) == (6, 3)
    assert same(Embeddings.load(tmp_path / "all.parquet"), whole)
    assert merge(files[1:2], tmp_path / "none.parquet", {}) == (0, 1)
    assert len(Embeddings.load(tmp_path / "none.parquet")) == 0
    some(d=4).save(files[2])
    with pytest.raises(ValueError, match=r"2.parquet holds vectors of 4 values and those .* of 3"):
        merge(files, tmp_path / "other.parquet", {})
    assert not (tmp_path / "other.parquet").exists()


def test_one_long_label_is_not_given_room_in_every_row(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "e.parquet"
    some(n=100, labels=np.array(["x" * 5000, *["y"] * 99])).save(path)
    assert len(Embeddings.load(path)) == 100
    monkeypatch.setattr(parquet, "FREE", 1 << 16)
    monkeypatch.setattr(parquet, "EXPANSION", 1)
    assert "its labels would take" in refusal(path)
