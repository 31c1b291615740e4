"""VICReg (Bardes et al. 2022)."""

from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import byol_views
from erg.parts.heads import mlp
from erg.views.plan import Plan
from erg.views.types import View, Views


class VICReg(Method):
    """F(x, y) = ||z_x - z_y||^2 / d; kept up by the variance and covariance of the batch.

    L = 25 F + 25 [v(z_x) + v(z_y)] / 2 + [c(z_x) + c(z_y)] with the hinge v on the standard
    deviations and c the squared off-diagonal covariances / d (Bardes et al. 2022, eq. 1 to 6).

    Departs from the paper: the variance term is halved per branch and F divided by d, as in the
    authors' code; z and the hidden layers have 2,048 dimensions by default, not 8,192.
    Checked against: golden numbers of all three terms; loops; gradients by finite differences.

    Args:
        hidden: width of the expander's hidden layers [features].
        dim: width of z [features].
        invariance: weight of F.
        variance: weight of v.
        covariance: weight of c.
    """

    cell = Cell("joint-embedding", "regularised", by="variance floor and decorrelation of z")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 2048,
        dim: int = 2048,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        super().__init__(encoder)
        self.weights = (invariance, variance, covariance)
        self.expander = mlp(encoder.dim, hidden, hidden, dim, last_bias=False)

    def plan(self) -> Plan:
        return byol_views(self.encoder.image_size)

    def expand(self, view: View) -> Float[Tensor, "b d"]:
        return self.expander(self.encoder(view.data))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.mean_squared_error(self.expand(x), self.expand(y))

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = (distributed.gather(self.expand(view)) for view in views.need(2))  # [global d]
        invariance, variance, covariance = self.weights
        return Loss(
            pull={"invariance": invariance * energy.mean_squared_error(x, y).mean()},
            push={
                "variance": variance * (shaping.variance(x) + shaping.variance(y)) / 2,
                "covariance": covariance * (shaping.covariance(x) + shaping.covariance(y)),
            },
        )
