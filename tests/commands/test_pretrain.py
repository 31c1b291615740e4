"""erg pretrain with masks, from the outside."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erg.cli import main
from erg.data.synthetic import world

QUICK = ["--encoder", "conv", "--image-size", "16", "--batch", "16", "--steps", "2"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty pictures, and masks beside them."""
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
    for i, picture in enumerate(world(40, size=24).images):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i:02d}.jpg")
        Image.fromarray(np.tri(24, dtype=bool)).save(tmp_path / "masks" / f"{i:02d}.png")
    return tmp_path / "photos"


def test_masks_are_taken_from_the_folder_that_is_named(photos: Path, capsys) -> None:
    out, masks = photos.parent / "run", photos.parent / "masks"
    small = ["--method.hidden", "8", "--method.dim", "4", "--method.background", "1"]
    arguments = [str(photos), "--mask", str(masks), "--method", "RELICv2", *small, *QUICK]
    assert main(["pretrain", *arguments, "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "40 of 40 images have masks, which keep 52% of them" in said
    assert "mask=" in said
    assert json.loads((out / "run.json").read_text())["mask"] == str(masks)
    first = (out / "pictures" / "views.webp").read_bytes()
    (out / "pictures" / "views.webp").unlink()
    assert main(["report", str(out), "--redraw"]) == 0
    assert (out / "pictures" / "views.webp").read_bytes() == first
    wrong = [str(photos), "--mask", "nowhere", "--method", "RELICv2", *QUICK]
    assert main(["pretrain", *wrong, "--out", str(photos.parent / "other")]) != 0
    assert "There is no folder of masks 'nowhere'" in "".join(capsys.readouterr())
