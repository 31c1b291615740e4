"""How commands talk: lines, and a progress bar with speed, time left, loss and health."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from erg.train.launch import leads

if TYPE_CHECKING:
    from erg.train.training import Progress as Training


class _Console(Console):
    """What nobody reads, or cannot be shown, ends no work."""

    def on_broken_pipe(self) -> None:
        """The reader has left (`erg ... | head`): the work goes on, unread."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # also for what waits there to be flushed
        os.close(nowhere)

    def print(self, *objects: Any, **how: Any) -> None:
        """Letters that the encoding of stdout lacks are escaped, as stderr does by itself."""
        stream = self.file
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
        super().print(*objects, **how)


console = _Console(highlight=False, soft_wrap=True)

_OBEYED = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What terminals obey rather than show: control characters, and marks that reorder a line."""


def inert(text: str) -> str:
    """Text that moves nothing, colours nothing and hides nothing on a terminal; names of files and
    classes may hold anything."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def tell(line: str) -> None:
    """One line of plain text; names of files are never taken for markup."""
    if leads():
        console.print(Text(inert(line)))


def warn(line: str) -> None:
    """A warning, in yellow where colours are shown."""
    if leads():
        console.print(Text(inert(line), style="yellow"))


@contextmanager
def counting(what: str, *, at_once: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar for (done, in all), at once or with the first count; nothing is drawn where nobody
    looks."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not _seen()) as bar:
        task = bar.add_task(what, total=None, visible=at_once)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def compiling() -> None:
    """What makes views is compiled, with a bar, where no command on this machine has done it yet.

    Of several processes the first does it; the others find its work when they need it.
    """
    if leads():
        from erg.views.kernels import compile_kernels

        with counting("Compiling, once on this machine", at_once=False) as progress:
            compile_kernels(progress)


@contextmanager
def training() -> Iterator[Callable[[Training], None]]:
    """A bar for training; where nobody looks, a line now and then."""
    columns = (
        SpinnerColumn(), TaskProgressColumn(), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not _seen()) as bar:
        task = bar.add_task("", total=None)
        warned: set[str] = set()
        shown = -1

        def show(now: Training) -> None:
            nonlocal shown
            bar.update(task, completed=now.step, total=now.steps, description=in_short(now))
            warning = now.health.get("warning")
            if warning and warning not in warned:
                warned.add(warning)
                warn(warning)
            tenth = 10 * now.step // now.steps
            if not _seen() and tenth > shown:
                shown = tenth
                tell(f"step {now.step} of {now.steps}  {in_short(now)}")

        yield show


def in_short(now: Training) -> str:
    """Speed, loss and health on one line."""
    parts = [f"{now.images_per_second:.0f} images/s", f"loss {now.loss.get('loss', 0):.3f}"]
    for key, name in (("knn", "20-NN"), ("auroc", "AUROC"), ("rank", "rank"), ("std", "spread")):
        if key in now.health:
            value = now.health[key]
            parts.append(f"{name} {value:.1f}" if key == "rank" else f"{name} {value:.2f}")
    return "  ".join(parts)


def _seen() -> bool:
    return leads() and console.is_terminal and sys.stdout.isatty()
