"""Vectors of every image of a source."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erg.data.ahead import ahead
from erg.data.loader import Images
from erg.data.manifest import Manifest, Row, default_threads, look_at, manifest_of
from erg.data.source import Source, open_source
from erg.embeddings import Embeddings
from erg.encoders import Encoder, load_encoder
from erg.train.features import features, whole_images
from erg.train.fit import Fitted, InMemory, open_items
from erg.views.types import View, Views

Tell = Callable[[str], None]
Count = Callable[[int, int], None]


@dataclass(frozen=True)
class Opened:
    """Data ready to be embedded.

    Args:
        images: decoded images by row, or vectors [n d].
        manifest: what every row is.
        rows: readable rows.
        labels: class number by row of the manifest, -1 for none.
        classes: names of the classes.
    """

    images: Images | np.ndarray
    manifest: Manifest
    rows: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]


def open_for(
    encoder: Encoder, data: Any, *, label: str | None = None, progress: Count | None = None
) -> Opened:
    """Open any data at the sharpness an encoder wants, in memory where it fits."""
    source = data if isinstance(data, Source) else open_source(data, label=label)
    manifest, images = open_items(
        source, short_side=max(64, 2 * encoder.image_size), progress=progress
    )
    codes, classes = manifest.labels if label is not None else (None, ())
    return Opened(images, manifest, manifest.ok, codes, tuple(classes))


def vectors_of(
    embed: Callable[[Tensor], Tensor],
    module: torch.nn.Module,
    encoder: Encoder,
    opened: Opened,
    rows: np.ndarray,
    *,
    autocast: torch.dtype | None = None,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """`embed` of given rows [n d], each seen whole, exactly once, in order."""
    views = whole_images(
        opened.images, rows, image_size=encoder.image_size, mean=encoder.mean, std=encoder.std,
        threads=threads,
    )  # fmt: skip
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return features(embed, module, views, device=device, autocast=autocast, progress=progress)


def embed(
    model: Fitted | Path | str,
    data: Any,
    *,
    label: str | None = None,
    max_skipped: float = 0.2,
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """Every readable image of `data` as a vector, in one pass: memory does not grow with the set.

    Args:
        model: a trained run, or a folder with an encoder (an export, or encoder/ of a run).
        data: anything `open_source` opens.
        label: where labels are found, to be kept beside the vectors.
        max_skipped: largest share of unreadable items.
        progress: called with (items done, items in all).

    Raises:
        ValueError: the model or the data cannot be used.
    """
    if isinstance(model, Fitted):
        module, encoder, call = model.method, model.method.encoder, model.method.encode
        autocast = model.run.autocast(next(module.parameters()).device)
        name = f"{model.run.method} {model.run.encoder}"
    else:
        module = encoder = load_encoder(Path(model))
        call, autocast, name = encoder, None, encoder.name
    source = data if isinstance(data, Source) else open_source(data, label=label)
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, len(source))

    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    rows: list[Row] = []
    vectors = features(
        call, module, _as_they_come(source, encoder, rows, device), device=device,
        autocast=autocast, progress=count,
    )  # fmt: skip
    manifest = manifest_of(source, rows, max_skipped=max_skipped)
    labels = None
    if label is not None:
        codes, classes = manifest.labels
        labels = np.array([*classes, ""])[codes[manifest.ok]]
    paths = [manifest.paths[i] for i in manifest.ok]
    origin = {"model": name, "image_size": encoder.image_size, "data": str(data)[:200]}
    return Embeddings(vectors, manifest.ok, labels, origin, paths)


def _as_they_come(
    source: Source, encoder: Encoder, rows: list[Row], device: torch.device, batch: int = 256
) -> Iterator[Views]:
    """Every readable item whole, in batches in order; `rows` is filled on the way.

    For an accelerator the next batches are decoded meanwhile. On a CPU decoding and the encoder
    take turns, each with all cores.
    """

    def read() -> Generator[tuple[list[int], list[np.ndarray]], None, None]:
        numbers: list[int] = []
        held: list[np.ndarray] = []
        for i, (row, item) in enumerate(
            look_at(source, short_side=max(64, 2 * encoder.image_size))
        ):
            rows.append(row)
            if item is None:
                continue
            numbers.append(i)
            held.append(item)
            if len(held) == batch:
                yield numbers, held
                numbers, held = [], []
        if held:
            yield numbers, held

    for numbers, held in ahead(read(), 0 if device.type == "cpu" else 2):
        index = np.array(numbers, dtype=np.int64)
        if source.kind == "array":
            view = View(torch.from_numpy(np.stack(held).astype(np.float32)))
            yield Views((view,), torch.from_numpy(index), pairing="alone")
        else:
            yield from whole_images(
                InMemory(held), np.arange(len(held)), image_size=encoder.image_size,
                mean=encoder.mean, std=encoder.std, batch=batch, threads=default_threads(),
            )  # fmt: skip
