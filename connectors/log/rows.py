"""Reading a log kind by kind: what tail, status and whoever follows the events need. Works on any engine of the log.

A kind's rows come as Arrow batches of the contract's columns, in the order of the partition; those of events with `ordinal`
and `n` before them, which with the partition are an event's id.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from accounting.records import EVENT_ID, EVENTS, parse_id, render_id
from connectors.log.body import decode, unpack

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Mapping

    from connectors.log import Log

POLL_S = 0.2
_JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
_US_PER_S = 1_000_000


@dataclass(frozen=True, order=True)
class EventId:
    """Where an event stands among those of its partition: its cause's ordinal, and its count among those of that cause."""

    ordinal: int
    n: int


def parse_positions(text: str, partitions: int) -> dict[int, EventId]:
    """Event ids joined by commas (`3-1200-0,7-15-2`; a missing count means 0), by partition. Raises ValueError in words."""
    positions: dict[int, EventId] = {}
    for part in text.split(","):
        try:
            partition, ordinal, n = parse_id(part if part.count("-") == 2 else f"{part}-0")
        except ValueError:
            raise ValueError(f"{part!r} is not an event's id (partition-ordinal-n, such as 3-1200-0)") from None
        if not 0 <= partition < partitions:
            raise ValueError(f"{part!r}: there is no partition {partition}; they are numbered 0 to {partitions - 1}")
        if partition in positions:
            raise ValueError(f"{text!r} names partition {partition} twice")
        positions[partition] = EventId(ordinal, n)
    return positions


def position_of(events: Log, partition: int, ordinal: int) -> int:
    """Where the row begins that holds what the journal's `ordinal` caused: nothing before it is of that record or a later one.

    Rows of events stand under the first ordinal of the journal row that caused them, so they can be searched by halves.
    """
    found, low, high = 0, 0, events.end(partition)
    while low < high:
        (row,) = events.read(partition, (low + high) // 2, max_rows=1)
        if row.sequence <= ordinal:
            found, low = row.position, row.end
        else:
            high = row.position
    return found


def follow(
    events: Log, kind: str, since: Mapping[int, EventId], *, from_end: bool = False, until_end: bool = False
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Events of one kind as (partition, rows), partition after partition, then as they come.

    since: the first event wanted of a partition; of those not named, all, or with `from_end` only what is yet to come.
    until_end: end where each partition ended when it was looked at.
    """
    reached = {
        partition: position_of(events, partition, since[partition].ordinal)
        if partition in since
        else (events.end(partition) if from_end else 0)
        for partition in range(events.partitions)
    }
    while True:
        for partition in range(events.partitions):
            end = events.end(partition)
            while reached[partition] < end:
                for row in events.read(partition, reached[partition]):
                    reached[partition] = row.end
                    batch = decode(row.body, (kind,)).batches.get(kind)
                    if batch is not None:
                        wanted = _since(unpack(kind, batch), since.get(partition))
                        if wanted.num_rows:
                            yield partition, wanted
        if until_end:
            return
        time.sleep(POLL_S)


def _since(batch: pa.RecordBatch, first: EventId | None) -> pa.RecordBatch:
    if first is None:
        return batch
    ordinal, n = batch.column("ordinal").to_numpy(), batch.column("n").to_numpy()
    return batch.filter(pa.array((ordinal > first.ordinal) | ((ordinal == first.ordinal) & (n >= first.n))))


def to_ndjson(kind: str, partition: int, batch: pa.RecordBatch) -> list[str]:
    """Each event as a line of JSON: its id where the kind has one, then the contract's columns; times ISO 8601 in UTC."""
    columns: dict[str, list[Any]] = {}
    if kind in EVENT_ID:
        ids = zip(_values(batch.column("ordinal")), _values(batch.column("n")), strict=True)
        columns[EVENT_ID[kind]] = [render_id(partition, ordinal, n) for ordinal, n in ids]
    for column in EVENTS[kind]:
        array = batch.column(column.name)
        if column.type == "time":
            columns[column.name] = _iso_times(array)
        elif column.type == "json":
            columns[column.name] = [None if text is None else json.loads(text) for text in array.to_pylist()]
        else:
            columns[column.name] = _values(array)
    names = list(columns)
    return [_JSON(dict(zip(names, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def _values(array: pa.Array) -> list[Any]:
    """As to_pylist, but quick: numbers go by way of NumPy, and a text that occurs often is made once."""
    if pa.types.is_dictionary(array.type):
        texts = [*array.dictionary.to_pylist(), None]
        codes = pc.fill_null(array.indices, len(texts) - 1).to_numpy()
        return [texts[code] for code in codes.tolist()]
    return array.to_pylist() if array.null_count else array.to_numpy(zero_copy_only=False).tolist()


def _iso_times(array: pa.Array) -> list[str | None]:
    us = pc.fill_null(array.cast(pa.int64()), 0).to_numpy()
    times = us.astype("datetime64[us]")
    text = np.where(
        us % _US_PER_S == 0, np.datetime_as_string(times, unit="s"), np.datetime_as_string(times, unit="us")
    )
    return [f"{t}Z" if valid else None for t, valid in zip(text.tolist(), array.is_valid().to_pylist(), strict=True)]


def last_tick(journal: Log) -> dt.datetime | None:
    """The journal's latest tick; None before the first. Looked for from the end of the unrouted partition, which gets all."""
    unrouted = journal.partitions - 1
    position = journal.end(unrouted)
    while position > 0:
        (row,) = journal.read(unrouted, position - 1, max_rows=1)
        ticks = decode(row.body, ("tick",)).batches.get("tick")
        if ticks is not None:
            moment: dt.datetime = pc.max(unpack("tick", ticks).column("ticked_at")).as_py()
            return moment
        position = row.position
    return None


def records_in(log: Log) -> int:
    """How many records the log holds."""
    return sum(log.end(partition) for partition in range(log.partitions))


def lag_of(journal: Log, committed: Mapping[str, int]) -> int:
    """How many records of the journal a consumer has not come to, by what it committed under each partition's number."""
    return sum(
        max(0, journal.end(partition) - committed.get(str(partition), 0)) for partition in range(journal.partitions)
    )
