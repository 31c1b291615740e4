"""Restricted Boltzmann machine, by contrastive divergence (Hinton 2002)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from erg import distributed, energy, noise
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import Plan, whole
from erg.views.types import View, Views


class RBM(Method):
    """F(v) = -b.v - sum_j log(1 + exp(c_j + W_j v)), E(v, h) = -b.v - c.h - h^T W v summed over h.

    v and h are units that are 0 or 1 (Smolensky 1986). Given one side, the units of the other are
    independent: p(h_j | v) = sigmoid(c_j + W_j v), p(v_i | h) = sigmoid(b_i + W_i^T h). The
    gradient of -log p(v) is that of F(v) minus its mean under the model, of which

    - CD-k (Hinton 2002) takes k such turns, started at v: L = F(v) - F(v_k);
    - persistent CD (Tieleman 2008) takes k turns from where those of the last step ended: its
      particles follow the model as it learns, and its gradient has less bias.

    Here y stands for f(y), the features of a frozen encoder, scaled to [0, 1] by the least and the
    largest of the training set. They are probabilities, and v is drawn from them at each step.

    Departs from the paper: nowhere.
    Checked against: enumeration of all states of 4 x 4 units: F, its normaliser and gradient, the
    gradient of CD-k.

    Args:
        hidden: number of hidden units.
        k: turns of a chain.
        particles: chains that persist; 0 for chains that start at the data.
    """

    cell = Cell("latent-variable", "contrastive", by="energy raised where Gibbs chains end")
    trains_encoder = False
    low: Tensor
    high: Tensor
    started: Tensor
    chains: Tensor | None

    def __init__(
        self, encoder: Encoder, *, hidden: int = 256, k: int = 1, particles: int = 0
    ) -> None:
        super().__init__(encoder)
        self.k = k
        self.weight = nn.Parameter(0.01 * torch.randn(hidden, encoder.dim))  # W
        self.visible_bias = nn.Parameter(torch.zeros(encoder.dim))  # b
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))  # c
        chains = torch.randint(2, (particles, encoder.dim)).float() if particles else None
        self.register_buffer("chains", chains)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def plan(self) -> Plan:
        return whole()

    def visible(self, data: Tensor) -> Float[Tensor, "b d"]:
        """Probabilities of the visible units."""
        y = energy.at_least_float32(self.encoder(data))
        return ((y - self.low) / (self.high - self.low)).clamp(0, 1)

    def to_hidden(self, v: Float[Tensor, "b d"]) -> Float[Tensor, "b h"]:
        """c + W v, the log odds of the hidden units."""
        return energy.products(v, self.weight) + self.hidden_bias

    def to_visible(self, h: Float[Tensor, "b h"]) -> Float[Tensor, "b d"]:
        """b + W^T h, the log odds of the visible units."""
        return energy.products(h, self.weight.T) + self.visible_bias

    def free_energy(self, v: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """F of visible units."""
        return -(v * self.visible_bias).sum(dim=1) - softplus(self.to_hidden(v)).sum(dim=1)

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return self.free_energy(self.visible(y.data))

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """p(h | v) [b hidden]."""
        return self.to_hidden(self.visible(data)).sigmoid()

    @torch.no_grad()
    def gibbs(
        self, v: Float[Tensor, "b d"], index: Int[Tensor, " b"], step: int
    ) -> Float[Tensor, "b d"]:
        """k turns: hidden units given the visible ones, visible ones given those."""
        for i in range(self.k):
            h = drawn(self.to_hidden(v).sigmoid(), index, f"hidden {i}", step)
            v = drawn(self.to_visible(h).sigmoid(), index, f"visible {i}", step)
        return v

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        v = drawn(self.visible(y.data), views.index, "data", views.step)
        if self.chains is not None:
            # All of them on every process: they are few, and so equal everywhere.
            index = torch.arange(len(self.chains), device=v.device)
            ends = self.gibbs(self.chains, index, views.step)
            high = self.free_energy(ends).mean()
            if self.training:
                self.chains.copy_(ends)
        else:
            high = distributed.mean(self.free_energy(self.gibbs(v, views.index, views.step)))
        return Loss(pull={"data": distributed.mean(self.free_energy(v))}, push={"chains": -high})

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        if not self.started:
            low, high = features.aminmax()
            self.low.copy_(low)
            self.high.copy_(high.clamp_min(low + 1e-6))
            self.started.fill_(True)

    def needs_features(self) -> bool:
        return not self.started


def drawn(
    probability: Float[Tensor, "b d"], index: Int[Tensor, " b"], purpose: str, step: int
) -> Float[Tensor, "b d"]:
    """Units that are 1 with these probabilities, else 0."""
    uniform = noise.uniform(index, probability.shape[1], purpose=purpose, step=step)
    return (uniform < probability).to(probability)
