"""ResNets of any width: what timm computes, selective kernels by a loop, blocks that start idle."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from erg.encoders import build_encoder, load_encoder, parameter_count, save_encoder
from erg.parts.resnet import Bottleneck, ResNet, SelectiveKernel


def test_at_width_1_it_is_timms() -> None:
    """Their weights, in the order both make them, give the same map; the last blocks are v1.5's."""
    theirs = timm.create_model("resnet26", num_classes=0).eval()
    ours = ResNet(26, 1, selective=False).eval()
    # timm makes a block's shortcut last, as we do.
    given = list(theirs.state_dict().values())
    names = list(ours.state_dict())
    assert len(given) == len(names)
    ours.load_state_dict(dict(zip(names, given, strict=True)))
    data = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(data), theirs.forward_features(data), atol=1e-4)


def test_selective_kernels_mix_two_streams_channel_by_channel() -> None:
    torch.manual_seed(0)
    kernel = SelectiveKernel(8, stride=2).double().eval()
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64)
    convolution, norm = kernel.streams[0], kernel.streams[1]
    made = F.relu(norm(F.conv2d(x, convolution.weight, stride=2, padding=1)))
    assert made.shape == (3, 16, 3, 3)
    found = kernel(x)
    for i in range(3):
        first, second = made[i, :8], made[i, 8:]
        seen = (first + second).mean(dim=(1, 2))
        narrow = F.relu(
            kernel.choose[1]((kernel.choose[0].weight[:, :, 0, 0] @ seen)[None, :, None, None])
        )
        scores = kernel.choose[3].weight[:, :, 0, 0] @ narrow.flatten()
        for c in range(8):
            share = torch.sigmoid(scores[c] - scores[8 + c])  # a softmax over two
            wanted = share * first[c] + (1 - share) * second[c]
            assert torch.allclose(found[i, c], wanted)


@pytest.mark.parametrize("selective", [False, True])
def test_a_block_starts_as_its_shortcut(selective: bool) -> None:
    block = Bottleneck(16, 4, 1, selective).eval()
    x = torch.randn(2, 16, 6, 6)
    assert torch.equal(block(x), x.relu())


def test_pools_of_shortcuts_are_means_of_what_there_is() -> None:
    """2 x 2, at stride 1 with as many cells out as in, at stride 2 with odd sides too."""
    x = torch.arange(25.0).reshape(1, 1, 5, 5).expand(2, 64, 5, 5)
    for stride, side in ((1, 5), (2, 3)):
        shortcut = Bottleneck(64, 32, stride, selective=True).shortcut
        pooled = shortcut[:-2](x)[0, 0]
        assert pooled.shape == (side, side)
        for i in range(side):
            for j in range(side):
                cell = x[0, 0, stride * i : stride * i + 2, stride * j : stride * j + 2]
                assert pooled[i, j] == pytest.approx(float(cell.mean()))


@pytest.mark.parametrize("selective", [False, True])
def test_widths_multiply_and_sides_shrink(selective: bool) -> None:
    network = ResNet(26, 2, selective)
    assert network.channels == 4096
    assert network(torch.randn(2, 3, 33, 33)).shape == (2, 4096, 2, 2)


def test_unknown_depths_are_refused() -> None:
    with pytest.raises(ValueError, match="got 51"):
        ResNet(51, 1, selective=False)


def test_a_small_stem_is_one_convolution_that_keeps_every_pixel() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 16, small_stem=True).eval()
    network = encoder.get_submodule("network")
    assert parameter_count(encoder) == 11_168_832  # torchvision's with the same stem
    weight = network.conv1.weight
    assert weight.shape == (64, 3, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    data = torch.randn(2, 3, 16, 16)
    x = F.relu(network.bn1(F.conv2d(data, weight, padding=1)))
    assert x.shape == (2, 64, 16, 16)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
    vector, cells = encoder.with_tokens(data)
    assert torch.equal(cells, x.flatten(2).transpose(1, 2))
    assert cells.shape == (2, 4, 512)
    assert torch.allclose(vector, cells.mean(dim=1), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18d", "vit_tiny_patch16_224", "test_efficientnet"])
def test_other_stems_are_not_made_small(name: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"{name} does not start with one"):
        build_encoder(name, 32, small_stem=True)


def test_as_an_encoder_it_is_written_and_read(tmp_path) -> None:
    encoder = build_encoder("resnet", 32, depth=26, selective=True).eval()
    data = torch.randn(2, 3, 32, 32)
    vector, cells = encoder.with_tokens(data)
    assert encoder.dim == vector.shape[1] == cells.shape[2] == 2048
    assert torch.equal(vector, encoder(data))
    assert torch.allclose(vector, cells.mean(dim=1), atol=1e-6)
    save_encoder(encoder, tmp_path)
    again = load_encoder(tmp_path)
    assert again.arguments == {"depth": 26, "width": 1, "selective": True}
    assert torch.equal(again(data), vector)
    assert not encoder.exportable
    assert isinstance(encoder, nn.Module)
