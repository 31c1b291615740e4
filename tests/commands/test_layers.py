"""erg layers, from the outside."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erg.apply import embed
from erg.apply.layers import Layer
from erg.commands.layers import curves, main
from erg.data.scenes import world
from erg.evaluate.intervals import Score
from erg.train.fit import fit
from erg.train.run import Run


def test_a_chart_and_its_numbers_are_written(tmp_path: Path, capsys) -> None:
    run = Run(
        method="Rotation", encoder="conv", encoder_args={"width": 4, "stages": 3}, image_size=16,
        data="synthetic:150", batch=16, steps=2,
    )  # fmt: skip
    folder = fit(run, out=tmp_path / "run", observers=()).folder
    assert main([str(folder), "--label", "shape", "--values", "128", "--images", "100"]) == 0
    said = capsys.readouterr().out
    assert "Best of the trained one" in said
    told = json.loads((folder / "layers.json").read_text())
    assert told["n_train"] == 100
    assert told["n_test"] == 30
    assert list(told["layers"]) == ["trained", "before training"]
    names = [layer["name"] for layer in told["layers"]["trained"]]
    assert names == ["stage 1", "stage 2", "stage 3", "output"]
    root = ElementTree.parse(folder / "layers.svg").getroot()
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {*names, "trained", "before training"} <= {*texts}
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 8
    heights = [float(c.attrib["cy"]) for c in circles[:4]]
    values = [layer["accuracy"]["value"] for layer in told["layers"]["trained"]]
    assert sorted(range(4), key=lambda i: heights[i]) == sorted(range(4), key=lambda i: -values[i])

    assert (told["n_leaked"], told["layers"]["trained"][0]["validation"] > 0) == (0, True)
    # The best is chosen without the test images.
    trained = told["layers"]["trained"]
    best = next(layer for layer in trained if layer["name"] == told["best"]["name"])
    assert best["validation"] == max(layer["validation"] for layer in trained)


def test_a_chart_of_probes_that_are_all_right_is_drawn() -> None:
    perfect = Layer("output", 4, np.ones(5, dtype=bool), Score(1.0, 1.0, 1.0), 1.0)
    wrong = Layer("output", 4, np.zeros(5, dtype=bool), Score(0.0, 0.0, 0.0), 0.0)
    for layer in (perfect, wrong):
        root = ElementTree.fromstring(curves({"trained": [layer]}, "a <title> & more"))
        (circle,) = root.iter("{http://www.w3.org/2000/svg}circle")
        assert 46 <= float(circle.attrib["cy"]) <= 280


def test_a_test_set_may_lack_classes_and_have_others(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = world(48, size=16).images
    for i, place in enumerate(["fit/a", "fit/b", "fit/c", "test/b", "test/c", "test/d"]):
        (tmp_path / place).mkdir(parents=True)
        for j, image in enumerate(images[8 * i : 8 * i + 8]):
            Image.fromarray(image).save(tmp_path / place / f"{j}.png")
    run = Run(
        method="Rotation", encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=16,
        data=str(tmp_path / "fit"), batch=16, steps=1,
    )  # fmt: skip
    folder = fit(run, out=tmp_path / "run", observers=()).folder
    test = ["--label", "folder", "--test", str(tmp_path / "test")]
    assert main([str(folder), *test]) == 0
    assert "so always wrong: d." in capsys.readouterr().out
    told = json.loads((folder / "layers.json").read_text())
    assert (told["n_train"], told["n_test"]) == (24, 24)
    for layer in told["layers"]["trained"]:
        assert layer["accuracy"]["value"] <= 16 / 24
    with pytest.raises(ValueError, match="another ending"):
        main([str(folder), *test, "--out", str(tmp_path / "chart.json")])
    assert not (tmp_path / "chart.json").exists()
    monkeypatch.setattr(embed, "open_for", None)  # nothing is opened for what cannot be written
    for out, said in ((tmp_path, "is a folder"), (tmp_path / "no" / "a.svg", "there is no folder")):
        with pytest.raises(ValueError, match=said):
            main([str(folder), *test, "--out", str(out)])
    with pytest.raises(ValueError, match="no run folder"):
        main([str(tmp_path / "no"), *test])


def test_without_labels_there_is_nothing_to_probe(tmp_path: Path) -> None:
    run = Run(
        method="Rotation", encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=16,
        data="synthetic:60", batch=16, steps=1,
    )  # fmt: skip
    folder = fit(run, out=tmp_path / "run", observers=()).folder
    with pytest.raises(ValueError, match="at most 1 are wanted"):
        main([str(folder), "--label", "shape", "--images", "1"])
