"""Being asked to stop: signals set a flag, and the loop looks at it at the end of a step."""

import signal
import threading
from types import FrameType

STOPPED, INTERRUPTED = 75, 130
"""Exit codes: preempted and resumable (EX_TEMPFAIL); Ctrl-C."""


class Stopped(Exception):
    """Training was asked to stop and has saved its state.

    Args:
        code: what the process should exit with.
        step: optimiser steps done and saved.
    """

    def __init__(self, code: int, step: int) -> None:
        super().__init__(f"stopped after step {step}, saved and resumable")
        self.code, self.step = code, step


class Watch:
    """While active, SIGTERM, SIGUSR1 and Ctrl-C are remembered instead of ending the process.

    A second Ctrl-C ends it at once. Outside the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.code = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.code == INTERRUPTED:
            raise KeyboardInterrupt
        self.code = INTERRUPTED if number == signal.SIGINT else STOPPED
