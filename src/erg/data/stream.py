"""Images decoded when they are asked for, where all of them would not fit."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from erg.data.manifest import Manifest, content_hash, default_threads, with_name
from erg.data.opening import UnreadableImage
from erg.data.source import DataError, Source, decode_item
from erg.views.pixels import Pixels


def read_again(source: Source, row: int, expected: str, short_side: int | None) -> np.ndarray:
    """Decode an item of a manifest, which must still be what the manifest says it is."""

    def read(i: int) -> np.ndarray:
        item = source.item(i)
        if content_hash(item) != expected:
            raise UnreadableImage("Its content has changed.")
        return decode_item(item, short_side)

    try:
        return with_name(source, read, row)
    except (UnreadableImage, OSError) as error:
        raise DataError(
            f"{source.path(row)} was readable before and is not now: {error} Put the file back as "
            "it was, or start a new run."
        ) from error


class Stream:
    """Images decoded when asked for, in threads: for sets larger than the budget.

    Args:
        source: of the images.
        manifest: of the source.
        short_side: of the images (see `load_rgb`).
        threads: that decode; None: as many as there are cores, at most 8.
        max_lost: largest share of the readable images that may vanish or change later on. Others
            that are asked for with them stand in for them, and `lost` counts them.
    """

    def __init__(
        self,
        source: Source,
        manifest: Manifest,
        *,
        short_side: int | None = None,
        threads: int | None = None,
        max_lost: float = 0.0,
    ) -> None:
        self.source, self.short_side, self.hashes = source, short_side, manifest.hashes
        self.pool = ThreadPoolExecutor(threads or default_threads(), "erg-stream")
        self.may_lose = max_lost * len(manifest.ok)
        self.lost: dict[int, DataError] = {}
        """Why rows are lost that were readable when the manifest was made."""

    def pixels(self, rows: np.ndarray) -> Pixels:
        """The images of some rows, decoded into one buffer; rows as in `Cache.pixels`.

        Raises:
            DataError: more items than allowed have changed or can no longer be read, or all of
                these.
        """
        asked = np.asarray(rows).tolist()
        found = list(self.pool.map(self._read, asked))
        images = [image for image in found if image is not None]
        if len(images) < len(found):
            if not images:
                raise self.lost[asked[0]]
            # The next one stands in for one that is lost, and the first after the last.
            there = np.flatnonzero([image is not None for image in found])
            chosen = np.searchsorted(there, np.arange(len(found))) % len(there)
            images = [images[place] for place in chosen]
        return Pixels.pack(images)

    def _read(self, row: int) -> np.ndarray | None:
        try:
            return read_again(self.source, row, self.hashes[row], self.short_side)
        except DataError as error:
            self.lost[row] = error
            if len(self.lost) > self.may_lose:
                raise
            return None

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown(wait=True, cancel_futures=True)
