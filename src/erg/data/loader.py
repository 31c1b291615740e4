"""The loader: from rows of the manifest to the Views of a step.

Order and views are functions of (seed, epoch, index, view) alone, so the loader's whole state is
the number of the step, and any process at any time can make the batch of any step.
"""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

import numpy as np
import torch

from erg.data.ahead import ahead
from erg.views.make import make_tokens, make_vectors, make_views
from erg.views.pixels import Pixels
from erg.views.plan import Plan
from erg.views.random import permutation
from erg.views.types import Output, Views


@runtime_checkable
class Images(Protocol):
    """Where images come from: a cache, or a stream that decodes on the fly."""

    def pixels(self, rows: np.ndarray) -> Pixels:
        """Images of some rows of the manifest."""
        ...


class Loader:
    """The views of every step, in any order of asking.

    Args:
        images: decoded images by row; an array [n d] of vectors, or of tokens if it holds signed
            integers.
        rows: rows of the manifest to draw from.
        plan: views to make.
        batch: images per step over all processes; a smaller set shrinks it, to as many as can be
            cut into the micro-batches.
        seed: of order and views.
        image_size: of the encoder [pixels].
        mean: per channel, subtracted from values in [0, 1].
        std: per channel, by which they are then divided.
        rank: of this process.
        world: number of processes; process r takes items r, r + world, ... of each batch, so that
            some may have one more than others.
        accumulate: micro-batches per step.
        threads: that make views; the calling one is one of them.
        worth: what has to be left of a batch before the others are asked to help [s].
        output: numbers of the views (see `make_views`); vectors are always float32. Views in
            uint8 are normalised by `Views.to`: nothing should read their data before.
        pin: put views into memory that a GPU copies from while it computes, so that
            `to(..., non_blocking=True)` does not wait; without one they stay where they are.
        side_at: side of the views of a step [pixels], if not `image_size` throughout.
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
        worth: float = 0.0,
        output: Output = "float32",
        pin: bool = False,
        side_at: Callable[[int], int] | None = None,
    ) -> None:
        self.images, self.rows, self.plan = images, np.asarray(rows, dtype=np.int64), plan
        # Of fewer rows than micro-batches the latter cannot be made, which is said below.
        most = len(rows) // accumulate * accumulate or len(rows)
        self.batch, self.seed, self.accumulate = min(batch, most), seed, accumulate
        self.image_size, self.mean, self.std = image_size, mean, std
        self.rank, self.world = rank, world
        self.output: Output = output
        self.side_at = side_at
        self.pin = pin and torch.cuda.is_available()
        if self.batch % accumulate:
            raise ValueError(
                f"a batch of {self.batch} cannot be cut into {accumulate} equal micro-batches. "
                "Choose a batch that they divide."
            )
        if self.batch // accumulate < world:
            raise ValueError(
                f"micro-batches of {self.batch // accumulate} images leave some of {world} "
                "processes without any. Choose a larger batch, or fewer processes."
            )
        self.worth = worth
        self.pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self.steps_per_epoch = len(self.rows) // self.batch
        self._order: tuple[int, np.ndarray] = (-1, self.rows)
        self._open: WeakSet[Generator[tuple[int, list[Views]], None, None]] = WeakSet()

    def order(self, epoch: int) -> np.ndarray:
        """All rows in the order of an epoch; the incomplete last batch is other images each time.

        Only the last epoch asked for is remembered.
        """
        known = self._order  # another thread may ask for another epoch meanwhile
        if known[0] != epoch:
            known = (epoch, self.rows[permutation(self.seed, len(self.rows), epoch)])
            self._order = known
        return known[1]

    def rows_of(self, step: int) -> np.ndarray:
        """Rows of the global batch of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[place * self.batch : (place + 1) * self.batch]

    def views(self, step: int, micro: int = 0) -> Views:
        """This process's views of a micro-batch of a step."""
        parts = np.array_split(self.rows_of(step), self.accumulate)
        mine = parts[micro][self.rank :: self.world]
        epoch, side = step // self.steps_per_epoch, self.image_size
        if self.side_at is not None:
            side = self.side_at(step)
        return self.make(mine, epoch=epoch, step=step, among=parts[micro], side=side)

    def make(
        self,
        rows: np.ndarray,
        *,
        epoch: int,
        step: int = 0,
        among: np.ndarray | None = None,
        side: int | None = None,
    ) -> Views:
        """The views of given rows, as drawn in an epoch.

        Args:
            rows: of the manifest.
            epoch: number of the epoch.
            step: optimiser step the batch belongs to.
            among: rows of all of the batch, if more.
            side: of the views [pixels]; None for that of the encoder.
        """
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        among = rows if among is None else among
        views = self._made(rows, epoch, step, among, self.image_size if side is None else side)
        return views.pin() if self.pin else views

    def _made(self, rows: np.ndarray, epoch: int, step: int, among: np.ndarray, side: int) -> Views:
        if isinstance(self.images, np.ndarray):
            return self._numbers(self.images[rows], rows, epoch, step, among)
        return make_views(
            self.images.pixels(rows),
            self.plan,
            seed=self.seed,
            epoch=epoch,
            step=step,
            index=rows,
            image_size=side,
            mean=self.mean,
            std=self.std,
            pool=self.pool,
            worth=self.worth,
            output=self.output,
            pin=self.pin,
            among=among,
        )

    def _numbers(
        self, values: np.ndarray, rows: np.ndarray, epoch: int, step: int, among: np.ndarray
    ) -> Views:
        how: dict[str, Any] = {"seed": self.seed, "epoch": epoch, "step": step, "index": rows}
        if values.dtype.kind == "i":
            return make_tokens(values, self.plan, **how, among=among)
        return make_vectors(values, self.plan, **how)

    def batches(self, step: int) -> list[Views]:
        """This process's micro-batches of a step."""
        return [self.views(step, micro) for micro in range(self.accumulate)]

    def ahead(
        self, start: int, stop: int, depth: int = 2
    ) -> Generator[tuple[int, list[Views]], None, None]:
        """(step, its micro-batches) from start to stop, up to `depth` steps ahead (see `ahead`)."""
        made = ahead(((step, self.batches(step)) for step in range(start, stop)), depth)
        self._open.add(made)
        return made

    def close(self) -> None:
        """End the threads; what they are making is finished first."""
        for made in tuple(self._open):
            made.close()
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
