"""Schedules are functions of progress alone, with the papers' formulas."""

import dataclasses
import math

import pytest

from erg.schedule import Constant, Cosine, Linear, Schedule, Step, WarmupCosine

EVERY: list[Schedule] = [
    Constant(0.3),
    Linear(0.996, 1.0),
    Cosine(0.996, 1.0),
    WarmupCosine(2.0),
    WarmupCosine(2.0, warmup=0.1, end=0.002),
    Step(0.75, 1.0),
]


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.25, 0.5, 0.8, 1.0])
def test_formulas(progress: float) -> None:
    p = progress
    assert Constant(0.3)(p) == 0.3
    assert Linear(0.996, 1.0)(p) == pytest.approx(0.996 * (1 - p) + 1.0 * p, abs=1e-15)
    # The momentum of BYOL, MoCo v3 and DINO: 1 - (1 - m0) (1 + cos(pi p)) / 2.
    momentum = 1 - (1 - 0.996) * 0.5 * (1 + math.cos(math.pi * p))
    assert Cosine(0.996, 1.0)(p) == pytest.approx(momentum, abs=1e-15)


def test_ends_are_exact() -> None:
    assert (Linear(0.2, 3.0)(0.0), Linear(0.2, 3.0)(1.0)) == (0.2, 3.0)
    assert (Cosine(0.25, 1.0)(0.0), Cosine(0.25, 1.0)(1.0)) == (0.25, 1.0)
    assert Cosine(3.0, 1.0)(0.5) == pytest.approx(2.0)
    rate = WarmupCosine(2.0, warmup=0.25, end=0.5)
    assert rate(0.0) == 0
    assert rate(0.125) == pytest.approx(1.0)
    assert rate(0.25) == 2.0
    assert rate(0.625) == pytest.approx(1.25)
    assert rate(1.0) == pytest.approx(0.5)
    assert [Step(0.75, 1.0, at=0.4)(p) for p in (0.0, 0.399, 0.4, 1.0)] == [0.75, 0.75, 1.0, 1.0]


def test_warm_up_meets_the_cosine() -> None:
    rate = WarmupCosine(2.0, warmup=0.1)
    assert rate(0.1 - 1e-9) == pytest.approx(rate(0.1), abs=1e-6)
    values = [rate(i / 1000) for i in range(1001)]
    assert max(values) == 2.0
    assert values.index(2.0) == 100
    assert values[:101] == sorted(values[:101])
    assert values[100:] == sorted(values[100:], reverse=True)
    assert WarmupCosine(2.0)(0.0) == 2.0


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_outside_training_is_its_nearest_end(schedule: Schedule) -> None:
    assert schedule(-0.1) == schedule(0.0)
    assert schedule(1.1) == schedule(1.0)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_is_frozen_data(schedule: Schedule) -> None:
    assert dataclasses.is_dataclass(schedule)
    assert dataclasses.replace(schedule) == schedule
    assert hash(schedule) == hash(dataclasses.replace(schedule))
    name = dataclasses.fields(schedule)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, name, 1.0)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 2.0])
def test_warm_up_is_a_share(warmup: float) -> None:
    with pytest.raises(ValueError, match=r"share of training in \[0, 1\)"):
        WarmupCosine(1.0, warmup=warmup)
