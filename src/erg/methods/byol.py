"""BYOL (Grill et al. 2020)."""

from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import byol_views
from erg.parts.heads import mlp
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Schedule
from erg.views.plan import Plan
from erg.views.types import View, Views


class BYOL(Method):
    """F(x, y) = 2 - 2 cos(q(z_x), z'_y), z' from a slow teacher; nothing is pushed up.

    Grill et al. 2020, eq. 2: L = F(x, y) + F(y, x), averaged over the batch. The teacher is
    theta' <- m theta' + (1 - m) theta after every step.

    Departs from the paper: teacher and student start equal (the authors seed them apart and
    report no difference).
    Checked against: golden numbers; with momentum 0 it is 4 SimSiam + 4.

    Args:
        hidden: width of the hidden layer of projector and predictor [features].
        dim: width of z [features].
        momentum: m, from the first step to the last.
    """

    cell = Cell("joint-embedding", "regularised", by="predictor, stop-gradient, EMA teacher")

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 4096,
        dim: int = 256,
        momentum: Schedule = Cosine(0.996, 1.0),
    ) -> None:
        super().__init__(encoder)
        self.momentum = momentum
        self.projector = mlp(encoder.dim, hidden, dim, last_bias=False)
        self.predictor = mlp(dim, hidden, dim, last_bias=False)
        self.teacher = Teacher(nn.Sequential(encoder, self.projector))

    def plan(self) -> Plan:
        return byol_views(self.encoder.image_size)

    def predict(self, view: View) -> Float[Tensor, "b d"]:
        return self.predictor(self.projector(self.encoder(view.data)))

    def teach(self, view: View) -> Float[Tensor, "b d"]:
        return self.teacher(view.data)

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return 2 + 2 * energy.cosine(self.predict(x), self.teach(y))

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = views.need(2)
        return Loss(
            pull={"invariance": distributed.mean(self.energy(x, y) + self.energy(y, x))},
        )

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
