"""Sheets of pictures, to be looked at and to be cut up again."""

import io

import numpy as np
from PIL import Image

from erg.apply.pictures import sheet


def drawn(count: int, height: int, width: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return list(random.integers(0, 256, (count, height, width, 3)).astype(np.uint8))


def test_a_sheet_with_captions_holds_every_picture_as_it_is() -> None:
    cells = drawn(5, 10, 12)
    picture = Image.open(io.BytesIO(sheet(cells, 3, ["a", "b", "c"])))
    page = np.asarray(picture)
    assert (picture.format, page.shape) == ("PNG", (20 + 2 * 14, 4 + 3 * 16, 3))
    for n, cell in enumerate(cells):
        top, left = 20 + n // 3 * 14, 4 + n % 3 * 16
        assert np.array_equal(page[top : top + 10, left : left + 12], cell)
    assert (page[34:, 36:] == 255).all(), "nothing stands there"
    for left in (4, 20, 36):
        assert (page[:16, left : left + 12] < 128).any(), "captions"


def test_a_sheet_without_captions_has_no_gaps() -> None:
    grey = [np.full((16, 16, 3), 50 * n, dtype=np.uint8) for n in range(1, 6)]
    picture = Image.open(io.BytesIO(sheet(grey, 2)))
    page = np.asarray(picture.convert("RGB")).astype(int)
    assert (picture.format, page.shape) == ("WEBP", (48, 32, 3))
    for n in range(6):
        cell = page[n // 2 * 16 : n // 2 * 16 + 16, n % 2 * 16 : n % 2 * 16 + 16]
        assert np.abs(cell - (50 * (n + 1) if n < 5 else 0)).max() <= 8
