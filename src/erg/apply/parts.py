"""Vectors in parts: a file a shard of the data, made by any number of processes.

Shards are cut by number of item alone, so that any number of processes makes the same parts, and
goes on with what others have left. A part is whole or not there, and says what it was made of.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erg import distributed
from erg.apply.embed import (
    Count,
    Embedder,
    Opened,
    Tell,
    check_source,
    in_one_pass,
    open_for,
    origin,
    with_rows,
)
from erg.data.manifest import check_share
from erg.data.source import DataError, Source, open_source
from erg.durable import explained
from erg.embeddings import Embeddings, merge
from erg.encoders import Encoder
from erg.train.checkpoint import state_hash
from erg.train.features import device_of
from erg.train.fitted import Fitted
from erg.train.preempt import Stopped, Watch
from erg.train.processes import leave_group

SHARD = 4096
"""Items of a part."""


class Parts:
    """The vectors of a source, in parts.

    Args:
        model: to embed with; the same on all processes.
        source: of the items; the same on all processes.
        folder: of the parts; seen by all processes. It is made, but not what it stands in.
        label: where labels are found, to be kept beside the vectors.
    """

    def __init__(self, model: Embedder, source: Source, folder: Path, label: str | None) -> None:
        check_source(model.encoder, source)
        self.model, self.source, self.folder, self.label = model, source, folder, label
        starts = range(0, len(source), SHARD)
        self.shards = [range(i, min(i + SHARD, len(source))) for i in starts]
        self.weights = state_hash(model.module)

    def file(self, shard: int) -> Path:
        """Of a part."""
        return self.folder / f"part-{shard:06d}.parquet"

    def about(self, shard: int) -> dict[str, Any]:
        """What a part is made of: weights, size of images, and items by name and place."""
        names = hashlib.blake2b(digest_size=16)
        for i in self.shards[shard]:
            names.update(f"{self.source.path(i)}\0{self.source.offset(i)}\0".encode())
        return {
            "weights": self.weights,
            "image_size": self.model.encoder.image_size,
            "precision": str(self.model.autocast),
            "items": names.hexdigest(),
            "label": self.label,
        }

    def read(self, shard: int) -> Embeddings | None:
        """A part; None where it is missing, damaged or made of something else."""
        try:
            found = Embeddings.load(self.file(shard))
        except (OSError, ValueError):
            return None
        return found if found.origin.get("about") == self.about(shard) else None

    @distributed.counting_on_others()
    def make(self, progress: Count | None = None) -> None:
        """Make what is missing, each process its shards: r, r + world, ... of process r.

        After every shard the processes wait for each other, so that one that is asked to stop
        stops all.

        Raises:
            Stopped: a signal asked for it; whole parts are kept.
            Lost: another process has died; whole parts are kept.
        """
        with explained(self.folder):
            self.folder.mkdir(exist_ok=True)
        world, device = distributed.world(), self.model.device or device_of(self.model.module)
        with Watch() as watch:
            for first in range(0, len(self.shards), world):
                mine = first + distributed.rank()
                if mine < len(self.shards) and not watch.code and self.read(mine) is None:

                    def count(n: int, before: int = first * SHARD) -> None:
                        if watch.code:
                            raise _Asked
                        if progress is not None:
                            progress(min(before + world * n, len(self.source)), len(self.source))

                    self._make(mine, count)
                if distributed.agree(watch.code != 0, device):
                    raise Stopped(
                        watch.code or 75, None,
                        "with the vectors so far kept. The same command goes on with them.",
                    )  # fmt: skip
                if progress is not None:
                    done = min(len(self.source), (first + world) * SHARD)
                    progress(done, len(self.source))

    def _make(self, shard: int, count: Callable[[int], None]) -> None:
        done = 0

        def counted(n: int) -> None:
            nonlocal done
            done += n
            count(done)

        items = self.shards[shard]
        try:
            rows, vectors = in_one_pass(self.model, self.source, items, counted)
        except _Asked:
            return
        skipped = Counter(row.reason for row in rows if row.status != "ok")
        told = {"about": self.about(shard), "skipped": dict(skipped)}
        with_rows(vectors, rows, items, self.label is not None, told).save(self.file(shard))

    def check(self, max_skipped: float) -> None:
        """Whether all parts are there and enough items could be read.

        Raises:
            DataError: a part is missing or of other data, or too many items are unreadable.
        """
        readable, skipped = 0, Counter[str]()
        for shard in range(len(self.shards)):
            found = self.read(shard)
            if found is None:
                raise DataError(
                    f"{self.file(shard)} is not what it should be: the data have changed, or are "
                    "not the same for all processes. Give every process the same data, and repeat "
                    "the command."
                )
            readable += len(found)
            skipped.update(found.origin["skipped"])

        def summary() -> str:
            return "\n".join(f"{n:,} skipped: {reason}" for reason, n in skipped.most_common(10))

        check_share(self.source, readable, len(self.source), summary, max_skipped)

    def drop(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Asked(Exception):
    """A signal came while a shard was being embedded: what there is of it is dropped."""


def embed_to_file(
    model: Embedder,
    data: Any,
    out: Path,
    *,
    label: str | None = None,
    max_skipped: float = 0.2,
    progress: Count | None = None,
) -> tuple[int, int] | None:
    """Every readable image of `data` as a row of a parquet file, by all processes of the group.

    Until it is whole its parts stand beside it in `OUT.parts`, and the same call goes on with them.
    Memory holds the vectors of one shard.

    Args:
        model: to embed with.
        data: anything `open_source` opens.
        out: the file; only the first process writes it, when all others are done.
        label: where labels are found, to be kept beside the vectors.
        max_skipped: largest share of unreadable items.
        progress: called with (items done, items in all).

    Returns:
        How many vectors of how many values; None on other processes than the first.

    Raises:
        Stopped: a signal asked for it; whole parts are kept.
        ValueError: the data cannot be used, or a folder is where the file is to be.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder. Name a file with --out.")
    source = data if isinstance(data, Source) else open_source(data, label=label)
    parts = Parts(model, source, out.with_name(out.name + ".parts"), label)
    lead = distributed.rank() == 0
    try:
        parts.make(progress)
    finally:
        leave_group()
    if not lead:
        return None
    parts.check(max_skipped)
    files = [parts.file(shard) for shard in range(len(parts.shards))]
    found = merge(files, out, origin(model, data))
    parts.drop()
    return found


@dataclass(frozen=True)
class Shared:
    """The vectors that scores need, made by all processes of the group.

    Args:
        fitted: the trained run.
        start: its encoder before training.
        folder: of the parts of all sets; removed at the end.
    """

    fitted: Fitted
    start: Encoder
    folder: Path

    def open(
        self, sets: dict[str, Any], *, label: str | None, tell: Tell, progress: Count | None = None
    ) -> dict[str, Opened] | None:
        """Data with the vectors of encoder and start; None on other processes than the first.

        Raises:
            Stopped: a signal asked for it; whole parts are kept.
            DataError: the data cannot be used, or changed meanwhile.
        """
        with explained(self.folder):
            self.folder.mkdir(exist_ok=True)
        both = self._both()
        all_parts = {
            name: Parts(both, open_source(data, label=label), self.folder / name, label)
            for name, data in sets.items()
        }
        lead = distributed.rank() == 0
        try:
            for parts in all_parts.values():
                tell(f"Embedding {parts.source.describe()}.")
                parts.make(progress)
        finally:
            leave_group()
        if not lead:
            return None
        opened = {name: self._opened(parts, tell) for name, parts in all_parts.items()}
        shutil.rmtree(self.folder, ignore_errors=True)
        return opened

    def _both(self) -> Embedder:
        """Encoder and start side by side, so that every image is decoded once."""
        method, start, run = self.fitted.method, self.start, self.fitted.run

        def embed(data: Tensor) -> Tensor:
            return torch.cat([method.encode(data), start(data.float())], dim=1)

        return Embedder(
            "encoder and start", nn.ModuleList([method, start]), method.encoder, embed,
            run.autocast(device_of(method)),
        )  # fmt: skip

    def _opened(self, parts: Parts, tell: Callable[[str], None]) -> Opened:
        opened = open_for(self.fitted.encoder, parts.source, label=parts.label, tell=tell)
        parts.check(max_skipped=1.0)
        found = [part for i in range(len(parts.shards)) if (part := parts.read(i)) and len(part)]
        ids = np.concatenate([part.ids for part in found])
        if not np.array_equal(ids, opened.rows):
            parts.drop()
            raise DataError(
                f"{parts.source.describe()} changed while it was embedded. Evaluate again."
            )
        vectors = np.concatenate([part.vectors for part in found])
        width = vectors.shape[1] - self.start.dim
        known: dict[str, np.ndarray] = {}
        for module, share in (
            (self.fitted.method, vectors[:, :width]),
            (self.start, vectors[:, width:]),
        ):
            by_row = np.zeros((len(opened.manifest), share.shape[1]), dtype=np.float32)
            by_row[ids] = share
            known[state_hash(module)] = by_row
        return replace(opened, known=known)
