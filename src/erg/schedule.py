"""Schedules: values as functions of the fraction of training done, never of hidden counters.

A schedule is frozen data, so that it can stand in a run.json and be read back.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Schedule(ABC):
    """A value that depends on progress alone."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The value when the fraction `progress` in [0, 1] of training is done."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value throughout.

    Args:
        value: the value.
    """

    value: float

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """From start to end in a straight line.

    Args:
        start: value at progress 0.
        end: value at progress 1.
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class Cosine(Schedule):
    """From start to end along half a cosine: end - (end - start) (1 + cos(pi p)) / 2.

    Args:
        start: value at progress 0.
        end: value at progress 1.
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        progress = min(max(progress, 0.0), 1.0)
        return self.end - (self.end - self.start) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear from 0 to the peak during warm-up, then half a cosine down to the end.

    Args:
        peak: largest value, reached when warm-up ends.
        warmup: share of training spent warming up, in [0, 1).
        end: value at progress 1.

    Raises:
        ValueError: warmup is not in [0, 1).
    """

    peak: float
    warmup: float = 0.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of training in [0, 1) (got {self.warmup}).")

    def __call__(self, progress: float) -> float:
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.warmup:
            return self.peak * progress / self.warmup
        return Cosine(self.peak, self.end)((progress - self.warmup) / (1 - self.warmup))


@dataclass(frozen=True)
class Step(Schedule):
    """One value until some progress, another from then on.

    Args:
        start: value before.
        end: value from then on.
        at: progress at which it changes.
    """

    start: float
    end: float
    at: float = 0.5

    def __call__(self, progress: float) -> float:
        return self.start if progress < self.at else self.end
