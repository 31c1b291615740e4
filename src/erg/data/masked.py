"""Images with masks of what stands out in them, row by row."""

from collections import Counter
from pathlib import Path

import numpy as np

from erg.data.cache import Cache, Progress, Stream, open_images
from erg.data.manifest import Manifest
from erg.data.source import DataError, Source
from erg.views.pixels import Pixels

LOOKED = 64
"""Masks that are looked at to tell how much they keep."""


class Masked:
    """Images with their masks, where they have one of their size.

    Args:
        images: of all rows.
        masks: of the same rows.
        manifest: of the images.
        found: the manifest of the masks.

    Raises:
        DataError: no mask is of the size of its image, or all are black.
    """

    def __init__(
        self, images: Cache | Stream, masks: Cache | Stream, manifest: Manifest, found: Manifest
    ) -> None:
        self.images, self.masks, self.manifest, self.found = images, masks, manifest, found
        self.sized = (manifest.sizes == found.sizes).all(axis=1)
        self.usable = self.sized & (manifest.sizes > 0).all(axis=1)
        rows = np.flatnonzero(self.usable)
        if not len(rows):
            raise DataError(
                f"none of {len(found.ok):,} masks is of the size of its image. Give masks of the "
                "same height and width [pixels]."
            )
        few = np.linspace(0, len(rows) - 1, min(len(rows), LOOKED)).astype(int)
        some = masks.pixels(rows[few])
        looked = [some.image(i) for i in range(len(few))]
        if max(int(mask.max()) for mask in looked) <= 1:
            raise DataError(
                f"the masks are black: {len(looked)} looked at hold nothing brighter than 1 of "
                "255. Write 255, not 1, where something stands out."
            )
        self.kept = float(np.mean([mask.mean() for mask in looked])) / 255
        """Share of the images that their masks keep, of some looked at."""

    def pixels(self, rows: np.ndarray) -> Pixels:
        """The images of some rows, with masks; rows as in `Cache.pixels`."""
        images, there = self.images.pixels(rows), self.usable[rows]
        if isinstance(self.images, Stream) and self.images.lost:  # others stand in for those
            there = there & ~np.isin(rows, list(self.images.lost))
        if not there.any():
            return images
        try:
            some = self.masks.pixels(rows[there])
        except DataError:  # all of these have vanished or changed
            return images
        offset, height, width = every = np.zeros((3, len(rows)), dtype=np.int64)
        every[:, there] = some.offset, some.height, some.width
        if isinstance(self.masks, Stream) and self.masks.lost:
            every[:, np.isin(rows, list(self.masks.lost))] = 0
        return images._replace(masks=Pixels(some.flat, offset, height, width))

    def summary(self) -> str:
        """How many images have masks, and why the others have none; a few lines of text."""
        readable = self.manifest.ok
        reasons = self.found.table["reason"].to_numpy()[readable]
        other = ~self.sized[readable] & (reasons == "")
        reasons = np.where(other, "It is of another size than its image.", reasons)
        lines = [
            f"{int(self.usable.sum()):,} of {len(readable):,} images have masks, which keep "
            f"{self.kept:.0%} of them"
        ]
        counts = Counter(reasons[reasons != ""].tolist()).most_common(10)
        return "\n".join(lines + [f"{n:,} without a mask: {reason}" for reason, n in counts])


def open_masks(
    images: Cache | Stream,
    manifest: Manifest,
    masks: Source,
    *,
    short_side: int | None = None,
    file: Path | None = None,
    budget: int | None = None,
    found: Manifest | None = None,
    progress: Progress | None = None,
) -> Masked:
    """Put masks beside images. They are looked at, kept and known again as images are; those that
    are missing or damaged are skipped, however many, and those that vanish later.

    Args:
        images: from `open_images`.
        manifest: of the images.
        masks: of the same items (see `source.masks_of`).
        short_side: of the images.
        file: as in `open_images`, another one.
        budget: as in `open_images`.
        found: the manifest of the masks, from an earlier run.
        progress: as in `open_images`.

    Raises:
        DataError: no mask can be used, or masks are not what their manifest says.
    """
    found, opened = open_images(
        masks, short_side=short_side, file=file, budget=budget, max_skipped=1.0, max_lost=1.0,
        manifest=found, progress=progress,
    )  # fmt: skip
    return Masked(images, opened, manifest, found)
