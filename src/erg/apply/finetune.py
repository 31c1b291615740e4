"""Fine-tuning: an encoder and a linear layer behind it learn from few labels.

The layer starts as the linear probe of the encoder as it is, and then both learn: a layer that
starts from nothing would first distort what the encoder knows (Kumar et al. 2022).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import nn
from torch.optim import AdamW

from erg import energy
from erg.allocator import blocks_kept
from erg.apply.embed import Opened, depth_for, vectors_of
from erg.classifiers import Classifier
from erg.data.loader import Loader
from erg.data.manifest import default_threads
from erg.encoders import Encoder, build_encoder
from erg.evaluate.linear import fit_probe
from erg.parts.host import sent
from erg.parts.norm import BatchNorm
from erg.schedule import WarmupCosine
from erg.train.features import computing_in, device_of, plain_attention
from erg.train.optim import groups
from erg.views.plan import Augmentation, Plan

LIGHTLY = Augmentation(crop=(0.5, 1.0), flip=0.5)
"""Views to learn from: half of an image at least, mirrored half the time."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a classifier learns.

    Args:
        steps: optimiser steps.
        batch: images per step; fewer where there are fewer.
        lr: peak learning rate, with AdamW, half a cosine after 5 % of warm-up. From scratch three
            times as much did best where 0.003 was right for a trained encoder.
        weight_decay: per step and unit learning rate.
        views: how a view is made of an image.
        seed: of order and views.
    """

    steps: int = 300
    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    views: Augmentation = LIGHTLY
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(
                f"steps and batch should be at least 1 (got {self.steps} and {self.batch})."
            )


STANDARD = Tuning()


@blocks_kept()
def finetune(
    encoder: Encoder,
    opened: Opened,
    rows: Int[np.ndarray, " n"],
    tuning: Tuning = STANDARD,
    *,
    projector: nn.Sequential | None = None,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Classifier:
    """A copy of an encoder, and a linear layer that starts as its probe, trained on labelled rows.

    Minimises the mean cross-entropy over the classes of these rows. The same arguments give the
    same weights.

    Args:
        encoder: where to start; not changed.
        opened: data with labels.
        rows: to learn from; each has a label.
        tuning: how.
        projector: layers that stay between them, of `first_layers`; not changed.
        autocast: half-precision type to compute in.
        progress: called with (steps done, steps in all).

    Raises:
        ValueError: a row has no label, or there are fewer than two rows.
    """
    if opened.labels is None or len(rows) < 2 or (opened.labels[rows] < 0).any():
        raise ValueError(
            f"{len(rows)} images cannot be learned from: at least two are needed, all with labels. "
            "Name where labels are found."
        )
    device = device_of(encoder)
    gpu = device.type == "cuda"
    with _drawing(tuning.seed, device):
        classes, codes = np.unique(opened.labels[rows], return_inverse=True)
        names = tuple(opened.classes[c] for c in classes)
        model = Classifier(*copy.deepcopy((encoder, names, projector))).to(device)
        _start_as_probe(model, opened, rows, codes, tuning.seed)
        model.requires_grad_(True)  # encoders of methods that train none are frozen
        optimiser = AdamW(groups(model, tuning.weight_decay), lr=tuning.lr, fused=True)
        labels = torch.from_numpy(np.searchsorted(classes, opened.labels))
        loader = Loader(
            opened.images, rows, Plan((tuning.views,), pairs="alone"), batch=tuning.batch,
            seed=tuning.seed, image_size=encoder.image_size, mean=encoder.mean, std=encoder.std,
            threads=default_threads(), pin=gpu,
        )  # fmt: skip
        model.train()
        schedule = WarmupCosine(tuning.lr, 0.05, 0.0)
        with closing(loader):
            for step, (views,) in loader.ahead(0, tuning.steps, depth=depth_for(device)):
                for group in optimiser.param_groups:
                    group["lr"] = schedule((step + 1) / tuning.steps)
                data = views.main[0].to(device, non_blocking=gpu).data
                with computing_in(device, autocast), plain_attention(encoder, device, autocast):
                    logits = model(data)
                loss = energy.of_class(logits, sent(labels[views.index], device)).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                if progress is not None:
                    progress(step + 1, tuning.steps)
    return model.eval()


@contextmanager
def _drawing(seed: int, device: torch.device) -> Iterator[None]:
    """From a seed, on the CPU and a device; what is drawn afterwards is as if nothing had been."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def _start_as_probe(
    model: Classifier, opened: Opened, rows: Int[np.ndarray, " n"], codes: Int[np.ndarray, " n"],
    seed: int,
) -> None:  # fmt: skip
    """Multinomial logistic regression on the encoder as it is, standardisation folded in."""
    module = model.encoder if model.projector is None else model
    vectors = vectors_of(model.features, module, model.encoder, opened, rows)
    probe = fit_probe(vectors, codes, groups=opened.manifest.hashes[rows], seed=seed)
    weight = probe.weight / probe.scale
    model.head.weight.copy_(torch.from_numpy(weight))
    model.head.bias.copy_(torch.from_numpy(probe.bias - weight @ probe.mean))


def afresh(encoder: Encoder, *, seed: int = 0) -> Encoder:
    """The same architecture with random weights: what fine-tuning has to beat.

    They are drawn on the CPU, so that they are the same for every device.
    """
    device = device_of(encoder)
    with _drawing(seed, device):
        made = build_encoder(encoder.name, encoder.image_size, **encoder.arguments)
    made.mean, made.std = encoder.mean, encoder.std
    return made.to(device).eval()


def projector_afresh(kept: nn.Sequential, *, seed: int = 0) -> nn.Sequential:
    """The same layers with random weights, as in `afresh`."""
    device = device_of(kept)
    made = copy.deepcopy(kept).cpu()
    with _drawing(seed, device):
        for layer in made:
            if isinstance(layer, nn.Linear | BatchNorm):
                layer.reset_parameters()
    return made.to(device)


def few(
    opened: Opened, rows: Int[np.ndarray, " n"], per_class: int, *, seed: int = 0
) -> Int[np.ndarray, " m"]:
    """So many rows of every class, drawn at random; fewer of a class that has fewer, ascending.

    With one seed a smaller number gives some of the rows of a larger one.

    Args:
        opened: data with labels.
        rows: to draw from; those without a label are left out.
        per_class: rows of each class.
        seed: of the draw.

    Raises:
        ValueError: there are no labels, or fewer than two classes have one.
    """
    if opened.labels is None:
        raise ValueError("there are no labels. Name where they are found.")
    random = np.random.default_rng(seed)
    mixed = random.permutation(np.sort(rows))
    codes = opened.labels[mixed]
    chosen = [mixed[codes == c][:per_class] for c in range(len(opened.classes))]
    if per_class < 1 or sum(len(part) > 0 for part in chosen) < 2:
        raise ValueError(
            f"{per_class} images of each of {sum(len(part) > 0 for part in chosen)} classes teach "
            "nothing. Give at least one of at least two classes."
        )
    return np.sort(np.concatenate(chosen))


def right(model: Classifier, opened: Opened, rows: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether each row is given its class.

    The data may number their classes in another way than the model; names are compared.
    """
    if opened.labels is None:
        raise ValueError("there are no labels. Name where they are found.")
    logits = vectors_of(model, model, model.encoder, opened, rows)
    predicted = np.array(model.classes)[logits.argmax(axis=1)]
    return predicted == opened.names(rows)
