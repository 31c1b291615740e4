"""erg inpaint, from its arguments."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erg.apply import inpaint
from erg.commands.inpaint import main
from erg.durable import Unwritable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, masks, and a model that saw two steps of made-up scenes."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (40, 51, 3)).astype(np.uint8)).save(root / "a.png")
    mask = np.zeros((40, 51), dtype=np.uint8)
    mask[10:20, 5:30] = 255
    Image.fromarray(mask).save(root / "mask.png")
    Image.fromarray(mask[:30]).save(root / "small.png")
    Image.fromarray(mask // 255).save(root / "ones.png")
    white = np.full_like(mask, 255)
    Image.fromarray(np.dstack([white, white, white, mask])).save(root / "strokes.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inpaint, "BATCH", 2)
        arguments = ["--images", "synthetic:40", "--steps", "2", "--out", str(root / "model")]
        assert main(arguments) == 0
    return root


def test_training_tells_what_it_is_worth(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(inpaint, "BATCH", 2)
    arguments = ["--images", "synthetic:20", "--test", "synthetic:8", "--steps", "1"]
    assert main([*arguments, "--out", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    for words in ("Training on 20 images; 8 are", "text:", "holes:", "PSNR in dB", "erg, blind"):
        assert words in said
    assert (tmp_path / "model" / "pictures.png").exists()


def test_a_picture_is_restored_under_its_mask(folder: Path, tmp_path: Path) -> None:
    before = np.asarray(Image.open(folder / "a.png"))
    model = ["--model", str(folder / "model")]
    out = tmp_path / "out.png"
    arguments = [*model, "--mask", str(folder / "mask.png"), "--out", str(out)]
    assert main([str(folder / "a.png"), *arguments]) == 0
    after = np.asarray(Image.open(out))
    hidden = np.asarray(Image.open(folder / "mask.png")) > 0
    assert after.shape == before.shape
    assert np.array_equal(after[~hidden], before[~hidden])
    assert (after[hidden] != before[hidden]).any(axis=1).mean() > 0.9
    assert main([str(folder / "a.png"), *model]) == 0
    with Image.open(folder / "a-filled.png") as filled:
        assert filled.size == (51, 40)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "takes a picture and --model"),
        (["a.png"], "takes a picture and --model"),
        (["--images", "synthetic:9", "--mask", "mask.png"], "takes a picture and --model"),
        (["a.png", "--model", "."], "holds no model for erg inpaint"),
        (["a.png", "--model", "model", "--mask", "small.png"], "51 x 30 pixels and the picture"),
        (["a.png", "--model", "model", "--mask", "strokes.png"], "the mask is bright everywhere"),
        (["a.png", "--model", "model", "--mask", "ones.png"], "the mask is bright nowhere. Write"),
        (["a.png", "--model", "model", "--out", "model"], "model is a folder. Name a file"),
        (["a.png", "--model", "model", "--out", "no/b.png"], "there is no folder no"),
        (["--images", "synthetic:9", "--seed", "-1"], r"--seed should be at least 0 \(got -1\)"),
        (["a.png", "--model", "model", "--device", "abacus"], "no device 'abacus' here"),
        (["a.png", "--model", "model", "--test", "synthetic:9"], "takes a picture and --model"),
        (["a.png", "--model", "model", "--size", "64"], "--size would change nothing: a.png"),
        (["--images", "nowhere"], "no file or folder"),
        (["--images", "synthetic:9", "--size", "20"], r"multiple of 8.*\(got 20\)"),
    ],
)
def test_a_mistake_is_said(folder: Path, monkeypatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=said):
        main(arguments)


def test_where_the_model_goes_is_looked_at_before_it_learns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(inpaint, "train_inpainter", never)
    with pytest.raises(Unwritable, match=r"a.png cannot be written \(File exists\)"):
        main(["--images", "synthetic:9", "--out", str(folder / "a.png")])
