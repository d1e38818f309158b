"""What the rules write: entries, forecasts and incidents as columns, in the order in which they came about.

An event is named by the record that caused it and a count. `Ledger.cause` holds the two: the ordinal of the record at work and
the next count; every event, of whatever kind, takes the next. Room is made by the caller: compiled code stops before a
record for which there might not be enough.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from accounting.compiled import compiled, row_type, rule, untracked
from accounting.state import NONE, Account

OPENING, USAGE, PAYMENT, REVERSAL, CORRECTION, ADJUSTMENT = 0, 1, 2, 3, 4, 5  # accounting.records.ENTRY_KINDS
MEASURED, ESTIMATED, INTERPOLATED, NO_BASIS = 0, 1, 2, -1  # accounting.records.BASES

ENTRY = row_type(
    [
        ("ordinal", "i8"),
        ("n", "i4"),
        ("account", "i4"),
        ("tariff", "i4"),
        ("kind", "u1"),
        ("basis", "i1"),
        ("from_at", "i8"),
        ("to_at", "i8"),
        ("from_wh", "i8"),
        ("to_wh", "i8"),
        ("usage_wh", "i8"),
        ("amount_tiyin", "i8"),
        ("balance_tiyin", "i8"),
    ]
)
FORECAST = row_type(
    [
        ("ordinal", "i8"),
        ("n", "i4"),
        ("account", "i4"),
        ("forecast_at", "i8"),
        ("balance_tiyin", "i8"),
        ("usage_wh_per_day", "i8"),
        ("depletes_at", "i8"),
        ("earliest_at", "i8"),
        ("latest_at", "i8"),
    ]
)

NOTICE = row_type(
    [
        ("ordinal", "i8"),
        ("n", "i4"),
        ("account", "i4"),
        ("kind", "u1"),  # a number of accounting.records.NOTICE_KINDS
        ("noticed_at", "i8"),
        ("send_after", "i8"),
        ("balance_tiyin", "i8"),
        ("pay_tiyin", "i8"),
        ("depletes_at", "i8"),
        ("episode", "i4"),
    ]
)

# What happened to a reading, or to the held one because of it, other than an entry. `subject` says which of the two.
INCIDENT = row_type(
    [
        ("ordinal", "i8"),
        ("n", "i4"),
        ("account", "i4"),
        ("what", "u1"),
        ("reason", "u1"),
        ("last_at", "i8"),
        ("last_wh", "i8"),
        ("held_ordinal", "i8"),
        ("held_n", "i4"),
        ("last_tick", "i8"),
    ]
)
REFUSED, HELD, HELD_SETTLED, HELD_REFUSED, UNCHANGED = 1, 2, 3, 4, 5


class Ledger(NamedTuple):
    """Rows with room, and how far each is filled: cause = [ordinal, next n, last tick];
    size = [entries, incidents, forecasts, notices].

    Few arrays, for each of them costs at every call of a compiled function.
    """

    entries: Any  # rows of ENTRY
    incidents: Any  # rows of INCIDENT
    forecasts: Any  # rows of FORECAST
    notices: Any  # rows of NOTICE
    cause: NDArray[np.int64]
    size: NDArray[np.int64]


def new_ledger(entries: int, incidents: int = 1024, forecasts: int = 1024, notices: int = 64) -> Ledger:
    """An empty ledger with room for so many."""
    room = zip((entries, incidents, forecasts, notices), (ENTRY, INCIDENT, FORECAST, NOTICE), strict=True)
    rows: list[Any] = [np.zeros(n, kind) for n, kind in room]
    return Ledger._make([*rows, np.array([0, 0, NONE]), np.zeros(4, np.int64)])


def make_room(ledger: Ledger, entries: int, incidents: int = 8, forecasts: int = 0, notices: int = 0) -> Ledger:
    """A ledger with the same content and room for so many more of each."""
    grown: list[Any] = []
    for rows, size, more in zip(
        ledger[:4], ledger.size.tolist(), (entries, incidents, forecasts, notices), strict=True
    ):
        if rows.size >= size + more:
            grown.append(rows)
            continue
        larger = np.empty(max(size + more, rows.size * 2), rows.dtype)
        larger[:size] = rows[:size]
        grown.append(larger)
    return Ledger._make([*grown, ledger.cause, ledger.size])


@rule
def hold_ledger(ledger: Ledger) -> Ledger:
    """The ledger for a compiled loop, its arrays untracked."""
    return Ledger(
        untracked(ledger.entries),
        untracked(ledger.incidents),
        untracked(ledger.forecasts),
        untracked(ledger.notices),
        untracked(ledger.cause),
        untracked(ledger.size),
    )


@rule
def take_count(ledger: Ledger) -> int:
    """The count of the next event of the record at work."""
    n = ledger.cause[1]
    ledger.cause[1] = n + 1
    return n


@rule
def post(
    ledger: Ledger,
    account: int,
    kind: int,
    basis: int,
    tariff: int,
    from_at: int,
    to_at: int,
    from_wh: int,
    to_wh: int,
    usage_wh: int,
    amount_tiyin: int,
    balance_tiyin: int,
) -> None:
    """One entry. NONE stands for no from_at, from_wh or to_wh; −1 for no tariff or basis."""
    k = ledger.size[0]
    entry = ledger.entries[k]
    entry.ordinal = ledger.cause[0]
    entry.n = ledger.cause[1]
    entry.account = account
    entry.kind = kind
    entry.basis = basis
    entry.tariff = tariff
    entry.from_at = from_at
    entry.to_at = to_at
    entry.from_wh = from_wh
    entry.to_wh = to_wh
    entry.usage_wh = usage_wh
    entry.amount_tiyin = amount_tiyin
    entry.balance_tiyin = balance_tiyin
    ledger.size[0] = k + 1
    ledger.cause[1] += 1


@compiled
def note(ledger: Ledger, account: int, what: int, reason: int, s: Account, of_held: bool) -> int:
    """One incident: this reading, or the account's held one, was refused, held or settled. Its count."""
    k = ledger.size[1]
    incident = ledger.incidents[k]
    incident.ordinal = ledger.cause[0]
    incident.n = ledger.cause[1]
    incident.account = account
    incident.what = what
    incident.reason = reason
    incident.last_at = s.last_at
    incident.last_wh = s.last_wh
    incident.held_ordinal = s.held_ordinal if of_held else NONE
    incident.held_n = s.held_n if of_held else 0
    incident.last_tick = ledger.cause[2]
    ledger.size[1] = k + 1
    return take_count(ledger)
