"""Images with masks of what stands out in them, row by row."""

import errno
import os
from collections import Counter
from pathlib import Path

import numpy as np

from erg.data.cache import Cache, Progress, Share, open_images
from erg.data.files import Files, walk
from erg.data.manifest import Manifest
from erg.data.source import DataError, Item, Source, is_image_name, printable, suggestion
from erg.data.stream import Stream
from erg.data.tables import Parquet
from erg.views.pixels import Pixels

LOOKED = 64
"""Masks that are looked at to tell how much they keep."""


def masks_of(source: Source, where: str) -> Source:
    """The masks of all images of a source, as a source of their own: item i is of image i.

    A mask is an image of the size of its image, bright where something stands out. There need not
    be one for every image: reading one that is missing raises as reading a damaged one does.

    Args:
        source: of images.
        where: for parquet files the column of the encoded masks; for files a folder where the mask
            of `a/b.jpg` is `a/b.jpg`, or an image `a/b` with another ending.

    Raises:
        DataError: no masks are there, or the source is of another kind.
    """
    if isinstance(source, Parquet):
        return source.masks(where)
    if isinstance(source, Files):
        return _masks_in(Path(where), source)
    raise DataError(
        f"{source.describe()}: masks are taken from a column of parquet files or from a folder "
        "beside image files only. Leave the mask out, or store the images so."
    )


def _masks_in(folder: Path, source: Files) -> Files:
    shown = printable(str(folder))
    if not folder.is_dir():
        raise DataError(f"There is no folder of masks {shown!r}. {suggestion(folder)}")
    if isinstance(source.spec, str):
        root, inside = os.path.realpath(source.spec), os.path.realpath(folder)
        if (inside + os.sep).startswith(root.rstrip(os.sep) + os.sep):
            raise DataError(
                f"the masks in {shown!r} lie in the folder of the images, where they are taken for "
                "images themselves. Move them beside it."
            )
    found = set(walk(folder, follow_links=False)[0])
    images = sorted(filter(is_image_name, found), reverse=True)
    named = {os.path.splitext(name)[0]: name for name in images}
    names = [
        name if name in found else named.get(os.path.splitext(name)[0], name)
        for name in source.names
    ]
    present = sum(name in found for name in names)
    if not present:
        raise DataError(
            f"none of {len(source):,} images has a mask in {shown!r}. The mask of "
            f"{source.path(0)!r} has to have that name there, but for the ending."
        )
    masks = _Masks(
        [os.path.join(folder, name) for name in names],
        names,
        labelled=False,
        spec=str(folder),
        text=f"masks in {shown} of {present:,} of {len(source):,} images",
    )
    masks.found = found
    return masks


class _Masks(Files):
    """Files of which only those found are opened: a link out of their folder is not."""

    found: set[str]

    def item(self, i: int) -> Item:
        if self.names[i] not in self.found:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.files[i])
        return super().item(i)


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
    share: Share | None = None,
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
        share: as in `open_images`.
        progress: as in `open_images`.

    Raises:
        DataError: no mask can be used, or masks are not what their manifest says.
    """
    found, opened = open_images(
        masks, short_side=short_side, file=file, budget=budget, max_skipped=1.0, max_lost=1.0,
        manifest=found, share=share, progress=progress,
    )  # fmt: skip
    return Masked(images, opened, manifest, found)
