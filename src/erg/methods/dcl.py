"""DCL (Yeh et al. 2022)."""

import torch
from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.heads import OutputNorm, mlp
from erg.views.plan import LARGE, SIMCLR, SIMCLR_SMALL, Plan, two_views
from erg.views.types import View, Views


class DCL(Method):
    """F(x, y) = -cos(z_x, z_y); l_i = w_i F(x_i, y_i) / T + log sum_k exp(-F(i, k) / T).

    Decoupled contrastive learning (Yeh et al. 2022, the loss without the positive in the
    denominator): as in SimCLR, but k runs over the 2b - 2 views of *other* images only, so a pair
    that already fits keeps its gradient. w_i = 1, or with the von Mises-Fisher weighting of DCLW
    w_i = 2 - exp(-F_i / s) / mean_j exp(-F_j / s), which lets hard pairs pull more.

    Departs from the paper: the loss is the mean over views, not their sum; w_i has no gradient.
    Checked against: a naive double loop; it is NT-Xent without the positive in the denominator; l
    and w as the documentation of nidl quotes them.

    Args:
        temperature: T, of the softmax over the views of other images.
        sigma: s of DCLW's weights (0.5 in the paper); 0 for none.
        hidden: width of the projector's hidden layers; 0 takes the encoder's [features].
        dim: width of z [features].
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over the views of other images")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.1,
        sigma: float = 0.0,
        hidden: int = 0,
        dim: int = 128,
    ) -> None:
        super().__init__(encoder)
        self.temperature, self.sigma = temperature, sigma
        hidden = hidden or encoder.dim
        self.projector = mlp(encoder.dim, hidden, dim, hidden_bias=False, last_bias=False)
        self.projector.append(OutputNorm(dim))

    def plan(self) -> Plan:
        return two_views(SIMCLR if self.encoder.image_size >= LARGE else SIMCLR_SMALL)

    def project(self, view: View) -> Float[Tensor, "b d"]:
        return self.projector(self.encoder(view.data))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.project(x), self.project(y))

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = (distributed.gather(self.project(view)) for view in views.need(2))  # [global d]
        fits = energy.cosine(x, y)
        z = torch.cat([energy.normalise(x), energy.normalise(y)])  # [2 global d]
        itself = torch.arange(len(z), device=z.device)
        own = torch.stack([itself, itself.roll(len(x))], dim=1)  # both views of the same image
        others = shaping.log_partition(z / self.temperature, z, own)
        return Loss(
            pull={"alignment": (self.weights(fits) * fits).mean() / self.temperature},
            push={"repulsion": others.mean()},
        )

    def weights(self, fits: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """w_i of each pair from its energy."""
        if self.sigma == 0:
            return torch.ones_like(fits)
        return 2 - (-fits.detach() / self.sigma).softmax(dim=0) * len(fits)
