"""The scripts of benchmarks/ can be loaded, and sum up correctly what they measured.

Nothing is measured here, and nothing that was measured is read or written.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import erg
from erg.evaluate.baselines import PCA
from erg.train.checkpoint import state_hash
from erg.train.preempt import Stopped

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
NAMES = sorted(script.parent.name for script in BENCHMARKS.glob("*/run.py"))
OF_ACCURACY = (
    "anomalies", "audio_denoising", "autoencoders", "binary_codes", "few_labels", "inpainting",
    "layers", "methods",
)  # fmt: skip


@cache
def readme() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_readme", BENCHMARKS / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def load(name: str) -> Any:
    return readme().load(name)


def started(
    module: Any, arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What a script's results.json holds after it ran, in a folder of the test's own."""
    monkeypatch.setattr(module, "RESULTS", folder / "results.json")
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    module.run()
    return json.loads((folder / "results.json").read_text())


# All of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_was_measured_nothing_is_claimed(name: str) -> None:
    module = load(name)
    for table in ("table", "print_table"):
        getattr(module, table, lambda _: None)({})
    claims: Callable[[Any], list[Any]] = getattr(module, "claims", lambda _: [])
    assert claims({"rows": []} if name == "views" else {}) == []


def test_every_script_stands_in_the_table_and_in_the_makefile() -> None:
    table, made = (
        set(re.findall(r"benchmarks/(\w+/\w+\.py)", file.read_text()))
        for file in (BENCHMARKS / "README.md", ROOT / "Makefile")
    )
    assert table == made
    assert {f"{name}/run.py" for name in NAMES} <= table


def test_the_table_of_the_readme_takes_its_rows_from_claims() -> None:
    for name in readme().ORDER:
        assert callable(load(name).claims)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_whole_or_as_before(name: str) -> None:
    for script in (BENCHMARKS / name).glob("*.py"):
        assert not re.search(r'(?i)results(\.json"\))?\.write_text', script.read_text())


@pytest.mark.parametrize("name", OF_ACCURACY)
def test_a_script_that_measures_no_time_may_have_one_core(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told(Exception):
        pass

    def tell(threads: int) -> None:
        raise Told(f"{threads} threads")

    monkeypatch.setattr(torch, "set_num_threads", tell)
    with pytest.raises(Told, match="3 threads"):
        started(load(name), [str(tmp_path), "--threads", "3"], tmp_path, monkeypatch)


# One by one ----------------------------------------------------------------------------------


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
        ("1 - AUROC on Caltech-101: KMeans, energy / pixels, PCA", "<= 0.8",
         "0.75 (0.50 to 1.00): held"),
        ("1 - AUROC on Caltech-101: KMeans, energy / PCA, energy", "<= 0.8",
         "1.00 (0.50 to 2.00): missed"),
    ]  # fmt: skip


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


def heard(gain: float) -> dict[str, Any]:
    """A row of audio_denoising at 0 dB."""
    of = {"gain": {"erg": {"value": gain}}, "ahead": {"Wiener": {"value": gain, "low": gain}}}
    return {"seconds": 1.0, "scores": {"ratios": {"0": {"si_sdr": of, "segmental_snr": of}}}}


def test_denoisers_of_other_steps_are_not_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    load("audio_denoising").table({
        "george, 2000 steps, seed 0": heard(4.0), "george, 2000 steps, seed 1": heard(5.0),
        "george, 10 steps, seed 0": heard(0.5),
    })  # fmt: skip
    long, short = capsys.readouterr().out.split("\n10 steps, 1 runs\n")
    assert "| 0 dB | 4.50 (4.00 to 5.00) |" in long
    assert "| 0 dB | 0.50 (0.50 to 0.50) |" in short


def filled(psnr: float) -> dict[str, Any]:
    """A row of inpainting."""
    score = {"mean": {"erg": {"value": psnr}}}
    return {"scores": {"kinds": {"text": {"psnr": score, "psnr_hidden": score, "ssim": score}}}}


def test_inpainters_of_other_steps_are_not_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    load("inpainting").table({
        "cifar10, 1500 steps, seed 0": filled(30.0), "cifar10, 1500 steps, seed 1": filled(32.0),
        "cifar10, 10 steps, seed 0": filled(10.0),
    })  # fmt: skip
    told = capsys.readouterr().out
    assert "| cifar10, 1500 steps, text | erg | 31.00 (30.00 to 32.00) |" in told
    assert "| cifar10, 10 steps, text | erg | 10.00 (10.00 to 10.00) |" in told


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
    module.measure(module.ROWS["convolutional autoencoder"], tmp_path, seed=0, trial=False)
    assert [type(model) for model in models] == [erg.Fitted] * 4


def test_rotation_has_as_many_seeds_as_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("autoencoders")
    scores = {"codes": 2.0, "before training": 1.0, "PCA": 1.0}
    monkeypatch.setattr(module, "measure", lambda *_, **__: {"scores": scores})
    done = started(module, [str(tmp_path), "--seeds", "0", "1", "2"], tmp_path, monkeypatch)
    assert set(done) == {f"{row}; seed {seed}" for row in module.ROWS for seed in range(3)}
    with pytest.raises(SystemExit, match="2"):
        started(module, [str(tmp_path), "--batch", "64"], tmp_path, monkeypatch)


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


def test_a_figure_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("figures")
    bad, good = list(module.FIGURES)[:2]

    def command(words: list[str], **_: Any) -> Any:
        if bad in words:
            return subprocess.CompletedProcess(words, 1, "", "it is Monday")
        Path(words[-1]).write_bytes(b"a picture")
        return subprocess.CompletedProcess(words, 0, "wells: 3\n", "")

    monkeypatch.setattr(module.subprocess, "run", command)
    with pytest.raises(SystemExit, match=f"1 figures failed: {bad}"):
        started(module, ["--figures", bad, good], tmp_path, monkeypatch)
    assert "it is Monday" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "results.json").read_text())) == [good]


def learned(method: str, gain: float, minutes: float = 3) -> dict[str, Any]:
    """A row of methods."""
    return {
        "method": method, "family": "convnet", "seed": 0, "minutes": minutes, "images": 20_000,
        "tested": 10_000, "before": {"knn20": 30.0}, "after": {"knn20": 30.0 + gain},
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


TRAININGS = ("small", "through", "stopped", "resumed")
OPTIONS = {"gigabytes": 5.0, "steps": 60}


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_shards_are_trained_on_from_the_start(
    before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of a start that was killed, also in the middle of resuming, are not gone on with."""
    module, calls = load("shards"), list[str]()
    places = [tmp_path / "runs-5-60" / place for place in ("small", "through", "stopped")]

    def end(out: Path) -> None:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.ones(3)}, out / "checkpoints" / "step_000000060.safetensors")

    def watched(arguments: list[str], code: int) -> dict[str, float]:
        out = Path(arguments[-2])
        assert not (out / "left").exists()
        end(out)
        calls.append(f"{out.name}, {arguments[2]} GB, {code}")
        return {"peak_megabytes": 100.0}

    for i, place in enumerate(places):
        end(place)
        if i >= min(before, 2):
            (place / "left").touch()
    monkeypatch.setattr(module, "watched", watched)
    part: dict[str, Any] = {what: {"peak_megabytes": 100.0} for what in TRAININGS[:before]}
    module.measure_missing(part, SimpleNamespace(folder=tmp_path, **OPTIONS), lambda: None)
    whole = ["small, 0.4 GB, 0", "through, 5 GB, 0", "stopped, 5 GB, 75", "stopped, 5 GB, 0"]
    assert calls == whole[min(before, 2) :]
    assert part["bit_equal"]
    assert part["bounded"]


def test_ends_are_compared_bit_for_bit_in_any_order_of_what_is_said(tmp_path: Path) -> None:
    state, file = load("shards").state, tmp_path / "checkpoint.safetensors"
    states: list[Any] = []
    for said in ({"step": "8", "format": "1"}, {"format": "1", "step": "8"}, {"step": "8"}):
        tensor = {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}
        head = json.dumps({"__metadata__": said, "w": tensor}).encode()
        for bits in (b"\x00\x00", b"\x00\x80"):  # 0 and -0
            file.write_bytes(len(head).to_bytes(8, "little") + head + bits)
            states.append(state(file))
    first, other_bits, other_order, *_, other_step, _ = states
    assert first == other_order
    assert first not in (other_bits, other_step)


def test_memory_of_shards_has_a_bound(tmp_path: Path) -> None:
    module, options = load("shards"), SimpleNamespace(folder=tmp_path, **OPTIONS)
    part: dict[str, Any] = {what: {"peak_megabytes": 500.0} for what in TRAININGS}
    part |= {"bit_equal": True}
    module.measure_missing(part, options, lambda: None)
    assert part["bounded"]
    part["resumed"]["peak_megabytes"] = 501 + module.BOUND / 1e6
    module.measure_missing(part, options, lambda: None)
    assert not part["bounded"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_soak_that_was_stopped_early_is_none(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("soak")

    def fit(*_: Any, show: Callable[[Any], None], **__: Any) -> None:
        show(SimpleNamespace(step=1))
        raise Stopped(75, 1)

    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(module.os, "kill", lambda *_: None)
    minutes = ["--minutes", "0" if whole else "30"]
    if whole:
        assert started(module, minutes, tmp_path, monkeypatch)["constant"]
    else:
        with pytest.raises(SystemExit, match="nothing is written"):
            started(module, minutes, tmp_path, monkeypatch)
        assert not (tmp_path / "results.json").exists()


def test_weak_scaling_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, calls = load("weak_scaling"), list[int]()

    def measure(processes: int, steps: int) -> dict[str, Any]:
        calls.append(processes)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return {"images_per_second": {1: 10.0, 2: 19.0}[processes]}

    monkeypatch.setattr(module, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        started(module, ["--repetitions", "2"], tmp_path, monkeypatch)
    done = started(module, ["--repetitions", "2"], tmp_path, monkeypatch)
    assert calls == [1, 2, 1, 2, 2]
    assert module.efficiencies(done) == {"30 steps": [0.95, 0.95]}
