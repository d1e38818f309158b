"""What a body of the journal has caused, from the ledger's rows to events as packed columns.

`take_events` takes out of the partition what the next body would write over, and is all that has to wait; the columns are made
of it by `Settled.events`, which another thread may do beside the rules, body after body in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from accounting.columns import coded, in_order, narrow, numbers, packed, rows_as_columns, steps, without_empty
from accounting.compiled import compiled, loop, untracked
from accounting.incidents import HeldTexts, incident_events
from accounting.ledger import FORECAST, UNCHANGED, new_ledger
from accounting.notices import Told, notice_events
from accounting.records import BASES, ENTRY_KINDS, EVENTS, TIME
from accounting.state import FOREVER, NONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accounting.partition import Partition
    from accounting.readings import Readings

MOST_ENTRIES_KEPT = 1 << 19  # beyond, a ledger's room is given back


class AccountIds:
    """The ids of a partition's accounts by number, as columns of events need them."""

    def __init__(self, ids: list[str]) -> None:
        """ids: grows with the partition."""
        self._ids = ids
        self._all = pa.array([], pa.string())

    def column(self, accounts: NDArray[np.int32], count: int) -> pa.DictionaryArray:
        """Those of accounts below `count`. Where most of them occur the dictionary is all of them, else those that do."""
        if len(self._all) < count:
            self._all = pa.array(self._ids[:count], pa.string())
        codes, used = _compact(accounts, count)
        if used.size * 2 >= count:
            return pa.DictionaryArray.from_arrays(pa.array(accounts), self._all)
        return pa.DictionaryArray.from_arrays(pa.array(codes), self._all.take(pa.array(used)))


@dataclass(frozen=True)
class Settled:
    """What a body has caused. It is the partition's no longer, but for ids and held texts, which nobody else touches."""

    number: int
    count: int
    ids: AccountIds
    tariffs: Sequence[str]
    held: HeldTexts
    entries: Entries | None
    forecasts: Any
    rows: dict[str, list[tuple[Any, ...]]]
    notices: list[Told]
    incidents: Any
    readings: Readings | None

    def events(self) -> dict[str, pa.RecordBatch]:
        """The events by kind as packed columns with `ordinal` and `n`, each kind in order. To be called once."""
        columns: dict[str, pa.RecordBatch] = {}
        if self.entries is not None:
            columns["entry"] = self._entries(self.entries)
        if self.forecasts.size:
            columns["forecast"] = self._forecasts()
        made = incident_events(self.number, self.incidents, self.readings, self.held)
        if self.notices:
            made["notice"] = notice_events(self.notices)
        for kind in made.keys() | self.rows.keys():
            parts = [rows_as_columns(kind, self.rows[kind])] if kind in self.rows else []
            together = in_order([*parts, made[kind]] if kind in made else parts)
            if together is not None:
                columns[kind] = packed(together)
        return {kind: columns[kind] for kind in EVENTS if kind in columns}

    def _entries(self, e: Entries) -> pa.RecordBatch:
        n, account, tariff = e.codes
        columns = {
            "ordinal": e.number(STEP),
            "n": pa.array(n),
            "account_id": self.ids.column(account, self.count),
            "kind": coded(e.kinds[0], ENTRY_KINDS),
            "from_at": pa.array(e.moments[0], mask=e.untimed).cast(TIME),
            "to_at": pa.array(e.moments[1]).cast(TIME),
            "to_wh": e.number(TO_WH, e.unread),
            "usage_wh": e.number(USAGE_WH),
            "amount_tiyin": e.number(AMOUNT),
            "balance_tiyin": e.number(BALANCE),
            "tariff": coded(tariff, self.tariffs),
            "basis": coded(e.kinds[1], BASES),
        }
        if e.from_wh is not None:
            columns["from_wh"] = numbers(e.from_wh)
        return without_empty(columns)

    def _forecasts(self) -> pa.RecordBatch:
        column = {name: np.ascontiguousarray(self.forecasts[name]) for name in FORECAST.names or ()}
        columns = {
            "ordinal": steps(column["ordinal"]),
            "n": pa.array(column["n"]),
            "account_id": self.ids.column(column["account"], self.count),
            "forecast_at": pa.array(column["forecast_at"]).cast(TIME),
            "balance_tiyin": narrow(column["balance_tiyin"]),
            "usage_wh_per_day": numbers(column["usage_wh_per_day"]),
        }
        for name in ("depletes_at", "earliest_at", "latest_at"):
            columns[name] = pa.array(column[name], mask=column[name] == FOREVER).cast(TIME)
        return without_empty(columns)


def take_events(p: Partition, readings: Readings | None) -> Settled:
    """What has been written since the last time. Incidents that changed nothing are only counted."""
    ledger = p.ledger
    entries, incidents, forecasts, _ = ledger.size.tolist()
    p.take_notices()
    what = ledger.incidents["what"][:incidents]
    p.ignore("reading", int(np.count_nonzero(what == UNCHANGED)))
    settled = Settled(
        p.number,
        p.count,
        p.account_ids,
        list(p.book.names),
        p.held_records,
        Entries.of(ledger.entries[:entries]) if entries else None,
        ledger.forecasts[:forecasts].copy(),
        p.events,
        p.notices,
        ledger.incidents[:incidents][what != UNCHANGED],
        readings,
    )
    p.events, p.notices = {}, []
    ledger.size[:] = 0
    if ledger.entries.size > MOST_ENTRIES_KEPT:
        p.ledger = new_ledger(MOST_ENTRIES_KEPT // 2)
    return settled


# entries

STEP, TO_WH, USAGE_WH, AMOUNT, BALANCE = range(5)  # the numbers of an entry that mostly fit in 32 bits
NUMBERS = ("ordinal", "to_wh", "usage_wh", "amount_tiyin", "balance_tiyin")


@dataclass(frozen=True)
class Entries:
    """Rows of ENTRY as columns.

    numbers: int32[5, n], NUMBERS in turn, an ordinal as the step from the one before. wide: for each of them the same as int64
    if they do not all fit. moments: int64[2, n], from_at and to_at. codes: int32[3, n], n, account and tariff. kinds:
    int8[2, n], kind and basis. untimed, unread: where from_at and to_wh are none. from_wh: if it is not to_wh − |usage_wh|.
    """

    numbers: NDArray[np.int32]
    wide: list[NDArray[np.int64] | None]
    moments: NDArray[np.int64]
    codes: NDArray[np.int32]
    kinds: NDArray[np.int8]
    untimed: NDArray[np.bool_] | None
    unread: NDArray[np.bool_] | None
    from_wh: NDArray[np.int64] | None

    @classmethod
    def of(cls, rows: Any) -> Entries:
        """A copy of them."""
        values, fits, moments, codes, kinds, absent, some_untimed, some_unread, implied = _spread(rows)
        wide = [None if fits[k] else _wide(rows, k) for k in range(len(NUMBERS))]
        from_wh = None if implied else rows["from_wh"].copy()
        untimed, unread = (absent[0] if some_untimed else None), (absent[1] if some_unread else None)
        return cls(values, wide, moments, codes, kinds, untimed, unread, from_wh)

    def number(self, k: int, absent: NDArray[np.bool_] | None = None) -> pa.Array:
        """One of NUMBERS."""
        wide = self.wide[k]
        return pa.array(self.numbers[k] if wide is None else wide, mask=absent)


def _wide(rows: Any, k: int) -> NDArray[np.int64]:
    return np.diff(rows["ordinal"], prepend=0) if k == STEP else rows[NUMBERS[k]].copy()


@loop
def _spread(
    rows: Any,
) -> tuple[
    NDArray[np.int32],
    NDArray[np.bool_],
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.int8],
    NDArray[np.bool_],
    bool,
    bool,
    bool,
]:
    """Rows of ENTRY as the columns of Entries, in one pass over them: numbers, whether each fits in 32 bits (to_wh where it is
    there), moments, codes, kinds, where from_at and to_wh are none and whether they are anywhere, whether from_wh is implied.
    """
    rows = untracked(rows)
    values = np.empty((5, rows.size), np.int32)
    moments = np.empty((2, rows.size), np.int64)
    codes = np.empty((3, rows.size), np.int32)
    kinds = np.empty((2, rows.size), np.int8)
    absent = np.empty((2, rows.size), np.bool_)
    fits = np.ones(5, np.bool_)
    before, some_untimed, some_unread, implied = 0, False, False, True
    for i in range(rows.size):
        row = rows[i]
        untimed, unread = row.from_at == NONE, row.to_wh == NONE
        given = (row.ordinal - before, 0 if unread else row.to_wh, row.usage_wh, row.amount_tiyin, row.balance_tiyin)
        before = row.ordinal
        for k in range(5):
            inside = -(2**31) <= given[k] < 2**31
            values[k, i] = given[k] if inside else 0
            fits[k] &= inside
        moments[0, i], moments[1, i] = row.from_at, row.to_at
        codes[0, i], codes[1, i], codes[2, i] = row.n, row.account, row.tariff
        kinds[0, i], kinds[1, i] = row.kind, row.basis
        absent[0, i], absent[1, i] = untimed, unread
        some_untimed |= untimed
        some_unread |= unread
        implied &= untimed or row.to_wh - abs(row.usage_wh) == row.from_wh
    return values, fits, moments, codes, kinds, absent, some_untimed, some_unread, implied


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
