"""One number for a history: the SHA-256 of the events' values, kind by kind.

It depends on the rows and their order within each partition, and on nothing else: not on how they were cut into batches, how
Arrow encoded them, or which engine keeps them. That takes no gathering of rows: each column is hashed as it streams past
(whether there is a value, its length if it is text, the value), and a hash of a stream does not know where it was cut.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from accounting.records import EVENTS
from connectors.log.body import decode, unpack

if TYPE_CHECKING:
    from connectors.log import Log

ALL = "all"


def digest_events(events: Log) -> dict[str, str]:
    """The SHA-256, as hexadecimals, of each event kind, and of all under ALL."""
    kinds = {kind: hashlib.sha256() for kind in EVENTS}
    for partition in range(events.partitions):
        for kind, rows in _digest_partition(events, partition).items():
            kinds[kind].update(rows.digest(partition))
    digests = {kind: digest.hexdigest() for kind, digest in kinds.items()}
    return {**digests, ALL: hashlib.sha256("".join(digests.values()).encode()).hexdigest()}


def _digest_partition(events: Log, partition: int) -> dict[str, _Rows]:
    rows: dict[str, _Rows] = {}
    position, end = 0, events.end(partition)
    while position < end:
        for row in events.read(partition, position):
            position = row.end
            for kind, batch in decode(row.body).batches.items():
                rows.setdefault(kind, _Rows()).update(unpack(kind, batch))
    return rows


class _Rows:
    """The rows of one kind in one partition."""

    def __init__(self) -> None:
        self._count = 0
        self._columns: dict[str, _Column] = {}

    def update(self, batch: pa.RecordBatch) -> None:
        self._count += batch.num_rows
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            self._columns.setdefault(name, _Column()).update(array)

    def digest(self, partition: int) -> bytes:
        whole = hashlib.sha256(f"{partition} {self._count}\n".encode())
        for name, column in self._columns.items():
            whole.update(f"{name} ".encode() + column.digest())
        return whole.digest()


class _Column:
    """The values of one column: three streams, so that where one value ends and whether there is one is never in doubt."""

    def __init__(self) -> None:
        self._valid, self._lengths, self._values = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()

    def update(self, array: pa.Array) -> None:
        self._valid.update(array.is_valid().cast(pa.uint8()).to_numpy().data)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if pa.types.is_string(array.type):
            array = pc.fill_null(array, "")
            _, offsets, text = array.buffers()
            ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
            self._lengths.update(np.diff(ends).data)
            if text is not None:
                self._values.update(memoryview(text)[ends[0] : ends[-1]])
        else:
            if pa.types.is_timestamp(array.type):
                array = array.cast(pa.int64())
            self._values.update(pc.fill_null(array, 0).to_numpy().data)

    def digest(self) -> bytes:
        return self._valid.digest() + self._lengths.digest() + self._values.digest()
