"""SimSiam (Chen & He 2021)."""

from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.heads import mlp
from erg.parts.norm import BatchNorm
from erg.views.plan import LARGE, MOCO2, SIMCLR_SMALL, Plan, two_views
from erg.views.types import View, Views


class SimSiam(Method):
    """F(x, y) = -cos(q(z_x), sg(z_y)), sg the stop-gradient; nothing is pushed up.

    Chen & He 2021, eq. 1 and 2: L = [F(x, y) + F(y, x)] / 2, averaged over the batch. Without the
    predictor q or without the stop-gradient it collapses to -1.

    Departs from the paper: the predictor's learning rate decays like all others (the authors keep
    it constant, section 4.2).
    Checked against: the golden number; a loop over predictions; BYOL with momentum 0 and these
    heads is 4 SimSiam + 4.

    Args:
        dim: width of z and of the projector's hidden layers [features].
        bottleneck: width of the predictor's hidden layer; 0 takes dim / 4 [features].
    """

    cell = Cell("joint-embedding", "regularised", by="predictor, stop-gradient")

    def __init__(self, encoder: Encoder, *, dim: int = 2048, bottleneck: int = 0) -> None:
        super().__init__(encoder)
        self.projector = mlp(encoder.dim, dim, dim, dim, hidden_bias=False, last_bias=False)
        self.projector.append(BatchNorm(dim, affine=False))
        self.predictor = mlp(dim, bottleneck or max(1, dim // 4), dim, hidden_bias=False)

    def plan(self) -> Plan:
        if self.encoder.image_size < LARGE:
            return two_views(SIMCLR_SMALL)
        return two_views(MOCO2)  # MoCo v2's, as the authors use

    def project(self, view: View) -> Float[Tensor, "b d"]:
        return self.projector(self.encoder(view.data))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.predictor(self.project(x)), self.project(y).detach())

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = (self.project(view) for view in views.need(2))
        one = energy.cosine(self.predictor(x), y.detach())
        other = energy.cosine(self.predictor(y), x.detach())
        return Loss(pull={"invariance": distributed.mean(one + other) / 2})
