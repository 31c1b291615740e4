"""Principal component analysis, in closed form and as a linear autoencoder."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import Plan, whole
from erg.views.types import View, Views


class PCA(Method):
    """F(y) = ||y' - W_d W_e y'||^2 with y' = (f(y) - mean) / scale; z = W_e y' has k features.

    In closed form W_d = W_e^T are the k directions of largest variance (Pearson 1901; Eckart &
    Young 1936), and the mean energy is the sum of the variances left out. A linear autoencoder
    trained by gradient has no other minima, and those span the same directions (Baldi & Hornik
    1989). scale is 1 unless standardised. F is zero on a plane of k dimensions: that the plane is
    narrow keeps it from being low everywhere.

    Departs from the paper: nowhere; each direction points to where its largest entry is positive.
    Checked against: the SVD; the sum of discarded variances; the angles between the closed form
    and the trained autoencoder.

    Args:
        k: number of directions kept.
        by: `closed`, from the covariance after every epoch, or `sgd`, by the optimiser.
        standardise: whether features are divided by their deviation first (correlations).
    """

    cell = Cell("latent-variable", "architectural", by="a linear code narrower than the data")
    trains_encoder = False
    mean: Tensor
    scale: Tensor
    variances: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        k: int = 32,
        by: Literal["closed", "sgd"] = "closed",
        standardise: bool = False,
    ) -> None:
        super().__init__(encoder)
        d = encoder.dim
        if not 1 <= k <= d:
            raise ValueError(f"k should be 1 to {d}, the width of {encoder.name} (got {k}).")
        self.by, self.standardise = by, standardise
        down, up = nn.init.orthogonal_(torch.empty(k, d)), nn.init.orthogonal_(torch.empty(d, k))
        self.down = nn.Parameter(down, requires_grad=by == "sgd")  # W_e
        self.up = nn.Parameter(up, requires_grad=by == "sgd")  # W_d
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale", torch.ones(d))
        self.register_buffer("variances", torch.zeros(d))

    def plan(self) -> Plan:
        return whole()

    def centred(self, data: Tensor) -> Float[Tensor, "b d"]:
        """y'."""
        return (energy.at_least_float32(self.encoder(data)) - self.mean) / self.scale

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        given = self.centred(y.data)
        code = energy.products(given, self.down)
        return energy.squared_distance(given, energy.products(code, self.up))

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        return Loss(pull={"reconstruction": distributed.mean(self.energy(None, y))})

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """z [b k], the first k coordinates along the directions."""
        return energy.products(self.centred(data), self.down)

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        y = features.cpu().double()  # not every accelerator has float64
        self.mean.copy_(y.mean(dim=0))
        if self.standardise:
            deviation = y.std(dim=0, correction=0)  # constant features stay as they are
            self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
        y = (y - y.mean(dim=0)) / self.scale.cpu()
        (n, d), k = y.shape, len(self.down)
        if d > n >= k:  # the covariance would be the larger matrix, and maybe too large
            _, s, right = torch.linalg.svd(y, full_matrices=False)  # descending
            variances, top = y.new_zeros(d), right[:k].T  # [d], [d k]
            variances[:n] = s.square() / n
        else:
            variances, directions = torch.linalg.eigh(y.T @ y / n)  # ascending
            variances, top = variances.flip(0).clamp_min(0), directions.flip(1)[:, :k]
        self.variances.copy_(variances)
        if self.by == "closed":
            largest = top.gather(0, top.abs().argmax(dim=0, keepdim=True))
            top = top * largest.sign()
            self.down.copy_(top.T)
            self.up.copy_(top)
