"""Nothing hostile gets through, and every refusal is one sentence."""

import io
import os
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erg.data.decode import image_size, load_rgb, measure_and_load
from erg.data.opening import UnreadableImage, read_file

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


PNG = encoded(Image.fromarray(RGB))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    data = bytearray(PNG)
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_is_unreadable(kind: str) -> None:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        with pytest.raises(UnreadableImage) as caught:
            load_rgb(data[: int(len(data) * share)])
        assert caught.value.reason.endswith(".")
        assert "\n" not in caught.value.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "The file is empty."),
        (b"\0", "It is not an image of a known format."),
        (b"<!doctype html><title>404</title>" * 9, "It is not an image of a known format."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "It is not an image of a known"),
        (b"SIMPLE  =                    T" + b" " * 3000, "It is not an image of a known format."),
        (b"%PDF-1.7\n", "It is not an image of a known format."),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        load_rgb(data)


def test_reason_is_the_same_every_time() -> None:
    reasons = set()
    for _ in range(3):
        with pytest.raises(UnreadableImage) as caught:
            load_rgb(PNG[:-40])
        reasons.add(caught.value.reason)
    assert len(reasons) == 1


def test_pixel_limit_is_checked_before_decoding() -> None:
    with pytest.raises(UnreadableImage, match="9,000 x 8,000 pixels are more than the limit"):
        load_rgb(png_header(9000, 8000))
    with pytest.raises(UnreadableImage, match="more pixels than the limit"):
        image_size(png_header(60000, 60000))
    with pytest.raises(UnreadableImage, match="17 x 13 pixels are more than the limit of 220"):
        load_rgb(PNG, max_pixels=220)
    assert load_rgb(PNG, max_pixels=221).shape == RGB.shape


def claiming(kind: str, width: int, height: int) -> bytes:
    """An image of a few hundred bytes whose header claims another size."""
    if kind == "PNG":
        return png_header(width, height)
    data = bytearray(encoded(Image.fromarray(RGB), kind))
    if kind == "JPEG":  # the frame's header: length, precision, height, width
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    elif kind == "GIF":
        struct.pack_into("<HH", data, 6, width, height)
    elif kind == "BMP":
        struct.pack_into("<ii", data, 18, width, height)
    elif kind == "PPM":
        data = bytearray(b"P6 %d %d 255\n" % (width, height) + RGB.tobytes())
    elif kind == "TGA":
        struct.pack_into("<HH", data, 12, width, height)
    else:
        for tag, value in ((256, width), (257, height)):  # of a TIFF: of kind LONG, one value
            struct.pack_into("<I", data, data.index(struct.pack("<HHI", tag, 4, 1)) + 8, value)
    return bytes(data)


def peak() -> int:
    """Most resident memory of this process since `clear_refs` was last written [bytes]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "PPM", "TGA", "TIFF"])
def test_what_is_too_large_is_refused_at_once_and_in_little_memory(kind: str) -> None:
    data = claiming(kind, 20_000, 19_000)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = peak(), time.monotonic()
    for load in (load_rgb, image_size, measure_and_load):
        with pytest.raises(UnreadableImage, match=r"20,000 x 19,000 pixels|more pixels than the"):
            load(data)
    assert time.monotonic() - start < 2
    assert peak() - before < 50 << 20


def test_a_bomb_inside_an_icon() -> None:
    inner = png_header(60000, 2000)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    with pytest.raises(UnreadableImage, match="60,000 x 2,000 pixels"):
        load_rgb(icon)
    good = encoded(Image.fromarray(RGB).resize((16, 16)), "ICO", sizes=[(16, 16)])
    assert load_rgb(good).shape == (16, 16, 3)


def test_an_icon_whose_image_says_its_size_twice() -> None:
    """Pillow takes the last one."""
    first = PNG[:33]
    inner = first + png_header(60000, 2000)[8:33] + PNG[33:]
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 17, 13, 0, 0, 1, 32, len(inner), 22) + inner
    with pytest.raises(UnreadableImage, match="60,000 x 2,000 pixels"):
        load_rgb(icon)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.timeout(20)
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    before = os.stat(file)
    file.unlink()
    os.mkfifo(file)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda *_, **__: before)
        with pytest.raises(OSError, match="it is no regular file"):
            read_file(file)


def test_warnings_of_pillow_stay_inside_and_the_filters_as_they_were() -> None:
    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        inside = list(warnings.filters)
        with pytest.raises(UnreadableImage):
            load_rgb(png_header(10000, 9000))  # Pillow warns from 89 million pixels
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(load_rgb, [PNG] * 100))
        assert list(warnings.filters) == inside
    assert heard == []
    assert list(warnings.filters) == before
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipes_and_folders_are_refused_unopened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    done = threading.Event()

    def read() -> None:
        with pytest.raises(UnreadableImage, match="It is a pipe, not a file"):
            load_rgb(pipe)
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(10), "opening a pipe waits for a writer for ever"
    with pytest.raises(UnreadableImage, match="It is a folder"):
        load_rgb(tmp_path)
    with pytest.raises(UnreadableImage, match="It is a device"):
        load_rgb(Path("/dev/null"))
    with pytest.raises(UnreadableImage, match=r"It cannot be read \(No such file or directory\)"):
        load_rgb(tmp_path / "gone.jpg")
