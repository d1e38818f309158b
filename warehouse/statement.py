"""An account's statement: what it began with, what came and went, what it ends with, so that it adds up on the page.

It is worked out from the ledger and the records alone, apart from the code that charged: the month's use before each piece,
the tariff version and the families in force, and the split into blocks are found anew, and each charge is held against its
entry. What the blocks do not explain stands there as a rest; there should be none.

An entry belongs to the moment its usage ended, or its credit stands at. So the statement of a month that is past changes when
something about that month becomes known late: corrections are listed, and the months go on adding up.

Registers stand as they were charged by: the opening one is the last that was settled by the period's start, the closing one
the last by its end, so what a period closes with the next one opens with. What they differ by, and the estimates given back
since, is the usage on the page.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from accounting.calendar import US_PER_DAY, US_PER_HOUR, US_PER_MINUTE, UTC_OFFSET_US
from accounting.hours import parse_hours
from accounting.moments import TASHKENT, moment_of
from accounting.records import RECORDS, render_id
from warehouse.errors import WarehouseError
from warehouse.tables import quoted
from warehouse.usage import DayUse, read_days

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import duckdb
    from numpy.typing import NDArray

Blocks = tuple[tuple[int | None, int], ...]  # (limit in kWh, price in tiyin per kWh)
Details = dict[
    tuple[int, int | None], dict[str, str]
]  # by the ordinal of an entry, and its n where only that one is meant
PriceList = tuple[str | None, Blocks]  # the hours of the day it holds in, None: all


class UnknownAccountError(WarehouseError):
    """There is no such account in the database."""


@dataclass(frozen=True)
class Block:
    """Usage within one block of a tariff, and what it cost. Its limits, those for the account's families; upto None: none.
    hours: those of the day it holds in, where not in all.
    """

    above_kwh: int
    upto_kwh: int | None
    price_tiyin_per_kwh: int
    usage_wh: int
    amount_tiyin: int
    hours: str | None = None


@dataclass
class Usage:
    """Usage of a day, or of a stretch between two readings, with what of it each of its days may have used (`days`).

    rest_tiyin: what of the charge the blocks do not explain.
    """

    first_day: date
    last_day: date
    tariff: str | None
    basis: str
    usage_wh: int = 0
    amount_tiyin: int = 0
    blocks: list[Block] = field(default_factory=list)
    rest_tiyin: int = 0
    days: list[DayUse] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """Any other entry: what it is, when it stands, what it came to, and what its record says of it (channel, reason …)."""

    entry_id: str
    at: datetime
    kind: str
    usage_wh: int
    amount_tiyin: int
    details: dict[str, str]

    @property
    def read_at(self) -> datetime | None:
        """When the reading that came late was read."""
        return datetime.fromisoformat(self.details["read_at"]) if "read_at" in self.details else None


@dataclass(frozen=True)
class Estimate:
    """A step charged by estimate: its pieces within the period. stands: it was not given back since."""

    from_at: datetime
    to_at: datetime
    from_wh: int
    to_wh: int
    usage_wh: int
    amount_tiyin: int
    stands: bool


@dataclass(frozen=True)
class Register:
    """A register at a moment: measured, estimated, or interpolated where a step was cut."""

    at: datetime
    register_wh: int
    status: str


@dataclass(frozen=True)
class Stretch:
    """The registers of one meter within the period, and what was used between them. exchanged_at: when it came, if within."""

    meter_id: str
    opening: Register
    closing: Register
    usage_wh: int
    modulus_wh: int
    exchanged_at: datetime | None

    @property
    def rolled_over(self) -> bool:
        return self.opening.register_wh + self.usage_wh != self.closing.register_wh

    @property
    def adds_up(self) -> bool:
        return (self.opening.register_wh + self.usage_wh - self.closing.register_wh) % self.modulus_wh == 0


@dataclass
class Statement:
    """The page. closing = opening + credits + usage + corrections, and likewise in Wh: usage_wh = the registers' difference +
    given_back_wh (estimates charged within the period that do not stand, less what was given back in it).
    adds_up: so it is, and closing is the ledger's. usage_wh is net of what corrections gave back. final: of an account that
    was closed by the page's end, what the closing balance is: refund_due, to_pay or nothing_due.
    """

    account_id: str
    month: str | None
    first_day: date
    last_day: date
    known_until: datetime
    meter_id: str
    tariff: str
    families: int
    closed_at: datetime | None
    final: str | None
    opening_tiyin: int
    closing_tiyin: int
    registers: list[Stretch]
    credits: list[Line]
    usage: list[Usage]
    blocks: list[Usage]
    estimates: list[Estimate]
    corrections: list[Line]
    credits_tiyin: int
    usage_tiyin: int
    corrections_tiyin: int
    usage_wh: int
    registers_wh: int
    given_back_wh: int
    explained: bool
    adds_up: bool
    account: dict[str, Any]


@dataclass(frozen=True)
class Period:
    """Days of Asia/Tashkent, the first and the last among them; None: as far as there is anything."""

    first_day: date | None = None
    last_day: date | None = None

    @classmethod
    def of_month(cls, month: date) -> Period:
        return cls(month, next_month(month) - timedelta(days=1))

    def bounded(self, ledger: Ledger) -> tuple[date, date]:
        """The first and last day; open ends are where the account's entries begin and end."""
        first = self.first_day or day_of(ledger.value_at.min())
        last = self.last_day or day_of(ledger.value_at.max())
        return (first, max(first, last)) if self.last_day is None else (min(first, last), last)


def make_statement(
    con: duckdb.DuckDBPyConnection, account_id: str, month: date | None = None, period: Period | None = None
) -> Statement:
    """The statement of an account: of one month in Asia/Tashkent, of any period, or of all its time."""
    account = look_up(con, account_id)
    ledger = read_ledger(con, account)
    if not len(ledger.ordinal):
        raise UnknownAccountError(f"Account {account_id} has no entries yet.")
    wanted = Period.of_month(month) if month else period or Period()
    first, last = wanted.bounded(ledger)
    start, end = start_of(first), start_of(last + timedelta(days=1))
    within = (ledger.value_at >= start) & (ledger.value_at < end)
    later_tiyin = int(ledger.amount[ledger.value_at >= end].sum())
    opening_tiyin = int(ledger.amount[ledger.value_at < start].sum())
    closing_tiyin = account["balance_tiyin"] - later_tiyin
    prices, late = read_prices(con, account, ledger), late_readings(con, account, ledger)
    usage = usage_by_day(ledger, prices, late, within, lambda: read_days(con, account_id))
    credited = lines(ledger, within & ledger.is_credit, read_credits(con, account))
    corrections = lines(ledger, within & (ledger.kind == "correction"), late_details(late))
    sums = [sum(line.amount_tiyin for line in part) for part in (credited, usage, corrections)]
    standing = standing_estimate(ledger)
    registers = read_registers(con, account, ledger, standing, start, end)
    registers_wh, usage_wh = sum(r.usage_wh for r in registers), int(ledger.usage_wh[within].sum())
    given_back_wh = int(ledger.usage_wh[within & ledger.by_estimate & ~standing].sum())
    closed_at = None if account["closed_at"] is None else account["closed_at"].astimezone(TASHKENT)
    is_final = closed_at is not None and (wanted.last_day is None or moment(end) >= closed_at)
    version = in_force(prices.accounts, max(end - 1, int(ledger.value_at.min())), LAST)
    return Statement(
        account_id=account_id,
        month=None if month is None else f"{month:%Y-%m}",
        first_day=first,
        last_day=last,
        known_until=read_known_until(con, account),
        meter_id=registers[-1].meter_id if registers else account["meter_id"],
        tariff=version.tariff if version else account["tariff"],
        families=version.families if version else account["families"],
        closed_at=closed_at,
        final=final_of(closing_tiyin) if is_final else None,
        opening_tiyin=opening_tiyin,
        closing_tiyin=closing_tiyin,
        registers=registers,
        credits=credited,
        usage=usage,
        blocks=sum_up(usage, lambda _: None),
        estimates=estimates_within(ledger, within, standing),
        corrections=corrections,
        credits_tiyin=sums[0],
        usage_tiyin=sums[1],
        corrections_tiyin=sums[2],
        usage_wh=usage_wh,
        registers_wh=registers_wh,
        given_back_wh=given_back_wh,
        explained=not any(u.rest_tiyin for u in usage),
        adds_up=opening_tiyin + sum(sums) == closing_tiyin
        and registers_wh + given_back_wh == usage_wh
        and all(r.adds_up for r in registers),
        account=account,
    )


def final_of(closing_tiyin: int) -> str:
    """What the balance of a closed account is to the customer."""
    return "refund_due" if closing_tiyin > 0 else "to_pay" if closing_tiyin < 0 else "nothing_due"


def look_up(con: duckdb.DuckDBPyConnection, account_id: str) -> dict[str, Any]:
    """The account as it stands: its balance, and the latest version taken. Raises UnknownAccountError."""
    found = con.execute(
        """
        SELECT b.*, a.meter_id, a.district, a.tariff, coalesce(a.families, 1) AS families,
            max(a.closed_at) OVER () AS closed_at, a.language
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
    def by_estimate(self) -> NDArray[np.bool_]:
        """What was charged by estimate, and what of that was given back."""
        return self.basis == "estimated"

    @property
    def is_credit(self) -> NDArray[np.bool_]:
        """Everything that neither charges usage nor corrects what was charged."""
        return (self.kind != "usage") & (self.kind != "correction")


NEVER = -(2**62)
LAST = 2**62  # an arrival after all others


def read_ledger(con: duckdb.DuckDBPyConnection, account: dict[str, Any]) -> Ledger:
    """Read an account's entries."""
    sql = f"""
        SELECT ordinal, n, kind, coalesce(epoch_us(from_at), {NEVER}), epoch_us(to_at), coalesce(from_wh, 0),
            coalesce(to_wh, {NEVER}), usage_wh, amount_tiyin, tariff, basis
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
    lists: tuple[PriceList, ...] = ()


@dataclass
class Prices:
    """What an account is charged by, at any moment, as it was known when a record arrived."""

    accounts: list[Version]
    tariffs: list[Version]

    def blocks(
        self, at: NDArray[np.int64], ordinal: NDArray[np.int64]
    ) -> tuple[list[PriceList | None], NDArray[np.int64]]:
        """For each moment and arrival the blocks (limit in kWh, price) in force, the limits times the families: those
        there are, and which of them.

        Nothing changes between two changes, two arrivals and two edges of hours, so it is found once for each place
        among them.
        """
        versions = [*self.accounts, *self.tariffs]
        moments, arrivals = (sorted({getattr(v, name) for v in versions}) for name in ("effect_at", "ordinal"))
        place = np.searchsorted(moments, at, "right") * (len(arrivals) + 1) + np.searchsorted(
            arrivals, ordinal, "right"
        )
        edges = sorted({first for t in self.tariffs for hours, _ in t.lists for first, _ in parse_hours(hours)})
        if len(edges) > 1:
            place = place * (len(edges) + 1) + np.searchsorted(edges, minute_of(at), "right")
        _, first, which = np.unique(place, return_index=True, return_inverse=True)
        found = [self._blocks(int(at[i]), int(ordinal[i])) for i in first]
        return found, which

    def _blocks(self, at: int, ordinal: int) -> PriceList | None:
        account = in_force(self.accounts, at, ordinal)
        if account is None:
            return None
        tariff = in_force([t for t in self.tariffs if t.tariff == account.tariff], at, ordinal)
        if tariff is None:
            return None
        for hours, blocks in tariff.lists:
            if any(first <= minute_of(at) < end for first, end in parse_hours(hours)):
                limits = (None if upto is None else upto * account.families for upto, _ in blocks)
                return hours, tuple(zip(limits, (price for _, price in blocks), strict=True))
        return None


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
        SELECT min(arrived), epoch_us(effective_on::TIMESTAMP) - $offset, tariff, hours, limits, prices FROM (
            SELECT tariff, effective_on, max(ordinal) AS arrived, list(hours ORDER BY ordinal) AS hours,
                list(block_upto_kwh ORDER BY ordinal) AS limits, list(price_tiyin_per_kwh ORDER BY ordinal) AS prices
            FROM (SELECT *, ordinal - block AS version FROM journal.tariff WHERE partition = $partition)
            WHERE list_contains($tariffs, tariff)
            GROUP BY tariff, effective_on, version
        ) GROUP BY tariff, effective_on, hours, limits, prices ORDER BY 1
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
            Version(o, own, settled.effect_of(o, own), tariff, lists=price_lists(*columns))
            for o, own, tariff, *columns in tariffs
        ],
    )


def price_lists(hours: list[str | None], limits: list[int | None], prices: list[int]) -> tuple[PriceList, ...]:
    """The rows of a version as lists of blocks, by the hours they hold in."""
    found: dict[str | None, Blocks] = {}
    for held, limit, price in zip(hours, limits, prices, strict=True):
        found[held] = (*found.get(held, ()), (limit, price))
    return tuple(found.items())


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
    ledger: Ledger,
    prices: Prices,
    late: dict[int, LateReading],
    within: NDArray[np.bool_],
    days_of_pieces: Callable[[], dict[tuple[int, int], list[DayUse]]],
) -> list[Usage]:
    """Walk through the account's entries, counting the month's use, and gather what lies `within` by day and block.

    A run is usage of one day at one price without a break; its cost is one difference, as the sum of its pieces' is. A piece
    belongs to the day it ends on; one longer than a day, or over a gap, to all its days, and `days_of_pieces` tells their
    shares.
    """
    days: dict[tuple[int, int, str | None, str], list[tuple[int, int, int, Any]]] = {}
    pieces: dict[tuple[int, int, str | None, str], list[tuple[int, int]]] = {}
    month, month_wh, estimate = -1, 0, None
    starts_on = (ledger.from_at + UTC_OFFSET_US) // US_PER_DAY
    to_day = (ledger.to_at - 1 + UTC_OFFSET_US) // US_PER_DAY
    from_day = np.where(ledger.to_at - ledger.from_at > longest_of_a_day(ledger), starts_on, to_day)
    months = (starts_on.astype("datetime64[D]")).astype("datetime64[M]").astype(np.int64)
    in_force_then, which = prices.blocks(ledger.from_at, ledger.ordinal)
    columns: list[NDArray[Any]] = [ledger.kind, ledger.tariff, from_day, to_day, months, within, which]
    starts = run_starts((ledger.kind == "usage") & ~ledger.by_estimate, columns)
    of_runs = [column[starts].tolist() for column in (*columns, ledger.basis)]
    sums = [np.add.reduceat(column, starts).tolist() for column in (ledger.usage_wh, ledger.amount)]
    for i, kind, tariff, first, last, in_month, wanted, place, basis, usage_wh, amount in zip(
        starts.tolist(), *of_runs, *sums, strict=True
    ):
        blocks = in_force_then[place]
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
            day = first, last, tariff, basis if of_estimate else "measured"
            if first < last:  # then the run is one entry
                pieces.setdefault(day, []).append((int(ledger.ordinal[i]), int(ledger.n[i])))
            runs = days.setdefault(day, [])
            if runs and runs[-1][1] == before_wh and runs[-1][3] is blocks:
                runs[-1] = (runs[-1][0], before_wh + usage_wh, runs[-1][2] + amount, blocks)
            else:
                runs.append((before_wh, before_wh + usage_wh, amount, blocks))
    shares = days_of_pieces() if pieces else {}
    found = []
    for day, runs in sorted(days.items(), key=lambda item: item[0][:2]):
        found.append(gather(*day, runs))
        found[-1].days = [share for piece in pieces.get(day, ()) for share in shares.get(piece, ())]
    return found


def longest_of_a_day(ledger: Ledger) -> int:
    """How long a step may be to count with the day it ends on: one and a half times the usual, but an hour to a day (µs)."""
    measured = (ledger.kind == "usage") & (ledger.basis == "measured")
    usual = np.median((ledger.to_at - ledger.from_at)[measured]) if measured.any() else US_PER_DAY
    return int(min(max(usual * 1.5, US_PER_HOUR), US_PER_DAY))


def run_starts(plain: NDArray[np.bool_], columns: list[NDArray[Any]]) -> NDArray[np.int64]:
    """Where runs begin: `plain` entries that follow on each other, alike in all columns, are one; others each their own."""
    goes_on = plain[1:] & plain[:-1]
    for column in columns:
        goes_on &= column[1:] == column[:-1]
    return np.flatnonzero(np.concatenate(([True], ~goes_on)))


def gather(first: int, last: int, tariff: str | None, basis: str, runs: list[tuple[int, int, int, Any]]) -> Usage:
    """The usage of one day, or stretch of days, of its runs."""
    usage = Usage(day_number(first), day_number(last), tariff, basis)
    for from_wh, to_wh, amount, blocks in runs:
        usage.usage_wh += to_wh - from_wh
        usage.amount_tiyin += amount
        hours, of_hours = blocks or (None, ())
        charged = (replace(b, amount_tiyin=-b.amount_tiyin, hours=hours) for b in split(of_hours, from_wh, to_wh))
        usage.blocks = add_blocks(usage.blocks, charged)
    usage.rest_tiyin = usage.amount_tiyin - sum(block.amount_tiyin for block in usage.blocks)
    return usage


def add_blocks(blocks: Iterable[Block], more: Iterable[Block]) -> list[Block]:
    """Blocks put together, those of the same hours, limits and price into one."""
    found: dict[tuple[int, int | None, int, str | None], Block] = {}
    for block in chain(blocks, more):
        key = block.above_kwh, block.upto_kwh, block.price_tiyin_per_kwh, block.hours
        if (old := found.get(key)) is not None:
            usage_wh, amount_tiyin = old.usage_wh + block.usage_wh, old.amount_tiyin + block.amount_tiyin
            found[key] = replace(block, usage_wh=usage_wh, amount_tiyin=amount_tiyin)
        else:
            found[key] = block
    return sorted(found.values(), key=lambda block: (block.hours or "", block.above_kwh))


def sum_up(usage: Iterable[Usage], part_of: Callable[[Usage], Any]) -> list[Usage]:
    """Usage put together, block by block: that of one part, tariff and basis into one."""
    found: dict[Any, Usage] = {}
    for more in usage:
        key = part_of(more), more.tariff, more.basis
        into = found.setdefault(key, Usage(more.first_day, more.last_day, more.tariff, more.basis))
        into.first_day, into.last_day = min(into.first_day, more.first_day), max(into.last_day, more.last_day)
        into.usage_wh += more.usage_wh
        into.amount_tiyin += more.amount_tiyin
        into.rest_tiyin += more.rest_tiyin
        into.blocks = add_blocks(into.blocks, more.blocks)
    return list(found.values())


def by_month(usage: Iterable[Usage]) -> list[Usage]:
    """Usage by the month it ends in."""
    return sum_up(usage, lambda u: (u.last_day.year, u.last_day.month))


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


# ---- registers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A register that was charged up to: when, which, and how much the meter had counted by then since it came."""

    at: int
    register_wh: int
    counted_wh: int
    estimated: bool


@dataclass
class OnMeter:
    """The time an account had one meter (or one count of it: a reset begins another), and what was charged by it."""

    meter_id: str
    modulus_wh: int
    from_at: int
    until: int
    first: Point
    ends: NDArray[np.int64]
    registers: NDArray[np.int64]
    counted: NDArray[np.int64]
    estimated: NDArray[np.bool_]

    def last_by(self, at: int) -> Point:
        """The last register by a moment, or the first there is."""
        i = int(np.searchsorted(self.ends, at, "right")) - 1
        if i < 0:
            return self.first
        return Point(int(self.ends[i]), int(self.registers[i]), int(self.counted[i]), bool(self.estimated[i]))


def standing_estimate(ledger: Ledger) -> NDArray[np.bool_]:
    """Which entries are the estimate that was not given back."""
    estimated = ledger.by_estimate
    back = np.flatnonzero((ledger.kind == "correction") & estimated)
    standing: NDArray[np.bool_] = (ledger.kind == "usage") & estimated
    standing[: back[-1] + 1 if len(back) else 0] = False
    return standing


def estimates_within(ledger: Ledger, within: NDArray[np.bool_], standing: NDArray[np.bool_]) -> list[Estimate]:
    """The steps charged by estimate, each of the pieces that lie within. Pieces of one step follow on each other."""
    found: list[Estimate] = []
    step: list[int] = []
    chosen = np.flatnonzero(within & ledger.by_estimate & (ledger.kind == "usage")).tolist()
    for i in chosen:
        if step and (i != step[-1] + 1 or ledger.from_at[i] != ledger.to_at[step[-1]]):
            found.append(estimate_of(ledger, step, standing))
            step = []
        step.append(i)
    return [*found, estimate_of(ledger, step, standing)] if step else found


def estimate_of(ledger: Ledger, step: list[int], standing: NDArray[np.bool_]) -> Estimate:
    """An estimate of its pieces."""
    first, last = step[0], step[-1]
    return Estimate(
        moment(ledger.from_at[first]),
        moment(ledger.to_at[last]),
        int(ledger.from_wh[first]),
        int(ledger.to_wh[last]),
        int(ledger.usage_wh[step].sum()),
        int(ledger.amount[step].sum()),
        bool(standing[last]),
    )


def read_registers(
    con: duckdb.DuckDBPyConnection,
    account: dict[str, Any],
    ledger: Ledger,
    standing: NDArray[np.bool_],
    start: int,
    end: int,
) -> list[Stretch]:
    """The registers of a period, meter by meter: each the last by its start and by its end."""
    chosen = []
    for meter in meters_of(con, account, ledger, standing):
        opening, closing = meter.last_by(start), meter.last_by(end)
        if opening.at <= end and meter.until > start:
            chosen.append((meter, opening, closing))
    known = measured_at(con, account, [point for _, *points in chosen for point in points])

    def shown(point: Point) -> Register:
        how = "measured" if (point.at, point.register_wh) in known else "interpolated"
        return Register(moment(point.at), point.register_wh, "estimated" if point.estimated else how)

    return [
        Stretch(
            meter.meter_id,
            shown(opening),
            shown(closing),
            closing.counted_wh - opening.counted_wh,
            meter.modulus_wh,
            moment(meter.from_at) if start < meter.from_at else None,
        )
        for meter, opening, closing in chosen
    ]


def meters_of(
    con: duckdb.DuckDBPyConnection, account: dict[str, Any], ledger: Ledger, standing: NDArray[np.bool_]
) -> list[OnMeter]:
    """The account's meters, one after the other, with the registers that it was charged by."""
    meter_id, modulus_wh, exchanges = read_exchanges(con, account)
    charged = np.flatnonzero((ledger.kind == "usage") & (~ledger.by_estimate | standing))
    ends, counted = ledger.to_at[charged], np.cumsum(ledger.usage_wh[charged])
    opening = np.flatnonzero((ledger.kind == "opening") & (ledger.to_wh != NEVER))
    start: tuple[int, int] | None = None
    if len(charged):
        start = int(ledger.from_at[charged[0]]), int(ledger.from_wh[charged[0]])
    elif len(opening):
        start = int(ledger.to_at[opening[0]]), int(ledger.to_wh[opening[0]])
    if exchanges and (start is None or exchanges[0].at <= start[0]):  # the first exchange started the account
        start = exchanges[0].at, exchanges[0].old_wh
    if start is None:
        return []
    registers, estimated = ledger.to_wh[charged], standing[charged]
    found: list[OnMeter] = []
    done = 0
    for exchange in (*exchanges, None):
        upto = len(charged) if exchange is None else int(np.searchsorted(ends, exchange.at, "right"))
        own, before_wh = slice(done, upto), int(counted[done - 1]) if done else 0
        since, until = start[0] if found else NEVER, exchange.at if exchange else LAST
        columns = ends[own], registers[own], counted[own] - before_wh, estimated[own]
        found.append(OnMeter(meter_id, modulus_wh, since, until, Point(*start, 0, estimated=False), *columns))
        if exchange is not None:
            start, done = (exchange.at, exchange.new_wh), upto
            meter_id, modulus_wh = exchange.meter_id, exchange.modulus_wh or modulus_wh
    return found


@dataclass(frozen=True)
class Exchange:
    """A meter's last register, and the first of the one that came."""

    at: int
    old_wh: int
    meter_id: str
    new_wh: int
    modulus_wh: int | None


def read_exchanges(con: duckdb.DuckDBPyConnection, account: dict[str, Any]) -> tuple[str, int, list[Exchange]]:
    """The account's first meter and its modulus, and the exchanges taken, in order."""
    key = {"account": account["account_id"], "partition": account["partition"]}
    (first,) = con.execute(
        f"""
        SELECT meter_id, coalesce(register_modulus_wh, 1000000000) FROM journal.account r
        WHERE account_id = $account AND partition = $partition AND {not_refused("account")} ORDER BY ordinal LIMIT 1
        """,
        key,
    ).fetchall() or [(account["meter_id"], 1_000_000_000)]
    found = con.execute(
        f"""
        SELECT epoch_us(exchanged_at), old_register_wh, new_meter_id, new_register_wh, register_modulus_wh
        FROM journal.meter_exchange r
        WHERE account_id = $account AND partition = $partition AND {not_refused("meter_exchange")}
        GROUP BY 1, 2, 3, 4, 5, old_meter_id ORDER BY min(ordinal)
        """,
        key,
    ).fetchall()
    return (*first, [Exchange(*row) for row in found])


def not_refused(kind: str) -> str:
    """That a record r of a kind was not refused."""
    return (
        f"NOT EXISTS (FROM events.refused x WHERE x.record_kind = '{kind}' AND x.partition = r.partition "
        "AND x.ordinal = r.ordinal)"
    )


def measured_at(con: duckdb.DuckDBPyConnection, account: dict[str, Any], points: list[Point]) -> set[tuple[int, int]]:
    """At which of these moments a register was read."""
    found = con.execute(
        """
        SELECT epoch_us(read_at), register_wh FROM journal.reading
        WHERE account_id = $account AND partition = $partition AND status IS DISTINCT FROM 'estimated'
            AND read_at BETWEEN make_timestamptz($moments[1]) AND make_timestamptz($moments[-1])
            AND list_contains($moments, epoch_us(read_at))
        UNION ALL
        SELECT epoch_us(exchanged_at), unnest([old_register_wh, new_register_wh]) FROM journal.meter_exchange
        WHERE account_id = $account AND partition = $partition
        UNION ALL
        SELECT epoch_us(effective_at), opening_register_wh FROM journal.account
        WHERE account_id = $account AND partition = $partition
        UNION ALL
        SELECT epoch_us(closed_at), closing_register_wh FROM journal.account
        WHERE account_id = $account AND partition = $partition
        """,
        {
            "account": account["account_id"],
            "partition": account["partition"],
            "moments": sorted({point.at for point in points}),
        },
    ).fetchall()
    return set(found)


def read_known_until(con: duckdb.DuckDBPyConnection, account: dict[str, Any]) -> datetime:
    """The last tick of the account's partition: up to when its records are known."""
    (at,) = con.execute(
        "SELECT max(epoch_us(ticked_at)) FROM journal.tick WHERE partition = ?", [account["partition"]]
    ).fetchone() or (None,)
    return moment(0 if at is None else at)


# ---- the other lines -------------------------------------------------------------------------------------------------


def read_credits(con: duckdb.DuckDBPyConnection, account: dict[str, Any]) -> Details:
    """What is known of a payment or adjustment, by where its entry lies: at its record; or, if that was held until the
    account arrived, at the account's, right before the event that released it.
    """
    found = con.execute(
        """
        WITH credit AS (
            SELECT ordinal, channel, payment_id, reverses, NULL, NULL FROM journal.payment
            WHERE account_id = $account AND partition = $partition
            UNION ALL
            SELECT ordinal, NULL, adjustment_id, NULL, reason, author FROM journal.adjustment
            WHERE account_id = $account AND partition = $partition
        ), released AS (
            SELECT split_part(held_id, '-', 2)::BIGINT AS ordinal, ordinal AS at_ordinal, n - 1 AS at_n FROM events.released
            WHERE partition = $partition AND outcome = 'settled' AND split_part(held_id, '-', 1) = $partition::VARCHAR
        )
        SELECT coalesce(at_ordinal, ordinal), at_n, COLUMNS(c.* EXCLUDE ordinal)
        FROM credit c LEFT JOIN released USING (ordinal)
        """,
        {"account": account["account_id"], "partition": account["partition"]},
    ).fetchall()
    names = ("channel", "id", "reverses", "reason", "author")
    return {
        (ordinal, n): {name: value for name, value in zip(names, values, strict=True) if value is not None}
        for ordinal, n, *values in found
    }


def late_details(late: dict[int, LateReading]) -> Details:
    """Which reading made a correction."""
    return {
        (ordinal, None): {"read_at": moment(reading.read_at).isoformat(), "register_wh": str(reading.register_wh)}
        for ordinal, reading in late.items()
    }


def lines(ledger: Ledger, which: NDArray[np.bool_], details: Details) -> list[Line]:
    """Entries as lines of the page, in order of time."""
    found = []
    for i in np.flatnonzero(which).tolist():
        ordinal, n = int(ledger.ordinal[i]), int(ledger.n[i])
        kind, known = ledger.kind[i], details.get((ordinal, n), details.get((ordinal, None), {}))
        if kind == "correction":
            kind, known = ("estimate_given_back", {}) if ledger.basis[i] == "estimated" else ("late_reading", known)
        elif kind == "opening":
            known = {}
        at, usage_wh, amount = moment(ledger.to_at[i]), int(ledger.usage_wh[i]), int(ledger.amount[i])
        entry_id = render_id(ledger.partition, ordinal, n)
        found.append(Line(entry_id, at, kind, usage_wh, amount, known))
    return sorted(found, key=lambda line: line.at)


def moment(us: int) -> datetime:
    """A moment by the clocks of Tashkent."""
    return moment_of(int(us)).astimezone(TASHKENT)


def day_of(us: int) -> date:
    """The day in Asia/Tashkent that a moment lies in."""
    return moment(us).date()


def minute_of(us: Any) -> Any:
    """The minute of the day in Asia/Tashkent that a moment lies in, or each of several."""
    return (us + UTC_OFFSET_US) % US_PER_DAY // US_PER_MINUTE


def day_number(day: int) -> date:
    """The day of a number counted from 1970-01-01."""
    return date(1970, 1, 1) + timedelta(days=day)


def start_of(day: date) -> int:
    """The moment a day begins in Asia/Tashkent."""
    return (day - date(1970, 1, 1)).days * US_PER_DAY - UTC_OFFSET_US


def next_month(month: date) -> date:
    """The first day of the month after."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)
