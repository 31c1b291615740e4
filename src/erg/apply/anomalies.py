"""Anomalies: the energy of a run, distances of its embeddings, and what pixels alone would say."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image

from erg.apply.embed import Opened, Tell, known_already, trained_on
from erg.apply.normal import VECTORS, Used, both, check_name, fit_energies, labels_of, looked
from erg.apply.pictures import VIEW, sheet, square
from erg.durable import whole_file, write_atomically
from erg.embeddings import Embeddings
from erg.evaluate.auroc import auroc_score
from erg.evaluate.intervals import Score
from erg.evaluate.localisation import pixel_auroc
from erg.evaluate.precision import average_precision_score
from erg.explore.anomaly import Maps
from erg.train.fitted import Fitted


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
        labelled: whether anybody said of each item if it is normal; of all where not given.
        trained_on: whether the run was trained on each item, for which its own energy is too low.
        maps: by name, an energy for every pixel of every item, where windows were looked at.
    """

    ids: Int[np.ndarray, " n"]
    paths: list[str]
    energies: dict[str, np.ndarray]
    normal: Bool[np.ndarray, " n"] | None = None
    fitted_on: Bool[np.ndarray, " n"] | None = None
    labelled: Bool[np.ndarray, " n"] | None = None
    trained_on: Bool[np.ndarray, " n"] | None = None
    maps: dict[str, Maps] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def first(self) -> str:
        """The energy to sort by if nobody says another: the method's own, else the first."""
        return next(iter(self.energies))

    @property
    def sides(self) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Which items are known to be normal, and which to be anomalous."""
        if self.normal is None:
            return np.zeros(len(self), dtype=bool), np.zeros(len(self), dtype=bool)
        known = np.ones(len(self), dtype=bool) if self.labelled is None else self.labelled
        return self.normal & known, ~self.normal & known

    def order(self, by: str | None = None) -> Int[np.ndarray, " n"]:
        """Positions of the items, the most anomalous first.

        Raises:
            ValueError: there is no such energy.
        """
        name = self.first if by is None else by
        check_name(name, list(self.energies))
        return np.argsort(-self.energies[name], kind="stable")

    def judged(self) -> dict[str, dict[str, Score]]:
        """How well each energy tells, with bootstrap intervals (95 %).

        AUROC; AUPR with the anomalous items as the positive class, whose chance level is their
        share; and AUPR with the normal ones. Items of which nobody said what they are do not count.
        Of normal items in `fitted_on` all energies but that of neighbours are too low, and what is
        judged by them too good.

        Raises:
            ValueError: it is not known which items are normal, or all or none are.
        """
        if self.normal is None:
            raise ValueError(
                "an energy is judged on items of which some are known to be normal and some not. "
                "Name the labels and the normal class."
            )
        normal, odd = self.sides
        if not normal.any() or not odd.any():
            raise ValueError(
                f"an energy is judged by normal items and by others (got {normal.sum()} and "
                f"{odd.sum()} of {len(self)} items). Ask about both."
            )
        return {
            name: {
                "auroc": auroc_score(e[normal], e[odd]),
                "aupr": average_precision_score(-e[odd], -e[normal]),
                "aupr_normal": average_precision_score(e[normal], e[odd]),
            }
            for name, e in self.energies.items()
        }

    def located(self, masks: list[np.ndarray | None]) -> dict[str, Score]:
        """AUROC over pixels of every map.

        Args:
            masks: per item, True where a pixel is defective [h w], of any size; None where no
                pixel is. A sound image counts as many pixels as if it had a black mask, as fine as
                the others'.

        Raises:
            ValueError: there are no maps, or not as many masks as items, or no pixel or all are
                defective.
        """
        if not self.maps or len(masks) != len(self):
            raise ValueError(
                f"{len(masks)} masks for {len(self)} items with {len(self.maps)} maps. Look at "
                "windows, and pass a mask or None per item."
            )
        shapes = next(iter(self.maps.values())).shapes
        pairs = list(zip(shapes, masks, strict=True))
        given = [mask.shape[0] / height for (height, _), mask in pairs if mask is not None]
        finer = float(np.median(given)) if given else 1.0
        whole = [
            np.zeros([max(1, round(finer * side)) for side in shape], dtype=bool)
            if mask is None
            else mask.astype(bool)
            for shape, mask in pairs
        ]
        return {
            name: pixel_auroc([_sized(m, k) for m, k in zip(maps, whole, strict=True)], whole)
            for name, maps in self.maps.items()
        }

    def save(self, path: Path) -> None:
        """A parquet file (format 1): id, path, normal or null, and a column per energy."""
        normal, odd = self.sides
        columns: dict[str, Any] = {
            "id": pa.array(self.ids, pa.int64()),
            "path": pa.array(self.paths, pa.string()),
            "normal": pa.array(normal, pa.bool_(), mask=~(normal | odd)),
        }
        columns |= {name: pa.array(e, pa.float32()) for name, e in self.energies.items()}
        table = pa.table(columns).replace_schema_metadata({"format": "1"})
        with whole_file(path) as stream:
            pq.write_table(table, stream)


def anomalies(
    model: Fitted | Path | str,
    data: Any,
    *,
    normal: Any = None,
    label: str | None = None,
    normal_class: str | None = None,
    tell: Tell = lambda _: None,
    device: torch.device | None = None,
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
        device: where the encoder of a folder is put; the CPU if not given.

    Raises:
        ValueError: the model or the data cannot be used.
    """
    used = Used.of(model, device)
    known, asked = both(used, data, normal, label, normal_class, tell)
    tell(f"{len(asked.rows)} items beside {len(known.rows)} normal ones.")
    most = max(len(known.rows), len(asked.rows))
    of_known, of_asked = (each.manifest.hashes[each.rows] for each in (known, asked))
    energies = fit_energies(looked(used, known, most), of_known)
    found = energies(looked(used, asked, most), of_asked)
    return told(used, known, asked, found, normal_class, tell)


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
    fits = labelled = None
    if normal_class is not None:
        if normal.labels is None or asked.labels is None:
            raise ValueError("a normal class needs labels. Embed both with --label.")
        normal = normal[np.asarray(normal.labels) == normal_class]
        fits, labelled = np.asarray(asked.labels) == normal_class, np.asarray(asked.labels) != ""
        if len(normal) < 2:
            raise ValueError(f"{len(normal)} items have the label {normal_class!r}. Check it.")
    # Equal vectors are the same item, or an exact duplicate of it.
    every = np.concatenate([normal.vectors, asked.vectors])
    same = np.unique(every, axis=0, return_inverse=True)[1].reshape(-1)
    mine, theirs = same[: len(normal)], same[len(normal) :]
    energies = fit_energies({VECTORS: normal.vectors}, mine)({VECTORS: asked.vectors}, theirs)
    paths = asked.paths or [str(i) for i in asked.ids]
    return Anomalies(asked.ids, paths, energies, fits, np.isin(theirs, mine), labelled)


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


def told(
    used: Used,
    known: Opened,
    asked: Opened,
    energies: dict[str, np.ndarray],
    normal_class: str | None,
    tell: Tell,
) -> Anomalies:
    """The asked items with their energies and all that is known of them."""
    every = asked.manifest.paths
    fits, labelled = (None, None) if normal_class is None else labels_of(asked, normal_class)
    seen = np.zeros(len(asked.rows), dtype=bool)
    if used.fitted is not None:
        seen = trained_on(used.fitted, asked)[asked.rows]
    if seen.any():
        low = "." if used.energy is None else ": its own energy is too low for them."
        tell(f"The run was trained on {seen.sum():,} of the items, without labels{low}")
    return Anomalies(
        asked.rows, [every[i] for i in asked.rows], energies, fits,
        known_already(known, known.rows, asked, asked.rows), labelled, seen,
    )  # fmt: skip


def _sized(energies: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "i j"]) -> np.ndarray:
    """A map in the size of a mask, smoothly."""
    height, width = mask.shape
    made = Image.fromarray(energies).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(made)
