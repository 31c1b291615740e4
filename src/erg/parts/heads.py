"""Projectors and predictors: the small networks behind an encoder."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import energy
from erg.parts.norm import BatchNorm


def mlp(
    *widths: int,
    norm: bool = True,
    hidden_bias: bool = True,
    last_bias: bool = True,
    activation: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:
    """Linear layers from width to width, each but the last followed by BatchNorm and ReLU.

    Args:
        widths: width of the input, of each hidden layer and of the output [features].
        norm: whether hidden layers are batch-normalised.
        hidden_bias: whether hidden linear layers have a bias.
        last_bias: whether the last linear layer has one.
        activation: makes what stands behind hidden layers instead of ReLU.
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(fan_in, fan_out, bias=last_bias if last else hidden_bias))
        if not last:
            layers += [BatchNorm(fan_out)] * norm
            layers.append(activation() if activation else nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def hidden_layers(widths: Sequence[int], *, norm: bool = True, bias: bool = True) -> nn.Sequential:
    """Linear layers from width to width, each followed by BatchNorm and ReLU: an `mlp` without its
    last layer.

    Args:
        widths: width of the input and of each layer [features].
        norm: whether layers are batch-normalised.
        bias: whether linear layers have one.
    """
    return mlp(*widths, 1, norm=norm, hidden_bias=bias)[:-1]


class OutputNorm(BatchNorm):
    """BatchNorm with a gain and no offset, as behind SimCLR's last linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        assert self.bias is not None
        self.bias.requires_grad_(False)


class CosineLinear(nn.Module):
    """Cosines with each of k learned prototypes: both sides have norm 1, as behind DINO's head.

    It is a weight-normalised linear layer without bias whose gain stays 1, on unit inputs. Rows
    start as torch's linear layers do, uniform in +-1 / sqrt(fan_in), so about 0.58 long: the longer
    they are, the slower they turn at a learning rate.

    Args:
        fan_in: width of the input [features].
        k: number of prototypes.
    """

    def __init__(self, fan_in: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(k, fan_in).uniform_(-1, 1) / fan_in**0.5)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return energy.products(energy.normalise(x), energy.normalise(self.weight))


def code_projector(fan_in: int, hidden: int, dim: int) -> nn.Sequential:
    """DINO's projector in front of a `CosineLinear`: three layers with GELU between them.

    No normalisation; weights of deviation 0.02, biases 0 (Caron et al. 2021, appendix C).

    Args:
        fan_in: width of the input [features].
        hidden: width of the hidden layers [features].
        dim: width of the output [features].
    """
    projector = mlp(fan_in, hidden, hidden, dim, norm=False, activation=nn.GELU)
    for layer in projector:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return projector


class TokenHeads(nn.Module):
    """DINO's head for the vector of a view, and what scores tokens beside it.

    Args:
        fan_in: width of vectors and tokens [features].
        hidden: width of a projector's hidden layers [features].
        dim: width of what the prototypes are compared with [features].
        k: number of prototypes.
        tokens: `same`, the head of the vectors; `directions`, prototypes of their own behind the
            same projector; `own`, a projector too.
    """

    def __init__(
        self,
        fan_in: int,
        hidden: int,
        dim: int,
        k: int,
        *,
        tokens: Literal["same", "directions", "own"] = "same",
    ) -> None:
        super().__init__()
        self.projector = code_projector(fan_in, hidden, dim)
        self.directions = CosineLinear(dim, k)
        self.token_projector = code_projector(fan_in, hidden, dim) if tokens == "own" else None
        self.token_directions = None if tokens == "same" else CosineLinear(dim, k)

    def forward(
        self, vectors: Float[Tensor, "b d"], tokens: Float[Tensor, "m d"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "m k"]]:
        """Cosines of vectors and of tokens with their prototypes."""
        project, compare = self.projector, self.directions
        scores = compare(project(vectors))
        if self.token_projector is not None:
            project = self.token_projector
        if self.token_directions is not None:
            compare = self.token_directions
        return scores, compare(project(tokens))

    def last_layers(self) -> Iterator[nn.Parameter]:
        """The prototypes of both."""
        yield self.directions.weight
        if self.token_directions is not None:
            yield self.token_directions.weight
