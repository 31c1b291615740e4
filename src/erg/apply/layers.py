"""Per-layer linear probe: at which depth of an encoder do the classes lie?"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from erg.apply.embed import Opened, vectors_of
from erg.encoders import Encoder, TimmEncoder
from erg.evaluate.intervals import Score, bootstrap
from erg.evaluate.linear import fit_probe
from erg.parts.values import averaged

VALUES = 2048
"""Largest number of values a layer is pooled to, so that depth is not confounded with width."""

OUTPUT = "output"


class Layer(NamedTuple):
    """What a linear probe makes of one layer.

    Args:
        name: of the layer; the last is the output.
        values: pooled values that the probe saw.
        right: whether each test image was given its class.
        accuracy: its mean, with an interval.
        validation: accuracy on the part of the training set that chose the probe's C, by which
            layers may be chosen too: the test set is for telling. 0 where nothing was left for it.
    """

    name: str
    values: int
    right: Bool[np.ndarray, " m"]
    accuracy: Score
    validation: float


def stages(encoder: Encoder) -> dict[str, nn.Module]:
    """The last module of every stage, in order, by name; none where there is no network.

    timm says of its models where stages end. In ours a stage begins with a convolution or a linear
    layer and takes in what follows.
    """
    if isinstance(encoder, TimmEncoder):
        network: Any = encoder.network
        names = [info["module"] for info in network.feature_info]
        return {name: network.get_submodule(name) for name in names}
    layers = [m for part in encoder.children() if isinstance(part, nn.Sequential) for m in part]
    starts = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d | nn.Linear)]
    ends = [*starts[1:], len(layers)] if starts else []
    return {f"stage {i + 1}": layers[end - 1] for i, end in enumerate(ends)}


def pooled(made: Tensor, encoder: Encoder, values: int = VALUES) -> Float[Tensor, "b d"]:
    """A layer's output as one vector of at most `values`, or of its channels if these are more.

    Feature maps [b c h w], and patch tokens laid out on their grid, are averaged down to s x s
    places, with the largest s that fits.

    Args:
        made: vectors [b d], tokens [b n d] behind a prefix, or feature maps.
        encoder: whose layer it is: it knows the grid of its tokens.
        values: most values of the vector.
    """
    if made.ndim == 3 and encoder.grid is not None:
        rows, columns = encoder.grid
        made = made[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))
    elif made.ndim == 4 and made.shape[1] == made.shape[2] != made.shape[3]:
        made = made.permute(0, 3, 1, 2)  # channels last, as in Swin
    if made.ndim != 4:
        return made.flatten(1)
    side = max(1, min(made.shape[-1], math.isqrt(values // made.shape[1])))
    return averaged(made, side).flatten(1)


def layer_vectors(
    encoder: Encoder, opened: Opened, rows: Int[np.ndarray, " n"], *, values: int = VALUES
) -> dict[str, np.ndarray]:
    """Vectors of every stage and of the output, [n d] each, in one pass over the images.

    Args:
        encoder: in evaluation mode meanwhile.
        opened: images.
        rows: of the images.
        values: see `pooled`.
    """
    widths: dict[str, int] = {}

    def embed(data: Tensor) -> Tensor:
        with _listening(encoder, values) as heard:
            heard[OUTPUT] = encoder(data)
        widths.update({name: vectors.shape[1] for name, vectors in heard.items()})
        return torch.cat([vectors.float() for vectors in heard.values()], dim=1)

    every = vectors_of(embed, encoder, encoder, opened, rows)
    edges = np.cumsum(list(widths.values()))[:-1]
    return dict(zip(widths, np.split(every, edges, axis=1), strict=True))


@contextmanager
def _listening(encoder: Encoder, values: int) -> Iterator[dict[str, Tensor]]:
    """What every stage gives while the block runs, pooled at once: later layers may write over
    it."""
    heard: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, given: Any, made: Tensor) -> None:
            heard[name] = pooled(made, encoder, values)

        return hook

    handles = [
        module.register_forward_hook(listen(name)) for name, module in stages(encoder).items()
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def layers(
    encoder: Encoder,
    opened: Opened,
    rows: Int[np.ndarray, " n"],
    other: Opened,
    asked: Int[np.ndarray, " m"],
    *,
    values: int = VALUES,
) -> list[Layer]:
    """A linear probe on every stage and on the output, from the first to the last.

    Args:
        encoder: to look into.
        opened: images with labels to fit the probes on.
        rows: of these images.
        other: images with labels to test on. Its classes are those of `opened` by name; one that
            no row has that is fitted on is always wrong.
        asked: rows of them.
        values: see `pooled`.

    Raises:
        ValueError: there are no labels, or no class is in both sets.
    """
    labels, theirs = opened.names(rows), other.names(asked)
    if not {*labels} & {*theirs} - {""}:
        raise ValueError(
            f"a probe needs some of the same classes in both sets (got {opened.classes[:5]} and "
            f"{other.classes[:5]}). Name where labels are found."
        )
    fit = layer_vectors(encoder, opened, rows, values=values)
    ask = layer_vectors(encoder, other, asked, values=values)
    found: list[Layer] = []
    copies, contents = opened.manifest.hashes[rows], other.manifest.hashes[asked]
    for name, vectors in fit.items():
        probe = fit_probe(vectors, labels, groups=copies)
        right = probe.predict(ask[name]) == theirs
        accuracy = bootstrap(right, groups=contents)
        chosen = probe.tried.get(probe.strength, 0.0)
        found.append(Layer(name, vectors.shape[1], right, accuracy, chosen))
    return found
