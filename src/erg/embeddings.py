"""Embeddings: the currency after training. Vectors with where they came from, in one parquet file.

Letters in shapes: n items, d features.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float32, Int, Shaped

from erg.durable import open_regular, whole_file
from erg.parquet import Table

FORMAT = "1"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One vector per item, in the order of `ids`.

    Args:
        vectors: what the encoder made of each item; any float type, kept as float32.
        ids: row of each item in its source's manifest; kept as int64.
        labels: class of each item, "" where an item has none; None where no item has one.
        origin: what made the vectors (encoder, data, versions); anything JSON can hold.
        paths: path of each item inside its source.

    Raises:
        ValueError: the arrays do not fit together.
    """

    vectors: Float[np.ndarray, "n d"]
    ids: Int[np.ndarray, " n"]
    labels: Shaped[np.ndarray, " n"] | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    paths: list[str] | None = None

    def __post_init__(self) -> None:
        vectors, ids = np.asarray(self.vectors), np.asarray(self.ids)
        if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind != "f":
            raise ValueError(
                f"vectors have shape {vectors.shape} and type {vectors.dtype}. "
                "Pass floats [n d], one row per item."
            )
        if ids.dtype.kind not in "iu":
            raise ValueError(f"ids have type {ids.dtype}. Pass integers, one per vector.")
        object.__setattr__(self, "vectors", np.ascontiguousarray(vectors, dtype=np.float32))
        object.__setattr__(self, "ids", ids.astype(np.int64))
        if self.labels is not None:
            object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.str_))
        if self.paths is not None:
            object.__setattr__(self, "paths", list(self.paths))
        for name in ("ids", "labels", "paths"):
            value = getattr(self, name)
            if value is not None and np.shape(value) != (len(self),):
                raise ValueError(
                    f"{name} have shape {np.shape(value)} for {len(self)} vectors. "
                    "Pass one per vector."
                )

    def __len__(self) -> int:
        return self.vectors.shape[0]

    def __getitem__(
        self, rows: slice | Bool[np.ndarray, " n"] | Int[np.ndarray, " m"]
    ) -> "Embeddings":
        """Some of the items, with everything known about them.

        Args:
            rows: a slice, a mask, or row numbers in the wanted order.

        Raises:
            TypeError: rows is a single number.
        """
        if not isinstance(rows, slice | np.ndarray):
            raise TypeError(
                f"embeddings are indexed with a slice or an array, not {rows!r}. "
                "For one item use e[i : i + 1], for its vector e.vectors[i]."
            )
        chosen = np.arange(len(self))[rows]
        return Embeddings(
            vectors=self.vectors[chosen],
            ids=self.ids[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            origin=self.origin,
            paths=None if self.paths is None else [self.paths[i] for i in chosen],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one parquet file (format 1), whole or not at all.

        Columns: id int64, path string or null, vector float32 [d], label string or null. In paths
        that are not Unicode the odd bytes are written as escapes.

        Args:
            path: where to; an older file of that name is replaced at the end.

        Raises:
            TypeError, ValueError: `origin` holds something that JSON cannot.
        """
        table = _table(self, _schema(self.vectors.shape[1], self.origin))
        with whole_file(Path(path)) as file:
            pq.write_table(table, file)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Embeddings":
        """Read what `save` wrote.

        Args:
            path: of the parquet file.

        Raises:
            OSError: there is no such file, or it may not be read.
            ValueError: it is not an embeddings file of format 1.
        """
        with open_regular(Path(path)) as file:
            try:
                return _read(Table(file))
            except (pa.ArrowException, ValueError, OSError, RecursionError) as error:
                # Arrow's messages run over several lines: the first says what is wrong.
                reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{os.fspath(path)} is not an embeddings file: {reason}. Make one with `erg embed`."
        )


def unit(vectors: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Rows scaled to length 1, a new array; a row of zeros stays as it is.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    # Squares in float64: those of float32 overflow from 2e19 on.
    norm = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if not np.isfinite(norm).all():
        row = int(np.flatnonzero(~np.isfinite(norm))[0])
        raise ValueError(
            f"the vector of row {row} holds NaN or infinity. Leave such rows out, or look at the "
            "health of the run that made them."
        )
    scaled = np.empty(vectors.shape, dtype=np.float32)
    norm[norm == 0] = 1
    np.divide(vectors, norm[:, None], out=scaled, casting="same_kind")
    return scaled


def merge(
    parts: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    origin: dict[str, Any],
) -> tuple[int, int]:
    """One file of the rows of several, in their order; memory holds one of them at a time.

    Args:
        parts: files that `save` wrote; of those without rows the width is of no account.
        path: where to; an older file of that name is replaced at the end.
        origin: what made the vectors.

    Returns:
        How many vectors of how many values.

    Raises:
        OSError, ValueError: a part cannot be read, or their vectors differ in width.
    """
    kept = [part for part in parts if pq.read_metadata(part).num_rows]
    width = Embeddings.load(kept[0]).vectors.shape[1] if kept else 1
    schema, rows = _schema(width, origin), 0
    with whole_file(Path(path)) as file, pq.ParquetWriter(file, schema) as writer:
        for part in kept:
            found = Embeddings.load(part)
            if found.vectors.shape[1] != width:
                raise ValueError(
                    f"{os.fspath(part)} holds vectors of {found.vectors.shape[1]} values and those "
                    f"before it of {width}. Remove the parts and embed again."
                )
            writer.write_table(_table(found, schema))
            rows += len(found)
    return rows, width


def _schema(width: int, origin: dict[str, Any]) -> pa.Schema:
    return pa.schema(
        {
            "id": pa.int64(),
            "path": pa.string(),
            "vector": pa.list_(pa.float32(), width),
            "label": pa.string(),
        },
        metadata={"format": FORMAT, "origin": json.dumps(origin, allow_nan=False)},
    )


def _unicode(path: str) -> str:
    """File names that are not UTF-8 reach Python as lone surrogates, which parquet refuses."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _table(e: Embeddings, schema: pa.Schema) -> pa.Table:
    none = [None] * len(e)
    paths = [_unicode(p) for p in e.paths] if e.paths is not None else none
    labels = [label or None for label in e.labels.tolist()] if e.labels is not None else none
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(e.vectors.reshape(-1)), type=schema.field("vector").type
    )
    columns = [e.ids, paths, vectors, labels]
    arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _read(file: Table) -> Embeddings:
    """The file's content; checks the schema before any data are read."""
    metadata = file.schema.metadata or {}
    written = metadata.get(b"format", b"none").decode("utf-8", "replace")
    if written != FORMAT:
        raise ValueError(f"its format is {written!r}, this version reads {FORMAT!r}")
    types = {name: file.column_type(name) for name in ("id", "path", "vector", "label")}
    vector = types["vector"]
    if not (pa.types.is_fixed_size_list(vector) and pa.types.is_float32(vector.value_type)):
        raise ValueError(f"column 'vector' is {vector}, not a fixed size list of float32")
    for name, wanted in (("id", pa.int64()), ("path", pa.string()), ("label", pa.string())):
        if types[name] != wanted:
            raise ValueError(f"column {name!r} is {types[name]}, not {wanted}")
    origin = json.loads(metadata.get(b"origin", b"{}"))
    if not isinstance(origin, dict):
        raise ValueError(f"its origin is a {type(origin).__name__}, not a JSON object")

    table = file.read(list(types))
    flat = table["vector"].combine_chunks().flatten()
    if table["id"].null_count or table["vector"].null_count or flat.null_count:
        raise ValueError("an id or a vector is missing")
    labels, paths = table["label"], table["path"]
    if 0 < paths.null_count < len(table):
        raise ValueError(f"{paths.null_count} of {len(table)} paths are missing")
    has_labels = labels.null_count < len(table)
    named = [label or "" for label in labels.to_pylist()] if has_labels else []
    taken = 4 * len(named) * max(map(len, named), default=0)  # NumPy gives all the longest's room
    if taken > file.budget:
        raise ValueError(f"its labels would take {taken / (1 << 30):,.1f} GiB, as one is so long")
    return Embeddings(
        vectors=flat.to_numpy().reshape(len(table), vector.list_size),
        ids=table["id"].to_numpy(),
        labels=np.array(named) if has_labels else None,
        origin=origin,
        paths=paths.to_pylist() if paths.null_count < len(table) else None,
    )
