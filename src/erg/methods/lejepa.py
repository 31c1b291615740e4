"""LeJEPA (Balestriero & LeCun 2025)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import by_size
from erg.parts.heads import mlp
from erg.parts.host import sent
from erg.views.plan import BYOL_SECOND, LARGE, Plan
from erg.views.types import View, Views

REACH, POINTS = 3.0, 17
"""Of the integral over t in the test statistic: [0, REACH] on so many points, doubled."""


def epps_pulley(x: Float[Tensor, "b s"]) -> Float[Tensor, " s"]:
    """How far each column is from a standard normal distribution (Epps & Pulley 1983).

    b times the integral over t of |mean_i exp(i t x_i) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), over the
    global batch. For b normal draws its mean is 1.05 and not 0.
    """
    x = energy.at_least_float32(x)
    t = torch.linspace(0, REACH, POINTS, dtype=x.dtype, device=x.device)
    normal = (-t.square() / 2).exp()
    angles = x[..., None] * t  # [b s points]
    real, imaginary = distributed.mean(angles.cos()), distributed.mean(angles.sin())
    off = ((real - normal).square() + imaginary.square()) * normal  # [s points]
    return 2 * sum(distributed.counts(len(x), x.device)) * torch.trapezoid(off, t, dim=-1)


@energy.full_precision
def sigreg(z: Float[Tensor, "v b d"], directions: int, step: int) -> Tensor:
    """The mean statistic over views and random directions, the same on every process."""
    generator = torch.Generator().manual_seed(step)
    along = energy.normalise(torch.randn(directions, z.shape[-1], generator=generator))
    along = sent(along, z.device).to(z)
    return torch.stack([epps_pulley(each @ along.T).mean() for each in z]).mean()


class LeJEPA(Method):
    """F(x, y) = ||z_x - z_y||^2 / d; kept up by making the distribution of z an isotropic Gaussian.

    L = (1 - lambda) mean_v ||z_v - mean_v z_v||^2 / d + lambda SIGReg: views v are pulled to their
    mean, which for two views is F / 4, and z of each view is tested for normality along random
    directions, new at each step (Balestriero & LeCun 2025, SIGReg with the Epps-Pulley statistic).
    No teacher, no predictor, no stop-gradient.

    Departs from the paper: four views of one size, lambda, dim and directions by default as in the
    authors' minimal example (1,024 directions elsewhere), but colours as in their README (in the
    example twice as strong), and no blur for small images; with small crops of a plan of one's own
    all views, not only the large ones, make the mean.
    Checked against: golden numbers of the statistic and its mean for normal draws; a loop over
    views and directions; finite differences; many processes as one.

    Args:
        views: views of each image.
        weight: lambda, of SIGReg; its scale grows with the batch.
        hidden: width of the projector's hidden layers [features].
        dim: width of z [features].
        directions: along which z is tested.
    """

    cell = Cell("joint-embedding", "regularised", by="an isotropic Gaussian distribution of z")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: int = 4,
        weight: float = 0.02,
        hidden: int = 2048,
        dim: int = 16,
        directions: int = 256,
    ) -> None:
        super().__init__(encoder)
        self.views, self.weight, self.directions = views, weight, directions
        self.projector = mlp(encoder.dim, hidden, hidden, dim)

    def plan(self) -> Plan:
        view = replace(BYOL_SECOND, blur=0.5 if self.encoder.image_size >= LARGE else 0.0)
        return Plan(main=(view,) * self.views)

    def project(self, *crops: View) -> Float[Tensor, "all d"]:
        return energy.at_least_float32(self.projector(by_size(self.encoder, crops)))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.mean_squared_error(self.project(x), self.project(y))

    def loss(self, views: Views, progress: float) -> Loss:
        crops = [*views.need(self.views), *views.local]
        z = torch.stack(self.project(*crops).chunk(len(crops)))  # [v b d]
        spread = (z - z.mean(dim=0)).square().mean(dim=(0, 2))  # [b]
        return Loss(
            pull={"prediction": (1 - self.weight) * distributed.mean(spread)},
            push={"normality": self.weight * sigreg(z, self.directions, views.step)},
        )
