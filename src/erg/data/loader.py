"""The loader: from rows of the manifest to the Views of a step.

Order and views are functions of (seed, epoch, index, view) alone, so the loader's whole state is
the number of the step, and any process at any time can make the batch of any step.
"""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from erg.views.pixels import Pixels
from erg.views.plan import Plan
from erg.views.random import permutation
from erg.views.render import make_views
from erg.views.types import View, Views


@runtime_checkable
class Images(Protocol):
    """Where images come from: a cache, or a stream that decodes on the fly."""

    def pixels(self, rows: np.ndarray) -> Pixels:
        """Images of some rows of the manifest."""
        ...


class Loader:
    """The views of every step, in any order of asking.

    Args:
        images: decoded images by row; an array [n d] of vectors for plans of kind array.
        rows: rows of the manifest to draw from.
        plan: views to make.
        batch: images per step over all processes; a smaller set shrinks it.
        seed: of order and views.
        image_size: of the encoder [pixels].
        mean: per channel, subtracted from values in [0, 1].
        std: per channel, by which they are then divided.
        rank: of this process.
        world: number of processes; process r takes items r, r + world, ... of each batch.
        accumulate: micro-batches per step.
        threads: that make views; 0 makes them in the calling thread.
    """

    def __init__(
        self,
        images: Images | np.ndarray,
        rows: np.ndarray,
        plan: Plan,
        *,
        batch: int,
        seed: int,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        threads: int = 0,
    ) -> None:
        self.images, self.rows, self.plan = images, np.asarray(rows, dtype=np.int64), plan
        self.batch, self.seed, self.accumulate = min(batch, len(rows)), seed, accumulate
        self.image_size, self.mean, self.std = image_size, mean, std
        self.rank, self.world = rank, world
        if self.batch % (world * accumulate):
            raise ValueError(
                f"a batch of {self.batch} cannot be shared evenly by {world} processes times "
                f"{accumulate} micro-batches. Choose a batch they divide."
            )
        self.pool = ThreadPoolExecutor(threads) if threads else None
        self.steps_per_epoch = len(self.rows) // self.batch
        self._order: tuple[int, np.ndarray] = (-1, self.rows)

    def order(self, epoch: int) -> np.ndarray:
        """All rows in the order of an epoch; the incomplete last batch is other images each time.

        Only the last epoch asked for is remembered.
        """
        if self._order[0] != epoch:
            self._order = (epoch, self.rows[permutation(self.seed, len(self.rows), epoch)])
        return self._order[1]

    def rows_of(self, step: int) -> np.ndarray:
        """Rows of the global batch of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[place * self.batch : (place + 1) * self.batch]

    def views(self, step: int, micro: int = 0) -> Views:
        """This process's views of a micro-batch of a step."""
        parts = np.array_split(self.rows_of(step), self.accumulate)
        mine = parts[micro][self.rank :: self.world]
        return self.make(mine, epoch=step // self.steps_per_epoch, step=step)

    def make(self, rows: np.ndarray, *, epoch: int, step: int = 0) -> Views:
        """The views of given rows, as drawn in an epoch."""
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        if isinstance(self.images, np.ndarray):
            return self._vectors(self.images, rows, step)
        return make_views(
            self.images.pixels(rows),
            self.plan,
            seed=self.seed,
            epoch=epoch,
            step=step,
            index=rows,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            pool=self.pool,
        )

    def _vectors(self, vectors: np.ndarray, rows: np.ndarray, step: int) -> Views:
        view = View(torch.from_numpy(np.ascontiguousarray(vectors[rows], dtype=np.float32)))
        main = (view,) * len(self.plan.main)
        return Views(main, torch.from_numpy(rows), step=step, pairing=self.plan.pairs)

    def ahead(self, start: int, stop: int, depth: int = 2) -> Iterator[tuple[int, list[Views]]]:
        """(step, its micro-batches) from start to stop, made `depth` steps ahead in a thread.

        With depth 0 they are made when asked for. An error in the thread is raised here, and
        leaving the loop early ends the thread.
        """
        if depth == 0:
            for step in range(start, stop):
                yield step, [self.views(step, micro) for micro in range(self.accumulate)]
            return
        ready: queue.Queue[tuple[int, list[Views]] | BaseException | None] = queue.Queue(depth)
        left = threading.Event()
        worker = threading.Thread(
            target=self._fill, args=(ready, left, start, stop), name="erg-views", daemon=True
        )
        worker.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            left.set()
            while worker.is_alive():
                try:
                    ready.get(timeout=0.05)
                except queue.Empty:
                    continue
            worker.join()

    def _fill(
        self,
        ready: "queue.Queue[tuple[int, list[Views]] | BaseException | None]",
        left: threading.Event,
        start: int,
        stop: int,
    ) -> None:
        try:
            for step in range(start, stop):
                if left.is_set():
                    return
                views = [self.views(step, micro) for micro in range(self.accumulate)]
                ready.put((step, views))
            ready.put(None)
        except BaseException as error:  # handed to the caller's thread, which raises it
            ready.put(error)

    def close(self) -> None:
        """End the threads."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
