"""The command line, from the outside."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from erg.cli import COMMANDS, main
from erg.commands import evaluate
from erg.data import manifest
from erg.data.source import open_source
from erg.encoders import load_encoder

QUICK = ["--encoder", "conv", "--image-size", "32", "--batch", "16", "--steps", "4"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 pictures in two classes, and two files that are none."""
    from erg.data.scenes import world

    root = tmp_path_factory.mktemp("pictures")
    scenes = world(60, size=40)
    for i, image in enumerate(scenes.images):
        place = root / ("round" if scenes.factors["shape"][i] == 0 else "other")
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03d}.png")
    (root / "broken.png").write_bytes(b"\x89PNG but not really")
    (root / "page.jpg").write_text("<html>not found</html>")
    return root


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    arguments = ["pretrain", str(pictures), "--out", str(out), "--label", "folder", *QUICK]
    assert main(arguments) == 0
    return out


def test_pretrain_leaves_everything(run: Path) -> None:
    present = {p.name for p in run.iterdir()}
    assert present >= {
        "run.json", "manifest.parquet", "events.jsonl", "timing.jsonl", "checkpoints",
        "encoder_start", "encoder", "scores.json", "pictures", "report.html",
    }  # fmt: skip
    assert not [p for p in present if p.startswith("cache") or p == "lock"], "cleaned up"
    told = json.loads((run / "run.json").read_text())
    assert (told["format"], told["method"], told["steps"]) == (1, "SimCLR", 4)
    assert told["environment"]["torch"]


def test_broken_files_are_listed_with_their_reason(run: Path) -> None:
    rows = pq.read_table(run / "manifest.parquet").to_pylist()
    skipped = {row["path"]: row["reason"] for row in rows if row["status"] == "skipped"}
    assert set(skipped) == {"broken.png", "page.jpg"}
    assert all(skipped.values())
    assert "broken.png" in (run / "report.html").read_text()


def test_evaluate_embed_export_report(run: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", str(run), "--label", "folder"]) == 0
    scores = json.loads((run / "scores.json").read_text())
    assert [row["name"] for row in scores["rows"]] == [
        "encoder", "before training", "PCA", "raw pixels",
    ]  # fmt: skip
    for row in scores["rows"]:
        for score in row["scores"].values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    printed = capsys.readouterr().out
    assert scores["verdict"]["text"].split(":")[0] in printed

    table = tmp_path / "vectors.parquet"
    assert main(["embed", str(run), str(pictures), "--out", str(table), "--label", "folder"]) == 0
    rows = pq.read_table(table)
    assert rows.num_rows == 60
    assert rows.column_names == ["id", "path", "vector", "label"]
    assert set(rows["label"].to_pylist()) == {"round", "other"}

    assert main(["export", str(run), str(tmp_path / "export")]) == 0
    again = tmp_path / "again.parquet"
    assert main(["embed", str(tmp_path / "export"), str(pictures), "--out", str(again)]) == 0
    ours, theirs = (np.stack(pq.read_table(file)["vector"].to_numpy()) for file in (table, again))
    # The run computes in bf16 where the processor has it, an export in float32.
    np.testing.assert_allclose(ours, theirs, rtol=0.1, atol=0.05)

    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert "<html" in (tmp_path / "page.html").read_text()


def test_repeating_a_run_gives_the_same_weights(run: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = ["pretrain", "--from", str(run / "run.json"), "--out", str(tmp_path / "again")]
    assert main([*arguments, "--no-report"]) == 0
    weights = [p / "encoder" / "model.safetensors" for p in (run, tmp_path / "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_is_not_overwritten(run: Path, pictures: Path, capsys) -> None:
    assert main(["pretrain", str(pictures), "--out", str(run), *QUICK]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_dry_run_says_what_it_would_take(pictures: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "never"
    assert main(["pretrain", str(pictures), "--dry-run", "--out", str(out), *QUICK]) == 0
    said = capsys.readouterr().out
    for word in ("Time:", "Memory:", "Disk:", "could not be read"):
        assert word in said
    assert not out.exists()


def test_everything_chosen_is_printed_with_its_reason(pictures: Path, tmp_path: Path, capsys):
    main(["pretrain", str(pictures), "--dry-run"])
    said = capsys.readouterr().out
    for choice in ("method SimCLR:", "encoder conv", "image size", "batch", "epochs"):
        assert choice in said


def test_without_labels_the_verdict_is_about_invariance(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "unlabelled"
    assert main(["pretrain", str(pictures), "--out", str(out), *QUICK]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert set(scores["rows"][0]["scores"]) == {"recall", "recall_colour"}
    assert "invariance, not usefulness" in scores["verdict"]["text"]


def test_method_arguments(pictures: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "byol"
    arguments = ["--method", "BYOL", "--method.hidden", "32", "--method.momentum=0.9:1"]
    command = ["pretrain", str(pictures), "--out", str(out), "--no-report", *QUICK, *arguments]
    assert main(command) == 0
    told = json.loads((out / "run.json").read_text())["method_args"]
    assert told["hidden"] == 32
    assert told["momentum"] == {"type": "Cosine", "start": 0.9, "end": 1.0}


def test_encoder_arguments(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--encoder.width", "4", "--encoder.blocks=[1]", "--encoder.whole", "true"]
    command = ["pretrain", str(pictures), "--out", str(out), "--no-report", *QUICK, *arguments]
    assert main(command) == 0
    told = json.loads((out / "run.json").read_text())["encoder_args"]
    assert told == {"width": 4, "blocks": [1], "whole": True}


def test_what_a_run_can_switch_on(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [
        "--encoder", "resnet18", "--encoder.small-stem", "true", "--encoder.layers=[1,1,1,1]",
        "--encoder.channels=[8,8,8,8]", "--recompute", "--optimiser", "larc", "--no-report",
        "--not-finite", "skip",
    ]  # fmt: skip
    assert main(["pretrain", str(pictures), "--out", str(out), *QUICK[2:], *arguments]) == 0
    told = json.loads((out / "run.json").read_text())
    assert told["encoder_args"]["small_stem"] is True
    assert (told["recompute"], told["optimiser"]["name"]) == (True, "larc")
    assert told["not_finite"] == "skip"
    assert load_encoder(out / "encoder").get_submodule("network.conv1").weight.shape[2:] == (3, 3)


MISTAKES = [
    (["pretran", "x"], 2, "Did you mean pretrain?"),
    (["pretrain"], 2, "no data given"),
    (["pretrain", "PICTURES", "--method", "SimCRL"], 2, "Did you mean SimCLR"),
    (["pretrain", "PICTURES", "--method", "MAE", "--encoder", "resnet18"], 2, "needs patch tokens"),
    (["pretrain", "PICTURES", "--encoder", "resnet81"], 2, "Did you mean"),
    (["pretrain", "PICTURES", "--method", "SimCLR", "--method.temp", "1"], 2, "temperature"),
    (["pretrain", "PICTURES", "--method.k", "1"], 2, "needs --method NAME"),
    (["pretrain", "PICTURES", "--encoder.widht", "1"], 2, "widht"),
    (["pretrain", "PICTURES", "--method", "KMeans", "--method.k", "x"], 2, "should be int"),
    (["pretrain", "PICTURES", "--encoder", "conv", "--recompute"], 2, "conv has no blocks"),
    (["pretrain", "NOWHERE"], 3, ""),
    (["pretrain", "PICTURES", "--init", "weights.pt"], 2, "Pickled weights"),
    (["evaluate", "PICTURES"], 2, "no run folder"),
    (["export", "PICTURES"], 2, "no trained encoder"),
    (["embed", "PICTURES", "PICTURES"], 2, "holds no encoder"),
    (["embed", "PICTURES", "PICTURES", "--device", "gpu"], 2, "no device 'gpu' here"),
    (["methods", "Nope"], 2, "no method is called"),
]


@pytest.mark.parametrize(("command", "code", "said"), MISTAKES, ids=lambda v: str(v)[:40])
def test_a_mistake_is_one_line(
    command: list[str], code: int, said: str, pictures: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"PICTURES": str(pictures), "NOWHERE": str(tmp_path / "nowhere")}
    assert main([places.get(word, word) for word in command]) == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error


def test_an_unexpected_error_names_the_picture(
    pictures: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        manifest.with_name(open_source(pictures), lambda _: 1 // 0, 1)

    monkeypatch.setattr(evaluate, "main", fail)
    assert main(["evaluate"]) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError: integer division or modulo by zero. This happened" in told
    assert ".png" in told


def test_a_mistyped_option_gets_a_suggestion(capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "x", "--minuts", "3"])
    assert left.value.code == 2
    assert "--minutes" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".+"):
        main(["pretrain", str(tmp_path / "nowhere"), "--debug"])


def test_help_and_version(capsys) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command}" in said
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("erg 0.")


def test_methods_and_doctor(capsys) -> None:
    assert main(["methods"]) == 0
    assert "VICReg" in capsys.readouterr().out
    assert main(["methods", "KMeans"]) == 0
    assert "E(y, z)" in capsys.readouterr().out
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out


def test_terminated_from_outside_is_resumable(pictures: Path, tmp_path: Path) -> None:
    """A real process, a real signal: exit code 75, and --resume goes on to the end."""
    out = tmp_path / "stopped"
    command = [sys.executable, "-m", "erg.cli", "pretrain"]
    first = subprocess.Popen(
        [*command, str(pictures), "--out", str(out), "--no-report", *QUICK[:-1], "5000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    events = out / "events.jsonl"
    for _ in range(600):
        if events.exists() and events.read_text().count('"kind": "step"') > 3:
            break
        if first.poll() is not None:
            break
        import time

        time.sleep(0.1)
    first.terminate()
    _, error = first.communicate(timeout=60)
    assert first.returncode == 75, error
    assert "saved and resumable" in error
    run = json.loads((out / "run.json").read_text())
    done = max(json.loads(line)["step"] for line in events.read_text().splitlines())
    run["steps"] = done + 2
    (out / "run.json").write_text(json.dumps(run))
    assert main(["pretrain", "--resume", str(out), "--no-report"]) == 0
    last = json.loads(events.read_text().splitlines()[-1])
    assert last["step"] == done + 2
