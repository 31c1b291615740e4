"""No network: pixels, averaged down or not, and vectors as they are."""

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from erg.energy import normalise
from erg.parts.encoder import Encoder


def averaged(data: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c s s"]:
    """Averaged down to side x side places, which overlap where they do not divide the data."""
    if data.device.type == "mps" and any(length % side for length in data.shape[2:]):
        # Only where they do it is there; the CPU has the rest.
        return averaged(data.cpu(), side).to(data.device)
    return nn.functional.adaptive_avg_pool2d(data, side)


class Pixels(Encoder):
    """No network: the values themselves, images averaged down to a small side and flattened.

    Args:
        image_size: side of its input [pixels].
        side: side after averaging [pixels].
        contrast: whether brightness and contrast are taken out: each image has mean 0 and norm 1.
    """

    name = "pixels"

    def __init__(self, image_size: int, *, side: int = 16, contrast: bool = False) -> None:
        super().__init__()
        self.image_size, self.contrast = image_size, contrast
        self.arguments = {"side": side, "contrast": contrast}
        self.side = min(side, image_size)
        self.dim = 3 * self.side**2

    def forward(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        x = averaged(data, self.side).flatten(1)
        return normalise(x - x.mean(dim=1, keepdim=True)) if self.contrast else x


class Identity(Encoder):
    """Vectors as they are; whole numbers as floats.

    Args:
        image_size: number of features.
    """

    name = "identity"
    mean, std = (), ()

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size, self.arguments = image_size, {}
        self.dim = image_size

    def forward(self, data: Shaped[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return data if data.is_floating_point() else data.float()
