"""Parquet columns: which is the image, and which names the label."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from erg.data import tables
from erg.data.masked import masks_of
from erg.data.opening import UnreadableImage
from erg.data.source import DataError, open_source

SHARED = Path(__file__).parents[3] / "shared" / "data"
RGB = np.random.default_rng(0).integers(0, 256, (10, 9, 11, 3), dtype=np.uint8)


def png(i: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RGB[i]).save(stream, "PNG")
    return stream.getvalue()


ENCODED = [png(i) for i in range(10)]


def write(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    table = pa.table(columns).replace_schema_metadata(metadata or {})
    pq.write_table(table, path, row_group_size=3)
    return path


def test_parquet(tmp_path: Path) -> None:
    labels = [0, 1, 2, None, 7, 0, 0, 0, 0, 0]
    path = write(
        tmp_path / "a.parquet",
        {"mask": [b"x"] * 10, "Image": ENCODED, "label": labels, "path": list("abcdefghij")},
        {"label_names": json.dumps(["cat", "dog", "bird"])},
    )
    plain = open_source(path)
    assert len(plain) == 10
    assert plain.label(0) is None
    assert "column label is not used" in plain.describe()
    assert plain.path(3) == "d"
    assert plain.offset(3) == 3
    source = open_source(path, label="label")
    assert [source.label(i) for i in range(5)] == ["cat", "dog", "bird", None, "7"]
    assert "not used" not in source.describe()
    order = np.random.default_rng(0).integers(0, 10, 200).tolist()
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(source.read, order)), RGB[order])
    with pytest.raises(DataError, match="no column 'species'"):
        open_source(path, label="species")


def test_masks_are_another_column_of_the_same_rows(tmp_path: Path) -> None:
    masks = [*reversed(ENCODED[1:]), None]
    for part in ("a", "b"):
        columns = {"image": ENCODED, "salient": masks, "label": list(range(10)), "path": ["p"] * 10}
        write(tmp_path / f"{part}.parquet", columns)
    source = open_source(tmp_path, label="label")
    found = masks_of(source, "salient")
    assert len(found) == len(source) == 20
    assert found.path(13) == source.path(13)
    np.testing.assert_array_equal(found.read(12), RGB[7])
    np.testing.assert_array_equal(source.read(12), RGB[2])
    with pytest.raises(UnreadableImage, match="no image in this row"):
        found.read(19)
    with pytest.raises(DataError, match="no column 'mask'"):
        masks_of(source, "mask")
    with pytest.raises(DataError, match=r"the column 'label' of .* is int64, no encoded images"):
        masks_of(source, "label")


def test_structs_and_hugging_face_names(tmp_path: Path) -> None:
    images = [{"bytes": data, "path": None} for data in ENCODED[:9]] + [None]
    features = {"info": {"features": {"kind": {"names": ["one", "two"]}}}}
    path = write(
        tmp_path / "a.parquet",
        {"image": images, "kind": [1, 0] * 5},
        {"huggingface": json.dumps(features)},
    )
    source = open_source(path, label="kind")
    assert [source.label(0), source.label(1)] == ["two", "one"]
    np.testing.assert_array_equal(source.read(8), RGB[8])
    with pytest.raises(UnreadableImage, match="no image in this row"):
        source.read(9)
    assert source.path(8) == "row 000008"


def test_folder_of_tables_and_row_groups_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in range(2):
        rows = ENCODED[5 * part : 5 * part + 5]
        write(tmp_path / f"part{part}.parquet", {"jpg": rows, "n": [part] * 5})
    monkeypatch.setattr(tables, "_HELD_BYTES", 1)
    source = open_source(tmp_path, label="n")
    assert isinstance(source, tables.Parquet)
    assert source.spec == str(tmp_path)
    for i in (0, 9, 4, 5, 2):
        np.testing.assert_array_equal(source.read(i), RGB[i])
        assert len(source.held) == 1
    assert [source.label(4), source.label(5)] == ["0", "1"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [b"1"], "b": [b"2"]}, r"several columns of bytes \(a, b\) among a, b"),
        ({"a": [1], "b": ["x"]}, "no column of encoded images among a, b"),
        ({"image": pa.array([], pa.binary())}, "has no rows"),
    ],
)
def test_tables_without_images(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(write(tmp_path / "a.parquet", columns))


def test_damaged_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": ENCODED})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a.parquet cannot be read as parquet"):
        open_source(path)
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"b.parquet cannot be read as parquet"):
        open_source(tmp_path / "b.parquet")


def test_broken_label_names_leave_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet", {"image": ENCODED, "label": [0] * 10}, {"label_names": "{"}
    )
    assert open_source(path, label="label").label(0) == "0"


def test_mnist() -> None:
    path = SHARED / "mnist_test.parquet"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the folder of shared data")
    source = open_source(path, label="label")
    table = pq.read_table(path)
    assert len(source) == 10_000
    for i in (0, 999, 1000, 9999):
        expected = Image.open(io.BytesIO(table["image"][i].as_py())).convert("RGB")
        np.testing.assert_array_equal(source.read(i), np.asarray(expected))
        assert source.label(i) == str(table["label"][i].as_py())


def test_a_refused_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write(tmp_path / "a.parquet", {"image": ENCODED}))
    assert isinstance(source, tables.Parquet)
    monkeypatch.setattr(tables, "_GROUP_BYTES", 1)
    reads: list[int] = []
    read = source._read_group
    monkeypatch.setattr(source, "_read_group", lambda t, g: (reads.append(g), read(t, g))[1])
    for i in (0, 1, 2, 0, 1):
        with pytest.raises(UnreadableImage, match="fewer rows a group"):
            source.item(i)
    assert reads == [0]


def test_images_are_weighed_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One large image, which the file holds once, in many rows."""
    large = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), [bytes(1 << 20)])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": large.cast(pa.binary())}), path)
    assert path.stat().st_size < 2 << 20
    source = open_source(path)
    assert isinstance(source, tables.Parquet)
    monkeypatch.setattr(tables, "_GROUP_BYTES", 5 << 19)
    table = source.tables[0].parquet
    read = table.iter_batches
    rows: list[int] = []

    def spied(*args: Any, **options: Any) -> Any:
        for batch in read(*args, **options):
            rows.append(len(batch))
            yield batch

    monkeypatch.setattr(table, "iter_batches", spied)
    with pytest.raises(UnreadableImage, match="fewer rows a group"):
        source.item(0)
    assert sum(rows) == 3


def test_a_row_group_of_thousands_of_rows(tmp_path: Path) -> None:
    images = [b"%d" % i if i % 7 else None for i in range(2500)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    for i in range(2500):
        if i % 7:
            assert source.item(i) == images[i]
    with pytest.raises(UnreadableImage, match="no image in this row"):
        source.item(2492)


def test_room_is_made_before_a_row_group_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"image": [{"bytes": data, "path": None} for data in ENCODED], "imaged": ENCODED}
    source = open_source(write(tmp_path / "a.parquet", columns))
    assert isinstance(source, tables.Parquet)
    assert sum(map(len, ENCODED[:3])) <= source._claimed(0, 0) < 2 * sum(map(len, ENCODED[:3]))
    monkeypatch.setattr(tables, "_HELD_BYTES", 1)
    held: list[int] = []
    read = source._read_group
    monkeypatch.setattr(
        source, "_read_group", lambda t, g: (held.append(len(source.held)), read(t, g))[1]
    )
    for i in (0, 4, 8):
        assert source.item(i) == ENCODED[i]
    assert held == [0, 0, 0]


def test_each_table_has_its_own_names_of_labels(tmp_path: Path) -> None:
    for part, names in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        columns = {"image": ENCODED[:2], "label": [0, 1]}
        write(tmp_path / f"{part}.parquet", columns, {"label_names": json.dumps(names)})
    source = open_source(tmp_path, label="label")
    assert [source.label(i) for i in range(4)] == ["cat", "dog", "dog", "cat"]


def test_what_stands_for_no_label_is_none(tmp_path: Path) -> None:
    columns = {
        "image": ENCODED[:3], "text": ["cat", "", None], "number": [1.5, float("nan"), None],
        "code": [1, -1, None],
    }  # fmt: skip
    path = write(tmp_path / "a.parquet", columns, {"code_names": json.dumps(["a", "b"])})
    bare = write(tmp_path / "b.parquet", columns)
    for file, label, wanted in (
        (path, "text", ["cat", None, None]),
        (path, "number", ["1.5", None, None]),
        (path, "code", ["b", None, None]),
        (bare, "code", ["1", "-1", None]),
    ):
        source = open_source(file, label=label)
        assert [source.label(i) for i in range(3)] == wanted


def test_labels_beyond_what_python_counts(tmp_path: Path) -> None:
    times = pa.array([2**60] * 10).view(pa.timestamp("ms"))
    days = pa.array([2**31 - 1] * 10, pa.int32()).view(pa.date32())
    for label in (times, days):
        path = write(tmp_path / "a.parquet", {"image": ENCODED, "label": label})
        with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
            open_source(path, label="label")
