"""What runs take: operations and bytes counted by hand, shared by devices."""

from dataclasses import replace

import pytest
import torch

from erg.encoders import build_encoder, parameter_count
from erg.recipes.needs import Needs, estimate, needs, on_meta, one_pass
from erg.train.run import Optimiser, Run


@pytest.mark.parametrize(("whole", "blocks"), [(False, ()), (True, (1,))])
def test_a_pass_is_counted_as_by_hand(whole: bool, blocks: tuple[int, ...]) -> None:
    """One stage of a small network: convolution, batch norm and relu in place, a mean."""
    with torch.device("meta"):
        encoder = build_encoder("conv", 16, width=4, stages=1, whole=whole, blocks=blocks)
    cells = 256 if whole else 64
    operations = 2 * cells * 9 * 3 * 4 + len(blocks) * 2 * cells * 9 * 4 * 4
    # Kept: the image; of each layer what the convolution made, and what relu left of it.
    values = 3 * 256 + 2 * cells * 4 + len(blocks) * 2 * cells * 4
    found = one_pass(encoder, 16)
    assert found[0] == operations
    assert found[1] == pytest.approx(2 * values, rel=0.02)  # batch norms keep a few numbers more


def test_operations_and_bytes_of_a_run_add_up() -> None:
    run = Run(
        method="BYOL", method_args={"hidden": 8, "dim": 4}, encoder="conv",
        encoder_args={"width": 4, "stages": 1}, image_size=16, batch=8, steps=10,
    )  # fmt: skip
    once, kept = one_pass(on_meta(run).encoder, 16)
    found = needs(run)
    assert found.operations == 2 * 3 * once + 2 * once  # student and teacher, two crops
    assert found.activations == 2 * kept
    method = run.build()
    held = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    assert found.state == held + 12 * parameter_count(method)
    plain = replace(run, optimiser=Optimiser(name="sgd"))
    assert needs(plain).state == held + 8 * parameter_count(method)
    assert found.encoder == sum(p.numel() for p in method.encoder.parameters())


def test_resnet_50_takes_the_operations_everybody_counts() -> None:
    """4.1 billion multiplications and additions of 224 x 224 pixels (He et al. 2016)."""
    with torch.device("meta"):
        encoder = build_encoder("resnet50", 224)
    assert one_pass(encoder, 224)[0] == pytest.approx(2 * 4.1e9, rel=0.01)


def test_devices_share_memory_and_time() -> None:
    run = Run(method="SimCLR", encoder="conv", image_size=32, batch=512, steps=1000)
    of = Needs(encoder=0, state=2**30, activations=2**22, operations=10**9)
    alone = estimate(run, of, 1, 1e12)
    assert alone.memory == pytest.approx(1 + 2)
    assert alone.hours == alone.device_hours == pytest.approx(512 * 1000 * 1e9 / 1e12 / 3600)
    for devices in (2, 8, 64, 512):
        many = estimate(run, of, devices, 1e12)
        assert many.memory == pytest.approx(1 + 2 / devices)
        assert many.device_hours == pytest.approx(alone.device_hours)
        assert many.hours == pytest.approx(alone.hours / devices)
    uneven = estimate(run, of, 100, 1e12)  # 6 images on the fullest, 5.12 on average
    assert uneven.hours == pytest.approx(alone.hours * 6 / 512)
    parts = estimate(replace(run, accumulate=4), of, 2, 1e12)
    assert parts.memory == pytest.approx(1 + 2 / 8)
    assert parts.device_hours == pytest.approx(alone.device_hours)
    with pytest.raises(ValueError, match="600 devices cannot share a micro-batch of 512"):
        estimate(run, of, 600, 1e12)
