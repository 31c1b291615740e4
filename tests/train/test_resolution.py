"""Views that are smaller at first."""

import gc
import json
import signal
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erg.cli import main
from erg.recipes.default import Seen, default
from erg.schedule import Constant, Cosine, Linear, Step
from erg.train.checkpoint import state_hash
from erg.train.loop import Data, Loop
from erg.train.preempt import Stopped
from erg.train.run import Run
from tests.train.test_training import StopAt, a_run, data, trained

EARLY = Step(0.75, 1.0)


def sizes(run: Run) -> list[int]:
    """Sides of the views of each step."""
    loop = Loop(run, data(method=run.method), device=torch.device("cpu"), threads=0)
    try:
        found = [loop.loader.views(step).main[0].data.shape[-1] for step in range(run.steps)]
        whole = loop.loader.make(loop.data.held[:2], epoch=0)
        assert whole.main[0].data.shape[-1] == run.image_size  # what is watched is not smaller
    finally:
        loop.close()
    return found


def test_sides_follow_progress_in_steps_of_8_pixels() -> None:
    assert sizes(a_run(resolution=EARLY)) == [24, 24, 24, 32, 32, 32]
    assert sizes(a_run()) == [32] * 6
    growing = a_run(resolution=Linear(0.25, 1.0), steps=12)
    assert [growing.side(step) for step in (0, 2, 7, 11)] == [8, 16, 24, 32]
    assert a_run(resolution=Constant(0.01)).side(0) == 8
    for size in (4, 30, 34, 100):
        assert a_run(image_size=size).side(0) == size
        run = a_run(image_size=size, resolution=Linear(0.5, 0.999), steps=100)
        assert max(run.side(step) for step in range(100)) <= size


def test_sides_say_when_and_how_long() -> None:
    assert a_run(resolution=EARLY, steps=200).sides() == {24: (0, 0.5), 32: (100, 0.5)}
    assert a_run().sides() == {32: (0, 1.0)}
    sides = a_run(resolution=Cosine(0.5, 1.0), steps=1000).sides()
    assert list(sides) == [16, 24, 32]
    assert sum(share for _, share in sides.values()) == pytest.approx(1)


def test_a_run_stopped_where_sizes_change_is_resumed_exactly(tmp_path: Path) -> None:
    run = a_run("DINO", resolution=EARLY)
    through = trained(run, tmp_path / "through")
    for step in (3, 4):
        folder = tmp_path / str(step)
        with pytest.raises(Stopped):
            trained(run, folder, show=StopAt(step, signal.SIGTERM))
        resumed = trained(run, folder, resume=True, threads=2)
        assert state_hash(resumed.method) == state_hash(through.method)


@pytest.mark.parametrize("method", ["MAE", "Autoencoder", "RelativePosition", "KMeans", "Rotation"])
def test_methods_of_parts_and_of_what_they_are_given_refuse_it(method: str) -> None:
    with pytest.raises(ValueError, match=r"their size .*to 24 of 32.*Leave resolution out"):
        Loop(a_run(method, resolution=EARLY), data(method=method), device=torch.device("cpu"))


def test_vectors_and_encoders_of_one_size_refuse_it() -> None:
    rows, vectors = np.arange(40), np.random.default_rng(0).normal(size=(40, 32))
    run = a_run("VICReg", encoder="mlp", encoder_args={}, resolution=EARLY)
    with pytest.raises(ValueError, match="Leave resolution out"):
        Loop(run, Data(vectors, rows[:32], rows[32:]), device=torch.device("cpu"))
    one = {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}
    run = a_run(encoder="vit_tiny_patch16_224", encoder_args=one, resolution=EARLY)
    with pytest.raises(ValueError, match="of 24 pixels"):
        Loop(run, data(), device=torch.device("cpu"))


def test_minutes_count_steps_of_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of smaller views are made up to last 1 s, others 3 s."""
    run = a_run(resolution=EARLY, steps=400)
    loop = Loop(run, data(), device=torch.device("cpu"), threads=0)
    clock = [0.0]

    def step(number: int, batches: Any) -> dict[str, torch.Tensor]:
        clock[0] += 1.0 if batches[0].main[0].data.shape[-1] == 24 else 3.0
        assert batches[0].main[0].data.shape[-1] == run.side(number)
        return {}

    monkeypatch.setattr("erg.train.loop.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(loop, "step", step)
    assert loop.trial() == pytest.approx(2.0)
    loop.run = replace(run, steps=1)  # too short for both
    assert loop.trial() == pytest.approx(1.0)
    loop.close()


@pytest.mark.parametrize("share", [float("nan"), float("inf"), 75.0, 0.0, -1.0])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="resolution is a share of image_size"):
        a_run(resolution=Step(share, 1.0))


def test_a_dry_run_counts_steps_of_both_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock goes on by 1 s for smaller views, by 3 s for others."""
    clock = [0.0]

    def step(loop: Loop, number: int, batches: Any) -> dict[str, torch.Tensor]:
        clock[0] += 1.0 if batches[0].main[0].data.shape[-1] == 24 else 3.0
        return {}

    monkeypatch.setattr("erg.commands.dry_run.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(Loop, "step", step)
    command = ["pretrain", "synthetic:64", "--dry-run", "--encoder", "conv", "--batch", "16"]
    assert main([*command, "--image-size", "32", "--steps", "30", "--early", "0.75"]) == 0
    assert "about 2.00 s a step, 1.0 minutes in all" in capsys.readouterr().out


def test_a_loop_is_gone_when_nobody_holds_it() -> None:
    """It holds the mapping of the decoded images, whose disk space is free then."""
    loop = Loop(a_run(), data(), device=torch.device("cpu"), threads=0)
    gone = weakref.ref(loop)
    gc.collect()
    gc.disable()
    try:
        loop.close()
        del loop
        assert gone() is None
    finally:
        gc.enable()


def test_default_choices_and_the_command(tmp_path: Path) -> None:
    small = Seen(50_000, 32, False)
    for given in ({"encoder": "resnet18"}, {"resolution": Constant(1.0)}, {"method": "MoCo"}):
        assert default(small, **given)[0].resolution == Constant(1.0)
    assert default(Seen(50_000, 96, False))[0].resolution == Constant(1.0)
    assert default(Seen(50_000, 32, True))[0].resolution == Constant(1.0)
    out = tmp_path / "run"
    command = ["pretrain", "synthetic:64", "--out", str(out), "--encoder", "conv", "--batch", "16"]
    assert main([*command, "--steps", "2", "--no-report", "--early", "0.5"]) == 0
    told = json.loads((out / "run.json").read_text())
    assert told["resolution"] == {"type": "Step", "start": 0.5, "end": 1.0, "at": 0.5}
    assert Run.from_json(told).resolution == Step(0.5, 1.0)
