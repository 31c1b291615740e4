"""The ellipse whose latent is an angle: the energy that the course infers and trains by hand."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import Plan, whole
from erg.views.types import View, Views


class Ellipses(Method):
    """F_beta(x, y) = -(1/beta) log (1/k) sum_z exp(-beta E(x, y, z)), with

    E(x, y, z) = ||y - g(x, z)||^2, g(x, z) = (r1(x) cos z, r2(x) sin z), z one of k angles.
    Without x the radii r are two numbers; with it a network 1-8-8-2. The manifold of g has one
    dimension: F cannot be low everywhere. beta = inf takes the minimum over z.

    Departs from the paper: it is that of a lecture (Canziani 2020), with other starts.
    Checked against: loops; the circle, whose free energies are known.

    Args:
        beta: inverse temperature.
        conditional: whether the first feature is x.
        latents: k.
    """

    cell = Cell("latent-variable", "architectural", by="a latent of one dimension, an angle")
    trains_encoder = False
    angles: Tensor

    def __init__(
        self, encoder: Encoder, *, beta: float = math.inf, conditional: bool = False,
        latents: int = 48,
    ) -> None:  # fmt: skip
        super().__init__(encoder)
        self.beta, self.conditional = beta, conditional
        self.register_buffer("angles", torch.arange(latents) * (2 * math.pi / latents))
        if conditional:
            layers = [nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)]
            self.network = nn.Sequential(*layers)
        else:
            self.direct = nn.Parameter(torch.tensor([0.6, 1.2]))

    def plan(self) -> Plan:
        return whole()

    def radii(self, data: Tensor) -> Float[Tensor, "b 2"]:
        """r(x) of (x, y1, y2) or (y1, y2)."""
        if self.conditional:
            return self.network(data[:, :1])
        return self.direct.expand(len(data), 2)

    def of_angle(self, data: Tensor, z: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """E(x, y, z) for k angles of each item."""
        made = self.radii(data)[:, None] * torch.stack([z.cos(), z.sin()], dim=2)  # [b k 2]
        return (data[:, None, -2:] - made).square().sum(dim=2)

    def energies(self, data: Tensor) -> Float[Tensor, "b k"]:
        """E(x, y, z) for every z."""
        return self.of_angle(data, self.angles.expand(len(data), -1))

    def free_energy(self, data: Tensor, beta: float) -> Float[Tensor, " b"]:
        """F_beta(x, y) at any temperature."""
        return energy.free_energy(self.energies(data), beta)

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return self.free_energy(y.data, self.beta)

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        return Loss(pull={"free energy": distributed.mean(self.energy(None, y))})

    def manifold(self, x: Float[Tensor, " n"], points: int = 97) -> Float[Tensor, "n p 2"]:
        """g(x, z) along the whole ellipse of every x."""
        z = torch.linspace(0, 2 * math.pi, points)
        data = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], dim=1)
        radii = self.radii(data if self.conditional else data[:, 1:])
        return radii[:, None] * torch.stack([z.cos(), z.sin()], dim=1)
