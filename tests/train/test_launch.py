"""Several processes from one command, in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from erg.train import fit as fits
from erg.train.fit import fit
from erg.train.folder import RunFolder
from erg.train.launch import MARKER, first_to_fail, leave, relaunch
from erg.train.preempt import STOPPED, Stopped
from erg.train.run import Run
from erg.train.training import Progress
from tests.test_every_method import SMALL as METHODS

SMALL = ["--encoder", "conv", "--image-size", "32", "--batch", "24", "--no-report"]
ERG = [sys.executable, "-m", "erg.cli", "pretrain", "synthetic:120", *SMALL, "--devices", "2"]


def test_a_group_asked_to_stop_leaves_with_75(tmp_path: Path) -> None:
    out = tmp_path / "run"
    group = subprocess.Popen(
        [*ERG, "--steps", "100000", "--out", str(out)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    events = out / "events.jsonl"
    for _ in range(900):
        if (events.exists() and '"kind": "step"' in events.read_text()) or group.poll() is not None:
            break
        time.sleep(0.1)
    group.send_signal(signal.SIGTERM)
    _, error = group.communicate(timeout=100)
    assert group.returncode == 75, error[-2000:]
    assert list((out / "checkpoints").glob("*.safetensors"))


def test_a_worker_leaves_quietly_and_the_parent_hears(tmp_path, monkeypatch) -> None:
    marker = tmp_path / "code"
    assert leave(75) == 75, "alone, the code is the code"
    monkeypatch.setenv(MARKER, str(marker))
    monkeypatch.setenv("RANK", "1")
    assert leave(75) == 0
    assert not marker.exists()
    monkeypatch.setenv("RANK", "0")
    assert leave(75) == 0
    assert marker.read_text() == "75"
    assert leave(130) == 0
    assert marker.read_text() == "130", "Ctrl-C"
    assert leave(2) == 2
    assert leave(0) == 0
    assert marker.read_text() == "2"
    assert (leave(1), leave(75)) == (1, 0), "which follows from it"
    assert marker.read_text() == "2"
    marker.unlink()
    assert leave(1) == 1
    assert leave(75) == 0
    assert leave(1) == 1
    assert marker.read_text() == "75", "the others were lost since this one was asked to stop"
    assert os.environ[MARKER] == str(marker)


def test_the_first_of_each_attempt_and_job_to_fail_says_so(tmp_path, monkeypatch) -> None:
    for job in ("code-1", "code-2"):
        monkeypatch.setenv(MARKER, str(tmp_path / job))
        for attempt in ("0", "1"):
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
            assert first_to_fail()
            assert not first_to_fail()


def test_a_dead_process_is_no_wish_to_stop(monkeypatch) -> None:
    """The launcher asks the others to stop when one has died; nobody asked the command."""
    code = "import os, sys; open(os.environ['ERG_EXIT_CODE_FILE'], 'w').write('75'); sys.exit(1)"
    started = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda _, **kind: started([sys.executable, "-c", code], **kind)
    )
    assert relaunch(["pretrain", "x"], devices=2) == 1


def test_several_nodes_are_explained() -> None:
    with pytest.raises(ValueError, match="torchrun --nnodes 2"):
        relaunch(["pretrain", "x"], devices=4, nodes=2)


def test_two_processes_train_one_run_and_talk_once(tmp_path: Path, capfd, monkeypatch) -> None:
    run = Run(
        method="SwAV", method_args=METHODS["SwAV"], encoder="conv",
        encoder_args={"width": 4, "stages": 2}, image_size=16, data="synthetic:120", batch=24,
        steps=3,
    )  # fmt: skip
    fitted = fit(run, out=tmp_path / "run", devices=2)
    assert fitted.run == run
    assert capfd.readouterr().out.count("The encoder is in") == 1
    events = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert [json.loads(e)["step"] for e in events if '"kind": "step"' in e] == [1, 2, 3]
    before = run.build().state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in fitted.method.state_dict().items())
    with pytest.raises(ValueError, match="take their data from run"):
        fit(run, ["a.png"], out=tmp_path / "other", devices=2)
    monkeypatch.setattr(fits, "relaunch", lambda *_: 2)  # as where it holds a run already
    with pytest.raises(RuntimeError, match="left with 2"):
        fit(run, out=tmp_path / "run", devices=2)


def test_processes_that_were_stopped_tell_after_which_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a method that remembers every image, which the run does not say how many there are."""
    run = Run(
        method="InstanceDiscrimination", encoder="conv", encoder_args={"width": 4, "stages": 2},
        image_size=16, data="synthetic:60", batch=16, steps=5,
    )  # fmt: skip

    def here(_: list[str], devices: int) -> int:
        assert devices == 2
        with pytest.raises(Stopped):
            fit(run, out=tmp_path / "run", observers=(), show=stop_after_three)
        return STOPPED

    def stop_after_three(progress: Progress) -> None:
        if progress.step == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(fits, "relaunch", lambda *_: STOPPED)  # while it reads images
    with pytest.raises(Stopped) as stopped:
        fit(run, out=tmp_path / "run", devices=2)
    assert stopped.value.step is None
    monkeypatch.setattr(fits, "relaunch", here)
    with pytest.raises(Stopped) as stopped:
        fit(run, out=tmp_path / "run", devices=2)
    assert stopped.value.step == 3


def test_processes_go_on_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(method="SimCLR", encoder="conv", image_size=16, data="synthetic:60", steps=5)
    asked: list[list[str]] = []

    def note(command: list[str], _: int) -> int:
        asked.append(command)
        return 2

    monkeypatch.setattr(fits, "relaunch", note)
    folder = RunFolder(tmp_path / "run")

    def resumed(run: Run, **further: Any) -> list[str]:
        with pytest.raises(RuntimeError, match="left with 2"):
            fit(run, out=folder.path, devices=2, resume=True, **further)
        return asked[-1]

    begun = resumed(run, minutes=2.0)
    assert "--from" in begun, "nothing was there to go on with"
    assert begun[begun.index("--minutes") + 1] == "2.0"
    folder.write_run(run.to_json())
    more = resumed(replace(run, steps=9, optimiser=replace(run.optimiser, lr=0.25)))
    assert more[1:3] == ["--resume", str(folder.path)]
    assert more[more.index("--steps") + 1] == "9"
    assert more[more.index("--lr") + 1] == "0.25"
    measured = resumed(run, minutes=2.0)
    assert "--steps" not in measured
    assert "--minutes" not in measured


def test_the_parent_leaves_with_the_code_of_a_worker_that_fails(tmp_path: Path, capfd) -> None:
    assert relaunch(["report", str(tmp_path / "absent")], devices=2) == 3
    assert capfd.readouterr().err.count("erg: ") == 1, "one of them says why"
