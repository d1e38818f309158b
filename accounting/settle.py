"""Settle: events = F(journal). One body of the journal in, the events it causes out, and the state moved on.

No clock and no chance: the same records give the same events in the same order, however they were cut into bodies. Records are
taken in their order; runs of readings go through compiled code as columns, what is rare goes record by record.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from accounting.calendar import day_of, month_of
from accounting.compiled import compiled, loop, untracked
from accounting.customers import apply_account, apply_exchange, apply_tariff
from accounting.decisions import (
    apply_acknowledgement,
    apply_order,
    apply_policy,
    apply_receipt,
    forget_effects,
    review_all,
    write_notices,
)
from accounting.incidents import Incident, incident_events, take_incidents
from accounting.ledger import FORECAST, new_ledger
from accounting.notices import Told, notice_event
from accounting.partition import Partition, Record
from accounting.payments import apply_payment, forget_payments
from accounting.readings import Readings, apply_readings, hold_unrouted, open_readings, resolve
from accounting.records import BASES, ENTRY_KINDS, EVENT_SCHEMAS, EVENTS, RECORD_SCHEMAS, TIME
from accounting.state import FOREVER, NONE
from accounting.supply import begin_day

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


def settle_body(
    p: Partition, position: int, runs: Sequence[tuple[str, int]], batches: Mapping[str, pa.RecordBatch]
) -> Settled:
    """Settle records `position …` of the partition.

    runs: (kind, how many in a row), in order. batches: the records of each kind as packed columns (connectors.log.body).
    The events are those of what it returns.
    """
    ordinals = _ordinals(position, runs)
    readings = open_readings(p, batches["reading"], ordinals["reading"]) if "reading" in batches else None
    records = {kind: iter(to_records(kind, batch)) for kind, batch in batches.items() if kind != "reading"}
    read, ordinal, brought = 0, position, False
    for kind, count in runs:
        if kind == "reading":
            assert readings is not None  # noqa: S101  the runs say so
            if brought:
                resolve(p, readings)
                brought = False
            (hold_unrouted if p.unrouted else apply_readings)(p, readings, read, read + count)
            read += count
        else:
            for k in range(count):
                p.begin(ordinal + k)
                apply_record(p, kind, next(records[kind]))
            brought |= kind in ("account", "meter_exchange")
        ordinal += count
    return take_events(p, readings)


def _ordinals(position: int, runs: Sequence[tuple[str, int]]) -> dict[str, NDArray[np.int64]]:
    found: dict[str, list[NDArray[np.int64]]] = {}
    for kind, count in runs:
        if kind == "reading":
            found.setdefault(kind, []).append(np.arange(position, position + count, dtype=np.int64))
        position += count
    return {kind: np.concatenate(parts) for kind, parts in found.items()}


def apply_record(p: Partition, kind: str, record: Record) -> None:
    """Any record but a reading."""
    if kind == "tick":
        apply_tick(p, record["ticked_at"])
    elif kind in ("payment", "adjustment"):
        apply_payment(p, kind, record)
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
    p.last_tick = at
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
    if p.count > 1 and (at >= p.rules_until or p.wake_at[1 : p.count].min() <= at):
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


# events as columns


@dataclass(frozen=True)
class Settled:
    """What a body has caused. It is the partition's no longer: another thread may make the events of it."""

    number: int
    columns: dict[str, pa.RecordBatch]
    rows: dict[str, list[tuple[Any, ...]]]
    notices: list[Told]
    incidents: list[Incident]
    readings: Readings | None

    def events(self) -> dict[str, pa.RecordBatch]:
        """The events by kind as packed columns with `ordinal` and `n`, each kind in order."""
        rows = {**self.rows, "notice": [notice_event(told) for told in self.notices]}
        for kind, more in incident_events(self.number, self.incidents, self.readings).items():
            if more:
                rows[kind] = sorted([*rows.get(kind, ()), *more], key=itemgetter(0, 1))
        return self.columns | {kind: _rows(kind, rows[kind]) for kind in EVENTS if rows.get(kind)}


def take_events(p: Partition, readings: Readings | None) -> Settled:
    """What has been written since the last time."""
    ledger, columns = p.ledger, {}
    if ledger.size[0]:
        columns["entry"] = _entries(p)
    if ledger.size[2]:
        columns["forecast"] = _forecasts(p)
    write_notices(p)
    settled = Settled(p.number, columns, p.events, p.notices, take_incidents(p, readings), readings)
    p.events, p.notices = {}, []
    ledger.size[:] = 0
    if ledger.entries.size > 1 << 19:
        p.ledger = new_ledger(1 << 18)
    return settled


STEP, TO_WH, USAGE_WH, AMOUNT, BALANCE = 0, 1, 2, 3, 4  # the numbers of an entry that mostly fit in 32 bits


@loop
def _spread(
    rows: Any,
) -> tuple[
    NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int32], NDArray[np.int8], bool, bool, bool
]:
    """Rows of ENTRY as columns, in one pass over them.

    int32[5, n]: ordinal steps, to_wh, usage_wh, amount_tiyin, balance_tiyin; bool[5]: whether each fits so, to_wh where it
    is there. int64[2, n]: from_at, to_at. int32[3, n]: n, account, tariff. int8[2, n]: kind, basis. Then whether every
    from_at, every to_wh is there, and whether every from_wh is to_wh − usage_wh.
    """
    rows = untracked(rows)
    numbers = np.empty((5, rows.size), np.int32)
    moments = np.empty((2, rows.size), np.int64)
    codes = np.empty((3, rows.size), np.int32)
    kinds = np.empty((2, rows.size), np.int8)
    fits = np.ones(5, np.bool_)
    before, timed, read, implied = 0, True, True, True
    for i in range(rows.size):
        row = rows[i]
        is_read = row.to_wh != NONE
        values = (row.ordinal - before, row.to_wh if is_read else 0, row.usage_wh, row.amount_tiyin, row.balance_tiyin)
        before = row.ordinal
        for k in range(5):
            inside = -(2**31) <= values[k] < 2**31
            numbers[k, i] = values[k] if inside else 0
            fits[k] &= inside
        moments[0, i], moments[1, i] = row.from_at, row.to_at
        codes[0, i], codes[1, i], codes[2, i] = row.n, row.account, row.tariff
        kinds[0, i], kinds[1, i] = row.kind, row.basis
        timed &= row.from_at != NONE
        read &= is_read
        implied &= row.from_at == NONE or row.to_wh - row.usage_wh == row.from_wh
    return numbers, fits, moments, codes, kinds, timed, read, implied


def _entries(p: Partition) -> pa.RecordBatch:
    rows = p.ledger.entries[: int(p.ledger.size[0])]
    numbers, fits, moments, codes, kinds, timed, read, implied = _spread(rows)

    def number(k: int, name: str, absent: NDArray[np.bool_] | None = None) -> pa.Array:
        if fits[k]:
            return pa.array(numbers[k], mask=absent)
        values = np.ascontiguousarray(rows[name])
        return pa.array(np.diff(values, prepend=0) if k == STEP else values, mask=absent)

    n, account, tariff = codes
    from_at, to_at = moments
    columns = {
        "ordinal": number(STEP, "ordinal"),
        "n": pa.array(n),
        "account_id": _account_ids(p, account),
        "kind": _coded(kinds[0], ENTRY_KINDS),
        "from_at": pa.array(from_at, mask=None if timed else from_at == NONE).cast(TIME),
        "to_at": pa.array(to_at).cast(TIME),
        "to_wh": number(TO_WH, "to_wh", None if read else rows["to_wh"] == NONE),
        "usage_wh": number(USAGE_WH, "usage_wh"),
        "amount_tiyin": number(AMOUNT, "amount_tiyin"),
        "balance_tiyin": number(BALANCE, "balance_tiyin"),
        "tariff": _coded(tariff, p.book.names),
        "basis": _coded(kinds[1], BASES),
    }
    if not implied:  # where there is a from_at, it is to_wh − usage_wh
        columns["from_wh"] = _numbers(np.ascontiguousarray(rows["from_wh"]))
    return pa.record_batch({name: c for name, c in columns.items() if c.null_count < len(rows)})


def _forecasts(p: Partition) -> pa.RecordBatch:
    rows = p.ledger.forecasts[: p.ledger.size[2]]
    column = {name: np.ascontiguousarray(rows[name]) for name in FORECAST.names or ()}
    columns = {
        "ordinal": pa.array(np.diff(column["ordinal"], prepend=0)),
        "n": pa.array(column["n"]),
        "account_id": _account_ids(p, column["account"]),
        "forecast_at": pa.array(column["forecast_at"]).cast(TIME),
        "balance_tiyin": narrow(column["balance_tiyin"]),
        "usage_wh_per_day": _numbers(column["usage_wh_per_day"]),
    }
    for name in ("depletes_at", "earliest_at", "latest_at"):
        columns[name] = pa.array(column[name], mask=column[name] == FOREVER).cast(TIME)
    return pa.record_batch({name: c for name, c in columns.items() if c.null_count < len(rows)})


def _rows(kind: str, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    ordinal, n, *values = zip(*rows, strict=True)
    columns: dict[str, pa.Array] = {
        "ordinal": pa.array(np.diff(np.array(ordinal, np.int64), prepend=0)),
        "n": pa.array(n, pa.int32()),
    }
    for field, column in zip(EVENT_SCHEMAS[kind], values, strict=True):
        if pa.types.is_timestamp(field.type):
            array = pa.array(column, pa.int64()).cast(field.type)
        else:
            array = pa.array(column, field.type)
        if array.null_count < len(array):
            columns[field.name] = array.dictionary_encode() if pa.types.is_string(field.type) else array
    return pa.record_batch(columns)


@compiled
def _compact(codes: NDArray[np.int32], count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Numbers below `count` renumbered without gaps, in the same order; and which there are."""
    place = np.full(count, -1, np.int32)
    for i in range(codes.size):
        place[codes[i]] = 0
    used = np.flatnonzero(place == 0).astype(np.int32)
    for k in range(used.size):
        place[used[k]] = k
    out = np.empty_like(codes)
    for i in range(codes.size):
        out[i] = place[codes[i]]
    return out, used


def _account_ids(p: Partition, account: NDArray[np.int32]) -> pa.DictionaryArray:
    """The ids of accounts by number, with only those in the dictionary that occur. The largest is kept: mostly it is that of
    the next body too.
    """
    codes, used = _compact(account, p.count)
    if p.named is not None and np.array_equal(p.named[0], used):
        return pa.DictionaryArray.from_arrays(pa.array(codes), p.named[1])
    names = pa.array([p.ids[i] for i in used.tolist()], pa.string())
    if p.named is None or used.size > p.named[0].size:
        p.named = used, names
    return pa.DictionaryArray.from_arrays(pa.array(codes), names)


def _coded(codes: NDArray[np.int32] | NDArray[np.int8], names: Sequence[str]) -> pa.Array:
    """Names by number; −1 is none."""
    absent = len(codes) > 0 and codes.min() < 0
    array = pa.array(codes, mask=codes < 0) if absent else pa.array(codes)
    return pa.DictionaryArray.from_arrays(array, pa.array(names, pa.string()))


def narrow(column: NDArray[np.int64]) -> pa.Array:
    """The numbers as int32 where all of them fit: half as much to compress."""
    fits = not len(column) or (column.min() >= -(2**31) and column.max() < 2**31)
    return pa.array(column.astype(np.int32) if fits else column)


def _numbers(column: NDArray[np.int64]) -> pa.Array:
    absent = column == NONE
    return pa.array(column, mask=absent) if absent.any() else narrow(column)
