"""Columns of events, whole and packed.

Whole columns are those of the contract, with plain `ordinal` and `n` before them; texts may be dictionaries, and numbers of
fewer bits. Packed ones are smaller: an ordinal is the step from the one before, a column without a value is left out, texts
that recur are a dictionary (`connectors.log.body` reads them back).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from accounting.records import EVENT_SCHEMAS, TIME
from accounting.state import NONE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

EACH_ITS_OWN = {"record", "detail", "held_id", "text", "evidence", "phone"}  # texts that hardly ever occur twice
Columns: TypeAlias = dict[str, pa.Array]


def rows_as_columns(kind: str, rows: Sequence[tuple[Any, ...]]) -> Columns:
    """Events of a kind, of rows (ordinal, n, the contract's columns)."""
    fields = [pa.field("ordinal", pa.int64()), pa.field("n", pa.int32()), *EVENT_SCHEMAS[kind]]
    return {
        field.name: pa.array(values, pa.int64() if field.type == TIME else field.type).cast(field.type)
        for field, values in zip(fields, zip(*rows, strict=True), strict=True)
    }


def in_order(kind: str, parts: Sequence[Columns]) -> Columns:
    """Whole columns of one kind put together, in the order of ordinal and n."""
    if len(parts) == 1:
        return parts[0]
    types = {"ordinal": pa.int64(), "n": pa.int32()} | {field.name: field.type for field in EVENT_SCHEMAS[kind]}
    columns = {
        name: pa.concat_arrays([part[name].cast(its_type) for part in parts]) for name, its_type in types.items()
    }
    order = pa.array(np.lexsort((columns["n"].to_numpy(), columns["ordinal"].to_numpy())))
    return {name: array.take(order) for name, array in columns.items()}


def packed(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """Whole columns as they go into the log."""
    found = {"ordinal": steps(columns["ordinal"].to_numpy())}
    for name, array in columns.items():
        if name == "ordinal" or array.null_count == len(array):
            continue
        is_coded = pa.types.is_string(array.type) and name not in EACH_ITS_OWN
        found[name] = array.dictionary_encode() if is_coded else array
    return pa.record_batch(found)


def steps(ordinals: NDArray[np.int64]) -> pa.Array:
    """Each ordinal as the step from the one before it."""
    between = np.empty_like(ordinals)
    between[:1] = ordinals[:1]
    np.subtract(ordinals[1:], ordinals[:-1], between[1:])
    return filled(pa.int64(), between)


def filled(kind: pa.DataType, values: NDArray[Any], there: NDArray[np.uint8] | None = None) -> pa.Array:
    """Values as they lie. there: where they are not none, bit by bit."""
    return pa.Array.from_buffers(
        kind, len(values), [None if there is None else pa.py_buffer(there), pa.py_buffer(values)]
    )


def coded(codes: pa.Array, names: Sequence[str]) -> pa.Array:
    """Names by number; the numbers are of these names, or none."""
    return pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string()), safe=False)


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
