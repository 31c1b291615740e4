"""Image files that count how often they are read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erg.data.files import Files

RNG = np.random.default_rng(0)


class Counting(Files):
    """Counts how often each item is read."""

    def __init__(self, root: Path) -> None:
        names = sorted(path.name for path in root.iterdir())
        files = [str(root / name) for name in names]
        super().__init__(files, names, labelled=False, spec=str(root), text=f"{len(names)} files")
        self.reads = [0] * len(names)

    def item(self, i: int) -> Any:
        self.reads[i] += 1
        return super().item(i)


@pytest.fixture
def source(tmp_path: Path) -> Counting:
    """Twelve images of different sizes (one of them turned), and two files that are none."""
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(12):
        image = Image.fromarray(RNG.integers(0, 256, (20 + i, 50 - 2 * i, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 4 else 1
        image.save(root / f"{i:02d}.{'jpg' if i % 3 else 'png'}", exif=exif)
    (root / "03a.png").write_text("no image")
    (root / "99.png").write_bytes(b"")
    return Counting(root)
