"""What a row's body is made of: records of mixed kinds in their order, as Arrow.

A body is one Arrow IPC stream (zstd, LZ4 where it is small) for each kind it holds, and the **runs**: which kind how many
records in a row, so that the order is kept without a column for it. In the body columns are *packed*: strings are dictionary
codes, `meter_id` and `account_id` of readings share one code (a dictionary of pairs), a column without a value is left out.
`unpack` gives the contract's columns back (`accounting.records`), strings as dictionary arrays.

Texts that hardly occur twice may lie without a dictionary, numbers that all fit in 32 bits in those, dictionary codes in 8 or
16; an entry's `from_wh` may be left out where it is `to_wh − |usage_wh|`.

Events carry two columns more, `ordinal` and `n` (an event's id with the row's partition). Packed, an ordinal is the step from
the one before it, which costs nothing to store.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from accounting.records import EVENT_SCHEMAS, EVENTS, RECORD_SCHEMAS, RECORDS

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from numpy.typing import NDArray

MAGIC = b"HSB1"
KIND_NAMES = (*RECORDS, *EVENTS)
KIND_NUMBER = {name: number for number, name in enumerate(KIND_NAMES)}
_CODES = pa.dictionary(pa.int32(), pa.string())
_PAIRS = pa.dictionary(pa.int32(), pa.struct([("meter_id", pa.string()), ("account_id", pa.string())]))
_WRITE = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1), use_threads=False)
_WRITE_FEW = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
FEW_BYTES = 1 << 17  # up to here zstd takes longer to begin than to compress, a tenth of a millisecond a batch
_READ = pa.ipc.IpcReadOptions(use_threads=False)  # whoever has many bodies goes through them in threads of its own
_HEAD = struct.Struct("<4sII")  # magic, kinds, runs
_PART = struct.Struct("<BI")  # kind, bytes


@dataclass(frozen=True)
class Body:
    """A decoded body. runs_kind[i] (a number of KIND_NAMES) and runs_count[i] are the i-th run; batches are packed."""

    runs_kind: NDArray[np.uint8]
    runs_count: NDArray[np.uint32]
    batches: dict[str, pa.RecordBatch]

    @property
    def count(self) -> int:
        """How many records the body holds."""
        return int(self.runs_count.sum())


def encode(runs: tuple[NDArray[np.uint8], NDArray[np.uint32]], batches: Mapping[str, pa.RecordBatch]) -> bytes:
    """The body of packed batches, a kind each, taken in turn as the runs (kind numbers, counts) say."""
    kinds, counts = runs
    parts = [(KIND_NUMBER[kind], _write(batch)) for kind, batch in batches.items() if batch.num_rows]
    head = _HEAD.pack(MAGIC, len(parts), len(kinds))
    index = b"".join(_PART.pack(number, part.size) for number, part in parts)
    runs_bytes = np.asarray(kinds, np.uint8).tobytes() + np.asarray(counts, np.uint32).tobytes()
    return b"".join((head, index, runs_bytes, *(memoryview(part) for _, part in parts)))


def decode(body: bytes, kinds: Container[str] = KIND_NAMES) -> Body:
    """What `encode` was given, the batches of these kinds only. Raises ValueError if the bytes are no body."""
    if body[: len(MAGIC)] != MAGIC or len(body) < _HEAD.size:
        msg = f"not a log body: begins with {body[:4]!r}"
        raise ValueError(msg)
    _, n_kinds, n_runs = _HEAD.unpack_from(body, 0)
    at = _HEAD.size
    index = [_PART.unpack_from(body, at + i * _PART.size) for i in range(n_kinds)]
    at += n_kinds * _PART.size
    runs_kind = np.frombuffer(body, np.uint8, n_runs, at)
    runs_count = np.frombuffer(body, np.uint32, n_runs, at + n_runs)
    at += n_runs * 5
    batches = {}
    buffer = pa.py_buffer(body)
    for number, size in index:
        kind = KIND_NAMES[number]
        if kind in kinds:
            batches[kind] = pa.ipc.open_stream(buffer.slice(at, size), options=_READ).read_next_batch()
        at += size
    return Body(runs_kind, runs_count, batches)


def same_records(one: bytes, other: bytes) -> bool:
    """Whether two bodies hold the same records in the same order, however they are encoded. False if either is no body."""
    try:
        a, b = decode(one), decode(other)
        if not (np.array_equal(a.runs_kind, b.runs_kind) and np.array_equal(a.runs_count, b.runs_count)):
            return False
        return a.batches.keys() == b.batches.keys() and all(
            _plain(unpack(kind, batch)).equals(_plain(unpack(kind, b.batches[kind])))
            for kind, batch in a.batches.items()
        )
    except ValueError:
        return False


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch without dictionaries, whose codes two writers may number otherwise."""
    return pa.record_batch(
        {
            name: array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
            for name, array in zip(batch.schema.names, batch.columns, strict=True)
        }
    )


def _write(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_WRITE if batch.nbytes > FEW_BYTES else _WRITE_FEW) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def runs_of(kinds: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """The runs of a sequence of kind numbers, one a record."""
    if not len(kinds):
        return kinds.astype(np.uint8), np.zeros(0, np.uint32)
    starts = np.concatenate(([0], np.flatnonzero(kinds[1:] != kinds[:-1]) + 1))
    return kinds[starts].astype(np.uint8), np.diff(np.append(starts, len(kinds))).astype(np.uint32)


def pack(kind: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of the contract's columns (missing ones are null) as it lies in a body."""
    if kind == "entry" and "from_wh" not in batch.schema.names:  # left out of a body, it would mean more
        batch = batch.append_column("from_wh", pa.nulls(batch.num_rows, pa.int64()))
    names = batch.schema.names
    columns: dict[str, pa.Array] = {}
    for name in names:
        array = batch.column(name)
        if kind == "reading" and name in ("meter_id", "account_id"):
            continue
        if array.null_count == len(array) and (kind, name) != ("entry", "from_wh"):
            continue
        if name == "ordinal":
            array = pa.array(np.diff(array.to_numpy(), prepend=0))
        elif pa.types.is_string(array.type):
            array = pc.dictionary_encode(array)
        elif pa.types.is_dictionary(array.type):
            array = compact(array)
        columns[name] = array
    if kind == "reading":
        account = batch.column("account_id") if "account_id" in names else pa.nulls(batch.num_rows, pa.string())
        columns = {"pair": pair_codes(batch.column("meter_id"), account), **columns}
    return pa.record_batch(columns)


def unpack(kind: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The contract's columns of a packed batch, absent ones null. Strings are dictionary arrays."""
    schema = EVENT_SCHEMAS[kind] if kind in EVENTS else RECORD_SCHEMAS[kind]
    given = {name: batch.column(i) for i, name in enumerate(batch.schema.names)}
    if "pair" in given:
        pair = given.pop("pair")
        for name in ("meter_id", "account_id"):
            given[name] = pa.DictionaryArray.from_arrays(pair.indices, pair.dictionary.field(name))
    columns: dict[str, pa.Array] = {}
    if kind in EVENTS:
        columns["ordinal"] = pa.array(np.cumsum(given["ordinal"].to_numpy(), dtype=np.int64))
        columns["n"] = given["n"]
    if kind == "entry" and "from_wh" not in given and {"from_at", "to_wh", "usage_wh"} <= given.keys():
        from_wh = pc.subtract(given["to_wh"].cast(pa.int64()), pc.abs(given["usage_wh"].cast(pa.int64())))
        given["from_wh"] = pc.if_else(given["from_at"].is_valid(), from_wh, None)
    for field in schema:
        array = given.get(field.name)
        if array is None:
            array = pa.nulls(batch.num_rows, _CODES if pa.types.is_string(field.type) else field.type)
        elif pa.types.is_integer(array.type) and array.type != field.type:
            array = array.cast(field.type)
        elif pa.types.is_string(array.type):
            array = array.dictionary_encode()
        elif pa.types.is_dictionary(array.type) and array.type != _CODES:
            array = array.cast(_CODES)
        columns[field.name] = array
    return pa.record_batch(columns)


def compact(array: pa.DictionaryArray) -> pa.DictionaryArray:
    """The array with only those dictionary values that it uses: a slice carries the whole dictionary into the body."""
    indices = array.indices
    if len(array.dictionary) <= 1 or len(array.dictionary) * 4 <= len(array):
        return array.cast(_CODES) if array.type != _CODES else array
    used = pc.unique(indices.drop_null())
    return pa.DictionaryArray.from_arrays(pc.index_in(indices, used).cast(pa.int32()), array.dictionary.take(used))


def pair_codes(meter_id: pa.Array, account_id: pa.Array) -> pa.DictionaryArray:
    """One code for each (meter_id, account_id) that occurs: int32 codes into a dictionary of pairs, in order of appearance."""
    meters, accounts = (
        a if pa.types.is_dictionary(a.type) else pc.dictionary_encode(a) for a in (meter_id, account_id)
    )
    m = meters.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    a = pc.fill_null(accounts.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    keys = m * (len(accounts.dictionary) + 1) + a + 1
    codes = pc.dictionary_encode(pa.array(keys))
    m_used, a_used = np.divmod(codes.dictionary.to_numpy(), len(accounts.dictionary) + 1)
    account_codes = pa.array(a_used - 1, mask=a_used == 0)
    pairs = pa.StructArray.from_arrays(
        [meters.dictionary.take(pa.array(m_used)), accounts.dictionary.take(account_codes)],
        fields=list(_PAIRS.value_type),
    )
    return pa.DictionaryArray.from_arrays(codes.indices.cast(pa.int32()), pairs)
