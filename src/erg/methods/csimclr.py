"""C-SimCLR (Lee et al. 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import byol_views
from erg.parts.heads import mlp
from erg.parts.von_mises_fisher import VonMisesFisher
from erg.views.plan import Plan
from erg.views.types import View, Views


class CSimCLR(Method):
    """F(x, y) = -cos(mu_x, mu_y); z around mu_x keeps only what the other view explains.

    z ~ e(z | x) = vMF(mu_x, k_e) on the sphere, explained by b(z | y) = vMF(mu_y, k_b), and
    l_i = -log[b(z_i | y_i) / sum_{j != i} b(z_i | j)] + c [log e(z_i | x_i) - log b(z_i | y_i)],
    j over the 2b - 1 other views of the global batch: NT-Xent at the temperature 1 / k_b with drawn
    queries, and an upper bound on the information in z that y does not have (Lee et al. 2021).
    log vMF(z; mu, k) = k mu . z + log C_d(k).

    Departs from the paper: without the constant log(2b - 1); the mean over all 2b views, not the
    sum of the means of both sides; z's angle to mu is drawn through a table of its distribution,
    not by rejection; batch statistics, and the views of small images, as in SimCLR here.
    Checked against: NT-Xent's golden number with z = mu, k_b 10 and c 0; a loop over all views;
    finite differences.

    Args:
        concentration: k_e, of z around mu.
        backward: k_b, of what the other view says of z.
        compression: c, weight of the residual.
        hidden: width of the projector's hidden layer [features].
        dim: width of z [features].
    """

    cell = Cell(
        "joint-embedding",
        "contrastive",
        by="softmax over the other views of the batch, information bottleneck",
    )
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        concentration: float = 1024.0,
        backward: float = 10.0,
        compression: float = 1.0,
        hidden: int = 4096,
        dim: int = 256,
    ) -> None:
        super().__init__(encoder)
        self.compression = compression
        self.projector = mlp(encoder.dim, hidden, dim, last_bias=False)
        self.around = VonMisesFisher(dim, concentration)
        self.explained = VonMisesFisher(dim, backward)

    def plan(self) -> Plan:
        return byol_views(self.encoder.image_size)

    def mean(self, view: View) -> Float[Tensor, "b d"]:
        """mu, the mean direction of z."""
        return energy.normalise(self.projector(self.encoder(view.data)))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.mean(x), self.mean(y))

    def loss(self, views: Views, progress: float) -> Loss:
        first, second = (self.mean(view) for view in views.need(2))
        z = [
            self.around.drawn(mu, views.index, purpose=f"vMF, view {i}", step=views.step)
            for i, mu in enumerate((first, second))
        ]
        residual = self.residual(z[0], first, second) + self.residual(z[1], second, first)
        x, y = distributed.gather(first), distributed.gather(second)  # [global d]
        queries = torch.cat([distributed.gather(each) for each in z]) * self.explained.concentration
        itself = torch.arange(len(queries), device=queries.device)[:, None]
        return Loss(
            pull={
                "alignment": -(queries * torch.cat([y, x])).sum(dim=1).mean(),
                "compression": self.compression * distributed.mean(residual) / 2,
            },
            push={"repulsion": shaping.log_partition(queries, torch.cat([x, y]), itself).mean()},
        )

    def residual(
        self, z: Float[Tensor, "b d"], mu: Float[Tensor, "b d"], other: Float[Tensor, "b d"]
    ) -> Float[Tensor, " b"]:
        """log e(z | x) - log b(z | y)."""
        return self.around.log_density(z, mu) - self.explained.log_density(z, other)
