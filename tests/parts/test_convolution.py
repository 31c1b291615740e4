"""Convolutions of maps smaller than their kernels."""

import copy
import itertools

import pytest
import torch
from torch import nn

from erg.encoders import build_encoder
from erg.parts.convolution import Padding, _misses, with_right_gradients


def filled_memory() -> None:
    """What was freed is given out again, with what stands in it."""
    for size in range(14, 23):
        torch.full((1 << size,), float("nan"), dtype=torch.bfloat16)


@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("kernel", "padding", "stride"), [(3, 1, 1), (3, 1, 2), (7, 3, 2), (3, 1, 3), (5, 2, 1)]
)
def test_gradients_in_bf16_are_those_of_float32(
    side: int, kernel: int, padding: int, stride: int
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 128, kernel, stride, padding, bias=False)
    plain = plain.to(memory_format=torch.channels_last)
    ours = with_right_gradients(copy.deepcopy(plain))
    assert isinstance(ours, Padding)
    x = torch.randn(96, 64, side, side).bfloat16().float()
    x = x.to(memory_format=torch.channels_last)
    wanted = plain(x)
    given = torch.randn_like(wanted)
    wanted.backward(given)
    for _ in range(3):
        filled_memory()
        ours.weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = ours(x)
        found.backward(given)
        assert plain.weight.grad is not None
        assert ours.weight.grad is not None
        worst = (ours.weight.grad - plain.weight.grad).abs().max() / plain.weight.grad.abs().max()
        assert float(worst) < 0.02
        torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_transposed_ones_that_double_the_sides_need_no_help(side: int) -> None:
    """UNetAutoencoder's; those of 3 x 3 and 5 x 5 have the same fault for a single pixel."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(96, 64, side, side).bfloat16().float().to(memory_format=torch.channels_last)
    wanted = layer(x)
    given = torch.randn_like(wanted)
    (right,) = torch.autograd.grad(wanted, (layer.weight,), given)
    for _ in range(3):
        filled_memory()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer(x)
        (gradient,) = torch.autograd.grad(found, (layer.weight,), given.to(found.dtype))
        assert float((gradient - right).abs().max() / right.abs().max()) < 0.02


def test_in_float64_it_is_the_same_convolution() -> None:
    """Of all small shapes, also with groups, gaps and a bias."""
    torch.manual_seed(0)
    for kernel, padding, stride, dilation in (
        (3, 1, 2, 1),
        (3, 2, 1, 2),
        (4, 1, 3, 1),
        (5, 2, 2, 1),
    ):
        plain = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups=2).double()
        ours = with_right_gradients(copy.deepcopy(plain))
        for side in range(3, 9):
            x = torch.randn(2, 4, side, side + 1, dtype=torch.float64)
            torch.testing.assert_close(ours(x), plain(x), rtol=1e-12, atol=1e-12)


def test_which_weights_meet_nothing_by_walking_over_all_places() -> None:
    for side, kernel, stride, gap in itertools.product(range(1, 8), range(1, 6), (1, 2, 3), (1, 2)):
        for around in range(gap * (kernel - 1) // 2 + 2):
            conv = nn.Conv2d(1, 1, kernel, stride, around, gap)
            places = range(0, side + 2 * around - gap * (kernel - 1), stride)
            met = [{p + gap * i - around for p in places} & {*range(side)} for i in range(kernel)]
            if places:
                assert _misses(conv, 0, side) == _misses(conv, 1, side) == (not all(met))


NAMES = ["conv", "resnet", "resnet18", "regnety_002", "resnetv2_50x1_bit", "nf_resnet50"]


@pytest.mark.parametrize("name", NAMES)
def test_every_encoder_that_pads_has_them(name: str) -> None:
    encoder = build_encoder(name, 32)
    padding = [
        isinstance(each, Padding) for each in encoder.modules()
        if isinstance(each, nn.Conv2d) and each.padding != (0, 0)
    ]  # fmt: skip
    assert padding
    assert all(padding)
    keys = set(encoder.state_dict())
    assert keys == set(copy.deepcopy(encoder).state_dict())
