"""Directions that scatter around a mean: the von Mises-Fisher distribution on the unit sphere."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erg import noise
from erg.energy import normalise

REACH = 5.2
"""Standard deviations that the table of angles covers: beyond lie 2 of 10 million numbers."""


class VonMisesFisher(nn.Module):
    """p(z; mu) = C_d(k) exp(k mu . z) for z and mu of norm 1, from which can be drawn.

    Angles between z and mu come from a table of their distribution, so that what is drawn is a
    function of the image and the step.

    Args:
        dim: d, of the space around the sphere.
        concentration: k.
    """

    angles: Tensor

    def __init__(self, dim: int, concentration: float) -> None:
        super().__init__()
        self.concentration = concentration
        angles, self.log_c = tabulated(dim, concentration)
        self.register_buffer("angles", angles.float())

    def log_density(self, z: Float[Tensor, "b d"], mu: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """log p(z; mu)."""
        return self.concentration * (mu * z).sum(dim=1) + self.log_c

    def drawn(
        self, mu: Float[Tensor, "b d"], index: Int[Tensor, " b"], *, purpose: str, step: int
    ) -> Float[Tensor, "b d"]:
        """z around mu, with a gradient to mu; in evaluation mode mu itself.

        Args:
            mu: mean directions.
            index: of the images.
            purpose: of the draw; others are independent of it.
            step: of training.
        """
        if not self.training:
            return mu
        n = noise.normal(index, mu.shape[1] + 1, purpose=purpose, step=step).to(mu)
        across = n[:, 1:] - (n[:, 1:] * mu).sum(dim=1, keepdim=True) * mu
        angle = self.angle(n[:, :1])
        return angle.cos() * mu + angle.sin() * normalise(across)

    def angle(self, normal: Float[Tensor, "b 1"]) -> Float[Tensor, "b 1"]:
        """Angles between z and mu from standard normal numbers: equal quantiles, interpolated."""
        place = (normal + REACH) * (len(self.angles) - 1) / (2 * REACH)
        place = place.clamp(0, len(self.angles) - 1.001)
        left = place.long()
        table = self.angles.to(normal)
        return torch.lerp(table[left], table[left + 1], place - left)


def tabulated(dim: int, concentration: float) -> tuple[Float[Tensor, " t"], float]:
    """The angles at equally spaced normal quantiles, from -REACH to REACH, and log C_d(k).

    The angle t between z and mu has the density exp(k cos t) sin(t)^(d-2), up to a constant, and
    1 / C_d(k) is the integral of that times the area of the sphere with one dimension less. Both
    come from one sum over t, in logarithms since exp(k) overflows.
    """
    # Many standard deviations on both sides of the mode, as far as they fit into [0, pi].
    a = max(dim - 2, 0) / concentration  # at the mode sin(t)^2 = a cos(t)
    mode = math.acos(2 / (math.sqrt(a * a + 4) + a))
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
