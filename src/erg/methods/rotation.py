"""Rotation prediction (Gidaris et al. 2018, RotNet)."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import LIGHT, Plan
from erg.views.types import View, Views


class Rotation(Method):
    """F(x, y) = -log softmax(W f(x))_y for the quarter turn y in {0, 1, 2, 3} of the image x.

    Gidaris et al. 2018, eq. 2 and 3; all four turns of every image stand in the batch.

    Departs from the paper: square crops are mirrored before they are turned, never after, since
    mirrored quarter turns swap 1 and 3; crops are random sizes rather than padded shifts.
    Checked against: cross-entropy by hand; the group of quarter turns.

    Args:
        crop: smallest crop, as a fraction of the image's area.
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over the four turns")

    def __init__(self, encoder: Encoder, *, crop: float = 0.4) -> None:
        super().__init__(encoder)
        self.crop = crop
        self.classifier = nn.Linear(encoder.dim, 4)

    def plan(self) -> Plan:
        upright = replace(LIGHT, crop=(self.crop, 1.0), ratio=(1.0, 1.0))
        turned = (replace(upright, turns=k, same_as=0) for k in (1, 2, 3))
        return Plan(main=(upright, *turned), pairs="turn")

    def logits(self, view: View) -> Float[Tensor, "b 4"]:
        return self.classifier(self.encoder(view.data))

    def energy(self, x: View, y: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        return energy.of_class(self.logits(x), y)

    def loss(self, views: Views, progress: float) -> Loss:
        turned = views.need(4)
        if any(view.made is None for view in turned):
            raise ValueError(
                "Rotation needs views that know their turn (got some without How). Use its plan."
            )
        x = View(torch.cat([view.data for view in turned]))  # [4b c h w]
        y = torch.cat([view.made.turns for view in turned if view.made is not None])
        logits = energy.at_least_float32(self.logits(x))
        chosen = logits.gather(1, y[:, None])[:, 0]
        return Loss(
            pull={"turn": -distributed.mean(chosen)},
            push={"other turns": distributed.mean(logits.logsumexp(dim=1))},
        )
