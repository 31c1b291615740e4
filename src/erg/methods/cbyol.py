"""C-BYOL (Lee et al. 2021)."""

from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import byol_views
from erg.parts.heads import mlp
from erg.parts.teacher import Teacher
from erg.parts.von_mises_fisher import VonMisesFisher
from erg.schedule import Cosine, Schedule
from erg.views.plan import Plan
from erg.views.types import View, Views


class CBYOL(Method):
    """F(x, y) = 2 - 2 cos(q(mu_x), y'), y' from a slow teacher; z keeps only what y' explains.

    z ~ e(z | x) = vMF(mu_x, k_e) on the sphere, and L = w [F_z(x, y) + F_z(y, x)] + c [r(x) + r(y)]
    with q(z) instead of q(mu) in F_z and the residual r(x) = log e(z_x | x) - log b(z_x | x'),
    b = vMF(m(x'), k_b) of the teacher's x' of the same view through a learned m: an upper bound on
    the information in z that x' does not have (Lee et al. 2021). log vMF(z; mu, k) =
    k mu . z + log C_d(k). The teacher is theta' <- m theta' + (1 - m) theta after every step.

    Departs from the paper: z's angle to mu is drawn through a table of its distribution, not by
    rejection, so that it is a function of the image and the step.
    Checked against: golden numbers of the residual; with c 0 and z = mu it is w times BYOL.

    Args:
        concentration: k_e, of z around mu.
        backward: k_b, of what the teacher says of z.
        weight: w (5 for 300 epochs, 2 for 1,000).
        compression: c, weight of the residual.
        hidden: width of the hidden layers of all heads [features].
        dim: width of z [features].
        momentum: m, from the first step to the last.
    """

    cell = Cell(
        "joint-embedding", "regularised", by="predictor, EMA teacher, information bottleneck"
    )

    def __init__(
        self,
        encoder: Encoder,
        *,
        concentration: float = 16384.0,
        backward: float = 10.0,
        weight: float = 2.0,
        compression: float = 1.0,
        hidden: int = 4096,
        dim: int = 256,
        momentum: Schedule = Cosine(0.996, 1.0),
    ) -> None:
        super().__init__(encoder)
        self.weight, self.compression, self.momentum = weight, compression, momentum
        self.projector = mlp(encoder.dim, hidden, dim, last_bias=False)
        self.stochastic = mlp(dim, hidden, dim, last_bias=False)
        self.predictor = nn.Linear(dim, dim, bias=False)
        self.explainer = mlp(dim, hidden, dim)
        self.teacher = Teacher(nn.Sequential(encoder, self.projector))
        self.around = VonMisesFisher(dim, concentration)
        self.explained = VonMisesFisher(dim, backward)

    def plan(self) -> Plan:
        return byol_views(self.encoder.image_size)

    def mean(self, view: View) -> Float[Tensor, "b d"]:
        """mu, the mean direction of z."""
        return energy.normalise(self.stochastic(self.projector(self.encoder(view.data))))

    def teach(self, view: View) -> Float[Tensor, "b d"]:
        return energy.normalise(self.teacher(view.data))

    def fits(self, z: Float[Tensor, "b d"], y: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return 2 + 2 * energy.cosine(self.predictor(z), y)

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return self.fits(self.mean(x), self.teach(y))

    def loss(self, views: Views, progress: float) -> Loss:
        main = views.need(2)
        mu = [self.mean(view) for view in main]
        taught = [self.teach(view) for view in main]
        z = [
            self.around.drawn(mu[i], views.index, purpose=f"vMF, view {i}", step=views.step)
            for i in (0, 1)
        ]
        invariance = self.fits(z[0], taught[1]) + self.fits(z[1], taught[0])
        residual = self.residual(z[0], mu[0], taught[0]) + self.residual(z[1], mu[1], taught[1])
        return Loss(
            pull={
                "invariance": self.weight * distributed.mean(invariance),
                "compression": self.compression * distributed.mean(residual),
            }
        )

    def residual(
        self, z: Float[Tensor, "b d"], mu: Float[Tensor, "b d"], taught: Float[Tensor, "b d"]
    ) -> Float[Tensor, " b"]:
        """log e(z | x) - log b(z | x')."""
        mean = energy.normalise(self.explainer(taught))
        return self.around.log_density(z, mu) - self.explained.log_density(z, mean)

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
