"""The embedded world (`scenes`) as a source of images."""

import threading
from collections import OrderedDict

import numpy as np

from erg.data.scenes import CHUNK, NAMES, factors_of, render
from erg.data.source import DataError, Item, Source


class Synthetic(Source):
    """Scenes of the embedded world, rendered when they are read.

    Args:
        n: number of scenes.
        label: factor that is the label, one of `NAMES`, or None.
        size: side of the images [pixels].
        seed: of the world.
    """

    DEFAULT = 5000

    def __init__(self, n: int, label: str | None = None, *, size: int = 48, seed: int = 0) -> None:
        if n < 1:
            raise DataError(f"synthetic:{n} is empty. Ask for at least one scene.")
        if label is not None and label not in NAMES:
            raise DataError(
                f"the synthetic world has no label {label!r}. Use one of {', '.join(NAMES)}."
            )
        self.n, self.factor, self.size, self.seed = n, label, size, seed
        self.spec = f"synthetic:{n}"
        self.lock = threading.Lock()
        self.blocks: OrderedDict[int, np.ndarray] = OrderedDict()

    @classmethod
    def named(cls, name: str, label: str | None) -> "Synthetic":
        """From `synthetic` or `synthetic:N`.

        Raises:
            DataError: N is no number.
        """
        _, _, count = name.partition(":")
        if ":" in name and not count.isdecimal():
            raise DataError(
                f"{name!r} names no number of scenes. Write for example synthetic:5000."
            )
        return cls(int(count) if count else cls.DEFAULT, label)

    def __len__(self) -> int:
        return self.n

    def path(self, i: int) -> str:
        return f"scene {i:06d}"

    def item(self, i: int) -> Item:
        block, place = divmod(i, CHUNK)
        with self.lock:
            if block not in self.blocks:
                index = np.arange(block * CHUNK, (block + 1) * CHUNK)
                self.blocks[block] = render(index, seed=self.seed, size=self.size)
            self.blocks.move_to_end(block)
            if len(self.blocks) > 64:
                self.blocks.popitem(last=False)
            return self.blocks[block][place]

    def offset(self, i: int) -> int:
        return i

    def label(self, i: int) -> str | None:
        if self.factor is None:
            return None
        number = factors_of(np.array([i]), seed=self.seed)[self.factor][0]
        return NAMES[self.factor][number]

    def describe(self) -> str:
        return f"{self.n:,} synthetic scenes of {self.size} x {self.size} pixels"
