"""Columns of events, whole and packed.

Whole columns are those of the contract, with plain `ordinal` and `n` before them. Packed ones are smaller: an ordinal is the
step from the one before, a column without a value is left out, texts that recur are a dictionary (`connectors.log.body` reads
them back).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from accounting.records import EVENT_SCHEMAS
from accounting.state import NONE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

EACH_ITS_OWN = {"record", "detail", "held_id", "text", "evidence"}  # texts that hardly ever occur twice


def whole_columns(kind: str, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """Events of a kind, of arrays or sequences by name; times may be µs."""
    arrays = {"ordinal": _array(columns["ordinal"], pa.int64()), "n": _array(columns["n"], pa.int32())}
    return pa.record_batch(
        arrays | {field.name: _array(columns[field.name], field.type) for field in EVENT_SCHEMAS[kind]}
    )


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if not isinstance(values, pa.Array):
        values = pa.array(values, pa.int64() if pa.types.is_timestamp(kind) else kind)
    return values.cast(kind)


def rows_as_columns(kind: str, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    """Events of a kind, of rows (ordinal, n, the contract's columns)."""
    names = ("ordinal", "n", *EVENT_SCHEMAS[kind].names)
    return whole_columns(kind, dict(zip(names, zip(*rows, strict=True), strict=True)))


def in_order(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch | None:
    """Whole columns of one kind put together, in the order of ordinal and n; none if there are no events."""
    some = [batch for batch in batches if batch.num_rows]
    if len(some) < 2:
        return some[0] if some else None
    (together,) = pa.Table.from_batches(some).combine_chunks().to_batches()
    return together.take(pa.array(np.lexsort((together.column("n").to_numpy(), together.column("ordinal").to_numpy()))))


def packed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Whole columns as they go into the log."""
    columns = {"ordinal": steps(batch.column("ordinal").to_numpy())}
    for name, array in zip(batch.schema.names[1:], batch.columns[1:], strict=True):
        if array.null_count == len(array):
            continue
        is_coded = pa.types.is_string(array.type) and name not in EACH_ITS_OWN
        columns[name] = array.dictionary_encode() if is_coded else array
    return pa.record_batch(columns)


def steps(ordinals: NDArray[np.int64]) -> pa.Array:
    """Each ordinal as the step from the one before it."""
    return pa.array(np.diff(ordinals, prepend=0))


def coded(codes: NDArray[np.int32] | NDArray[np.int8], names: Sequence[str]) -> pa.Array:
    """Names by number; −1 is none."""
    absent = len(codes) > 0 and codes.min() < 0
    array = pa.array(codes, mask=codes < 0) if absent else pa.array(codes)
    return pa.DictionaryArray.from_arrays(array, pa.array(names, pa.string()))


def narrow(column: NDArray[np.int64]) -> pa.Array:
    """The numbers as int32 where all of them fit: half as much to compress."""
    fits = not len(column) or (column.min() >= -(2**31) and column.max() < 2**31)
    return pa.array(column.astype(np.int32) if fits else column)


def numbers(column: NDArray[np.int64]) -> pa.Array:
    """The numbers, NONE being none."""
    absent = column == NONE
    if not absent.any():
        return narrow(column)
    array = narrow(np.where(absent, 0, column))
    return pc.if_else(pa.array(absent), None, array)


def without_empty(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """The columns that have a value."""
    return pa.record_batch({name: c for name, c in columns.items() if c.null_count < len(c)})
