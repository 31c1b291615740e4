"""Estimates: devices share memory and time, at a speed that is measured."""

from dataclasses import replace

import pytest
import torch

from erg.recipes import estimates
from erg.recipes.estimates import estimate, images_per_second, named
from erg.recipes.leaderboard import ROWS
from erg.recipes.needs import Needs, needs
from erg.train.run import Run


def test_devices_share_memory_and_time() -> None:
    run = Run(method="SimCLR", encoder="conv", image_size=32, batch=512, steps=1000)
    of = Needs(encoder=0, state=2**30, block=2**28, activations=2**22, operations=10**9)
    alone = estimate(run, of, 1, 100.0)
    assert alone.memory == pytest.approx(1 + 2)
    assert alone.hours == alone.device_hours == pytest.approx(512 * 1000 / 100 / 3600)
    for devices in (2, 8, 64, 512):
        many = estimate(run, of, devices, 100.0)
        assert many.memory == pytest.approx(1 + 2 / devices)
        assert many.device_hours == pytest.approx(alone.device_hours)
        assert many.hours == pytest.approx(alone.hours / devices)
        shares = estimate(replace(run, strategy="fsdp"), of, devices, 100.0)
        assert shares.memory == pytest.approx(1 / devices + 1 / 4 + 2 / devices)
    uneven = estimate(run, of, 100, 100.0)  # 6 images on the fullest, 5.12 on average
    assert uneven.hours == pytest.approx(alone.hours * 6 / 512)
    parts = estimate(replace(run, accumulate=4), of, 2, 100.0)
    assert parts.memory == pytest.approx(1 + 2 / 8)
    assert parts.device_hours == pytest.approx(alone.device_hours)
    with pytest.raises(ValueError, match="600 devices cannot share a micro-batch of 512"):
        estimate(run, of, 600, 100.0)


class Clock:
    """Every look at it is another second later, and passes that are made are counted."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


def test_speed_is_images_over_the_median_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, bool]] = []

    class Watched(torch.nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            passes.append((input.shape[-1], torch.is_grad_enabled()))
            return super().forward(input)

    real = estimates.build_encoder

    def build(*args: object, **kwargs: object) -> torch.nn.Module:
        encoder = real(*args, **kwargs)  # type: ignore[arg-type]
        encoder.network[0].__class__ = Watched
        return encoder

    monkeypatch.setattr(estimates, "build_encoder", build)
    monkeypatch.setattr(estimates, "time", Clock())
    run = Run(
        method="DINO", encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=32,
        method_args={"hidden": 8, "dim": 4, "prototypes": 8, "small_crops": 2}, precision="32",
    )  # fmt: skip
    assert images_per_second(run, batch=6, steps=2) == pytest.approx(6.0)
    once = [(32, True), (32, True), (16, True), (16, True), (32, False), (32, False)]
    assert passes == 3 * once  # one to warm up, two to measure; the teacher's at the end


def test_rows_are_found_by_name() -> None:
    assert named("SEER", "RG-10B") in ROWS
    with pytest.raises(ValueError, match=r"no row is called 'SEER' 'R50'. There are .*'SimCLR'"):
        named("SEER", "R50")


def test_the_command_scales_a_measured_speed_by_operations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[Run] = []

    def measure(run: Run, *, batch: int, steps: int) -> float:
        tried.append(run)
        return 10.0

    monkeypatch.setattr(estimates, "images_per_second", measure)
    estimates.main(["MoCo v2", "R50", "--like", "SimSiam", "R50", "--devices", "8", "256"])
    assert [run.method for run in tried] == ["SimSiam"]
    taught, plain = (needs(named(m, "R50").run()) for m in ("MoCo v2", "SimSiam"))
    speed = 10 * plain.operations / taught.operations
    said = capsys.readouterr().out
    assert "measured here: 10 images/s of SimSiam R50" in said
    assert f"estimated of MoCo v2 R50: {speed:.3g} images/s" in said
    run = named("MoCo v2", "R50").run()
    hours = run.steps * run.batch / speed / 3600
    for line, devices in zip(said.splitlines()[-2:], (8, 256), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == str(devices)
        assert cells[2:] == [f"{hours / devices:,.0f}", f"{hours:,.0f}"]
    estimates.main(["MoCo v2", "R50"])  # 512 devices have no batch of 256 to share
    told = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert told == ["1", "8", "64"]
