"""Four methods collapse without the part that keeps them from it, and the monitor says so.

By training, in a world of vectors without gaps: each method complete, and a subclass without that
part, trained alike. Here F is of the encoder's own output, whose spread the monitor tells, without
a projector in between: behind one z can collapse while that output stays.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from erg import energy
from erg.encoders import Encoder
from erg.method import Loss
from erg.methods.byol import BYOL
from erg.methods.dino import DINO
from erg.methods.simsiam import SimSiam
from erg.methods.vicreg import VICReg
from erg.parts.teacher import Teacher
from erg.schedule import Constant
from erg.train.folder import RunFolder
from erg.train.health import Health
from erg.train.loop import Data, Loop
from erg.train.run import Optimiser, Run
from erg.train.training import train
from erg.views.plan import WHOLE, two_views
from erg.views.types import Views

QUICK = Constant(0.9)
"""Momentum of teachers: at 0.996 they hardly move in some hundred steps."""


class PlainBYOL(BYOL):
    """Complete."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, hidden=64, dim=encoder.dim, momentum=QUICK)
        self.projector = nn.Sequential()
        self.teacher = Teacher(nn.Sequential(encoder))


class BYOLWithoutPredictor(PlainBYOL):
    """z itself has to be the teacher's z'."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.predictor = nn.Sequential()


class PlainSimSiam(SimSiam):
    """Complete."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, dim=encoder.dim)
        self.projector = nn.Sequential()


class SimSiamWithoutStopGradient(PlainSimSiam):
    """Both sides move towards each other."""

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = (self.project(view) for view in views.need(2))
        both = energy.cosine(self.predictor(x), y) + energy.cosine(self.predictor(y), x)
        return Loss(pull={"invariance": both.mean() / 2})


class PlainVICReg(VICReg):
    """Complete."""

    def __init__(self, encoder: Encoder, *, variance: float = 25.0) -> None:
        super().__init__(encoder, hidden=64, dim=encoder.dim, variance=variance)
        self.expander = nn.Sequential()


class VICRegWithoutVariance(PlainVICReg):
    """Only the covariance is left, which is least where nothing varies."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, variance=0.0)


class PlainDINO(DINO):
    """Complete; the directions stay as they are, or they would collapse in the encoder's place."""

    def __init__(self, encoder: Encoder, **arguments: Any) -> None:
        super().__init__(
            encoder, prototypes=256, dim=encoder.dim, momentum=QUICK, freeze=1.0, small_crops=0,
            **arguments,
        )  # fmt: skip
        self.head = nn.Sequential(self.prototypes)
        self.teacher = Teacher(nn.Sequential(encoder, self.head))


class DINOWithoutCentringAndSharpening(PlainDINO):
    """The centre stays 0, and the teacher's temperature is the student's."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, centre=1.0, teacher_start=0.1, teacher_end=0.1)


def looks(method: str, folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    """What the monitor saw of a method of this file before, in the middle of and after training."""
    points = np.random.default_rng(seed).normal(size=(576, 8)).astype(np.float32)
    run = Run(
        method=f"{__file__}:{method}", encoder="mlp", image_size=8, seed=seed, precision="32",
        encoder_args={"width": 64, "depth": 2, "dim": 16}, batch=128, steps=500,
        plan=two_views(replace(WHOLE, noise=0.5)), optimiser=Optimiser(lr=0.02, weight_decay=0.0),
    )  # fmt: skip
    data = Data(points, np.arange(512), np.arange(512, 576))
    loop = Loop(run, data, device=torch.device("cpu"), threads=0)
    try:
        train(loop, RunFolder(folder), observers=(Health(looks=2),))
    finally:
        loop.close()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "health"]


@pytest.mark.parametrize(
    ("complete", "without"),
    [
        (PlainBYOL, BYOLWithoutPredictor),
        (PlainSimSiam, SimSiamWithoutStopGradient),
        (PlainVICReg, VICRegWithoutVariance),
        (PlainDINO, DINOWithoutCentringAndSharpening),
    ],
)
def test_only_without_what_prevents_it_a_method_collapses_and_the_monitor_says_so(
    complete: type, without: type, tmp_path: Path
) -> None:
    healthy = looks(complete.__name__, tmp_path / "complete")
    assert len(healthy) == 3
    assert not [look["warning"] for look in healthy if "warning" in look]
    assert healthy[-1]["std"] > 0.3
    start, *_, end = looks(without.__name__, tmp_path / "without")
    same = {key: start[key] for key in ("auroc", "apart")}
    assert start == healthy[0] | same  # of the same encoder
    assert end["std"] < 0.02 < 0.3 < start["std"]
    assert "Collapse: all images embed almost alike (spread 0.0" in end.get("warning", "")


class ProjectedBYOL(BYOL):
    """Complete, with its projector."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, hidden=64, dim=16, momentum=QUICK)


class ProjectedBYOLWithoutPredictor(ProjectedBYOL):
    """z itself has to be the teacher's z'."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.predictor = nn.Sequential()


def test_a_collapse_behind_the_projector_is_told_by_energies(tmp_path: Path) -> None:
    """Where they have a scale: cosines. VICReg's start as near to 0 as they end."""
    healthy = looks(ProjectedBYOL.__name__, tmp_path / "complete")
    assert not [look["warning"] for look in healthy if "warning" in look]
    end = looks(ProjectedBYOLWithoutPredictor.__name__, tmp_path / "without")[-1]
    assert "Collapse: the energies of all pairs are almost the same" in end.get("warning", "")
