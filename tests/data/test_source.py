"""Every kind of source gives the same images; awkward names, links and pipes do no harm."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erg.data.masked import masks_of
from erg.data.opening import UnreadableImage
from erg.data.source import DataError, Source, open_source, printable

RGB = np.random.default_rng(0).integers(0, 256, (4, 9, 11, 3), dtype=np.uint8)


def save(path: Path, i: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RGB[i]).save(path, "PNG")
    return path


def names(source: Source) -> list[str]:
    return [source.path(i) for i in range(len(source))]


def test_importing_is_light() -> None:
    code = (
        "import sys, erg.data.decode, erg.data.source, erg.data.manifest, erg.data.cache, "
        "erg.data.synthetic, erg.data.archives, erg.data.tables\n"
        "print({'torch', 'numba', 'pyarrow', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Folders -------------------------------------------------------------------------------------


def test_folder_is_sorted_and_leaves_out_what_is_no_image(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.PNG", "b.png", "b/c/1.png", ".hidden.png", "__MACOSX/x.png"):
        save(tmp_path / name)
    save(tmp_path / ".thumbnails" / "t.png")
    (tmp_path / "README").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    assert names(source) == ["a.PNG", "b.png", "b/2.png", "b/c/1.png"]
    assert source.kind == "image"
    assert source.spec == str(tmp_path)
    assert "4 image files" in source.describe()
    assert "2 files that are no images" in source.describe()
    np.testing.assert_array_equal(source.read(0), RGB[0])
    assert source.read(0, short_side=3).shape == (3, 4, 3)
    assert source.bytes(0) == (tmp_path / "a.PNG").read_bytes()
    assert [source.label(i) for i in range(4)] == [None] * 4


def test_folder_labels_are_relative_folders(tmp_path: Path) -> None:
    for name in ("top.png", "cat/1.png", "dog/big/1.png"):
        save(tmp_path / name)
    source = open_source(str(tmp_path), label="folder")
    assert [source.label(i) for i in range(3)] == ["cat", "dog/big", None]
    with pytest.raises(DataError, match="no labels called 'species'"):
        open_source(tmp_path, label="species")


def test_awkward_names(tmp_path: Path) -> None:
    save(tmp_path / "line\nbreak.png")
    save(tmp_path / "e\u0301.png")  # NFD
    save(tmp_path / "\u00e9.png")  # NFC: another file
    save(tmp_path / ("x" * 251 + ".png"))
    save(tmp_path / "<img src=x>.png")
    count = 5
    try:
        save(tmp_path / os.fsdecode(b"bytes-\xff.png"))
    except OSError:
        pass  # this file system takes text only
    else:
        count = 6
    source = open_source(tmp_path)
    assert len(source) == count
    for i in range(count):
        np.testing.assert_array_equal(source.read(i), RGB[0])
        source.path(i).encode()  # no lone surrogate
    assert count == 5 or "bytes-\\xff.png" in names(source)


def test_printable_always_encodes() -> None:
    for name in (chr(0xDCFF), chr(0xD800), chr(0xD800) + chr(0xDCFF), "a\nb", "\u00e9"):
        assert printable(name).encode("utf-8")
    assert printable("\u00e9 a\nb") == "\u00e9 a\nb"


def test_links(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    save(outside / "o.png", 1)
    save(tmp_path / "root2" / "near.png", 1)  # shares the first letters of the root's path
    save(root / "real" / "r.png")
    (root / "loop").symlink_to(root)
    (root / "real" / "up").symlink_to("..")
    (root / "self.png").symlink_to(root / "self.png")
    (root / "inside.png").symlink_to(root / "real" / "r.png")
    (root / "out.png").symlink_to(outside / "o.png")
    (root / "near.png").symlink_to(tmp_path / "root2" / "near.png")
    (root / "folder").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (outside / "again").symlink_to(outside)
    source = open_source(root)
    assert names(source) == ["inside.png", "real/r.png", "self.png"]
    assert "3 links out of the folder" in source.describe()
    np.testing.assert_array_equal(source.read(0), RGB[0])
    with pytest.raises(OSError, match="symbolic links"):
        source.read(2)
    followed = names(open_source(root, follow_links=True))
    assert followed == [
        "folder/o.png", "inside.png", "near.png", "out.png", "real/r.png", "self.png",
    ]  # fmt: skip


def test_each_folder_is_entered_once_whatever_leads_to_it(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    save(root / "a.png")
    save(root / "b" / "c.png")
    save(outside / "d" / "e.png")
    (root / "up").symlink_to(tmp_path)
    (root / "x").symlink_to(outside / "d")
    (root / "z").symlink_to(outside)
    found = names(open_source(root, follow_links=True))
    assert found == ["a.png", "b/c.png", "up/outside/d/e.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipes_and_sockets_neither_block_nor_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png")
    for name in ("pipe.png", "pipe.zip", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
    monkeypatch.chdir(tmp_path)  # the whole name may be longer than a socket's may be
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        source = open_source(tmp_path)
        assert names(source) == ["a.png", "pipe.png", "socket.png"]
        for i, what in ((1, "It is a pipe"), (2, "It is a socket")):
            with pytest.raises(UnreadableImage, match=what):
                source.read(i)
        with pytest.raises(DataError, match="is a pipe, a device or a broken link"):
            open_source(tmp_path / "socket.png")
    for name in ("pipe.png", "pipe.zip", "pipe.parquet"):
        with pytest.raises(DataError, match="is a pipe, a device or a broken link"):
            open_source(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_forbidden_folder_is_counted(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "closed" / "b.png")
    (tmp_path / "closed").chmod(0)
    try:
        assert "1 folders that cannot be opened" in open_source(tmp_path).describe()
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_lists_and_single_files(tmp_path: Path) -> None:
    first, second = save(tmp_path / "x" / "no_ending", 1), save(tmp_path / "y" / "b.png", 2)
    source = open_source([str(first), second], label="folder")
    assert names(source) == ["x/no_ending", "y/b.png"]
    assert [source.label(0), source.label(1)] == ["x", "y"]
    assert source.spec == [str(first), str(second)]
    np.testing.assert_array_equal(source.read(0), RGB[1])
    single = open_source(second)
    assert (len(single), names(single), single.spec) == (1, ["b.png"], str(second))
    assert names(open_source(source.spec)) == names(source)


# Mistakes ------------------------------------------------------------------------------------


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.docx").write_text("words")
    wrong: list[tuple[Any, str]] = [
        (tmp_path / "photso", r"no file or folder .*photso.*Did you mean .*photos'\?"),
        (tmp_path / "phtos" / "deep" / "a", "Did you mean .*photos"),
        (tmp_path / "zzz", "Check the path"),
        (tmp_path / "empty", "holds no image file"),
        (tmp_path / "a.docx", "nothing erg can read images from"),
        ("nowhere://example.org/a.zip", "no address erg reads"),
        ([], "an empty list"),
        (None, "a NoneType"),
        (12, "an? int"),
        ({"a": 1}, "a dict"),
        ("synthetic:many", "names no number"),
        ("synthetic:0", "is empty"),
    ]
    for data, message in wrong:
        with pytest.raises(DataError, match=message):
            open_source(data)
    assert issubclass(DataError, ValueError)


# Data sets -----------------------------------------------------------------------------------


class Torchvisionlike:
    """As torchvision's: an image of some type and a class number."""

    classes = ["cat", "dog"]

    def __init__(self, convert: Any) -> None:
        self.convert = convert

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.convert(RGB[i]), i % 2


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda a: a,
        lambda a: torch.from_numpy(a).permute(2, 0, 1),
        lambda a: torch.from_numpy(a).permute(2, 0, 1) / 255,
        lambda a: a.astype(np.float64) / 255,
    ],
)
def test_data_sets(convert: Any) -> None:
    source = open_source(Torchvisionlike(convert), label="target")
    assert source.spec is None
    assert [source.label(i) for i in range(4)] == ["cat", "dog", "cat", "dog"]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(source.read, range(4))), RGB)
    assert open_source(Torchvisionlike(convert)).label(1) is None


def test_data_set_of_normalised_tensors_says_so() -> None:
    source = open_source(Torchvisionlike(lambda a: torch.from_numpy(a).permute(2, 0, 1) / 64 - 2))
    with pytest.raises(UnreadableImage, match="already normalised"):
        source.read(0)
    source = open_source(Torchvisionlike(lambda a: a[0, 0]))
    with pytest.raises(UnreadableImage, match=r"uint8 of shape \[3\], no image"):
        source.read(0)


def test_torchvision_and_tensors(tmp_path: Path) -> None:
    from torchvision import datasets

    save(tmp_path / "cat" / "1.png", 1)
    save(tmp_path / "dog" / "2.png", 2)
    source = open_source(datasets.ImageFolder(tmp_path), label="class")
    assert [source.label(i) for i in range(2)] == ["cat", "dog"]
    np.testing.assert_array_equal(source.read(1), RGB[2])
    tensor = open_source(torch.from_numpy(RGB).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(tensor.read(3), RGB[3])


def test_labels_of_data_sets() -> None:
    both = np.array([1, 2])
    given = [None, np.int64(1), torch.tensor(0), -1, "x", 7, both, float("nan"), ""]

    class Few(list[Any]):
        classes = ["cat", "dog"]

    pairs = [(RGB[0], label) for label in given]
    source = open_source(Few(pairs), label="class")
    wanted = [None, "dog", "cat", None, "x", "7", "[1 2]", None, None]
    assert [source.label(i) for i in range(len(given))] == wanted
    bare = open_source(pairs, label="class")
    wanted = [None, "1", "0", "-1", "x", "7", "[1 2]", None, None]
    assert [bare.label(i) for i in range(len(given))] == wanted


@pytest.mark.parametrize("how", ["array", "list", "pillow"])
def test_arrays_have_the_limit_of_files(how: str) -> None:
    grey = np.broadcast_to(np.uint8(0), (1, 8001, 8000))  # takes one byte
    data: Any = {"array": grey, "list": [grey[0]], "pillow": [Image.new("L", (8000, 8001))]}[how]
    with pytest.raises(UnreadableImage, match="8,000 x 8,001 pixels are more than the limit"):
        open_source(data).read(0)


def test_list_of_pil_images() -> None:
    source = open_source([Image.fromarray(image) for image in RGB])
    np.testing.assert_array_equal(source.read(2), RGB[2])
    assert source.label(2) is None


def test_masks_of_files_have_their_names_but_for_the_ending(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.png", "b/1.png", "3.webp"):
        save(tmp_path / "photos" / name, 0)
    for k, name in enumerate(("a/1.png", "a/2.bmp", "a/2.png", "b/other.png")):
        save(tmp_path / "masks" / name, k)
    source = open_source(tmp_path / "photos")
    masks = masks_of(source, str(tmp_path / "masks"))
    assert names(source) == ["3.webp", "a/1.jpg", "a/2.png", "b/1.png"]
    assert names(masks) == ["3.webp", "a/1.png", "a/2.png", "b/1.png"]
    assert "masks" in masks.describe()
    assert "of 2 of 4 images" in masks.describe()
    np.testing.assert_array_equal(masks.read(1), RGB[0])
    np.testing.assert_array_equal(masks.read(2), RGB[2])  # the same name before another ending
    for missing in (0, 3):
        with pytest.raises(FileNotFoundError):
            masks.read(missing)


def test_masks_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "1.png", 0)
    save(tmp_path / "photos" / "masks" / "1.png", 0)
    save(tmp_path / "others" / "2.png", 0)
    source = open_source(tmp_path / "photos")
    for where, words in (
        (tmp_path / "mask", "There is no folder of masks"),
        (tmp_path / "photos" / "masks", "Move them beside it"),
        (tmp_path / "photos", "Move them beside it"),
        (tmp_path / "others", "none of 2 images has a mask in .*The mask of '1.png'"),
    ):
        with pytest.raises(DataError, match=words):
            masks_of(source, str(where))
    with pytest.raises(DataError, match="a column of parquet files or from a folder"):
        masks_of(open_source(RGB), "mask")
