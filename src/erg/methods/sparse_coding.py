"""Sparse coding, with codes by optimisation or by a network that learns to predict them."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, inference
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import Plan, whole
from erg.views.types import View, Views

BLOCK = 4096
"""Rows of the whole set whose codes are inferred at once."""


class SparseCoding(Method):
    """F(y) = min_z E(y, z), E(y, z) = ||y' - z W||^2 / 2 + lambda ||z||_1, y' = (f(y) - m) / s.

    Olshausen & Field 1996. z has k entries, W as many rows (atoms) of norm 1; z is found by FISTA
    (Beck & Teboulle 2009), then W takes a gradient step. m is the mean and s such that E ||y'||^2
    = 1, which gives lambda the same meaning for all data. Each image has few active atoms: the
    l1 norm limits the volume of low energy. With one-hot z and no l1 norm this is k-means.

    LISTA (Gregor & LeCun 2010): z = shrink(z S + y' W_e, theta), unrolled a few times, learns to
    give the codes of FISTA. PSD (Kavukcuoglu et al. 2008): E has a third term
    alpha ||z - g tanh(y' W_e + b)||^2, which pulls codes towards a network and it towards them.

    Departs from the paper: features instead of whitened patches; atoms that no image uses move to
    the image that is explained worst.
    Checked against: coordinate descent of scikit-learn; k-means; loops over the layers.

    Args:
        k: number of atoms.
        sparsity: lambda.
        iterations: of FISTA.
        learned: the network that predicts codes: none, `lista` or `psd`.
        layers: of LISTA after the first.
        pull: alpha, of PSD.
    """

    cell = Cell("latent-variable", "regularised", by="an l1 norm on z, atoms of norm 1")
    trains_encoder = False
    mean: Tensor
    scale: Tensor
    started: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        k: int = 256,
        sparsity: float = 0.1,
        iterations: int = 50,
        learned: Literal["none", "lista", "psd"] = "none",
        layers: int = 2,
        pull: float = 1.0,
    ) -> None:
        super().__init__(encoder)
        self.sparsity, self.iterations, self.learned = sparsity, iterations, learned
        self.layers, self.pull = layers, pull
        d = encoder.dim
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale", torch.ones(()))
        self.atoms = nn.Parameter(energy.normalise(torch.randn(k, d)))
        if learned != "none":
            self.feed = nn.Parameter(0.1 * self.atoms.detach().T)  # W_e [d k]
        if learned == "lista":
            self.inhibit = nn.Parameter(torch.zeros(k, k))  # S
            self.threshold = nn.Parameter(torch.zeros(k))  # theta
        elif learned == "psd":
            self.gain, self.bias = nn.Parameter(torch.ones(k)), nn.Parameter(torch.zeros(k))

    def plan(self) -> Plan:
        return whole()

    def centred(self, data: Tensor) -> Float[Tensor, "b d"]:
        """y'."""
        return (energy.at_least_float32(self.encoder(data)) - self.mean) / self.scale

    def infer(self, y: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """argmin_z E(y, z)."""
        pull = self.pull if self.learned == "psd" else 0.0
        return inference.ista(
            y, self.atoms, self.sparsity, iterations=self.iterations,
            towards=self.predict(y) if pull else None, pull=pull,
        )  # fmt: skip

    def predict(self, y: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """The code that the network expects; without one, what `infer` finds."""
        if self.learned == "none":
            return self.infer(y)
        driven = energy.products(y, self.feed.T)
        if self.learned == "psd":
            return self.gain * (driven + self.bias).tanh()
        z = inference.soft_threshold(driven, self.threshold)
        for _ in range(self.layers):
            z = inference.soft_threshold(
                driven + energy.products(z, self.inhibit.T), self.threshold
            )
        return z

    def of_code(self, y: Float[Tensor, "b d"], z: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """E(y, z)."""
        made = energy.products(z, self.atoms.T)
        found = energy.squared_distance(y, made) / 2 + self.sparsity * z.abs().sum(dim=1)
        if self.learned == "psd":
            found = found + self.pull * energy.squared_distance(self.predict(y), z)
        return found

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        given = self.centred(y.data)
        return self.of_code(given, self.infer(given))

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        y = self.centred(view.data)
        z = self.infer(y)
        parts = {"energy": distributed.mean(self.of_code(y, z))}
        if self.learned == "lista":
            parts["code"] = distributed.mean(energy.squared_distance(self.predict(y), z))
        return Loss(pull=parts)

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """z [b k]: that of the network where there is one."""
        return self.predict(self.centred(data))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.atoms.copy_(energy.normalise(self.atoms))

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        first = not self.started
        if first:
            self.mean.copy_(features.mean(dim=0))
            spread = (features - self.mean).square().sum(dim=1).mean()
            self.scale.copy_(spread.sqrt().clamp_min(1e-6))
        y = (features - self.mean) / self.scale
        codes = torch.cat([self.infer(block) for block in y.split(BLOCK)])
        unused = (codes == 0).all(dim=0).nonzero().flatten()
        left = y - energy.products(codes, self.atoms.T)
        worst = left.square().sum(dim=1).argsort(descending=True)[: len(unused)]
        self.atoms[unused[: len(worst)]] = energy.normalise(left[worst]).to(self.atoms.dtype)
        if first and self.learned == "lista":  # each layer begins as a step of ISTA
            curvature = inference.largest_eigenvalue(self.atoms)
            self.feed.copy_(self.atoms.T / curvature)
            eye = torch.eye(len(self.atoms)).to(self.atoms)
            self.inhibit.copy_(eye - self.atoms @ self.atoms.T / curvature)
            self.threshold.copy_(self.sparsity / curvature)
        self.started.fill_(True)
