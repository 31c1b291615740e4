"""The scripts of benchmarks/ about energies, codes and layers, as in test_benchmarks.py."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import erg
from erg.apply.anomalies import Anomalies
from erg.apply.layers import Layer
from erg.evaluate.baselines import PCA
from erg.evaluate.intervals import bootstrap
from erg.train.checkpoint import state_hash
from tests.test_benchmarks import load, started


def wrong(**errors: float) -> dict[str, Any]:
    """A row of anomalies: 1 - AUROC of every energy, the same of two classes."""
    scores = {
        name.replace("_", ", "): {"auroc": {"value": 1 - error}} for name, error in errors.items()
    }
    return {"classes": {"one": scores, "other": scores}}


def test_anomalies_are_claimed_of_one_energy_beside_both_pca() -> None:
    done = {
        "Caltech-101; KMeans; seed 0": wrong(energy=0.1, better=0.01, pixels_PCA=0.2),
        "Caltech-101; KMeans; seed 1": wrong(energy=0.2, better=0.01, pixels_PCA=0.2),
        "Caltech-101; PCA; seed 0": wrong(energy=0.2, pixels_PCA=0.2),
        "Caltech-101; PCA; seed 1": wrong(energy=0.1, pixels_PCA=0.2),
        "Caltech-101; SimCLR on Imagenette, 3 minutes; seed 0": wrong(pixels_PCA=0.9),
    }
    assert load("anomalies").claims(done) == [
        ("1 - AUROC on Caltech-101, a class against the others: KMeans, energy / PCA of the pixels",
         "<= 0.8", "0.75 (0.50 to 1.00, n = 2): held"),
        ("1 - AUROC on Caltech-101, a class against the others: KMeans, energy / PCA of the pixels "
         "without contrast that it sees", "<= 0.8", "1.00 (0.50 to 2.00, n = 2): missed"),
    ]  # fmt: skip


def test_anomalies_are_claimed_on_draws_that_nothing_was_chosen_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("anomalies")
    assert min(module.SEEDS) > 4
    monkeypatch.setattr(module, "caltech", lambda *_: wrong(energy=0.1))
    asked = [str(tmp_path), "--only", "Caltech-101", "--models", "KMeans"]
    found = started(module, asked, tmp_path, monkeypatch)
    assert set(found) == {f"Caltech-101; KMeans; seed {seed}" for seed in module.SEEDS}
    with pytest.raises(SystemExit, match="2"):
        started(module, [*asked, "--seeds", "4", "5"], tmp_path, monkeypatch)
    other = tmp_path / "other.json"
    started(module, [*asked, "--seeds", "4", "--results", str(other)], tmp_path, monkeypatch)
    assert set(json.loads(other.read_text())) == {"Caltech-101; KMeans; seed 4"}
    assert json.loads((tmp_path / "results.json").read_text()) == found


def test_two_energies_are_one_by_the_sum_of_their_logarithms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, random = load("anomalies"), np.random.default_rng(0)
    normal = np.arange(20) < 12
    energies = {name: random.random(20) + 0.1 for name in ("energy", "pixels, PCA")}
    seen = Anomalies(np.arange(20), [""] * 20, energies, normal)
    monkeypatch.setattr(module, "CLASSES", ("one",))
    for name, value in {
        "open_for": None, "one_class": (None, None), "trained": None, "anomalies": seen,
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_, _value=value, **__: _value)
    (scores,) = module.caltech(Path(), "KMeans", 5, None)["classes"].values()
    summed = np.log(energies["energy"]) + np.log(energies["pixels, PCA"])
    above = np.mean([odd > fits for odd in summed[~normal] for fits in summed[normal]])
    assert scores["energy x pixels, PCA"]["auroc"]["value"] == pytest.approx(above)
    assert set(module.caltech(Path(), "PCA", 5, None)["classes"]["one"]) == set(energies)


@pytest.mark.parametrize(("name", "side"), [("KMeans", 32), ("SimCLR on Imagenette", 96)])
def test_a_model_sees_images_as_sharp_as_it_wants_them(
    name: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, sides = load("anomalies"), list[int]()
    monkeypatch.setattr(module, "CLASSES", ())
    monkeypatch.setattr(module, "open_for", lambda encoder, *_, **__: sides.append(
        encoder.image_size))  # fmt: skip
    model = SimpleNamespace(encoder=SimpleNamespace(image_size=96))
    module.caltech(Path(), name, 0, lambda *_: model)
    assert sides == [side]


def small_autoencoder(folder: Path) -> erg.Fitted:
    run = erg.Run(
        method="Autoencoder", method_args={"dim": 5, "width": 4}, encoder="conv",
        encoder_args={"width": 4, "stages": 2}, image_size=8,
    )  # fmt: skip
    method = run.build()
    with torch.no_grad():
        for weight in method.parameters():
            weight.add_(1.0)  # as if it had learned
    return erg.Fitted(run, folder, method)


def test_before_training_is_the_same_layer_with_its_first_weights(tmp_path: Path) -> None:
    fitted = small_autoencoder(tmp_path)
    first = load("autoencoders").untrained(fitted)
    assert state_hash(first.method) == state_hash(fitted.run.build())
    assert state_hash(first.method) != state_hash(fitted.method)
    assert first.embed(np.zeros((1, 8, 8, 3), dtype=np.uint8)).shape == (1, 5)


def test_both_sides_of_an_autoencoder_are_embedded_in_one_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, models = load("autoencoders"), list[Any]()

    def embed(model: Any, data: str, **_: Any) -> Any:
        models.append(model)
        return SimpleNamespace(vectors=np.eye(20), labels=["a"] * 20)

    monkeypatch.setattr(erg, "fit", lambda *_, **__: small_autoencoder(tmp_path))
    monkeypatch.setattr(erg, "embed", embed)
    monkeypatch.setattr(module, "open_for", lambda *_: SimpleNamespace(rows=np.arange(20)))
    monkeypatch.setattr(module, "pixels_of", lambda *_: np.eye(20))
    monkeypatch.setattr(module, "score", lambda *_: 0.0)
    name = "convolutional autoencoder"
    found = module.measure(module.ROWS[name], tmp_path, seed=0, trial=False)
    assert [type(model) for model in models] == [erg.Fitted] * 4
    done = {f"{name}; seed 0": json.loads(json.dumps(found))}
    assert module.of_today(done) == done


def test_rotation_has_as_many_seeds_as_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("autoencoders")
    monkeypatch.setattr(module, "measure", counted)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    two = [str(tmp_path), "--threads", "2"]
    done = started(module, [*two, "--seeds", "0", "1", "2"], tmp_path, monkeypatch)
    assert set(done) == {f"{row}; seed {seed}" for row in module.ROWS for seed in range(3)}
    with pytest.raises(SystemExit, match="2"):
        started(module, [*two, "--batch", "64"], tmp_path, monkeypatch)


def counted(row: dict[str, Any], data: Path, seed: int, trial: bool) -> dict[str, Any]:
    """A row of autoencoders."""
    run = load("autoencoders").run_of(row, str(data), seed)
    scores = {"codes": 60.0 + seed, "before training": 58.0, "PCA": 59.5}
    return {"scores": scores, "steps": 9, "minutes": row["minutes"], "run": run.to_json()}


def test_rotation_is_not_measured_on_one_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("autoencoders")
    monkeypatch.setattr(module, "measure", counted)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    one = [str(tmp_path), "--seeds", "0", "--threads", "1"]
    with pytest.raises(SystemExit, match="2"):
        started(module, one, tmp_path, monkeypatch)
    others = [name for name in module.ROWS if name != "rotation"]
    done = started(module, [*one, "--rows", *others], tmp_path, monkeypatch)
    assert set(done) == {f"{name}; seed 0" for name in others}
    started(module, [*one, "--trial"], tmp_path, monkeypatch)


def test_what_another_recipe_gave_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, asked = load("autoencoders"), list[str]()

    def measure(row: dict[str, Any], *arguments: Any, **further: Any) -> dict[str, Any]:
        asked.append(next(name for name, each in module.ROWS.items() if each is row))
        return counted(row, *arguments, **further)

    def measured() -> list[str]:
        asked.clear()
        started(module, [str(tmp_path), "--seeds", "0", "--threads", "2"], tmp_path, monkeypatch)
        return list(asked)

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert measured() == list(module.ROWS)
    assert measured() == []
    row = module.ROWS["rotation"]
    monkeypatch.setitem(module.ROWS, "rotation", row | {"recipe": row["recipe"] | {"batch": 64}})
    assert measured() == ["rotation"]
    row = module.ROWS["denoising autoencoder"]
    monkeypatch.setitem(module.ROWS, "denoising autoencoder", row | {"minutes": 3})
    assert measured() == ["denoising autoencoder"]
    assert measured() == []
    plain = module.default
    monkeypatch.setattr(module, "default", lambda *a, **k: plain(*a, **k, lr=0.1))
    assert measured() == list(module.ROWS)


def test_autoencoders_are_claimed_by_the_median_over_seeds() -> None:
    module = load("autoencoders")
    done = {
        f"{name}; seed {seed}": counted(row, Path(), seed, trial=False)
        for name, row in module.ROWS.items() for seed in range(3)
    }  # fmt: skip
    assert module.claims(done) == [
        ("10-NN on MNIST: convolutional autoencoder above as many principal components [points]",
         ">= 0.5", "+1.50 (+0.50 to +2.50, n = 3): held"),
        ("10-NN on MNIST: denoising autoencoder above its network before training [points]",
         ">= 3", "+3.00 (+2.00 to +4.00, n = 3): held"),
        ("linear probe on CIFAR-10: rotation above its network before training [points]",
         ">= 8", "+3.00 (+2.00 to +4.00, n = 3): missed"),
    ]  # fmt: skip
    done["convolutional autoencoder; seed 1"]["scores"]["PCA"] = 60.51
    done["convolutional autoencoder; seed 2"]["scores"]["PCA"] = 61.52
    assert module.claims(done)[0][2] == "+0.49 (+0.48 to +0.50, n = 3): missed"


def of_network(network: str, data: Path, minutes: float, _: int, seed: int) -> dict[str, Any]:
    """A row of layers."""
    run = load("layers").run_of(network, str(data), seed)
    return {
        "layers": [{"name": "stage 1", "values": 4, "accuracy": [50.0] * 3}], "best": "stage 1",
        "ahead_of_last_stage": [0.0] * 3, "ahead_of_output": [0.0] * 3, "minutes": minutes,
        "run": run.to_json(),
    }  # fmt: skip


def test_layers_of_another_recipe_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, asked = load("layers"), list[str]()

    def measure(network: str, *arguments: Any) -> dict[str, Any]:
        asked.append(network)
        return of_network(network, *arguments)

    def measured(*further: str) -> list[str]:
        asked.clear()
        results = ["--results", str(tmp_path / "trial.json")] if further else []
        given = [str(tmp_path), "--seeds", "0", *results, *further]
        started(module, given, tmp_path, monkeypatch)
        return list(asked)

    monkeypatch.setattr(module, "measure", measure)
    assert measured() == list(module.NETWORKS)
    assert measured() == []
    monkeypatch.setattr(module, "CHOICES", module.CHOICES | {"batch": 64})
    assert measured() == list(module.NETWORKS)
    assert measured() == []
    assert measured("--minutes", "1") == list(module.NETWORKS)
    assert measured("--minutes", "1") == []
    assert measured("--minutes", "2") == list(module.NETWORKS)


def test_layers_keep_the_run_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("layers")
    rows = np.arange(4)
    opened = SimpleNamespace(rows=rows, manifest=SimpleNamespace(hashes=np.array(list("abcd"))))
    curve = [Layer(name, 4, rows > 0, bootstrap(rows > 0), 0.5) for name in ("stage 1", "output")]
    monkeypatch.setattr(module, "open_for", lambda *_, **__: opened)
    monkeypatch.setattr(module, "layers", lambda *_, **__: curve)
    found = module.measure(module.UNTRAINED, Path("data"), 5.0, 4, 0)
    done = {f"{module.UNTRAINED}; seed 0": json.loads(json.dumps(found))}
    assert module.of_today(done, 5.0) == done


def found(precision: float, size: int) -> dict[str, Any]:
    """What one way of searching gave."""
    three = [precision] * 3
    return {
        "precision_10": three, "precision_100": three, "map": three, "bytes": size,
        "queries_per_second": [1.0],
    }  # fmt: skip


def test_codes_are_judged_by_the_mean_over_seeds_and_one_is_claimed() -> None:
    module = load("binary_codes")
    floats, signs = found(0.9, 1024), found(0.89, 8)
    done = {
        f"MNIST; SimCLR, 3 minutes; seed {seed}": {"found": {
            "float cosine": floats, "PCA signs, 64 bits": signs, module.CLAIMED: found(right, 8),
            "PCA signs, 32 bits": signs,
        }}
        for seed, right in enumerate((0.86, 0.82))
    }  # fmt: skip
    assert [gap.code for gap in module.gaps(done)] == [module.CLAIMED, "PCA signs, 64 bits"]
    (claim,) = module.claims(done)
    assert claim[1:] == (">= -5 at <= 1/30", "-6.0 (-8.0 to -4.0) at 1/128 of the bytes: missed")
    for row in done.values():
        row["found"][module.CLAIMED] = found(0.9, 64)
    assert module.claims(done)[0][2] == "+0.0 (+0.0 to +0.0) at 1/16 of the bytes: missed"
    for row in done.values():
        row["found"][module.CLAIMED] = signs
    assert module.claims(done)[0][2] == "-1.0 (-1.0 to -1.0) at 1/128 of the bytes: held"


class Trained(Exception):
    """A run that a script would train."""


def told_run(run: erg.Run, **_: Any) -> None:
    raise Trained(run)


@pytest.mark.parametrize("kind", ["SimCLR", "BinaryAutoencoder"])
def test_codes_of_digits_are_learned_without_mirrors_and_colours(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("binary_codes")
    monkeypatch.setattr(erg, "fit", told_run)
    runs: dict[str, erg.Run] = {}
    for name in module.SETS:
        with pytest.raises(Trained) as told:
            module.measure(tmp_path, name, kind, 0, 1.0)
        runs[name] = told.value.args[0]
    assert runs["Imagenette"].plan is None
    plan = runs["MNIST"].plan
    assert plan is not None
    usual = runs["MNIST"].build().plan()
    for view, other in zip(plan.main, usual.main, strict=True):
        assert view == replace(other, flip=0.0, jitter=0.0, grey=0.0)
    assert (plan.local, plan.pairs) == (usual.local, usual.pairs)


def test_few_labels_are_joined_by_an_encoder_that_has_seen_all_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("few_labels")
    monkeypatch.setattr(erg, "fit", told_run)
    for name in module.SETS:
        with pytest.raises(Trained) as told:
            module.measure(tmp_path, name, [10], 0, 1.0, "SimCLR")
        assert told.value.args[0].hold_out == 0


def test_components_of_pixels_are_those_of_all_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, asked = load("few_labels"), list[np.ndarray]()
    pixels = np.random.default_rng(0).random((90, 70), dtype=np.float32)
    opened = SimpleNamespace(rows=np.arange(90), labels=np.arange(90) % 2)
    fitted = SimpleNamespace(encoder=None, run=SimpleNamespace(steps=1))
    rows = np.array([3, 5, 8, 9])

    def accuracy(vectors: np.ndarray, *_: Any) -> np.ndarray:
        asked.append(vectors)
        return np.ones(90, dtype=bool)

    monkeypatch.setattr(erg, "fit", lambda *_, **__: fitted)
    for name, value in {
        "open_for": opened, "pixels_of": pixels, "vectors_of": pixels, "few": rows,
        "finetune": None, "afresh": None, "right": np.arange(90) % 3 > 0,
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_, _value=value, **__: _value)
    monkeypatch.setattr(module, "linear_accuracy", accuracy)
    module.measure(tmp_path, "MNIST", [2], 0, 1.0, "SimCLR")
    _, of_pixels = asked
    np.testing.assert_allclose(of_pixels, PCA.fit(pixels, 64)(pixels[rows]), atol=1e-6)
