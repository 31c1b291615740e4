"""Where images come from: one class per kind of source, one way to read them all.

A source numbers its items; the number never changes while it is open. Folders and archives give
the files with an image ending (`opening.SUFFIXES`); files without an ending are left out, since a
README has none either: name such files in a list. Hidden files and `__MACOSX` are left out too.
"""

import difflib
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from erg.data.decode import load_rgb, shrink
from erg.data.opening import SUFFIXES

Item = bytes | np.ndarray
"""What a source holds of an item: an encoded file, pixels uint8 [h w 3], a vector [d] or tokens."""

Spec = str | list[str] | None
"""A JSON value that `open_source` opens again; None where the data live in memory only."""


class DataError(ValueError):
    """Data that cannot be used: one sentence what was wrong, one what to do."""


class Source(ABC):
    """Numbered images, vectors or sequences. Reading is safe from several threads at once."""

    kind: ClassVar[Literal["image", "array"]] = "image"
    spec: Spec = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def path(self, i: int) -> str:
        """The name of item i relative to the source, printable, with `/` between the parts."""

    @abstractmethod
    def item(self, i: int) -> Item:
        """Item i as the source holds it.

        Raises:
            UnreadableImage: it should not be read.
            OSError: it cannot be read.
        """

    @abstractmethod
    def offset(self, i: int) -> int:
        """Where item i starts in its file [bytes], or its row in a table or array."""

    @abstractmethod
    def label(self, i: int) -> str | None:
        """The label of item i; None where it has none or none was asked for."""

    @abstractmethod
    def describe(self) -> str:
        """What this is, how much of it, and what was left out, as one line of text."""

    def read(self, i: int, short_side: int | None = None) -> np.ndarray:
        """Image i as uint8 [h w 3] (of kind array: the vector [d], or the tokens [n]).

        Args:
            i: number of the item.
            short_side: shrink so that the shorter side has at most this many pixels.

        Raises:
            UnreadableImage: it cannot be decoded.
            OSError: it cannot be read.
        """
        return decode_item(self.item(i), short_side)

    def bytes(self, i: int) -> bytes:
        """What the content hash of item i is taken of: the encoded file, or the raw values."""
        item = self.item(i)
        return item.tobytes() if isinstance(item, np.ndarray) else item


def decode_item(item: Item, short_side: int | None) -> np.ndarray:
    """What `Source.read` gives for an item already at hand."""
    if isinstance(item, np.ndarray):
        return shrink(item, short_side) if item.ndim == 3 else item
    return load_rgb(item, short_side=short_side)


def open_source(data: Any, *, label: str | None = None, follow_links: bool = False) -> Source:
    """Open anything that holds images.

    Args:
        data: a folder, an image, a .zip, an uncompressed .tar or a .parquet file or a folder of
            them, a .npy; a .txt, whose bytes are cut into sequences; the address of such a folder
            or file in a store (s3://...); a list of paths; an array of images (uint8, or floats in
            [0, 1] or [0, 255]; [n h w], [n h w 3] or [n 3 h w]), of vectors [n d] (uint8 or
            floats) or of sequences of tokens [rows n] (wider integers, with -1 behind the end of
            shorter ones); a data set with `__len__` and `__getitem__` as torchvision's;
            `synthetic` or `synthetic:N`, the embedded world (`./synthetic` is a folder of that
            name).
        label: where labels come from: the name of a parquet column; `folder` for the parent
            folders of files; in archives `cls` for the .cls file beside an image, or the name of a
            field of the .json file beside it; a factor of the embedded world, for example `shape`;
            any name for a torchvision data set. None: no labels are read.
        follow_links: follow symbolic links that lead out of the folder.

    Raises:
        DataError: nothing usable is there.
    """
    torch = sys.modules.get("torch")  # never imported here: a tensor means it already is
    if torch is not None and isinstance(data, torch.Tensor):
        data = data.numpy(force=True)
    # The modules below hold Sources themselves, and pyarrow takes time to import.
    if isinstance(data, np.ndarray):
        from erg.data.arrays import open_array

        return open_array(data, "the array", None, label)
    if isinstance(data, str) and (data == "synthetic" or data.startswith("synthetic:")):
        from erg.data.synthetic import Synthetic

        return Synthetic.named(data, label)
    if isinstance(data, str) and "://" in data and not os.path.lexists(data):
        from erg.data.remote import open_remote

        return open_remote(data, label)
    if isinstance(data, str | os.PathLike):
        return _open_path(Path(data), label, follow_links)
    if isinstance(data, Sequence) and data and all(isinstance(p, str | os.PathLike) for p in data):
        from erg.data.files import listed

        return listed([os.fspath(path) for path in data], label)
    if not isinstance(data, Mapping):
        from erg.data.datasets import DataSet, Indexed

        if isinstance(data, DataSet) and len(data):
            return Indexed(data, label is not None)
    what = f"an empty {type(data).__name__}" if data == [] else f"a {type(data).__name__}"
    raise DataError(
        f"erg cannot read images from {what}. Give a folder, an archive, a parquet file, an array, "
        "a list of paths or a data set with __len__ and __getitem__."
    )


def _open_path(path: Path, label: str | None, follow_links: bool) -> Source:
    from erg.data import archives, arrays, files, tables  # as above
    from erg.data.places import Local

    if not os.path.lexists(path):
        raise DataError(f"There is no file or folder {printable(str(path))!r}. {suggestion(path)}")
    if path.is_dir():
        return files.open_folder(path, label, follow_links)
    if not path.is_file():
        raise DataError(
            f"{printable(str(path))} is a pipe, a device or a broken link. Give a folder or a file."
        )
    ending = path.suffix.lower()
    if ending in archives.ARCHIVES:
        return archives.Archives([Local(path)], str(path), label)
    if ending in tables.PARQUET:
        return tables.open_parquet([Local(path)], str(path), label)
    if ending == ".npy":
        return arrays.open_npy(path, label)
    if ending in arrays.TEXTS:
        return arrays.open_text(path, label)
    if ending in SUFFIXES:
        return files.listed([str(path)], label, spec=str(path))
    raise DataError(
        f"{path.name} is nothing erg can read images from. Give a folder, an image, a .zip, a .tar "
        "(uncompressed), a .parquet or a .npy file; or a .txt for a method of tokens."
    )


def suggestion(path: Path) -> str:
    """What the mistyped path may have meant, from the names that are there."""
    folder, wanted = path.parent, path.name
    while not folder.is_dir() and folder != folder.parent:
        folder, wanted = folder.parent, folder.name
    try:
        close = difflib.get_close_matches(wanted, os.listdir(folder), n=1)
    except OSError:
        close = []
    if close:
        return f"Did you mean {printable(str(folder / close[0]))!r}?"
    return f"Check the path; it is looked for from {str(Path.cwd())!r}."


def printable(name: str) -> str:
    """A file name as text that can be encoded: bytes that are no UTF-8 become `\\xff`."""
    raw = name.encode("utf-8", "surrogateescape" if _escaped(name) else "surrogatepass")
    return raw.decode("utf-8", "backslashreplace")


def _escaped(name: str) -> bool:
    """Whether all lone surrogates of a name stand for bytes (PEP 383)."""
    return all(not "\ud800" <= c <= "\udfff" or "\udc80" <= c <= "\udcff" for c in name)


def is_image_name(name: str) -> bool:
    """Whether a path inside a folder or archive is taken for an image, by its ending."""
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a path inside a folder or archive is hidden, or one of macOS's companions."""
    return name.startswith(".") or "/." in name or "__MACOSX" in name.split("/")


def folder_label(name: str) -> str | None:
    """The folder an image lies in, relative to the source; None at the top."""
    return printable(name.rpartition("/")[0]) or None


def label_of(value: Any, names: Sequence[str]) -> str | None:
    """A label as text; None where there is none, which tables write as "", NaN or, where numbers
    have names, as a negative number."""
    empty = isinstance(value, str) and not value
    if value is None or empty or (isinstance(value, float) and math.isnan(value)):
        return None
    if names and isinstance(value, int) and value < len(names):
        return names[value] if value >= 0 else None
    return str(value)


def check_folder_label(label: str | None, what: str) -> bool:
    """Whether labels are asked for, where folder names are the only ones there are."""
    if label not in (None, "folder"):
        raise DataError(
            f"{what} has no labels called {label!r}. Use the label 'folder' for folder names."
        )
    return label == "folder"
