"""Runs as data: written, read, built again."""

import json
import os
from dataclasses import replace

import pytest
import torch

from erg.schedule import Cosine, Linear
from erg.train.run import Optimiser, Run, environment, has_bf16_instructions
from erg.views.plan import SIMCLR, Masking, Plan, two_views


def written_and_read(run: Run, **kwargs: object) -> Run:
    return Run.from_json(json.loads(json.dumps(run.to_json(), allow_nan=False)), **kwargs)


RUNS = [
    Run(method="SimCLR", encoder="conv", image_size=32),
    Run(
        method="BYOL", method_args={"momentum": Linear(0.9, 1.0)}, encoder="resnet18",
        encoder_args={"layers": (1, 1, 1, 1)}, image_size=64, plan=two_views(SIMCLR),
        optimiser=Optimiser(name="lars", lr=0.3, clip=1.0), seed=3, label="label",
    ),
    Run(method="KMeans", method_args={"beta": float("inf")}, encoder="pixels", image_size=32),
    Run(
        method="MAE", encoder="conv", image_size=32,
        plan=Plan(main=(replace(SIMCLR, mask=Masking(grid=(4, 4))),), pairs="itself"),
    ),
    Run(
        method="RELICv2", encoder="conv", image_size=32, data="photos", mask="masks",
        plan=two_views(replace(SIMCLR, background=0.3)),
    ),
]  # fmt: skip


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.method)
def test_a_run_survives_json(run: Run) -> None:
    assert written_and_read(run) == run


def test_a_method_by_path_must_be_repeated(tmp_path) -> None:
    bait = tmp_path / "bait.py"
    canary = tmp_path / "canary"
    bait.write_text(f"open({str(canary)!r}, 'w').close()")
    told = Run(method=f"{bait}:Bait", encoder="conv", image_size=32).to_json()
    with pytest.raises(ValueError, match="repeat it: --method"):
        Run.from_json(told)
    with pytest.raises(ValueError, match="repeat it"):
        Run.from_json(told, method="SimCLR")
    assert not canary.exists()
    assert Run.from_json(told, method=f"{bait}:Bait").method == f"{bait}:Bait"
    assert not canary.exists(), "reading a run runs nothing, even where it is trusted"


@pytest.mark.parametrize(
    "hostile",
    [
        [],
        {},
        {"format": 2},
        {"format": 1, "method": ["SimCLR"]},
        {"format": 1, "method": "os:system"},
        {"format": 1, "method": "SimCLR", "encoder": "conv", "image_size": 0},
        {"format": 1, "method": "SimCLR", "encoder": "conv", "image_size": 8,
         "plan": {"type": "Popen", "args": ["true"]}},
        {"format": 1, "method": "SimCLR", "encoder": "conv", "image_size": 8,
         "method_args": {"temperature": {"type": "__import__", "name": "os"}}},
    ],
)  # fmt: skip
def test_a_hostile_run_is_refused(hostile: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Run.from_json(hostile)  # type: ignore[arg-type]


def test_build_is_deterministic_and_follows_the_seed() -> None:
    run = Run(method="SimCLR", encoder="conv", image_size=32)
    torch.manual_seed(123)
    first = run.build().state_dict()
    again = run.build().state_dict()
    other = replace(run, seed=1).build().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_arguments_are_checked_with_a_suggestion() -> None:
    run = Run(method="SimCLR", method_args={"temprature": 1}, encoder="conv", image_size=32)
    with pytest.raises(ValueError, match="Did you mean temperature"):
        run.build()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch should be at least 1"),
        ({"batch": 10, "accumulate": 3}, "cannot be split"),
        ({"steps": -1}, "steps should be at least 1"),
        ({"compile": True, "recompute": True}, "compile and recompute do not go together"),
    ],
)
def test_impossible_runs_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run(method="SimCLR", encoder="conv", image_size=32, **change)


def test_blocks_are_computed_again_where_a_run_says_so() -> None:
    run = Run(method="SimCLR", encoder="resnet18", image_size=32)
    plain, frugal = (replace(run, recompute=told).build().encoder for told in (False, True))
    block = type(plain.units()[0])
    assert all(type(each) is block for each in plain.units())
    assert all(type(each) is not block and isinstance(each, block) for each in frugal.units())
    with pytest.raises(ValueError, match="conv has no blocks to compute again"):
        Run(method="SimCLR", encoder="conv", image_size=32, recompute=True).build()


def test_learning_rate_warms_up_and_comes_down() -> None:
    chosen = Optimiser(lr=2.0, warmup=0.1, end=0.05)
    assert chosen.learning_rate(0) == 0
    assert chosen.learning_rate(0.05) == pytest.approx(1.0)
    assert chosen.learning_rate(0.1) == pytest.approx(2.0)
    assert chosen.learning_rate(0.55) == pytest.approx((2.0 + 0.1) / 2)
    assert chosen.learning_rate(1.0) == pytest.approx(0.1)
    assert Cosine(2.0, 0.1)(0.5) == pytest.approx(1.05)


@pytest.mark.parametrize(
    ("found", "there"),
    [
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
        ({}, False),
    ],
)
def test_bf16_is_what_the_processor_has_instructions_for_unless_a_run_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], there: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    cpu = torch.device("cpu")
    half, full = torch.bfloat16, None
    told = {"auto": half if there else full, "bf16": half, "32": full, "64": full}
    for precision, dtype in told.items():
        run = Run(method="SimCLR", encoder="conv", image_size=32, precision=precision)
        assert run.autocast(cpu) is dtype


def test_a_torch_that_does_not_tell_means_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_bf16_instructions()


def test_the_environment_names_the_machine() -> None:
    found = environment()
    assert found["cores"] == str(os.cpu_count())
    assert found["processor"]
    assert found["torch"] == torch.__version__.partition("+")[0]
