"""Parquet files that may come from anywhere: what they claim is weighed before it is read.

A few bytes of parquet may stand for billions of rows, or for one long text a million times. A table
may take a gigabyte once it is read, or 256 times the size of its file; honest ones take 10 times.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

compute: Any = pyarrow.compute  # its functions are made when it is imported

FREE = 1 << 30
"""What any table may take [bytes]."""
EXPANSION = 256
"""How many times the size of its file a larger one may take."""
BATCH = 1 << 14  # rows read at a time


class Table:
    """A parquet file opened with care.

    Args:
        file: a binary stream that can seek.

    Raises:
        pyarrow.ArrowException, OSError: it is no parquet file.
        ValueError: its row groups do not add up.
    """

    def __init__(self, file: Any) -> None:
        self.file, self.size = file, file.seek(0, os.SEEK_END)
        # Without pre_buffer, which would keep encoded bytes as long as the table is open.
        self.parquet = pq.ParquetFile(file, pre_buffer=False)
        self.schema: pa.Schema = self.parquet.schema_arrow
        about = self.parquet.metadata
        groups = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
        self.rows = sum(groups)
        if min(groups, default=0) < 0 or self.rows != about.num_rows:
            raise ValueError("its row groups do not add up to its rows")

    @property
    def budget(self) -> int:
        """What it may take once it is read [bytes]."""
        return max(FREE, EXPANSION * self.size)

    def column_type(self, name: str) -> pa.DataType:
        """The type of a column.

        Raises:
            ValueError: there is not exactly one of that name.
        """
        if self.schema.names.count(name) != 1:
            raise ValueError(f"it has {self.schema.names.count(name)} columns {name!r}, not one")
        return self.schema.field(name).type

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Columns of numbers, texts, or vectors of numbers.

        Raises:
            pyarrow.ArrowException, OSError: the file is damaged.
            ValueError: a column is of another type, or they would take more than the budget.
        """
        types = {name: self.column_type(name) for name in columns}
        row = sum(_width(name, kind) for name, kind in types.items())
        if self.rows * row > self.budget:
            raise ValueError(self._too_large(self.rows * row))
        schema = pa.schema([self.schema.field(name) for name in columns], self.schema.metadata)
        table = pa.Table.from_batches(self._batches(types, schema), schema=schema)
        if len(table) != self.rows:
            raise ValueError(f"it holds {len(table):,} rows and says it holds {self.rows:,}")
        return table

    def _batches(
        self, types: dict[str, pa.DataType], schema: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        # Texts as a dictionary and numbers into it, which is how a small file holds long ones;
        # they are spelled out only when it is known what they take.
        texts = [name for name, kind in types.items() if _is_text(kind)]
        taken = 0
        packed = pq.ParquetFile(self.file, read_dictionary=texts, pre_buffer=False)
        for batch in packed.iter_batches(BATCH, columns=list(types)):
            arrays: list[pa.Array] = []
            for name, kind in types.items():
                array = batch.column(name)
                if isinstance(array, pa.DictionaryArray):
                    taken += _spelled_out(array)
                    if taken > self.budget:
                        raise ValueError(self._too_large(taken))
                arrays.append(array if array.type == kind else array.cast(kind))
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _too_large(self, taken: int) -> str:
        return (
            f"its {self.rows:,} rows would take {taken / (1 << 30):,.1f} GiB, far more than its "
            f"{self.size:,} bytes can honestly hold"
        )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _width(name: str, kind: pa.DataType) -> int:
    """What a row of a column takes, texts not counted [bytes]."""
    if _is_text(kind):
        return 8
    if pa.types.is_dictionary(kind) and _is_text(kind.value_type):
        return 8
    if pa.types.is_fixed_size_list(kind) and pa.types.is_primitive(kind.value_type):
        return kind.list_size * _width(name, kind.value_type)
    if pa.types.is_primitive(kind):
        return max(1, kind.bit_width // 8)
    raise ValueError(f"column {name!r} is {kind}, neither numbers nor text")


def _spelled_out(array: pa.DictionaryArray) -> int:
    """What its texts take one after another [bytes]."""
    lengths = compute.binary_length(array.dictionary.cast(pa.large_string()))
    return compute.sum(lengths.take(array.indices)).as_py() or 0
