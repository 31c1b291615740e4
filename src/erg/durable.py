"""Files that are whole or not there: after a kill, a power cut, or on a full disk.

A file is written beside its final place (moves are sudden only inside one file system, and the
system's temporary folder may lie on another), flushed, moved over the old one, and the folder is
flushed too.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT)

LONGEST = 1 << 20
"""Of run.json, of a config and of a line of events [bytes]; ours take a few thousand."""


class Unwritable(OSError):
    """A file cannot be written; what was there before is as it was."""


class NoSpace(Unwritable):
    """The disk is full, or its quota is used up."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Problems with writing a file become one sentence on what is wrong and one on what to do."""
    try:
        yield
    except Unwritable:
        raise
    except OSError as error:
        raise _in_words(path, error) from error


def _in_words(path: Path, error: OSError) -> Unwritable:
    if error.errno in FULL:
        found: Unwritable = NoSpace(
            f"{path} cannot be written, since its disk is full. Make room and go on; what was "
            "there before is intact."
        )
    elif error.errno == errno.EISDIR:
        found = Unwritable(f"{path} is a folder. Name a file.")
    else:
        found = Unwritable(
            f"{path} cannot be written ({error.strerror or error}). Give a folder that is there "
            "and may be written to."
        )
    found.errno = error.errno
    return found


def partial_name(path: Path) -> Path:
    """Where a file is written until it is whole: in its folder, as moves are sudden only there."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears whole when the block ends; until then the old one stays.

    Raises:
        Unwritable: the folder is read-only or gone.
        NoSpace: the disk is full.
    """
    partial = partial_name(path)
    with explained(path):
        partial.unlink(missing_ok=True)
        # Never through a link that somebody laid there.
        stream = open(partial, "xb")  # noqa: SIM115
    try:
        yield stream
        settle(stream, path)
    except OSError as error:
        if error.errno in FULL and not isinstance(error, Unwritable):
            raise _in_words(path, error) from error
        raise
    finally:
        with suppress(OSError):  # tidying up must not hide what came before it
            stream.close()
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """A file with this content, or the old one.

    Raises:
        Unwritable: the folder is read-only or gone.
        NoSpace: the disk is full.
    """
    with whole_file(path) as stream, explained(path):
        stream.write(content)


def check_place(file: Path) -> None:
    """Whether a file can be there, which is asked before what it is to hold is computed.

    Raises:
        ValueError: a folder is there, or none for the file.
    """
    if file.is_dir():
        raise ValueError(f"{file} is a folder. Name a file with --out.")
    if not file.parent.is_dir():
        raise ValueError(
            f"{file} cannot be written: there is no folder {file.parent}. Make it, or name a file "
            "elsewhere with --out."
        )


def check_room(folder: Path, size: int) -> None:
    """Whether a disk has room for so many bytes, which is asked before any is written.

    Raises:
        NoSpace: it has not.
        Unwritable: the folder is gone.
    """
    with explained(folder):
        free = shutil.disk_usage(folder).free
    if free < size + (1 << 20):
        raise NoSpace(
            f"a checkpoint needs {size >> 20} MB and the disk of {folder} has {free >> 20} MB. "
            "Make room and resume; the last checkpoint is intact."
        )


def check_written(path: Path, content: bytes) -> str:
    """The checksum of what was written, once the disk has given it back.

    Raises:
        Unwritable: it gives back something else.
    """
    written = hashlib.sha256(content).hexdigest()
    if sha256(path) != written:
        raise Unwritable(
            f"{path} does not read back as it was written. Look after its disk; the checkpoint "
            "before is kept."
        )
    return written


def sha256(path: Path) -> str | None:
    """Checksum of a regular file; None where it cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def settle(stream: BinaryIO, path: Path) -> None:
    """Move a file written to `partial_name(path)` to its place, safe from a power cut.

    Raises:
        Unwritable: the folder is read-only or gone.
        NoSpace: the disk is full.
    """
    with explained(path):
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
        os.replace(partial_name(path), path)
        if os.name == "posix":
            _flush_folder(path.parent)


def _flush_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # how some network file systems say they cannot
            raise
    finally:
        os.close(folder)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written; only for whoever writes there alone."""
    for left in folder.glob(".*.tmp"):
        with suppress(OSError):
            left.unlink()


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading: only a regular one, since a pipe would be waited for forever.

    Raises:
        OSError: it is not there, may not be read, or is no regular file.
    """
    return os.fdopen(_opened(path), "rb")


def read_regular(path: Path, most: int) -> bytes:
    """The first so many bytes of a regular file, asked of the system in one piece: for small images
    what `open` does besides takes longer than reading them.

    Raises:
        OSError: as `open_regular`.
    """
    number, parts = _opened(path), list[bytes]()
    try:
        while most > 0 and (part := os.read(number, most)):
            parts.append(part)
            most -= len(part)
    finally:
        os.close(number)
    return b"".join(parts)


def _opened(path: Path) -> int:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return number


def read_json(file: Path, longest: int = LONGEST) -> dict[str, Any]:
    """An object from a JSON file that may come from anywhere: small, without NaN or repeated names.

    Args:
        file: which; a pipe is refused, since it would be waited for.
        longest: that is read [bytes].

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or not what JSON allows.
    """
    try:
        with open_regular(file) as stream:
            text = stream.read(longest + 1)
        if len(text) > longest:
            raise ValueError(f"it is longer than {longest >> 20} MB")
        found = json.loads(
            text.decode(), parse_constant=_finite, parse_float=_finite, object_pairs_hook=_named
        )
        if not isinstance(found, dict):
            raise ValueError("it holds no names")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}). Restore it, or make it anew.") from None
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found
