"""Every mode decodes to what an independent computation gives."""

import csv
import io
import struct
import tarfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from erg.data import decode
from erg.data.decode import image_size, load_rgb, measure_and_load, shrink, shrunk, to_rgb
from erg.data.opening import UnreadableImage

SHARED = Path(__file__).parents[3] / "shared" / "data"
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(samples: np.ndarray, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8- or 16-bit samples [h w c], written here and not by Pillow."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    big = samples.astype(samples.dtype.newbyteorder(">"))
    lines = b"".join(b"\0" + line.tobytes() for line in big)
    depth = 8 * samples.dtype.itemsize
    header = struct.pack(
        ">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour_type, 0, 0, 0
    )
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def outcome_of(data: bytes, **options: Any) -> np.ndarray | str:
    """The pixels, or the reason why there are none."""
    try:
        return load_rgb(data, **options)
    except UnreadableImage as error:
        return error.reason


# Modes ---------------------------------------------------------------------------------------


def test_lossless_colour_is_exact_and_writable() -> None:
    for kind in ("PNG", "BMP", "TIFF", "PPM", "TGA"):
        np.testing.assert_array_equal(load_rgb(encoded(Image.fromarray(RGB), kind)), RGB)
    pixels = load_rgb(encoded(Image.fromarray(RGB)))
    pixels[0] = 0
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


def test_path_equals_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(Image.fromarray(RGB)))
    np.testing.assert_array_equal(load_rgb(file), RGB)
    assert image_size(file) == (13, 17)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_plain_modes_are_what_pillow_converts(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    np.testing.assert_array_equal(to_rgb(image), np.asarray(image.convert("RGB")))


def test_one_bit_is_black_and_white() -> None:
    bits = RGB[..., 0] > 127
    pixels = load_rgb(encoded(Image.fromarray(bits)))
    np.testing.assert_array_equal(pixels, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


def test_cmyk_jpeg_keeps_its_colours() -> None:
    flat = Image.new("RGB", (32, 32), (200, 40, 90))
    pixels = load_rgb(encoded(flat.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - [200, 40, 90]).max() <= 6


def test_lab_tiff() -> None:
    lab = Image.new("LAB", (4, 4), (255, 128, 128))
    assert load_rgb(encoded(lab, "TIFF")).min() >= 250  # L = 100 is white


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_transparency_stands_on_the_mean_opaque_colour(mode: str) -> None:
    alpha = np.zeros((13, 17), np.uint8)
    alpha[:5] = 255
    alpha[5] = 128
    base = Image.fromarray(RGB).convert("RGB" if mode[:2] == "RG" else "P" if mode == "PA" else "L")
    full = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    image = base.convert("PA") if full == "PA" else base
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == full
    pixels = to_rgb(image.convert(mode) if mode != full else image).astype(float)
    colours = np.asarray(base.convert("RGB")).astype(float)
    mean = colours[:5].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(pixels[:5], colours[:5], atol=1)
    np.testing.assert_allclose(pixels[6:], np.broadcast_to(mean, pixels[6:].shape), atol=1)
    half = (128 * colours[5] + 127 * mean) / 255
    np.testing.assert_allclose(pixels[5], half, atol=2)


def test_transparent_palette_and_key_colours() -> None:
    palette = Image.fromarray(RGB).quantize(8)
    pixels = load_rgb(encoded(palette, "PNG", transparency=3))
    opaque = np.asarray(palette) != 3
    colours = np.asarray(palette.convert("RGB")).astype(float)
    np.testing.assert_array_equal(pixels[opaque], colours[opaque])
    np.testing.assert_allclose(
        pixels[~opaque],
        np.broadcast_to(colours[opaque].mean(axis=0), pixels[~opaque].shape),
        atol=1,
    )
    key = RGB.copy()
    key[:4] = (1, 2, 3)
    pixels = load_rgb(png(key, 2, (b"tRNS", struct.pack(">HHH", 1, 2, 3))))
    mean = key[4:].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(pixels[:4], np.broadcast_to(mean, (4, 17, 3)), atol=1)


def test_wholly_transparent_is_grey() -> None:
    assert (load_rgb(encoded(Image.new("RGBA", (3, 3), (9, 9, 9, 0)))) == 128).all()


# More than eight bits ------------------------------------------------------------------------


def ramp(top: int) -> np.ndarray:
    return np.linspace(0, top, 64 * 64).round().astype(np.uint16).reshape(64, 64)


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.1, 99.9))
    return np.clip((values - low) / (high - low), 0, 1) * 255


@pytest.mark.parametrize("top", [900, 4095, 65535])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_sixteen_bit_grey_keeps_its_levels(kind: str, top: int) -> None:
    pixels = load_rgb(encoded(Image.fromarray(ramp(top)), kind))
    assert all(len(np.unique(pixels[..., c])) >= 200 for c in range(3))
    if kind != "JPEG2000":  # which is lossy here
        np.testing.assert_allclose(pixels[..., 0], stretched(ramp(top)), atol=0.51)


@pytest.mark.parametrize(("colour_type", "bands"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bit_colour_keeps_its_levels(colour_type: int, bands: int) -> None:
    """A 12-bit scan in a 16-bit file, of which Pillow alone would leave 16 levels."""
    grey = ramp(4095)
    colours = np.stack([grey, grey.T, 4095 - grey], axis=-1)[..., : 3 if bands > 2 else 1]
    alpha = np.full((64, 64, 1), 65535, np.uint16)
    samples = np.concatenate([colours, alpha], axis=-1) if bands in (2, 4) else colours
    pixels = load_rgb(png(samples, colour_type))
    assert len(np.unique(pixels[..., 0])) >= 200
    np.testing.assert_allclose(pixels, np.broadcast_to(stretched(colours), pixels.shape), atol=0.51)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_colour_tiff_in_both_byte_orders(order: str) -> None:
    grey = ramp(4095)
    colours = np.stack([grey, grey.T, 4095 - grey], axis=-1)
    data = colours.astype(f"{order}u2").tobytes()
    tags = [
        (256, 3, 64), (257, 3, 64), (259, 3, 1), (262, 3, 2), (277, 3, 3),
        (273, 4, 200), (278, 3, 64), (279, 4, len(data)),
    ]  # fmt: skip
    bits = struct.pack(f"{order}HHH", 16, 16, 16)
    file = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    entries = [(258, struct.pack(f"{order}HHII", 258, 3, 3, 180))]
    for tag, kind, value in tags:
        packed = struct.pack(f"{order}H2x" if kind == 3 else f"{order}I", value)
        entries.append((tag, struct.pack(f"{order}HHI", tag, kind, 1) + packed))
    body = b"".join(entry for _, entry in sorted(entries))
    file += struct.pack(f"{order}H", len(entries)) + body + b"\0\0\0\0"
    file = file.ljust(180, b"\0") + bits
    pixels = load_rgb(file.ljust(200, b"\0") + data)
    np.testing.assert_allclose(pixels, stretched(colours), atol=0.51)


def test_sixteen_bit_transparent_key() -> None:
    grey = ramp(65535)
    grey[0] = 77
    pixels = load_rgb(png(grey[..., None], 0, (b"tRNS", struct.pack(">H", 77))))
    assert len(np.unique(pixels[0])) == 1
    assert abs(int(pixels[0, 0, 0]) - pixels[1:].mean()) < 2


def test_a_narrow_image_is_stretched_many_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.integers(0, 1 << 16, (1_000_000, 1), dtype=np.uint16)
    calls: list[int] = []
    rint = np.rint
    monkeypatch.setattr(np, "rint", lambda x: (calls.append(len(x)), rint(x))[1])
    tall, wide = (to_rgb(Image.fromarray(v)) for v in (values, values.T.copy()))
    assert calls == [1_000_000, 1]
    np.testing.assert_array_equal(tall, wide.transpose(1, 0, 2))


def test_stretching_block_by_block_changes_nothing() -> None:
    values = RNG.integers(0, 1 << 16, (1100, 1000), dtype=np.uint16)  # two blocks
    low, high = np.percentile(values[::2, ::2], (0.1, 99.9))
    wanted = np.rint(((values - low) / (high - low)).clip(0, 1) * 255)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(values))[..., 1], wanted)


def test_images_of_many_pixels_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, inside, most = decode._to_rgb, threading.Semaphore(0), []

    def counted(image: Image.Image) -> Image.Image:
        inside.release()
        most.append(inside._value)
        time.sleep(0.02)
        inside.acquire()
        return plain(image)

    monkeypatch.setattr(decode, "_to_rgb", counted)
    data = encoded(Image.fromarray(RGB))
    for many, wanted in ((220, 1), (221, 2)):
        most.clear()
        monkeypatch.setattr(decode, "_MANY", many)
        with ThreadPoolExecutor(2) as pool:
            for found in pool.map(load_rgb, [data] * 4):
                np.testing.assert_array_equal(found, RGB)
        assert max(most) == wanted


def test_integers_and_floats() -> None:
    values = RNG.normal(1e6, 1e5, (50, 40))
    for array in (values.astype(np.int32), values.astype(np.float32)):
        pixels = load_rgb(encoded(Image.fromarray(array), "TIFF"))
        np.testing.assert_allclose(pixels[..., 1], stretched(array.astype(float)), atol=0.51)


def test_a_few_bright_points_on_black_stay() -> None:
    stars = np.zeros((100, 100), np.uint16)
    stars[7, 7] = 3000
    pixels = load_rgb(encoded(Image.fromarray(stars)))
    assert pixels[7, 7, 0] == 255
    assert pixels.sum() == 3 * 255


def test_constants_and_missing_numbers() -> None:
    flat = np.full((4, 4), 0x8F12, np.uint16)
    assert (load_rgb(encoded(Image.fromarray(flat))) == 0x8F).all()
    level = np.full((4, 4), -3.5, np.float32)
    assert (load_rgb(encoded(Image.fromarray(level), "TIFF")) == 128).all()
    holes = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    holes[0, 0], holes[3, 3] = np.nan, np.inf
    pixels = load_rgb(encoded(Image.fromarray(holes), "TIFF"))
    assert pixels[0, 0, 0] == 0
    assert pixels[3, 3, 0] == 255
    with pytest.raises(UnreadableImage, match="no finite number"):
        load_rgb(encoded(Image.fromarray(holes * np.nan), "TIFF"))


# Geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_are_upright(kind: str, orientation: int) -> None:
    corners = np.zeros((48, 80, 3), np.uint8)
    corners[:24, :40], corners[:24, 40:], corners[24:, :40] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # What is stored so that a viewer who obeys the tag sees `corners` (EXIF 2.3, table 6).
    stored = {
        1: corners,
        2: corners[:, ::-1],
        3: corners[::-1, ::-1],
        4: corners[::-1],
        5: corners.transpose(1, 0, 2),
        6: np.rot90(corners),
        7: corners[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(corners, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    data = encoded(image, kind, exif=exif, **options)
    assert image_size(data) == (48, 80)
    pixels = load_rgb(data).astype(int)
    assert np.abs(pixels - corners)[5:-5, 5:-5].mean() < 5
    size, small = measure_and_load(data, short_side=12)
    assert size == (48, 80)
    assert small.shape == (12, 20, 3)
    assert np.abs(small.astype(int)[2, 2] - [250, 0, 0]).max() < 20


def test_broken_exif_does_not_cost_the_image() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert load_rgb(data).shape == RGB.shape


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [((400, 300), 100, (133, 100)), ((300, 400), 100, (100, 133)), ((9, 900), 3, (3, 300))],
)
def test_short_side(size: tuple[int, int], short_side: int, expected: tuple[int, int]) -> None:
    assert shrunk(size, short_side) == expected
    for kind in ("PNG", "JPEG"):
        pixels = load_rgb(encoded(Image.new("RGB", size, "red"), kind), short_side=short_side)
        assert pixels.shape == (expected[1], expected[0], 3)
    assert shrink(np.zeros((size[1], size[0], 3), np.uint8), short_side).shape == pixels.shape


def test_never_enlarged() -> None:
    np.testing.assert_array_equal(load_rgb(png(RGB, 2), short_side=200), RGB)
    assert shrink(RGB, 200) is RGB


def test_draft_looks_like_full_decoding() -> None:
    y, x = np.mgrid[:600, :800] / 100
    smooth = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1) * 100 + 128
    data = encoded(Image.fromarray(smooth.astype(np.uint8)), "JPEG", quality=95)
    fast = load_rgb(data, short_side=60).astype(int)
    full = shrink(load_rgb(data), 60).astype(int)
    assert fast.shape == full.shape == (60, 80, 3)
    assert np.abs(fast - full).mean() < 1.5


def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a quarter here, the smallest of its fractions that leaves the filter twice the size."""
    decoded: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def noted(self: Image.Image, *given: Any, **how: Any) -> Image.Image:
        decoded.append(self.size)
        return resize(self, *given, **how)

    monkeypatch.setattr(Image.Image, "resize", noted)
    for kind in ("JPEG", "PNG"):
        load_rgb(encoded(Image.new("RGB", (800, 600), "red"), kind), short_side=60)
    assert decoded == [(200, 150), (800, 600)]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_of_several_frames(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (load_rgb(data) == (255, 0, 0)).all()


# Mutated bytes -------------------------------------------------------------------------------

FUZZED = [
    encoded(Image.fromarray(RGB), "PNG"),
    encoded(Image.fromarray(RGB), "JPEG"),
    encoded(Image.fromarray(RGB).quantize(9), "GIF"),
    encoded(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"),
    encoded(Image.fromarray(RGB), "WEBP"),
    encoded(Image.fromarray(RGB), "BMP"),
    png(ramp(4095)[:9, :9, None].repeat(3, axis=2), 2),
    encoded(Image.fromarray(RGB).resize((16, 16)), "ICO"),
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FUZZED),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=12),
    st.integers(0, 5000),
    st.sampled_from([None, 5]),
)
def test_mutated_bytes_decode_or_are_unreadable(
    data: bytes, changes: list[tuple[int, int]], cut: int, short_side: int | None
) -> None:
    mutated = bytearray(data)
    for place, value in changes:
        mutated[place % len(mutated)] = value
    mutated = mutated[: len(mutated) - cut % 50]
    outcome = outcome_of(bytes(mutated), short_side=short_side, max_pixels=100_000)
    if isinstance(outcome, str):
        assert outcome.isprintable()
    else:
        assert outcome.dtype == np.uint8
        assert outcome.ndim == 3
        assert outcome.shape[2] == 3


# The corpus ----------------------------------------------------------------------------------

# What Pillow reads and erg does not: larger than the cap, of a format that is not on the list
# (Photoshop's, whose parser is a known risk), or read only at a second try after an error.
DIFFER = {
    "made/big_flat_12000x9000.png": "more than the limit",
    "pillow/broken_data_stream.png": "damaged",
    "pillow/truncated_end_chunk.png": "damaged",
    "pillow/five_channels.psd": "not an image of a known format",
    "pillow/negative_layer_count.psd": "not an image of a known format",
    "pillow/negative_top_left_layer.psd": "not an image of a known format",
    "pillow/psd-oob-write-x.psd": "not an image of a known format",
    "pillow/psd-oob-write-y.psd": "not an image of a known format",
    "pillow/psd-oob-write.psd": "not an image of a known format",
}


def test_corpus_agrees_with_pillow() -> None:
    archive, table = SHARED / "badinputs.tar.xz", SHARED / "badinputs_EXPECTED.tsv"
    if not archive.exists():
        pytest.skip(f"{archive.name} is not in the folder of shared data")
    with table.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        expected = {row["path"]: row for row in rows}
    seen = agree = 0
    differ: set[str] = set()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if not member.isfile() or name not in expected:
                continue
            content = tar.extractfile(member)
            assert content is not None
            data = content.read()
            readable = expected[name]["open"] == expected[name]["load"] == "ok"
            outcome = outcome_of(data)
            if isinstance(outcome, str):
                assert not readable or DIFFER.get(name, "?") in outcome, (name, outcome)
                differ |= {name} if readable else set()
            else:
                assert readable, name
                assert outcome.shape == (*image_size(data), 3), name
                size, small = measure_and_load(data, short_side=20)
                assert size == image_size(data), name
                assert small.shape[:2] == shrunk(size, 20), name
                agree += 1
            seen += 1
    assert seen == len(expected) == 398
    if PIL.__version__ == "13.0.0":  # others read more or fewer of the damaged files
        assert differ == DIFFER.keys()
        assert agree == 329
