"""Barlow Twins (Zbontar et al. 2021)."""

from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import byol_views
from erg.parts.heads import mlp
from erg.parts.norm import BatchNorm
from erg.views.plan import Plan
from erg.views.types import View, Views


class BarlowTwins(Method):
    """F(x, y) = -z_x . z_y / d of standardised z; kept up by decorrelating the dimensions of z.

    L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2 with the cross-correlation
    C = z_x^T z_y / b over the global batch (Zbontar et al. 2021, eq. 1 and 2). The loss looks at C
    and not at F of each pair, whose mean over the batch is -tr C / d.

    Departs from the paper: z and the hidden layers have 2,048 dimensions by default, not 8,192; the
    gradient is that of the global batch, where the authors' code scales it by 1 / number of
    processes.
    Checked against: golden numbers of both sums; loops over C; gradients by finite differences.

    Args:
        hidden: width of the projector's hidden layers [features].
        dim: width of z [features].
        redundancy: lambda, the weight of the off-diagonal terms (section 3, implementation).
    """

    cell = Cell("joint-embedding", "regularised", by="decorrelation of the dimensions of z")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 2048,
        dim: int = 2048,
        redundancy: float = 0.0051,
    ) -> None:
        super().__init__(encoder)
        self.redundancy = redundancy
        self.projector = mlp(encoder.dim, hidden, hidden, dim, hidden_bias=False, last_bias=False)
        self.standardise = BatchNorm(dim, affine=False)

    def plan(self) -> Plan:
        return byol_views(self.encoder.image_size)

    def project(self, view: View) -> Float[Tensor, "b d"]:
        return self.standardise(energy.at_least_float32(self.projector(self.encoder(view.data))))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return -(self.project(x) * self.project(y)).mean(dim=1)

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = (distributed.gather(self.project(view)) for view in views.need(2))  # [global d]
        c = energy.products(x.T, y.T) / len(x)  # [d d]
        diagonal = c.diagonal()
        return Loss(
            pull={"invariance": (1 - diagonal).square().sum()},
            push={
                "redundancy": self.redundancy * (c.square().sum() - diagonal.square().sum()),
            },
        )
