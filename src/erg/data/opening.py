"""Image files from anywhere, opened: of known formats, bounded in bytes and pixels, and whatever
goes wrong is one sentence.

The allow-list leaves out formats that run other programs or whose parsers are a known risk (EPS,
PDF, FITS, PSD, WMF).
"""

import functools
import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from erg.durable import read_regular

# fmt: off
SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".ico", ".tga", ".avif",
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf",
])
# fmt: on
"""Endings, in lower case, of files that are taken for images when a folder is searched."""

MAX_PIXELS = 64_000_000
"""Largest image decoded [pixels]; a damaged or hostile header can claim any size."""

MAX_BYTES = 1 << 29
"""Largest image file read into memory [bytes]."""

_ALLOWED = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")


class UnreadableImage(ValueError):
    """A file that is not decoded.

    Args:
        reason: why, as one plain sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _ALLOWED if name in Image.OPEN)


@contextmanager
def opened(file: bytes | Path, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and checked, and not decoded yet.

    Args:
        file: the encoded bytes, or the path of a regular file.
        max_pixels: refuse images whose header claims more [pixels].

    Raises:
        UnreadableImage: whatever goes wrong, also inside the block.
    """
    with plain_errors(), _silent:
        data = file if isinstance(file, bytes) else read_file(file)
        if not data:
            raise UnreadableImage("The file is empty.")
        _check_icon(data, max_pixels)
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            check_size(image.size, max_pixels)
            yield image


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. Pipes, sockets, devices and folders are refused unopened.

    Raises:
        UnreadableImage: it is no regular file, or has more than `MAX_BYTES`.
        OSError: it cannot be read.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableImage(f"It is a {_file_kind(found.st_mode)}, not a file.")
    if found.st_size > MAX_BYTES:
        raise UnreadableImage(f"{found.st_size:,} bytes are more than the limit of {MAX_BYTES:,}.")
    return read_regular(path, found.st_size)  # whatever stands there by now


def _file_kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def check_size(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Whether an image of this width and height [pixels] may be decoded.

    Raises:
        UnreadableImage: it may not.
    """
    width, height = size
    if width < 1 or height < 1:
        raise UnreadableImage("The image has no pixels.")
    if width * height > max_pixels:
        raise UnreadableImage(
            f"{width:,} x {height:,} pixels are more than the limit of {max_pixels:,}."
        )


def _check_icon(data: bytes, max_pixels: int) -> None:
    """Check the images inside an icon: Pillow decodes them while opening, whatever their size."""
    if data[:4] != b"\0\0\1\0":
        return
    count = struct.unpack_from("<H", data, 4)[0]
    entries = range(6, 6 + 16 * count, 16)
    stream = io.BytesIO(data)
    for start in {struct.unpack_from("<I", data, entry + 12)[0] for entry in entries}:
        if data[start : start + 4] == b"\x89PNG":
            stream.seek(start)  # read as Pillow reads it: of several sizes the last one counts
            check_size(PngImagePlugin.PngImageFile(stream).size, max_pixels)
        else:
            check_size(struct.unpack_from("<II", data, start + 4), max_pixels)


class _Silence:
    """Silences Pillow's own warnings (of suspicious sizes, odd metadata) while any thread decodes.

    `warnings.catch_warnings` would restore a whole list that another thread may have changed; here
    exactly one entry is added and removed.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.entry = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            filters = cast(list[Any], warnings.filters)
            if self.entry not in filters[:1]:
                filters.insert(0, self.entry)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            filters = cast(list[Any], warnings.filters)
            while self.inside == 0 and self.entry in filters:
                filters.remove(self.entry)


_silent = _Silence()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Whatever Pillow raises in the block becomes `UnreadableImage`."""
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises some twenty types on hostile bytes
        raise UnreadableImage(_reason(error)) from error


def _reason(error: Exception) -> str:
    """One sentence, the same on every run (no addresses) and safe to print."""
    if isinstance(error, UnidentifiedImageError):
        return "It is not an image of a known format."
    if isinstance(error, Image.DecompressionBombError):
        return "The header claims more pixels than the limit."
    if isinstance(error, MemoryError):
        return "Decoding it needs more memory than there is."
    if isinstance(error, OSError) and error.errno:
        return f"It cannot be read ({os.strerror(error.errno)})."
    message = re.sub(r"0x[0-9a-f]+|[^ -~]", "", str(error).split("\n")[0])[:100]
    return f"The image is damaged ({message or type(error).__name__})."
