"""Archives are read in place: nothing is extracted, no name is obeyed, no bomb unpacked."""

import io
import os
import resource
import stat
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erg.data.archives import Index, Member
from erg.data.manifest import Manifest, look_at
from erg.data.opening import UnreadableImage
from erg.data.source import DataError, Source, open_source

RGB = np.random.default_rng(0).integers(0, 256, (4, 9, 11, 3), dtype=np.uint8)


def png(i: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RGB[i]).save(stream, "PNG")
    return stream.getvalue()


LEADING_OUT = [
    "../../escape.png",
    "/absolute.png",
    "C:\\windows\\drive.png",
    "a/../../b.png",
    "..\\back.png",
]
LINKS = {
    "symlink.png": tarfile.SYMTYPE,
    "hard_link.png": tarfile.LNKTYPE,
    "character_device.png": tarfile.CHRTYPE,
    "block_device.png": tarfile.BLKTYPE,
    "pipe.png": tarfile.FIFOTYPE,
}
HONEST = ["a/b\nc.png", "./d.png", "e..f/g...png", "h:1.png"]


def names(source: Source) -> list[str]:
    return [source.path(i) for i in range(len(source))]


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "images.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("b/2.png", png(2), zipfile.ZIP_DEFLATED)
        archive.writestr("a.png", png(1), zipfile.ZIP_STORED)
        archive.writestr("b/", "")
        archive.writestr("notes.txt", "no image")
        archive.writestr("__MACOSX/a.png", "no image")
        archive.writestr("b/._2.png", "no image")
    return path


def test_zip(zipped: Path) -> None:
    source = open_source(zipped, label="folder")
    assert names(source) == ["a.png", "b/2.png"]
    assert [source.label(0), source.label(1)] == [None, "b"]
    assert source.spec == str(zipped)
    assert "2 images in images.zip" in source.describe()
    np.testing.assert_array_equal(source.read(0), RGB[1])
    np.testing.assert_array_equal(source.read(1), RGB[2])
    assert source.bytes(1) == png(2)
    with zipfile.ZipFile(zipped) as archive:
        assert source.offset(0) == archive.getinfo("a.png").header_offset


def test_many_threads_share_an_archive(tmp_path: Path) -> None:
    contents = [os.urandom(5000) for _ in range(50)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, content in enumerate(contents):
            archive.writestr(f"{i:03d}.png", content)
    source = open_source(tmp_path / "a.zip")
    order = np.random.default_rng(0).integers(0, 50, 1000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.bytes, order)) == [contents[i] for i in order]


def test_ten_ways_out_are_refused(tmp_path: Path) -> None:
    """By name and by link, in a tar; by name in a zip, whose links are refused below. Nothing is
    written, names are shown as they are, and honest ones that look like them are read."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    with zipfile.ZipFile(inside / "x.zip", "w") as archive:
        for name in [*LEADING_OUT, *HONEST]:
            archive.writestr(name, png())
    with tarfile.open(inside / "x.tar", "w") as tar:
        for name in [*LEADING_OUT, *HONEST]:
            info = tarfile.TarInfo(name)
            info.size = len(png())
            tar.addfile(info, io.BytesIO(png()))
        for name, kind in LINKS.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../../../etc/passwd"
            tar.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    refused: dict[str, list[str]] = {"x.zip": [], "x.tar": []}
    for archive_name, found in refused.items():
        source = open_source(inside / archive_name, label="folder")
        links = LINKS if archive_name == "x.tar" else {}
        assert sorted(names(source)) == sorted([*LEADING_OUT, *HONEST, *links])
        for i, name in enumerate(names(source)):
            source.label(i)
            if name in HONEST:
                np.testing.assert_array_equal(source.read(i), RGB[0])
                continue
            reason = "leads out of the archive" if name in LEADING_OUT else "It is a link, a device"
            with pytest.raises(UnreadableImage, match=reason):
                source.item(i)
            found.append(name)
    assert len(refused["x.tar"]) == 10
    assert len(refused["x.zip"]) == 5
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_not_read_is_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1_good.png", png())
        archive.writestr("2_secret.png", png())
        link = zipfile.ZipInfo("3_link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("4_nested.zip", b"PK")
        archive.writestr("5_odd.png", png(), zipfile.ZIP_BZIP2)
        archive.writestr("6_changed.png", png())
    data = bytearray(path.read_bytes())
    flags = data.rindex(b"2_secret.png") - 46 + 8  # in the index
    data[flags] |= 1
    body = data.index(b"6_changed.png") + 40
    data[body] ^= 1
    path.write_bytes(data)
    source = open_source(path)
    np.testing.assert_array_equal(source.read(0), RGB[0])
    for i, reason in enumerate(
        ["encrypted", "a link inside", "an archive inside", r"method 12", "is damaged"], start=1
    ):
        with pytest.raises(UnreadableImage, match=reason):
            source.read(i)


def test_tar(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, i in (("c/3.png", 3), ("c/1.png", 1), ("c/1.png", 2)):
            info = tarfile.TarInfo(name)
            info.size = len(png(i))
            tar.addfile(info, io.BytesIO(png(i)))
        for name, kind in (
            ("d/link.png", tarfile.SYMTYPE),
            ("d/hard.png", tarfile.LNKTYPE),
            ("d/null.png", tarfile.CHRTYPE),
            ("d/pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    source = open_source(path, label="folder")
    assert names(source)[:3] == ["c/1.png", "c/1.png", "c/3.png"]  # a name may come twice
    np.testing.assert_array_equal(source.read(0), RGB[1])
    np.testing.assert_array_equal(source.read(1), RGB[2])
    np.testing.assert_array_equal(source.read(2), RGB[3])
    assert source.label(2) == "c"
    assert len(source) == 7
    for i in range(3, 7):
        with pytest.raises(UnreadableImage, match="a link, a device or a folder inside"):
            source.read(i)
    start = source.offset(2)
    assert path.read_bytes()[start : start + len(png(3))] == png(3)


def test_damaged_archives(tmp_path: Path, zipped: Path) -> None:
    whole = zipped.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.zip").write_bytes(b"not a zip")
    (tmp_path / "empty.zip").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"not a tar" * 100)
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(zipped, "images.png")
    for name in ("cut.zip", "text.zip", "empty.zip", "text.tar", "packed.tar"):
        with pytest.raises(DataError, match=f"{name} is no archive that can be read"):
            open_source(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("a.txt", "words")
    with pytest.raises(DataError, match="holds no image file"):
        open_source(tmp_path / "none.zip")


def test_index_that_points_outside(zipped: Path) -> None:
    data = bytearray(zipped.read_bytes())
    entry = data.rindex(b"a.png") - 46
    while data[entry : entry + 4] != b"PK\1\2" or data[entry + 46 : entry + 51] != b"a.png":
        entry = data.rindex(b"PK\1\2", 0, entry)
    for field, value in ((42, 0x7FFFFFFF), (42, 3), (20, 0x7FFFFFF0)):
        changed = data.copy()
        struct.pack_into("<I", changed, entry + field, value)
        zipped.write_bytes(changed)
        try:
            source = open_source(zipped)
        except DataError:
            continue  # the standard library noticed
        with pytest.raises(UnreadableImage):
            source.read(0)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """A member of 100 kB that unpacks to 100 MB, whose index claims 1 kB; memory stays flat."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(100 << 20))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + 24, 1000)
    path.write_bytes(data)
    source = open_source(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableImage, match="damaged"):
        source.read(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


# Labels beside the images ----------------------------------------------------------------------


def packed(path: Path, members: dict[str, bytes]) -> Path:
    """An archive, a zip or a tar by its ending."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


SAMPLES = {
    "a/000.png": png(0), "a/000.cls": b"7\n", "a/000.json": b'{"kind": "cat", "size": 3}',
    "a/001.left.png": png(1), "a/001.right.png": png(2), "a/001.cls": b"12",
    "a/001.json": b'{"kind": 5, "size": null}',
    "b/000.png": png(3), "b/000.json": b'{"kind": "d\\u0000g", "size": [1]}',
    "b/002.png": png(0), "b/._002.cls": b"9", "b/002.txt": b"no label",
}  # fmt: skip


def labels(source: Source) -> list[str | None]:
    return [source.label(i) for i in range(len(source))]


@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_labels_beside_the_images(tmp_path: Path, ending: str) -> None:
    path = packed(tmp_path / f"shard{ending}", SAMPLES)
    plain = open_source(path)
    wanted = ["a/000.png", "a/001.left.png", "a/001.right.png", "b/000.png", "b/002.png"]
    assert names(plain) == wanted
    assert labels(plain) == [None] * 5
    assert labels(open_source(path, label="folder")) == ["a", "a", "a", "b", "b"]
    source = open_source(path, label="cls")
    assert names(source) == wanted
    assert labels(source) == ["7", "12", "12", None, None]
    assert labels(open_source(path, label="kind")) == ["cat", "5", "5", "d\0g", None]
    assert labels(open_source(path, label="size")) == ["3", None, None, None, None]
    for i in range(5):
        np.testing.assert_array_equal(source.read(i), plain.read(i))
    with pytest.raises(DataError, match="no labels called 'colour'"):
        open_source(path, label="colour")


def test_labels_are_those_of_their_own_shard(tmp_path: Path) -> None:
    for shard in range(3):
        members = {f"{i}.png": png(i) for i in range(2)}
        packed(tmp_path / f"{shard}.tar", members | {f"{i}.cls": b"%d" % shard for i in range(2)})
    assert labels(open_source(tmp_path, label="cls")) == ["0", "0", "1", "1", "2", "2"]


def test_a_label_of_its_own_goes_before_that_of_the_sample(tmp_path: Path) -> None:
    members = {"1.a.png": png(), "1.b.png": png(), "1.cls": b"both", "1.b.cls": b"one"}
    source = open_source(packed(tmp_path / "x.tar", members), label="cls")
    assert labels(source) == ["both", "one"]


def test_labels_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    bad = [
        b"\xff\xfe", b"", b"[", b"[1]", b"[" * 100_000, b'{"kind": {}}', b" " * (2 << 20),
        b'{"kind": ' + b"9" * 5000 + b"}",
    ]  # fmt: skip
    members = {"good.png": png(), "good.json": b'{"kind": "good"}'}
    for i, content in enumerate(bad):
        members |= {f"{i}.png": png(), f"{i}.json": content}
    path = packed(tmp_path / "x.tar", members)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("linked.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        info = tarfile.TarInfo("linked.png")
        info.size = len(png())
        tar.addfile(info, io.BytesIO(png()))
    source = open_source(path, label="kind")
    assert labels(source) == [None] * len(bad) + ["good", None]


# Hostile headers -------------------------------------------------------------------------------

MINUS_512 = b"\xff" * 10 + b"\xfe\x00"


def header(name: str, size: bytes = b"0" * 11, kind: bytes = b"0", **more: bytes) -> bytes:
    """A header of a tar, written here: the standard library would refuse to write such ones."""
    block = bytearray(512)
    fields = {0: name.encode(), 100: b"0000644\0", 124: size, 156: kind, 257: b"ustar\x0000"}
    fields |= {148: b" " * 8} | {int(place[1:]): content for place, content in more.items()}
    for place, content in fields.items():
        block[place : place + len(content)] = content
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(record: bytes) -> bytes:
    return header("pax", b"%011o" % len(record), b"x") + record.ljust(512, b"\0")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "member",
    [
        header("b.jpg", MINUS_512),
        pax(b"14 size=-1536\n") + header("b.jpg"),
        header("b.jpg", MINUS_512, b"S", _483=b"00000001000\0"),
        header("b.jpg", b"\xff" * 12),
    ],
    ids=["itself", "pax", "sparse", "minus one"],
)
def test_a_tar_that_leads_back_is_refused(tmp_path: Path, member: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(header("a.jpg") + member + bytes(1024))
    with pytest.raises(DataError, match=r"can be read \(a member has a negative size\)"):
        open_source(tmp_path / "x.tar")


@pytest.mark.parametrize(
    "content",
    [header("a.jpg", kind=b"S", _482=b"\1"), header("a.jpg", kind=b"L") * 400],
    ids=["sparse", "long names"],
)
def test_headers_the_standard_library_stumbles_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.tar is no archive that can be read"):
        open_source(tmp_path / "x.tar")


def test_a_link_may_claim_any_size(tmp_path: Path) -> None:
    link = header("b.png", b"\x80" + b"\xff" * 11, b"2")
    (tmp_path / "x.tar").write_bytes(header("a.png") + link + bytes(1024))
    with pytest.raises(UnreadableImage, match="It is a link"):
        open_source(tmp_path / "x.tar").item(1)


@pytest.mark.parametrize("harm", ["negative", "header_offset", "file_size", "compress_size"])
def test_members_outside_a_zip_are_refused_one_by_one(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(2):
            archive.writestr(f"{i}.png", png(i))
        if harm != "negative":
            setattr(archive.filelist[1], harm, (1 << 63) + 5)
    if harm == "negative":
        data = bytearray(path.read_bytes())
        end = data.rindex(b"PK\5\6") + 16
        start = struct.unpack_from("<I", data, end)[0]
        struct.pack_into("<I", data, end, start + 20)  # so that the first one begins at -20
        path.write_bytes(data)
    source = open_source(path)
    with pytest.raises(UnreadableImage, match="lies outside the archive"):
        source.item(harm != "negative")
    manifest = Manifest.of([row for row, _ in look_at(source)])
    manifest.save(tmp_path / "m.parquet")
    assert Manifest.load(tmp_path / "m.parquet").paths == ["0.png", "1.png"]
    if harm != "negative":
        np.testing.assert_array_equal(source.read(0), RGB[0])


@pytest.mark.timeout(8)
def test_as_many_reasons_as_members() -> None:
    index = Index()
    index.append([Member(f"{i}", 0, 0, 0, refused=f"method {i % 65_535}") for i in range(1 << 16)])
    assert index[40_000].refused == "method 40000"
    assert index[65_535] == Member("65535", 0, 0, 0, refused="method 0")


def test_many_shards_raise_the_limit_of_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(100):
        packed(tmp_path / f"{i:02d}.tar", {"a.png": png(i % 4)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(map(int, os.listdir("/dev/fd"))) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        source = open_source(tmp_path)
        np.testing.assert_array_equal(source.read(99), RGB[3])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(DataError, match="needs 100 open files, and this system allows 64"):
        open_source(tmp_path)
