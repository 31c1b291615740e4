"""Imagenette on a CPU, every method of the catalogue for images: 9,469 of them, at 96 pixels."""

from typing import Any

from erg.recipes.cifar import small
from erg.recipes.default import Seen
from erg.train.run import Run

SEEN = Seen(images=9_469, side=160, accelerator=False)


def imagenette(
    method: str, *, data: str = "", epochs: float = 20, seed: int = 0, **further: Any
) -> Run:
    """A small run on Imagenette, with the heads and batches of `recipes.cifar`.

    Args:
        method: a name of the catalogue.
        data: where the pictures are.
        epochs: passes over them.
        seed: as in Run.
        further: as in `default`; arguments of the method over those chosen here.
    """
    return small(SEEN, method, data=data, epochs=epochs, seed=seed, **further)
