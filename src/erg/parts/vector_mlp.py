"""A fully connected network for vectors."""

from jaxtyping import Float
from torch import Tensor

from erg.parts.activation import Activation, activation_layer
from erg.parts.encoder import Encoder
from erg.parts.heads import mlp


class VectorMLP(Encoder):
    """A fully connected network for vectors and 2-D worlds.

    Args:
        image_size: number of features.
        width: of the hidden layers [features].
        depth: number of hidden layers.
        dim: width of the output [features].
        activation: behind the hidden layers.
    """

    name = "mlp"
    mean, std = (), ()

    def __init__(
        self,
        image_size: int,
        *,
        width: int = 128,
        depth: int = 2,
        dim: int = 64,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.image_size, self.dim = image_size, dim
        self.arguments = {"width": width, "depth": depth, "dim": dim, "activation": activation}
        self.network = mlp(
            image_size, *[width] * depth, dim, norm=False,
            activation=lambda: activation_layer(activation),
        )  # fmt: skip

    def forward(self, data: Float[Tensor, "b features"]) -> Float[Tensor, "b d"]:
        return self.network(data)
