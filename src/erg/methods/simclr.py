"""SimCLR (Chen et al. 2020)."""

from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.heads import OutputNorm, mlp
from erg.views.plan import LARGE, SIMCLR, SIMCLR_SMALL, Plan, two_views
from erg.views.types import View, Views


class SimCLR(Method):
    """F(x, y) = -cos(z_x, z_y); l_i = F(x_i, y_i) / T + log sum_{k != i} exp(-F(i, k) / T).

    Chen et al. 2020, eq. 1 (NT-Xent): the sum runs over the 2b - 1 other views of the global
    batch, and the loss is the mean over all 2b views.

    Departs from the paper: T is 0.2 by default, between its 0.1 for ImageNet and 0.5 for CIFAR-10;
    batch statistics are taken per view, not over both; linear layers start as torch's do; small
    images get the strength 0.5 of its CIFAR-10 appendix, without blur.
    Checked against: golden numbers of NT-Xent at temperatures 0.5 and 0.1, a naive double loop,
    finite differences.

    Args:
        temperature: T, of the softmax over the other views.
        hidden: width of the projector's hidden layers; 0 takes the encoder's [features].
        dim: width of z [features].
        depth: linear layers of the projector (2 in SimCLR, 3 in SimCLRv2).
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over the other views of the batch")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.2,
        hidden: int = 0,
        dim: int = 128,
        depth: int = 2,
    ) -> None:
        super().__init__(encoder)
        self.temperature = temperature
        hidden = hidden or encoder.dim
        widths = [encoder.dim, *[hidden] * (depth - 1), dim]
        self.projector = mlp(*widths, hidden_bias=False, last_bias=False).append(OutputNorm(dim))

    def plan(self) -> Plan:
        return two_views(SIMCLR if self.encoder.image_size >= LARGE else SIMCLR_SMALL)

    def project(self, view: View) -> Float[Tensor, "b d"]:
        return self.projector(self.encoder(view.data))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.project(x), self.project(y))

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = (distributed.gather(self.project(view)) for view in views.need(2))  # [global d]
        return Loss(
            pull={"alignment": shaping.alignment(x, y, self.temperature)},
            push={"repulsion": shaping.repulsion(x, y, self.temperature)},
        )
