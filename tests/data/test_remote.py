"""Shards of archives and tables, here and in stores: the same images, read where they lie."""

import io
import resource
import signal
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from erg.data import cache
from erg.data.archives import Archives, Index, Member
from erg.data.opening import UnreadableImage
from erg.data.places import Remote
from erg.data.remote import Objects
from erg.data.source import DataError, Source, open_source
from erg.embeddings import Embeddings
from erg.train.checkpoint import state_hash
from erg.train.fit import fit
from erg.train.preempt import Stopped
from erg.train.run import Run

RGB = np.random.default_rng(0).integers(0, 256, (12, 9, 11, 3), dtype=np.uint8)


def png(i: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RGB[i]).save(stream, "PNG")
    return stream.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twelve images in two tars and a zip of a folder, as webdataset writes them."""
    root = tmp_path / "shards"
    (root / "more").mkdir(parents=True)
    for shard in (0, 1):
        numbers = range(4 * shard, 4 * shard + 4)
        members = {f"{i % 2}/{i - 4 * shard:03}.png": png(i) for i in numbers}
        members["0/000.json"] = b"{}"
        tar(root / f"{shard:05}.tar", members)
    with zipfile.ZipFile(root / "more" / "2.zip", "w") as archive:
        for i in range(8, 12):
            archive.writestr(f"{i % 2}/{i:03}.png", png(i), zipfile.ZIP_DEFLATED)
    return root


ORDER = [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]  # by shard, then by name


def same_images(source: Source) -> None:
    assert len(source) == 12
    for i, which in enumerate(ORDER):
        np.testing.assert_array_equal(source.read(i), RGB[which])
        assert source.label(i) == str(which % 2)


def test_a_folder_of_shards_is_one_source(shards: Path) -> None:
    source = open_source(shards, label="folder")
    assert isinstance(source, Archives)
    same_images(source)
    assert [source.path(i) for i in (0, 4, 11)] == [
        "00000.tar/0/000.png", "00001.tar/0/000.png", "more/2.zip/1/011.png",
    ]  # fmt: skip
    assert source.describe() == "12 images in 3 archives"
    assert source.spec == str(shards)
    start = source.offset(5)
    content = (shards / "00001.tar").read_bytes()
    assert content[start : start + len(png(6))] == png(6)
    (shards / "00001.tar").write_bytes(b"no tar at all")
    with pytest.raises(DataError, match=r"00001.tar is no archive that can be read"):
        open_source(shards)


def test_images_beside_archives_are_what_is_meant(shards: Path) -> None:
    (shards / "a.png").write_bytes(png(3))
    source = open_source(shards)
    assert len(source) == 1
    assert "files that are no images" in source.describe()


def test_a_link_out_of_the_folder_is_no_shard(shards: Path, tmp_path: Path) -> None:
    tar(tmp_path / "secret.tar", {"a.png": png(0)})
    (shards / "9.tar").symlink_to(tmp_path / "secret.tar")
    assert len(open_source(shards)) == 12
    assert len(open_source(shards, follow_links=True)) == 13


def test_an_index_takes_little_memory() -> None:
    index = Index()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shard in range(20):
        index.append([
            Member(f"{i:09}.jpg", 512 * i, 100, 100, refused="" if i % 3 else "It is a link.")
            for i in range(shard * 5000, shard * 5000 + 5000)
        ])  # fmt: skip
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10  # KiB
    held = len(index._names) + sum(c.itemsize * len(c) for c in index._columns)
    assert held == 100_000 * (13 + 5 * 8 + 1 + 4)
    assert len(index) == 100_000
    assert index[70_002] == Member("000070002.jpg", 512 * 70_002, 100, 100, refused="It is a link.")
    assert index[70_001].refused == ""
    assert [index.archive_of(i) for i in (0, 4999, 5000, 99_999)] == [0, 0, 1, 19]


def test_a_tar_that_says_its_names_are_long(tmp_path: Path) -> None:
    """A header of 3 MB is not read, however it is called."""
    info = tarfile.TarInfo("a.png")
    info.size = len(png(0))
    info.pax_headers = {"comment": "x" * (3 << 20)}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(png(0)))
    with pytest.raises(DataError, match=r"a.tar is no archive .*a header of 3,1.* bytes"):
        open_source(tmp_path / "a.tar")


# In stores -----------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def upload(system: fsspec.AbstractFileSystem, folder: Path, to: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            system.pipe_file(f"{to}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def test_shards_in_a_store(store: fsspec.AbstractFileSystem, shards: Path) -> None:
    upload(store, shards, "/set")
    source = open_source("memory://set", label="folder")
    same_images(source)
    assert source.path(11) == open_source(shards).path(11)
    assert source.spec == "memory://set"
    one = open_source("memory://set/00001.tar")
    np.testing.assert_array_equal(one.read(0), RGB[4])
    zipped = open_source("memory://set/more/2.zip")
    np.testing.assert_array_equal(zipped.read(3), RGB[11])


def test_only_what_is_asked_for_is_fetched(
    store: fsspec.AbstractFileSystem, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(store, shards, "/set")
    source = open_source("memory://set/00000.tar")
    fetched: list[tuple[int, int]] = []
    read = Remote.read
    monkeypatch.setattr(Remote, "read", lambda *given: (fetched.append(given[1:]), read(*given))[1])
    source.read(2)
    assert fetched == [(source.offset(2), len(png(1)))]


def test_tables_and_images_in_a_store(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for part in (0, 1):
        rows = [png(i) for i in range(6 * part, 6 * part + 6)]
        table = pa.table({"image": rows, "kind": [str(part)] * 6})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=4)
    upload(store, tmp_path, "/tables")
    source = open_source("memory://tables", label="kind")
    for i in (11, 0, 5, 7):
        np.testing.assert_array_equal(source.read(i), RGB[i])
        assert source.label(i) == str(i // 6)
    for i in range(12):
        store.pipe_file(f"/photos/{i % 2}/{i:03}.png", png(i))
    store.pipe_file("/photos/notes.txt", b"no image")
    photos = open_source("memory://photos/", label="folder")
    assert isinstance(photos, Objects)
    assert [photos.path(i) for i in (0, 6)] == ["0/000.png", "1/001.png"]
    np.testing.assert_array_equal(photos.read(6), RGB[1])
    assert photos.label(6) == "1"
    store.rm("/photos/0/000.png")
    with pytest.raises(OSError):
        photos.read(0)
    photos.places[1].size = 1 << 40
    with pytest.raises(UnreadableImage, match="more than the limit"):
        photos.read(1)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("memory://absent", "holds no image|cannot be read"),
        ("memory://absent/a.tar", "cannot be read"),
        ("reference://a.json", "no address erg reads"),
        ("simplecache::memory://set", "There is no file|no address"),
        ("zip://a.tar::memory://set/a.zip", "no address erg reads"),
        ("python://os.system/a.png", "no address erg reads"),
    ],
)
def test_addresses_that_are_refused(
    address: str, reason: str, store: fsspec.AbstractFileSystem
) -> None:
    with pytest.raises(DataError, match=reason):
        open_source(address)


def test_a_store_that_fails_while_it_is_read(
    store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pipe_file("/photos/a.png", png(0))
    source = open_source("memory://photos")

    def failing(*_: object, **__: object) -> bytes:
        raise RuntimeError("the store is on fire")

    monkeypatch.setattr(type(store), "cat_file", failing)
    with pytest.raises(OSError, match="RuntimeError: the store is on fire"):
        source.read(0)


# A run on a stream ---------------------------------------------------------------------------


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress) -> None:
        if progress.step == self.step:
            signal.raise_signal(signal.SIGTERM)


def test_a_run_on_a_stream_of_shards_resumes_exactly(
    store: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept decoded; from a store and from a folder the same bits come out."""
    monkeypatch.setattr(cache, "default_budget", lambda _: 0)
    from erg.data.scenes import world

    root = tmp_path / "shards"
    root.mkdir()
    images = world(90, size=32).images
    for shard in range(3):
        members = {}
        for i in range(30 * shard, 30 * shard + 30):
            stream = io.BytesIO()
            Image.fromarray(images[i]).save(stream, "PNG")
            members[f"{i:03}.png"] = stream.getvalue()
        tar(root / f"{shard}.tar", members)
    upload(store, root, "/set")
    run = Run(
        method="SimCLR", encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=16,
        data=str(root), batch=24, steps=6, precision="32",
    )  # fmt: skip
    through = fit(run, out=tmp_path / "through")
    with pytest.raises(Stopped):
        fit(run, open_source("memory://set"), tmp_path / "stopped", show=StopAt(4))
    assert not list((tmp_path / "stopped").glob("cache*"))
    resumed = fit(run, out=tmp_path / "stopped", resume=True)
    assert state_hash(resumed.method) == state_hash(through.method)
    events = [(tmp_path / name / "events.jsonl").read_text() for name in ("through", "stopped")]
    assert events[0] == events[1]


def test_vectors_of_shards_carry_the_names_of_their_shards(shards: Path, tmp_path: Path) -> None:
    from erg.cli import main
    from erg.encoders import build_encoder, save_encoder

    save_encoder(build_encoder("conv", 16, width=4, stages=2), tmp_path / "model")
    out = tmp_path / "e.parquet"
    assert main(["embed", str(tmp_path / "model"), str(shards), "--out", str(out)]) == 0
    found = Embeddings.load(out)
    assert found.paths is not None
    assert found.paths[4] == "00001.tar/0/000.png"
