"""Arrays and texts: which layout holds images, which vectors, which tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erg.data import arrays
from erg.data.cache import open_vectors
from erg.data.opening import UnreadableImage
from erg.data.source import DataError, open_source

RGB = np.random.default_rng(0).integers(0, 256, (10, 9, 11, 3), dtype=np.uint8)


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
    assert isinstance(source, arrays.Vectors)
    np.testing.assert_array_equal(source.read(2), values[2].astype(np.float32))
    assert source.describe() == "6 vectors of 4 numbers in the array"
    with pytest.raises(UnreadableImage, match="NaN or infinity"):
        source.read(5)


def test_sequences_of_tokens(tmp_path: Path) -> None:
    tokens = np.array([[3, 0, 7], [5, -1, -1], [-1, -1, -1], [4, -1, 4], [4, -2, -2]], np.int32)
    np.save(tmp_path / "a.npy", tokens)
    for data in (tokens, tmp_path / "a.npy"):
        source = open_source(data)
        assert isinstance(source, arrays.Tokens)
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
    assert isinstance(open_source(tokens.astype(np.uint8)), arrays.Vectors)


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
    assert isinstance(source, arrays.Tokens)
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


def test_rows_longer_than_a_manifest_may_say() -> None:
    for kind in (np.float32, np.int64):
        with pytest.raises(DataError, match="Give rows of at most 64,000,000 numbers"):
            open_source(np.broadcast_to(kind(0), (2, 64_000_001)))


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
