"""A small convolutional network."""

import itertools
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from erg.parts.activation import Activation, activation_layer
from erg.parts.encoder import Encoder
from erg.parts.norm import across_processes


class SmallConv(Encoder):
    """A plain convolutional network, stride 2 per stage, for tests and very small images.

    Args:
        image_size: side of its input [pixels].
        width: channels of the first stage, doubled at each further one.
        stages: number of stages.
        blocks: residual 3 x 3 convolutions x + relu(bn(conv x)) that follow in each of the last
            stages, given from the first such stage to the last: (1, 2) puts one into the last but
            one and two into the last.
        whole: whether the first stage keeps the resolution of the image.
        activation: behind the convolutions.
    """

    name = "conv"

    def __init__(
        self,
        image_size: int,
        *,
        width: int = 16,
        stages: int = 3,
        blocks: Sequence[int] = (),
        whole: bool = False,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if len(blocks) > stages:
            raise ValueError(
                f"blocks names {len(blocks)} stages, and there are {stages}. Name at most those."
            )
        self.image_size = image_size
        self.arguments = {
            "width": width, "stages": stages, "blocks": list(blocks), "whole": whole,
            "activation": activation,
        }  # fmt: skip
        widths = [3, *[width * 2**i for i in range(stages)]]
        residual = [0] * (stages - len(blocks)) + list(blocks)
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # number of the last layer of each stage
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            layers += _conv(a, b, activation, stride=1 if whole and i == 0 else 2)
            for _ in range(residual[i]):
                layers.append(Residual(nn.Sequential(*_conv(b, b, activation, stride=1))))
            self.ends.append(len(layers) - 1)
        self.network = across_processes(nn.Sequential(*layers))
        self.dim, self.map_widths = widths[-1], tuple(widths[1:])

    def forward(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.network(data).mean(dim=(2, 3))

    def with_tokens(
        self, data: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n e"]]:
        cells = self.network(data)
        return cells.mean(dim=(2, 3)), cells.flatten(2).transpose(1, 2)

    def maps(self, data: Float[Tensor, "b c h w"]) -> list[Tensor]:
        found: list[Tensor] = []
        for i, layer in enumerate(self.network.children()):
            data = layer(data)
            if i in self.ends:
                found.append(data)
        return found


class Residual(nn.Module):
    """x + f(x).

    Args:
        inside: f.
    """

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x)


def _conv(fan_in: int, fan_out: int, activation: Activation, *, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(fan_out), activation_layer(activation)]
