"""Contrastive divergence on a deep energy: data down, where descents end up."""

from dataclasses import replace
from math import inf
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from erg import distributed, energy, inference, noise
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.bank import Queue
from erg.parts.heads import mlp
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views


class ContrastiveDivergence(Method):
    """F(y) = g(f(y)), a number; it goes down at y and up at y-, where a descent of F from y ends.

    y- = y + kick n, then so many times y- <- y- - step dF/dy + deviation n (Hinton 2002 with the
    Langevin steps of Welling & Teh 2011). Low places near the data that hold none are found so and
    filled up. With `particles` a descent goes on where an earlier one ended instead, but for a
    share that starts anew (Tieleman 2008; Du & Mordatch 2019), and finds those far away too.

    - `difference`: L = F(y) - F(y-), whose gradient is that of -log p(y) once y- is distributed as
      p = exp(-F) / Z: deviation = sqrt(2 step) and many steps.
    - `hinge`: L = max(0, margin + F(y) - F(y-)).
    - `log`: L = log(1 + exp(F(y) - F(y-))), a soft hinge without a margin.

    All add magnitude (F(y)^2 + F(y-)^2), without which F may grow without end. The defaults are for
    vectors of variance about 1. On images in [0, 1], Du & Mordatch take 10,000 particles, 60 steps
    of size 10, deviation 0.005 and clip 0.01.

    Departs from the paper: the encoder may be any; its batch normalisation, if it has one, is that
    of evaluation throughout, since F is a function of y alone. Particles are taken in turn, not at
    random, and start anew at kicked data, not at uniform noise.
    Checked against: loops; the gradient of -log p in closed form; a mixture of Gaussians, whose
    field it must find.

    Args:
        by: the loss.
        margin: of the hinge [units of F].
        magnitude: weight of the squared energies.
        kick: standard deviation of the first displacement [units of the data].
        steps: of a descent.
        step: size of one [squared units of the data per unit of F].
        deviation: of the noise of a step [units of the data].
        clip: largest absolute value that an entry of dF/dy counts with.
        particles: ends of descents that are remembered; 0 for descents that start at the data.
        restart: share of the remembered that start anew.
        width: of the hidden layer of g [features].
    """

    cell = Cell("latent-variable", "contrastive", by="energy raised where descents of it end")
    encoder_evaluates = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        by: Literal["difference", "hinge", "log"] = "difference",
        margin: float = 1.0,
        magnitude: float = 0.1,
        kick: float = 0.5,
        steps: int = 10,
        step: float = 0.2,
        deviation: float = 0.1,
        clip: float = inf,
        particles: int = 0,
        restart: float = 0.05,
        width: int = 128,
    ) -> None:
        super().__init__(encoder)
        self.by, self.margin, self.magnitude = by, margin, magnitude
        self.kick, self.steps, self.step = kick, steps, step
        self.deviation, self.clip, self.restart = deviation, clip, restart
        self.head = mlp(encoder.dim, width, 1, norm=False, last_bias=False, activation=nn.SiLU)
        d = 3 * encoder.image_size**2 if encoder.mean else encoder.image_size
        self.memory = Queue(particles, d) if particles else None

    def plan(self) -> Plan:
        return Plan(main=(replace(LIGHT, crop=(0.5, 1.0)),), pairs="alone")

    def of_data(self, data: Tensor) -> Float[Tensor, " b"]:
        """F of each item."""
        return energy.at_least_float32(self.head(self.encoder(data)))[:, 0]

    def energy(self, x: View | None, y: View) -> Float[Tensor, " b"]:
        return self.of_data(y.data)

    def starts(self, views: Views) -> Tensor:
        """Where the descents of a batch start: at kicked data or at remembered particles."""
        y = energy.at_least_float32(views.main[0].data)
        index, step = views.index, views.step
        kicked = y + self.kick * noise.normal(index, *y.shape[1:], purpose="kick", step=step).to(y)
        if self.memory is None:
            return kicked
        # The oldest ones, which the ends of these descents will take the place of.
        mine = torch.arange(len(y), device=y.device) * distributed.world() + distributed.rank()
        place = self.memory.pushed + mine
        rows = self.memory.rows[place % len(self.memory.rows)].reshape(y.shape).to(y)
        drawn = noise.uniform(index, purpose="restart", step=step)
        anew = (place < len(self.memory.rows)) | (drawn < self.restart)
        return torch.where(anew.reshape(-1, *[1] * (y.ndim - 1)), kicked, rows)

    def negatives(self, views: Views) -> Tensor:
        """y-, of the shape of y."""
        index, shape = views.index, views.main[0].data.shape[1:]
        return inference.langevin(
            self.of_data,
            self.starts(views),
            lambda i: noise.normal(index, *shape, purpose=f"descent {i}", step=views.step),
            steps=self.steps, size=self.step, deviation=self.deviation, clip=self.clip,
        )  # fmt: skip

    def loss(self, views: Views, progress: float) -> Loss:
        (y,) = views.need(1)
        ends = self.negatives(views)
        if self.memory is not None and self.training:
            self.memory.push(distributed.gather(ends.flatten(1)))
        low, high = self.of_data(y.data), self.of_data(ends)
        size = self.magnitude * distributed.mean(low.square() + high.square())
        if self.by == "difference":
            return Loss(
                pull={"data": distributed.mean(low)},
                push={"negatives": -distributed.mean(high), "magnitude": size},
            )
        gap = low - high
        found = (self.margin + gap).clamp_min(0) if self.by == "hinge" else softplus(gap)
        return Loss(pull={self.by: distributed.mean(found)}, push={"magnitude": size})
