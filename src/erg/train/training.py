"""The course of a run: its steps, what watches them, and its checkpoints, from any step on."""

import copy
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from erg import distributed
from erg.data.loader import Images
from erg.data.masked import Masked
from erg.data.source import DataError
from erg.data.stream import Stream
from erg.method import Method
from erg.train.checkpoint import Diverged, load_checkpoint, save_checkpoint, state_hash
from erg.train.folder import RunFolder
from erg.train.health import Health, Observer, Watched
from erg.train.log import Clock, Log
from erg.train.loop import Loop
from erg.train.preempt import STOPPED, Stopped, Watch
from erg.train.run import Run
from erg.train.shortcut import Shortcut
from erg.views.types import Views

IN_A_ROW = 10
"""Steps that may be left out one after another; a run that needs more has diverged."""

RETURNS = 100
"""Places in a run that it can go back to, evenly spaced, the start among them."""

Show = Callable[["Progress"], None]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Progress:
    """Where training is, for whoever shows it.

    Args:
        step: optimiser steps done.
        steps: in all.
        images_per_second: over the last second or so, of all processes.
        loss: the last loss logged, by part.
        health: the last look of an observer.
    """

    step: int
    steps: int
    images_per_second: float
    loss: dict[str, float]
    health: dict[str, Any]


@distributed.counting_on_others()
def train(
    loop: Loop,
    folder: RunFolder,
    *,
    observers: Sequence[Observer] = (),
    show: Show | None = None,
    tell: Tell | None = None,
    resume: bool = False,
) -> Method:
    """All steps of a run, from the start or from the newest whole checkpoint.

    Args:
        loop: of the run.
        folder: where it is written.
        observers: who watches.
        show: called with progress.
        tell: called with lines worth printing.
        resume: go on from the newest checkpoint that is whole.

    Raises:
        Stopped: a signal asked for it; the state is saved.
        Diverged: the loss or a gradient is not finite and the run is to stop, or it was so too
            often; nothing after the last checkpoint is kept.
        Lost: another process has died or does not answer; nothing after the last checkpoint is
            kept.
    """
    restored = load_checkpoint(folder.checkpoints, loop.method, loop.optimiser) if resume else None
    done = restored.step if restored else 0
    if restored and restored.skipped and tell is not None:
        tell(f"Damaged, so left out: {', '.join(restored.skipped)}. Going on from step {done}.")
    if distributed.rank() == 0:
        folder.truncate(done or -1)
    return Training(loop, folder, observers, show, tell).from_step(done)


class Training:
    """A run under way on this process, in a folder that holds nothing after its first step.

    Args:
        loop: of the run.
        folder: where it is written.
        observers: who watches.
        show: called with progress.
        tell: called with lines worth printing.
    """

    def __init__(
        self,
        loop: Loop,
        folder: RunFolder,
        observers: Sequence[Observer],
        show: Show | None,
        tell: Tell | None,
    ) -> None:
        self.loop, self.run, self.folder, self.observers = loop, loop.run, folder, observers
        self.show, self.tell, self.writes = show, tell, distributed.rank() == 0
        self.clock = Clock(folder, self.writes)
        self.log = Log(folder, self.writes, loop.run)
        self.health: dict[str, Any] = {}
        self.lost: Counter[str] = Counter()
        self.in_a_row = 0
        # Where a run goes back to is a function of the step, not of when it was saved or resumed.
        self.part = max(1, self.run.steps // RETURNS) if self.run.not_finite == "rollback" else 0

    def from_step(self, done: int) -> Method:
        """All steps after the first `done`; the trained method."""
        loop, run = self.loop, self.run
        watched = _watched(run, loop, self.folder.first("health"))
        for observer in self.observers:
            observer.start(watched)
        self.in_a_row = self.folder.in_a_row("left out", done)
        if done == 0:
            if self.part:
                self.save(0)
            loop.after_epoch()
        with Watch() as watch:
            if done == 0:
                self.look(0)
            for step, batches in loop.loader.ahead(
                done, run.steps, depth=0 if loop.device.type == "cpu" else 2
            ):
                parts = self.step(step, batches)
                done = step + 1
                self.note(done, parts)
                if done % loop.loader.steps_per_epoch == 0:
                    loop.after_epoch()
                self.look(done)
                stop = distributed.agree(watch.code != 0, loop.device)
                if stop or self.due(done):
                    self.save(done)
                if stop:  # also after the last step: what follows is left to a resumed run
                    raise Stopped(watch.code or STOPPED, done)
        return loop.whole()

    def step(self, step: int, batches: Sequence[Views]) -> dict[str, torch.Tensor]:
        """The parts of a step's loss; none where the step was left out.

        Raises:
            Diverged: it was not finite, and the run is to stop or has left out too many.
        """
        try:
            parts = self.loop.step(step, batches)
        except Diverged as why:
            self.in_a_row += 1
            if self.run.not_finite == "stop" or self.in_a_row > IN_A_ROW:
                raise
            self.leave_out(step, why)
            return {}
        self.in_a_row = 0
        return parts

    def leave_out(self, step: int, why: Diverged) -> None:
        """Go on without a step; where the run is to go back, with what was there before it."""
        loop, what = self.loop, str(why).partition(". ")[0]
        said = f"{what[0].upper()}{what[1:]}; the step was left out."
        if self.part:
            start = step // self.part * self.part
            back = load_checkpoint(
                self.folder.checkpoints, loop.method, loop.optimiser, until=start
            )  # fmt: skip
            if back is None:
                raise why
            if back.step == 0:
                loop.after_epoch()  # as at the start: the first checkpoint is from before it
            said += f" The weights are those after step {back.step} again."
        self.warn(step + 1, "left out", said)

    def note(self, done: int, parts: dict[str, torch.Tensor]) -> None:
        """Log what is due after some steps, and show it."""
        every = max(1, self.run.steps // 2000)
        if done % every and done not in (1, self.run.steps):
            return
        if parts:
            self.log.take(done - 1, parts)
        self.count_lost(done)
        speed = self.clock.tick(done, self.loop.loader.batch)
        if self.show is not None and self.writes:
            self.show(Progress(done, self.run.steps, speed, self.log.last, dict(self.health)))

    def count_lost(self, done: int) -> None:
        """Say how many images were readable and are not any more, where there are new ones."""
        for what, (mine, instead) in _lost(self.loop.data.images).items():
            everyone = sum(distributed.counts(len(mine), self.loop.device))
            if everyone > self.lost[what]:
                self.lost[what] = everyone
                said = f"{everyone} {what} vanished or changed, and {instead}."
                said += f" The last: {list(mine.values())[-1]}" if mine else ""
                self.warn(done, "lost", said, **{what: everyone})

    def warn(self, done: int, kind: str, said: str, **further: Any) -> None:
        """Write a warning into the run and print it."""
        self.log.write()  # what was before it
        if self.writes:
            self.folder.event(done, kind, **further, warning=said)
        if self.tell is not None:
            self.tell(said)

    def look(self, done: int) -> None:
        """Let the observers look whose turn it is."""
        for observer in self.observers:
            if observer.due(done):
                self.log.write()
                # Every rank looks, since a method may speak with the others; rank 0 writes.
                seen = observer.look(self.loop.whole(), done)
                self.health.update(seen)
                if self.writes:
                    self.folder.event(done, **seen)

    def due(self, done: int) -> bool:
        """Whether to save after some steps, on which all processes agree."""
        if done == self.run.steps or (self.part and done % self.part == 0):
            return True
        late = self.clock.since_saving() > 60 * self.run.checkpoint_minutes
        return distributed.agree(late, self.loop.device)

    def save(self, done: int) -> None:
        """Write a checkpoint, once all processes are known to hold the same."""
        _assert_equal_ranks(self.loop.method)
        self.log.write()
        if self.writes:
            self.folder.flush()
        if self.writes or self.loop.sharded:
            save_checkpoint(
                self.folder.checkpoints, done, self.loop.method, self.loop.optimiser,
                writes=self.writes, keep=done // self.part * self.part if self.part else None,
            )  # fmt: skip
        distributed.agree(False, self.loop.device)  # the others wait until it is whole
        self.clock.saved()


@distributed.counting_on_others()
def measured(
    run: Run, loop: Loop, minutes: float, started: float, observers: Sequence[Observer] = ()
) -> Run:
    """The run with as many steps as fit into `minutes`, of which some are gone.

    A twentieth is kept for saving. What `Health` and `Shortcut` take is measured too, on copies of
    them: with a large encoder a look at the held-out images lasts as long as many steps.

    Args:
        run: whose steps are counted.
        loop: of the run.
        minutes: in all [minutes].
        started: `time.monotonic()` from which they count.
        observers: who will watch.
    """
    seconds = float(distributed.mean(torch.tensor([loop.trial()], device=loop.device)))
    whole = 0.95 * 60 * minutes
    steps = max(1, int(whole / seconds))
    looks = 0.0
    for observer in observers:
        if isinstance(observer, Health | Shortcut):
            own = copy.copy(observer)
            own.start(_watched(replace(loop.run, steps=steps), loop))
            for step in (0, 1) if own.due(0) else ():  # the first look is a longer one
                start = time.monotonic()
                own.look(loop.whole(), step)
                due = 1 if step == 0 else sum(own.due(later) for later in range(1, steps + 1))
                looks += (time.monotonic() - start) * due
    left = whole - looks - (time.monotonic() - started)
    left = float(distributed.mean(torch.tensor([left], device=loop.device)))
    return replace(run, steps=max(1, int(left / seconds)))


def _lost(images: Images | np.ndarray) -> dict[str, tuple[dict[int, DataError], str]]:
    """Why images and masks are lost that were readable at first, and what is done instead."""
    masked = isinstance(images, Masked)
    read = {
        "images": (images.images if masked else images, "others stood in for them"),
        "masks": (images.masks if masked else None, "their images went without"),
    }
    return {
        what: (each.lost if isinstance(each, Stream) else {}, instead)
        for what, (each, instead) in read.items()
    }


def _watched(run: Run, loop: Loop, before: dict[str, Any] | None = None) -> Watched:
    return Watched(
        loop.loader, loop.data.held, loop.data.labels, loop.device, loop.autocast, run.steps,
        before=before, contents=loop.data.contents,
    )  # fmt: skip


def _assert_equal_ranks(method: Method) -> None:
    """Buffers and weights are equal on all ranks by construction; this says so or stops."""
    if not distributed.active():
        return
    mine = state_hash(method)
    everyone: list[Any] = [None] * distributed.world()
    torch.distributed.all_gather_object(everyone, mine)
    if len(set(everyone)) != 1:
        raise RuntimeError(
            "weights or buffers differ between processes, so this run cannot be trusted. A method "
            "changes state from its local batch; see erg.testing.check_method."
        )
