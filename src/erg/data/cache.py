"""Decoded images side by side in one buffer, where they fit.

A cache file is the pixels of all readable images in the order of the manifest and nothing else.
Its sidecar `<file>.json` says of what, with a checksum, so that a foreign, damaged or half-written
file is noticed and made again.
"""

import glob
import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL

from erg.data.budget import decoded_bytes, decoded_sizes, default_budget, estimated_bytes
from erg.data.manifest import Manifest, build_manifest, in_threads
from erg.data.source import DataError, Source
from erg.data.stream import Stream, read_again
from erg.durable import FULL, partial_name, read_json, settle, whole_file
from erg.views.pixels import Pixels

FORMAT = 1
"""Of the sidecar; a reader exists for each."""

Progress = Callable[[int, int], None]

Share = Callable[[Callable[[], tuple[Manifest, bool]]], tuple[Manifest, bool]]
"""Calls a function in one of several processes, and returns in all of them what it returned."""


class Cache:
    """Decoded images by row, of a manifest where they come from one.

    Args:
        flat: pixels of all images one after another, uint8 [bytes]; may be a memory map.
        sizes: height and width of every row, [n 2] pixels; 0, 0 for rows that were skipped.
    """

    def __init__(self, flat: np.ndarray, sizes: np.ndarray) -> None:
        self.flat = flat
        self.height, self.width = np.ascontiguousarray(sizes.T, dtype=np.int64)
        ends = np.cumsum(self.height * self.width * 3)
        self.offset = ends - self.height * self.width * 3
        if len(flat) != ends[-1]:
            raise ValueError(
                f"{len(flat):,} bytes of pixels are not the {ends[-1]:,} bytes of images of these "
                "sizes. Decode the images again."
            )

    @classmethod
    def of(cls, images: Sequence[np.ndarray]) -> "Cache":
        """Of decoded images, uint8 [h w 3] each, which are copied."""
        packed = Pixels.pack(images)
        return cls(packed.flat, np.stack([packed.height, packed.width], axis=1))

    def pixels(self, rows: np.ndarray) -> Pixels:
        """The images of some rows; no pixel is copied.

        Args:
            rows: rows of the manifest, int64 [b].

        Raises:
            ValueError: a row was skipped.
        """
        height = self.height[rows]
        if not height.all():
            raise ValueError(f"row {rows[np.argmin(height)]} was skipped. Use rows of manifest.ok.")
        return Pixels(self.flat, self.offset[rows], height, self.width[rows])


def open_images(
    source: Source,
    *,
    short_side: int | None = None,
    file: Path | None = None,
    budget: int | None = None,
    max_skipped: float = 0.2,
    max_lost: float = 0.0,
    threads: int | None = None,
    manifest: Manifest | None = None,
    share: Share | None = None,
    progress: Progress | None = None,
) -> tuple[Manifest, Cache | Stream]:
    """Look at every item, decode each once, and keep the pixels where they fit the budget.

    Args:
        source: of the images.
        short_side: shrink images so that the shorter side has at most this many pixels.
        file: keep the pixels in this file rather than in memory.
        budget: largest size of all pixels [bytes]; None: a third of the free memory, or of the
            free disk where there is a file. Larger sets are decoded whenever they are used.
        max_skipped: largest share of unreadable items.
        max_lost: largest share of items that may vanish or change later (see `Stream`).
        threads: that read and decode; None: as many as there are cores, at most 8.
        manifest: of the source, from an earlier run: a cache file made of it is used as it is.
        share: among the processes that share the file: one of them looks, and the others open what
            it has left.
        progress: called with the number of items done and of all items.

    Raises:
        DataError: the source holds vectors, too many items are unreadable, or items are not what
            the manifest says.
    """
    if source.kind != "image":
        raise DataError(f"{source.describe()} are no images. Use the vectors of the source.")
    cache: Cache | None = None

    def look() -> tuple[Manifest, bool]:
        """The manifest, and whether the pixels are kept."""
        nonlocal cache
        allowed = default_budget(file) if budget is None else budget
        if manifest is not None:
            _check_length(source, manifest)
            if decoded_bytes(manifest, short_side) > allowed:
                return manifest, False
            cache = build_cache(
                source, manifest, short_side=short_side, file=file, threads=threads,
                progress=progress,
            )  # fmt: skip
            return manifest, True
        fits = estimated_bytes(source, short_side) <= allowed
        with _Writer(file, allowed if fits else 0) as writer:
            made = build_manifest(
                source,
                max_skipped=max_skipped,
                threads=threads,
                short_side=short_side,
                sink=writer.append,
                progress=progress,
            )
            cache = writer.finish(made, short_side)
        return made, cache is not None

    found, kept = look() if share is None else share(look)
    _check_length(source, found)  # who has not looked may have listed other items
    if not kept:
        return found, Stream(
            source, found, short_side=short_side, threads=threads, max_lost=max_lost
        )  # fmt: skip
    if cache is None:
        assert file is not None  # memory is not shared
        cache = _in_file(file, found, short_side)
    return found, cache


def open_vectors(
    source: Source,
    *,
    max_skipped: float = 0.2,
    manifest: Manifest | None = None,
    progress: Progress | None = None,
) -> tuple[Manifest, np.ndarray]:
    """Look at every vector or sequence once, and keep all of them [n d].

    Args:
        source: of the vectors.
        max_skipped: largest share of unreadable ones; zeros stand in their rows.
        manifest: of the source, from an earlier run.
        progress: called with the number of items done and of all items.

    Raises:
        DataError: too many items are unreadable, or items are not what the manifest says.
    """
    found = np.zeros((len(source), 0))

    def keep(i: int, item: np.ndarray | None) -> None:
        nonlocal found
        if item is None:
            return
        if not found.size:
            found = np.zeros((len(source), len(item)), item.dtype)
        found[i] = item

    if manifest is None:
        manifest = build_manifest(source, max_skipped=max_skipped, sink=keep, progress=progress)
    else:
        _check_length(source, manifest)
        hashes = manifest.hashes
        for i in manifest.ok.tolist():
            keep(i, read_again(source, i, hashes[i], None))
    return manifest, found


def open_items(
    source: Source,
    *,
    short_side: int,
    file: Path | None = None,
    budget: int | None = None,
    max_skipped: float = 0.2,
    max_lost: float = 0.0,
    manifest: Manifest | None = None,
    share: Share | None = None,
    progress: Progress | None = None,
) -> tuple[Manifest, Cache | Stream | np.ndarray]:
    """The manifest of a source, and its images as `open_images` opens them; for sources of vectors
    or tokens these [n d], as `open_vectors` does."""
    if source.kind == "array":
        return open_vectors(source, max_skipped=max_skipped, manifest=manifest, progress=progress)
    return open_images(
        source,
        short_side=short_side,
        file=file,
        budget=budget,
        max_skipped=max_skipped,
        max_lost=max_lost,
        manifest=manifest,
        share=share,
        progress=progress,
    )


def _check_length(source: Source, manifest: Manifest) -> None:
    if len(manifest) != len(source):
        raise DataError(
            f"{source.describe()}, but the manifest has {len(manifest):,} rows. Put the data back "
            "as they were, or start a new run."
        )


def build_cache(
    source: Source,
    manifest: Manifest,
    *,
    short_side: int | None = None,
    file: Path | None = None,
    budget: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Cache:
    """Decode the readable items of a manifest, or reuse a cache file made of the same.

    Args:
        source: of the images.
        manifest: of the source.
        short_side: shrink images so that the shorter side has at most this many pixels.
        file: keep the pixels in this file rather than in memory.
        budget: largest size of all pixels [bytes]; None: any.
        threads: that read and decode; None: as many as there are cores, at most 8.
        progress: called with the number of items done and of all items.

    Raises:
        DataError: an item has changed or can no longer be read, or all exceed the budget.
    """
    total = decoded_bytes(manifest, short_side)
    if budget is not None and total > budget:
        raise DataError(
            f"the decoded images take {total:,} bytes, more than the budget of {budget:,}. Raise "
            "the budget, or use a smaller short_side."
        )
    if file is not None and (found := _reuse(file, manifest, short_side)) is not None:
        return found
    readable = set(manifest.ok.tolist())
    hashes = manifest.hashes

    def read(i: int) -> np.ndarray | None:
        return read_again(source, i, hashes[i], short_side) if i in readable else None

    with _Writer(file, total) as writer:
        decoded = in_threads(read, range(len(manifest)), source, threads)
        for i, pixels in enumerate(decoded):
            writer.append(i, pixels)
            if progress is not None:
                progress(i + 1, len(manifest))
        cache = writer.finish(manifest, short_side)
    assert cache is not None  # the sizes are known, so the budget was kept
    return cache


# Writing -------------------------------------------------------------------------------------


class _Writer:
    """Takes decoded images in order, into memory or a file, until they exceed the budget."""

    def __init__(self, file: Path | None, budget: int) -> None:
        self.file, self.budget = file, budget
        self.memory = bytearray()
        self.stream: BinaryIO | None = None
        self.sizes: list[tuple[int, int]] = []
        self.bytes = self.checksum = 0

    def __enter__(self) -> "_Writer":
        if self.file is not None and self.budget:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            for left in self.file.parent.glob(f".{glob.escape(self.file.name)}.*.tmp"):
                left.unlink(missing_ok=True)  # of a run that was killed
            self.stream = open(partial_name(self.file), "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def _drop(self) -> None:
        self.memory = bytearray()
        if self.stream is not None and self.file is not None:
            with suppress(OSError):  # what is still in its buffer may not fit the disk
                self.stream.close()
            partial_name(self.file).unlink(missing_ok=True)

    def append(self, i: int, pixels: np.ndarray | None) -> None:
        """The next image; None for a row that is skipped."""
        self.sizes.append((0, 0) if pixels is None else pixels.shape[:2])
        if pixels is None or self.bytes > self.budget:
            return
        self.bytes += pixels.size
        if self.bytes > self.budget:
            self._drop()
        elif self.stream is None:
            self.memory += pixels.data.cast("B")
        else:
            self.checksum = zlib.crc32(pixels.data, self.checksum)
            self._write(self.stream, pixels)

    def _write(self, stream: BinaryIO, pixels: np.ndarray) -> None:
        try:
            stream.write(pixels.data)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise DataError(
                f"the disk of {self.file} is full after {self.bytes:,} bytes of decoded images. "
                "Free some space, or keep less (--cache-gb)."
            ) from error

    def finish(self, manifest: Manifest, short_side: int | None) -> Cache | None:
        """The cache; None where the images exceed the budget."""
        if self.bytes > self.budget:
            return None
        if self.stream is None or self.file is None:
            return Cache(np.frombuffer(self.memory, dtype=np.uint8), np.array(self.sizes))
        # A sidecar must never stand beside pixels it was not written for.
        _sidecar(self.file).unlink(missing_ok=True)
        settle(self.stream, self.file)
        about = _about(manifest, short_side, self.bytes) | {"crc32": self.checksum}
        with whole_file(_sidecar(self.file)) as stream:
            stream.write(json.dumps(about).encode())
        return _in_file(self.file, manifest, short_side)


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _about(manifest: Manifest, short_side: int | None, size: int) -> dict[str, object]:
    """What a cache file is of. Other versions of Pillow may round otherwise."""
    return {
        "format": FORMAT,
        "manifest": manifest.identity,
        "short_side": short_side,
        "bytes": size,
        "decoder": f"Pillow {PIL.__version__}",
    }


def _in_file(file: Path, manifest: Manifest, short_side: int | None) -> Cache:
    """The cache in a file, of which no more than its length is checked."""
    flat = np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))
    return Cache(flat, decoded_sizes(manifest, short_side))


def _reuse(file: Path, manifest: Manifest, short_side: int | None) -> Cache | None:
    """The cache in a file; None where it is missing, damaged, or of something else."""
    expected = _about(manifest, short_side, decoded_bytes(manifest, short_side))
    try:
        about = read_json(_sidecar(file))
        checksum = about.pop("crc32")
        if about != expected or file.stat().st_size != expected["bytes"]:
            return None
        found = _in_file(file, manifest, short_side)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    read = 0
    for start in range(0, len(found.flat), 1 << 24):
        read = zlib.crc32(found.flat[start : start + (1 << 24)].data, read)
    return found if read == checksum else None
