"""An account's statement: what it began with, what came and went, what it ends with, so that it adds up on the page.

It is worked out from the ledger and the records alone, apart from the code that charged: the month's use before each piece,
the tariff version and the families in force, and the split into blocks are found anew, and each charge is held against its
entry. What the blocks do not explain stands there as a rest; there should be none.

An entry belongs to the moment its usage ended, or its credit stands at. So the statement of a month that is past changes when
something about that month becomes known late: corrections are listed, and the months go on adding up.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from accounting.calendar import US_PER_DAY, UTC_OFFSET_US
from accounting.records import RECORDS, render_id
from warehouse.errors import WarehouseError
from warehouse.tables import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    import duckdb
    from numpy.typing import NDArray

TASHKENT = timezone(timedelta(microseconds=UTC_OFFSET_US))
Blocks = tuple[tuple[int | None, int], ...]  # (limit in kWh, price in tiyin per kWh)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UnknownAccountError(WarehouseError):
    """There is no such account in the database."""


@dataclass(frozen=True)
class Block:
    """Usage within one block of a tariff, and what it cost. Its limits, those for the account's families; upto None: none."""

    above_kwh: int
    upto_kwh: int | None
    price_tiyin_per_kwh: int
    usage_wh: int
    amount_tiyin: int


@dataclass
class Usage:
    """Usage of a day, or of a stretch between two readings. rest_tiyin: what of the charge the blocks do not explain."""

    first_day: date
    last_day: date
    tariff: str | None
    basis: str
    usage_wh: int = 0
    amount_tiyin: int = 0
    blocks: list[Block] = field(default_factory=list)
    rest_tiyin: int = 0


@dataclass(frozen=True)
class Line:
    """Any other entry: what it is, when it stands, what it came to."""

    entry_id: str
    at: datetime
    kind: str
    usage_wh: int
    amount_tiyin: int
    text: str


@dataclass
class Statement:
    """The page. closing = opening + credits + usage + corrections; adds_up: so it is, and closing is the ledger's."""

    account_id: str
    month: str | None
    first_day: date
    last_day: date
    opening_tiyin: int
    closing_tiyin: int
    credits: list[Line]
    usage: list[Usage]
    corrections: list[Line]
    credits_tiyin: int
    usage_tiyin: int
    corrections_tiyin: int
    usage_wh: int
    explained: bool
    adds_up: bool
    account: dict[str, Any]


def make_statement(con: duckdb.DuckDBPyConnection, account_id: str, month: date | None = None) -> Statement:
    """The statement of an account: of one month in Asia/Tashkent, or of all its time."""
    account = look_up(con, account_id)
    ledger = read_ledger(con, account)
    if not len(ledger.ordinal):
        raise UnknownAccountError(f"Account {account_id} has no entries yet.")
    if month is None:
        within = np.ones(len(ledger.amount), bool)
        first, last = day_of(ledger.value_at.min()), day_of(ledger.value_at.max())
        later_tiyin = 0
    else:
        start, end = start_of(month), start_of(next_month(month))
        within = (ledger.value_at >= start) & (ledger.value_at < end)
        first, last = month, next_month(month) - timedelta(days=1)
        later_tiyin = int(ledger.amount[ledger.value_at >= end].sum())
    opening_tiyin = int(ledger.amount[~within].sum()) - later_tiyin
    closing_tiyin = account["balance_tiyin"] - later_tiyin
    usage = usage_by_day(ledger, read_prices(con, account, ledger), late_readings(con, account, ledger), within)
    credited = lines(ledger, within & ledger.is_credit, read_credits(con, account))
    corrections = lines(ledger, within & (ledger.kind == "correction"), {})
    sums = [sum(line.amount_tiyin for line in part) for part in (credited, usage, corrections)]
    return Statement(
        account_id=account_id,
        month=None if month is None else f"{month:%Y-%m}",
        first_day=first,
        last_day=last,
        opening_tiyin=opening_tiyin,
        closing_tiyin=closing_tiyin,
        credits=credited,
        usage=usage,
        corrections=corrections,
        credits_tiyin=sums[0],
        usage_tiyin=sums[1],
        corrections_tiyin=sums[2],
        usage_wh=int(ledger.usage_wh[within].sum()),
        explained=not any(u.rest_tiyin for u in usage),
        adds_up=opening_tiyin + sum(sums) == closing_tiyin,
        account=account,
    )


def look_up(con: duckdb.DuckDBPyConnection, account_id: str) -> dict[str, Any]:
    """The account as it stands: its balance, and the latest version taken. Raises UnknownAccountError."""
    found = con.execute(
        """
        SELECT b.*, a.meter_id, a.district, a.tariff, coalesce(a.families, 1) AS families, a.closed_at
        FROM main.balances b
        LEFT JOIN journal.account a ON a.account_id = b.account_id AND a.partition = b.partition AND NOT EXISTS (
            FROM events.refused r WHERE r.record_kind = 'account' AND r.partition = a.partition AND r.ordinal = a.ordinal
        )
        WHERE b.account_id = ? ORDER BY a.effective_at DESC, a.ordinal DESC LIMIT 1
        """,
        [account_id],
    )
    row = found.fetchone()
    if row is None:
        raise unknown_account(con, account_id)
    return dict(zip([column[0] for column in found.description or []], row, strict=True))


def unknown_account(con: duckdb.DuckDBPyConnection, account_id: str) -> UnknownAccountError:
    """That there is no such account, and which ones are named alike."""
    near = con.execute(
        "SELECT account_id FROM main.balances ORDER BY levenshtein(account_id, ?), account_id LIMIT 3", [account_id]
    ).fetchall()
    names = ", ".join(name for (name,) in near)
    return UnknownAccountError(
        f"There is no account {account_id}" + (f"; there is {names}." if names else ": nothing was loaded yet.")
    )


@dataclass(frozen=True)
class Ledger:
    """An account's entries in order of arrival, by column. Times in µs."""

    partition: int
    ordinal: NDArray[np.int64]
    n: NDArray[np.int32]
    kind: NDArray[np.object_]
    from_at: NDArray[np.int64]
    to_at: NDArray[np.int64]
    from_wh: NDArray[np.int64]
    to_wh: NDArray[np.int64]
    usage_wh: NDArray[np.int64]
    amount: NDArray[np.int64]
    tariff: NDArray[np.object_]
    basis: NDArray[np.object_]

    @property
    def value_at(self) -> NDArray[np.int64]:
        """The moment an entry belongs to; of usage up to midnight, the day that ends there."""
        return np.where(self.from_at == NEVER, self.to_at, self.to_at - 1)

    @property
    def is_credit(self) -> NDArray[np.bool_]:
        """Everything that neither charges usage nor corrects what was charged."""
        return (self.kind != "usage") & (self.kind != "correction")


NEVER = -(2**62)


def read_ledger(con: duckdb.DuckDBPyConnection, account: dict[str, Any]) -> Ledger:
    """Read an account's entries."""
    sql = f"""
        SELECT ordinal, n, kind, coalesce(epoch_us(from_at), {NEVER}), epoch_us(to_at), coalesce(from_wh, 0),
            coalesce(to_wh, 0), usage_wh, amount_tiyin, tariff, basis
        FROM events.entry WHERE account_id = ? ORDER BY ordinal, n
        """
    entries = con.cursor().sql(sql, params=[account["account_id"]]).to_arrow_table()
    return Ledger(account["partition"], *(column.to_numpy() for column in entries.columns))


# ---- prices ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """A version of the account or of a tariff. own_at: its own date; effect_at: since when it counts; ordinal: its arrival."""

    ordinal: int
    own_at: int
    effect_at: int
    tariff: str
    families: int = 1
    blocks: Blocks = ()


@dataclass
class Prices:
    """What an account is charged by, at any moment, as it was known when a record arrived."""

    accounts: list[Version]
    tariffs: list[Version]

    def blocks(self, at: NDArray[np.int64], ordinal: NDArray[np.int64]) -> list[Blocks | None]:
        """For each moment and arrival the blocks (limit in kWh, price) in force, the limits times the families.

        Nothing changes between two changes or two arrivals, so it is found once for each pair of places among them.
        """
        versions = [*self.accounts, *self.tariffs]
        moments, arrivals = (sorted({getattr(v, name) for v in versions}) for name in ("effect_at", "ordinal"))
        place = np.searchsorted(moments, at, "right") * (len(arrivals) + 1) + np.searchsorted(
            arrivals, ordinal, "right"
        )
        _, first, which = np.unique(place, return_index=True, return_inverse=True)
        found = [self._blocks(int(at[i]), int(ordinal[i])) for i in first]
        return [found[k] for k in which.tolist()]

    def _blocks(self, at: int, ordinal: int) -> Blocks | None:
        account = in_force(self.accounts, at, ordinal)
        if account is None:
            return None
        tariff = in_force([t for t in self.tariffs if t.tariff == account.tariff], at, ordinal)
        if tariff is None:
            return None
        return tuple((None if upto is None else upto * account.families, price) for upto, price in tariff.blocks)


def in_force(versions: list[Version], at: int, ordinal: int) -> Version | None:
    """Of the versions in effect by then, the one with the latest date of its own; of the same date, the last to arrive."""
    arrived = [v for v in versions if v.effect_at <= at and v.ordinal <= ordinal]
    return max(arrived, key=lambda v: (v.own_at, v.ordinal), default=None)


def read_prices(con: duckdb.DuckDBPyConnection, account: dict[str, Any], ledger: Ledger) -> Prices:
    """The versions of the account and of its tariffs, as they first arrived in the account's partition."""
    key = {"account": account["account_id"], "partition": account["partition"]}
    given = ", ".join(quoted(c.name) for c in RECORDS["account"] if not c.internal and c.name != "received_at")
    accounts = con.execute(
        f"""
        SELECT min(ordinal), epoch_us(effective_at), tariff, coalesce(families, 1) FROM journal.account a
        WHERE account_id = $account AND partition = $partition AND NOT EXISTS (
            FROM events.refused r WHERE r.record_kind = 'account' AND r.partition = a.partition AND r.ordinal = a.ordinal
        ) GROUP BY {given} ORDER BY 1
        """,
        key,
    ).fetchall()
    tariffs = con.execute(
        """
        SELECT min(arrived), epoch_us(effective_on::TIMESTAMP) - $offset, tariff, limits, prices FROM (
            SELECT tariff, effective_on, max(ordinal) AS arrived,
                list(block_upto_kwh ORDER BY ordinal) AS limits, list(price_tiyin_per_kwh ORDER BY ordinal) AS prices
            FROM (SELECT *, ordinal - block AS version FROM journal.tariff WHERE partition = $partition)
            WHERE list_contains($tariffs, tariff)
            GROUP BY tariff, effective_on, version
        ) GROUP BY tariff, effective_on, limits, prices ORDER BY 1
        """,
        {
            "partition": account["partition"],
            "tariffs": [tariff for _, _, tariff, _ in accounts],
            "offset": UTC_OFFSET_US,
        },
    ).fetchall()
    settled = Settled(ledger)
    first = accounts[0][0] if accounts else 0
    return Prices(
        [
            Version(o, own, NEVER if o == first else settled.effect_of(o, own), tariff, families)
            for o, own, tariff, families in accounts
        ],
        [
            Version(o, own, settled.effect_of(o, own), tariff, blocks=tuple(zip(limits, prices, strict=True)))
            for o, own, tariff, limits, prices in tariffs
        ],
    )


class Settled:
    """How far an account had been settled when a record arrived."""

    def __init__(self, ledger: Ledger) -> None:
        measured = (ledger.kind == "usage") & (ledger.basis != "estimated")
        self._ordinals = ledger.ordinal[measured].tolist()
        self._ends = ledger.to_at[measured].tolist()

    def effect_of(self, ordinal: int, own_at: int) -> int:
        """A version takes effect at its own date, or at the last measured register where that was already later."""
        before = bisect_left(self._ordinals, ordinal)
        return max(own_at, self._ends[before - 1]) if before else own_at


def split(blocks: Blocks, from_wh: int, to_wh: int) -> list[Block]:
    """What a month's Wh from from_wh to to_wh cost, block by block: differences of floored sums, so they add up."""
    found, low = [], 0
    sums = [0, 0]  # price times Wh of all blocks so far, up to from_wh and to to_wh
    for upto_kwh, price in blocks:
        top = to_wh if upto_kwh is None else upto_kwh * 1000
        there = [max(0, min(wh, top) - low) for wh in (from_wh, to_wh)]
        more = [before + wh * price for before, wh in zip(sums, there, strict=True)]
        cost = more[1] // 1000 - more[0] // 1000 - (sums[1] // 1000 - sums[0] // 1000)
        if there[1] != there[0] or cost:
            found.append(Block(low // 1000, upto_kwh, price, there[1] - there[0], cost))
        if upto_kwh is None:
            break
        sums, low = more, top
    return found


# ---- usage by day and block ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LateReading:
    """A reading that was found inside a gap, and by how much it moved the month's use since."""

    read_at: int
    register_wh: int
    modulus_wh: int


def usage_by_day(
    ledger: Ledger, prices: Prices, late: dict[int, LateReading], within: NDArray[np.bool_]
) -> list[Usage]:
    """Walk through the account's entries, counting the month's use, and gather what lies `within` by day and block.

    A run is usage of one day at one price without a break; its cost is one difference, as the sum of its pieces' is. A piece
    of up to a day belongs to the day it ends on.
    """
    days: dict[tuple[int, int, str | None, str], list[tuple[int, int, int, Any]]] = {}
    month, month_wh, estimate = -1, 0, None
    starts_on = (ledger.from_at + UTC_OFFSET_US) // US_PER_DAY
    to_day = (ledger.to_at - 1 + UTC_OFFSET_US) // US_PER_DAY
    from_day = np.where(ledger.to_at - ledger.from_at > US_PER_DAY, starts_on, to_day)
    months = (starts_on.astype("datetime64[D]")).astype("datetime64[M]").astype(np.int64)
    columns: list[NDArray[Any]] = [ledger.kind, ledger.basis, ledger.tariff, from_day, to_day, months]
    columns += [ledger.usage_wh, ledger.amount, within]
    in_force_then = prices.blocks(ledger.from_at, ledger.ordinal)
    for i, (kind, basis, tariff, first, last, in_month, usage_wh, amount, wanted, blocks) in enumerate(
        zip(*(column.tolist() for column in columns), in_force_then, strict=True)
    ):
        if kind == "correction":
            estimate = None
            if basis != "estimated" and (ordinal := int(ledger.ordinal[i])) in late:
                month_wh += shift_of(ledger, i, late[ordinal])
            continue
        if kind != "usage":
            continue
        of_estimate = basis == "estimated"
        counted_in, before_wh = (estimate or (month, month_wh)) if of_estimate else (month, month_wh)
        if counted_in != in_month:
            before_wh = 0
        if of_estimate:
            estimate = (in_month, before_wh + usage_wh)
        else:
            month, month_wh, estimate = in_month, before_wh + usage_wh, None
        if wanted:
            runs = days.setdefault((first, last, tariff, basis if of_estimate else "measured"), [])
            if runs and runs[-1][1] == before_wh and runs[-1][3] is blocks:
                runs[-1] = (runs[-1][0], before_wh + usage_wh, runs[-1][2] + amount, blocks)
            else:
                runs.append((before_wh, before_wh + usage_wh, amount, blocks))
    return [gather(*day, runs) for day, runs in sorted(days.items(), key=lambda item: item[0][:2])]


def gather(first: int, last: int, tariff: str | None, basis: str, runs: list[tuple[int, int, int, Any]]) -> Usage:
    """The usage of one day, or stretch of days, of its runs."""
    usage = Usage(day_number(first), day_number(last), tariff, basis)
    for from_wh, to_wh, amount, blocks in runs:
        usage.usage_wh += to_wh - from_wh
        usage.amount_tiyin += amount
        charged = (replace(b, amount_tiyin=-b.amount_tiyin) for b in split(blocks or (), from_wh, to_wh))
        usage.blocks = add_blocks(usage.blocks, charged)
    usage.rest_tiyin = usage.amount_tiyin - sum(block.amount_tiyin for block in usage.blocks)
    return usage


def add_blocks(blocks: Iterable[Block], more: Iterable[Block]) -> list[Block]:
    """Blocks put together, those of the same limits and price into one."""
    found: dict[tuple[int, int | None, int], Block] = {}
    for block in chain(blocks, more):
        key = block.above_kwh, block.upto_kwh, block.price_tiyin_per_kwh
        old = found.get(key)
        found[key] = (
            block if old is None else Block(*key, old.usage_wh + block.usage_wh, old.amount_tiyin + block.amount_tiyin)
        )
    return sorted(found.values(), key=lambda block: block.above_kwh)


def shift_of(ledger: Ledger, i: int, late: LateReading) -> int:
    """By how much the month's use at a gap's end moved when a late reading cut it anew: "A late reading" in the bill."""
    a, b, at = int(ledger.from_at[i]), int(ledger.to_at[i]), late.read_at
    start = start_of(day_of(b).replace(day=1))
    if start <= a:
        return 0
    whole = int(ledger.to_wh[i] - ledger.from_wh[i]) % late.modulus_wh
    one = int(late.register_wh - ledger.from_wh[i]) % late.modulus_wh
    before = whole * (start - a) // (b - a)
    after = one * (start - a) // (at - a) if start <= at else one + (whole - one) * (start - at) // (b - at)
    return before - after


def late_readings(con: duckdb.DuckDBPyConnection, account: dict[str, Any], ledger: Ledger) -> dict[int, LateReading]:
    """The readings, by ordinal, that made a correction other than of an estimate."""
    late = (ledger.kind == "correction") & (ledger.basis != "estimated")
    if not late.any():
        return {}
    found = con.execute(
        """
        SELECT r.ordinal, epoch_us(r.read_at), r.register_wh, coalesce(
            (SELECT max_by(x.register_modulus_wh, x.ordinal) FROM journal.meter_exchange x
             WHERE x.account_id = $account AND x.partition = $partition AND x.ordinal < r.ordinal),
            (SELECT min_by(a.register_modulus_wh, a.ordinal) FROM journal.account a
             WHERE a.account_id = $account AND a.partition = $partition),
            1000000000)
        FROM journal.reading r
        WHERE r.account_id = $account AND r.partition = $partition AND list_contains($ordinals, r.ordinal)
        """,
        {
            "account": account["account_id"],
            "partition": account["partition"],
            "ordinals": ledger.ordinal[late].tolist(),
        },
    ).fetchall()
    return {ordinal: LateReading(*rest) for ordinal, *rest in found}


# ---- the other lines -------------------------------------------------------------------------------------------------


def read_credits(con: duckdb.DuckDBPyConnection, account: dict[str, Any]) -> dict[int, str]:
    """What is known of a payment or adjustment, by the ordinal of its record."""
    found = con.execute(
        """
        SELECT ordinal, concat_ws(' ', channel, payment_id, 'takes back ' || reverses) FROM journal.payment
        WHERE account_id = $account AND partition = $partition
        UNION ALL
        SELECT ordinal, concat_ws(' ', adjustment_id, reason, '(' || author || ')') FROM journal.adjustment
        WHERE account_id = $account AND partition = $partition
        """,
        {"account": account["account_id"], "partition": account["partition"]},
    ).fetchall()
    return dict(found)


def lines(ledger: Ledger, which: NDArray[np.bool_], texts: dict[int, str]) -> list[Line]:
    """Entries as lines of the page, in order of time."""
    found = []
    for i in np.flatnonzero(which).tolist():
        kind = ledger.kind[i]
        text = texts.get(int(ledger.ordinal[i]), "")
        if kind == "correction":
            text = "an estimate given back" if ledger.basis[i] == "estimated" else "a reading that came late"
        elif kind == "opening":
            text = "brought along"
        at, usage_wh, amount = moment(ledger.to_at[i]), int(ledger.usage_wh[i]), int(ledger.amount[i])
        entry_id = render_id(ledger.partition, int(ledger.ordinal[i]), int(ledger.n[i]))
        found.append(Line(entry_id, at, kind, usage_wh, amount, text))
    return sorted(found, key=lambda line: line.at)


def moment(us: int) -> datetime:
    """A moment by the clocks of Tashkent."""
    return (EPOCH + timedelta(microseconds=int(us))).astimezone(TASHKENT)


def day_of(us: int) -> date:
    """The day in Asia/Tashkent that a moment lies in."""
    return moment(us).date()


def day_number(day: int) -> date:
    """The day of a number counted from 1970-01-01."""
    return date(1970, 1, 1) + timedelta(days=day)


def start_of(day: date) -> int:
    """The moment a day begins in Asia/Tashkent."""
    return (day - date(1970, 1, 1)).days * US_PER_DAY - UTC_OFFSET_US


def next_month(month: date) -> date:
    """The first day of the month after."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)
