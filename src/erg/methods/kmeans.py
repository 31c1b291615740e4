"""K-means as a latent-variable energy."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, inference
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import Plan, whole
from erg.views.types import View, Views


class KMeans(Method):
    """E(y, z) = ||f(y) - W z||^2 with z one-hot of k; F(y) = min_z E(y, z).

    With a finite beta, F is the free energy -(1/beta) log (1/k) sum_z exp(-beta E(y, z)) and z
    becomes soft. The one-hot latent holds so little information that F cannot be low everywhere:
    there are k wells. Lloyd 1982; k-means++ start of Arthur & Vassilvitskii 2007.

    Departs from the paper: nowhere; empty wells move to the farthest points.
    Checked against: gradients of F_beta against 2 r_k (w_k - y); Lloyd steps against loops.

    Args:
        k: number of prototypes.
        by: `lloyd`, closed form after every epoch, or `sgd`, by the optimiser.
        beta: inverse temperature; inf takes the minimum over z.
        seed: of the k-means++ start.
    """

    cell = Cell("latent-variable", "regularised", by="a one-hot latent: k wells and no more")
    trains_encoder = False

    def __init__(
        self,
        encoder: Encoder,
        *,
        k: int = 64,
        by: Literal["lloyd", "sgd"] = "lloyd",
        beta: float = float("inf"),
        seed: int = 0,
    ) -> None:
        super().__init__(encoder)
        self.by, self.beta, self.seed = by, beta, seed
        self.prototypes = nn.Parameter(torch.zeros(k, encoder.dim), requires_grad=by == "sgd")
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def plan(self) -> Plan:
        return whole()

    def energies(self, data: Tensor) -> Float[Tensor, "b k"]:
        """E(y, z) for every z."""
        return energy.to_prototypes(self.encoder(data), self.prototypes)

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return energy.free_energy(self.energies(y.data), self.beta)

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        return Loss(pull={"quantisation": distributed.mean(self.energy(None, y))})

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """argmin_z E(y, z) as one-hot [b k]; soft responsibilities where beta is finite."""
        energies = self.energies(data)
        if self.beta == float("inf"):
            return nn.functional.one_hot(energies.argmin(dim=1), energies.shape[1]).to(energies)
        return inference.responsibilities(energies, self.beta)

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        if not self.started:
            generator = torch.Generator().manual_seed(self.seed)
            start = inference.spread_out(features, len(self.prototypes), generator)
            self.prototypes.copy_(start)
            self.started.fill_(True)
        elif self.by == "lloyd":
            moved, _ = inference.lloyd_step(features, self.prototypes)
            self.prototypes.copy_(moved)
