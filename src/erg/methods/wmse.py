"""W-MSE (Ermolov et al. 2021)."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.heads import mlp
from erg.parts.host import sent
from erg.views.plan import LARGE, SIMCLR, SIMCLR_SMALL, Plan
from erg.views.types import View, Views


@energy.full_precision
def whiten(z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """L^-1 (z - mean) with the covariance L L^T, so that the covariance becomes the identity.

    A covariance counts as singular where a dimension varies no more than it is rounded, or where
    rounding is all that the dimensions before it leave of its variance: what is left may be
    positive by chance, and v would be rounding errors made as long as everything else.

    Raises:
        ValueError: the covariance is singular.
    """
    z = energy.at_least_float32(z)
    mean = z.mean(dim=0)
    z = z - mean
    covariance = z.T @ z / (len(z) - 1)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    left, rounding = factor.diagonal().square(), len(z) * torch.finfo(z.dtype).eps
    if failed or (left <= rounding * covariance.diagonal() + (rounding * mean).square()).any():
        raise ValueError(
            f"the covariance of {len(z)} embeddings in {z.shape[1]} dimensions is singular. Lower "
            "dim or the learning rate, or raise group."
        )
    return torch.linalg.solve_triangular(factor, z.T, upper=False).T


class WMSE(Method):
    """F(x, y) = 2 - 2 cos(v_x, v_y) of whitened z: v = W (z - mean), so that v cannot collapse.

    W is the inverse Cholesky factor of the covariance of z over a group of the batch, apart for
    each view, and has a gradient (Ermolov et al. 2021, whitening MSE). The batch falls into random
    groups, the same for all views, and the loss is the mean of F over all pairs of views. `energy`
    is that of z as it is, since a pair alone has no covariance.

    Departs from the paper: groups may differ by one image where the batch is no multiple; small
    images turn grey with probability 0.2, not 0.1; crops come before colours, not after.
    Checked against: golden numbers, normalised and not; a loop over groups; v is white; gradients
    by finite differences.

    Args:
        views: views of each image (2 or 4 in the paper).
        hidden: width of the projector's hidden layer [features].
        dim: width of z [features].
        group: images whitened together; 0 takes 2 dim, and the batch must be at least this.
        repeats: random groupings averaged.
        normalised: whether v are compared by their directions; else by ||v_x - v_y||^2 / d.
    """

    cell = Cell("joint-embedding", "regularised", by="whitening of z")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: int = 2,
        hidden: int = 1024,
        dim: int = 64,
        group: int = 0,
        repeats: int = 1,
        normalised: bool = True,
    ) -> None:
        super().__init__(encoder)
        self.views, self.group, self.repeats = views, group or 2 * dim, repeats
        self.normalised = normalised
        if self.group <= dim:
            raise ValueError(
                f"{self.group} images have no full covariance in {dim} dimensions. Make group "
                "larger than dim; twice is the authors' rule."
            )
        self.projector = mlp(encoder.dim, hidden, dim)

    def plan(self) -> Plan:
        return Plan(
            main=(SIMCLR_SMALL if self.encoder.image_size < LARGE else SIMCLR,) * self.views
        )

    def project(self, view: View) -> Float[Tensor, "b d"]:
        return self.projector(self.encoder(view.data))

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return 2 + 2 * energy.cosine(self.project(x), self.project(y))

    def loss(self, views: Views, progress: float) -> Loss:
        z = [distributed.gather(self.project(view)) for view in views.need(self.views)]
        if len(z[0]) < self.group:
            raise ValueError(
                f"a batch of {len(z[0])} images cannot be whitened in groups of {self.group}. "
                "Raise the batch, or lower group and dim."
            )
        generator = torch.Generator().manual_seed(views.step)  # the same on every process
        found: list[Tensor] = []
        for _ in range(self.repeats):
            order = sent(torch.randperm(len(z[0]), generator=generator), z[0].device)
            for group in order.tensor_split(len(order) // self.group):
                v = [whiten(each[group]) for each in z]
                found += [self.compare(*pair) * len(group) for pair in itertools.combinations(v, 2)]
        pairs = self.views * (self.views - 1) / 2 * self.repeats * len(z[0])
        return Loss(pull={"invariance": torch.stack(found).sum() / pairs})

    def compare(self, x: Float[Tensor, "m d"], y: Float[Tensor, "m d"]) -> Tensor:
        """Mean over a group."""
        if self.normalised:
            return 2 + 2 * energy.cosine(x, y).mean()
        return energy.mean_squared_error(x, y).mean()
