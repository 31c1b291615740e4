"""Where in an image something does not belong: energies of windows, and maps made of them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erg.apply.anomalies import Anomalies, told
from erg.apply.embed import Opened, Tell
from erg.apply.normal import Looks, Used, both, fit_energies, looked
from erg.data.cache import Cache
from erg.explore.anomaly import Maps, places, windows
from erg.train.fitted import Fitted

WINDOWS = 20_000
"""Windows of normal images that others are compared with; more only take longer."""

IMAGES_AT_ONCE = 64
"""Images that are cut together."""

WINDOWS_AT_ONCE = 4096
"""Windows that are looked at together: what is seen of them takes 12 kB each and more."""

Shape = tuple[int, int]


def localised(
    model: Fitted | Path | str,
    data: Any,
    *,
    window: int,
    stride: int,
    normal: Any = None,
    label: str | None = None,
    normal_class: str | None = None,
    seed: int = 0,
    tell: Tell = lambda _: None,
    device: torch.device | None = None,
) -> Anomalies:
    """As `anomalies`, for every window of every image: a map says where something is wrong.

    The energy of a pixel is the mean over the windows it lies in; that of an image is the largest
    of its pixels. A model that was trained on crops of that size serves best. Memory holds what was
    seen of the normal windows, and of the others their energies alone.

    Args:
        model: as in `anomalies`.
        data: images.
        window: side of the windows [pixels of the opened image: its shorter side is at most twice
            the encoder's image size, and 64 at least].
        stride: from one window to the next [pixels].
        normal: as in `anomalies`.
        label: as in `anomalies`.
        normal_class: as in `anomalies`.
        seed: of the draw of at most 20,000 normal windows.
        tell: as in `anomalies`.
        device: as in `anomalies`.

    Raises:
        ValueError: an image is smaller than a window, or the model or data cannot be used.
    """
    used = Used.of(model, device)
    known, asked = both(used, data, normal, label, normal_class, tell)
    if any(isinstance(each.images, np.ndarray) for each in (known, asked)):
        raise ValueError("vectors have no windows. Leave out the side of the windows.")
    energies = fit_energies(*_drawn(used, known, window, stride, seed))
    tell(f"{len(asked.rows)} images, beside windows of {len(known.rows)} normal ones.")
    parts: list[dict[str, np.ndarray]] = []
    where: list[np.ndarray] = []
    shapes: list[Shape] = []
    for cut, at, sizes, images in _cut(asked, window, stride):
        where += at
        shapes += sizes
        for start in range(0, len(cut), WINDOWS_AT_ONCE):
            some = slice(start, start + WINDOWS_AT_ONCE)
            seen = looked(used, _as_items(asked, cut[some]), WINDOWS)
            parts.append(energies(seen, images[some]))
    ends = np.cumsum([len(at) for at in where])[:-1]
    maps = {
        name: Maps(np.split(energy, ends), where, window, shapes)
        for name, energy in _joined(parts).items()
    }
    largest = {name: np.array([m.max() for m in each]) for name, each in maps.items()}
    return replace(told(used, known, asked, largest, normal_class, tell), maps=maps)


def _drawn(
    used: Used, known: Opened, window: int, stride: int, seed: int
) -> tuple[Looks, np.ndarray]:
    """What is seen of some windows of every few normal images, and their groups.

    Windows of one image are no neighbours of each other: they overlap.
    """
    random = np.random.default_rng(seed)
    seen: list[Looks] = []
    groups: list[np.ndarray] = []
    for cut, at, _, images in _cut(known, window, stride):
        wanted = min(len(cut), max(1, round(WINDOWS * len(at) / len(known.rows))))
        kept = random.choice(len(cut), size=wanted, replace=False)
        seen.append(looked(used, _as_items(known, [cut[i] for i in kept]), WINDOWS))
        groups.append(images[kept])
    return _joined(seen), np.concatenate(groups)


def _cut(
    opened: Opened, window: int, stride: int
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray], list[Shape], np.ndarray]]:
    """Of some images at a time: all windows; by image, their places and its size; by window, the
    content of its image. No pixel is copied."""
    hashes = opened.manifest.hashes
    for start in range(0, len(opened.rows), IMAGES_AT_ONCE):
        rows = opened.rows[start : start + IMAGES_AT_ONCE]
        pixels = opened.images.pixels(rows)  # type: ignore[union-attr]
        cut: list[np.ndarray] = []
        where: list[np.ndarray] = []
        shapes: list[Shape] = []
        for i in range(len(rows)):
            image = pixels.image(i)
            shapes.append((image.shape[0], image.shape[1]))
            where.append(places(*shapes[-1], window, stride))
            cut += windows(image, where[-1], window)
        yield cut, where, shapes, np.repeat(hashes[rows], [len(at) for at in where])


def _as_items(opened: Opened, cut: list[np.ndarray]) -> Opened:
    """Windows in the place of the images they were cut from."""
    return replace(
        opened, images=Cache.of(cut), rows=np.arange(len(cut)), labels=None, known={}
    )  # fmt: skip


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
