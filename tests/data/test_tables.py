"""Parquet columns and arrays: which column is the image, which name the label, which layout."""

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
from erg.data.cache import open_vectors
from erg.data.decode import UnreadableImage
from erg.data.source import DataError, masks_of, open_source

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


# Arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        RGB,
        RGB.transpose(0, 3, 1, 2),
        RGB / 255.0,
        (RGB / 255).astype(np.float32).transpose(0, 3, 1, 2),
        RGB.astype(np.float64),
    ],
)
def test_layouts_of_colour_arrays(array: np.ndarray, tmp_path: Path) -> None:
    source = open_source(array)
    assert (len(source), source.kind, source.spec) == (10, "image", None)
    np.testing.assert_array_equal([source.read(i) for i in range(10)], RGB)
    np.save(tmp_path / "a.npy", array)
    mapped = open_source(tmp_path / "a.npy")
    assert mapped.spec == str(tmp_path / "a.npy")
    np.testing.assert_array_equal(mapped.read(7), RGB[7])
    assert mapped.bytes(7) == RGB[7].tobytes()


def test_grey_arrays() -> None:
    grey = RGB[..., 0]
    for array in (grey, grey[..., None], grey[:, None], grey / 255):
        pixels = open_source(array).read(3)
        np.testing.assert_array_equal(pixels, np.repeat(grey[3][..., None], 3, axis=2))


def test_vectors() -> None:
    values = np.random.default_rng(0).normal(size=(6, 4))
    values[5, 0] = np.nan
    source = open_source(values)
    assert source.kind == "array"
    assert isinstance(source, tables.Vectors)
    np.testing.assert_array_equal(source.read(2), values[2].astype(np.float32))
    assert source.describe() == "6 vectors of 4 numbers in the array"
    with pytest.raises(UnreadableImage, match="NaN or infinity"):
        source.read(5)


def test_sequences_of_tokens(tmp_path: Path) -> None:
    tokens = np.array([[3, 0, 7], [5, -1, -1], [-1, -1, -1], [4, -1, 4], [4, -2, -2]], np.int32)
    np.save(tmp_path / "a.npy", tokens)
    for data in (tokens, tmp_path / "a.npy"):
        source = open_source(data)
        assert isinstance(source, tables.Tokens)
        assert (source.kind, len(source), source.vocabulary) == ("array", 5, 8)
        for i in range(2):
            found = source.read(i)
            assert found.dtype == np.int64
            assert found.tolist() == tokens[i].tolist()
        with pytest.raises(UnreadableImage, match="holds no token, only numbers below 0"):
            source.read(2)
        for i in range(3, 5):
            with pytest.raises(UnreadableImage, match="below 0 elsewhere than behind its end"):
                source.read(i)
    assert source.describe() == "5 sequences of 3 tokens, 8 different, in a.npy"
    assert source.spec == str(tmp_path / "a.npy")
    assert isinstance(open_source(tokens.astype(np.uint8)), tables.Vectors)


def test_sequences_without_a_token_are_skipped_when_they_are_opened() -> None:
    tokens = np.array([[3, 0, 7], [-1, -1, -1], [5, -1, -1], [1, 2, -1]], np.int64)
    manifest, values = open_vectors(open_source(tokens), max_skipped=0.3)
    assert manifest.ok.tolist() == [0, 2, 3]
    assert "1 skipped: It holds no token" in manifest.summary()
    assert values[manifest.ok].tolist() == tokens[manifest.ok].tolist()
    with pytest.raises(DataError, match=r"1 of 4 items .* are unreadable"):
        open_vectors(open_source(tokens))


def test_texts_are_cut_into_sequences_of_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) + b"end \xc3\xa4"
    (tmp_path / "a.txt").write_bytes(content)
    source = open_source(tmp_path / "a.txt")
    assert isinstance(source, tables.Tokens)
    rows = [source.read(i).tolist() for i in range(len(source))]
    assert [len(row) for row in rows] == [128] * 3
    assert [token for row in rows for token in row if token >= 0] == list(content)
    assert rows[2][6:] == [-1] * 122
    assert source.vocabulary == 256
    with pytest.raises(DataError, match="holds no labels, but 'y'"):
        open_source(tmp_path / "a.txt", label="y")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        open_source(tmp_path / "empty.txt")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 11, 3), np.uint8), "looks like one colour image"),
        (np.zeros((2, 9, 11, 4), np.uint8), r"has shape \[2, 9, 11, 4\]"),
        (np.zeros((2, 9, 11), np.int64), "type int64"),
        (np.zeros(5), r"shape \[5\]"),
        (np.zeros((0, 9, 9)), r"shape \[0, 9, 9\]"),
        (np.array([[object()]]), "type object"),
        (np.full((2, 9, 9), -1.0), "numbers from -1 to -1"),
        (np.full((2, 9, 9), 300.0), "numbers from 300 to 300"),
        (np.full((2, 9, 9), np.nan), "numbers from nan"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(array)


def test_array_with_labels_asked_for() -> None:
    with pytest.raises(DataError, match="holds no labels, but 'y' was asked for"):
        open_source(RGB, label="y")


def test_hostile_npy(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Gadget:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return (Path.touch, (canary,))

    np.save(tmp_path / "a.npy", np.array([Gadget()], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\x01\0\xff\xff{")
    (tmp_path / "c.npy").write_bytes(b"")
    for name in ("a.npy", "b.npy", "c.npy"):
        with pytest.raises(DataError, match="no array of numbers"):
            open_source(tmp_path / name)
    assert not canary.exists()
