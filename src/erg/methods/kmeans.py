"""K-means as a latent-variable energy."""

from math import inf
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, inference, noise
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import Plan, whole
from erg.views.types import View, Views

BLOCK = 8192
"""Rows of the whole set whose shares are computed at once."""


class KMeans(Method):
    """E(y, z) = ||f(y) - W z||^2 with z one-hot of k; F(y) = min_z E(y, z).

    With a finite beta, F is the free energy -(1/beta) log (1/k) sum_z exp(-beta E(y, z)) and z
    becomes soft, r_z = exp(-beta E_z) / sum_z' exp(-beta E_z'). The one-hot latent holds so little
    information that F cannot be low everywhere: there are k wells. It is learned

    - by `lloyd` (Lloyd 1982): after every epoch w_k <- sum_y r_k y / sum_y r_k, over all images;
    - by `winner` (MacQueen 1967): at each step w_k <- w_k + (y - w_k) r_k / n_k, with n_k what
      prototype k has won so far, so that it is the mean of that;
    - by `sgd`: the gradient 2 r_k (w_k - y), in the hands of the optimiser.

    Annealed (Rose et al. 1990), beta rises from `warm`, where hardly more than the mean of all
    images is told, and wells part one after the other; few end where they should not.

    Departs from the paper: a k-means++ start (Arthur & Vassilvitskii 2007); without a temperature
    empty wells move to the farthest points; annealed, prototypes that coincide are pushed apart by
    a thousandth of the images' deviation, and by less and less.
    Checked against: gradients of F_beta against 2 r_k (w_k - y); steps of each kind against loops;
    the mean of F_beta, which no soft step raises.

    Args:
        k: number of prototypes.
        by: `lloyd`, `winner` or `sgd`.
        beta: inverse temperature; inf takes the minimum over z [1 / squared units of f(y)].
        warm: beta at the start of training, from which it rises to the finite one by equal factors;
            0 for the same beta throughout.
        seed: of the k-means++ start.
    """

    cell = Cell("latent-variable", "regularised", by="a one-hot latent: k wells and no more")
    trains_encoder = False
    started: Tensor
    progress: Tensor
    won: Tensor
    winning: Tensor
    sums: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        k: int = 64,
        by: Literal["lloyd", "winner", "sgd"] = "lloyd",
        beta: float = inf,
        warm: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(encoder)
        if warm and not 0 < warm < beta < inf:
            raise ValueError(
                f"beta cannot rise from warm = {warm} to beta = {beta} by equal factors. Choose a "
                "finite beta and warm above 0 and below it, or warm = 0."
            )
        if warm and by == "winner":
            raise ValueError(
                "by = winner keeps the mean of all that was won, while it was hot too, so that "
                "prototypes would stay near each other. Anneal by lloyd or sgd."
            )
        self.by, self.beta, self.warm, self.seed = by, beta, warm, seed
        self.prototypes = nn.Parameter(torch.zeros(k, encoder.dim), requires_grad=by == "sgd")
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        if warm:
            self.register_buffer("progress", torch.zeros(()))  # at the last step
        if by == "winner":
            self.register_buffer("won", torch.zeros(k))  # n_k
            self.register_buffer("winning", torch.zeros(k))  # of these, at this step
            self.register_buffer("sums", torch.zeros(k, encoder.dim))  # of what won them

    def plan(self) -> Plan:
        return whole()

    def beta_at(self, progress: float) -> float:
        """beta when the fraction `progress` of training is done."""
        return self.warm ** (1 - progress) * self.beta**progress if self.warm else self.beta

    def energies(self, data: Tensor) -> Float[Tensor, "b k"]:
        """E(y, z) for every z."""
        return energy.to_prototypes(self.encoder(data), self.prototypes)

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return energy.free_energy(self.energies(y.data), self.beta)

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        features = self.encoder(y.data)
        energies, beta = energy.to_prototypes(features, self.prototypes), self.beta_at(progress)
        if self.by == "winner" and self.training:
            self.remember(features, inference.responsibilities(energies, beta))
        found = distributed.mean(energy.free_energy(energies, beta))
        return Loss(pull={"quantisation": found})

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """argmin_z E(y, z) as one-hot [b k]; soft responsibilities where beta is finite."""
        return inference.responsibilities(self.energies(data), self.beta)

    @torch.no_grad()
    def remember(self, features: Float[Tensor, "b d"], r: Float[Tensor, "b k"]) -> None:
        """What the prototypes win of the global batch, for the end of the step."""
        self.winning.add_(distributed.sum(r.sum(dim=0)))
        self.sums.add_(distributed.sum(energy.products(r.T, features.T)))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        if self.warm:
            self.progress.fill_(progress)
        if self.by == "winner":
            self.won.add_(self.winning)
            pull = self.sums - self.winning[:, None] * self.prototypes
            self.prototypes.add_(pull / self.won.clamp_min(1e-12)[:, None])
            self.winning.zero_()
            self.sums.zero_()

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        if not self.started:
            generator = torch.Generator().manual_seed(self.seed)
            start = inference.kmeans_plus_plus(features, len(self.prototypes), generator)
            self.prototypes.copy_(start)
            self.started.fill_(True)
        elif self.by == "lloyd":
            if self.beta == inf:
                self.prototypes.copy_(inference.lloyd_step(features, self.prototypes))
            else:
                self.prototypes.copy_(self.soft_step(features))

    def needs_features(self) -> bool:
        return not self.started or self.by == "lloyd"

    def soft_step(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "k d"]:
        """sum_y r_k y / sum_y r_k; what hardly any image belongs to stays where it is."""
        progress = float(self.progress) if self.warm else 0.0
        held, sums = torch.zeros_like(self.prototypes[:, 0]), torch.zeros_like(self.prototypes)
        for y in features.to(sums.dtype).split(BLOCK):
            r = inference.responsibilities(
                energy.to_prototypes(y, self.prototypes), self.beta_at(progress)
            )
            held, sums = held + r.sum(dim=0), sums + energy.products(r.T, y.T)
        moved = torch.where(held[:, None] > 1e-12, sums / held[:, None], self.prototypes)
        if self.warm:
            k = torch.arange(len(moved), device=moved.device)
            push = noise.normal(k, moved.shape[1], purpose="apart", step=self.seed).to(moved)
            moved = moved + 1e-3 * (1 - progress) * features.std(dim=0).to(moved) * push
        return moved
