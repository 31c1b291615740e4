"""Anomalies: the energy of a run, distances of its embeddings, and what pixels alone would say."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from erg.apply.embed import Opened, known_already, open_for, vectors_of
from erg.apply.pictures import VIEW, sheet, square
from erg.apply.scores import pixels_of
from erg.durable import whole_file, write_atomically
from erg.embeddings import Embeddings
from erg.encoders import Encoder, load_encoder
from erg.evaluate.auroc import auroc_score
from erg.evaluate.intervals import Score
from erg.evaluate.localisation import pixel_auroc
from erg.evaluate.precision import average_precision_score
from erg.explore.anomaly import (
    OF_EMBEDDINGS,
    OF_PIXELS,
    by_neighbours,
    overlaid,
    places,
    windows,
)
from erg.train.fit import Fitted, InMemory
from erg.views.types import View

ENERGY = "energy"
"""That of the method itself, where it is one of an image alone."""

WINDOWS = 20_000
"""Windows of normal images that others are compared with; more only take longer."""

IMAGES_AT_ONCE = 64

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Anomalies:
    """Items with several energies each, low where an item fits in.

    Args:
        ids: rows of the items in their source.
        paths: of the items.
        energies: by name; [n] each.
        normal: whether each item is known to be normal; None where nobody said.
        fitted_on: whether each item, or a duplicate of it, is among the normal ones that the
            energies were fitted on: all but that of neighbours are too low for it.
        maps: by name, an energy for every pixel of every item, where windows were looked at.
    """

    ids: Int[np.ndarray, " n"]
    paths: list[str]
    energies: dict[str, np.ndarray]
    normal: Bool[np.ndarray, " n"] | None = None
    fitted_on: Bool[np.ndarray, " n"] | None = None
    maps: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def first(self) -> str:
        """The energy to sort by if nobody says another: the method's own, else the first."""
        return next(iter(self.energies))

    def order(self, by: str | None = None) -> Int[np.ndarray, " n"]:
        """Positions of the items, the most anomalous first.

        Raises:
            ValueError: there is no such energy.
        """
        name = self.first if by is None else by
        if name not in self.energies:
            raise ValueError(f"there is no energy {name!r}. There are {', '.join(self.energies)}.")
        return np.argsort(-self.energies[name], kind="stable")

    def judged(self) -> dict[str, dict[str, Score]]:
        """How well each energy tells, with bootstrap intervals (95 %).

        AUROC; AUPR with the anomalous items as the positive class, whose chance level is their
        share; and AUPR with the normal ones. Of normal items in `fitted_on` all energies but that
        of neighbours are too low, and what is judged by them too good.

        Raises:
            ValueError: it is not known which items are normal, or all or none are.
        """
        if self.normal is None or self.normal.all() or not self.normal.any():
            raise ValueError(
                "an energy is judged on items of which some are known to be normal and some not. "
                "Name the labels and the normal class."
            )
        return {
            name: {
                "auroc": auroc_score(e[self.normal], e[~self.normal]),
                "aupr": average_precision_score(-e[~self.normal], -e[self.normal]),
                "aupr_normal": average_precision_score(e[self.normal], e[~self.normal]),
            }
            for name, e in self.energies.items()
        }

    def located(self, masks: list[np.ndarray | None]) -> dict[str, Score]:
        """AUROC over pixels of every map.

        Args:
            masks: per item, True where a pixel is defective [h w], of any size; None where no
                pixel is.

        Raises:
            ValueError: there are no maps, or not as many masks as items.
        """
        if not self.maps or len(masks) != len(self):
            raise ValueError(
                f"{len(masks)} masks for {len(self)} items with {len(self.maps)} maps. Look at "
                "windows, and pass a mask or None per item."
            )
        whole = [
            np.zeros(m.shape, dtype=bool) if mask is None else mask.astype(bool)
            for m, mask in zip(self.maps[next(iter(self.maps))], masks, strict=True)
        ]
        return {
            name: pixel_auroc([_sized(m, k) for m, k in zip(maps, whole, strict=True)], whole)
            for name, maps in self.maps.items()
        }

    def save(self, path: Path) -> None:
        """A parquet file (format 1): id, path, normal or null, and a column per energy."""
        columns: dict[str, Any] = {
            "id": pa.array(self.ids, pa.int64()),
            "path": pa.array(self.paths, pa.string()),
            "normal": pa.array([None] * len(self) if self.normal is None else self.normal,
                               pa.bool_()),
        }  # fmt: skip
        columns |= {name: pa.array(e, pa.float32()) for name, e in self.energies.items()}
        table = pa.table(columns).replace_schema_metadata({"format": "1"})
        with whole_file(path) as stream:
            pq.write_table(table, stream)


@dataclass(frozen=True)
class _Used:
    """A model as it is used here: its encoder, and its energy of an image alone, if it has one."""

    module: nn.Module
    encoder: Encoder
    energy: Callable[[Tensor], Tensor] | None = None
    autocast: torch.dtype | None = None
    data: str = ""

    @classmethod
    def of(cls, model: Fitted | Path | str) -> "_Used":
        if not isinstance(model, Fitted):
            encoder = load_encoder(Path(model))
            return cls(encoder, encoder)
        method = model.method
        energy = _alone(model) if method.plan().pairs == "alone" else None
        device = next((p.device for p in method.parameters()), torch.device("cpu"))
        autocast = model.run.autocast(device)
        return cls(method, method.encoder, energy, autocast, model.run.data)


def _alone(model: Fitted) -> Callable[[Tensor], Tensor]:
    """F(y) of data as a column [b 1]."""
    method = model.method
    mean, std = method.encoder.mean, method.encoder.std
    return lambda data: method.energy(None, View(data, mean=mean, std=std))[:, None]


def anomalies(
    model: Fitted | Path | str,
    data: Any,
    *,
    normal: Any = None,
    label: str | None = None,
    normal_class: str | None = None,
    tell: Tell = lambda _: None,
) -> Anomalies:
    """How badly every readable item of `data` fits with the normal ones.

    Energies of an item: the method's own, where it is one of an image alone; distances of what its
    encoder gives (see `explore.anomaly`), not of a latent, which leaves out what it cannot say; and
    the same of its pixels, which the others have to beat. An item is no neighbour of itself or its
    duplicates, so `data` may be among the normal ones.

    Args:
        model: a trained run, or a folder with an encoder.
        data: anything `open_source` opens.
        normal: items that are normal; by default what the run was trained on.
        label: where labels are found, in both.
        normal_class: the label of normal items: only those of `normal` are taken, and the others
            of `data` are anomalies.
        tell: called with lines worth printing.

    Raises:
        ValueError: the model or the data cannot be used.
    """
    used = _Used.of(model)
    known, asked = _both(used, data, normal, label, normal_class)
    tell(f"{len(asked.rows)} items beside {len(known.rows)} normal ones.")
    mine, theirs = (_looked(used, each) for each in (known, asked))
    hashes = [each.manifest.hashes[each.rows] for each in (known, asked)]
    energies = _compared(mine, theirs, (hashes[0], hashes[1]))
    return _told(asked, energies, normal_class, known)


def of_embeddings(
    normal: Embeddings, asked: Embeddings, *, normal_class: str | None = None
) -> Anomalies:
    """As `anomalies`, from vectors alone.

    Args:
        normal: embeddings of normal items.
        asked: embeddings of the items asked about, by the same encoder.
        normal_class: as in `anomalies`, where both have labels.

    Raises:
        ValueError: the vectors have different widths, or labels are missing.
    """
    if normal.vectors.shape[1] != asked.vectors.shape[1]:
        raise ValueError(
            f"normal vectors have {normal.vectors.shape[1]} values and the others "
            f"{asked.vectors.shape[1]}. Embed both with the same encoder."
        )
    fits = None
    if normal_class is not None:
        if normal.labels is None or asked.labels is None:
            raise ValueError("a normal class needs labels. Embed both with --label.")
        normal = normal[np.asarray(normal.labels) == normal_class]
        fits = np.asarray(asked.labels) == normal_class
        if len(normal) < 2:
            raise ValueError(f"{len(normal)} items have the label {normal_class!r}. Check it.")
    # Equal vectors are the same item, or an exact duplicate of it.
    both = np.concatenate([normal.vectors, asked.vectors])
    same = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    groups = (same[: len(normal)], same[len(normal) :])
    energies = _compared({"": normal.vectors}, {"": asked.vectors}, groups)
    paths = asked.paths or [str(i) for i in asked.ids]
    return Anomalies(asked.ids, paths, energies, fits, np.isin(groups[1], groups[0]))


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
) -> Anomalies:
    """As `anomalies`, for every window of every image: a map says where something is wrong.

    The energy of a pixel is the mean over the windows it lies in; that of an image is the largest
    of its pixels. A model that was trained on crops of that size serves best.

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

    Raises:
        ValueError: an image is smaller than a window, or the model or data cannot be used.
    """
    used = _Used.of(model)
    known, asked = _both(used, data, normal, label, normal_class)
    if isinstance(asked.images, np.ndarray):
        raise ValueError("vectors have no windows. Leave out the side of the windows.")
    random = np.random.default_rng(seed)
    mine: list[dict[str, np.ndarray]] = []
    # Windows of one image are no neighbours of each other: they overlap.
    groups: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for cut, shapes, images in _cut(known, window, stride):
        wanted = min(len(cut), max(1, round(WINDOWS * len(shapes) / len(known.rows))))
        kept = random.choice(len(cut), size=wanted, replace=False)
        mine.append(_looked(used, _as_items(known, [cut[i] for i in kept])))
        groups[0].append(images[kept])
    tell(f"{len(asked.rows)} images, beside windows of {len(known.rows)} normal ones.")
    theirs: list[dict[str, np.ndarray]] = []
    where: list[Where] = []
    for cut, shapes, images in _cut(asked, window, stride):
        theirs.append(_looked(used, _as_items(asked, cut)))
        groups[1].append(images)
        where += shapes
    of_mine, of_theirs = (np.concatenate(each) for each in groups)
    energies = _compared(_joined(mine), _joined(theirs), (of_mine, of_theirs))
    ends = np.cumsum([len(at) for _, at in where])
    maps = {
        name: [
            overlaid(e[end - len(at) : end], at, window, shape)
            for (shape, at), end in zip(where, ends, strict=True)
        ]
        for name, e in energies.items()
    }
    largest = {name: np.array([m.max() for m in each]) for name, each in maps.items()}
    return replace(_told(asked, largest, normal_class, known), maps=maps)


def picture(
    found: Anomalies, opened: Opened, path: Path, *, by: str | None = None, items: int = 32
) -> list[int]:
    """Write a sheet of the most anomalous images (webp), eight a row; their rows, in that order.

    Where there are maps, each image is followed by its map: white where the energy is highest of
    all maps shown, black where it is lowest.
    """
    name = found.first if by is None else by
    chosen = found.order(name)[:items]
    rows = found.ids[chosen]
    pixels = opened.images.pixels(rows)  # type: ignore[union-attr]
    cells: list[np.ndarray] = []
    maps = [found.maps[name][i] for i in chosen] if found.maps else []
    low, high = (min(m.min() for m in maps), max(m.max() for m in maps)) if maps else (0.0, 1.0)
    for i in range(len(rows)):
        cells.append(square(pixels, i, VIEW))
        if maps:
            grey = 255 * (maps[i] - low) / max(high - low, 1e-12)
            h, w = grey.shape
            edge, top, left = min(h, w), (h - min(h, w)) // 2, (w - min(h, w)) // 2
            centre = Image.fromarray(grey.astype(np.uint8)[top : top + edge, left : left + edge])
            cells.append(np.asarray(centre.convert("RGB").resize((VIEW, VIEW))))
    write_atomically(path, sheet(cells, 8))
    return rows.tolist()


def _both(
    used: _Used, data: Any, normal: Any, label: str | None, normal_class: str | None
) -> tuple[Opened, Opened]:
    """Normal items and asked ones."""
    if (label is None) != (normal_class is None):
        raise ValueError("a label needs a normal class, and the other way round. Give both.")
    given = used.data if normal is None else normal
    if isinstance(given, str) and not given:
        raise ValueError("it is not known what is normal. Name normal items with --normal.")
    known, asked = (
        each if isinstance(each, Opened) else open_for(used.encoder, each, label=label)
        for each in (given, data)
    )
    if normal_class is not None:
        known = replace(known, rows=known.rows[_is(known, normal_class)])
        if len(known.rows) < 2:
            raise ValueError(
                f"{len(known.rows)} normal items have the label {normal_class!r}. There are "
                f"{', '.join(known.classes[:8])}."
            )
    return known, asked


def _is(opened: Opened, name: str) -> Bool[np.ndarray, " n"]:
    """Which of the readable rows have a label."""
    if opened.labels is None or name not in opened.classes:
        return np.zeros(len(opened.rows), dtype=bool)
    return opened.labels[opened.rows] == opened.classes.index(name)


def _told(
    asked: Opened, energies: dict[str, np.ndarray], normal_class: str | None, known: Opened
) -> Anomalies:
    every = asked.manifest.paths
    paths = [every[i] for i in asked.rows]
    fits = None if normal_class is None else _is(asked, normal_class)
    fitted_on = known_already(known, known.rows, asked, asked.rows)
    return Anomalies(asked.rows, paths, energies, fits, fitted_on)


def _looked(used: _Used, opened: Opened) -> dict[str, np.ndarray]:
    """What is compared, of every row: the energy itself, embeddings (""), pixels."""
    found: dict[str, np.ndarray] = {}
    of = (used.module, used.encoder, opened, opened.rows)
    if used.energy is not None:
        found[ENERGY] = vectors_of(used.energy, *of)[:, 0]
    found[""] = vectors_of(used.encoder, *of, autocast=used.autocast)
    if not isinstance(opened.images, np.ndarray):
        found["pixels"] = pixels_of(opened, opened.rows, used.encoder.image_size)
    return found


def _compared(
    normal: dict[str, np.ndarray],
    asked: dict[str, np.ndarray],
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """All energies of the asked items."""
    found: dict[str, np.ndarray] = {}
    if ENERGY in asked:
        found[ENERGY] = asked[ENERGY]
    for name, energy in OF_EMBEDDINGS.items():
        if energy is by_neighbours and groups is not None:
            found[name] = by_neighbours(
                normal[""], asked[""], normal_groups=groups[0], asked_groups=groups[1]
            )
        else:
            found[name] = energy(normal[""], asked[""])
    if "pixels" in asked:
        found |= {name: energy(normal["pixels"], asked["pixels"])
                  for name, energy in OF_PIXELS.items()}  # fmt: skip
    return found


Where = tuple[tuple[int, int], np.ndarray]
"""Height and width of an image, and the places of its windows."""


def _cut(
    opened: Opened, window: int, stride: int
) -> Iterator[tuple[list[np.ndarray], list[Where], np.ndarray]]:
    """All windows of some images at a time, where they lie, and the content of each one's image."""
    hashes = opened.manifest.hashes
    for start in range(0, len(opened.rows), IMAGES_AT_ONCE):
        rows = opened.rows[start : start + IMAGES_AT_ONCE]
        pixels = opened.images.pixels(rows)  # type: ignore[union-attr]
        cut: list[np.ndarray] = []
        where: list[Where] = []
        for i in range(len(rows)):
            image = pixels.image(i)
            height, width = image.shape[:2]
            at = places(height, width, window, stride)
            cut += windows(image, at, window)
            where.append(((height, width), at))
        yield cut, where, np.repeat(hashes[rows], [len(at) for _, at in where])


def _as_items(opened: Opened, cut: list[np.ndarray]) -> Opened:
    """Windows in the place of the images they were cut from."""
    return replace(opened, images=InMemory(cut), rows=np.arange(len(cut)), labels=None)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _sized(energies: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "i j"]) -> np.ndarray:
    """A map in the size of a mask, smoothly."""
    height, width = mask.shape
    made = Image.fromarray(energies).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(made)
