"""Every item has its row; what cannot be read has its reason."""

import hashlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from erg.data.files import Files
from erg.data.manifest import Manifest, Row, build_manifest, whole_file
from erg.data.opening import UnreadableImage
from erg.data.source import DataError, Item, Source, open_source

SHARED = Path(__file__).parents[3] / "shared" / "data"
RGB = np.random.default_rng(0).integers(0, 256, (30, 9, 11, 3), dtype=np.uint8)


def png(i: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RGB[i]).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five readable files, two of them equal, in two folders; one truncated, one of text."""
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    for i in range(4):
        (root / ("cat" if i % 2 else "dog") / f"{i}.png").write_bytes(png(i))
    (root / "dog" / "copy of 1.png").write_bytes(png(1))
    (root / "cut.png").write_bytes(png(5)[:-30])
    (root / "page.jpg").write_text("<html>")
    Image.fromarray(RGB[0]).save(root / "dog" / "0.png", exif=_orientation(6))
    return root


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_rows(folder: Path) -> None:
    manifest = build_manifest(open_source(folder, label="folder"), max_skipped=0.5)
    rows = [Row(**row) for row in manifest.table.to_pylist()]
    assert [row.path for row in rows] == [
        "cat/1.png", "cat/3.png", "cut.png", "dog/0.png", "dog/2.png", "dog/copy of 1.png",
        "page.jpg",
    ]  # fmt: skip
    assert manifest.paths == [row.path for row in rows]
    assert manifest.ok.tolist() == [0, 1, 3, 4, 5]
    assert manifest.ok.dtype == np.int64
    for i in manifest.ok:
        data = (folder / rows[i].path).read_bytes()
        assert rows[i].size == len(data)
        assert rows[i].hash == hashlib.blake2b(data, digest_size=16).hexdigest()
        assert (rows[i].status, rows[i].reason) == ("ok", "")
    assert (rows[0].height, rows[0].width) == (9, 11)
    assert (rows[3].height, rows[3].width) == (11, 9)  # turned by its EXIF orientation
    for i in (2, 6):
        assert (rows[i].status, rows[i].hash, rows[i].height) == ("skipped", "", 0)
    assert "damaged" in rows[2].reason
    assert rows[6].reason == "It is not an image of a known format."
    codes, names = manifest.labels
    assert names == ["cat", "dog"]
    assert codes.tolist() == [0, 0, -1, 1, 1, 1, -1]
    assert manifest.sizes[0].tolist() == [9, 11]
    summary = manifest.summary()
    assert "5 readable items of 7" in summary
    assert "1 exact duplicates" in summary
    assert "1 skipped: It is not an image of a known format." in summary


def test_schema_is_the_one_of_the_run_folder(folder: Path) -> None:
    table = build_manifest(open_source(folder), max_skipped=1).table
    assert table.schema.metadata == {b"format": b"1"}
    assert {field.name: str(field.type) for field in table.schema} == {
        "path": "string", "offset": "int64", "size": "int64", "hash": "string", "height": "int32",
        "width": "int32", "status": "string", "reason": "string", "label": "string",
    }  # fmt: skip
    assert table["label"].null_count == len(table)


def test_threads_change_nothing_and_the_sink_sees_all_in_order(folder: Path) -> None:
    source = open_source(folder)
    tables = []
    for threads in (1, 2, 7):
        seen: list[tuple[int, tuple[int, ...] | None]] = []
        steps: list[tuple[int, int]] = []
        manifest = build_manifest(
            source,
            max_skipped=0.5,
            threads=threads,
            short_side=4,
            sink=lambda i, pixels: seen.append((i, None if pixels is None else pixels.shape)),  # noqa: B023
            progress=lambda done, total: steps.append((done, total)),  # noqa: B023
        )
        tables.append(manifest.table)
        assert [i for i, _ in seen] == list(range(7))
        assert [i for i, shape in seen if shape is None] == [2, 6]
        assert seen[0][1] == (4, 5, 3)
        assert steps[-1] == (7, 7)
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_without_decoding_only_headers_are_read(folder: Path) -> None:
    manifest = build_manifest(open_source(folder), decode=False)
    assert manifest.ok.tolist() == [0, 1, 2, 3, 4, 5]


def test_too_many_unreadable(folder: Path) -> None:
    source = open_source(folder)
    with pytest.raises(DataError, match=r"2 of 7 items .* more than the allowed 20%"):
        build_manifest(source)
    assert len(build_manifest(source, max_skipped=2 / 7).ok) == 5
    broken = open_source([folder / "cut.png", folder / "page.jpg"])
    with pytest.raises(DataError, match="none of 2 listed files can be read"):
        build_manifest(broken, max_skipped=1)


def test_save_and_load(folder: Path, tmp_path: Path) -> None:
    manifest = build_manifest(open_source(folder, label="folder"), max_skipped=0.5)
    path = tmp_path / "manifest.parquet"
    manifest.save(path)
    again = Manifest.load(path)
    assert again.table.equals(manifest.table)
    assert again.identity == manifest.identity
    assert list(tmp_path.glob(".*.tmp")) == []
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-9])
    pq.write_table(manifest.table.replace_schema_metadata({"format": "2"}), tmp_path / "newer")
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "foreign")
    for name in ("cut", "newer", "foreign", "absent"):
        with pytest.raises(DataError, match=f"{name} is no manifest of format 1"):
            Manifest.load(tmp_path / name)


def test_identity_depends_on_contents_and_order() -> None:
    a, b = (Row(n, 0, 1, n * 32, 1, 1, "ok", "", None) for n in "ab")
    renamed = a._replace(path="other", label="x")
    assert Manifest.of([a, b]).identity == Manifest.of([renamed, b]).identity
    assert Manifest.of([a, b]).identity != Manifest.of([b, a]).identity


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail() -> None:
        with whole_file(path) as stream:
            stream.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


class Failing(Files):
    """A source with a defect in its own code."""

    def __init__(self, fail: Callable[[], Item]) -> None:
        super().__init__(
            ["x"] * 50, ["x.png"] * 49 + ["culprit.png"], labelled=False, spec=None, text=""
        )
        self.fail = fail

    def item(self, i: int) -> Item:
        return self.fail() if i == 49 else png(0)


def test_a_defect_surfaces_with_the_name_of_the_item() -> None:
    def fail() -> Item:
        raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError) as caught:
        build_manifest(Failing(fail))
    assert "culprit.png" in caught.value.__notes__[0]


def test_what_the_disk_refuses_is_skipped() -> None:
    def forbidden() -> Item:
        raise PermissionError(13, "Permission denied")

    def refused() -> Item:
        raise UnreadableImage("It is a pipe, not a file.")

    for fail, reason in ((forbidden, "Permission denied"), (refused, "a pipe")):
        manifest = build_manifest(Failing(fail))
        assert manifest.ok.tolist() == list(range(49))
        assert reason in manifest.table["reason"][49].as_py()


def test_vectors_have_rows_too() -> None:
    values = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    values[3] = np.inf
    manifest = build_manifest(open_source(values))
    assert manifest.ok.tolist() == [0, 1, 2, 4, 5]
    assert manifest.sizes[0].tolist() == [1, 4]
    assert manifest.hashes[0] == hashlib.blake2b(values[0].tobytes(), digest_size=16).hexdigest()


def test_corpus(tmp_path: Path) -> None:
    """The folder of awkward files: nothing crashes, and whatever is not decoded is counted."""
    archive = SHARED / "badinputs.tar.xz"
    if not archive.exists():
        pytest.skip(f"{archive.name} is not in the folder of shared data")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    manifest = build_manifest(open_source(tmp_path), threads=2)
    reasons = Counter(manifest.table["reason"].to_pylist())
    assert reasons.pop("") == len(manifest.ok)
    assert sum(reasons.values()) == len(manifest) - len(manifest.ok)
    # Left out by name: hidden, no ending, .psd, .heif, the table and the licences.
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(manifest) > 0.9 * len(files)
    assert len(manifest.ok) > 0.8 * len(manifest)


def test_source_protocol_is_complete() -> None:
    """`Failing` above stands for all sources: a Source cannot be made without its methods."""
    with pytest.raises(TypeError, match="abstract"):
        Source()  # pyright: ignore[reportAbstractUsage]
