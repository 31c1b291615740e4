"""Two processes that each hold a share of every parameter end as one that holds all."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from erg.encoders import build_encoder
from erg.train.folder import RunFolder
from erg.train.health import Health
from erg.train.loop import Loop
from erg.train.preempt import Stopped
from erg.train.processes import leave_group
from erg.train.run import Optimiser, Run
from erg.train.sharding import check_shardable
from erg.train.training import train
from tests.train.test_shards import merged
from tests.train.test_training import VIT, a_run, data

STEPS = 4
TINY = {**VIT[1], "depth": 2}
CROPS = {**TINY, "dynamic_img_size": True}
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "simclr": ("SimCLR", VIT[0], TINY, {}),
    "sgd": ("SimCLR", VIT[0], TINY, {"optimiser": Optimiser(name="sgd", lr=0.1)}),
    "dino": ("DINO", VIT[0], CROPS, {"accumulate": 2}),
    "mae": ("MAE", VIT[0], TINY, {}),
    "regnet": (
        "SimCLR", "regnetx_002", {}, {"optimiser": Optimiser(name="lars", lr=0.1, clip=1.0)}
    ),
    "seer": (
        "SwAV", "regnetx_002", {}, {"optimiser": Optimiser(name="larc", lr=0.1), "recompute": True}
    ),
}  # fmt: skip


def shared(case: str, strategy: str) -> Run:
    method, encoder, arguments, changes = CASES[case]
    run = a_run(method, encoder=encoder, encoder_args=arguments, precision="64", steps=STEPS)
    return replace(run, strategy=strategy, **changes)


def asks(loop: Loop, step: int) -> None:
    """Have this process asked to stop while it does a step."""
    do = loop.step

    def asked(number: int, batches: Any) -> Any:
        if number == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return do(number, batches)

    loop.step = asked


def sitting(run: Run, folder: Path, until: int | None, rank: int = 0) -> Loop:
    """Go on with a run to some step, or to its end; a signal to one process stops all."""
    loop = Loop(run, data(), device=torch.device("cpu"), threads=0)
    try:
        watching = (Health(looks=2),)
        if until is None:
            train(loop, RunFolder(folder), observers=watching, resume=True)
        else:
            if rank == int(os.environ.get("RANK", "0")):
                asks(loop, until)
            with pytest.raises(Stopped) as stopped:
                train(loop, RunFolder(folder), observers=watching, resume=True)
            assert (stopped.value.code, stopped.value.step) == (75, until)
    finally:
        loop.close()
    return loop


def child(out: Path) -> None:
    """What each of two processes does: every run in two sittings, and what it held of it."""
    torch.set_num_threads(1)
    sitting(shared("dino", "fsdp"), out / "through", None)
    for number, case in enumerate(CASES):
        sitting(shared(case, "fsdp"), out / case, 2, rank=number % 2)
        loop = sitting(shared(case, "fsdp"), out / case, None)
        parameters = list(loop.method.named_parameters())
        assert all(isinstance(p, DTensor) for _, p in parameters)
        assert all(isinstance(m, DTensor) for s in loop.optimiser.state.values()
                   for m in s.values() if isinstance(m, torch.Tensor) and m.ndim)  # fmt: skip
        if case in ("dino", "regnet"):  # with a teacher and micro-batches, and without
            assert loop.trial(4, 0.0) > 0
        held = {
            "all": sum(p.numel() for _, p in parameters),
            "held": sum(p.to_local().numel() for _, p in parameters),
            "taught": sum(p.to_local().numel() for name, p in parameters if "teacher" in name),
        }
        (out / f"{case}-{os.environ['RANK']}.json").write_text(json.dumps(held))
    leave_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(Path(__file__)), str(out)],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return out


def end(folder: Path) -> dict[str, torch.Tensor]:
    last = folder / "checkpoints" / f"step_{STEPS:09d}"
    return merged(last) if last.is_dir() else load_file(last.with_suffix(".safetensors"))


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_shares_equal_the_whole(case: str, together: Path, tmp_path: Path) -> None:
    sitting(shared(case, "ddp"), tmp_path / "alone", None)
    found, wanted = end(together / case), end(tmp_path / "alone")
    assert found.keys() == wanted.keys(), "one form of checkpoint, with optimiser and buffers"
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-8, err_msg=key)
    mine, theirs = events(together / case), events(tmp_path / "alone")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for one, other in zip(mine, theirs, strict=True):
        for key in ("loss", "grad_norm", "std", "auroc"):
            assert (key in one) == (key in other)
            assert one.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_a_process_holds_about_half(case: str, together: Path) -> None:
    both = [json.loads((together / f"{case}-{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(held["held"] for held in both) == both[0]["all"]
    assert max(held["held"] for held in both) < 0.6 * both[0]["all"]
    if case == "dino":
        assert both[0]["taught"] > 0.4 * both[0]["held"]


def test_two_sittings_end_as_one_bit_for_bit(together: Path) -> None:
    last = Path("checkpoints") / f"step_{STEPS:09d}"
    for rank in (1, 2):
        shard = last / f"shard_{rank:05d}.safetensors"
        assert (together / "through" / shard).read_bytes() == (
            together / "dino" / shard
        ).read_bytes()
    assert events(together / "through") == events(together / "dino")


def test_one_process_goes_on_from_shares(together: Path, tmp_path: Path) -> None:
    """From step 2 in shares to the end in one process, which holds all."""
    name = "step_000000002"
    saved, here = together / "dino" / "checkpoints", tmp_path / "run" / "checkpoints"
    shutil.copytree(saved / name, here / name)
    shutil.copy(saved / f"{name}.json", here)
    sitting(shared("dino", "fsdp"), tmp_path / "run", None)
    found, wanted = end(tmp_path / "run"), end(together / "dino")
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-8, err_msg=key)


def test_units_are_the_blocks() -> None:
    vit = build_encoder(VIT[0], 32, **TINY)
    assert [type(block).__name__ for block in vit.units()] == ["Block", "Block"]
    regnet = build_encoder("regnetx_002", 32)
    assert len(regnet.units()) == 1 + 1 + 4 + 7  # Radosavovic et al. 2020, REGNETX-200MF


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("SimCLR", {}, "conv has none. Use a ViT or a RegNet"),
        ("KMeans", {"encoder": VIT[0], "encoder_args": TINY}, "after every epoch"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    method: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        check_shardable(a_run(method, **changes).build())
    with pytest.raises(ValueError, match="no strategy is called 'zero'"):
        a_run("SimCLR", strategy="zero")


def test_a_small_run_from_the_command_line(tmp_path: Path) -> None:
    told = Run(
        method="DINO", method_args={"prototypes": 16, "hidden": 16, "dim": 8, "small_crops": 2},
        encoder=VIT[0], encoder_args=CROPS, image_size=32, data="synthetic:120", batch=24, steps=2,
        strategy="fsdp",
    )  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(told.to_json()))
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "erg.cli", "pretrain", "--from", str(tmp_path / "run.json"),
         "--out", str(out), "--devices", "2"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "run.json").read_text())["strategy"] == "fsdp"
    weights = load_file(out / "encoder" / "model.safetensors")
    start = load_file(out / "encoder_start" / "model.safetensors")
    saved = merged(out / "checkpoints" / "step_000000002")
    assert any(not torch.equal(weights[key], start[key]) for key in weights)
    for key, value in weights.items():
        assert torch.equal(value, saved[f"method.encoder.network.{key}"])
    assert (out / "report.html").exists()


if __name__ == "__main__":
    child(Path(sys.argv[1]))
