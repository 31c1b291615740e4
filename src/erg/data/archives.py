"""Images inside a zip or an uncompressed tar, read in place.

Nothing is ever extracted, so a member called `../../etc/passwd` is a name and nothing more.
"""

import os
import stat
import struct
import tarfile
import threading
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from erg.data.decode import MAX_BYTES, UnreadableImage
from erg.data.source import (
    DataError,
    Item,
    Source,
    check_folder_label,
    folder_label,
    is_image_name,
    printable,
)

_NESTED = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar", ".parquet")


class Member(NamedTuple):
    """One file of an archive.

    Args:
        name: as the archive spells it.
        start: where it starts [bytes]: in a zip its local header, in a tar its content.
        packed: its size in the archive [bytes].
        size: its size unpacked [bytes].
        checksum: CRC-32 of the content; None where the archive has none.
        deflated: whether it is compressed.
        refused: why it is not read; empty if it is.
    """

    name: str
    start: int
    packed: int
    size: int
    checksum: int | None = None
    deflated: bool = False
    refused: str = ""


class Archive(Source):
    """Images in a zip or tar.

    Args:
        path: the archive.
        members: in the order of their names.
        labelled: whether the folder a member lies in is its label.
        is_zip: whether `start` is that of a local header.
    """

    def __init__(self, path: Path, members: list[Member], *, labelled: bool, is_zip: bool) -> None:
        self.file, self.members, self.labelled, self.is_zip = path, members, labelled, is_zip
        self.spec = str(path)
        # One handle for all threads: reading at a position moves no shared file pointer.
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.lock = threading.Lock()
        weakref.finalize(self, os.close, self.handle)

    def __len__(self) -> int:
        return len(self.members)

    def path(self, i: int) -> str:
        return printable(self.members[i].name)

    def item(self, i: int) -> Item:
        member = self.members[i]
        if member.refused:
            raise UnreadableImage(member.refused)
        most = max(member.size, member.packed)
        if most > MAX_BYTES:
            raise UnreadableImage(f"{most:,} bytes are more than the limit of {MAX_BYTES:,}.")
        data = self._read(self._content_start(member), member.packed)
        if member.deflated:
            try:  # never more than the archive's own index says
                data = zlib.decompressobj(-15).decompress(data, member.size + 1)
            except zlib.error as error:
                raise UnreadableImage("The member of the archive is damaged.") from error
        damaged = member.checksum is not None and zlib.crc32(data) != member.checksum
        if len(data) != member.size or damaged:
            raise UnreadableImage("The member of the archive is damaged.")
        return data

    def _content_start(self, member: Member) -> int:
        if not self.is_zip:
            return member.start
        header = self._read(member.start, 30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise UnreadableImage("The member of the archive is damaged.")
        return member.start + 30 + sum(struct.unpack("<HH", header[26:30]))

    def _read(self, start: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self.handle, size, start)
        with self.lock:  # Windows
            os.lseek(self.handle, start, os.SEEK_SET)
            return os.read(self.handle, size)

    def offset(self, i: int) -> int:
        return self.members[i].start

    def label(self, i: int) -> str | None:
        return folder_label(self.members[i].name) if self.labelled else None

    def describe(self) -> str:
        return f"{len(self):,} images in {printable(self.file.name)}"


def open_zip(path: Path, label: str | None) -> Archive:
    """A zip, its members found through its index.

    Raises:
        DataError: it is no zip that can be read, or holds no image.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if _wanted(info.filename)]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _unusable(path, error) from error
    return _archive(path, [_zip_member(info) for info in infos], label, is_zip=True)


def _zip_member(info: zipfile.ZipInfo) -> Member:
    refused = _nested(info.filename)
    if info.flag_bits & 1:
        refused = "The member of the archive is encrypted."
    elif stat.S_ISLNK(info.external_attr >> 16):
        refused = "It is a link inside an archive."
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refused = f"Its compression in the archive (method {info.compress_type}) is not read."
    return Member(
        info.filename,
        info.header_offset,
        info.compress_size,
        info.file_size,
        info.CRC,
        info.compress_type == zipfile.ZIP_DEFLATED,
        refused,
    )


def open_tar(path: Path, label: str | None) -> Archive:
    """An uncompressed tar, its members found by walking their headers once.

    Raises:
        DataError: it is no such tar, or holds no image.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = [_tar_member(info) for info in archive if _wanted(info.name)]
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise _unusable(path, error) from error
    return _archive(path, members, label, is_zip=False)


def _tar_member(info: tarfile.TarInfo) -> Member:
    refused = _nested(info.name)
    if not info.isreg():
        refused = "It is a link, a device or a folder inside an archive."
    elif info.issparse():
        refused = "It is a sparse file inside an archive."
    return Member(info.name, info.offset_data, info.size, info.size, refused=refused)


def _wanted(name: str) -> bool:
    """Images, and archives inside the archive, which are counted but not opened."""
    return not name.endswith("/") and (is_image_name(_inert(name)) or bool(_nested(name)))


def _inert(name: str) -> str:
    """A member's name for looking at its parts: `..` and `.` are no hidden folders."""
    return "/".join(p for p in name.replace("\\", "/").split("/") if p not in (".", ".."))


def _nested(name: str) -> str:
    return "It is an archive inside an archive." if name.lower().endswith(_NESTED) else ""


def _unusable(path: Path, error: Exception) -> DataError:
    name = printable(path.name)
    return DataError(
        f"{name} is no archive that can be read ({error}). Check that it is complete, or pack it "
        "again as .zip or uncompressed .tar."
    )


def _archive(path: Path, members: list[Member], label: str | None, *, is_zip: bool) -> Archive:
    name = printable(path.name)
    labelled = check_folder_label(label, name)
    if not members:
        raise DataError(
            f"{name} holds no image file. Give an archive of images; their endings decide."
        )
    members.sort(key=lambda member: member.name)
    return Archive(path, members, labelled=labelled, is_zip=is_zip)
