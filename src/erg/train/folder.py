"""The run folder, as training writes it (format 1). The report reads it without torch."""

import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from erg.durable import (
    LONGEST,
    Unwritable,
    explained,
    open_regular,
    read_json,
    sweep,
    whole_file,
    write_atomically,
)

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are then not told apart
    fcntl = None


class Busy(RuntimeError):
    """Another process is training in this folder."""


class RunFolder:
    """One folder a run: what it was, what happened, what came out.

    Args:
        path: of the folder; made when something is first written, and not again if it vanishes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_file = path / "run.json"
        self.manifest = path / "manifest.parquet"
        self.masks = path / "masks.parquet"
        self.checkpoints = path / "checkpoints"
        self.encoder_start = path / "encoder_start"
        self.encoder = path / "encoder"
        self._events = path / "events.jsonl"
        self._timing = path / "timing.jsonl"
        self._lock: BinaryIO | None = None
        self._made = False

    def _make(self) -> None:
        if not self._made:
            with explained(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._made = True

    def lock(self) -> None:
        """Keep other runs out until this process ends, and tidy up after one that was killed.

        The lock is the system's, on the open file, and ends with the process that holds it: a file
        left by a dead process, on this machine or another, is no lock, whatever stands in it. File
        systems without locks keep nobody out.

        Raises:
            Busy: another process holds it.
            Unwritable: the folder is read-only or gone.
        """
        if self._lock is not None:
            return
        self._make()
        if fcntl is not None:
            self._lock = self._locked()
        for inner in ("", "checkpoints", "encoder_start", "encoder", "pictures"):
            sweep(self.path / inner)
        sweep_checkpoints(self.checkpoints)

    def _locked(self) -> BinaryIO | None:
        assert fcntl is not None
        path = self.path / "lock"
        while True:
            with explained(path):
                number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            file = os.fdopen(number, "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(file)
                file.close()
                raise Busy(
                    f"another process is training in {self.path.name}{holder}. Wait for it, or "
                    "choose another folder with --out."
                ) from None
            except OSError:  # this file system has no locks
                file.close()
                return None
            if path.exists() and os.path.samestat(os.fstat(number), path.stat()):
                break
            file.close()  # whoever held it has just removed it
        try:
            with explained(path):
                file.truncate(0)
                file.write(f"{os.getpid()} on {socket.gethostname()}\n".encode())
                file.flush()
        except Unwritable:
            with suppress(OSError):  # closing it, too, would write
                file.close()
            raise
        return file

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            with suppress(OSError):  # of a read-only disk, which is what is to be said
                (self.path / "lock").unlink()
            self._lock.close()
            self._lock = None

    def cache(self, machine: int = 0) -> Path:
        """Where a machine, counted from 0, keeps its decoded images: each has a file of its own,
        in a folder that they may share."""
        return self.path / f"cache{machine or ''}.u8"

    def drop_cache(self) -> None:
        """Remove the decoded images of all machines; they can be made again."""
        for file in self.path.glob("cache*.u8*"):
            file.unlink(missing_ok=True)

    def write_run(self, data: dict[str, Any]) -> None:
        """run.json, atomically."""
        self._make()
        write_atomically(self.run_file, _encoded(data, indent=2, allow_nan=False))

    def read_run(self) -> dict[str, Any]:
        """The contents of run.json.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        try:
            return read_json(self.run_file)
        except FileNotFoundError:
            raise ValueError(
                f"{self.path} is no run folder: it has no run.json. Give the folder of a run."
            ) from None

    def event(self, step: int, kind: str, **what: Any) -> None:
        """Append what happened at a step; a function of the step only, never of the clock."""
        self._append(self._events, {"step": step, "kind": kind, **what})

    def timing(self, step: int, **what: float) -> None:
        """Append wall-clock figures."""
        self._append(self._timing, {"step": step, **what})

    def flush(self) -> None:
        """Put all events on the disk: a checkpoint must not outlive what led to it."""
        for file in (self._events, self._timing):
            if file.exists():
                with explained(file), file.open("ab") as stream:
                    os.fsync(stream.fileno())

    def seconds(self) -> float:
        """Training time of all earlier sittings [seconds]."""
        found = 0.0
        for _, line in _lines(self._timing):
            seconds = line.get("seconds")
            found = float(seconds) if isinstance(seconds, int | float) else found
        return found

    def first(self, kind: str) -> dict[str, Any] | None:
        """The first event of a kind."""
        return next((line for _, line in _lines(self._events) if line.get("kind") == kind), None)

    def in_a_row(self, kind: str, step: int) -> int:
        """How many steps up to this one, one after another, have an event of a kind."""
        steps = {line["step"] for _, line in _lines(self._events) if line.get("kind") == kind}
        return next(n for n in itertools.count() if step - n not in steps)

    def truncate(self, step: int) -> None:
        """Forget what happened after a step: a resumed run goes through it again."""
        self._make()
        for file in (self._events, self._timing):
            if os.path.lexists(file):
                with whole_file(file) as kept:
                    for raw, line in _lines(file):
                        if line["step"] <= step:
                            kept.write(raw)

    def _append(self, file: Path, line: dict[str, Any]) -> None:
        self._make()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        text = _encoded(line) + b"\n"
        with explained(file):
            number = os.open(file, flags, 0o644)
            with os.fdopen(number, "ab") as out:
                out.write(text)


def _encoded(data: dict[str, Any], **options: Any) -> bytes:
    """As JSON in UTF-8; names of files that are no text are spelled out."""
    try:
        return json.dumps(data, ensure_ascii=False, **options).encode()
    except UnicodeEncodeError:
        return json.dumps(data, **options).encode()


def sweep_checkpoints(folder: Path) -> None:
    """Remove what is left of checkpoints that are none: checksums without their file, shards
    without the file that lists them; only for whoever writes there alone."""
    for checksum in folder.glob("step_*.sha256"):
        if not checksum.with_suffix(".safetensors").exists():
            checksum.unlink(missing_ok=True)
    for shards in folder.glob("step_*/"):
        if not shards.suffix and not shards.with_suffix(".json").exists():
            shutil.rmtree(shards, ignore_errors=True)


def _holder(lock: BinaryIO) -> str:
    """Who wrote a lock, in words, if it can be believed to be one of ours."""
    found = re.fullmatch(rb"(\d{1,10}) on ([\w.-]{1,64})\n", lock.read(100))
    return f" ({found[1].decode()} on {found[2].decode()})" if found else ""


def _lines(file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """All whole lines, as written and as read; a last line cut short by a crash is dropped."""
    try:
        stream = open_regular(file)
    except FileNotFoundError:
        return
    with stream:
        while raw := stream.readline(LONGEST):
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                continue
            if raw.endswith(b"\n") and isinstance(line, dict) and type(line.get("step")) is int:
                yield raw, line
