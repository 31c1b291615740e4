"""Mixture of Gaussians: an energy whose normaliser is known."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, inference
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import Plan, whole
from erg.views.types import View, Views

BLOCK = 8192
"""Rows of the whole set whose energies are computed at once."""


class GaussianMixture(Method):
    """F(y) = -log sum_z exp(-E(y, z)) = -log p(y), z one of k Gaussians, p(z) its weight:

    E(y, z) = -log p(z) + (y - m_z)^T S_z^-1 (y - m_z) / 2 + log det(2 pi S_z) / 2, y for f(y).
    exp(-F) integrates to one as it is, so that minimising the mean energy of the data is maximum
    likelihood and F cannot be low everywhere. One step of expectation-maximisation (Dempster et
    al. 1977) after every epoch, from a k-means++ start. With equal weights and equal isotropic
    covariances s^2, F is the free energy of k-means at beta = 1 / (2 s^2), scaled and shifted.

    Departs from the paper: a small number is added to all variances, without which a component on
    one image, or on a flat set of images, makes F fall without end.
    Checked against: log-likelihoods of scipy; steps of scikit-learn; the integral of exp(-F); the
    free energy of k-means.

    Args:
        k: number of Gaussians.
        covariance: `full`, `diagonal` or `isotropic`.
        floor: added to the variances [squared units of the features].
        steps: of expectation-maximisation after an epoch.
        seed: of the k-means++ start.
    """

    cell = Cell("latent-variable", "regularised", by="normalisation: exp(-F) integrates to one")
    trains_encoder = False
    log_weights: Tensor
    means: Tensor
    factors: Tensor
    started: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        k: int = 16,
        covariance: Literal["full", "diagonal", "isotropic"] = "diagonal",
        floor: float = 1e-6,
        steps: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(encoder)
        if k < 1:
            raise ValueError(f"a mixture needs at least one Gaussian (got k = {k}).")
        self.covariance, self.floor, self.steps, self.seed = covariance, floor, steps, seed
        d = encoder.dim
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("log_weights", torch.full((k,), -math.log(k)))
        self.register_buffer("means", torch.zeros(k, d))
        # S_z = L_z L_z^T, of which the diagonal alone is held where S_z is diagonal.
        factors = torch.ones(k, d)
        self.register_buffer("factors", factors.diag_embed() if covariance == "full" else factors)

    def plan(self) -> Plan:
        return whole()

    @energy.full_precision
    def of_features(self, y: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """E(y, z) for every z."""
        found: list[Tensor] = []
        for log_weight, mean, factor in zip(
            self.log_weights, self.means, self.factors, strict=True
        ):
            gap = energy.at_least_float32(y) - mean
            if factor.ndim == 2:
                white = torch.linalg.solve_triangular(factor, gap.T, upper=False).T
            else:
                white = gap / factor
            scales = factor.diagonal() if factor.ndim == 2 else factor
            log_det = scales.log().sum() + 0.5 * len(mean) * math.log(2 * math.pi)
            found.append(0.5 * white.square().sum(dim=1) + log_det - log_weight)
        return torch.stack(found, dim=1)

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return -(-self.of_features(self.encoder(y.data))).logsumexp(dim=1)

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        return Loss(pull={"negative log-likelihood": distributed.mean(self.energy(None, y))})

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """p(z | y) [b k]."""
        return inference.responsibilities(self.of_features(self.encoder(data)), beta=1.0)

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        if not self.started:
            generator = torch.Generator().manual_seed(self.seed)
            start = inference.kmeans_plus_plus(features, len(self.means), generator)
            closest = inference.nearest(features, start)
            self.maximise(features, nn.functional.one_hot(closest, len(start)))
            self.started.fill_(True)
        for _ in range(self.steps):
            blocks = [self.of_features(block) for block in features.split(BLOCK)]
            self.maximise(features, inference.responsibilities(torch.cat(blocks), beta=1.0))

    def maximise(self, features: Float[Tensor, "n d"], shares: Tensor) -> None:
        """Weights, means and covariances that fit best when image i belongs to z by shares[i, z].

        In float64, on the CPU: in float32 a covariance may lose its definiteness, and not every
        accelerator has float64.
        """
        y, r = features.cpu().double(), shares.cpu().double()
        held = r.sum(dim=0) + 1e-10  # a Gaussian that holds nothing stays finite
        self.log_weights.copy_((held / held.sum()).log())
        means = r.T @ y / held[:, None]
        self.means.copy_(means)
        for z, mean in enumerate(means):
            gap, share = y - mean, r[:, z, None] / held[z]
            if self.covariance == "full":
                spread = (share * gap).T @ gap
                spread.diagonal().add_(self.floor)
                self.factors[z] = torch.linalg.cholesky(spread)
                continue
            variances = (share * gap.square()).sum(dim=0)
            if self.covariance == "isotropic":
                variances = variances.mean().expand_as(variances)
            self.factors[z] = (variances + self.floor).sqrt()
