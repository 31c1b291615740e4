"""The manifest: every item of a source looked at once, in an order frozen from then on.

The row of an item is its number everywhere: in views, embeddings, pictures. Items that cannot be
read keep their row, with the reason.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from erg.data.decode import image_size, measure_and_load
from erg.data.opening import MAX_PIXELS, UnreadableImage
from erg.data.source import DataError, Item, Source, decode_item
from erg.durable import open_regular, whole_file

T = TypeVar("T")

FORMAT = "1"
"""Of the file; a reader exists for each."""

Sink = Callable[[int, np.ndarray | None], None]
"""Takes the decoded pixels of each item in order; None for an item that is skipped."""

_BLOCK = 8  # items per task: handing over a task costs about as much as a small image


class Row(NamedTuple):
    """What the manifest says of one item.

    Args:
        path: its name relative to the source.
        offset: where it starts in its file [bytes], or its row in a table or array.
        size: of the encoded item [bytes].
        hash: BLAKE2b-128 of its content, hexadecimal; empty if it is unreadable.
        height: of the upright image [pixels]; 1 for a vector, 0 if unreadable.
        width: as height; the length of a vector.
        status: `ok` or `skipped`.
        reason: why it is skipped, one sentence.
        label: where labels were asked for.
    """

    path: str
    offset: int
    size: int
    hash: str
    height: int
    width: int
    status: str
    reason: str
    label: str | None


def default_threads() -> int:
    """The cores this process may use, at most 8: decoding rarely gains from more.

    Those of a machine are shared among the processes that torchrun starts on it.
    """
    counted = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if counted else os.cpu_count() or 1
    return min(8, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class Manifest:
    """Rows of items as an Arrow table, with the columns of `Row`.

    Args:
        table: the rows.
    """

    def __init__(self, table: Any) -> None:
        self.table = table
        self.ok = np.flatnonzero(self._column("status") == "ok").astype(np.int64)
        """Rows of readable items."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Manifest":
        """A manifest of these rows."""
        import pyarrow as pa

        columns = list(zip(*rows, strict=True)) or [()] * len(Row._fields)
        arrays = [pa.array(c, type=f.type) for c, f in zip(columns, _schema(), strict=True)]
        return cls(pa.Table.from_arrays(arrays, schema=_schema()))

    def __len__(self) -> int:
        return self.table.num_rows

    def _column(self, name: str) -> np.ndarray:
        return self.table[name].to_numpy(zero_copy_only=False)

    @property
    def paths(self) -> list[str]:
        """Of all rows."""
        return self.table["path"].to_pylist()

    @property
    def hashes(self) -> np.ndarray:
        """Content hashes of all rows, an array of str."""
        return self._column("hash")

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of all rows, int64 [n 2], in pixels."""
        return np.stack([self._column("height"), self._column("width")], axis=1).astype(np.int64)

    @property
    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Codes int64 [n] (-1 where there is no label) and the names they number, sorted."""
        values = self.table["label"].to_pylist()
        names = sorted({value for value in values if value is not None})
        code: dict[str | None, int] = {name: i for i, name in enumerate(names)}
        return np.array([code.get(value, -1) for value in values], dtype=np.int64), names

    @property
    def identity(self) -> str:
        """A hash of the contents of all rows in their order: equal for equal data."""
        return digest("\n".join(self.hashes).encode())

    def save(self, path: Path) -> None:
        """Write as parquet; the file is complete or not there at all."""
        import pyarrow.parquet as pq

        with whole_file(path) as stream:
            pq.write_table(self.table, stream, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read what `save` wrote.

        Raises:
            DataError: it is no manifest of a known format.
        """
        import pyarrow as pa

        from erg.parquet import Table

        try:
            with open_regular(path) as stream:
                file = Table(stream)
                if not file.schema.equals(_schema(), check_metadata=True):
                    raise ValueError("its columns are others")
                table = file.read(Row._fields)
            _check_numbers(table)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DataError(
                f"{path} is no manifest of format {FORMAT} ({reason}). Start a new run, which "
                "writes one."
            ) from error
        return cls(table)

    def summary(self) -> str:
        """How many items, of what sizes, and why the others are skipped; a few lines of text."""
        sizes = self.sizes[self.ok]
        lines = [f"{len(self.ok):,} readable items of {len(self):,}"]
        if len(sizes):
            (low_h, low_w), (high_h, high_w) = sizes.min(axis=0), sizes.max(axis=0)
            span = f"{low_h} x {low_w}"
            if (low_h, low_w) != (high_h, high_w):
                span = f"{low_h} to {high_h} x {low_w} to {high_w}"
            lines.append(f"height x width {span} pixels")
        repeated = len(self.ok) - len(set(self.hashes[self.ok]))
        if repeated:
            lines.append(f"{repeated:,} exact duplicates")
        skipped = self._column("reason")[self._column("status") == "skipped"]
        lines += [f"{n:,} skipped: {reason}" for reason, n in Counter(skipped).most_common(10)]
        return "\n".join(lines)


def _check_numbers(table: Any) -> None:
    """Whether sizes are those of images or vectors: kernels trust them.

    Raises:
        ValueError: they are not, or something is missing.
    """
    if any(table[name].null_count for name in Row._fields if name != "label"):
        raise ValueError("a value is missing")
    height, width = (table[name].to_numpy().astype(np.int64) for name in ("height", "width"))
    readable = table["status"].to_numpy() == "ok"
    small = (height >= readable) & (width >= readable) & (height * width <= MAX_PIXELS)
    if not small.all():
        row = int(np.argmin(small))
        raise ValueError(f"row {row} is {height[row]} x {width[row]} pixels")
    if not (
        table["offset"].to_numpy().min(initial=0) >= 0 <= table["size"].to_numpy().min(initial=0)
    ):
        raise ValueError("an offset or a size is negative")


def _schema() -> Any:
    import pyarrow as pa

    kinds = [pa.string(), pa.int64(), pa.int64(), pa.string(), pa.int32(), pa.int32()]
    kinds += [pa.string()] * 3
    fields = [pa.field(name, kind) for name, kind in zip(Row._fields, kinds, strict=True)]
    return pa.schema(fields, metadata={"format": FORMAT})


# Building ------------------------------------------------------------------------------------


def build_manifest(
    source: Source,
    *,
    max_skipped: float = 0.2,
    threads: int | None = None,
    decode: bool = True,
    short_side: int | None = None,
    sink: Sink | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Look at every item of a source once.

    Args:
        source: of the items.
        max_skipped: largest share of unreadable items.
        threads: that read and decode; None: as many as there are cores, at most 8.
        decode: decode every image, so that damaged ones are known; else only headers are read.
        short_side: of the images handed to the sink (see `load_rgb`).
        sink: called in this thread with each item in order; needs `decode`.
        progress: called with the number of items done and of all items.

    Raises:
        DataError: more than `max_skipped` of the items are unreadable, or all.
    """
    rows: list[Row] = []
    looked = look_at(
        source, threads=threads, decode=decode, short_side=short_side, keep=sink is not None
    )
    for i, (row, pixels) in enumerate(looked):
        rows.append(row)
        if sink is not None:
            sink(i, pixels)
        if progress is not None and (i % _BLOCK == _BLOCK - 1 or i + 1 == len(source)):
            progress(i + 1, len(source))
    return manifest_of(source, rows, max_skipped=max_skipped)


def look_at(
    source: Source,
    *,
    threads: int | None = None,
    decode: bool = True,
    short_side: int | None = None,
    keep: bool = True,
    items: Sequence[int] | None = None,
) -> Iterator[tuple[Row, np.ndarray | None]]:
    """What the manifest says of every item, in order, with its pixels if they are to be kept.

    Args:
        source: of the items.
        threads: as in `build_manifest`.
        decode: as in `build_manifest`.
        short_side: as in `build_manifest`.
        keep: whether pixels come along; None for an item that is skipped.
        items: numbers of those to look at; None for all.
    """

    def look(i: int) -> tuple[Row, np.ndarray | None]:
        row, pixels = _look(source, i, decode, short_side)
        return row, pixels if keep else None

    return in_threads(look, range(len(source)) if items is None else items, source, threads)


def manifest_of(source: Source, rows: Sequence[Row], *, max_skipped: float = 0.2) -> Manifest:
    """The manifest of all rows of a source.

    Raises:
        DataError: more than `max_skipped` of the items are unreadable, or all.
    """
    manifest = Manifest.of(rows)
    check_share(source, len(manifest.ok), len(manifest), manifest.summary, max_skipped)
    return manifest


def in_threads(
    function: Callable[[int], T], items: Sequence[int], source: Source, threads: int | None
) -> Iterator[T]:
    """`function` of every item, in order, a few blocks ahead; errors name the item."""

    def block(start: int) -> list[T]:
        return [with_name(source, function, i) for i in items[start : start + _BLOCK]]

    count = threads or default_threads()
    pool = ThreadPoolExecutor(count, thread_name_prefix="erg-decode")
    ahead: deque[Future[list[T]]] = deque()
    try:
        for start in range(0, len(items), _BLOCK):
            ahead.append(pool.submit(block, start))
            if len(ahead) > 2 * count:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def with_name(source: Source, function: Callable[[int], T], i: int) -> T:
    """`function(i)`, whose errors carry the name of item i."""
    try:
        return function(i)
    except Exception as error:
        error.add_note(f"This happened while reading {source.path(i)!r}.")
        raise


def _look(
    source: Source, i: int, decode: bool, short_side: int | None
) -> tuple[Row, np.ndarray | None]:
    path, offset = source.path(i), source.offset(i)
    try:
        item = source.item(i)
        (height, width), pixels = _measured(item, decode, short_side)
    except UnreadableImage as error:
        reason = error.reason
    except OSError as error:
        reason = f"It cannot be read ({error.strerror or type(error).__name__})."
    else:
        size = item.nbytes if isinstance(item, np.ndarray) else len(item)
        label = source.label(i)
        found = Row(path, offset, size, content_hash(item), height, width, "ok", "", label)
        return found, pixels
    return Row(path, offset, 0, "", 0, 0, "skipped", reason, None), None


def _measured(
    item: Item, decode: bool, short_side: int | None
) -> tuple[tuple[int, int], np.ndarray | None]:
    """Height and width of an item as the manifest gives them, and its pixels where decoded."""
    if isinstance(item, np.ndarray):
        extent = (item.shape[0], item.shape[1]) if item.ndim == 3 else (1, len(item))
        return extent, decode_item(item, short_side) if decode else None
    if decode:
        return measure_and_load(item, short_side=short_side)
    return image_size(item), None


def content_hash(item: Item) -> str:
    """BLAKE2b-128 of an encoded file or of raw values, hexadecimal."""
    return digest(item.tobytes() if isinstance(item, np.ndarray) else item)


def digest(data: bytes, key: bytes = b"") -> str:
    return hashlib.blake2b(data, digest_size=16, key=key).hexdigest()


def check_share(
    source: Source, readable: int, looked: int, summary: Callable[[], str], max_skipped: float
) -> None:
    """Whether enough items of a source can be read.

    Args:
        source: of the items.
        readable: items that can be read.
        looked: items looked at.
        summary: says why the others cannot.
        max_skipped: largest share of unreadable items.

    Raises:
        DataError: more than `max_skipped` of the items are unreadable, or all.
    """
    if not readable:
        raise DataError(
            f"none of {source.describe()} can be read.\n{summary()}\n"
            "Give images of a common format (JPEG, PNG, WebP, TIFF, ...)."
        )
    if looked - readable > max_skipped * looked:
        raise DataError(
            f"{looked - readable:,} of {looked:,} items of {source.describe()} are unreadable, "
            f"more than the allowed {max_skipped:.0%}.\n{summary()}\n"
            "Remove or repair them, or allow more with max_skipped."
        )
