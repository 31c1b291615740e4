"""Method, Loss, Cell: the contract every method keeps.

A method answers four questions in one file: what are x and y (`plan`), how are they embedded
(`__init__`), how badly do they fit (`energy`), and what stops the energy from being low everywhere
(`loss`, `frozen`, `after_step`, `after_epoch`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg.encoders import Encoder
from erg.energy import at_least_float32
from erg.views.plan import Plan
from erg.views.types import Views


@dataclass(frozen=True)
class Cell:
    """Where a method stands in the table of four cells: a fact it states, not a base class.

    Args:
        architecture: what F(x, y) is computed from: a latent that explains y, or the embeddings
            of x and y.
        shaping: what keeps the energy from being low everywhere.
        by: the means, in words.
    """

    architecture: Literal["latent-variable", "joint-embedding"]
    shaping: Literal["contrastive", "regularised", "architectural"]
    by: str


class Loss(NamedTuple):
    """Named parts of a loss, each a scalar: what pulls energies down and what pushes them up.

    A named tuple, since data-parallel wrappers look for tensors inside tuples and dictionaries.

    Args:
        pull: parts that lower the energy of what belongs together.
        push: parts that keep the energy of everything else up; may be empty.
    """

    pull: dict[str, Tensor]
    push: dict[str, Tensor] = {}  # never changed

    @property
    def total(self) -> Tensor:
        """The sum of all parts, the scalar that is minimised."""
        parts = (*self.pull.values(), *self.push.values())
        return torch.stack([at_least_float32(part) for part in parts]).sum()


class Method(nn.Module, ABC):
    """A way of learning: an energy and what shapes it.

    All state that matters is a parameter or a persistent buffer. Parameters are changed by the
    optimiser, `after_step` and `after_epoch`; buffers also in `loss` while `self.training`. A
    method logs nothing and knows no device, no trainer and no file; labels never reach it.
    """

    cell: ClassVar[Cell]
    trains_encoder: ClassVar[bool] = True
    """Whether the encoder's weights learn; if not they are frozen."""
    encoder_evaluates: ClassVar[bool] = False
    """Whether the encoder stays in evaluation mode while it learns, so that F is a function of one
    item alone, with slopes of its own."""
    batch_coupled: ClassVar[bool] = False
    """Whether the loss of an image depends on the other images of its batch."""
    differentiates_twice: ClassVar[bool] = False
    """Whether slopes of the encoder are in the loss, so that training differentiates them again;
    code that torch.compile makes cannot be."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        if not self.trains_encoder:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "Method":
        """As in torch, but an encoder that is not trained stays in evaluation mode."""
        super().train(mode)
        if not self.trains_encoder or self.encoder_evaluates:
            self.encoder.eval()
        return self

    @abstractmethod
    def plan(self) -> Plan:
        """The views this method asks for, from its arguments and its encoder's size and grid."""

    @abstractmethod
    def loss(self, views: Views, progress: float) -> Loss:
        """The loss of the global batch; `progress` is the fraction of training done."""

    @abstractmethod
    def energy(self, x: Any, y: Any) -> Float[Tensor, " b"]:
        """F(x, y) of each item: low where x and y belong together.

        The types of x and y are those of the plan's pairs: two views; a view and itself; a view
        and its quarter turns [b] or order [b p]; all views twice; or None and a view.
        """

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """The representation of normalised data, [b c h w] or [b d]; what is used afterwards."""
        return self.encoder(data)

    def frozen(self, progress: float) -> Iterable[nn.Parameter]:
        """Parameters whose gradients are dropped after the backward pass; none by default."""
        return ()

    def after_step(self, progress: float) -> None:
        """Once per optimiser step: teachers follow, parameters are projected."""

    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        """Closed forms and clustering over the whole set, before the first step and after every
        epoch; `features` is `encoder(data)` of every training image, nothing augmented."""

    def needs_features(self) -> bool:
        """Whether the next `after_epoch` looks at the features; if not it gets none [0 d], which
        saves a pass over the whole set."""
        return True
