"""ResNets with all widths multiplied and with selective kernels, which timm has not in this form.

He et al. 2016; the stem of "ResNet-D" and the selective kernels (Li et al. 2019) in the form of
SimCLRv2 (Chen et al. 2020).
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg.parts.encoder import Encoder
from erg.parts.norm import across_processes

LAYERS = {
    26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3),
}  # fmt: skip
"""Blocks of each stage by depth."""


class WideResNet(Encoder):
    """A ResNet with all widths multiplied, with selective kernels where wanted, as in SimCLRv2.

    Args:
        image_size: side of its input [pixels].
        depth: 26, 50, 101, 152 or 200 layers.
        width: factor of all widths.
        selective: whether 3 x 3 convolutions have selective kernels.
    """

    name = "resnet"

    def __init__(
        self, image_size: int, *, depth: int = 50, width: int = 1, selective: bool = False
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.arguments = {"depth": depth, "width": width, "selective": selective}
        network = ResNet(depth, width, selective)
        self.network, self.dim = across_processes(network), network.channels

    def forward(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.network(data).mean(dim=(2, 3))

    def with_tokens(
        self, data: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n e"]]:
        cells = self.network(data)
        return cells.mean(dim=(2, 3)), cells.flatten(2).transpose(1, 2)

    def units(self) -> list[nn.Module]:
        return [module for module in self.network.modules() if isinstance(module, Bottleneck)]


class ResNet(nn.Module):
    """Images to the last feature map, a thirty-second of their side.

    Args:
        depth: 26, 50, 101, 152 or 200 layers.
        width: factor of all widths; the map has 2,048 times as many channels.
        selective: whether 3 x 3 convolutions have selective kernels.
    """

    def __init__(self, depth: int, width: int, selective: bool) -> None:
        super().__init__()
        if depth not in LAYERS:
            known = ", ".join(map(str, LAYERS))
            raise ValueError(f"a ResNet has {known} layers (got {depth}). Choose one of these.")
        channels = 64 * width
        layers = _stem(channels, selective)
        for stage, blocks in enumerate(LAYERS[depth]):
            inside = 64 * width * 2**stage
            for block in range(blocks):
                stride = 2 if block == 0 and stage > 0 else 1
                layers.append(Bottleneck(channels, inside, stride, selective))
                channels = 4 * inside
        self.layers, self.channels = nn.Sequential(*layers), channels

    def forward(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return self.layers(data)


class Bottleneck(nn.Module):
    """relu(shortcut(x) + f(x)), f narrow inside; f starts at 0, so that a block starts as nothing.

    Args:
        fan_in: channels of x.
        inside: channels inside; four times as many come out.
        stride: of the convolution inside.
        selective: whether that one has selective kernels.
    """

    def __init__(self, fan_in: int, inside: int, stride: int, selective: bool) -> None:
        super().__init__()
        middle = (
            SelectiveKernel(inside, stride)
            if selective
            else nn.Sequential(*_conv(inside, inside, 3, stride))
        )
        last = _conv(inside, 4 * inside, 1, 1)[:2]
        assert isinstance(last[1], nn.BatchNorm2d)
        nn.init.zeros_(last[1].weight)
        self.inside = nn.Sequential(*_conv(fan_in, inside, 1, 1), middle, *last)
        self.shortcut = nn.Sequential()
        if fan_in != 4 * inside:
            pool = _pool(stride) if selective else []
            straight = _conv(fan_in, 4 * inside, 1, 1 if selective else stride)[:2]
            self.shortcut = nn.Sequential(*pool, *straight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return torch.relu(self.shortcut(x) + self.inside(x))


class SelectiveKernel(nn.Module):
    """Two 3 x 3 convolutions, mixed channel by channel in proportions told from the image.

    Args:
        width: channels, in and out.
        stride: of the convolutions.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        narrow = max(width // 16, 32)
        self.streams = nn.Sequential(*_conv(width, 2 * width, 3, stride))
        self.choose = nn.Sequential(
            *_conv(width, narrow, 1, 1), nn.Conv2d(narrow, 2 * width, 1, bias=False)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        streams = self.streams(x).unflatten(1, (2, -1))  # [b 2 c i j]
        seen = streams.sum(dim=1).mean(dim=(2, 3), keepdim=True)
        share = self.choose(seen).unflatten(1, (2, -1)).softmax(dim=1)  # [b 2 c 1 1]
        return (streams * share).sum(dim=1)


def small_stem(network: nn.Module, name: str) -> None:
    """Make the stem of a ResNet of timm one for small images, in place.

    A 3 x 3 convolution of stride 1 and no pooling, so that the first stage sees every pixel (Chen
    et al. 2020, appendix B.9).

    Args:
        network: with a stem of one convolution, `conv1`, and a pooling, `maxpool`.
        name: of its architecture.

    Raises:
        ValueError: it has another stem.
    """
    first, pool = (getattr(network, part, None) for part in ("conv1", "maxpool"))
    if not isinstance(first, nn.Conv2d) or not isinstance(pool, nn.MaxPool2d):
        raise ValueError(
            f"{name} does not start with one convolution and a pooling, which small_stem changes. "
            "Use a plain ResNet, for example resnet18."
        )
    smaller = nn.Conv2d(first.in_channels, first.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(smaller.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = smaller, nn.Identity()


def _conv(fan_in: int, fan_out: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(fan_in, fan_out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)]


def _stem(width: int, selective: bool) -> list[nn.Module]:
    pool = nn.MaxPool2d(3, 2, 1)
    if not selective:
        return [*_conv(3, width, 7, 2), pool]
    widths = (3, width // 2, width // 2, width)
    convolutions = [
        _conv(a, b, 3, 1 if i else 2) for i, (a, b) in enumerate(itertools.pairwise(widths))
    ]
    return [*itertools.chain.from_iterable(convolutions), pool]


def _pool(stride: int) -> list[nn.Module]:
    """Means of 2 x 2; at stride 1 the last row and column are those of what there is."""
    same: list[nn.Module] = [nn.ReplicationPad2d((0, 1, 0, 1))] if stride == 1 else []
    return [*same, nn.AvgPool2d(2, stride, ceil_mode=stride == 2, count_include_pad=False)]
