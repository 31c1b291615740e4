"""Images in a column of parquet files, a group of rows at a time."""

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from erg.data.opening import UnreadableImage
from erg.data.places import Place
from erg.data.source import DataError, Item, Source, Spec, label_of, printable

PARQUET = frozenset([".parquet", ".pq"])
"""Endings of tables."""

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
_HELD_BYTES = 1 << 30  # of encoded images kept from the row groups read last
_GROUP_BYTES = 1 << 31  # of encoded images in one row group, which is in memory as a whole
_FEW_ROWS = 1 << 20  # that any file may hold; a larger one at most four for each of its bytes


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
        self.refused: dict[int, str] = {}
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
            if group in self.refused:
                raise UnreadableImage(self.refused[group])
            if group not in self.held:
                self._let_go(self._claimed(*self.groups[group]))
                try:
                    column = self._read_group(*self.groups[group])
                except UnreadableImage as error:
                    self.refused[group] = error.reason
                    raise
                self._let_go(column.nbytes)
                self.held[group] = column
            self.held.move_to_end(group)
            return self.held[group]

    def _let_go(self, size: int) -> None:
        """Forget the row groups used longest ago until one of this size [bytes] has room."""
        while self.held and size + sum(c.nbytes for c in self.held.values()) > _HELD_BYTES:
            self.held.popitem(last=False)

    def _claimed(self, t: int, g: int) -> int:
        """What the images of a row group take, as the table says [bytes]."""
        about = self.tables[t].parquet.metadata.row_group(g)
        chunks = [about.column(c) for c in range(about.num_columns)]
        inside = f"{self.column}."  # the columns of a struct
        return sum(
            c.total_uncompressed_size for c in chunks if f"{c.path_in_schema}.".startswith(inside)
        )

    def _read_group(self, t: int, g: int) -> Any:
        """The images of a row group, weighed singly: a small file may hold a large one often."""
        import pyarrow as pa

        parts: list[Any] = []
        joined: list[Any] = []
        taken = 0
        batches = self.tables[t].parquet.iter_batches(1, row_groups=[g], columns=[self.column])
        try:
            for batch in batches:
                parts.append(batch.column(self.column))
                taken += parts[-1].nbytes
                if taken > _GROUP_BYTES:
                    raise UnreadableImage(
                        f"Its row group holds more than {_GROUP_BYTES >> 30} GiB of images. Write "
                        "the table again with fewer rows a group."
                    )
                if len(parts) == 1024:  # as an array of its own takes more than a small image
                    joined.append(pa.concat_arrays(parts))
                    parts = []
        except (pa.ArrowException, ValueError) as error:
            if isinstance(error, UnreadableImage):
                raise
            raise UnreadableImage("Its row group in the table is damaged.") from error
        kind = self.tables[t].column_type(self.column)
        return pa.concat_arrays([*joined, *parts]) if joined or parts else pa.array([], kind)

    def _strings(self, column: str) -> list[Any]:
        return [v for t in self.tables for v in t.read([column])[column].to_pylist()]

    def _labels(self, column: str) -> list[str | None]:
        found: list[str | None] = []
        for table in self.tables:
            names = _label_names(table.schema, column)
            found += [label_of(v, names) for v in table.read([column])[column].to_pylist()]
        return found

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
    except (pa.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:
        if isinstance(error, DataError):
            raise
        names = ", ".join(printable(file.name) for file in files[:3])
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{names} cannot be read as parquet ({reason}). Write the table again, for example "
            "with pyarrow."
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
