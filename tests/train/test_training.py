"""The course of a run: exact, resumable, honest about what went wrong."""

import json
import math
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from erg import catalog
from erg.data.cache import Cache
from erg.durable import Unwritable
from erg.method import Loss
from erg.train import loop as loops
from erg.train import training
from erg.train.checkpoint import Diverged, state_hash
from erg.train.fit import fit
from erg.train.folder import Busy, RunFolder
from erg.train.health import Health
from erg.train.loop import Data, Loop
from erg.train.preempt import Stopped
from erg.train.run import Optimiser, Run
from erg.train.training import Progress, measured, train
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
    return Data(Cache.of(images), rows[:-held], rows[-held:], rows % 3)


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


def test_asked_to_stop_in_the_last_step_it_leaves_the_rest_to_a_resumed_run(
    tmp_path: Path,
) -> None:
    with pytest.raises(Stopped) as stopped:
        trained(a_run(), tmp_path, show=StopAt(6, signal.SIGTERM))
    assert (stopped.value.step, stopped.value.code) == (6, 75)
    through = trained(a_run(), tmp_path / "through")
    assert state_hash(trained(a_run(), tmp_path, resume=True).method) == state_hash(through.method)


def test_signals_are_as_before_afterwards(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trained(a_run(steps=1), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_equal_runs_are_equal_bit_for_bit_and_seeds_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "WORTH", 0.0)  # however little there is to do
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
    """A denoising autoencoder's loss is a mean over images; batch statistics are frozen out by
    evaluation."""
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


class Poisoned:
    """In place of a loop's loss: in some steps it, or only its gradient, is no number."""

    def __init__(self, loop: Loop, steps: set[int], what: str) -> None:
        self.loss, self.steps, self.what = loop.step_loss, steps, what
        self.all = loop.run.steps

    def __call__(self, views, progress: float) -> Loss:
        found = self.loss(views, progress)
        if round(progress * self.all) not in self.steps:
            return found
        # The slope of a square root at 0 is infinite.
        worse = (lambda v: v * math.nan) if self.what == "loss" else (lambda v: v + (0 * v).sqrt())
        return Loss(pull={k: worse(v) for k, v in found.pull.items()}, push=found.push)


class States:
    """Watches the state after every step."""

    def __init__(self) -> None:
        self.seen: dict[int, str] = {}

    def start(self, watched) -> None: ...

    def due(self, step: int) -> bool:
        return True

    def look(self, method, step: int) -> dict:
        self.seen[step] = state_hash(method)
        return {"kind": "state", "hash": self.seen[step]}


def poisoned(
    run: Run, folder: Path, steps: set[int], what: str = "loss", **how: object
) -> dict[int, str]:
    """States after the steps of a run of which some are poisoned."""
    loop, states = Loop(run, data(), device=torch.device("cpu"), threads=0), States()
    loop.step_loss = Poisoned(loop, steps, what)
    try:
        train(loop, RunFolder(folder), observers=(states,), **how)
    finally:
        loop.close()
    return states.seen


def left_out(folder: Path) -> list[int]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    out = [line["step"] for line in lines if line["kind"] == "left out"]
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert not set(out) & set(steps)
    return out


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "checkpoints").glob("*.safetensors"))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_stops_the_run_before_it_changes_anything(
    what: str, tmp_path: Path
) -> None:
    run = a_run("BYOL", checkpoint_minutes=0.0)
    with pytest.raises(Diverged, match=rf"^(the|a) {what} is not finite at step 4 \(.+\)\. Lower"):
        poisoned(run, tmp_path, {3}, what)
    assert checkpoints(tmp_path)[-1] == "step_000000003"
    assert math.isfinite(float(sum(t.sum() for t in load_file(
        tmp_path / "checkpoints" / "step_000000003.safetensors").values())))  # fmt: skip


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_skipped_leaves_no_trace(what: str, tmp_path: Path) -> None:
    """Neither in weights and buffers nor in the optimiser; and resuming stays exact."""
    run = a_run("BYOL", checkpoint_minutes=0.0, not_finite="skip", accumulate=2)
    said: list[str] = []
    seen = poisoned(run, tmp_path / "through", {3}, what, tell=said.append)
    assert seen[4] == seen[3]
    assert len(set(seen.values())) == 6
    assert left_out(tmp_path / "through") == [4]
    assert len(said) == 1
    assert f"{what} is not finite at step 4" in said[0]
    with pytest.raises(Stopped):
        poisoned(run, tmp_path / "stopped", {3}, what, show=StopAt(4, signal.SIGTERM))
    saved = [load_file(tmp_path / "stopped" / "checkpoints" / f"step_00000000{i}.safetensors")
             for i in (3, 4)]  # fmt: skip
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    assert poisoned(run, tmp_path / "stopped", {3}, what, resume=True)[6] == seen[6]
    events = [(tmp_path / name / "events.jsonl").read_text() for name in ("through", "stopped")]
    assert events[0] == events[1]


@pytest.mark.parametrize(("method", "bad", "back"), [("BYOL", 3, 2), ("DeepCluster", 1, 0)])
def test_a_run_that_goes_back_goes_on_from_there(
    method: str, bad: int, back: int, tmp_path: Path, monkeypatch
) -> None:
    """To a step that does not depend on when it was saved, stopped or resumed."""
    monkeypatch.setattr(training, "RETURNS", 3)  # of six steps: 0, 2 and 4
    run = a_run(method, checkpoint_minutes=0.0, not_finite="rollback")
    through = tmp_path / "through"
    seen = poisoned(replace(run, checkpoint_minutes=5.0), through, {bad})
    assert seen[bad + 1] == seen[back] != seen[bad]
    assert seen[6] not in [seen[i] for i in range(6)]
    assert left_out(through) == [bad + 1]
    events = (through / "events.jsonl").read_text()
    assert f"The weights are those after step {back} again." in events
    for stop in (bad, bad + 1):
        folder = tmp_path / str(stop)
        with pytest.raises(Stopped):
            poisoned(run, folder, {bad}, show=StopAt(stop, signal.SIGTERM))
        assert poisoned(run, folder, {bad}, resume=True)[6] == seen[6]
        assert (folder / "events.jsonl").read_text() == events


def test_a_run_of_which_no_step_is_finite_stops_whatever_it_is_told(tmp_path: Path) -> None:
    run = a_run(not_finite="skip", steps=20)
    with pytest.raises(Diverged, match="at step 13 "):
        poisoned(run, tmp_path, set(range(2, 20)))
    assert left_out(tmp_path) == list(range(3, 13))
    with pytest.raises(ValueError, match=r"'ignore'\. Use stop, skip or rollback"):
        a_run(not_finite="ignore")


def test_going_back_to_an_older_checkpoint_is_said(tmp_path: Path) -> None:
    run = a_run(checkpoint_minutes=0.0)
    through = trained(run, tmp_path / "through")
    with pytest.raises(Stopped):
        trained(run, tmp_path / "run", show=StopAt(4, signal.SIGTERM))
    newest = tmp_path / "run" / "checkpoints" / "step_000000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    said: list[str] = []
    resumed = trained(run, tmp_path / "run", resume=True, tell=said.append)
    assert said == [f"Damaged, so left out: {newest.name}. Going on from step 3."]
    assert state_hash(resumed.method) == state_hash(through.method)


@pytest.mark.parametrize("minutes", [0.0, 5.0])
def test_a_folder_that_vanishes_during_a_run_is_said_in_one_line(
    minutes: float, tmp_path: Path
) -> None:
    run, out = a_run(checkpoint_minutes=minutes), tmp_path / "run"

    def vanish(progress) -> None:
        if progress.step == 3:
            shutil.rmtree(out)

    with pytest.raises(Unwritable, match=r"cannot be written \(No such file") as failed:
        trained(run, out, show=vanish)
    assert "\n" not in str(failed.value)
    assert not out.exists()


def test_files_that_vanish_during_a_run_are_counted_and_not_fatal(
    tmp_path: Path, monkeypatch
) -> None:
    """A quarter of the files is broken from the start, two more vanish or change on the way."""
    from PIL import Image

    from erg.data import cache
    from erg.data.scenes import world
    from erg.data.source import DataError

    monkeypatch.setattr(cache, "default_budget", lambda _: 0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, image in enumerate(world(60, size=32).images):
        Image.fromarray(image).save(photos / f"{i:03}.png")
        if i % 4 == 0:
            (photos / f"{i:03}.png").write_bytes(b"broken")

    def accident(progress) -> None:
        if progress.step == 2:
            (photos / "001.png").unlink()
            (photos / "002.png").write_bytes((photos / "003.png").read_bytes())

    run = a_run(encoder_args={"width": 4, "stages": 2}, image_size=16, batch=20, steps=8,
                data=str(photos))  # fmt: skip
    with pytest.raises(DataError, match="15 of 60 items"):
        fit(run, out=tmp_path / "refused", observers=())
    said: list[str] = []
    out = tmp_path / "run"
    fit(run, out=out, observers=(), show=accident, tell=said.append, max_skipped=0.3)
    lost = [line for line in said if "vanished or changed" in line]
    assert lost[-1].startswith("2 images vanished or changed, and others stood in for them.")
    assert "was readable before and is not now" in lost[-1]
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines if line["kind"] == "lost"][-1] == 2
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 9))


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
    monkeypatch.setattr("erg.train.training.time.monotonic", lambda: clock[0])
    assert measured(run, loop, 10, 970.0).steps == 570 - 30
    # Ten looks and the first one, and the two that were measured.
    assert measured(run, loop, 10, 970.0, [Slow(looks=10)]).steps == 570 - 30 - 11 * 5 - 2 * 5
    assert measured(run, loop, 0.1, 970.0).steps == 1
    loop.close()


def test_one_image_is_too_few_however_a_batch_is_cut() -> None:
    run = Run(
        method="SimCLR", encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=16,
        batch=16, accumulate=2, steps=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="at least 2 images"):
        Loop(run, data(n=9, held=8))


def test_threads_that_decode_end_with_the_run(tmp_path: Path) -> None:
    def accident(progress: Progress) -> None:
        raise ZeroDivisionError(progress.step)

    run = a_run(encoder_args={"width": 4, "stages": 2}, image_size=16, batch=20, steps=8,
                data="synthetic:60")  # fmt: skip
    with pytest.raises(ZeroDivisionError) as held:
        fit(run, out=tmp_path / "run", observers=(), show=accident, cache_gb=0)
    assert held.value.__traceback__ is not None
    assert not [each for each in threading.enumerate() if each.name.startswith("erg-stream")]
