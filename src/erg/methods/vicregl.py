"""VICRegL (Bardes et al. 2022)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.crops import byol_views
from erg.parts.heads import mlp
from erg.views.plan import Plan
from erg.views.types import How, View, Views

Pair = tuple[Tensor, Tensor]


class VICRegL(Method):
    """F(x, y) = ||z_x - z_y||^2 / d; and the same for cells of the last feature map that match.

    V = 25 F + 25 [v(z_x) + v(z_y)] / 2 + [c(z_x) + c(z_y)] is VICReg's criterion, and
    L = alpha V(z) + (1 - alpha) sum over matchings of V(matched cells). A cell of one view is
    matched with the cell of the other that is nearest in the source image, told by the boxes the
    views were cut from, or nearest in embedding (L2); of the matches of an image the g closest
    count. V is the mean of both directions and of the g cells, in the order of the map, with v and
    c over the images (Bardes et al. 2022, VICRegL).

    Departs from the paper: two crops of equal size; narrower vectors (8,192 there); g in both
    directions and for both matchings, where the authors' code has 20 one way and 4 the other by
    position, and all cells by embedding; c of both sides is their sum, as in VICReg, not the mean.
    Checked against: golden numbers of VICReg with alpha 1; loops over cells; positions of pixels
    that the kernels rendered. Alpha, weights and the form of V are those of the authors' code; the
    paper's own equations were not seen.

    Args:
        alpha: share of the vectors, the rest is of the cells, in [0, 1].
        matches: g, matches of an image that count; at most as many as a map has cells.
        hidden: width of the hidden layers of the vectors' expander [features].
        dim: width of z of vectors [features].
        local: width of all layers of the cells' expander [features].
        invariance: weight of F.
        variance: weight of v.
        covariance: weight of c.
    """

    cell = Cell(
        "joint-embedding", "regularised", by="variance floor and decorrelation, of cells too"
    )
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        alpha: float = 0.75,
        matches: int = 20,
        hidden: int = 2048,
        dim: int = 2048,
        local: int = 512,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        super().__init__(encoder)
        self.alpha, self.matches = alpha, matches
        self.weights = (invariance, variance, covariance)
        self.expander = mlp(encoder.dim, hidden, hidden, dim, last_bias=False)
        self.local = mlp(encoder.dim, local, local, local, last_bias=False)

    def plan(self) -> Plan:
        return byol_views(self.encoder.image_size)

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        z = (self.expander(self.encoder(view.data)) for view in (x, y))
        return energy.mean_squared_error(*z)

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = views.need(2)
        (vector, mine, here), (other, theirs, there) = self.embed(x), self.embed(y)
        cells = (mine, theirs)
        # Differences, not products, since pixels are large numbers.
        near = torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist")  # [b n m]
        a, b = (energy.at_least_float32(c.detach()) for c in cells)
        alike = torch.cdist(a, b)
        share = (1 - self.alpha) / 2  # of each of the two directions
        parts = {
            "": (self.alpha, [(vector, other)]),
            " by position": (share, self.matched(cells, near)),
            " by feature": (share, self.matched(cells, alike)),
        }
        pull: dict[str, Tensor] = {}
        push: dict[str, Tensor] = {}
        for name, (weight, pairs) in parts.items():
            invariance, variance, covariance = self.criterion(pairs)
            pull[f"invariance{name}"] = weight * invariance
            push[f"variance{name}"] = weight * variance
            push[f"covariance{name}"] = weight * covariance
        return Loss(pull=pull, push=push)

    def embed(
        self, view: View
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n e"], Float[Tensor, "b n 2"]]:
        """z of the vector and of every cell, and where the cells lie in the source image."""
        vector, cells = self.encoder.with_tokens(view.data)
        if view.made is None:
            raise ValueError("VICRegL matches cells by their boxes. Use views that a plan made.")
        z = self.local(cells.flatten(0, 1)).unflatten(0, cells.shape[:2])
        return self.expander(vector), z, positions(view.made, math.isqrt(cells.shape[1]))

    def matched(self, cells: Pair, apart: Float[Tensor, "b n m"]) -> list[Pair]:
        """The g closest matches of every image, from x to y and from y to x, each [b g e], in the
        order of the map."""
        x, y = cells
        found: list[Pair] = []
        for mine, other, distance in ((x, y, apart), (y, x, apart.mT)):
            closest, partner = distance.min(dim=2)  # of every cell
            count = min(self.matches, closest.shape[1])
            chosen = closest.topk(count, dim=1, largest=False).indices.sort(dim=1).values  # [b g]
            found.append((_pick(mine, chosen), _pick(other, partner.gather(1, chosen))))
        return found

    def criterion(self, pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
        """The three parts of V, summed over pairs of embeddings [b d] or [b g d]; of g the mean."""
        variance, covariance = (
            torch.vmap(part, in_dims=1) for part in (shaping.variance, shaping.covariance)
        )
        total = [torch.zeros((), device=pairs[0][0].device) for _ in range(3)]
        for pair in pairs:
            gathered = [distributed.gather(z) for z in pair]
            x, y = (z.reshape(len(z), -1, z.shape[-1]) for z in gathered)  # [global g d]
            parts = (
                energy.mean_squared_error(x, y).mean(),
                (variance(x) + variance(y)).mean() / 2,
                (covariance(x) + covariance(y)).mean(),
            )
            total = [a + w * p for a, w, p in zip(total, self.weights, parts, strict=True)]
        return total[0], total[1], total[2]


def positions(made: How, side: int) -> Float[Tensor, "b n 2"]:
    """Row and column [source pixels] of the middle of every cell of a side x side map."""
    at = (torch.arange(side, device=made.box.device) + 0.5) / side - 0.5
    down, right = (p.flatten().to(made.box) for p in torch.meshgrid(at, at, indexing="ij"))
    # Undone in turn: quarter turns, the flip, the crop.
    angle = made.turns[:, None].to(made.box) * (math.pi / 2)
    cos, sin = angle.cos().round(), angle.sin().round()
    right, down = cos * right - sin * down, sin * right + cos * down  # [b n]
    right = torch.where(made.flip[:, None], -right, right)
    top, left, height, width = made.box.T[..., None]
    return torch.stack([top + (down + 0.5) * height, left + (right + 0.5) * width], dim=2)


def _pick(cells: Float[Tensor, "b n d"], chosen: Int[Tensor, "b g"]) -> Float[Tensor, "b g d"]:
    return cells.gather(1, chosen[..., None].expand(-1, -1, cells.shape[2]))
