"""Several processes from one command, in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from erg.train.launch import MARKER, leave, relaunch

SMALL = ["--encoder", "conv", "--image-size", "32", "--batch", "24", "--no-report"]
ERG = [sys.executable, "-m", "erg.cli", "pretrain", "synthetic:120", *SMALL, "--devices", "2"]


def test_two_devices_train_one_run_and_talk_once(tmp_path: Path) -> None:
    command = [*ERG, "--steps", "3", "--method", "SwAV", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("The encoder is in") == 1
    events = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in events if '"kind": "step"' in line]
    assert steps == [1, 2, 3]


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
    assert leave(2) == 2
    assert leave(0) == 0
    assert os.environ[MARKER] == str(marker)


def test_several_nodes_are_explained() -> None:
    with pytest.raises(ValueError, match="torchrun --nnodes 2"):
        relaunch(["pretrain", "x"], devices=4, nodes=2)
