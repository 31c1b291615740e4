"""Vectors of every image of a source."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from erg.data.ahead import ahead
from erg.data.arrays import Tokens, Vectors
from erg.data.budget import kept_side
from erg.data.cache import Cache, open_items
from erg.data.loader import Images
from erg.data.manifest import Manifest, Row, default_threads, look_at, manifest_of
from erg.data.source import Source, open_source
from erg.data.splits import hold_out
from erg.embeddings import Embeddings
from erg.encoders import Encoder, load_encoder
from erg.train.checkpoint import state_hash
from erg.train.features import at_once, check_takes, device_of, features, whole_images
from erg.train.fitted import Fitted
from erg.train.folder import RunFolder
from erg.views.types import Views

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
        known: vectors of all rows [n d] made before, by `state_hash` of what made them.
    """

    images: Images | np.ndarray
    manifest: Manifest
    rows: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    known: Mapping[str, np.ndarray] = field(default_factory=dict)

    def names(self, rows: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
        """Names of the classes of some rows, empty where there is no label: sets number their
        classes each in its own way, and by names they can be compared."""
        if self.labels is None:
            return np.full(len(rows), "")
        return np.array([*self.classes, ""])[self.labels[rows]]


def open_for(
    encoder: Encoder,
    data: Any,
    *,
    label: str | None = None,
    progress: Count | None = None,
    tell: Tell = lambda _: None,
) -> Opened:
    """Open any data at the sharpness an encoder wants, in memory where it fits.

    What cannot be read is left out, however much it is, and said: how much may be missing was
    decided when the encoder was trained, and is no question where it is used.

    Args:
        encoder: that is to see the data.
        data: anything `open_source` opens, or already opened.
        label: where labels are found.
        progress: called with (items looked at, items in all).
        tell: called with what was left out, if anything was.

    Raises:
        DataError: nothing can be read.
    """
    if isinstance(data, Opened):
        return data
    source = data if isinstance(data, Source) else open_source(data, label=label)
    check_source(encoder, source)
    manifest, images = open_items(
        source, short_side=kept_side(encoder.image_size), max_skipped=1.0, progress=progress
    )
    if len(manifest.ok) < len(manifest):
        tell(manifest.summary())
    codes, classes = manifest.labels if label is not None else (None, ())
    return Opened(images, manifest, manifest.ok, codes, tuple(classes))


def check_source(encoder: Encoder, source: Source) -> None:
    """Refuse data of a kind that an encoder is not made for, before any are read.

    Raises:
        DataError: it takes data of another kind, or vectors of another width.
    """
    if isinstance(source, Vectors):
        check_takes(encoder, "vectors", source.values.shape[1])
    else:
        check_takes(encoder, "tokens" if isinstance(source, Tokens) else "images")


def evenly(rows: Int[np.ndarray, " n"], most: int) -> Int[np.ndarray, " m"]:
    """At most so many of the rows, evenly spread: the first ones are those of the first folder."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]


def trained_on(fitted: Fitted, opened: Opened) -> Bool[np.ndarray, " n"]:
    """Which rows of the manifest the run was trained on, without labels.

    By content, whatever the names: what was held out of training is new, and so is other data.
    Where the run's folder has no manifest nothing is known, and all rows pass for new.
    """
    file = RunFolder(fitted.folder).manifest
    if not file.is_file():
        return np.zeros(len(opened.manifest), dtype=bool)
    manifest = Manifest.load(file)
    chosen, _ = hold_out(manifest, at_most=fitted.run.hold_out)  # as `open_data` does
    return np.isin(_text(opened.manifest.hashes), _text(manifest.hashes[chosen]))


def known_already(
    opened: Opened, rows: Int[np.ndarray, " n"], other: Opened, asked: Int[np.ndarray, " m"]
) -> Bool[np.ndarray, " m"]:
    """Which of the asked rows have the content of one of the rows learned on."""
    return np.isin(_text(other.manifest.hashes[asked]), _text(opened.manifest.hashes[rows]))


def _text(hashes: np.ndarray) -> np.ndarray:
    return hashes.astype(np.str_)


def vectors_of(
    embed: Callable[[Tensor], Tensor],
    module: nn.Module,
    encoder: Encoder,
    opened: Opened,
    rows: np.ndarray,
    *,
    autocast: torch.dtype | None = None,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """`embed` of given rows [n d], each seen whole, exactly once, in order."""
    known = opened.known.get(state_hash(module)) if opened.known else None
    if known is not None:
        return known[rows]
    device = device_of(module)
    views = whole_images(
        opened.images, rows, image_size=encoder.image_size, mean=encoder.mean, std=encoder.std,
        threads=threads, pin=device.type == "cuda",
    )  # fmt: skip
    made = ahead(views, depth_for(device))
    return features(embed, module, made, device=device, autocast=autocast, progress=progress)


def depth_for(device: torch.device) -> int:
    """Batches of views to make ahead of decoded images: on a CPU the encoder and what makes views
    take turns, each with all cores."""
    return 0 if device.type == "cpu" else 2


@dataclass(frozen=True)
class Embedder:
    """What turns images into vectors.

    Args:
        name: for whoever reads the vectors.
        module: put into evaluation mode meanwhile; its device is used.
        encoder: whose size, mean and deviation the images take.
        embed: normalised data to vectors.
        autocast: half-precision type to compute in.
        device: where its process speaks with others; that of the module if not given. Modules
            without weights are nowhere, and GPUs speak through their own memory alone.
    """

    name: str
    module: nn.Module
    encoder: Encoder
    embed: Callable[[Tensor], Tensor]
    autocast: torch.dtype | None = None
    device: torch.device | None = None


def embedder(model: Fitted | Path | str, device: torch.device | None = None) -> Embedder:
    """A trained run, or the encoder of a folder, as something to embed with.

    Args:
        model: a trained run, or a folder with an encoder (an export, or encoder/ of a run).
        device: of this process, where the folder's encoder is put; None for the CPU.

    Raises:
        ValueError: the folder holds no encoder of ours.
    """
    if not isinstance(model, Fitted):
        encoder = load_encoder(Path(model)).to(device or torch.device("cpu"))
        return Embedder(encoder.name, encoder, encoder, encoder, device=device)
    method, run = model.method, model.run
    autocast, name = run.autocast(device_of(method)), f"{run.method} {run.encoder}"
    return Embedder(name, method, method.encoder, method.encode, autocast, device)


def embed(
    model: Fitted | Path | str,
    data: Any,
    *,
    label: str | None = None,
    max_skipped: float = 0.2,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | None = None,
) -> Embeddings:
    """Every readable image of `data` as a vector, in one pass: memory holds vectors, no images.

    Args:
        model: a trained run, or a folder with an encoder (an export, or encoder/ of a run).
        data: anything `open_source` opens.
        label: where labels are found, to be kept beside the vectors.
        max_skipped: largest share of unreadable items.
        progress: called with (items done, items in all).
        device: where the encoder of a folder is put; the CPU if not given.

    Raises:
        ValueError: the model or the data cannot be used.
    """
    made = embedder(model, device)
    source = data if isinstance(data, Source) else open_source(data, label=label)
    check_source(made.encoder, source)
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, len(source))

    rows, found = in_one_pass(made, source, range(len(source)), count)
    manifest_of(source, rows, max_skipped=max_skipped)
    return with_rows(found, rows, range(len(source)), label is not None, origin(made, data))


def origin(model: Embedder, data: Any) -> dict[str, Any]:
    """What is kept beside vectors of where they came from."""
    return {"model": model.name, "image_size": model.encoder.image_size, "data": str(data)[:200]}


def in_one_pass(
    model: Embedder, source: Source, items: Sequence[int], count: Callable[[int], None]
) -> tuple[list[Row], np.ndarray]:
    """What the manifest says of some items, and vectors [n d] of the readable ones.

    Args:
        model: to embed with.
        source: of the items.
        items: their numbers.
        count: called with the number of vectors made since it was last called.
    """
    rows: list[Row] = []
    device = device_of(model.module)
    vectors = features(
        model.embed, model.module, _as_they_come(source, items, model.encoder, rows, device),
        device=device, autocast=model.autocast, progress=count,
    )  # fmt: skip
    return rows, vectors


def with_rows(
    vectors: np.ndarray,
    rows: Sequence[Row],
    items: Sequence[int],
    labelled: bool,
    origin: dict[str, Any],
) -> Embeddings:
    """Vectors of the readable ones of these rows, which are those of these items."""
    ok = [(item, row) for item, row in zip(items, rows, strict=True) if row.status == "ok"]
    ids = np.array([item for item, _ in ok], dtype=np.int64)
    labels = np.array([row.label or "" for _, row in ok], dtype=np.str_) if labelled else None
    if not ok:  # the width is not known, and none is not allowed
        vectors = np.zeros((0, 1), dtype=np.float32)
    return Embeddings(vectors, ids, labels, origin, [row.path for _, row in ok])


def _as_they_come(
    source: Source,
    items: Sequence[int],
    encoder: Encoder,
    rows: list[Row],
    device: torch.device,
    batch: int = 256,
) -> Iterator[Views]:
    """Every readable one of some items whole, in batches in order; `rows` is filled on the way.

    The next batches are decoded, and views made of them, while the network runs; on a CPU a single
    one, since Python's lock keeps threads that decode small images from filling the cores by
    themselves. Of images larger than 224 pixels fewer are held at once.
    """
    batch = at_once(batch, encoder.image_size, encoder.mean)

    def read() -> Generator[list[np.ndarray], None, None]:
        held: list[np.ndarray] = []
        looked = look_at(source, short_side=kept_side(encoder.image_size), items=items)
        for row, item in looked:
            rows.append(row)
            if item is None:
                continue
            held.append(item)
            if len(held) == batch:
                yield held
                held = []
        if held:
            yield held

    def made() -> Generator[Views, None, None]:
        for held in read():
            yield from whole_images(
                np.stack(held) if source.kind == "array" else Cache.of(held),
                np.arange(len(held)), image_size=encoder.image_size,
                mean=encoder.mean, std=encoder.std, batch=batch, threads=default_threads(),
                pin=device.type == "cuda",
            )  # fmt: skip

    yield from ahead(made(), max(1, depth_for(device)))
