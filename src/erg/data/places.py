"""Bytes that lie here or elsewhere, read at any position without fetching the rest."""

import io
import os
import re
import threading
import weakref
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

from erg.data.source import DataError, printable
from erg.durable import open_regular

PROTOCOLS = frozenset([
    "abfs", "abfss", "az", "file", "ftp", "gcs", "gs", "hdfs", "hf", "http", "https", "memory",
    "oci", "s3", "sftp", "ssh", "webhdfs",
])  # fmt: skip
"""What may stand before `://`: stores of bytes. Others of fsspec run code or combine files."""

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")


def is_remote(data: str) -> bool:
    """Whether text is a network address rather than a path."""
    return _URL.match(data) is not None


def allow_handles(count: int, what: str) -> None:
    """Raise the limit of open files of this process as far as it may, where these need it.

    Args:
        count: of files that are to be open at once.
        what: they are, for the error.

    Raises:
        DataError: they are more than it may open.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count + 256:  # the rest is for everything else
        return
    wanted = count + 256 if hard == resource.RLIM_INFINITY else min(hard, count + 256)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if (allowed := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < count:
        raise DataError(
            f"{printable(what)} needs {count:,} open files, and this system allows {allowed:,}. "
            "Pack it into fewer files, or raise the limit (ulimit -n)."
        )


class Place(ABC):
    """A file that can be read at any position, from several threads at once.

    Attributes:
        name: of the file alone.
        spec: path or address.
        size: of the file [bytes].
    """

    name: str
    spec: str
    size: int

    @abstractmethod
    def read(self, start: int, size: int) -> bytes:
        """At most so many bytes from a position.

        Raises:
            OSError: it cannot be read.
        """

    @abstractmethod
    def open(self) -> Any:
        """The file as a binary stream that seeks; stores have classes of their own for it."""


class Local(Place):
    """A regular file of this machine.

    Args:
        path: of the file.
        name: what to call it; None for its own.

    Raises:
        OSError: it is not there, may not be read, or is no regular file.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name, self.spec = path, name or path.name, str(path)
        with open_regular(path) as stream:
            # One handle for all threads: reading at a position moves no shared file pointer.
            self._handle = os.dup(stream.fileno())
        self.size = os.fstat(self._handle).st_size
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self._handle)

    def read(self, start: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._handle, size, start)
        with self._lock:  # Windows
            os.lseek(self._handle, start, os.SEEK_SET)
            return os.read(self._handle, size)

    def open(self) -> Any:
        return open_regular(self.path)


class Remote(Place):
    """A file of a store that fsspec knows: only what is asked for is fetched.

    Args:
        system: of files, of fsspec.
        path: of the file in it.
        spec: its address.
        name: what to call it; None for its own.
        size: if it is known [bytes].

    Raises:
        OSError: it is not there, or its store does not tell its size.
    """

    def __init__(
        self, system: Any, path: str, spec: str, *, name: str | None = None, size: int | None = None
    ) -> None:
        self.system, self.path, self.spec = system, path, spec
        self.name = name or path.rstrip("/").rpartition("/")[2]
        found = system.size(path) if size is None else size
        if found is None:
            raise OSError(f"the store of {spec} does not tell its size")
        self.size = int(found)

    def read(self, start: int, size: int) -> bytes:
        stop = min(start + size, self.size)
        if stop <= start:
            return b""
        try:
            return bytes(self.system.cat_file(self.path, start=start, end=stop))
        except OSError:
            raise
        except Exception as error:  # stores raise what they like
            raise OSError(f"{type(error).__name__}: {error}") from error

    def open(self) -> Any:
        return self.system.open(self.path, "rb")


def system_of(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        DataError: it is not known, or what it needs is not installed.
    """
    import fsspec

    found = _URL.match(address)
    if found is None or found[1] not in PROTOCOLS or "::" in address:
        raise DataError(
            f"{printable(address)} is no address erg reads. It may begin with "
            f"{', '.join(sorted(PROTOCOLS))}."
        )
    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{printable(address)} needs another package ({_first_line(error)}). Install "
            "'erg[remote]', or what it names."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


class Modest(io.RawIOBase):
    """A stream that refuses to read much at once, for parsers that believe what a file says.

    Args:
        stream: to read from.
        most: at once [bytes].
    """

    def __init__(self, stream: Any, most: int = 1 << 20) -> None:
        self.stream, self.most = stream, most

    def read(self, size: int = -1) -> bytes:
        """As of any stream.

        Raises:
            OSError: it is more than allowed.
        """
        if not 0 <= size <= self.most:
            raise OSError(f"it holds a header of {size:,} bytes")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
