"""Autoencoder with sparse binary codes (Salakhutdinov & Hinton 2009)."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, noise, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.decoder import decoder_for
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views


class BinaryAutoencoder(Method):
    """F(y) = ||y - g(z)||^2 / d with bits z = [a > 0], a = W f(y) + b.

    Semantic hashing, Salakhutdinov & Hinton 2009. While learning z = sigmoid(a + noise): only large
    |a| get through the noise, so activations end up near 0 or 1 and rounding changes little. The
    noise of an image stays the same for good, so that the gradient does not jump. weight sum_j
    KL(active || share of ones of bit j) asks for few ones per code and as many in every bit; its
    gradient is that of sigmoid(a), since a mean of sigmoids can be met without any one. So few
    bits keep F from being low everywhere. Squared distances between codes are Hamming distances.

    Departs from the paper: one network of ours trained as a whole, no stack of restricted
    Boltzmann machines; images and squared error instead of counts of words.
    Checked against: loops; Hamming distances.

    Args:
        bits: length of the code.
        noise: standard deviation of the noise on a.
        active: share of ones that is asked for, in (0, 1); 0.5 carries most.
        weight: of the divergence from that share.
        width: channels of the decoder before its last layer.
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("latent-variable", "regularised", by="few bits, noise that makes them binary")
    batch_coupled = True  # by the mean activity

    def __init__(
        self,
        encoder: Encoder,
        *,
        bits: int = 64,
        noise: float = 4.0,
        active: float = 0.25,
        weight: float = 1e-2,
        width: int = 32,
        crop: float = 0.5,
    ) -> None:
        super().__init__(encoder)
        if not 0 < active < 1:
            raise ValueError(f"active is a share of ones in (0, 1) (got {active}).")
        self.bits, self.noise, self.active, self.weight = bits, noise, active, weight
        self.crop = crop
        self.code = nn.Linear(encoder.dim, bits)  # W, b
        self.decoder = decoder_for(encoder, bits, width=width)

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(self.crop, 1.0)),), pairs="alone")

    def inputs(self, data: Tensor) -> Float[Tensor, "b k"]:
        """a."""
        return energy.at_least_float32(self.code(self.encoder(data)))

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """z [b bits], zeros and ones."""
        a = self.inputs(data)
        return (a > 0).to(a)

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return energy.mean_squared_error(self.decoder(self.encode(y.data)), y.data)

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        a = self.inputs(y.data)
        drawn = noise.normal(views.index, self.bits, purpose="bits", step=0)  # the same for good
        z = (a + self.noise * drawn.to(a)).sigmoid()
        error = energy.mean_squared_error(self.decoder(z), y.data)
        ones = a.sigmoid()
        share = distributed.mean(ones + ((a > 0).to(a) - ones).detach())
        # A bit that is never one would be pulled without bound.
        share = share + (share.clamp(0.01, 0.99) - share).detach()
        activity = shaping.rare_activity(share, self.active)
        return Loss(
            pull={"reconstruction": distributed.mean(error)},
            push={"activity": self.weight * activity},
        )
