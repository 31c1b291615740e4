"""Parquet that claims more than it holds, or holds more than it seems: refused unread."""

import base64
import io
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erg import parquet
from erg.data.manifest import Manifest, Row
from erg.data.opening import UnreadableImage
from erg.data.source import DataError, open_source
from erg.durable import open_regular
from erg.embeddings import Embeddings
from erg.parquet import Table

ROWS = 12_345  # a number whose bytes stand nowhere else in a footer


def varint(value: int) -> bytes:
    """An integer as thrift's compact protocol writes it."""
    value, out = 2 * value, b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def claiming(path: Path, rows: int) -> Path:
    """The same file, whose footer speaks of another number of rows than `ROWS`."""
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8]
    assert footer.count(varint(ROWS)) >= 2
    forged = footer.replace(varint(ROWS), varint(rows))
    path.write_bytes(data[: -8 - size] + forged + len(forged).to_bytes(4, "little") + b"PAR1")
    return path


def repeated(text: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


def bomb(path: Path, columns: dict[str, Any], metadata: dict[str, str]) -> Path:
    """Rows that share one label of half a megabyte, as text, in a file of a few kilobytes."""
    table = pa.table({**columns, "label": repeated("x" * (1 << 19), ROWS)})
    place = table.schema.get_field_index("label")
    # What the file says of itself: Arrow writes dictionaries as they are, and texts one by one.
    said = table.schema.set(place, pa.field("label", pa.string())).with_metadata(metadata)
    packed = base64.b64encode(said.serialize().to_pybytes()).decode()
    with pq.ParquetWriter(path, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({**metadata, "ARROW:schema": packed})
    return path


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_honest_tables_are_read_as_arrow_does(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = [None if i % 7 == 0 else f"Möwe {i % 100}" for i in range(ROWS)]
    vectors = random.normal(size=(ROWS, 3)).astype(np.float32)
    table = pa.table({
        "n": pa.array(random.integers(0, 9, ROWS)),
        "text": texts,
        "kind": pa.array(["a", "b", None] * (ROWS // 3)).dictionary_encode(),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 3),
        "other": [[1, 2]] * ROWS,
    }, metadata={"format": "1"})  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5000)
    with open_regular(tmp_path / "a.parquet") as file:
        found = Table(file).read(["vector", "n", "text", "kind"])
    assert found.equals(pq.read_table(tmp_path / "a.parquet").select(found.schema.names))
    assert found.schema.metadata == {b"format": b"1"}
    with open_regular(tmp_path / "a.parquet") as file:
        with pytest.raises(ValueError, match=r"column 'other' is list<"):
            Table(file).read(["other"])
        with pytest.raises(ValueError, match="it has 0 columns 'absent'"):
            Table(file).read(["absent"])


def test_the_budget_counts_what_texts_take_when_spelled_out(tmp_path: Path, monkeypatch) -> None:
    table = pa.table({"text": [None, "äö", "x" * 10] * 1000})
    pq.write_table(table, tmp_path / "a.parquet")
    taken = 1000 * (4 + 10)
    for free, fits in ((taken + 8 * 3000, True), (taken - 1, False)):
        monkeypatch.setattr(parquet, "FREE", free)
        monkeypatch.setattr(parquet, "EXPANSION", 0)
        with open_regular(tmp_path / "a.parquet") as file:
            if fits:
                assert Table(file).read(["text"]).equals(table)
            else:
                with pytest.raises(ValueError, match="3,000 rows would take"):
                    Table(file).read(["text"])


def a_manifest(path: Path, **changes: Any) -> Path:
    good: dict[str, Any] = {
        "path": [f"{i}.png" for i in range(ROWS)], "offset": [0] * ROWS, "size": [9] * ROWS,
        "hash": ["0" * 32] * ROWS, "height": [4] * ROWS, "width": [5] * ROWS,
        "status": ["ok"] * ROWS, "reason": [""] * ROWS, "label": [None] * ROWS,
    }  # fmt: skip
    schema = Manifest.of([]).table.schema
    columns = {name: changes.get(name, good[name]) for name in Row._fields}
    table = pa.table(columns, schema=schema)
    pq.write_table(table, path, compression="zstd")
    return path


def an_embedding(path: Path) -> Path:
    Embeddings(np.zeros((ROWS, 3), np.float32), np.arange(ROWS)).save(path)
    return path


def some_images(path: Path) -> Path:
    stream = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (4, 4)).save(stream, "PNG")
    rows = [stream.getvalue()] * ROWS
    pq.write_table(pa.table({"image": rows, "label": ["a"] * ROWS}), path)
    return path


@pytest.mark.parametrize("rows", [3_000_000_000, 1 << 40, (1 << 62) - 1])
def test_billions_of_claimed_rows_are_refused_at_once(rows: int, tmp_path: Path) -> None:
    before = peak()
    with pytest.raises(DataError, match="no manifest of format 1") as refused:
        Manifest.load(claiming(a_manifest(tmp_path / "m.parquet"), rows))
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="not an embeddings file") as refused:
        Embeddings.load(claiming(an_embedding(tmp_path / "e.parquet"), rows))
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match="cannot be read as parquet") as refused:
        open_source(claiming(some_images(tmp_path / "i.parquet"), rows))
    assert "\n" not in str(refused.value)
    assert peak() - before < 300 << 20


def test_a_few_rows_too_many_are_noticed_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest of format 1"):
        Manifest.load(claiming(a_manifest(tmp_path / "m.parquet"), ROWS + 5))
    with pytest.raises(ValueError, match="not an embeddings file"):
        Embeddings.load(claiming(an_embedding(tmp_path / "e.parquet"), ROWS + 5))
    source = open_source(claiming(some_images(tmp_path / "i.parquet"), ROWS + 5))
    assert len(source) == ROWS + 5
    with pytest.raises(UnreadableImage):
        source.read(ROWS + 2)


def test_one_long_text_for_every_row(tmp_path: Path) -> None:
    before = peak()
    file = bomb(tmp_path / "i.parquet", {"image": pa.array([b"x"] * ROWS)}, {})
    assert file.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"cannot be read as parquet \(its 12,345 rows would take"):
        open_source(file, label="label")
    assert len(open_source(file)) == ROWS, "without labels nothing long is read"
    columns = {
        "id": pa.array(np.arange(ROWS)), "path": pa.array([None] * ROWS, pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(ROWS, np.float32)), 1),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"e.parquet is not an embeddings file: its 12,345 rows"):
        Embeddings.load(bomb(tmp_path / "e.parquet", columns, {"format": "1"}))
    assert peak() - before < 300 << 20


def test_lists_where_a_label_should_be(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "tags": [["a", "b"]]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'tags' is list<.*neither numbers nor text"):
        open_source(tmp_path / "a.parquet", label="tags")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"height": [-1] * ROWS}, "row 0 is -1 x 5 pixels"),
        ({"width": [5] * (ROWS - 1) + [0]}, "row 12344 is 4 x 0 pixels"),
        ({"height": [2**31 - 1] * ROWS}, "row 0 is 2147483647 x 5"),
        ({"offset": [-1] * ROWS}, "an offset or a size is negative"),
        ({"size": [0] * (ROWS - 1) + [-3]}, "an offset or a size is negative"),
        ({"status": [None] * ROWS}, "a value is missing"),
        ({"hash": ["0"] * (ROWS - 1) + [None]}, "a value is missing"),
    ],
)
def test_a_manifest_of_impossible_numbers(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert len(Manifest.load(a_manifest(tmp_path / "good.parquet"))) == ROWS
    with pytest.raises(DataError, match=reason):
        Manifest.load(a_manifest(tmp_path / "m.parquet", **changes))


def test_a_row_group_of_more_images_than_memory(tmp_path: Path, monkeypatch) -> None:
    from erg.data import tables

    monkeypatch.setattr(tables, "_GROUP_BYTES", 1 << 20)
    images = [bytes([i % 256]) * 10_000 for i in range(400)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=300)
    source = open_source(tmp_path / "a.parquet")
    assert source.bytes(350) == images[350]
    with pytest.raises(UnreadableImage, match="fewer rows a group"):
        source.item(3)


def test_no_table_keeps_encoded_bytes(tmp_path: Path, monkeypatch) -> None:
    options: list[dict[str, Any]] = []
    plain = pq.ParquetFile

    def spied(*args: Any, **given: Any) -> Any:
        options.append(given)
        return plain(*args, **given)

    monkeypatch.setattr(parquet.pq, "ParquetFile", spied)
    Embeddings.load(an_embedding(tmp_path / "e.parquet"))
    assert [given["pre_buffer"] for given in options] == [False, False]
