"""The loop: exact, resumable, honest about what went wrong."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from erg import catalog
from erg.train.checkpoint import Diverged, state_hash
from erg.train.fit import InMemory
from erg.train.folder import Busy, RunFolder
from erg.train.health import Health
from erg.train.loop import Data, Loop, measured, train
from erg.train.preempt import Stopped
from erg.train.run import Optimiser, Run
from tests.test_every_method import SMALL

VIT = ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2})
ENCODERS = {
    "BERT": ("sequence", {"vocabulary": 16, "width": 16, "depth": 1, "heads": 2}),
    "DelayedTransformer": ("sequence", {"vocabulary": 16, "width": 16, "depth": 1, "heads": 4}),
    "ConvolutionalSparseCoding": ("pixels", {"side": 6}),
    "MAE": VIT,
    "IJEPA": VIT,
    "Data2Vec": VIT,
    "IBOT": VIT,
    "DINOv2": VIT,
    "MSN": VIT,
    "SimMIM": VIT,
    "KMeans": ("pixels", {"side": 4}),
    "MaximumLikelihood": ("conv", {"width": 1, "stages": 2}),
}


def data(n: int = 40, held: int = 8, method: str = "SimCLR") -> Data:
    random = np.random.default_rng(0)
    if method in ("BERT", "DelayedTransformer"):
        rows = np.arange(n)
        return Data(random.integers(0, 16, (n, 32)), rows[:-held], rows[-held:], rows % 3)
    coarse = random.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    images = [np.kron(c, np.ones((8, 8, 1), dtype=np.uint8)) for c in coarse]
    rows = np.arange(n)
    return Data(InMemory(images), rows[:-held], rows[-held:], rows % 3)


def a_run(method: str = "SimCLR", **changes: object) -> Run:
    encoder, arguments = ENCODERS.get(method, ("conv", {}))
    run = Run(
        method=method, method_args=SMALL.get(method, {}), encoder=encoder, encoder_args=arguments,
        image_size=32, batch=12, steps=6, optimiser=Optimiser(lr=1e-3), precision="32",
    )  # fmt: skip
    return replace(run, **changes)


def trained(run: Run, folder: Path, *, threads: int = 0, **kwargs: object) -> Loop:
    loop = Loop(run, data(method=run.method), device=torch.device("cpu"), threads=threads)
    try:
        train(loop, RunFolder(folder), observers=(Health(looks=2),), **kwargs)
    finally:
        loop.close()
    return loop


class StopAt:
    """Asks the process to stop after some step, as a scheduler would."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def __call__(self, progress) -> None:
        if progress.step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("method", catalog.names())
def test_stopped_and_resumed_equals_never_stopped(method: str, tmp_path: Path) -> None:
    run = a_run(method)
    through = trained(run, tmp_path / "through")
    with pytest.raises(Stopped) as stopped:
        trained(run, tmp_path / "stopped", show=StopAt(4, signal.SIGTERM))
    assert stopped.value.step == 4  # in the middle of the second epoch of 2.67 steps
    assert stopped.value.code == 75
    resumed = trained(run, tmp_path / "stopped", resume=True, threads=2)
    assert state_hash(resumed.method) == state_hash(through.method)
    events = [(tmp_path / name / "events.jsonl").read_text() for name in ("through", "stopped")]
    assert events[0] == events[1]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_computing_again_changes_no_bit_and_resumes_exactly(name: str, tmp_path: Path) -> None:
    arguments = {
        "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "small_stem": True},
        "vit_tiny_patch16_224": {**VIT[1], "depth": 2, "drop_path_rate": 0.3},
    }[name]
    run = a_run("BYOL", encoder=name, encoder_args=arguments, accumulate=2)
    run = replace(run, optimiser=Optimiser(name="larc", lr=1.0))
    plain = trained(run, tmp_path / "plain")
    frugal = replace(run, recompute=True)
    with pytest.raises(Stopped):
        trained(frugal, tmp_path / "frugal", show=StopAt(4, signal.SIGTERM))
    resumed = trained(frugal, tmp_path / "frugal", resume=True)
    assert state_hash(resumed.method) == state_hash(plain.method)
    events = [(tmp_path / name / "events.jsonl").read_text() for name in ("plain", "frugal")]
    assert events[0] == events[1]


def test_ctrl_c_saves_and_says_130(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped:
        trained(a_run(), tmp_path, show=StopAt(2, signal.SIGINT))
    assert stopped.value.code == 130
    assert (tmp_path / "checkpoints" / "step_000000002.safetensors").exists()


def test_signals_are_as_before_afterwards(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trained(a_run(steps=1), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_equal_runs_are_equal_bit_for_bit_and_seeds_differ(tmp_path: Path) -> None:
    hashes = [
        state_hash(trained(a_run(seed=seed), tmp_path / str(i), threads=threads).method)
        for i, (seed, threads) in enumerate([(0, 0), (0, 3), (1, 0)])
    ]
    assert hashes[0] == hashes[1], "the number of threads changed the result"
    assert hashes[0] != hashes[2]


def test_a_finished_run_resumed_stays_as_it_is(tmp_path: Path) -> None:
    first = trained(a_run(), tmp_path)
    events = (tmp_path / "events.jsonl").read_text()
    again = trained(a_run(), tmp_path, resume=True)
    assert state_hash(first.method) == state_hash(again.method)
    assert (tmp_path / "events.jsonl").read_text() == events


def test_accumulation_of_a_method_without_batch_coupling_changes_nothing(tmp_path: Path) -> None:
    """Rotation's loss is a mean over images; batch statistics are frozen out by evaluation."""
    results = []
    for accumulate in (1, 3):
        run = a_run("DenoisingAutoencoder", accumulate=accumulate, precision="64", steps=3)
        loop = Loop(run, data(), device=torch.device("cpu"), threads=0)
        for part in loop.method.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.train = lambda mode=True, part=part: part  # type: ignore[method-assign]
                part.training = False
        train(loop, RunFolder(tmp_path / str(accumulate)))
        results.append(torch.cat([p.detach().flatten() for p in loop.method.parameters()]))
        loop.close()
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-10)


def test_divergence_stops_with_what_was_bad(tmp_path: Path) -> None:
    run = a_run(optimiser=Optimiser(lr=1e30, warmup=0.0))
    with pytest.raises(Diverged, match="not finite at step"):
        trained(run, tmp_path)


def test_events_are_functions_of_the_step_only(tmp_path: Path) -> None:
    loop = trained(a_run(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for line in steps:
        total = sum(line["pull"].values()) + sum(line["push"].values())
        assert math.isclose(line["loss"], total, rel_tol=1e-6)
        assert not {"seconds", "time"} & set(line)
    assert [line["step"] for line in lines if line["kind"] == "health"] == [0, 3, 6]
    assert loop.method.training


def test_frozen_parameters_do_not_move(tmp_path: Path) -> None:
    run = a_run("SwAV", method_args={**SMALL["SwAV"], "freeze": 1.0, "queue": 0})
    loop = Loop(run, data(), device=torch.device("cpu"), threads=0)
    before = loop.method.prototypes.weight.detach().clone()
    train(loop, RunFolder(tmp_path))
    torch.testing.assert_close(loop.method.prototypes.weight.detach(), before)
    loop.close()


def test_a_trial_leaves_no_trace() -> None:
    for method in ("BYOL", "SwAV", "KMeans"):
        loop = Loop(a_run(method), data(), device=torch.device("cpu"), threads=0)
        before = state_hash(loop.method)
        assert loop.trial(5, lasting=0) > 0
        assert state_hash(loop.method) == before
        assert (loop.optimiser is None) == (method == "KMeans")
        assert loop.optimiser is None or not loop.optimiser.state_dict()["state"]
        loop.close()


def test_one_folder_one_run(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.lock()
    with pytest.raises(Busy, match="another process is training"):
        RunFolder(tmp_path).lock()
    first.unlock()
    second = RunFolder(tmp_path)
    second.lock()
    second.unlock()


def test_a_half_written_event_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.event(1, "step", loss=1.0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"step": 2, "ki')
    folder.truncate(5)
    folder.event(2, "step", loss=2.0)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]


def test_methods_learn_on_vectors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, 5)) * 10
    vectors = (centres[np.arange(200) % 4] + random.normal(size=(200, 5))).astype(np.float32)
    run = Run(
        method="KMeans", method_args={"k": 4}, encoder="identity", image_size=5, batch=50, steps=12
    )
    loop = Loop(run, Data(vectors, np.arange(160), np.arange(160, 200)), threads=0)
    method = train(loop, RunFolder(tmp_path), observers=(Health(looks=1),))
    distance = np.linalg.norm(centres[:, None] - method.prototypes.detach().numpy(), axis=2)
    assert distance.min(axis=1).max() < 1.0, "a well stands at every centre"


def test_minutes_count_what_is_gone_and_what_looking_takes(monkeypatch) -> None:
    """With a clock of the test: a step takes 1 second, a look 5, and 30 are gone."""
    clock = [1000.0]

    class Slow(Health):
        def look(self, method, step):
            clock[0] += 5
            return {}

    run = a_run(steps=10**6)
    loop = Loop(run, data(), device=torch.device("cpu"), threads=0)
    monkeypatch.setattr(loop, "trial", lambda: 1.0)
    monkeypatch.setattr("erg.train.loop.time.monotonic", lambda: clock[0])
    assert measured(run, loop, 10, 970.0).steps == 570 - 30
    # Ten looks and the first one, and the two that were measured.
    assert measured(run, loop, 10, 970.0, [Slow(looks=10)]).steps == 570 - 30 - 11 * 5 - 2 * 5
    assert measured(run, loop, 0.1, 970.0).steps == 1
    loop.close()


def test_a_compiled_encoder_keeps_the_names_of_its_weights(tmp_path: Path) -> None:
    """Under this stance nothing is really compiled, so that the test is quick."""
    with torch.compiler.set_stance("force_eager"):
        loop = trained(a_run(compile=True), tmp_path / "compiled")
    plain = trained(a_run(), tmp_path / "plain")
    assert loop.method.encoder._compiled_call_impl is not None
    assert state_hash(loop.method) == state_hash(plain.method)


@pytest.mark.slow
def test_a_really_compiled_encoder_learns_nearly_the_same(tmp_path: Path) -> None:
    """In processes of their own: the compiler cannot look through the checks of shapes here."""
    found = []
    for name, option in (("compiled", "--compile"), ("plain", "--no-compile")):
        command = [
            sys.executable, "-m", "erg.cli", "pretrain", "synthetic:120", "--encoder", "conv",
            "--image-size", "32", "--batch", "24", "--steps", "2", "--precision", "32",
            "--no-report", "--out", str(tmp_path / name), option,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=500)
        found.append(load_file(tmp_path / name / "encoder" / "model.safetensors"))
    for name, value in found[1].items():
        assert torch.allclose(found[0][name], value, atol=1e-3), name
