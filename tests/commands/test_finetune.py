"""erg finetune, from the outside."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from erg.classifiers import load_classifier
from erg.commands import finetune
from erg.commands.finetune import main
from erg.durable import Unwritable
from erg.encoders import build_encoder, save_encoder
from erg.train.fit import fit
from erg.train.run import Run

QUICK = ["--steps", "6", "--batch", "16", "--label", "texture"]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    save_encoder(build_encoder("conv", 16, width=4, stages=2), tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_classifier_and_an_honest_comparison_are_written(encoder: Path, capsys) -> None:
    out = encoder.parent / "c"
    assert main([str(encoder), "synthetic:200", "--per-class", "4", *QUICK, "--out", str(out)]) == 0
    told = json.loads((out / "scores.json").read_text())
    classes = len(load_classifier(out).classes)
    assert told["n_train"] == 4 * classes
    assert told["n_test"] == 40
    assert told["split"] == "80 / 20 by content hash"
    assert list(told["accuracy"]) == ["fine-tuned", "from scratch", "linear probe, not tuned"]
    for score in told["accuracy"].values():
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    said = capsys.readouterr().out
    assert told["verdict"] in said
    assert "Pretraining" in told["verdict"]


def test_the_first_layers_of_a_projector_may_be_kept(tmp_path: Path, encoder: Path) -> None:
    run = Run(
        method="SimCLR", method_args={"depth": 3, "hidden": 12, "dim": 4}, encoder="conv",
        encoder_args={"width": 4, "stages": 2}, image_size=16, data="synthetic:80", batch=16,
        steps=2,
    )  # fmt: skip
    fit(run, out=tmp_path / "run", observers=())
    out = tmp_path / "c"
    command = ["synthetic:120", *QUICK, "--out", str(out), "--head-layers"]
    assert main([str(tmp_path / "run"), *command, "1"]) == 0
    assert load_classifier(out).head.in_features == 12
    with pytest.raises(ValueError, match="3 layers of the projector cannot be kept: it has 2"):
        main([str(tmp_path / "run"), *command, "3"])
    with pytest.raises(ValueError, match="an encoder without its projector"):
        main([str(encoder), *command, "1"])


def test_a_test_set_is_taken_as_given(encoder: Path) -> None:
    out = encoder.parent / "c"
    test = ["--test", "synthetic:50"]
    assert main([str(encoder), "synthetic:120", *QUICK, *test, "--out", str(out)]) == 0
    told = json.loads((out / "scores.json").read_text())
    assert (told["n_train"], told["n_test"]) == (120, 50)
    assert told["split"] == "two sets, as given"


def test_test_images_that_are_learned_from_are_said(encoder: Path, capsys) -> None:
    out = encoder.parent / "c"
    test = ["--test", "synthetic:50"]
    assert main([str(encoder), "synthetic:120", *QUICK, *test, "--out", str(out)]) == 0
    told = json.loads((out / "scores.json").read_text())
    assert (told["n_leaked"], told["n_seen"]) == (50, 0)
    assert "50 of 50 test images are also among those to learn from." in capsys.readouterr().out
    gap = told["gap"]
    accuracy = [told["accuracy"][name]["value"] for name in ("fine-tuned", "from scratch")]
    assert gap["value"] == pytest.approx(accuracy[0] - accuracy[1])
    assert told["verdict"].startswith("Pretraining helped") is gap["clear"]


def test_a_test_set_without_labels_is_refused_before_anything_is_learned(
    encoder: Path, capsys
) -> None:
    table = pa.table({"image": [png(i) for i in range(3)], "texture": pa.nulls(3, pa.string())})
    pq.write_table(table, encoder.parent / "bare.parquet")
    test = ["--test", str(encoder.parent / "bare.parquet")]
    with pytest.raises(ValueError, match="none of 3 images to test on has a label"):
        main([str(encoder), "synthetic:120", *QUICK, *test])
    assert "labelled images" not in capsys.readouterr().out


def png(grey: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (grey, 9, 9)).save(out, "PNG")
    return out.getvalue()


def test_what_cannot_be_is_said_before_anything_is_learned(encoder: Path, monkeypatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(finetune, "compared", never)
    command = [str(encoder), "synthetic:120", *QUICK]
    with pytest.raises(Unwritable, match=r"config.json cannot be written \(File exists\)"):
        main([*command, "--out", str(encoder / "config.json")])
    with pytest.raises(ValueError, match=r"--seed should be at least 0 \(got -1\)"):
        main([*command, "--seed", "-1"])
    with pytest.raises(ValueError, match=r"--method would change nothing: .* is no run folder"):
        main([*command, "--method", "mine.py:Mine"])
