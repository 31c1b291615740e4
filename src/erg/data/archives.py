"""Images inside zips and uncompressed tars, read in place: one archive, or shards of many.

Nothing is ever extracted, so a member called `../../etc/passwd` is a name and nothing more; it is
refused all the same, as nobody honest packs one. The index is built once, when the archive is
opened, and takes about 50 bytes and its name a member.

As webdataset writes them, files of one sample have one name and different endings: 000017.jpg,
000017.cls, 000017.json. The last two may hold its label.
"""

import json
import stat
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from erg.data.opening import MAX_BYTES, UnreadableImage
from erg.data.places import Modest, Place
from erg.data.source import (
    DataError,
    Item,
    Source,
    Spec,
    folder_label,
    is_hidden,
    is_image_name,
    printable,
)

ARCHIVES = (".zip", ".tar")
"""Endings of archives that are opened."""

_BESIDE = (".cls", ".json")
"""Endings of files that hold the label of the image beside them."""

_LABEL_BYTES = 1 << 20
"""Longest of them that is read [bytes]."""

# What the standard library raises on hostile headers.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, ValueError, LookupError),
    *(ArithmeticError, NotImplementedError, RecursionError),
)

_NESTED = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar", ".parquet")


class Member(NamedTuple):
    """One file of an archive.

    Args:
        name: as the archive spells it.
        start: where it starts [bytes]: in a zip its local header, in a tar its content.
        packed: its size in the archive [bytes].
        size: its size unpacked [bytes].
        checksum: CRC-32 of the content; -1 where the archive has none.
        deflated: whether it is compressed.
        refused: why it is not read; empty if it is.
    """

    name: str
    start: int
    packed: int
    size: int
    checksum: int = -1
    deflated: bool = False
    refused: str = ""


class Index:
    """Members of archives one after another, as columns of numbers: objects would take ten times
    the memory."""

    def __init__(self) -> None:
        self._names = bytearray()
        self._reasons = [""]
        self._numbers = {"": 0}  # of the reasons
        # End of the name, then `Member` from start to checksum, then deflated and the reason.
        self._columns = [array("q") for _ in range(5)] + [array("b"), array("i")]
        self.ends = np.zeros(1, dtype=np.int64)

    def append(self, members: Sequence[Member]) -> None:
        """The members of the next archive, in their order."""
        for name, start, packed, size, checksum, deflated, refused in members:
            self._names += name.encode("utf-8", "surrogatepass")
            reason = self._numbers.setdefault(refused, len(self._reasons))
            if reason == len(self._reasons):
                self._reasons.append(refused)
            values = (len(self._names), start, packed, size, checksum, deflated, reason)
            for column, value in zip(self._columns, values, strict=True):
                column.append(value)
        self.ends = np.append(self.ends, len(self))

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, i: int) -> Member:
        end, start, packed, size, checksum, deflated, reason = (c[i] for c in self._columns)
        name = self._names[self._columns[0][i - 1] if i else 0 : end]
        return Member(
            name.decode("utf-8", "surrogatepass"), start, packed, size, checksum, bool(deflated),
            self._reasons[reason],
        )  # fmt: skip

    def archive_of(self, i: int) -> int:
        """Which archive a member is in."""
        return int(np.searchsorted(self.ends, i, side="right")) - 1


class Archives(Source):
    """Images in zips and tars.

    Args:
        places: of the archives, in order.
        spec: what `open_source` opens again.
        label: `folder` for the folder a member lies in, `cls` for what the .cls file beside an
            image says, another name for that field of the .json file beside it; None for no labels.

    Raises:
        DataError: one is no archive that can be read, or they hold no image, or not such labels.
    """

    def __init__(self, places: Sequence[Place], spec: Spec, label: str | None) -> None:
        self.places, self.spec = places, spec
        what = printable(places[0].name) if len(places) == 1 else f"{len(places)} archives"
        self.what, self.asked = what, label
        self.index, self.beside = Index(), Index()
        for place in places:
            members = _members(place, _wanted if label in (None, "folder") else _wanted_beside)
            images = [member for member in members if _wanted(member.name)]
            self.index.append(images)
            if label not in (None, "folder"):
                self.beside.append(_beside(images, members, label))
        if not len(self.index):
            raise DataError(
                f"{what} holds no image file. Give an archive of images; their endings decide."
            )
        if len(self.beside) and all(self.label(i) is None for i in self._some_labelled()):
            raise DataError(
                f"{what} has no labels called {label!r}. Use 'folder' for folder names, 'cls' for "
                "the .cls files beside the images, or a field of the .json files beside them."
            )

    def _some_labelled(self) -> Iterator[int]:
        """Some images with a file beside them."""
        found = (i for i in range(len(self)) if not self.beside[i].refused)
        return islice(found, 64)

    def __len__(self) -> int:
        return len(self.index)

    def path(self, i: int) -> str:
        name = printable(self.index[i].name)
        if len(self.places) == 1:
            return name
        return f"{printable(self.places[self.index.archive_of(i)].name)}/{name}"

    def item(self, i: int) -> Item:
        return self._content(self.index[i], i)

    def _content(self, member: Member, i: int) -> bytes:
        """The bytes of a member of the archive that holds image i."""
        place = self.places[self.index.archive_of(i)]
        if member.refused:
            raise UnreadableImage(member.refused)
        most = max(member.size, member.packed)
        if most > MAX_BYTES:
            raise UnreadableImage(f"{most:,} bytes are more than the limit of {MAX_BYTES:,}.")
        start = _content_start(place, member) if _is_zip(place) else member.start
        data = place.read(start, member.packed)
        if member.deflated:
            try:  # never more than the archive's own index says
                data = zlib.decompressobj(-15).decompress(data, member.size + 1)
            except zlib.error as error:
                raise UnreadableImage("The member of the archive is damaged.") from error
        damaged = member.checksum >= 0 and zlib.crc32(data) != member.checksum
        if len(data) != member.size or damaged:
            raise UnreadableImage("The member of the archive is damaged.")
        return data

    def offset(self, i: int) -> int:
        return self.index[i].start

    def label(self, i: int) -> str | None:
        if self.asked == "folder":
            return folder_label(self.index[i].name)
        if self.asked is None or self.beside[i].size > _LABEL_BYTES:
            return None
        try:
            told = self._content(self.beside[i], i).decode()
            return _told(told, self.asked, self.beside[i].name)
        except (OSError, ValueError, RecursionError):
            return None  # of an unknown class, as an image without a label is

    def describe(self) -> str:
        return f"{len(self):,} images in {self.what}"


def is_archive_name(name: str) -> bool:
    """Whether a file is taken for an archive that is opened, by its ending."""
    return name.lower().endswith(ARCHIVES)


def _is_zip(place: Place) -> bool:
    return place.name.lower().endswith(".zip")


def _content_start(place: Place, member: Member) -> int:
    header = place.read(member.start, 30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise UnreadableImage("The member of the archive is damaged.")
    return member.start + 30 + sum(struct.unpack("<HH", header[26:30]))


def _told(text: str, label: str, name: str) -> str | None:
    """The label that a file beside an image tells.

    Raises:
        ValueError: it is no JSON.
    """
    if name.lower().endswith(".json"):
        told = json.loads(text)
        value = told.get(label) if isinstance(told, dict) else None
        text = str(value) if isinstance(value, str | int | float) else ""
    return printable(text.strip()) or None


def _beside(images: Sequence[Member], members: Sequence[Member], label: str) -> list[Member]:
    """The file with the label of each image, or one that is refused."""
    ending = ".cls" if label == "cls" else ".json"
    found = {m.name[: -len(ending)]: m for m in members if m.name.lower().endswith(ending)}
    none = Member("", 0, 0, 0, refused="There is no label.")

    def of(image: str) -> Member:
        # 000017.left.png is of the sample 000017, unless it has a label of its own.
        folder, slash, file = image.rpartition("/")
        for stem in (file.rpartition(".")[0], file.partition(".")[0]):
            if (member := found.get(folder + slash + stem)) is not None:
                return member
        return none

    return [of(image.name) for image in images]


def _members(place: Place, wanted: Callable[[str], bool]) -> list[Member]:
    """Files of an archive in the order of their names: of a zip from its index, of a tar by
    walking its headers."""
    walk = _of_zip if _is_zip(place) else _of_tar
    try:
        return sorted(walk(place, wanted), key=lambda member: member.name)
    except _DAMAGE as error:
        raise DataError(
            f"{printable(place.name)} is no archive that can be read ({error}). Check that it is "
            "complete, or pack it again as .zip or uncompressed .tar."
        ) from error


def _of_zip(place: Place, wanted: Callable[[str], bool]) -> Iterator[Member]:
    with place.open() as stream, zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            if not wanted(info.filename):
                continue
            inside = 0 <= info.header_offset < place.size and info.compress_size <= place.size
            if not inside or info.file_size >= 1 << 62:
                yield Member(info.filename, 0, 0, 0, refused="It lies outside the archive.")
                continue
            refused = _refused(info.filename)
            if info.flag_bits & 1:
                refused = "The member of the archive is encrypted."
            elif stat.S_ISLNK(info.external_attr >> 16):
                refused = "It is a link inside an archive."
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                refused = (
                    f"Its compression in the archive (method {info.compress_type}) is not read."
                )
            deflated = info.compress_type == zipfile.ZIP_DEFLATED
            yield Member(
                info.filename, info.header_offset, info.compress_size, info.file_size, info.CRC,
                deflated, refused,
            )  # fmt: skip


def _of_tar(place: Place, wanted: Callable[[str], bool]) -> Iterator[Member]:
    with place.open() as stream, tarfile.open(fileobj=Modest(stream), mode="r:") as opened:
        archive: Any = opened
        for info in opened:
            archive.members = []  # it would keep all of them
            if info.size < 0 or archive.offset < info.offset_data:  # it would go round for ever
                raise ValueError("a member has a negative size")
            if not wanted(info.name):
                continue
            refused = _refused(info.name)
            if not info.isreg():
                refused = "It is a link, a device or a folder inside an archive."
            elif info.issparse():
                refused = "It is a sparse file inside an archive."
            size = 0 if refused else info.size  # a link may claim any
            yield Member(info.name, info.offset_data, size, size, refused=refused)


def _wanted(name: str) -> bool:
    """Images, and archives inside the archive, which are counted but not opened."""
    return not name.endswith("/") and (is_image_name(_inert(name)) or bool(_nested(name)))


def _wanted_beside(name: str) -> bool:
    """The same, and what may hold their labels."""
    beside = name.lower().endswith(_BESIDE) and not is_hidden(_inert(name))
    return beside or _wanted(name)


def _inert(name: str) -> str:
    """A member's name for looking at its parts: `..` and `.` are no hidden folders."""
    return "/".join(p for p in name.replace("\\", "/").split("/") if p not in (".", ".."))


def _refused(name: str) -> str:
    """Why a member is not read whatever it holds; empty if it is."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or plain[1:3] == ":/" or ".." in plain.split("/"):
        return "Its name leads out of the archive."
    return _nested(name)


def _nested(name: str) -> str:
    return "It is an archive inside an archive." if name.lower().endswith(_NESTED) else ""
