"""A method of your own: VICReg's variance floor on a plain pair of views, in twenty lines."""

from torch import Tensor

import erg
from erg import distributed, energy, shaping
from erg.parts.heads import mlp
from erg.views.plan import SIMCLR_SMALL


class Spread(erg.Method):
    """F(x, y) = ||z_x - z_y||^2 / d, with a floor under the standard deviation of every z_j.

    Args:
        dim: width of z [features].
        weight: of the floor.
    """

    cell = erg.Cell("joint-embedding", "regularised", by="a floor under the variance")
    batch_coupled = True

    def __init__(self, encoder: erg.Encoder, *, dim: int = 64, weight: float = 1.0) -> None:
        super().__init__(encoder)
        self.weight = weight
        self.head = mlp(encoder.dim, dim, dim)

    def plan(self) -> erg.Plan:
        return erg.two_views(SIMCLR_SMALL)

    def energy(self, x: erg.View, y: erg.View) -> Tensor:
        z, z_other = (self.head(self.encoder(view.data)) for view in (x, y))
        return energy.mean_squared_error(z, z_other)

    def loss(self, views: erg.Views, progress: float) -> erg.Loss:
        x, y = (distributed.gather(self.head(self.encoder(view.data))) for view in views.need(2))
        floor = (shaping.variance(x) + shaping.variance(y)) / 2
        return erg.Loss(
            pull={"invariance": energy.mean_squared_error(x, y).mean()},
            push={"variance": self.weight * floor},
        )


if __name__ == "__main__":  # not when `erg pretrain` reads this file
    erg.check_method(Spread, arguments={"dim": 16})
    print(f"Spread keeps the contract. Train it: erg pretrain photos/ --method {__file__}:Spread")
