"""Online health: is it learning, or collapsing? Watched on images held out of training.

Looking changes nothing: evaluation mode, no gradients, no buffers, no generator of training's.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from erg.data.loader import Loader
from erg.durable import read_json, write_atomically
from erg.energy import at_least_float32
from erg.evaluate.auroc import auroc, auroc_score
from erg.evaluate.knn import leave_one_out
from erg.evaluate.rank import effective_rank, spread
from erg.method import Method
from erg.train.features import (
    at_once,
    computing_in,
    device_of,
    evaluating,
    features,
    whole_images,
)
from erg.views.types import Views

HELD_EPOCH = 1 << 40
"""Held-out views are drawn as of this epoch, which training never reaches."""


NOT_FINITE = "Embeddings or energies are no longer finite. Lower the learning rate."


@dataclass(frozen=True)
class Watched:
    """What an observer may look at.

    Args:
        loader: of the run, whose images and views are the training's.
        held: rows of the manifest held out of training.
        labels: a class number per row of the manifest, -1 for none; None without labels.
        device: where the method is.
        autocast: half-precision type training computes in.
        steps: of the whole run.
        before: what was seen before the first step, if that was in an earlier sitting.
        contents: of each held-out row, where some may be the same: copies do not vote for each
            other.
    """

    loader: Loader
    held: np.ndarray
    labels: np.ndarray | None
    device: torch.device
    autocast: torch.dtype | None
    steps: int
    before: dict[str, Any] | None = None
    contents: np.ndarray | None = None


@runtime_checkable
class Observer(Protocol):
    """Something that watches training; it must not change it."""

    def start(self, watched: Watched) -> None:
        """Before the first step of this sitting."""
        ...

    def due(self, step: int) -> bool:
        """Whether to look after `step` steps; a function of the step only."""
        ...

    def look(self, method: Method, step: int) -> dict[str, Any]:
        """What is seen, for the run's events: JSON-able, with a key `kind`."""
        ...


class Health:
    """Spread and effective rank of embeddings, AUROC of energies, 20-NN accuracy with labels.

    Args:
        looks: how often during a run, evenly spaced; at the start and the end as well.
        pairs: held-out images whose energies are compared; fewer where they are large.
        neighbours: k of the nearest-neighbour accuracy.
    """

    def __init__(self, looks: int = 12, pairs: int = 256, neighbours: int = 20) -> None:
        self.looks, self.pairs, self.neighbours = looks, pairs, neighbours
        self.first: dict[str, Any] | None = None

    def start(self, watched: Watched) -> None:
        self.watched, self.first = watched, watched.before
        self.every = max(1, watched.steps // self.looks)

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.watched.steps

    def look(self, method: Method, step: int) -> dict[str, Any]:
        w = self.watched
        if len(w.held) < 4:
            return {"kind": "health"}
        vectors = self.vectors(method)
        matched, mismatched = energies(method, self.held_views(), w.device, w.autocast)
        if not all(np.isfinite(found).all() for found in (vectors, matched, mismatched)):
            return {"kind": "health", "warning": NOT_FINITE}
        seen: dict[str, Any] = {
            "kind": "health",
            "std": round(spread(vectors), 5),
            "rank": round(effective_rank(vectors), 3),
            "auroc": round(auroc(matched, mismatched), 4),
            "apart": float(f"{np.concatenate([matched, mismatched]).std():.4g}"),
        }
        if w.labels is not None:
            labels = w.labels[w.held]
            known = labels >= 0
            groups = np.arange(len(w.held)) if w.contents is None else w.contents
            groups = np.unique(groups[known], return_inverse=True)[1]
            k = min(self.neighbours, len(groups) - int(np.bincount(groups, minlength=1).max()))
            if k >= 1:
                right = leave_one_out(vectors[known], labels[known], k=k, groups=groups)
                seen["knn"] = round(float(np.mean(right)), 4)
        if step == 0:
            self.first = seen
        warning = in_words(seen, self.first, step)
        return {**seen, "warning": warning} if warning else seen

    def vectors(self, method: Method) -> np.ndarray:
        """Representations of the held-out images [n d]."""
        w = self.watched
        views = whole_images(
            w.loader.images, w.held, image_size=w.loader.image_size,
            mean=w.loader.mean, std=w.loader.std,
        )  # fmt: skip
        return features(method.encode, method, views, device=w.device, autocast=w.autocast)

    def held_views(self) -> Views:
        """Views of held-out images as training would draw them, the same at every look."""
        loader = self.watched.loader
        few = at_once(self.pairs, loader.image_size, loader.mean)
        return loader.make(self.watched.held[:few], epoch=HELD_EPOCH)


def energies(
    method: Method, views: Views, device: torch.device, autocast: torch.dtype | None
) -> tuple[np.ndarray, np.ndarray]:
    """Energies of the pairs that belong together, and of those that do not."""
    dtype = next((p.dtype for p in method.parameters()), torch.float32)
    views = views.to(device=device, dtype=dtype)
    with evaluating(method), computing_in(device, autocast):
        return tuple(
            torch.cat([at_least_float32(method.energy(x, y)).cpu() for x, y in pairs])
            .numpy()
            .astype(np.float64)
            for pairs in (views.pairs(), views.mismatched())
        )  # type: ignore[return-value]


def record_energies(file: Path, method: Method, views: Views, when: str) -> None:
    """Write energies of pairs that belong together and of those that do not, with their AUROC.

    Args:
        file: JSON (format 1), which holds one entry for each `when`.
        method: as it is now.
        views: of held-out images.
        when: `before` or `after` training.
    """
    known: dict[str, Any] = {"format": 1}
    if file.exists():
        known = read_json(file)
    device = device_of(method)
    matched, mismatched = energies(method, views, device, None)
    known["pairing"] = views.pairing
    known[when] = {
        "matched": [float(f"{e:.5g}") for e in matched],
        "mismatched": [float(f"{e:.5g}") for e in mismatched],
        "auroc": asdict(auroc_score(matched, mismatched, items=len(views))),
    }
    write_atomically(file, json.dumps(known).encode())


def in_words(seen: dict[str, Any], first: dict[str, Any] | None, step: int) -> str | None:
    """A warning in plain words, or nothing.

    Spread is about 1 for directions spread evenly and 0 where all images embed alike; it is
    judged against the encoder before training too, since scales differ between encoders. So are
    energies (`apart`, the deviation of those of all pairs): behind a projector they can become
    equal while the encoder stays as it is. Of methods that learn, energies are rarely less apart
    than at first, and those of a denoising autoencoder a tenth as much.
    """
    start = first["std"] if first else 1.0
    if seen["std"] < 0.02 and seen["std"] < 0.5 * start:
        return (
            f"Collapse: all images embed almost alike (spread {seen['std']:.3f}, before training "
            f"{start:.3f}). Lower the learning rate, or look at what keeps energies up."
        )
    if step > 0 and seen["rank"] < 2 and first is not None and seen["rank"] < 0.5 * first["rank"]:
        return (
            f"Dimensional collapse: embeddings use about {seen['rank']:.1f} directions (before "
            f"training {first['rank']:.1f}). Raise the batch or the weight of the pushing parts."
        )
    if step > 0 and first is not None and seen.get("apart", 1.0) < 0.01 * first.get("apart", 0.0):
        return (
            f"Collapse: the energies of all pairs are almost the same (apart by "
            f"{seen['apart']:.2g}, before training {first['apart']:.2g}). Look at what keeps those "
            "of wrong pairs up, lower the learning rate or the temperature of codes, or freeze "
            "longer."
        )
    return None
