"""Images, vectors or sequences that are the rows of something: a parquet or .npy file, an array, a
text."""

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erg.data.decode import UnreadableImage
from erg.data.places import Place
from erg.data.source import DataError, Item, Source, Spec, as_rgb, printable

PARQUET = frozenset([".parquet", ".pq"])
"""Endings of tables."""

TEXTS = frozenset([".txt"])
"""Endings of texts."""

SEQUENCE = 128  # bytes of a text in a row
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
_HELD_BYTES = 1 << 30  # of encoded images kept from the row groups read last
_GROUP_BYTES = 1 << 31  # of encoded images in one row group, which is in memory as a whole
_FEW_ROWS = 1 << 20  # that any file may hold; a larger one at most four for each of its bytes


# Parquet -------------------------------------------------------------------------------------


class Parquet(Source):
    """Images in a column of one or more parquet files.

    Row groups are read whole; the ones used last stay in memory up to 1 GiB, and at least one, of
    at most 2 GiB.

    Args:
        files: the tables, in order.
        spec: what `open_source` opens again.
        label: column of the labels, or None.
        column: of the images; None finds it by name and type.
    """

    def __init__(
        self, files: Sequence[Place], spec: Spec, label: str | None, column: str | None = None
    ) -> None:
        self.files, self.spec = files, spec
        self.tables = [_opened(file) for file in files]
        schemas = [table.schema for table in self.tables]
        self.column = column or _image_column(schemas[0], files[0])
        for schema, file in zip(schemas, files, strict=True):
            for column in (self.column, label):
                _check_column(schema, column, file)
        counts = [
            (t, g, table.parquet.metadata.row_group(g).num_rows)
            for t, table in enumerate(self.tables)
            for g in range(table.parquet.num_row_groups)
        ]
        self.groups = [(t, g) for t, g, _ in counts]
        self.starts = np.cumsum([0, *(n for _, _, n in counts)])
        self.lock = threading.Lock()
        self.held: OrderedDict[int, Any] = OrderedDict()
        self.names = self._strings("path") if _has_strings(schemas, "path") else None
        self.labels = self._labels(label) if label else None
        self.hint = ""
        if label is None and any("label" in schema.names for schema in schemas):
            self.hint = "; the column label is not used (ask for it with the label 'label')"

    def __len__(self) -> int:
        return int(self.starts[-1])

    def path(self, i: int) -> str:
        name = self.names[i] if self.names is not None else None
        return printable(name) if name else f"row {i:06d}"

    def item(self, i: int) -> Item:
        group = int(np.searchsorted(self.starts, i, side="right")) - 1
        column, place = self._column_of(group), i - int(self.starts[group])
        if place >= len(column):
            raise UnreadableImage("The table holds fewer rows than it says.")
        value = column[place].as_py()
        value = value["bytes"] if isinstance(value, dict) else value
        if value is None:
            raise UnreadableImage("The table holds no image in this row.")
        return value

    def _column_of(self, group: int) -> Any:
        """The images of a row group, read by one thread at a time."""
        with self.lock:
            if group not in self.held:
                self.held[group] = self._read_group(*self.groups[group])
            self.held.move_to_end(group)
            while len(self.held) > 1 and sum(c.nbytes for c in self.held.values()) > _HELD_BYTES:
                self.held.popitem(last=False)
            return self.held[group]

    def _read_group(self, t: int, g: int) -> Any:
        """The images of a row group, a few at a time: a small file may hold one large one often."""
        import pyarrow as pa

        parts: list[Any] = []
        batches = self.tables[t].parquet.iter_batches(64, row_groups=[g], columns=[self.column])
        try:
            for batch in batches:
                parts.append(batch.column(self.column))
                if sum(part.nbytes for part in parts) > _GROUP_BYTES:
                    raise UnreadableImage(
                        f"Its row group holds more than {_GROUP_BYTES >> 30} GiB of images. Write "
                        "the table again with fewer rows a group."
                    )
        except (pa.ArrowException, ValueError) as error:
            if isinstance(error, UnreadableImage):
                raise
            raise UnreadableImage("Its row group in the table is damaged.") from error
        kind = self.tables[t].column_type(self.column)
        return pa.concat_arrays(parts) if parts else pa.array([], kind)

    def _strings(self, column: str) -> list[Any]:
        return [v for t in self.tables for v in t.read([column])[column].to_pylist()]

    def _labels(self, column: str) -> list[str | None]:
        names = _label_names(self.tables[0].schema, column)
        return [_label(value, names) for value in self._strings(column)]

    def masks(self, column: str) -> "Parquet":
        """The same rows, of which another column is the images.

        Raises:
            DataError: there is no such column, or it cannot hold images.
        """
        for table, file in zip(self.tables, self.files, strict=True):
            _check_column(table.schema, column, file)
            if not _is_image_type(kind := table.schema.field(column).type):
                raise DataError(
                    f"the column {column!r} of {printable(file.name)} is {kind}, no encoded "
                    "images. Name a column of masks."
                )
        return Parquet(self.files, self.spec, None, column)

    def offset(self, i: int) -> int:
        return i

    def label(self, i: int) -> str | None:
        return self.labels[i] if self.labels is not None else None

    def describe(self) -> str:
        many = f"{len(self.files)} tables" if len(self.files) > 1 else printable(self.files[0].name)
        return f"{len(self):,} images in column {self.column} of {many}{self.hint}"


def open_parquet(files: Sequence[Place], spec: str, label: str | None) -> Parquet:
    """Parquet files as one source.

    Raises:
        DataError: they are no parquet files, or have no column of images or none called `label`.
    """
    import pyarrow as pa

    try:
        table = Parquet(files, spec, label)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        names = ", ".join(printable(file.name) for file in files[:3])
        raise DataError(
            f"{names} cannot be read as parquet ({str(error).splitlines()[0]}). Write the table "
            "again, for example with pyarrow."
        ) from error
    if not len(table):
        raise DataError(f"{printable(files[0].name)} has no rows. Give a table with images.")
    return table


def _opened(place: Place) -> Any:
    """A table that claims no more rows than a file of its size can hold.

    Raises:
        pyarrow.ArrowException, OSError, ValueError: it is none.
    """
    from erg.parquet import Table

    stream = place.open()
    try:
        table = Table(stream)
        if table.rows > max(_FEW_ROWS, 4 * table.size):
            raise ValueError(f"it says it holds {table.rows:,} rows in {table.size:,} bytes")
    except BaseException:
        stream.close()
        raise
    weakref.finalize(table, stream.close)
    return table


def _is_image_type(kind: Any) -> bool:
    """Whether a column of this type can hold encoded images: bytes, or struct {bytes, ...}."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_image_type(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_column(schema: Any, file: Place) -> str:
    fit = [field.name for field in schema if _is_image_type(field.type)]
    named = [name for wanted in _IMAGE_COLUMNS for name in fit if name.lower() == wanted]
    if named or len(fit) == 1:
        return (named or fit)[0]
    what = f"several columns of bytes ({', '.join(fit)})" if fit else "no column of encoded images"
    raise DataError(
        f"{printable(file.name)} has {what} among {', '.join(schema.names)}. Name the column of "
        "encoded images 'image'."
    )


def _check_column(schema: Any, column: str | None, file: Place) -> None:
    if column is not None and schema.names.count(column) != 1:
        raise DataError(
            f"{printable(file.name)} has no column {column!r}. "
            f"Its columns are {', '.join(schema.names)}."
        )


def _has_strings(schemas: list[Any], column: str) -> bool:
    import pyarrow as pa

    return all(
        column in schema.names and pa.types.is_string(schema.field(column).type)
        for schema in schemas
    )


def _label_names(schema: Any, column: str) -> list[str]:
    """Names of integer labels: `label_names` (a JSON list) of the schema, `<column>_names` for
    another column, or what Hugging Face writes."""
    metadata = schema.metadata or {}
    try:
        names = json.loads(metadata.get(f"{column}_names".encode(), b"null"))
        if names is None:
            features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
            names = features[column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _label(value: Any, names: list[str]) -> str | None:
    if value is None:
        return None
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return str(value)


# Arrays --------------------------------------------------------------------------------------


def open_npy(path: Path, label: str | None) -> Source:
    """A .npy file, mapped into memory; one that holds Python objects is refused.

    Raises:
        DataError: it holds no images and no vectors.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("it holds several arrays")
    except Exception as error:  # its header is Python, whose parser has errors of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path.name} is no array of numbers that can be read ({reason}). Save it with "
            "numpy.save as uint8 or float32."
        ) from error
    return open_array(array, printable(path.name), str(path), label)


def open_array(array: np.ndarray, name: str, spec: Spec, label: str | None) -> Source:
    """An array of images, of vectors or of sequences of tokens.

    Raises:
        DataError: its shape or its numbers are none of them, or a label was asked for.
    """
    advice = (
        "Give uint8 or float images [n h w], [n h w 3] or [n 3 h w], float vectors [n d], or "
        "sequences of tokens [rows n] in int64."
    )
    what = f"{name} has shape {list(array.shape)} and type {array.dtype}"
    if label is not None:
        raise DataError(
            f"{name} holds no labels, but {label!r} was asked for. Leave out the label."
        )
    whole = array.dtype.kind in "iu" and array.dtype != np.uint8
    if array.size and array.ndim == 2 and whole:
        return Tokens(array, name, spec, vocabulary=int(array.max()) + 1)
    if not array.size or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise DataError(f"{what}. {advice}")
    if array.ndim == 2:
        return Vectors(array, name, spec)
    if array.ndim == 3 and array.shape[-1] == 3:
        raise DataError(f"{what}, which looks like one colour image. Give [1 h w 3] for one image.")
    colours = array.ndim == 4 and bool({1, 3} & {array.shape[1], array.shape[3]})
    if array.ndim != 3 and not colours:
        raise DataError(f"{what}. {advice}")
    scale = 1.0 if array.dtype == np.uint8 else _scale(array, name)
    return Pictures(array, name, spec, scale=scale)


def _scale(array: np.ndarray, name: str) -> float:
    """255 for floats in [0, 1], 1 for [0, 255]; looks at every number, a slice at a time."""
    low, high = np.inf, -np.inf
    for i in range(0, len(array), 256):
        part = array[i : i + 256]
        low, high = np.minimum(low, part.min()), np.maximum(high, part.max())  # they keep a NaN
    if not (low >= 0 and high <= 255):
        raise DataError(
            f"{name} holds numbers from {low:.3g} to {high:.3g}. Scale images to [0, 1] or "
            "[0, 255], without subtracting a mean."
        )
    return 255.0 if high <= 1 else 1.0


class Pictures(Source):
    """Images of one size in one array.

    Args:
        array: [n h w], [n h w 3] or [n 3 h w].
        name: what to call it.
        spec: the path it was mapped from, or None.
        scale: what its numbers are multiplied with to fill [0, 255].
    """

    def __init__(self, array: np.ndarray, name: str, spec: Spec, *, scale: float) -> None:
        self.array, self.name, self.spec, self.scale = array, name, spec, scale

    def __len__(self) -> int:
        return len(self.array)

    def path(self, i: int) -> str:
        return f"{i:06d}"

    def item(self, i: int) -> Item:
        return as_rgb(np.asarray(self.array[i]), self.scale)

    def offset(self, i: int) -> int:
        return i

    def label(self, i: int) -> str | None:
        return None

    def describe(self) -> str:
        return f"{len(self):,} images in {self.name}, shape {list(self.array.shape)}"


class Vectors(Source):
    """Vectors, one a row. `values` holds them all.

    Args:
        values: [n d].
        name: what to call it.
        spec: the path it was mapped from, or None.
    """

    kind = "array"

    def __init__(self, values: np.ndarray, name: str, spec: Spec) -> None:
        self.values, self.name, self.spec = values, name, spec

    def __len__(self) -> int:
        return len(self.values)

    def path(self, i: int) -> str:
        return f"{i:06d}"

    def item(self, i: int) -> Item:
        vector = np.asarray(self.values[i], dtype=np.float32)
        if not np.isfinite(vector).all():
            raise UnreadableImage("The vector holds NaN or infinity.")
        return vector

    def offset(self, i: int) -> int:
        return i

    def label(self, i: int) -> str | None:
        return None

    def describe(self) -> str:
        return f"{len(self):,} vectors of {self.values.shape[1]:,} numbers in {self.name}"


# Sequences -----------------------------------------------------------------------------------


def open_text(path: Path, label: str | None) -> Source:
    """The bytes of a text, cut into sequences; the last one may be shorter.

    Raises:
        DataError: it is empty, or a label was asked for.
    """
    name = printable(path.name)
    if label is not None:
        raise DataError(
            f"{name} holds no labels, but {label!r} was asked for. Leave out the label."
        )
    content = np.fromfile(path, dtype=np.uint8)
    if not len(content):
        raise DataError(f"{name} is empty. Give a text that is not.")
    rows = np.full((-(-len(content) // SEQUENCE), SEQUENCE), -1, dtype=np.int16)
    rows.reshape(-1)[: len(content)] = content
    return Tokens(rows, name, str(path), vocabulary=256)


class Tokens(Source):
    """Sequences of tokens, one a row. `values` holds them all.

    Args:
        values: whole numbers [rows n], with -1 behind the end of shorter sequences.
        name: what to call it.
        spec: the path it was read from, or None.
        vocabulary: tokens are smaller than this.
    """

    kind = "array"

    def __init__(self, values: np.ndarray, name: str, spec: Spec, *, vocabulary: int) -> None:
        self.values, self.name, self.spec, self.vocabulary = values, name, spec, vocabulary

    def __len__(self) -> int:
        return len(self.values)

    def path(self, i: int) -> str:
        return f"{i:06d}"

    def item(self, i: int) -> Item:
        tokens = np.asarray(self.values[i], dtype=np.int64)
        length = int((tokens >= 0).sum())
        if not length:
            raise UnreadableImage("It holds no token, only numbers below 0.")
        if tokens[:length].min() < 0 or tokens.min() < -1:
            raise UnreadableImage("Its numbers are below 0 elsewhere than behind its end.")
        return tokens

    def offset(self, i: int) -> int:
        return i

    def label(self, i: int) -> str | None:
        return None

    def describe(self) -> str:
        rows, n = self.values.shape
        return f"{rows:,} sequences of {n:,} tokens, {self.vocabulary:,} different, in {self.name}"
