"""The small convolutional network: its stages and their maps."""

import pytest
import torch
from torch import Tensor

from erg.encoders import build_encoder


def images(b: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(b, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_conv() -> None:
    encoder = build_encoder("conv", 32, width=4, stages=3)
    assert encoder.dim == 16
    assert encoder(images(2, 32)).shape == encoder(images(2, 16)).shape == (2, 16)
    with pytest.raises(ValueError, match="conv gives one vector per image"):
        encoder.tokens(images(2, 32))


def test_conv_with_residual_blocks_and_a_whole_first_stage() -> None:
    encoder = build_encoder("conv", 16, width=4, stages=3, blocks=[1, 2], whole=True).eval()
    seen: list[tuple[int, ...]] = []
    for layer in encoder.network:
        layer.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    found = encoder(images(2, 16))
    kinds = [type(layer).__name__ for layer in encoder.network]
    stage = ["Conv2d", "BatchNorm", "ReLU"]
    assert kinds == [*stage, *stage, "Residual", *stage, "Residual", "Residual"]
    assert seen[::3][:3] == [(4, 16, 16), (8, 8, 8), (8, 8, 8)]
    assert seen[-1] == (16, 4, 4)
    assert found.shape == (2, 16)
    with pytest.raises(ValueError, match="blocks names 4 stages"):
        build_encoder("conv", 16, stages=3, blocks=[1, 1, 1, 1])


@pytest.mark.parametrize("whole", [False, True])
def test_conv_shows_the_maps_of_its_stages(whole: bool) -> None:
    encoder = build_encoder("conv", 20, width=4, stages=3, blocks=[1, 2], whole=whole).eval()
    data = images(2, 20)
    maps = encoder.maps(data)
    assert encoder.map_widths == (4, 8, 16)
    sides = [20, 10, 5] if whole else [10, 5, 3]
    assert [tuple(m.shape) for m in maps] == [
        (2, width, side, side) for width, side in zip((4, 8, 16), sides, strict=True)
    ]
    assert torch.allclose(maps[-1].mean(dim=(2, 3)), encoder(data))
    assert build_encoder("pixels", 20).map_widths == ()
    with pytest.raises(ValueError, match="pixels shows no feature maps"):
        build_encoder("pixels", 20).maps(data)
