"""The run folder, as training writes it (format 1). The report reads it without torch."""

import json
from pathlib import Path
from typing import Any

from erg.train.checkpoint import write_atomically

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are then not told apart
    fcntl = None


class Busy(RuntimeError):
    """Another process is training in this folder."""


class RunFolder:
    """One folder a run: what it was, what happened, what came out.

    Args:
        path: of the folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.run_file = path / "run.json"
        self.manifest = path / "manifest.parquet"
        self.checkpoints = path / "checkpoints"
        self.encoder_start = path / "encoder_start"
        self.encoder = path / "encoder"
        self.cache = path / "cache.u8"
        self._events = path / "events.jsonl"
        self._timing = path / "timing.jsonl"
        self._lock: Any = None

    def lock(self) -> None:
        """Keep other runs out until this process ends; a dead process's lock is no lock.

        Raises:
            Busy: another process holds it.
        """
        if fcntl is None or self._lock is not None:
            return
        file = (self.path / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise Busy(
                f"another process is training in {self.path.name}. Wait for it, or choose another "
                "folder with --out."
            ) from None
        self._lock = file

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            (self.path / "lock").unlink(missing_ok=True)

    def drop_cache(self) -> None:
        """Remove the decoded images; they can be made again."""
        for file in self.path.glob(f"{self.cache.name}*"):
            file.unlink(missing_ok=True)

    def write_run(self, data: dict[str, Any]) -> None:
        """run.json, atomically."""
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.run_file, text.encode())

    def read_run(self) -> dict[str, Any]:
        """The contents of run.json.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        try:
            return json.loads(self.run_file.read_text())
        except FileNotFoundError:
            raise ValueError(
                f"{self.path} is no run folder: it has no run.json. Give the folder of a run."
            ) from None
        except ValueError as error:
            raise ValueError(
                f"{self.run_file} is damaged ({error}). Start the run again."
            ) from None

    def event(self, step: int, kind: str, **what: Any) -> None:
        """Append what happened at a step; a function of the step only, never of the clock."""
        _append(self._events, {"step": step, "kind": kind, **what})

    def timing(self, step: int, **what: float) -> None:
        """Append wall-clock figures."""
        _append(self._timing, {"step": step, **what})

    def seconds(self) -> float:
        """Training time of all earlier sittings [seconds]."""
        lines = _lines(self._timing)
        return float(lines[-1].get("seconds", 0.0)) if lines else 0.0

    def first(self, kind: str) -> dict[str, Any] | None:
        """The first event of a kind."""
        return next((line for line in _lines(self._events) if line.get("kind") == kind), None)

    def truncate(self, step: int) -> None:
        """Forget what happened after a step: a resumed run goes through it again."""
        for file in (self._events, self._timing):
            kept = [line for line in _lines(file) if line.get("step", 0) <= step]
            if file.exists():
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
                write_atomically(file, text.encode())


def _append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines(file: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut short by a crash is dropped."""
    if not file.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
