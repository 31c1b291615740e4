"""Autoencoder, with codes that are narrow, or wide and sparse."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.decoder import decoder_for
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views


class Autoencoder(Method):
    """F(y) = ||y - r(y)||^2 / d, r(y) = g(z), z = s(W f(y) + b).

    Rumelhart et al. 1986; Hinton & Salakhutdinov 2006. F is low on what g can make. A code that
    is narrower than y keeps that from being everything; a wide one needs to be sparse:

    - `l1`: s = ReLU, weight sum_j |z_j|; the columns of g's first layer keep norm 1, since z could
      shrink otherwise while they grow.
    - `kl`: s = sigmoid, weight sum_j KL(rate || mean over the batch of z_j) (Ng 2011).
    - `top-k`: s = ReLU, and all but the largest `active` entries are zero (Makhzani & Frey 2014).

    With sigmoid output, F is the binary cross-entropy of pixels in [0, 1], a mean over d too.

    Departs from the paper: the encoder is any of ours; trained as a whole, not layer by layer.
    Checked against: loops; PCA, which a linear one becomes.

    Args:
        dim: width of z; 0 takes the encoder's [features].
        sparse: what keeps z sparse.
        weight: of the l1 norm, or of the divergence.
        rate: mean activation that `kl` asks of every unit, in (0, 1).
        active: entries that `top-k` keeps.
        output: `linear` for normalised data and squared error, `sigmoid` for data in [0, 1].
        width: channels of the decoder before its last layer.
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("latent-variable", "architectural", by="a code that is narrow or sparse")
    batch_coupled = True  # where codes are sparse by `kl`

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 0,
        sparse: Literal["none", "l1", "kl", "top-k"] = "none",
        weight: float = 1e-3,
        rate: float = 0.05,
        active: int = 16,
        output: Literal["linear", "sigmoid"] = "linear",
        width: int = 32,
        crop: float = 0.5,
    ) -> None:
        super().__init__(encoder)
        dim = dim or encoder.dim
        if sparse == "top-k" and not 1 <= active <= dim:
            raise ValueError(f"active should be 1 to {dim}, the width of z (got {active}).")
        if sparse == "kl" and not 0 < rate < 1:
            raise ValueError(f"rate is a mean activation in (0, 1) (got {rate}).")
        self.sparse, self.weight, self.rate, self.active = sparse, weight, rate, active
        self.output, self.crop = output, crop
        self.squeeze = nn.Linear(encoder.dim, dim)  # W, b
        self.widen = nn.Linear(dim, encoder.dim)
        self.decoder = decoder_for(encoder, encoder.dim, width=width)
        self.after_step(0.0)

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(self.crop, 1.0)),), pairs="alone")

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """z [b dim]."""
        z = self.squeeze(self.encoder(data))
        if self.sparse == "none":
            return z
        if self.sparse == "kl":
            return z.sigmoid()
        z = z.relu()
        if self.sparse == "top-k":
            kept = z.topk(self.active, dim=1)
            z = torch.zeros_like(z).scatter(1, kept.indices, kept.values)
        return z

    def reconstruct(self, z: Float[Tensor, "b d"]) -> Tensor:
        """g(z), of the shape of the data; logits where the output is sigmoid."""
        return self.decoder(self.widen(z))

    def error(self, y: View, z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        made = self.reconstruct(z)
        if self.output == "linear":
            return energy.mean_squared_error(made, y.data)
        return energy.bernoulli(made, y.unit()) / made[0].numel()

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return self.error(y, self.encode(y.data))

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        z = self.encode(y.data)
        pull = {"reconstruction": distributed.mean(self.error(y, z))}
        if self.sparse == "l1":
            return Loss(pull, {"l1": self.weight * distributed.mean(z.abs().sum(dim=1))})
        if self.sparse == "kl":
            rare = shaping.rare_activity(distributed.mean(z), self.rate)
            return Loss(pull, {"activity": self.weight * rare})
        return Loss(pull)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        if self.sparse == "l1":
            self.widen.weight.copy_(energy.normalise(self.widen.weight.T).T)
