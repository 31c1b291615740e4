"""The loop: a step, what it is computed in, and what it waits for."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from erg.method import Loss
from erg.train import loop as loops
from erg.train.checkpoint import Diverged, state_hash
from erg.train.features import features
from erg.train.loop import Loop
from erg.train.run import Optimiser
from erg.views.types import Views
from tests.test_every_method import SMALL
from tests.train.test_training import a_run, data, trained


def test_a_trial_leaves_no_trace() -> None:
    for method in ("BYOL", "SwAV", "KMeans"):
        loop = Loop(a_run(method), data(), device=torch.device("cpu"), threads=0)
        before = state_hash(loop.method)
        assert loop.trial(5, lasting=0) > 0
        assert state_hash(loop.method) == before
        assert (loop.optimiser is None) == (method == "KMeans")
        assert loop.optimiser is None or not loop.optimiser.state_dict()["state"]
        loop.close()


def test_a_compiled_encoder_keeps_the_names_of_its_weights(tmp_path: Path) -> None:
    """Under this stance nothing is really compiled, so that the test is quick."""
    with torch.compiler.set_stance("force_eager"):
        loop = trained(a_run(compile=True), tmp_path / "compiled")
    plain = trained(a_run(), tmp_path / "plain")
    assert loop.method.encoder._compiled_call_impl is not None
    assert state_hash(loop.method) == state_hash(plain.method)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_really_compiled_encoder_learns_nearly_the_same(tmp_path: Path) -> None:
    """In processes of their own: the compiler cannot look through the checks of shapes here."""
    found = []
    for name, option in (("compiled", "--compile"), ("plain", "--no-compile")):
        command = [
            sys.executable, "-m", "erg.cli", "pretrain", "synthetic:120", "--encoder", "conv",
            "--image-size", "32", "--batch", "24", "--steps", "6", "--precision", "32",
            "--no-report", "--out", str(tmp_path / name), option,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=500)
        found.append(load_file(tmp_path / name / "encoder" / "model.safetensors"))
    start = load_file(tmp_path / "plain" / "encoder_start" / "model.safetensors")
    compiled, plain = found
    assert compiled.keys() == plain.keys() == start.keys()
    for name, value in plain.items():
        if name.endswith("weight"):  # by far less than they have moved
            moved = (value - start[name]).norm()
            assert moved > 0, name
            assert (compiled[name] - value).norm() < 0.01 * moved, name
        else:
            assert torch.allclose(compiled[name], value, atol=1e-3), name


@pytest.mark.parametrize(("method", "passes"), [("SeLa", 0), ("DeepCluster", 1), ("KMeans", 3)])
def test_a_pass_over_all_images_is_made_only_where_features_are_looked_at(
    method: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step and after each of two epochs."""
    made: list[int] = []
    monkeypatch.setattr(
        loops, "features", lambda *given, **further: made.append(1) or features(*given, **further)
    )
    loop = Loop(a_run(method), data(method=method), device=torch.device("cpu"), threads=0)
    loop.after_epoch()
    for step in range(2 * loop.loader.steps_per_epoch):
        loop.step(step, loop.loader.batches(step))
        if (step + 1) % loop.loader.steps_per_epoch == 0:
            loop.after_epoch()
    loop.close()
    assert len(made) == passes


def test_views_are_made_by_as_many_threads_as_there_are_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops, "default_threads", lambda: 6)
    loop = Loop(a_run(), data(), device=torch.device("cpu"))
    assert loop.loader.pool is not None
    assert loop.loader.pool._max_workers == 5, "and the one that asks"
    loop.close()


class Unseen(TorchDispatchMode):
    """Fails where the host asks for a number of a device, which it would have to wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func in (aten._local_scalar_dense.default, aten.nonzero.default):
            raise AssertionError(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["SimCLR", "BYOL", "VICReg", "DINO", "MoCo", "SwAV"])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "lars", "larc"])
def test_a_step_on_an_accelerator_waits_for_no_number(
    method: str, optimiser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands for it. Where steps may be left out, each has to be looked at."""
    run = a_run(method, optimiser=Optimiser(name=optimiser, clip=1.0))  # type: ignore[arg-type]
    loop = Loop(run, data(), device=torch.device("cpu"), threads=0)
    monkeypatch.setattr(loop, "device", torch.device("cuda"))
    monkeypatch.setattr(loop, "_to_device", lambda views: views)
    for step in (0, 1):
        batches = loop.loader.batches(step)
        with Unseen():
            parts = loop.step(step, batches)
        assert all(bool(value.isfinite()) for value in parts.values())
    monkeypatch.setattr(loop, "run", replace(run, not_finite="skip"))
    batches = loop.loader.batches(2)
    with pytest.raises(AssertionError, match="makes the host wait"), Unseen():
        loop.step(2, batches)
    loop.close()


def with_a_queue(**changes: object) -> Loop:
    """SwAV with queues that are full after two steps of 12, and used from the first on."""
    arguments = {**SMALL["SwAV"], "queue": 24, "queue_from": 0.0}
    run = a_run("SwAV", method_args=arguments, **changes)
    return Loop(run, data(), device=torch.device("cpu"), threads=0)


def test_a_queue_that_is_full_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, used = with_a_queue(), list[bool]()
    codes = loop.method.codes

    def noted(z: torch.Tensor, queue: Any = None) -> torch.Tensor:
        used.append(queue is not None)
        return codes(z, queue)

    monkeypatch.setattr(loop.method, "codes", noted)
    monkeypatch.setattr(loop, "device", torch.device("cuda"))
    monkeypatch.setattr(loop, "_to_device", lambda views: views)
    for step in range(4):
        batches = loop.loader.batches(step)
        with Unseen():
            loop.step(step, batches)
    loop.close()
    assert used == [False] * 4 + [True] * 4


def test_a_queue_that_a_step_left_out_had_filled_is_not_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = with_a_queue(not_finite="skip", accumulate=3)  # micro-batches of 4
    method, fulls = loop.method, list[bool]()

    def spoiled(views: Views, progress: float) -> Loss:
        loss = method.loss(views, progress)
        fulls.append(method.queue(0).full)
        return Loss(pull={name: value * math.nan for name, value in loss.pull.items()})

    loop.step(0, loop.loader.batches(0))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "step_loss", spoiled)
        with pytest.raises(Diverged, match="not finite"):
            loop.step(1, loop.loader.batches(1))
    assert fulls == [False, False, True]
    assert not method.queue(0).full
    assert int(method.queue(0).pushed) == 12
    loop.step(2, loop.loader.batches(0))
    assert method.queue(0).full
    loop.close()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("32", torch.float32)])
def test_convolutions_are_in_bf16_and_channels_last_and_losses_and_weights_in_float32(
    precision: str, dtype: torch.dtype
) -> None:
    loop = Loop(a_run(precision=precision), data(), device=torch.device("cpu"), threads=0)
    seen: list[tuple[torch.dtype, bool]] = []

    def note(module: torch.nn.Module, given: Any, made: torch.Tensor) -> None:
        seen.append((made.dtype, made.is_contiguous(memory_format=torch.channels_last)))

    convolutions = [m for m in loop.method.modules() if isinstance(m, torch.nn.Conv2d)]
    for each in convolutions:
        each.register_forward_hook(note)
    parts = loop.step(0, loop.loader.batches(0))
    loop.close()
    assert len(seen) == 2 * len(convolutions) > 0
    assert set(seen) == {(dtype, True)}
    assert {value.dtype for value in parts.values()} == {torch.float32}
    assert {p.dtype for p in loop.method.parameters()} == {torch.float32}


def test_of_two_images_one_is_held_out_and_that_is_said() -> None:
    few = replace(data(), train=np.arange(1), held=np.arange(1, 2))
    with pytest.raises(ValueError, match=r"2 images besides those held out \(got 1\)"):
        Loop(a_run(), few, device=torch.device("cpu"), threads=0)


def test_what_is_differentiated_twice_is_not_compiled() -> None:
    with pytest.raises(ValueError, match="ScoreMatching differentiates its encoder twice, which"):
        Loop(a_run("ScoreMatching", compile=True), data(), device=torch.device("cpu"), threads=0)
