"""Masks beside images: the pixels of those that fit, and a reason for each that does not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erg.data.cache import open_images
from erg.data.masked import masks_of, open_masks
from erg.data.source import DataError, Source
from erg.data.stream import Stream
from tests.data.conftest import Counting

RNG = np.random.default_rng(0)


@pytest.fixture
def masks(source: Counting, tmp_path: Path) -> Source:
    """A mask of each of the twelve images, but: 1 missing, 2 no image, 5 of another size."""
    root = tmp_path / "masks"
    root.mkdir()
    for i in range(12):
        height, width = (50 - 2 * i, 20 + i) if i == 4 else (20 + i - (i == 5), 50 - 2 * i)
        mask = Image.fromarray(RNG.integers(0, 256, (height, width), dtype=np.uint8))
        if i != 1:
            mask.save(root / f"{i:02d}.png")
    (root / "02.png").write_text("no image")
    return masks_of(source, str(root))


@pytest.mark.parametrize("where", ["memory", "file", "stream"])
def test_masks_are_pixels_of_the_same_sizes(
    source: Counting, masks: Source, tmp_path: Path, where: str
) -> None:
    budget = 0 if where == "stream" else None
    file = tmp_path / "pixels.masks" if where == "file" else None
    manifest, images = open_images(source, short_side=9, budget=budget)
    opened = open_masks(images, manifest, masks, short_side=9, budget=budget, file=file)
    for _ in range(2):
        rows = RNG.permutation(manifest.ok)
        found, plain = opened.pixels(rows), images.pixels(rows)
        assert found.masks is not None
        for k, row in enumerate(rows.tolist()):
            np.testing.assert_array_equal(found.image(k), plain.image(k))
            name = source.path(row)[:2]
            if name in ("01", "02", "05"):
                assert found.masks.image(k).size == 0
            else:
                assert found.masks.image(k).shape == found.image(k).shape
                np.testing.assert_array_equal(found.masks.image(k), masks.read(row, 9))
        opened = open_masks(
            images, manifest, masks, short_side=9, budget=budget, file=file, found=opened.found
        )
    assert opened.pixels(manifest.ok[1:3]).masks is None, "none of these has one"
    assert opened.summary().splitlines()[0].startswith("9 of 12 images have masks, which keep ")
    assert set(opened.summary().splitlines()[1:]) == {
        "1 without a mask: It cannot be read (No such file or directory).",
        "1 without a mask: It is of another size than its image.",
        f"1 without a mask: {opened.found.table['reason'][2]}",
    }
    mean = np.mean([masks.read(i, 9).mean() / 255 for i in (0, 3, 5, 7, 8, 9, 10, 11, 12)])
    assert f"which keep {mean:.0%} of them" in opened.summary()


def test_masks_that_have_changed_stop_a_resumed_run(source: Counting, masks: Source) -> None:
    manifest, images = open_images(source)
    found = open_masks(images, manifest, masks).found
    Image.new("L", (50, 20), 200).save(Path(str(masks.spec)) / "00.png")
    with pytest.raises(DataError, match="was readable before and is not now"):
        open_masks(images, manifest, masks, found=found)
    Image.new("L", (48, 21), 200).save(Path(str(masks.spec)) / "01.png")
    masks = masks_of(source, str(masks.spec))
    assert "10 of 12 images have masks" in open_masks(images, manifest, masks).summary()


def test_images_go_without_masks_that_vanish_or_change_later(
    source: Counting, masks: Source
) -> None:
    manifest, images = open_images(source)
    opened = open_masks(images, manifest, masks, budget=0)
    with_mask = manifest.ok[opened.usable[manifest.ok]]
    gone, changed, *kept = with_mask.tolist()
    Path(str(masks.spec), f"{source.path(gone)[:2]}.png").unlink()
    Image.new("L", (9, 9), 200).save(Path(str(masks.spec), f"{source.path(changed)[:2]}.png"))
    for _ in range(2):
        found = opened.pixels(np.array([kept[0], gone, changed, kept[1]]))
        assert found.masks is not None
        assert [found.masks.image(k).size > 0 for k in range(4)] == [True, False, False, True]
        for k, row in ((0, kept[0]), (3, kept[1])):
            np.testing.assert_array_equal(found.masks.image(k), masks.read(row))
    assert opened.pixels(with_mask[:2]).masks is None
    assert isinstance(opened.masks, Stream)
    assert sorted(opened.masks.lost) == [gone, changed]


@pytest.mark.parametrize(
    ("size", "words"), [((7, 7), "of the size of its image"), ((50, 20), "255, not 1")]
)
def test_masks_of_which_none_can_serve_are_refused(
    source: Counting, tmp_path: Path, size: tuple[int, int], words: str
) -> None:
    (tmp_path / "other").mkdir()
    Image.fromarray(np.eye(*size[::-1], dtype=np.uint8)).save(tmp_path / "other" / "00.png")
    manifest, images = open_images(source)
    with pytest.raises(DataError, match=words):
        open_masks(images, manifest, masks_of(source, str(tmp_path / "other")))


def test_a_mask_that_is_a_link_out_of_its_folder_is_not_read(
    source: Counting, tmp_path: Path
) -> None:
    root = tmp_path / "masks"
    root.mkdir()
    for i in range(2):
        Image.new("L", (50 - 2 * i, 20 + i), 200).save(tmp_path / f"mask{i}.png")
    (tmp_path / "mask0.png").rename(root / "00.png")
    (root / source.path(1)).symlink_to(tmp_path / "mask1.png")
    masks = masks_of(source, str(root))
    assert masks.describe().endswith("of 1 of 14 images")
    assert masks.read(0).max() == 200
    with pytest.raises(FileNotFoundError):
        masks.item(1)
