"""What is compared with what: a model, normal items and others, and energies fitted on these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from erg.apply.embed import Opened, Tell, open_for, vectors_of
from erg.apply.ways import pixels_of
from erg.encoders import Encoder, load_encoder
from erg.explore.anomaly import OF_EMBEDDINGS, OF_PIXELS, by_neighbours
from erg.train.features import device_of
from erg.train.fitted import Fitted
from erg.views.types import View

ENERGY = "energy"
"""That of the method itself, where it is one of an image alone."""

VECTORS, PIXELS = "", "pixels"
"""What is compared of every item, beside the energy itself."""

Looks = dict[str, np.ndarray]
"""What is compared of items, by name; [n] or [n d]."""

Energies = Callable[[Looks, np.ndarray], dict[str, np.ndarray]]
"""All energies by name, of what is compared of asked items and of their groups; [m] each."""


def names_of(model: Fitted | Path | str, *, images: bool) -> list[str]:
    """Names of the energies that items get, in their order.

    Args:
        model: as in `anomalies`.
        images: whether the items are images, which have pixels.
    """
    own = isinstance(model, Fitted) and _is_alone(model)
    return [*([ENERGY] if own else []), *OF_EMBEDDINGS, *(OF_PIXELS if images else [])]


def check_name(name: str, names: Sequence[str]) -> None:
    """Whether there is an energy of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in names:
        raise ValueError(f"there is no energy {name!r}. There are {', '.join(names)}.")


@dataclass(frozen=True)
class Used:
    """A model as it is used here.

    Args:
        module: put into evaluation mode meanwhile.
        encoder: what gives vectors.
        energy: of an image alone, if the method has one.
        autocast: half-precision type to compute in.
        fitted: the run, if it is one.
    """

    module: nn.Module
    encoder: Encoder
    energy: Callable[[Tensor], Tensor] | None = None
    autocast: torch.dtype | None = None
    fitted: Fitted | None = None

    @classmethod
    def of(cls, model: Fitted | Path | str, device: torch.device | None = None) -> "Used":
        """A trained run, or the encoder of a folder, put on a device or the CPU."""
        if not isinstance(model, Fitted):
            encoder = load_encoder(Path(model)).to(device or torch.device("cpu"))
            return cls(encoder, encoder)
        method = model.method
        energy = _alone(model) if _is_alone(model) else None
        autocast = model.run.autocast(device_of(method))
        return cls(method, method.encoder, energy, autocast, model)


def _is_alone(model: Fitted) -> bool:
    """Whether the energy of its method is one of an image alone."""
    return model.method.plan().pairs == "alone"


def _alone(model: Fitted) -> Callable[[Tensor], Tensor]:
    """F(y) of data as a column [b 1]."""
    method = model.method
    mean, std = method.encoder.mean, method.encoder.std
    return lambda data: method.energy(None, View(data, mean=mean, std=std))[:, None]


def both(
    used: Used,
    data: Any,
    normal: Any,
    label: str | None,
    normal_class: str | None,
    tell: Tell = lambda _: None,
) -> tuple[Opened, Opened]:
    """Normal items and asked ones; arguments as in `anomalies`."""
    if (label is None) != (normal_class is None):
        raise ValueError("a label needs a normal class, and the other way round. Give both.")
    given = normal
    if given is None:
        given = used.fitted.run.data if used.fitted is not None else ""
    if isinstance(given, str) and not given:
        raise ValueError("it is not known what is normal. Name normal items with --normal.")
    known, asked = (open_for(used.encoder, each, label=label, tell=tell) for each in (given, data))
    if normal_class is not None:
        known = replace(known, rows=known.rows[labels_of(known, normal_class)[0]])
        if len(known.rows) < 2:
            raise ValueError(
                f"{len(known.rows)} normal items have the label {normal_class!r}. There are "
                f"{', '.join(known.classes[:8])}."
            )
    return known, asked


def labels_of(opened: Opened, name: str) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Which of the readable rows have a certain label, and which have any."""
    none = np.zeros(len(opened.rows), dtype=bool)
    if opened.labels is None:
        return none, none
    codes = opened.labels[opened.rows]
    fits = codes == opened.classes.index(name) if name in opened.classes else none
    return fits, codes >= 0


def looked(used: Used, opened: Opened, most: int) -> Looks:
    """What is compared, of every row.

    Args:
        used: the model.
        opened: the items.
        most: rows of the largest set compared, on which the sharpness of pixels depends.
    """
    found: Looks = {}
    of = (used.module, used.encoder, opened, opened.rows)
    if used.energy is not None:
        found[ENERGY] = vectors_of(used.energy, *of)[:, 0]
    found[VECTORS] = vectors_of(used.encoder, *of, autocast=used.autocast)
    if not isinstance(opened.images, np.ndarray):
        found[PIXELS] = pixels_of(opened, opened.rows, used.encoder.image_size, most=most)
    return found


def fit_energies(normal: Looks, groups: np.ndarray) -> Energies:
    """All energies, fitted on normal items once.

    Args:
        normal: what was seen of normal items.
        groups: of normal items: an item is no neighbour of those of its group.

    Returns:
        The energies by name, of what was seen of asked items and their groups; as few at a time
        as one likes.
    """
    near = by_neighbours(normal[VECTORS], groups=groups)
    of_vectors = {
        name: near if fit is by_neighbours else fit(normal[VECTORS])
        for name, fit in OF_EMBEDDINGS.items()
    }
    pixels = normal.get(PIXELS)
    of_pixels = {} if pixels is None else {name: fit(pixels) for name, fit in OF_PIXELS.items()}

    def energies(asked: Looks, asked_groups: np.ndarray) -> dict[str, np.ndarray]:
        found = {ENERGY: asked[ENERGY]} if ENERGY in asked else {}
        for name, energy in of_vectors.items():
            given = asked[VECTORS]
            found[name] = near(given, asked_groups) if energy is near else energy(given)
        return found | {name: energy(asked[PIXELS]) for name, energy in of_pixels.items()}

    return energies
