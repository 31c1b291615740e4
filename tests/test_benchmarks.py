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

import pytest
import torch
from safetensors.torch import save_file

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
    assert sorted(readme().ORDER) == [name for name in NAMES if hasattr(load(name), "claims")]
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


def heard(gain: float, ahead: float = 1.0) -> dict[str, Any]:
    """A row of audio_denoising at 0 dB; the baseline that is told the noise is better."""
    above = {"spectral subtraction": ahead + 1, "Wiener": ahead, "told: Wiener": -1.0}
    of = {
        "gain": {"erg": {"value": gain}},
        "ahead": {way: {"value": points, "low": points} for way, points in above.items()},
    }
    return {"seconds": 1.0, "scores": {"ratios": {"0": {"si_sdr": of, "segmental_snr": of}}}}


def test_denoisers_of_other_steps_are_not_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    load("audio_denoising").table({
        "george, 2000 steps, seed 0": heard(4.0), "george, 2000 steps, seed 1": heard(5.0),
        "george, 10 steps, seed 0": heard(0.5),
    })  # fmt: skip
    long, short = capsys.readouterr().out.split("\n10 steps, 1 runs\n")
    assert "| 0 dB | 4.50 (4.00 to 5.00) |" in long
    assert "| 0 dB | 0.50 (0.50 to 0.50) |" in short


def test_denoisers_are_claimed_by_the_worst_run_of_the_usual_steps() -> None:
    module, what = load("audio_denoising"), "SI-SDR at 0 dB, speaker and noises never heard"
    done = {
        "george, 2000 steps, seed 0": heard(4.0, 2.0), "lucas, 2000 steps, seed 0": heard(3.0, 1.5),
        "george, 10 steps, seed 0": heard(0.5, -2.0), "george, 12000 steps, seed 0": heard(0.5),
    }  # fmt: skip
    assert module.claims(done) == [
        (f"{what}: gain", ">= 3 dB", "3.00 dB (worst of 2 runs): held"),
        (f"{what}: above spectral subtraction and Wiener", "> 0 dB",
         "1.50 dB (worst of 2 runs): held"),
    ]  # fmt: skip
    done["lucas, 2000 steps, seed 1"] = heard(2.5, -0.5)
    assert [measured for _, _, measured in module.claims(done)] == [
        "2.50 dB (worst of 3 runs): missed", "-0.50 dB (worst of 3 runs): missed",
    ]  # fmt: skip


def filled(psnr: float) -> dict[str, Any]:
    """A row of inpainting."""
    score = {"mean": {"erg": {"value": psnr}}, "ahead": {"median": {"value": psnr - 29}}}
    return {"scores": {"kinds": {"text": {"psnr": score, "psnr_hidden": score, "ssim": score}}}}


def test_inpainters_of_other_steps_are_not_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    load("inpainting").table({
        "cifar10, 1500 steps, seed 0": filled(30.0), "cifar10, 1500 steps, seed 1": filled(32.0),
        "cifar10, 10 steps, seed 0": filled(10.0),
    })  # fmt: skip
    told = capsys.readouterr().out
    assert "| cifar10, 1500 steps, text | erg | 31.00 (30.00 to 32.00) |" in told
    assert "| cifar10, 10 steps, text | erg | 10.00 (10.00 to 10.00) |" in told
    assert "| cifar10, 1500 steps, text | median | +2.00 (+1.00 to +3.00) |" in told
    assert "| cifar10, 10 steps, text | median | -19.00 (-19.00 to -19.00) |" in told


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


def test_figures_are_claimed_when_every_one_was_drawn() -> None:
    module = load("figures")
    done = {name: {"seconds": 10.0 + i} for i, name in enumerate(module.FIGURES)}
    *_, slowest = module.FIGURES
    ((claim, bar, measured),) = module.claims(done)
    assert claim == f"`erg landscape`: the slowest of all {len(done)} figures"
    assert (bar, measured) == ("<= 60 s", f"{9.0 + len(done):.1f} s ({slowest}): held")
    done[slowest]["seconds"] = 60.4
    assert module.claims(done)[0][2] == f"60.4 s ({slowest}): missed"
    del done["wells"]
    assert module.claims(done) == []


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
        (out / "events.jsonl").write_text("{}\n")

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


def test_a_training_that_is_good_enough_ends_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("time_to_accuracy")
    curve = module.Curve([1, 2], 0.4, ())
    curve.start(SimpleNamespace(loader=SimpleNamespace(batch=8)))
    right = iter([0.39, 0.41])
    monkeypatch.setattr(curve, "accuracy", lambda _: next(right))
    assert curve.look(None, 1)["knn200"] == 0.39
    with pytest.raises(module.Enough):
        curve.look(None, 2)
    assert [(each["images"], each["accuracy"]) for each in curve.found] == [(8, 0.39), (16, 0.41)]


def test_seconds_to_an_accuracy_are_beside_both_precisions_of_the_peer() -> None:
    module = load("time_to_accuracy")
    half, full = module.PEERS
    done = {
        f"{half}; seed 0": {"batch": 256, "seconds": [2.0, 4.0, 3.2]},  # 80 images/s
        f"{full}; seed 0": {"batch": 256, "seconds": [8.0]},
        "ResNet-18, 25k images; seed 0": {"curve": [{"seconds": 100.0, "accuracy": 0.41}]},
    }
    assert module.lightly_seconds(done, half) == {0.40: 50_176 / 80, 0.44: 100_352 / 80}
    rows = {name: (bar, found) for name, bar, found in module.claims(done)}
    name = "speed to 40% on CIFAR-10 / lightly's in {}: ResNet-18 encoder"
    assert rows[name.format("bf16")] == (">= 2.5", "6.3 (6.3 to 6.3, n = 1)")
    assert rows[name.format("fp32")] == ("-", "15.7 (15.7 to 15.7, n = 1)")
    assert len(rows) == 4
    del done[f"{full}; seed 0"]
    assert len(module.claims(done)) == 2


def test_arms_differ_in_the_settings_of_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = load("training_step"), {}

    def run(command: list[str], *, env: dict[str, str], **further: Any) -> Any:
        seen[command[0]] = {name for name in env if name.startswith("MALLOC_")}
        return SimpleNamespace(stdout="{}")

    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module.sys, "executable", "ours")
    options = SimpleNamespace(peer_python="peer", data="data", steps=1, warm_up=1)
    for arms, changed in (((module.OURS, module.HALF), False), ((module.GIVEN, module.KEPT), True)):
        for arm in arms:
            module.measure(arm, options, 0)
        assert all(bool(names) == changed for names in seen.values())
        assert set(seen) == {"ours", "peer"}
