"""Cache and Stream give the pixels that reading gives; a cache file is reused only when sound."""

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from erg.data import budget, stream
from erg.data import cache as module
from erg.data.budget import default_budget, free_memory
from erg.data.cache import Cache, build_cache, open_images, open_vectors
from erg.data.manifest import Manifest, build_manifest
from erg.data.source import DataError, Source, open_source
from erg.data.stream import Stream
from tests.data.conftest import Counting

RNG = np.random.default_rng(0)


def check(source: Source, images: Cache | Stream, manifest: Manifest, short_side: Any) -> None:
    rows = RNG.permutation(manifest.ok)[:7]
    pixels = images.pixels(rows)
    assert pixels.flat.dtype == np.uint8
    assert pixels.flat.ndim == 1
    assert pixels.offset.dtype == pixels.height.dtype == pixels.width.dtype == np.int64
    for k, row in enumerate(rows.tolist()):
        np.testing.assert_array_equal(pixels.image(k), source.read(row, short_side))


@pytest.mark.parametrize("short_side", [None, 8])
@pytest.mark.parametrize("where", ["memory", "file", "stream"])
def test_pixels_are_what_reading_gives(
    source: Counting, tmp_path: Path, where: str, short_side: int | None
) -> None:
    manifest, images = open_images(
        source,
        short_side=short_side,
        file=tmp_path / "cache" / "pixels" if where == "file" else None,
        budget=100 if where == "stream" else None,
    )
    assert isinstance(images, Stream if where == "stream" else Cache)
    assert len(manifest) == 14
    assert len(manifest.ok) == 12
    check(source, images, manifest, short_side)
    check(source, images, manifest, short_side)
    if isinstance(images, Stream):
        images.close()


def test_one_pass(source: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "estimated_bytes", lambda *_: 0.0)
    _, images = open_images(source)
    assert source.reads == [1] * 14
    images.pixels(np.array([0, 1]))
    assert source.reads == [1] * 14


def test_budget_found_too_small_on_the_way(
    source: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "estimated_bytes", lambda *_: 0.0)
    file = tmp_path / "pixels"
    for where in (None, file):
        manifest, images = open_images(source, budget=10_000, file=where)
        assert isinstance(images, Stream)
        check(source, images, manifest, None)
        images.close()
    assert not file.exists()
    assert list(tmp_path.glob(".*")) == []


def test_no_pixel_is_copied(source: Counting) -> None:
    manifest, images = open_images(source)
    assert isinstance(images, Cache)
    assert images.pixels(manifest.ok).flat is images.flat
    skipped = np.setdiff1d(np.arange(14), manifest.ok)
    assert images.height[skipped].tolist() == [0, 0]
    with pytest.raises(ValueError, match=f"row {skipped[0]} was skipped"):
        images.pixels(np.array([0, skipped[0]]))


def test_images_in_memory_come_back_as_they_were() -> None:
    images = [RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((2, 5), (4, 1), (3, 3))]
    cache = Cache.of(images)
    assert len(cache.height) == 3
    found = cache.pixels(np.array([2, 0]))
    np.testing.assert_array_equal(found.image(0), images[2])
    np.testing.assert_array_equal(found.image(1), images[0])


def test_cache_refuses_pixels_of_other_sizes() -> None:
    with pytest.raises(ValueError, match="11 bytes of pixels are not the 12 bytes"):
        Cache(np.zeros(11, np.uint8), np.array([[2, 2]]))


def test_resuming_reuses_the_file(source: Counting, tmp_path: Path) -> None:
    file = tmp_path / "pixels"
    manifest, first = open_images(source, short_side=9, file=file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "pixels", "pixels.json"]
    source.reads = [0] * 14
    again, second = open_images(source, short_side=9, file=file, manifest=manifest)
    assert source.reads == [0] * 14
    assert again is manifest
    assert isinstance(first, Cache)
    assert isinstance(second, Cache)
    for name in ("flat", "offset", "height", "width"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_others_open_what_the_first_process_has_left(source: Counting, tmp_path: Path) -> None:
    file, told = tmp_path / "pixels", []

    def look(looking: Any) -> Any:
        told.append(looking())
        return told[-1]

    def wait(_: Any) -> Any:
        return told[-1]

    manifest, first = open_images(source, short_side=9, file=file, share=look)
    source.reads = [0] * 14
    other, second = open_images(source, short_side=9, file=file, share=wait)
    assert source.reads == [0] * 14
    assert other is manifest
    assert isinstance(first, Cache)
    assert isinstance(second, Cache)
    for images in (first, second):
        assert isinstance(images.flat.base, np.memmap)
        assert images.flat.base.filename == file
        check(source, images, manifest, 9)
    listed = open_source(source.files[:5])  # while files came or went
    with pytest.raises(DataError, match="5 listed files, but the manifest has 14 rows"):
        open_images(listed, short_side=9, file=file, share=wait)

    # It is the first one that decides, since the free disk is another a moment later.
    open_images(source, short_side=9, file=file, budget=100, share=look)[1].close()
    _, streamed = open_images(source, short_side=9, file=file, budget=1 << 40, share=wait)
    assert isinstance(streamed, Stream)
    check(source, streamed, manifest, 9)
    streamed.close()


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _edit(file: Path, **changes: object) -> None:
    sidecar = file.with_name(file.name + ".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | changes))


@pytest.mark.parametrize(
    "harm",
    [
        _flip,
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
        lambda file: file.with_name("pixels.json").unlink(),
        lambda file: file.with_name("pixels.json").write_text("[1]"),
        lambda file: file.with_name("pixels.json").write_text("{"),
        lambda file: _edit(file, format=2),
        lambda file: _edit(file, manifest="another"),
        lambda file: _edit(file, short_side=10),
        lambda file: _edit(file, decoder="Pillow 1"),
        lambda file: _edit(file, crc32="?"),
    ],
)
def test_a_damaged_or_foreign_file_is_made_again(
    source: Counting, tmp_path: Path, harm: Any
) -> None:
    file = tmp_path / "pixels"
    manifest, _ = open_images(source, short_side=9, file=file)
    sound = file.read_bytes()
    harm(file)
    source.reads = [0] * 14
    images = build_cache(source, manifest, short_side=9, file=file)
    assert sum(source.reads) == 12
    check(source, images, manifest, 9)
    assert file.read_bytes() == sound
    source.reads = [0] * 14
    build_cache(source, manifest, short_side=9, file=file)
    assert sum(source.reads) == 0


def test_leftovers_of_a_killed_run_go(source: Counting, tmp_path: Path) -> None:
    stray = tmp_path / ".pixels.4711.tmp"
    stray.write_bytes(b"half")
    open_images(source, file=tmp_path / "pixels")
    assert not stray.exists()


def test_an_interrupted_pass_leaves_nothing(source: Counting, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_images(source, file=tmp_path / "pixels", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("change", ["gone", "other", "broken"])
@pytest.mark.parametrize("how", ["stream", "cache"])
def test_files_that_change_are_named(source: Counting, change: str, how: str) -> None:
    manifest = build_manifest(source)
    row = int(manifest.ok[5])
    file = Path(source.files[row])
    if change == "gone":
        file.unlink()
    elif change == "other":
        Image.new("RGB", (40, 25)).save(file)
    else:
        file.write_bytes(file.read_bytes()[:60])
    if how == "cache":
        with pytest.raises(DataError, match=rf"{file.name} was readable before and is not now"):
            build_cache(source, manifest)
        return
    stream = Stream(source, manifest)
    with pytest.raises(DataError, match=rf"{file.name} was readable before and is not now"):
        stream.pixels(manifest.ok)
    check(source, stream, _without(manifest, row), None)
    stream.close()


def test_others_stand_in_for_images_that_are_lost_and_they_are_counted(source: Counting) -> None:
    manifest = build_manifest(source)
    stream = Stream(source, manifest, max_lost=0.2)  # 2 of 12
    rows = manifest.ok
    check(source, stream, manifest, None)
    Path(source.files[rows[3]]).unlink()
    Image.new("RGB", (40, 25)).save(source.files[rows[11]], "PNG")
    for _ in range(2):
        pixels = stream.pixels(rows)
        for k, row in enumerate(rows.tolist()):
            stand_in = {3: rows[4], 11: rows[0]}.get(k, row)
            np.testing.assert_array_equal(pixels.image(k), source.read(int(stand_in)))
        assert sorted(stream.lost) == [rows[3], rows[11]]
    assert "was readable before and is not now" in str(stream.lost[int(rows[3])])
    with pytest.raises(DataError, match="Its content has changed"):
        stream.pixels(rows[[11]])  # nothing is there to stand in
    Path(source.files[rows[5]]).unlink()
    with pytest.raises(DataError, match="was readable before and is not now"):
        stream.pixels(rows)  # a third one is too many
    stream.close()


def _without(manifest: Manifest, row: int) -> Manifest:
    rest = Manifest(manifest.table)
    rest.ok = manifest.ok[manifest.ok != row]
    return rest


def test_defects_surface_with_the_name(source: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, images = open_images(source, budget=0)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(stream, "decode_item", fail)
    with pytest.raises(ZeroDivisionError) as caught:
        images.pixels(manifest.ok[:1])
    assert source.path(int(manifest.ok[0])) in caught.value.__notes__[0]


def test_other_data_than_the_manifest(source: Counting, tmp_path: Path) -> None:
    manifest = build_manifest(source)
    other = open_source(source.files[:5])
    with pytest.raises(DataError, match="5 listed files, but the manifest has 14 rows"):
        open_images(other, manifest=manifest)
    with pytest.raises(DataError, match="more than the budget of 10"):
        build_cache(source, manifest, budget=10)
    manifest, images = open_images(source, manifest=manifest, budget=10)
    assert isinstance(images, Stream)
    images.close()


def test_vectors_are_no_images() -> None:
    with pytest.raises(DataError, match="Use the vectors of the source"):
        open_images(open_source(np.zeros((5, 3))))


def test_vectors_that_cannot_be_read_are_skipped() -> None:
    values = np.arange(30, dtype=np.float32).reshape(10, 3)
    values[[2, 5], 1] = [np.nan, np.inf]
    source = open_source(values)
    seen: list[tuple[int, int]] = []
    manifest, vectors = open_vectors(source, progress=lambda n, of: seen.append((n, of)))
    assert manifest.ok.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert "2 skipped: The vector holds NaN or infinity." in manifest.summary()
    assert seen[-1] == (10, 10)
    for found in (vectors, open_vectors(source, manifest=manifest)[1]):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[manifest.ok], values[manifest.ok])
        assert not found[[2, 5]].any()
    with pytest.raises(DataError, match="2 of 10"):
        open_vectors(source, max_skipped=0.1)
    values[0, 0] = 7
    with pytest.raises(DataError, match="was readable before and is not now"):
        open_vectors(source, manifest=manifest)
    with pytest.raises(DataError, match="the manifest has 10 rows"):
        open_vectors(open_source(values[:9]), manifest=manifest)
    tokens = open_vectors(open_source(np.array([[1, 2, -1], [3, 4, 5]])))[1]
    assert tokens.tolist() == [[1, 2, -1], [3, 4, 5]]
    assert tokens.dtype == np.int64


def test_a_full_disk_is_said(source: Counting, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with module._Writer(tmp_path / "pixels", 1 << 40) as writer:
        assert writer.stream is not None
        writer.stream.close()
        writer.stream = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        with pytest.raises(DataError, match=r"the disk of .*pixels is full after 300 bytes"):
            writer.append(0, np.zeros((10, 10, 3), np.uint8))


def test_a_full_disk_is_said_although_closing_fails_too(tmp_path: Path) -> None:
    """Small images wait in a buffer, which is flushed once more when the file is closed."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    image = np.zeros((22, 22, 3), np.uint8)

    def fill(budget: int, images: int) -> None:
        with module._Writer(tmp_path / "pixels", budget) as writer:
            assert writer.stream is not None
            writer.stream.close()
            writer.stream = open("/dev/full", "wb")  # noqa: SIM115
            for i in range(images):
                writer.append(i, image)

    with pytest.raises(DataError, match=r"the disk of .*pixels is full"):
        fill(1 << 40, 9)
    fill(2 * image.size, 3)  # more than the budget
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_uses_its_cache_on_a_disk_that_it_filled(
    source: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, file = build_manifest(source), tmp_path / "pixels"
    disk = int(3.6 * budget.decoded_bytes(manifest, None))

    def usage(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=disk - (file.stat().st_size if file.exists() else 0))

    monkeypatch.setattr(budget.shutil, "disk_usage", usage)
    assert isinstance(open_images(source, file=file)[1], Cache)
    source.reads = [0] * 14
    assert isinstance(open_images(source, file=file, manifest=manifest)[1], Cache)
    assert source.reads == [0] * 14


def test_nothing_is_decoded_for_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for the EXIF that may stand at the end of a PNG."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    source = open_source(tmp_path)
    decoded: list[Any] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded.append)
    assert module.estimated_bytes(source, 15) == 3 * 20 * 15
    assert decoded == []


def test_vectors_are_held_once() -> None:
    source = open_source(np.ones((400, 2500), np.float32))
    tracemalloc.start()
    try:
        _, vectors = open_vectors(source)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert vectors.nbytes == 4_000_000
    assert most < 6_500_000


def test_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 << 20 < free_memory() < 1 << 50
    assert default_budget(None) == pytest.approx(free_memory() / 3, rel=0.5)
    assert default_budget(tmp_path / "not" / "there" / "yet") > 0
    monkeypatch.setattr(budget, "free_memory", lambda: 12)
    assert default_budget(None) == 4


def test_estimate_is_close(source: Counting) -> None:
    manifest = build_manifest(source)
    total = budget.decoded_bytes(manifest, 8)
    assert total == sum(source.read(i, 8).size for i in manifest.ok.tolist())
    readable = open_source([source.files[i] for i in manifest.ok])
    assert module.estimated_bytes(readable, 8) == pytest.approx(total)
