"""From the bytes of an image file to uint8 RGB, upright, of every odd mode.

Colour profiles (ICC) are not applied.
"""

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageFile, ImageStat

from erg.data.opening import MAX_PIXELS, UnreadableImage, opened, plain_errors

_MANY = 16_000_000
_many_pixels = threading.Lock()  # one of 64 million in 16-bit colour takes 2 GB

# Pillow keeps the high byte of 16-bit colour. Reading the same samples as if they had the other
# byte order gives the low byte.
_OTHER_BYTE = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"))
}
# Grey with opacity has no such pair; as four plain bytes it is all there: grey, grey, alpha, alpha.
_OTHER_BYTE["LA;16B"] = "RGBA"


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
    with opened(file, max_pixels) as image:
        whole = image.size  # a draft changes it
        size = shrunk(whole, short_side)
        if size != whole:
            # JPEG can skip fine detail while decoding; twice the size leaves the filter its work.
            image.draft(None, (2 * size[0], 2 * size[1]))
        with _in_turn(image.size):
            swapped = _swapped(image)
            if swapped is None:
                rgb = _to_rgb(image)
            else:
                with opened(file, max_pixels) as again:
                    again.tile = swapped
                    rgb = _deep_colour(image, again)
            if short_side is not None and min(rgb.size) > short_side:
                rgb = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
            orientation = _turned(image)
            return _across(whole, orientation), np.array(_upright(rgb, orientation))


def _in_turn(size: tuple[int, int]) -> AbstractContextManager[Any]:
    """What images of many pixels are decoded in: one at a time, whatever the number of threads."""
    return _many_pixels if math.prod(size) > _MANY else nullcontext()


def image_size(file: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width [pixels] of the upright image, from the header alone.

    Raises:
        UnreadableImage: no header can be read, or it claims too many pixels.
    """
    with opened(file, max_pixels) as image:
        return _across(image.size, _turned(image))


def to_rgb(image: Image.Image) -> np.ndarray:
    """An image already open in Pillow as uint8 [h w 3], as `load_rgb` treats its mode.

    Raises:
        UnreadableImage: it cannot be decoded or converted.
    """
    with plain_errors():
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
        return image if image.mode == "RGB" else image.convert("RGB")
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
        rows = max(1, (1 << 20) // values.shape[1])  # at a time, as the numbers become float64
        for start in range(0, len(values), rows):
            lines = values[start : start + rows].astype(np.float64)
            unit = np.nan_to_num((lines - low) / (high - low), nan=0.0)
            grey[start : start + rows] = np.rint(unit.clip(0, 1) * 255)
    return Image.fromarray(np.broadcast_to(grey, (*grey.shape[:2], 3)).copy())
