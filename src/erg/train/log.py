"""What a run writes as it goes: losses by step, and wall-clock figures apart from them."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from erg.train.checkpoint import Diverged
from erg.train.folder import RunFolder
from erg.train.run import Run


def diverged(what: str, step: int, bad: Sequence[str]) -> Diverged:
    """That something was not finite in a step (numbered from 0), and which parts of it."""
    return Diverged(
        f"{what} is not finite at step {step + 1} ({', '.join(bad)}). Lower --lr, resume from the "
        "last checkpoint with another seed, or leave such steps out (--not-finite skip)."
    )


class Clock:
    """Wall-clock figures, apart from everything a step decides."""

    def __init__(self, folder: RunFolder, writes: bool) -> None:
        self.folder, self.writes, self.before = folder, writes, folder.seconds()
        self.start = self.last = self.checkpoint = time.monotonic()
        self.last_step = -1
        self.speed = 0.0

    def tick(self, step: int, batch: int) -> float:
        """Images per second since the last call; 0 at the first."""
        now = time.monotonic()
        if self.last_step >= 0:
            self.speed = batch * (step - self.last_step) / max(1e-9, now - self.last)
        if self.writes:
            seconds = round(self.before + now - self.start, 3)
            self.folder.timing(step, seconds=seconds, images_per_second=round(self.speed, 1))
        self.last, self.last_step = now, step
        return self.speed

    def since_saving(self) -> float:
        return time.monotonic() - self.checkpoint

    def saved(self) -> None:
        self.checkpoint = time.monotonic()


class Log:
    """Losses as events. On a GPU the values of a step are read when those of the next are there, so
    that logging does not wait for the device; `write` catches up."""

    def __init__(self, folder: RunFolder, writes: bool, run: Run) -> None:
        self.folder, self.writes, self.run = folder, writes, run
        self.dtype = torch.float64 if run.precision == "64" else torch.float32
        self.last: dict[str, float] = {}
        self.waiting: tuple[int, list[str], torch.Tensor, torch.cuda.Event | None] | None = None

    def take(self, step: int, parts: dict[str, torch.Tensor]) -> None:
        """The parts of a step's loss, on the device; those of the step before are written."""
        self.write()
        values = torch.stack([value.detach().to(self.dtype) for value in parts.values()])
        copied = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=self.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self.waiting = (step, list(parts), values, copied)
        if copied is None:
            self.write()

    def write(self) -> None:
        """Write what is waiting.

        Raises:
            Diverged: a value is not finite.
        """
        if self.waiting is None:
            return
        (step, names, values, copied), self.waiting = self.waiting, None
        if copied is not None:
            copied.synchronize()
        parts = dict(zip(names, values.tolist(), strict=True))
        loss = sum(value for name, value in parts.items() if "/" in name)
        if not np.isfinite(loss):
            bad = [name for name, value in parts.items() if not np.isfinite(value)]
            raise diverged("the loss", step, bad)
        self.last = {"loss": loss, **parts}
        if self.writes:
            self.folder.event(step + 1, "step", **self._event(step, loss, parts))

    def _event(self, step: int, loss: float, parts: dict[str, float]) -> dict[str, Any]:
        progress = step / self.run.steps
        event: dict[str, Any] = {
            "progress": round(progress, 6),
            "lr": self.run.optimiser.learning_rate(progress),
            "loss": loss,
        }
        for kind in ("pull", "push"):
            named = {n.split("/", 1)[1]: v for n, v in parts.items() if n.startswith(kind + "/")}
            if named:
                event[kind] = named
        if "grad_norm" in parts:
            event["grad_norm"] = parts["grad_norm"]
        return event
