"""From the bytes of an image file to uint8 RGB: every odd mode, and nothing hostile.

The allow-list leaves out formats that run other programs or whose parsers are a known risk (EPS,
PDF, FITS, PSD, WMF). Colour profiles (ICC) are not applied.
"""

import functools
import io
import math
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

import numpy as np
from PIL import Image, ImageFile, ImageStat, UnidentifiedImageError

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

# Pillow keeps the high byte of 16-bit colour. Reading the same samples as if they had the other
# byte order gives the low byte.
_OTHER_BYTE = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"))
}
# Grey with opacity has no such pair; as four plain bytes it is all there: grey, grey, alpha, alpha.
_OTHER_BYTE["LA;16B"] = "RGBA"


class UnreadableImage(ValueError):
    """A file that is not decoded.

    Args:
        reason: why, as one plain sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def load_rgb(
    file: bytes | Path, *, short_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode an image to uint8 RGB, upright as its EXIF orientation says.

    Transparent images stand on the mean colour of their opaque pixels. 16-bit, integer and float
    images are stretched between their 0.1 and 99.9 percentiles. Of several frames or pages the
    first is taken.

    Args:
        file: the encoded bytes, or the path of a regular file.
        short_side: shrink so that the shorter side has at most this many pixels; never enlarge.
        max_pixels: refuse images whose header claims more [pixels], before decoding.

    Returns:
        uint8 [h w 3].

    Raises:
        UnreadableImage: the file cannot be decoded whole, or should not be.
    """
    return measure_and_load(file, short_side=short_side, max_pixels=max_pixels)[1]


def measure_and_load(
    file: bytes | Path, *, short_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[tuple[int, int], np.ndarray]:
    """What `image_size` says of a file and what `load_rgb` makes of it, opened once.

    Raises:
        UnreadableImage: as those.
    """
    with _opened(file, max_pixels) as image:
        whole = image.size  # a draft changes it
        size = shrunk(whole, short_side)
        if size != whole:
            # JPEG can skip fine detail while decoding; twice the size leaves the filter its work.
            image.draft(None, (2 * size[0], 2 * size[1]))
        swapped = _swapped(image)
        if swapped is None:
            rgb = _to_rgb(image)
        else:
            with _opened(file, max_pixels) as again:
                again.tile = swapped
                rgb = _deep_colour(image, again)
        if short_side is not None and min(rgb.size) > short_side:
            rgb = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        orientation = _turned(image)
        return _across(whole, orientation), np.array(_upright(rgb, orientation))


def image_size(file: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width [pixels] of the upright image, from the header alone.

    Raises:
        UnreadableImage: no header can be read, or it claims too many pixels.
    """
    with _opened(file, max_pixels) as image:
        return _across(image.size, _turned(image))


def to_rgb(image: Image.Image) -> np.ndarray:
    """An image already open in Pillow as uint8 [h w 3], as `load_rgb` treats its mode.

    Raises:
        UnreadableImage: it cannot be decoded or converted.
    """
    with _plain_errors():
        return np.array(_upright(_to_rgb(image), _turned(image)))


def shrunk(size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    """The two sides [pixels] of an image once its shorter one has at most `short_side`."""
    short = min(size)
    if short_side is None or short <= short_side:
        return size
    first, second = (max(1, round(side * short_side / short)) for side in size)
    return first, second


def shrink(rgb: np.ndarray, short_side: int | None) -> np.ndarray:
    """Decoded pixels uint8 [h w 3] made as small as `load_rgb` makes them; never enlarged."""
    height, width = rgb.shape[:2]
    size = shrunk((width, height), short_side)
    if size == (width, height):
        return rgb
    image = Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.array(image)


# Opening -------------------------------------------------------------------------------------


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _ALLOWED if name in Image.OPEN)


@contextmanager
def _opened(file: bytes | Path, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and checked; whatever goes wrong becomes UnreadableImage."""
    with _plain_errors(), _silent:
        data = file if isinstance(file, bytes) else read_file(file)
        if not data:
            raise UnreadableImage("The file is empty.")
        _check_icon(data, max_pixels)
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _check_size(image.size, max_pixels)
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
    with open(path, "rb") as stream:
        return stream.read(found.st_size)  # any larger number is allocated first


def _file_kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
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
    for entry in range(6, 6 + 16 * count, 16):
        start = struct.unpack_from("<I", data, entry + 12)[0]
        if data[start : start + 4] == b"\x89PNG":
            _check_size(struct.unpack_from(">II", data, start + 16), max_pixels)
        else:
            _check_size(struct.unpack_from("<II", data, start + 4), max_pixels)


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
def _plain_errors() -> Iterator[None]:
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


# Pixels --------------------------------------------------------------------------------------


def _turned(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where it is missing or broken, since the pixels are good.

    Also 1 for TIFF, which Pillow turns itself.
    """
    if image.format == "TIFF":
        return 1
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _across(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Height and width of an image once it is upright, from its stored width and height."""
    width, height = size
    return (width, height) if orientation >= 5 else (height, width)


def _upright(rgb: Image.Image, orientation: int) -> Image.Image:
    turn = Image.Transpose
    steps = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return rgb.transpose(steps[orientation]) if orientation in steps else rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB."""
    if isinstance(image, ImageFile.ImageFile):
        image.load()
    if image.mode[0] in "IF":
        values = np.asarray(image)[..., None]
        return _on_mean_colour(_stretched(values), _key_alpha(values, image))
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    return _on_mean_colour(rgba.convert("RGB"), rgba.getchannel("A"))


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted


def _on_mean_colour(rgb: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Composite on the mean colour of the opaque pixels, which adds no edge that was not there."""
    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb
    opaque = alpha.point([0] * 255 + [255])
    seen = opaque if opaque.getbbox() else alpha
    mean = ImageStat.Stat(rgb, seen).mean if seen.getbbox() else [128.0] * 3
    canvas = Image.new("RGB", rgb.size, (round(mean[0]), round(mean[1]), round(mean[2])))
    canvas.paste(rgb, mask=alpha)
    return canvas


# More than eight bits ------------------------------------------------------------------------


def _swapped(image: ImageFile.ImageFile) -> list[Any] | None:
    """The tiles of a 16-bit colour image read for the low byte; None for all other images."""
    tiles = []
    for tile in image.tile:
        args = tile.args
        first = args if isinstance(args, str) else args[0] if args else None
        if image.format not in ("PNG", "TIFF") or first not in _OTHER_BYTE:
            return None
        other = _OTHER_BYTE[first]
        args = other if isinstance(args, str) else (other, *cast(tuple[Any, ...], args)[1:])
        tiles.append(tile._replace(args=args))
    return tiles or None


def _deep_colour(high: ImageFile.ImageFile, low: ImageFile.ImageFile) -> Image.Image:
    """RGB of a 16-bit colour image, from its high and its low bytes."""
    plain = low.tile[0].args == "RGBA"
    high.load()
    below = np.asarray(low)[..., 1:2] if plain else np.asarray(low)[..., :3]
    colours = np.asarray(high)[..., :3].astype(np.uint16) << 8 | below
    alpha = high.getchannel("A") if high.mode == "RGBA" else _key_alpha(colours, high)
    return _on_mean_colour(_stretched(colours), alpha)


def _key_alpha(values: np.ndarray, image: Image.Image) -> Image.Image | None:
    """Opacity where one 16-bit value is declared transparent (the PNG chunk tRNS)."""
    key = image.info.get("transparency")
    if not isinstance(key, int | tuple):
        return None
    seen = (values != np.asarray(key)).any(axis=-1)
    return Image.fromarray(seen.astype(np.uint8) * 255)


def _stretched(values: np.ndarray) -> Image.Image:
    """Numbers of any range [h w c] as RGB, linear between robust percentiles of all channels.

    Taken from a grid of at most a million pixels. Where they coincide (a few bright points on
    black) the extremes count; an image of one value keeps the high byte of 16 bits, else is grey.
    """
    step = math.ceil(math.sqrt(values.shape[0] * values.shape[1] / 1e6))
    sample = values[::step, ::step].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        raise UnreadableImage("The image holds no finite number.")
    low, high = np.percentile(sample, (0.1, 99.9))
    if low == high:
        low, high = sample.min(), sample.max()
    grey = np.empty(values.shape, np.uint8)
    if low == high:
        grey[:] = int(low) >> 8 if values.dtype.itemsize == 2 else 128
    else:
        for row, line in enumerate(values):
            unit = np.nan_to_num((line.astype(np.float64) - low) / (high - low), nan=0.0)
            grey[row] = np.rint(unit.clip(0, 1) * 255)
    return Image.fromarray(np.broadcast_to(grey, (*grey.shape[:2], 3)).copy())
