"""Overlays, training to take them away, and what it is worth."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erg.apply import inpaint
from erg.apply.inpaint import (
    learn_to_inpaint,
    overlays,
    restored,
    score_inpainter,
    train_inpainter,
)  # fmt: skip
from erg.apply.inpainter import Inpainter
from erg.apply.restorer import seeded
from erg.data.cache import open_images
from erg.data.source import open_source


@pytest.fixture
def network() -> Inpainter:
    seeded(0)
    return Inpainter(width=8).eval()


@pytest.fixture(scope="module")
def opened():
    return open_images(open_source("synthetic:120"), short_side=64)


@pytest.mark.parametrize("size", [32, 64])
def test_overlays_are_a_function_of_seed_step_and_image(size: int) -> None:
    rows = np.arange(60)
    hidden, colours = overlays(rows, size, seed=0, step=3)
    again, same = overlays(rows[::-1].copy(), size, seed=0, step=3)
    assert torch.equal(hidden, again.flip(0))
    assert torch.equal(colours, same.flip(0))
    assert not torch.equal(hidden, overlays(rows, size, seed=0, step=4)[0])
    assert not torch.equal(hidden, overlays(rows, size, seed=1, step=3)[0])
    assert hidden.shape == (60, 1, size, size)
    assert 0 <= colours.min() < 0.1
    assert 0.9 < colours.max() <= 1


def test_holes_are_rectangles_and_text_is_not() -> None:
    def box(mask: np.ndarray) -> int:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        return int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))

    for kind in ("text", "holes"):
        hidden, _ = overlays(np.arange(300), 32, seed=0, step=0, kind=kind)
        shares = hidden.float().mean(dim=(1, 2, 3))
        assert 0.08 < shares.mean() < 0.25
        assert shares.max() < 0.5
        assert shares.min() > 0
        full = [mask.sum() == box(mask) for mask in hidden[:, 0].numpy() if mask.any()]
        if kind == "holes":
            assert 0.2 < np.mean(full) < 0.6  # those with one rectangle, a third or a little more
        else:
            assert np.mean(full) < 0.05


def test_training_learns_and_repeats_itself(opened) -> None:
    """Made-up scenes: after 30 steps 5 dB closer than the overlay; twice the same weights."""
    manifest, images = opened
    rows = manifest.ok[:100]
    seen: list[int] = []
    trained = train_inpainter(images, rows, steps=30, progress=lambda n, of: seen.append(n))
    assert seen == list(range(1, 31))
    first, second = (train_inpainter(images, rows, steps=2).state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    scores, picture = score_inpainter(trained, images, manifest.ok[100:])
    page = Image.open(io.BytesIO(picture))
    assert page.format == "PNG"
    for kind in ("text", "holes"):
        found = scores["kinds"][kind]
        means = {way: score["value"] for way, score in found["psnr"]["mean"].items()}
        assert tuple(means) == inpaint.WAYS
        assert means["erg"] > means["corrupted"] + 5
        ahead = found["psnr"]["ahead"]["median"]
        assert ahead["value"] == pytest.approx(means["erg"] - means["median"])
        assert 0.05 < found["hidden"] < 0.3


def test_ways_that_are_told_leave_the_rest_alone(network: Inpainter) -> None:
    y = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.float32) / 255
    hidden = np.zeros((32, 32), dtype=bool)
    hidden[4:9, 20:30] = True
    ways = restored(network, y, hidden, np.array([1.0, 0, 0], dtype=np.float32))
    assert list(ways) == list(inpaint.WAYS)
    assert (ways["corrupted"][hidden] == [1, 0, 0]).all()
    for way in ("corrupted", "median", "biharmonic", "erg"):
        np.testing.assert_allclose(ways[way][~hidden], y[~hidden], atol=1e-6)


def test_a_folder_holds_all_there_is_to_see(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(inpaint, "BATCH", 4)
    told: list[str] = []
    scores = learn_to_inpaint("synthetic:60", tmp_path / "out", steps=2, tell=told.append)
    assert told == ["Training on 54 images; 6 are for testing."]
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "scores.json", "pictures.png"}
    read = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert read == json.loads(json.dumps(scores))
    told.clear()
    scores = learn_to_inpaint(
        "synthetic:60", tmp_path / "same", test="synthetic:60", steps=2, tell=told.append
    )
    assert told[1] == "60 of 60 test images are also among those trained on."
    assert scores["n_leaked"] == 60
    with pytest.raises(ValueError, match="needs images"):
        learn_to_inpaint(np.zeros((20, 5), dtype=np.float32), tmp_path / "vectors")


@pytest.mark.parametrize("size", [0, 8, 20, 33])
def test_a_size_that_does_not_go_through_is_refused_at_once(
    opened, size: int, tmp_path: Path
) -> None:
    said = rf"multiple of 8.*16 at least \(got {size}\)"
    with pytest.raises(ValueError, match=said):
        train_inpainter(opened[1], opened[0].ok, size=size)
    with pytest.raises(ValueError, match=said):  # not: there is no file
        learn_to_inpaint("nowhere", tmp_path / "out", size=size)


def test_the_smallest_size_goes_through(opened, monkeypatch) -> None:
    monkeypatch.setattr(inpaint, "BATCH", 2)
    manifest, images = opened
    trained = train_inpainter(images, manifest.ok[:4], size=inpaint.SMALLEST, steps=1)
    scores, _ = score_inpainter(
        trained, images, manifest.ok[4:], size=inpaint.SMALLEST, count=2
    )  # fmt: skip
    assert scores["images"] == 2


@pytest.mark.parametrize("count", [1, 5])
def test_copies_of_one_image_leave_none_to_test_on(count: int, tmp_path: Path, monkeypatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(inpaint, "train_inpainter", never)
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=f"all {count} have the same content"):
        learn_to_inpaint(np.repeat(image, count, axis=0), tmp_path / "out")


@pytest.mark.slow
def test_cifar_is_restored_better_than_by_the_median(shared_data: Path) -> None:
    manifest, images = open_images(open_source(str(shared_data / "cifar10_test.parquet")))
    network = train_inpainter(images, manifest.ok[1000:], steps=400)
    scores, _ = score_inpainter(network, images, manifest.ok[:1000], count=100)
    for found in scores["kinds"].values():
        assert found["psnr"]["ahead"]["median"]["low"] > 0
        means = {way: score["value"] for way, score in found["psnr"]["mean"].items()}
        assert means["erg, blind"] > means["corrupted"] + 3
