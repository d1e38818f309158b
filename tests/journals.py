"""A journal to write to and to look at: homes without anything in them, and records as plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from connectors.home import Home
from connectors.log import Log
from connectors.log.body import KIND_NAMES, decode, unpack
from connectors.log.sqlite import create_log, open_log

Placed = tuple[str, dict[str, Any]]


def bare_home(path: Path, partitions: int = 3) -> Home:
    """A home with an empty journal of so many account partitions, and the unrouted one."""
    path.mkdir(parents=True)
    create_log(path / "journal.db", partitions + 1)
    return Home(path)


def rows_of(log: Log, partition: int) -> Iterator[Any]:
    position = 0
    while rows := log.read(partition, position):
        yield from rows
        position = rows[-1].end


def records_of(log: Log, partition: int) -> list[Placed]:
    """The records of a partition in order: their kind, and the columns that have a value; times in UTC µs."""
    records = []
    for row in rows_of(log, partition):
        body = decode(row.body)
        of_kind = {kind: iter(_plain(kind, batch)) for kind, batch in body.batches.items()}
        for number, count in zip(body.runs_kind, body.runs_count, strict=True):
            records += [(KIND_NAMES[number], next(of_kind[KIND_NAMES[number]])) for _ in range(count)]
    return records


def _plain(kind: str, packed: pa.RecordBatch) -> list[dict[str, Any]]:
    batch = unpack(kind, packed)
    columns = [c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in batch.columns]
    rows = pa.record_batch(columns, names=batch.schema.names).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def journal_of(home: Home) -> list[list[Placed]]:
    """All partitions' records."""
    with closing(open_log(home.journal, readonly=True)) as log:
        return [records_of(log, partition) for partition in range(log.partitions)]
