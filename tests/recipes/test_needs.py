"""What runs take: operations and bytes counted by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from erg import catalog
from erg.encoders import build_encoder, parameter_count
from erg.recipes import leaderboard
from erg.recipes.needs import crops, needs, on_meta, one_pass
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
    assert found.forward == operations
    assert found.backward == 2 * operations
    assert found.kept == pytest.approx(2 * values, rel=0.02)  # batch norms keep a few numbers more


def test_operations_and_bytes_of_a_run_add_up() -> None:
    run = Run(
        method="BYOL", method_args={"hidden": 8, "dim": 4}, encoder="conv",
        encoder_args={"width": 4, "stages": 1}, image_size=16, batch=8, steps=10,
    )  # fmt: skip
    once, _, kept = one_pass(on_meta(run).encoder, 16)
    found = needs(run)
    assert found.operations == 2 * 3 * once + 2 * once  # student and teacher, two crops
    assert found.activations == 2 * kept
    method = run.build()
    held = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    assert found.state == held + 12 * parameter_count(method)
    plain = replace(run, optimiser=Optimiser(name="sgd"))
    assert needs(plain).state == held + 8 * parameter_count(method)
    assert found.encoder == sum(p.numel() for p in method.encoder.parameters())


def test_each_network_of_moco_sees_one_view() -> None:
    small = {"encoder": "conv", "encoder_args": {"width": 4, "stages": 1}, "image_size": 16}
    moco = Run(method="MoCo", method_args={"queue": 8, "dim": 4}, batch=16, steps=10, **small)
    once, _, kept = one_pass(on_meta(moco).encoder, 16)
    found = needs(moco)
    assert found.operations == 3 * once + once
    assert found.activations == kept


def test_tiles_are_images_of_their_own() -> None:
    run = leaderboard.pirl("R50")
    assert crops(run, on_meta(run))[0] == [224] + [56] * 9


def test_banks_hold_a_row_of_every_image() -> None:
    for row in leaderboard.ROWS:
        run = row.run()
        if "size" in catalog.arguments(catalog.find(run.method)):
            assert run.method_args["size"] == leaderboard.IMAGENET
    assert needs(leaderboard.instance_discrimination("R50")).state > 4 * 128 * leaderboard.IMAGENET


def test_resnet_50_takes_the_operations_everybody_counts() -> None:
    """4.1 billion multiplications and additions of 224 x 224 pixels (He et al. 2016)."""
    with torch.device("meta"):
        encoder = build_encoder("resnet50", 224)
    assert one_pass(encoder, 224).forward == pytest.approx(2 * 4.1e9, rel=0.01)


BLOCKS: dict[str, Any] = {"layers": (1, 2, 1, 1), "channels": (32, 32, 32, 32), "small_stem": True}


def test_blocks_that_are_computed_again_keep_their_inputs_and_one_inside() -> None:
    """Beside what an encoder that does so keeps, counted by torch: its largest block."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 16, **BLOCKS).train()
    with torch.device("meta"):
        counted = build_encoder("resnet18", 16, **BLOCKS)
    weights = {p.untyped_storage()._cdata for p in encoder.parameters()}

    def bytes_kept(module: nn.Module, data: torch.Tensor) -> int:
        found: dict[int, torch.Tensor] = {}

        def keep(t: torch.Tensor) -> torch.Tensor:
            if t.untyped_storage()._cdata not in weights:
                found[t.untyped_storage()._cdata] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            held = module(data)
        assert held.requires_grad
        return sum(
            t.untyped_storage().nbytes() // t.element_size() * min(2, t.element_size())
            for t in found.values()
        )

    plain, frugal = one_pass(counted, 16), one_pass(counted, 16, recompute=True)
    data = torch.randn(2, 3, 16, 16)
    assert plain.kept == bytes_kept(encoder, data) // 2
    first = encoder.units()[0]
    x = torch.randn(2, 64, 16, 16, requires_grad=True)
    largest = bytes_kept(first, x) - 2 * x.numel()  # without its input
    encoder.recompute()
    # What running averages take is kept once more by a block that is computed again.
    assert frugal.kept == pytest.approx((bytes_kept(encoder, data) + largest) / 2, rel=0.01)
    assert frugal.kept < plain.kept
    assert frugal.forward == plain.forward
    stem = 2 * 16 * 16 * 9 * 3 * 64
    assert frugal.backward == 2 * plain.forward + plain.forward - stem


def test_a_run_that_computes_again_takes_more_operations_and_less_memory() -> None:
    run = Run(
        method="BYOL", method_args={"hidden": 8, "dim": 4}, encoder="resnet18",
        encoder_args=BLOCKS, image_size=16, batch=8, steps=10,
    )  # fmt: skip
    plain, frugal = needs(run), needs(replace(run, recompute=True))
    assert frugal.activations < plain.activations
    assert plain.operations < frugal.operations < 4 / 3 * plain.operations
    assert frugal.state == plain.state
    largest = 9 * 32 * (64 + 32) + 64 * 32 + 6 * 32  # two convolutions, a shortcut, three norms
    assert plain.block == frugal.block == 8 * largest
