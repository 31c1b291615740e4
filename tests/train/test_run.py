"""Runs as data: written, read, built again."""

import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erg.schedule import Cosine, Linear
from erg.train.plain import fits
from erg.train.run import Optimiser, Run, environment, has_bf16_instructions
from erg.views.plan import SIMCLR, Masking, Plan, Tiles, two_views


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
    Run(
        method="Jigsaw", encoder="conv", image_size=32, checkpoint_minutes=1,
        optimiser=Optimiser(lr=1),
        plan=Plan(main=(replace(SIMCLR, tiles=Tiles(orders=((0, 8), (8, 0)))),), pairs="order"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.method)
def test_a_run_survives_json(run: Run) -> None:
    assert written_and_read(run) == run


def test_paths_and_numbers_of_numpy_are_written_as_json_has_them() -> None:
    given: dict[str, Any] = {
        "data": Path("photos"),
        "batch": np.int64(64),
        "method_args": {"temperature": np.float32(2)},
    }
    run = Run(method="SimCLR", encoder="conv", image_size=32, **given)
    plain: dict[str, Any] = {"data": "photos", "batch": 64, "method_args": {"temperature": 2.0}}
    assert written_and_read(run) == replace(run, **plain)


@pytest.mark.parametrize(
    ("value", "kind", "right"),
    [
        ((1, 2), tuple, True),
        ((1, 2), list, True),
        ((1,), list[int] | None, True),
        (None, list[int] | None, True),
        (("a",), list[int] | None, False),
        (3, list, False),
        (3, tuple, False),
        ((), tuple[int, ...], True),
        ((1, 2), tuple[int, int, int], False),
    ],
)
def test_sequences_are_of_their_types(value: Any, kind: Any, right: bool) -> None:
    assert fits(value, kind) == right


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


def seen(**changes: Any) -> dict[str, Any]:
    """A plan of one view."""
    return {"plan": {"type": "Plan", "main": [{"type": "Augmentation", **changes}]}}


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"method": ["SimCLR"]}, "method should be text (got ('SimCLR',))."),
    ({"steps": 6.5}, "steps should be a whole number (got 6.5)."),
    ({"steps": True}, "steps should be a whole number (got True)."),
    ({"compile": 1}, "compile should be true or false (got 1)."),
    ({"label": 3}, "label should be text or null (got 3)."),
    ({"encoder_args": [1]}, "encoder_args should be {name: value} (got (1,))."),
    ({"precision": "fp32"}, "precision should be auto or 32 or bf16 or 64 (got 'fp32')."),
    ({"plan": {}}, "plan should be {type: Plan} or null (got {})."),
    ({"optimiser": {"type": "Tiles"}}, "optimiser should be {type: Optimiser} (got Tiles(grid="),
    ({"optimiser": {"type": "Optimiser", "lr": "1"}}, "optimiser.lr should be a number (got '1')."),
    ({"optimiser": {"type": "Optimiser", "rate": 1}}, "optimiser.rate is nothing that Optimiser"),
    ({"optimiser": {"type": "Optimiser", "lr": {"type": "float", "value": "nan"}}},
     "optimiser.lr should be the number inf or -inf (got {'value': 'nan'})."),
    ({"plan": {"type": "Plan"}}, "plan.main is missing."),
    ({"plan": {"type": "Plan", "main": []}}, "a plan needs at least one main view"),
    ({"plan": {"type": "Plan", "main": ["x"]}},
     "plan.main should be [{type: Augmentation}, ...] (got ('x',))."),
    (seen(mask="x"), "plan.main[0].mask should be {type: Masking} or null (got 'x')."),
    (seen(turns="a"), "plan.main[0].turns should be a whole number or null (got 'a')."),
    (seen(crop=[0.5]), "plan.main[0].crop should be [a number, a number] or null (got (0.5,))."),
    (seen(crop=[1, None]), "plan.main[0].crop should be [a number, a number] or null (got (1, Non"),
    (seen(mask={"type": "Masking"}), "plan.main[0].mask.grid is missing."),
    (seen(mask={"type": "Masking", "grid": [4, 4], "kind": 1}),
     "plan.main[0].mask.kind should be random or blocks or "),
    (seen(tiles={"type": "Tiles", "orders": [[0, "1"]]}),
     "plan.main[0].tiles.orders should be [[a whole number, ...], ...] (got ((0, '1'),))."),
    ({"method_args": {"m": {"type": "Cosine", "start": "a", "end": 1}}},
     "method_args.m.start should be a number (got 'a')."),
    ({"method_args": {"m": {"type": "Cosine", "start": 1}}}, "method_args.m.end is missing."),
    ({"method_args": {"m": [{"type": []}]}}, "holds no [], as at method_args.m[0]. Known: Plan"),
    ({"method_args": {"a\nb": {"type": "Cosine"}}}, r"method_args['a\nb'].start is missing."),
    ({"method": "a\nb"}, r"the run's method 'a\nb' is not in the catalogue."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_values_of_other_types_are_refused_in_one_line(change: dict, message: str) -> None:
    """Also where nothing else looks at types, as it does in these tests."""
    told = {**json.loads(json.dumps(RUNS[0].to_json())), **change}
    with pytest.raises(ValueError) as refused:
        Run.from_json(told)
    said = str(refused.value)
    assert message in said
    assert "\n" not in said
    assert len(said) < 250


def test_a_grid_of_a_million_cells_is_not_written_out() -> None:
    tiles = {"type": "Tiles", "grid": [1000, 1000], "orders": [[0, 999_999], [1, 2]]}
    tracemalloc.start()
    try:
        run = Run.from_json({**RUNS[0].to_json(), **seen(tiles=tiles)})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert run.plan is not None
    assert run.plan.main[0].tiles == Tiles(grid=(1000, 1000), orders=((0, 999_999), (1, 2)))
    assert peak < 1 << 20


def test_a_run_of_ten_thousand_lists_in_each_other_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    told = {**RUNS[0].to_json(), "method_args": {"a": deep}}
    with pytest.raises(ValueError, match=r"^the run is damaged: it is nested too deeply\. Correct"):
        Run.from_json(told)


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
    ("method", "given", "message"),
    [
        ("BYOL", {"momentum": 0.99}, r"BYOL's momentum should be .*Schedule.* \(got 0.99\)"),
        ("PCA", {"by": "svd"}, r"PCA's by should be closed or .* \(got 'svd'\)"),
        ("SimCLR", {"temperature": "warm"}, r"temperature should be a number \(got 'warm'\)"),
        ("SimCLR", {"temperature": float("nan")}, r"temperature should be a number \(got nan\)"),
        ("SimCLR", {"temperature": -0.2}, r"temperature should be at least 0 \(got -0.2\)"),
        ("SimCLR", {"depth": 2.0}, r"depth should be a whole number \(got 2.0\)"),
        ("IJEPA", {"area": [0.1, 0.2, 0.3]}, r"area should be \[a number, a number\]"),
    ],
)
def test_values_of_arguments_are_checked(method: str, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run(method=method, method_args=given, encoder="conv", image_size=32).build()


def test_a_warm_up_lies_within_the_run() -> None:
    with pytest.raises(ValueError, match="warmup is a share of training"):
        Optimiser(warmup=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch should be at least 1"),
        ({"batch": 10, "accumulate": 3}, "cannot be split"),
        ({"steps": -1}, "steps should be at least 1"),
        ({"precision": "fp32"}, "no precision is called 'fp32'. Use auto, 32, bf16 or 64"),
        ({"compile": True, "recompute": True}, "compile and recompute do not go together"),
    ],
)
def test_impossible_runs_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run(method="SimCLR", encoder="conv", image_size=32, **change)


@pytest.mark.parametrize("clip", [-1.0, float("nan")])
def test_a_gradient_is_not_turned_round(clip: float) -> None:
    with pytest.raises(ValueError, match=f"clip should be at least 0 .got {clip}"):
        Optimiser(clip=clip)


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
