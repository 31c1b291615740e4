"""Files that are whole or not there, whatever the system says on the way."""

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from erg import durable
from erg.durable import (
    NoSpace,
    Unwritable,
    check_place,
    open_regular,
    sweep,
    whole_file,
    write_atomically,
)

OLD, NEW = b"old", b"new and longer " * 1000


def fails_with(number: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


class Full:
    """A stream on a disk that takes some bytes and no more."""

    def __init__(self, stream: Any, room: int, number: int) -> None:
        self.stream, self.room, self.number = stream, room, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, content: bytes) -> int:
        self.stream.write(content[: self.room])
        raise OSError(self.number, os.strerror(self.number))


CALLS = ["open", "write", "fsync", "replace"]
NUMBERS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT]


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_every_call_may_fail(tmp_path: Path, monkeypatch, call: str, number: int) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(OLD)
    if call == "open":
        monkeypatch.setattr(durable, "open", fails_with(number), raising=False)
    elif call == "write":
        full = lambda *given: Full(open(*given), 100, number)  # noqa: E731, SIM115
        monkeypatch.setattr(durable, "open", full, raising=False)
    else:
        monkeypatch.setattr(os, call, fails_with(number))
    with pytest.raises(Unwritable) as failed:
        write_atomically(file, NEW)
    monkeypatch.undo()
    assert isinstance(failed.value, NoSpace) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert failed.value.errno == number
    assert "a.json cannot be written" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert file.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_cannot_be_flushed_is_no_problem(tmp_path: Path, monkeypatch) -> None:
    flush = os.fsync

    def only_files(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "as some network file systems say")
        flush(number)

    monkeypatch.setattr(os, "fsync", only_files)
    write_atomically(tmp_path / "a", NEW)
    assert (tmp_path / "a").read_bytes() == NEW


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file may grow larger [bytes]; Python ignores the signal and sees the error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1, 4096, 10_000, len(NEW) - 1])
def test_a_limit_of_the_system_is_met_at_every_length(tmp_path: Path, room: int) -> None:
    file = tmp_path / "a"
    file.write_bytes(OLD)
    with at_most(room), pytest.raises(Unwritable, match="File too large"):
        write_atomically(file, NEW)
    assert file.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["a"]
    with at_most(len(NEW)):
        write_atomically(file, NEW)
    assert file.read_bytes() == NEW


def test_a_problem_of_the_caller_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), whole_file(tmp_path / "a"):
        (tmp_path / "elsewhere").read_bytes()
    assert not list(tmp_path.iterdir())
    with pytest.raises(NoSpace, match="its disk is full"), whole_file(tmp_path / "a"):
        fails_with(errno.ENOSPC)()


def test_the_temporary_folder_of_the_system_is_never_used(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", "/proc")
    seen: list[Path] = []
    move = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(Path(a)), move(a, b))[1])
    write_atomically(tmp_path / "a", NEW)
    assert [path.parent for path in seen] == [tmp_path]


def test_links_laid_in_the_way_are_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(OLD)
    file = tmp_path / "run.json"
    durable.partial_name(file).symlink_to(victim)
    file.symlink_to(victim)
    write_atomically(file, NEW)
    assert victim.read_bytes() == OLD
    assert not file.is_symlink()
    assert file.read_bytes() == NEW


def test_the_folder_is_flushed_after_the_move(tmp_path: Path, monkeypatch) -> None:
    order: list[str] = []
    flush, move = os.fsync, os.replace

    def fsync(number: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        flush(number)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("move"), move(a, b))[1])
    write_atomically(tmp_path / "a", NEW)
    assert order == ["file", "move", "folder"]


def test_sweeping_takes_only_what_is_half_written(tmp_path: Path) -> None:
    for name in (".a.1234.tmp", ".b.tmp", "c.tmp", ".hidden", "d"):
        (tmp_path / name).write_bytes(OLD)
    (tmp_path / ".folder.tmp").mkdir()
    sweep(tmp_path)
    sweep(tmp_path / "absent")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".folder.tmp", ".hidden", "c.tmp", "d"]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "zero"):
        with pytest.raises(OSError, match=r"no regular file|directory"):
            open_regular(tmp_path / name)
    (tmp_path / "file").write_bytes(OLD)
    with open_regular(tmp_path / "file") as stream:
        assert stream.read() == OLD


def test_a_place_is_looked_at_before_a_file_is_made(tmp_path: Path) -> None:
    check_place(tmp_path / "a")
    for place, said in ((tmp_path, "is a folder"), (tmp_path / "no" / "a", "there is no folder")):
        with pytest.raises(ValueError, match=said):
            check_place(place)
    with pytest.raises(Unwritable, match=r"is a folder\. Name a file\.") as failed:
        write_atomically(tmp_path, NEW)
    assert failed.value.errno == errno.EISDIR
