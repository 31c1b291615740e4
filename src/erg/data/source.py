"""Where images come from: one class per kind of source, one way to read them all.

A source numbers its items; the number never changes while it is open. Folders and archives give
the files with an image ending (`decode.SUFFIXES`); files without an ending are left out, since a
README has none either: name such files in a list. Hidden files and `__MACOSX` are left out too.
"""

import difflib
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from erg.data.decode import SUFFIXES, UnreadableImage, load_rgb, read_file, shrink, to_rgb

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
    if isinstance(data, np.ndarray):
        from erg.data.tables import open_array  # it holds Sources itself

        return open_array(data, "the array", None, label)
    if isinstance(data, str) and (data == "synthetic" or data.startswith("synthetic:")):
        from erg.data.synthetic import Synthetic  # it is a Source itself

        return Synthetic.named(data, label)
    if isinstance(data, str) and "://" in data and not os.path.lexists(data):
        from erg.data.remote import open_remote  # it holds Sources itself

        return open_remote(data, label)
    if isinstance(data, str | os.PathLike):
        return _open_path(Path(data), label, follow_links)
    if isinstance(data, Sequence) and data and all(isinstance(p, str | os.PathLike) for p in data):
        return _listed([os.fspath(path) for path in data], label)
    if isinstance(data, DataSet) and not isinstance(data, Mapping) and len(data):
        return Indexed(data, label is not None)
    what = f"an empty {type(data).__name__}" if data == [] else f"a {type(data).__name__}"
    raise DataError(
        f"erg cannot read images from {what}. Give a folder, an archive, a parquet file, an array, "
        "a list of paths or a data set with __len__ and __getitem__."
    )


def _open_path(path: Path, label: str | None, follow_links: bool) -> Source:
    # The readers of archives and tables are Sources themselves, and pyarrow takes time to import.
    from erg.data import archives, tables
    from erg.data.places import Local

    if not os.path.lexists(path):
        raise DataError(f"There is no file or folder {printable(str(path))!r}. {_suggestion(path)}")
    if path.is_dir():
        return _open_folder(path, label, follow_links)
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
        return tables.open_npy(path, label)
    if ending in tables.TEXTS:
        return tables.open_text(path, label)
    if ending in SUFFIXES:
        return _listed([str(path)], label, spec=str(path))
    raise DataError(
        f"{path.name} is nothing erg can read images from. Give a folder, an image, a .zip, a .tar "
        "(uncompressed), a .parquet or a .npy file; or a .txt for a method of tokens."
    )


def _suggestion(path: Path) -> str:
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


def check_folder_label(label: str | None, what: str) -> bool:
    """Whether labels are asked for, where folder names are the only ones there are."""
    if label not in (None, "folder"):
        raise DataError(
            f"{what} has no labels called {label!r}. Use the label 'folder' for folder names."
        )
    return label == "folder"


# Files ---------------------------------------------------------------------------------------


class Files(Source):
    """Image files on a disk.

    Args:
        files: what to open.
        names: their names, with `/`.
        labelled: whether the folder an image lies in is its label.
        spec: what `open_source` opens again.
        text: what `describe` says.
    """

    def __init__(
        self, files: list[str], names: list[str], *, labelled: bool, spec: Spec, text: str
    ) -> None:
        self.files, self.names, self.labelled = files, names, labelled
        self.spec, self.text = spec, text

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> str:
        return printable(self.names[i])

    def item(self, i: int) -> Item:
        return read_file(Path(self.files[i]))

    def offset(self, i: int) -> int:
        return 0

    def label(self, i: int) -> str | None:
        return folder_label(self.names[i]) if self.labelled else None

    def describe(self) -> str:
        return self.text


def _listed(files: list[str], label: str | None, spec: Spec = None) -> Files:
    """The files of a list, whatever their ending, in its order."""
    full = [os.path.abspath(file) for file in files]
    try:
        root = os.path.commonpath([os.path.dirname(file) for file in full])
    except ValueError:  # Windows: on several drives
        root = ""
    names = [Path(os.path.relpath(file, root) if root else file).as_posix() for file in full]
    return Files(
        files,
        names,
        labelled=check_folder_label(label, "a list of files"),
        spec=spec if spec is not None else files,
        text=f"{len(files):,} listed files"
        if len(files) > 1
        else f"the image {printable(names[0])}",
    )


def _open_folder(root: Path, label: str | None, follow_links: bool) -> Source:
    from erg.data.archives import Archives, is_archive_name
    from erg.data.places import Local
    from erg.data.tables import PARQUET, open_parquet

    found, left_out = _walk(root, follow_links)
    names = [name for name in found if is_image_name(name)]
    others = [name for name in found if not is_image_name(name)]
    files = [] if names else [name for name in others if (root / name).is_file()]
    if parts := [name for name in files if Path(name).suffix.lower() in PARQUET]:
        return open_parquet([Local(root / name, name) for name in parts], str(root), label)
    if shards := [name for name in files if is_archive_name(name)]:
        return Archives([Local(root / name, name) for name in shards], str(root), label)
    if others:
        endings = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in others)
        listed = ", ".join(printable(ending) for ending, _ in endings.most_common(3))
        left_out[f"files that are no images ({listed})"] = len(others)
    rest = "; left out: " + ", ".join(f"{n:,} {what}" for what, n in left_out.items())
    rest = rest if left_out else ""
    if not names:
        raise DataError(
            f"{printable(str(root))} holds no image file{rest}. Give another folder, or a list of "
            "paths for images with other endings."
        )
    return Files(
        [os.path.join(root, name) for name in names],
        names,
        labelled=check_folder_label(label, printable(str(root))),
        spec=str(root),
        text=f"{len(names):,} image files in {printable(str(root))}{rest}",
    )


def _walk(root: Path, follow_links: bool) -> tuple[list[str], Counter[str]]:
    """Names of all files below a folder, sorted, and what was left out, counted.

    A link to a folder inside the root adds nothing and is not followed, so there are no loops; a
    link out of the root is followed only when asked, and each folder is entered once.
    """
    real_root = os.path.realpath(root)
    found: list[str] = []
    left_out: Counter[str] = Counter()
    entered: set[str] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(os.path.join(root, prefix)) as inside:
                entries = list(inside)
        except OSError:
            left_out["folders that cannot be opened"] += 1
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            is_folder = os.path.isdir(entry.path)  # False for a link to itself
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                inside = (target + os.sep).startswith(real_root.rstrip(os.sep) + os.sep)
                if not inside and not follow_links:
                    left_out["links out of the folder (follow_links=True follows them)"] += 1
                    continue
                if is_folder and (inside or target in entered):
                    continue
                entered.add(target)
            name = prefix + entry.name
            waiting.append(name + "/") if is_folder else found.append(name)
    return sorted(found), left_out


# Masks ---------------------------------------------------------------------------------------


def masks_of(source: Source, where: str) -> Source:
    """The masks of all images of a source, as a source of their own: item i is of image i.

    A mask is an image of the size of its image, bright where something stands out. There need not
    be one for every image: reading one that is missing raises as reading a damaged one does.

    Args:
        source: of images.
        where: for parquet files the column of the encoded masks; for files a folder where the mask
            of `a/b.jpg` is `a/b.jpg`, or an image `a/b` with another ending.

    Raises:
        DataError: no masks are there, or the source is of another kind.
    """
    from erg.data.tables import Parquet

    if isinstance(source, Parquet):
        return source.masks(where)
    if isinstance(source, Files):
        return _masks_in(Path(where), source)
    raise DataError(
        f"{source.describe()}: masks are taken from a column of parquet files or from a folder "
        "beside image files only. Leave the mask out, or store the images so."
    )


def _masks_in(folder: Path, source: Files) -> Files:
    shown = printable(str(folder))
    if not folder.is_dir():
        raise DataError(f"There is no folder of masks {shown!r}. {_suggestion(folder)}")
    if isinstance(source.spec, str):
        root, inside = os.path.realpath(source.spec), os.path.realpath(folder)
        if (inside + os.sep).startswith(root.rstrip(os.sep) + os.sep):
            raise DataError(
                f"the masks in {shown!r} lie in the folder of the images, where they are taken for "
                "images themselves. Move them beside it."
            )
    found = {name for name in _walk(folder, follow_links=False)[0] if is_image_name(name)}
    named = {os.path.splitext(name)[0]: name for name in sorted(found, reverse=True)}
    names = [
        name if name in found else named.get(os.path.splitext(name)[0], name)
        for name in source.names
    ]
    present = sum(name in found for name in names)
    if not present:
        raise DataError(
            f"none of {len(source):,} images has a mask in {shown!r}. The mask of "
            f"{source.path(0)!r} has to have that name there, but for the ending."
        )
    return Files(
        [os.path.join(folder, name) for name in names],
        names,
        labelled=False,
        spec=str(folder),
        text=f"masks in {shown} of {present:,} of {len(source):,} images",
    )


# Data sets -----------------------------------------------------------------------------------


@runtime_checkable
class DataSet(Protocol):
    """What torchvision's data sets have."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def as_rgb(image: np.ndarray, scale: float) -> np.ndarray:
    """One image of any layout as uint8 [h w 3]."""
    if image.ndim == 3 and image.shape[-1] not in (1, 3):
        image = image.transpose(1, 2, 0)
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8:
        image = np.rint(image.astype(np.float64) * scale).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


class Indexed(Source):
    """A data set like torchvision's: `data[i]` is an image, or an image and its label.

    Images are PIL images, uint8 arrays or tensors, or floats in [0, 1]. Read one at a time, since
    a data set promises nothing about threads.

    Args:
        data: the data set. Its `classes`, if it has them, name the labels.
        labelled: whether labels are asked for.
    """

    def __init__(self, data: DataSet, labelled: bool) -> None:
        self.data, self.labelled = data, labelled
        self.names = [str(name) for name in getattr(data, "classes", [])]
        self.labels: dict[int, str] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.data)

    def path(self, i: int) -> str:
        return f"{i:06d}"

    def item(self, i: int) -> Item:
        with self.lock:
            value = self.data[i]
            image, *rest = value if isinstance(value, tuple | list) else (value,)
            if self.labelled and rest:
                self.labels[i] = self._label_name(rest[0])
            if isinstance(image, Image.Image):
                return to_rgb(image)
        array = np.asarray(image)
        colours = array.ndim == 2 or (array.ndim == 3 and {1, 3} & {array.shape[0], array.shape[2]})
        if not colours or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
            raise UnreadableImage(f"It is {array.dtype} of shape {list(array.shape)}, no image.")
        if array.dtype != np.uint8 and not (array.min() >= 0 and array.max() <= 1):
            raise UnreadableImage("Its numbers are outside [0, 1], perhaps already normalised.")
        return as_rgb(array, 255.0)

    def _label_name(self, label: Any) -> str:
        if self.names and 0 <= int(label) < len(self.names):
            return self.names[int(label)]
        return str(label)

    def offset(self, i: int) -> int:
        return i

    def label(self, i: int) -> str | None:
        if self.labelled and i not in self.labels:
            self.item(i)
        return self.labels.get(i)

    def describe(self) -> str:
        return f"{len(self):,} images of the data set {type(self.data).__name__}"
