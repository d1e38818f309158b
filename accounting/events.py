"""What a body of the journal has caused, from the ledger's rows to events as packed columns.

`take_events` takes out of the partition what the next body would write over, which is quickly done; the columns are made of it
by `Settled.events`, which another thread may do beside the rules, body after body in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from accounting.columns import coded, filled, in_order, narrow, numbers, packed, rows_as_columns, steps, without_empty
from accounting.compiled import loop, rule, untracked
from accounting.incidents import HeldTexts, incident_events
from accounting.ledger import ENTRY, FORECAST, UNCHANGED
from accounting.notices import Told, notice_events
from accounting.records import BASES, ENTRY_KINDS, EVENTS, TIME
from accounting.state import FOREVER, NONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accounting.partition import Partition
    from accounting.readings import Readings

_SPARE: deque[Any] = deque(maxlen=8)  # room for entries, of bodies whose events are made: memory still at hand


class AccountIds:
    """The ids of a partition's accounts by number, as columns of events need them."""

    def __init__(self, ids: list[str]) -> None:
        """ids: grows with the partition."""
        self._ids = ids
        self._all = pa.array([], pa.string())

    def column(self, accounts: NDArray[np.int32], count: int) -> pa.DictionaryArray:
        """Those of accounts below `count`. Where they are many the dictionary is all there are, else those that occur."""
        if len(self._all) < count:
            self._all = pa.array(self._ids[:count], pa.string())
        if accounts.size >= count:
            return pa.DictionaryArray.from_arrays(filled(pa.int32(), accounts), self._all, safe=False)
        codes, used = _compact(accounts, count)
        return pa.DictionaryArray.from_arrays(filled(pa.int32(), codes), self._all.take(pa.array(used)), safe=False)


@dataclass(frozen=True)
class Settled:
    """What a body has caused. It is the partition's no longer, but for ids and held texts, which nobody else touches."""

    number: int
    count: int
    ids: AccountIds
    tariffs: Sequence[str]
    held: HeldTexts
    ledger_entries: Any
    entry_count: int
    forecasts: Any
    rows: dict[str, list[tuple[Any, ...]]]
    notices: list[Told]
    incidents: Any
    readings: Readings | None

    def events(self) -> dict[str, pa.RecordBatch]:
        """The events by kind as packed columns with `ordinal` and `n`, each kind in order. To be called once."""
        columns: dict[str, pa.RecordBatch] = {}
        if self.entry_count:
            columns["entry"] = self._entries(Entries.of(self.ledger_entries[: self.entry_count]))
            _SPARE.append(self.ledger_entries)
        if self.forecasts.size:
            columns["forecast"] = self._forecasts()
        made = incident_events(self.number, self.incidents, self.readings, self.held)
        if self.notices:
            made["notice"] = notice_events(self.notices)
        for kind in EVENTS:  # the order within a body is for good: what an older version wrote is to be found again
            if kind in made or kind in self.rows:
                parts = [rows_as_columns(kind, self.rows[kind])] if kind in self.rows else []
                columns[kind] = packed(in_order(kind, [*parts, made[kind]] if kind in made else parts))
        return columns

    def _entries(self, e: Entries) -> pa.RecordBatch:
        s = e.spread
        timed, read, priced, based = e.there
        columns = {
            "ordinal": e.number("step"),
            "n": pa.array(s.n),
            "account_id": self.ids.column(s.account, self.count),
            "kind": coded(pa.array(s.kind), ENTRY_KINDS),
            "from_at": filled(TIME, s.from_at, timed),
            "to_at": filled(TIME, s.to_at),
            "to_wh": e.number("to_wh", read),
            "usage_wh": e.number("usage_wh"),
            "amount_tiyin": e.number("amount_tiyin"),
            "balance_tiyin": e.number("balance_tiyin"),
            "tariff": coded(filled(pa.int32(), s.tariff, priced), self.tariffs),
            "basis": coded(filled(pa.int8(), s.basis, based), BASES),
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
        ledger.entries,
        entries,
        ledger.forecasts[:forecasts].copy(),
        p.events,
        p.notices,
        ledger.incidents[:incidents][what != UNCHANGED],
        readings,
    )
    p.events, p.notices = {}, []
    ledger.size[:] = 0
    if entries:  # given away as they are, they are too many to copy
        p.ledger = ledger._replace(entries=_room())
    return settled


def _room() -> Any:
    try:
        return _SPARE.pop()
    except IndexError:
        return np.empty(0, ENTRY)


# entries


class Spread(NamedTuple):
    """Rows of ENTRY as columns, in the types they mostly fit in. step: an ordinal as the step from the one before. absent: bit
    by bit, where from_at, to_wh, tariff and basis are none. beyond: of step, to_wh, usage_wh, amount_tiyin and balance_tiyin
    all bits but the sign, below 2³¹ if all fit. explicit: not 0 if some from_wh is not to_wh − |usage_wh|.
    """

    step: NDArray[np.int32]
    to_wh: NDArray[np.int32]
    usage_wh: NDArray[np.int32]
    amount_tiyin: NDArray[np.int32]
    balance_tiyin: NDArray[np.int32]
    from_at: NDArray[np.int64]
    to_at: NDArray[np.int64]
    n: NDArray[np.int32]
    account: NDArray[np.int32]
    tariff: NDArray[np.int32]
    kind: NDArray[np.int8]
    basis: NDArray[np.int8]
    absent: NDArray[np.uint8]
    beyond: NDArray[np.int64]
    explicit: int


@dataclass(frozen=True)
class Entries:
    """Rows of ENTRY, spread. wide: those numbers as int64 that do not all fit in 32 bits. there: `absent` turned round, none
    where nothing is absent. from_wh: if it has to be told.
    """

    spread: Spread
    wide: dict[str, NDArray[np.int64]]
    there: list[NDArray[np.uint8] | None]
    from_wh: NDArray[np.int64] | None

    @classmethod
    def of(cls, rows: Any) -> Entries:
        """All of them."""
        spread = _spread(rows)
        names = [name for name, beyond in zip(Spread._fields, spread.beyond, strict=False) if beyond >> 31]
        wide = {name: np.diff(rows["ordinal"], prepend=0) if name == "step" else rows[name].copy() for name in names}
        there = [~bits if bits.any() else None for bits in spread.absent]
        return cls(spread, wide, there, rows["from_wh"].copy() if spread.explicit else None)

    def number(self, name: str, there: NDArray[np.uint8] | None = None) -> pa.Array:
        """A column of numbers."""
        if name in self.wide:
            return filled(pa.int64(), self.wide[name], there)
        return filled(pa.int32(), getattr(self.spread, name), there)


@loop
def _spread(rows: Any) -> Spread:
    """Rows of ENTRY as columns, in one pass over them."""
    rows, count = untracked(rows), rows.size
    step, to_wh, usage_wh, amount_tiyin, balance_tiyin = (
        np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32),
        np.empty(count, np.int32),
    )  # fmt: skip
    from_at, to_at = np.empty(count, np.int64), np.empty(count, np.int64)
    n, account, tariff = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    kind, basis = np.empty(count, np.int8), np.empty(count, np.int8)
    absent = np.zeros((4, (count + 7) // 8), np.uint8)
    before = beyond_step = beyond_to = beyond_usage = beyond_amount = beyond_balance = explicit = 0
    for i in range(count):
        row = rows[i]
        timed, read, priced, based = row.from_at != NONE, row.to_wh != NONE, row.tariff >= 0, row.basis >= 0
        if not (timed and read and priced and based):
            for k, is_there in enumerate((timed, read, priced, based)):
                absent[k, i >> 3] |= np.uint8(not is_there) << np.uint8(i & 7)
        reached = row.to_wh if read else 0
        explicit |= reached - abs(row.usage_wh) - row.from_wh if timed else 0
        step[i], to_wh[i], usage_wh[i] = _low(row.ordinal - before), _low(reached), _low(row.usage_wh)
        amount_tiyin[i], balance_tiyin[i] = _low(row.amount_tiyin), _low(row.balance_tiyin)
        beyond_step |= _bits(row.ordinal - before)
        beyond_to |= _bits(reached)
        beyond_usage |= _bits(row.usage_wh)
        beyond_amount |= _bits(row.amount_tiyin)
        beyond_balance |= _bits(row.balance_tiyin)
        before = row.ordinal
        from_at[i], to_at[i], n[i], account[i] = row.from_at, row.to_at, row.n, row.account
        tariff[i], kind[i], basis[i] = row.tariff, row.kind, row.basis
    beyond = np.array([beyond_step, beyond_to, beyond_usage, beyond_amount, beyond_balance])
    return Spread(
        step, to_wh, usage_wh, amount_tiyin, balance_tiyin, from_at, to_at, n, account, tariff, kind, basis, absent,
        beyond, explicit,
    )  # fmt: skip


@rule
def _bits(number: int) -> int:
    """Its bits but for the sign: below 2³¹ where it fits in 32 bits."""
    return number ^ (number >> 63)


@rule
def _low(number: int) -> int:
    """The number if it fits in 32 bits."""
    return number if -(2**31) <= number < 2**31 else 0


@loop
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
