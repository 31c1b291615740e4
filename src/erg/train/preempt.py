"""Being asked to stop: signals set a flag, and the loop looks at it at the end of a step."""

import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

STOPPED, INTERRUPTED = 75, 130
"""Exit codes: preempted and resumable (EX_TEMPFAIL); Ctrl-C."""


def code_of(number: int) -> int:
    """The exit code for a signal that asked to stop."""
    return INTERRUPTED if number == signal.SIGINT else STOPPED


def restore(before: Mapping[int, Any]) -> None:
    """Give signals back to who had them; where that is unknown, to the system."""
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Stopped(Exception):
    """A command was asked to stop and has saved its state.

    Args:
        code: what the process should exit with.
        step: optimiser steps done and saved; None outside the steps, where nothing is lost.
        kept: what is kept of other work than training, as the end of "stopped, ...".
    """

    def __init__(self, code: int, step: int | None, kept: str = "") -> None:
        where = "outside training" if step is None else f"after step {step}, saved and resumable"
        super().__init__(f"stopped, {kept}" if kept else f"stopped {where}")
        self.code, self.step = code, step


ASKING = ("SIGTERM", "SIGUSR1", "SIGINT")


class Leave:
    """While active, a request to stop raises Stopped at once: for phases that save nothing.

    Outside the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Leave":
        self._before = _handled_by(self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        restore(self._before)

    def _stop(self, number: int, _: FrameType | None) -> None:
        raise Stopped(code_of(number), None)


def _handled_by(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Handle every request to stop; the handlers there were."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in ASKING if hasattr(signal, name)]
    return {number: signal.signal(number, handler) for number in numbers}


class Watch:
    """While active, SIGTERM, SIGUSR1 and Ctrl-C are remembered instead of ending the process.

    A second Ctrl-C ends it at once, also where something else asked to stop in between. Outside the
    main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.code = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Watch":
        self._before = _handled_by(self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        restore(self._before)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.code == INTERRUPTED:
            raise KeyboardInterrupt
        if self.code != INTERRUPTED:
            self.code = code_of(number)
