"""C-BYOL (Lee et al. 2021)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, noise
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.heads import mlp
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Schedule
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, LARGE, SIMCLR_SMALL, Plan, two_views
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
    Checked against: golden numbers of log C and of the residual; moments of what is drawn; with c 0
    and z = mu it is w times BYOL.

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
    angles: Tensor

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
        self.concentration, self.backward_concentration = concentration, backward
        self.weight, self.compression, self.momentum = weight, compression, momentum
        self.projector = mlp(encoder.dim, hidden, dim, last_bias=False)
        self.stochastic = mlp(dim, hidden, dim, last_bias=False)
        self.predictor = nn.Linear(dim, dim, bias=False)
        self.explainer = mlp(dim, hidden, dim)
        self.teacher = Teacher(nn.Sequential(encoder, self.projector))
        angles, self.log_c = von_mises_fisher(dim, concentration)
        self.register_buffer("angles", angles.float())
        self.backward_log_c = von_mises_fisher(dim, backward)[1]

    def plan(self) -> Plan:
        if self.encoder.image_size < LARGE:
            return two_views(SIMCLR_SMALL)
        return two_views(BYOL_FIRST, BYOL_SECOND)

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
        z = [self.drawn(mu[i], views, f"vMF, view {i}") for i in (0, 1)]
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
        explained = energy.normalise(self.explainer(taught))
        forward = self.concentration * (mu * z).sum(dim=1) + self.log_c
        backward = self.backward_concentration * (explained * z).sum(dim=1) + self.backward_log_c
        return forward - backward

    def drawn(self, mu: Float[Tensor, "b d"], views: Views, what: str) -> Float[Tensor, "b d"]:
        """z ~ vMF(mu, k_e), with a gradient to mu; in evaluation mu itself."""
        if not self.training:
            return mu
        n = noise.normal(views.index, mu.shape[1] + 1, purpose=what, step=views.step).to(mu)
        across = n[:, 1:] - (n[:, 1:] * mu).sum(dim=1, keepdim=True) * mu
        angle = self.angle(n[:, :1])
        return angle.cos() * mu + angle.sin() * energy.normalise(across)

    def angle(self, normal: Float[Tensor, "b 1"]) -> Float[Tensor, "b 1"]:
        """Angles between z and mu from standard normal numbers: equal quantiles, interpolated."""
        place = (normal + REACH) * (len(self.angles) - 1) / (2 * REACH)
        place = place.clamp(0, len(self.angles) - 1.001)
        left = place.long()
        table = self.angles.to(normal)
        return torch.lerp(table[left], table[left + 1], place - left)

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))


REACH = 5.2
"""Standard deviations that the table of angles covers: beyond lie 2 of 10 million numbers."""


def von_mises_fisher(dim: int, concentration: float) -> tuple[Float[Tensor, " t"], float]:
    """The angles at equally spaced normal quantiles, from -REACH to REACH, and log C_d(k).

    The angle t between z and mu has the density exp(k cos t) sin(t)^(d-2), up to a constant, and
    1 / C_d(k) is the integral of that times the area of the sphere with one dimension less. Both
    come from one sum over t, in logarithms since exp(k) overflows.
    """
    # Many standard deviations on both sides of the mode, as far as they fit into [0, pi].
    mode = math.atan2(math.sqrt(max(dim - 2, 0) / concentration), 1.0)
    reach = 12 / math.sqrt(concentration) + 12 / math.sqrt(dim)
    edges = max(0.0, mode - reach), min(math.pi, mode + reach)
    t = torch.linspace(*edges, 200_001, dtype=torch.float64, device="cpu")
    log_density = concentration * t.cos() + (dim - 2) * t.sin().clamp_min(1e-300).log()
    top = log_density.max()
    density = (log_density - top).exp()
    cells = (density[1:] + density[:-1]) / 2 * (t[1] - t[0])
    total = cells.sum()
    log_area = math.log(2) + (dim - 1) / 2 * math.log(math.pi) - math.lgamma((dim - 1) / 2)
    log_c = -(float(top + total.log()) + log_area)
    below = torch.cat([cells.new_zeros(1), cells.cumsum(dim=0)]) / total
    normal = torch.linspace(-REACH, REACH, 2081, dtype=torch.float64, device="cpu")
    wanted = torch.special.ndtr(normal)
    right = torch.searchsorted(below, wanted).clamp(1, len(t) - 1)
    low, high = below[right - 1], below[right]
    share = ((wanted - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    return torch.lerp(t[right - 1], t[right], share), log_c
