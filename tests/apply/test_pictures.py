"""Sheets of pictures, to be looked at and to be cut up again."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erg.apply import pictures
from erg.apply.embed import open_for
from erg.apply.pictures import draw_pictures, sheet
from erg.data.loader import Loader
from erg.data.splits import hold_out
from erg.train import fit as fitting
from erg.train.fit import fit
from erg.train.health import HELD_EPOCH, energies
from erg.train.run import Run


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


def test_energies_after_training_are_of_the_images_held_out_of_it(tmp_path: Path) -> None:
    """The same as before it, or one would be compared with something else."""
    run = Run(
        method="SimCLR", encoder="conv", image_size=32, data="synthetic:120", batch=16, steps=2
    )
    fitted = fit(run, out=tmp_path / "run", observers=())
    opened = open_for(fitted.encoder, "synthetic:120")
    held = hold_out(opened.manifest)[1]
    assert len(held) == 6
    draw_pictures(fitted, opened, items=20)
    told = json.loads((tmp_path / "run" / "pictures" / "energies.json").read_text())
    encoder = fitted.encoder
    loader = Loader(
        opened.images, held, fitted.method.plan(), batch=6, seed=run.seed, image_size=32,
        mean=encoder.mean, std=encoder.std,
    )  # fmt: skip
    views = loader.make(held, epoch=HELD_EPOCH)
    matched, mismatched = energies(fitted.method, views, torch.device("cpu"), None)
    np.testing.assert_allclose(told["after"]["matched"], matched, rtol=1e-3)
    np.testing.assert_allclose(told["after"]["mismatched"], mismatched, rtol=1e-3)
    assert len(told["before"]["matched"]) == len(matched)


def test_of_large_images_few_have_their_energies_looked_at_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fitting, pictures):
        monkeypatch.setattr(module, "at_once", lambda *_: 4)
    run = Run(
        method="SimCLR", encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=16,
        data="synthetic:120", batch=16, steps=1,
    )  # fmt: skip
    fitted = fit(run, out=tmp_path / "run", observers=())
    draw_pictures(fitted, open_for(fitted.encoder, "synthetic:120"), items=4)
    told = json.loads((tmp_path / "run" / "pictures" / "energies.json").read_text())
    assert [len(told[when]["matched"]) for when in ("before", "after")] == [4, 4]
