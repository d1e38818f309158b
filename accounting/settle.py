"""Settle: events = F(journal). One body of the journal in, the events it causes out, and the state moved on.

No clock and no chance: the same records give the same events in the same order, however they were cut into bodies. Records are
taken in their order; runs of readings go through compiled code as columns, what is rare goes record by record.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from accounting.calendar import day_of, month_of
from accounting.customers import apply_account, apply_exchange, apply_tariff
from accounting.decisions import (
    apply_acknowledgement,
    apply_order,
    apply_policy,
    apply_receipt,
    forget_effects,
    review_all,
)
from accounting.events import Settled, take_events
from accounting.partition import Partition, Record
from accounting.payments import apply_payments, forget_payments
from accounting.readings import apply_readings, hold_unrouted, open_readings, resolve
from accounting.records import RECORD_SCHEMAS
from accounting.state import NONE
from accounting.supply import begin_day

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def settle_body(
    p: Partition, position: int, runs: Sequence[tuple[str, int]], batches: Mapping[str, pa.RecordBatch]
) -> Settled:
    """Settle records `position …` of the partition.

    runs: (kind, how many in a row), in order. batches: the records of each kind as packed columns (connectors.log.body).
    The events are those of what it returns.
    """
    p.ledger.cause[2] = p.last_tick
    p.reserve(sum(count for _, count in runs) + 64)
    readings = open_readings(p, batches["reading"], reading_runs(position, runs)) if "reading" in batches else None
    records = {kind: iter(to_records(kind, batch)) for kind, batch in batches.items() if kind != "reading"}
    read, ordinal, brought = 0, position, False
    for kind, count in runs:
        if kind == "reading":
            assert readings is not None  # noqa: S101  the runs say so
            if brought:
                resolve(p, readings)
                brought = False
            (hold_unrouted if p.unrouted else apply_readings)(p, readings, read, read + count, ordinal)
            read += count
        elif kind in ("payment", "adjustment"):
            apply_payments(p, kind, islice(records[kind], count), ordinal)
        else:
            for number, record in enumerate(islice(records[kind], count), ordinal):
                p.begin(number)
                apply_record(p, kind, record)
            brought |= kind in ("account", "meter_exchange")
        ordinal += count
    return take_events(p, readings)


def reading_runs(position: int, runs: Sequence[tuple[str, int]]) -> list[tuple[int, int]]:
    """The place in the journal and the length of each run of readings."""
    found = []
    for kind, count in runs:
        if kind == "reading":
            found.append((position, count))
        position += count
    return found


def apply_record(p: Partition, kind: str, record: Record) -> None:
    """A record of a kind of which there are few."""
    if kind == "tick":
        apply_tick(p, record["ticked_at"])
    elif kind == "unreadable":
        where = f"{record['file']}, row {record['row']}"
        column = f", {record['column']} = {record['value']!r}" if record.get("column") else ""
        p.emit("refused", record["record_kind"], record["reason"], where + column, record["record"])
    else:
        _APPLY[kind](p, record)


_APPLY = {
    "account": apply_account,
    "meter_exchange": apply_exchange,
    "tariff": apply_tariff,
    "policy": apply_policy,
    "order": apply_order,
    "acknowledgement": apply_acknowledgement,
    "receipt": apply_receipt,
}


def apply_tick(p: Partition, at: int) -> None:
    """A quarter of an hour has passed: decisions are taken; on the first tick of a day every account's forecast is written."""
    if p.last_tick != NONE and at <= p.last_tick:
        return
    p.last_tick = p.ledger.cause[2] = at
    day = int(day_of(at))
    if day != p.last_day:
        turned = p.last_day != NONE and month_of(at) != month_of(p.last_day * 86_400_000_000)
        p.last_day = day
        p.reserve(64, 64, p.count)
        if p.count > 1:
            begin_day(p.accounts, p.count, p.wake_at, p.book.arrays(), p.ledger, at)
        if turned:
            forget_payments(p)
            forget_effects(p)
    if p.count > 1:
        review_all(p, at, at_tick=True)


def to_records(kind: str, batch: pa.RecordBatch) -> list[Record]:
    """Packed columns as records: every column of the contract, times as int64 µs, dates as days, absent ones None."""
    columns: dict[str, list[Any]] = {}
    for field in RECORD_SCHEMAS[kind]:
        if field.name in batch.schema.names:
            array = batch.column(field.name)
            if pa.types.is_timestamp(field.type):
                array = array.cast(pa.int64())
            elif pa.types.is_date(field.type):
                array = array.cast(pa.int32())
            elif pa.types.is_dictionary(array.type):
                array = array.dictionary_decode()  # or each value would be boxed anew
            columns[field.name] = array.to_pylist()
        else:
            columns[field.name] = [None] * batch.num_rows
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
