"""The scripts of benchmarks/ and examples/ about what is learned: they compare like with like, and
choose nothing on test images. As in test_benchmarks.py.
"""

import json
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

import erg
from erg import catalog
from erg.apply.embed import embedder
from erg.encoders import save_encoder
from erg.method import Method
from tests.test_benchmarks import BENCHMARKS, load, readme, started

# The learning table --------------------------------------------------------------------------


def learned(method: str, gain: float, minutes: float = 3, family: str = "convnet") -> Any:
    """A row."""
    return {
        "method": method, "family": family, "seed": 0, "minutes": minutes, "images": 20_000,
        "tested": 10_000, "before": {"knn20": 30.0}, "after": {"knn20": 30.0 + gain},
        "images_per_second": 1000.0, "steps": 500,
    }  # fmt: skip


def test_an_unfinished_table_of_methods_says_so() -> None:
    module = load("methods")
    done = {"1": learned("SimCLR", 9.0), "2": learned("BYOL", 1.0), "3": learned("RELICv2", 4, 10)}
    ((claim, bar, measured),) = module.claims(done)
    assert claim == "methods that gain 3 points of 20-NN in 3 minutes (RELICv2: 10), convnet"
    assert bar == "all"
    count = len([name for name in module.known() if module.family_of(name) == "convnet"])
    assert measured == f"2 of {count} (3 measured; least: BYOL +1.0)"
    assert count > 20


def test_what_a_line_needs_to_be_understood_stands_below_its_table() -> None:
    module = load("methods")
    done = {"1": learned("SimCLR", 9.0), "2": learned("KMeans", -9.0, family="pixels")}
    convnet, pixels = module.page(done).split("## No network")
    assert "- KMeans: its code is one of 64 wells" in pixels
    assert "Not: KMeans. Not measured yet: " in pixels
    assert "- KMeans" not in convnet
    for method, k in (("KMeans", 64), ("GaussianMixture", 16), ("PCA", 32)):  # as the notes say
        assert catalog.arguments(catalog.find(method))["k"].default == k
        assert "k" not in module.chosen(method, 0).method_args


def test_methods_of_two_seeds_come_first_with_both() -> None:
    in_order = load("methods").in_order
    methods = ["MAE", "Rotation", "SimCLR"]
    assert list(in_order(methods, None)) == [
        ("SimCLR", 0), ("MAE", 0), ("SimCLR", 1), ("MAE", 1), ("Rotation", 0),
    ]  # fmt: skip
    assert list(in_order(methods, [3])) == [("SimCLR", 3), ("MAE", 3), ("Rotation", 3)]


class Numbered:
    """A source of ten images that are their own numbers."""

    asked: list[tuple[str, int]] = []

    def __init__(self, place: str, **_: Any) -> None:
        self.name = Path(place).stem

    def __len__(self) -> int:
        return 10

    def read(self, row: int) -> np.ndarray:
        self.asked.append((self.name, row))
        return np.full((2, 2, 3), row, dtype=np.uint8)

    def label(self, row: int) -> str:
        return f"{self.name} {row}"


def test_what_is_chosen_is_chosen_on_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = load("methods"), list[tuple[str, int]]()
    monkeypatch.setattr(Numbered, "asked", asked)
    monkeypatch.setattr(erg, "open_source", Numbered)
    sets = module.Sets.read(Path(), 4, 3, choose=True)
    assert asked == [("cifar10_train", row) for row in range(7)]
    assert sets.test_labels.tolist() == [f"cifar10_train {row}" for row in (4, 5, 6)]
    assert sets.test[:, 0, 0, 0].tolist() == [4, 5, 6]
    assert sets.judged_on == "train"
    sets = module.Sets.read(Path(), 4, 3)
    assert sets.train_labels.tolist() == [f"cifar10_train {row}" for row in range(4)]
    assert sets.test_labels.tolist() == [f"cifar10_test {row}" for row in range(3)]
    with pytest.raises(SystemExit, match="has 10 images, and 12 are asked for"):
        module.Sets.read(Path(), 8, 4, choose=True)


def test_trials_are_kept_apart_from_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("methods")
    with pytest.raises(SystemExit, match="2"):
        started(module, [str(tmp_path), "--choose"], tmp_path, monkeypatch)
    assert "say where by --results" in capsys.readouterr().err
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("the same encoder")
    monkeypatch.setattr(module, "scores", lambda _, sets: {"knn20": len(sets.judged_on)})
    sets = module.Sets(*[np.zeros((4, 2, 2, 3))] * 4)
    assert module.before(tmp_path, sets, tmp_path) == {"knn20": 4}
    assert module.before(tmp_path, replace(sets, judged_on="train"), tmp_path) == {"knn20": 5}
    assert len(list(tmp_path.glob("before-*.json"))) == 2


@pytest.mark.parametrize("method", ["DeepCluster", "EsViT", "MAE"])
def test_a_changed_recipe_is_another_row_and_a_measured_length_is_not(method: str) -> None:
    module = load("methods")
    run = module.chosen(method, 0)
    sized = {**run.method_args, "size": 20_000} if method == "DeepCluster" else run.method_args
    row = {"run": json.loads(json.dumps(replace(run, steps=7, method_args=sized).to_json()))}
    assert module.same_recipe(row, run)
    assert not module.same_recipe(row, replace(run, batch=2 * run.batch))
    assert not module.same_recipe(row, replace(run, method_args={**sized, "unheard": 1}))
    other = replace(run, optimiser=replace(run.optimiser, lr=0.5))
    assert not module.same_recipe(row, other)


def test_a_row_is_measured_again_where_its_recipe_or_its_images_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, calls = load("methods"), list[str]()

    def measure(run: erg.Run, sets: Any, minutes: float, results: Path) -> Any:
        calls.append(f"{run.method} {run.seed}")
        if run.method == "BYOL":
            raise ValueError("it is Monday")
        row = {"images": 20, "tested": 10, "judged_on": "train" if sets.choose else "test"}
        scores = {"before": {"knn20": 1.0}, "after": {"knn20": 2.0}}
        return {**row, **scores, "run": replace(run, steps=9).to_json()}

    def again(choose: bool = False) -> list[str]:
        calls.clear()
        options = Namespace(
            methods=["BYOL", "DeepCluster"], seeds=[0], minutes=3.0, minutes_limit=None,
            data=tmp_path, results=tmp_path, images=20, tested=10, choose=choose,
        )  # fmt: skip
        assert module.measure_missing(options) == ["BYOL-3min-seed0"]
        return list(calls)

    chosen = module.chosen
    monkeypatch.setattr(module, "compile_kernels", lambda: calls.append("compiled"))
    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module.Sets, "read", lambda *given: SimpleNamespace(choose=given[-1]))
    assert again() == ["compiled", "BYOL 0", "DeepCluster 0"]
    assert again() == ["compiled", "BYOL 0"]
    monkeypatch.setattr(module, "chosen", lambda *row: replace(chosen(*row), precision="32"))
    assert again() == ["compiled", "BYOL 0", "DeepCluster 0"]
    assert again(choose=True) == ["compiled", "BYOL 0", "DeepCluster 0"]
    assert "it is Monday" in capsys.readouterr().err


def fitted_in(folder: Path, method: str) -> erg.Fitted:
    """A run in half precision with its folder, as if it had trained."""
    run = erg.Run(
        method=method, encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=8,
        precision="bf16",
    )  # fmt: skip
    built = run.build()
    for name in ("encoder_start", "encoder"):
        save_encoder(built.encoder, folder / name)
    for name in ("timing.jsonl", "events.jsonl"):
        lines = [{"kind": "health", "step": step, "seconds": step} for step in (0, 500)]
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
    return erg.Fitted(run, folder, built.eval())


@pytest.mark.parametrize("method", ["BinaryAutoencoder", "Rotation"])
def test_an_encoder_is_set_beside_an_encoder_in_one_precision(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, random = load("methods"), np.random.default_rng(0)
    fitted = fitted_in(tmp_path, method)
    images, labels = np.zeros((40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 2
    right = {"encoder_start": 0.3, "encoder": 0.35, method: 0.2 if method in module.CODES else 0.35}
    models: list[str] = []

    def embed(model: erg.Fitted | Path, images: np.ndarray) -> Any:
        assert embedder(model).autocast is None
        models.append(model.name if isinstance(model, Path) else model.run.method)
        vectors = random.normal(size=(len(images), 3)).astype(np.float32)
        return SimpleNamespace(vectors=vectors)

    monkeypatch.setattr(erg, "fit", lambda *_, **__: fitted)
    monkeypatch.setattr(erg, "embed", embed)
    monkeypatch.setattr(module, "linear_accuracy", lambda *_: np.ones(1))
    monkeypatch.setattr(module, "vote", lambda *_, **__: np.where(
        np.arange(40) < 40 * right[models[-1]], labels, 2))  # fmt: skip
    sets = module.Sets(images, labels, images, labels)
    row = module.measure(fitted.run, sets, 3, tmp_path)
    table = readme().load("methods", "learning_table.py")
    line = table.Line(method, 3, [row])
    assert line.gain == pytest.approx(5.0)
    if method in module.CODES:
        assert models == [each for each in right for _ in range(2)]
        assert row["code"]["knn20"] == 20.0
        assert "20.0" in line.cells()
    else:
        assert models == ["encoder_start"] * 2 + [method] * 2
        assert "code" not in row
    assert len(line.cells()) == len(table.COLUMNS)


def test_codes_are_of_methods_that_make_one_of_their_features() -> None:
    """Colours are no part of the features of the two others: they are taken out before them."""
    module = load("methods")
    kinds = {name: catalog.find(name) for name in module.known()}
    own = {
        name for name, kind in kinds.items()
        if kind.trains_encoder and kind.encode is not Method.encode
    }  # fmt: skip
    assert own == {*module.CODES, "Colourisation", "MultiTask"}


# Beside lightly ------------------------------------------------------------------------------


def test_a_process_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("beside_lightly")
    sizes = {"erg": 5000, "lightly": 5000}

    def measure(side: str, method: str, seed: int, _: Namespace) -> dict[str, Any]:
        if (side, method) == ("erg", "BYOL"):
            raise subprocess.CalledProcessError(3, "ours.py")
        return {
            "knn20_before": 30.0, "knn20_after": 40.0, "seconds": 1.0, "seed": seed, "steps": 8,
            "parameters": sizes[side],
        }  # fmt: skip

    monkeypatch.setattr(module.same, "check", lambda _: None)
    monkeypatch.setattr(module, "measure", measure)
    given = [str(tmp_path), "--peer-python", "python", "--methods", "SimCLR", "BYOL", "--seeds"]
    with pytest.raises(SystemExit, match="1 rows failed: BYOL; seed 0; erg"):
        started(module, [*given, "0"], tmp_path, monkeypatch)
    told = capsys.readouterr()
    assert "BYOL; seed 0; erg: Command 'ours.py' returned non-zero exit status 3" in told.err
    assert "| SimCLR | 30.0 | 40.0 | 40.0 |" in told.out
    assert list(json.loads((tmp_path / "results.json").read_text())) == [
        "SimCLR; seed 0; erg", "SimCLR; seed 0; lightly", "BYOL; seed 0; lightly",
    ]  # fmt: skip
    sizes["lightly"] = 6000
    with pytest.raises(SystemExit, match="seed 1: 5,000 parameters of erg beside 6,000 of lightly"):
        started(module, [*given, "1"], tmp_path, monkeypatch)


def test_all_crops_of_dino_change_colours_alike_in_lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (BENCHMARKS / "beside_lightly" / "peer.py").read_text()
    for name in re.findall(r"^from (lightly[\w.]*) import", source, flags=re.M):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), MagicMock())
    peer = readme().load("beside_lightly", "peer.py")
    peer.transform_of("DINO")
    given = peer.DINOTransform.call_args.kwargs
    for strength in (given["cj_strength"], 0.5):  # which the second large crop takes in any case
        for kind in ("bright", "contrast", "sat"):
            assert strength * given[f"cj_{kind}"] == pytest.approx(peer.same.COLOURS)
        assert strength * given["cj_hue"] == pytest.approx(peer.same.HUE)


# Examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["augmentations", "curation"])
def test_a_study_embeds_the_encoder_before_and_after_training_in_one_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, models = readme().load("../examples", f"{name}.py"), list[Path]()

    def embed(model: Path, images: np.ndarray) -> Any:
        models.append(model)
        return SimpleNamespace(vectors=np.zeros((len(images), 2)))

    monkeypatch.setattr(erg, "fit", lambda *_, **__: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(erg, "embed", embed)
    for score in ("knn_accuracy", "linear_accuracy"):
        monkeypatch.setattr(module, score, lambda *_, **__: np.ones(1))
    given: tuple[Any, ...] = (module.FULL,) if name == "augmentations" else ("SimCLR", "tidy")
    module.measure(*given, module.trial(), 0)
    assert models == [tmp_path / part for part in ("encoder_start", "encoder") for _ in range(2)]
