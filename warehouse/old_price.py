"""The right to the old price for energy prepaid before a rise. Off unless a home turns it on (`old_price_months`).

The rule, for an account and a **rise** (a tariff version, in force for the account from `T` on, by which some Wh costs more
than by the one before):

- What was **prepaid** is the balance at `T` by own times, if positive: opening and credits before `T` less the bill up to
  `T`. The prepaid energy `E` is the most Wh it buys at the old prices, on from the month's position at `T`.
- **In advance**, once a register later than `T` is measured: what those E Wh cost more at the new prices from that same
  position. So the balance still buys E, and nobody is cut for a price that is not his.
- **At the end** (E used up, so many calendar months after `T`, or the account closed): what the first E Wh used after `T`
  and before the end really cost more, each piece at its place in its month; less what was credited in advance. Usage by
  another tariff meanwhile counts, and is worth nothing. Where some prices fall, the worth of all is never below nothing.

A rise while an earlier right runs gives none of its own: that one goes on, by its own old prices. A rise whose months were
over before it was first looked at gives none, nor does one recorded more than two months late, nor an old tariff whose last
block is free, nor prices by the time of day. What is measured and paid is read from the auditor's tables over an overlay
(`rerate.py`), all that was ever put right included; the sums are whole numbers.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from accounting.moments import TASHKENT, moment_of, us_of
from warehouse.rerate import ACCOUNT, TARIFF, run_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import duckdb

OLD_PRICE = "old-price"  # what the ids of its adjustments begin with: old-price:household:2026-05-01:advance, …:end
Blocks = tuple[tuple[int | None, int], ...]  # (upper limit in kWh or None, tiyin per kWh)


@dataclass(frozen=True)
class Stretch:
    """What was used between two moments, within one month at one price: Wh since the account's start, and of the month."""

    from_at: int
    to_at: int
    from_wh: int
    to_wh: int
    low_wh: int  # of the month, at its beginning
    tariff: str
    families: int
    blocks: Blocks

    def cost(self, blocks: Blocks, upto_wh: int) -> int:
        """What it costs by some prices, as far as a Wh since the account's start."""
        high = self.low_wh + min(self.to_wh, upto_wh) - self.from_wh
        return cost(blocks, self.families, high) - cost(blocks, self.families, self.low_wh)


@dataclass
class History:
    """What of an account there is to go by. Moments are UTC µs."""

    account_id: str
    stretches: list[Stretch] = field(default_factory=list)
    credits: list[tuple[int, int]] = field(default_factory=list)  # (own time, tiyin)
    posted: dict[str, int] = field(default_factory=dict)  # of this right, by adjustment id
    closed_at: int | None = None


@dataclass(frozen=True)
class Right:
    """A right that there is: the energy prepaid, and what is to be posted for it (`part`: advance or end)."""

    account_id: str
    tariff: str
    rise_at: int
    prepaid_tiyin: int
    energy_wh: int
    worth_tiyin: int
    due_tiyin: int
    part: str

    @property
    def adjustment_id(self) -> str:
        """The same whenever it is worked out."""
        return f"{name_of(self.tariff, self.rise_at)}:{self.part}"


def name_of(tariff: str, rise_at: int) -> str:
    """A rise in an adjustment's id: by its day, or, where it took effect within one, by its moment."""
    at = moment_of(rise_at).astimezone(TASHKENT)
    when = f"{at:%Y-%m-%d}" if at.time() == dt.time() else f"{at:%Y-%m-%dT%H%M%S.%f}"
    return f"{OLD_PRICE}:{tariff}:{when}"


# ---- prices ----------------------------------------------------------------------------------------------------------


def cost(blocks: Blocks, families: int, wh: int) -> int:
    """What a month's first Wh cost, in tiyin."""
    total, low = 0, 0
    for upto_kwh, price in blocks:
        high = wh if upto_kwh is None else min(wh, upto_kwh * 1000 * families)
        if high > low:
            total += (high - low) * price
            low = high
    return total // 1000


def is_rise(old: Blocks, new: Blocks) -> bool:
    """Whether some Wh costs more."""
    limits = {0, *(limit for limit, _ in (*old, *new) if limit is not None)}
    return any(price_above(new, limit) > price_above(old, limit) for limit in limits)


def price_above(blocks: Blocks, kwh: int) -> int:
    """The price of the Wh right above so many kWh."""
    return next(price for limit, price in blocks if limit is None or limit > kwh)


def energy_for(blocks: Blocks, families: int, position_wh: int, tiyin: int) -> int:
    """The most Wh that the money buys, on from a position in the month: found by halving, for costs only rise."""
    low, high = 0, 1

    def costs(wh: int) -> int:
        return cost(blocks, families, position_wh + wh) - cost(blocks, families, position_wh)

    while costs(high) <= tiyin:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if costs(middle) <= tiyin else (low, middle)
    return low


def months_after(at: int, months: int) -> int:
    """So many calendar months later by the clocks of Tashkent; where that month has no such day, its last."""
    local = moment_of(at).astimezone(TASHKENT)
    years, month = divmod(local.month - 1 + months, 12)
    first = local.replace(year=local.year + years, month=month + 1, day=1)
    days = ((first + dt.timedelta(days=31)).replace(day=1) - first).days
    later = first.replace(day=min(local.day, days))
    return us_of(later)


# ---- the rule --------------------------------------------------------------------------------------------------------


def rights_of(history: History, months: int, now: int) -> Iterator[Right]:
    """What is to be posted to an account now, right by right."""
    ends_at, ends_wh = -(2**62), 0  # of the right before
    for before, after in pairwise(history.stretches):
        if not gives_a_right(before, after) or (after.from_at < ends_at and after.from_wh < ends_wh):
            continue
        over_at, name = months_after(after.from_at, months), name_of(after.tariff, after.from_at)
        own = {i: amount for i, amount in history.posted.items() if i.startswith(f"{name}:")}
        if over_at <= now and not own:
            continue  # it was over before anybody looked
        prepaid = balance_at(history, after.from_at)
        energy = energy_for(before.blocks, before.families, after.low_wh, prepaid) if prepaid > 0 else 0
        ends_at, ends_wh = over_at, after.from_wh + energy
        right = (history.account_id, after.tariff, after.from_at, prepaid, energy)
        if f"{name}:end" in own or not (energy or own):
            continue
        if is_over(history, ends_wh, over_at, now):
            worth = true_worth(history, before.blocks, after, energy, over_at)
            due, part = worth - sum(own.values()), "end"
        else:
            worth = worth_in_advance(before, after, energy)
            due, part = 0 if own else worth, "advance"
        if due:
            yield Right(*right, worth, due, part)


def gives_a_right(before: Stretch, after: Stretch) -> bool:
    """Whether the price of the same tariff rises from one stretch to the next."""
    alike = before.tariff == after.tariff and before.families == after.families
    return alike and before.blocks[-1][1] > 0 and is_rise(before.blocks, after.blocks)


def balance_at(history: History, at: int) -> int:
    """The balance at a moment by own times: what was credited before it less what was used until then."""
    credited = sum(amount for own_at, amount in history.credits if own_at < at)
    return credited - sum(s.cost(s.blocks, s.to_wh) for s in history.stretches if s.from_at < at)


def worth_in_advance(before: Stretch, after: Stretch, energy_wh: int) -> int:
    """What so many Wh cost more by the new prices, on from the month's position at the rise. Never below nothing."""
    low, high = after.low_wh, after.low_wh + energy_wh
    new, old = (cost(s.blocks, s.families, high) - cost(s.blocks, s.families, low) for s in (after, before))
    return max(new - old, 0)


def is_over(history: History, until_wh: int, over_at: int, now: int) -> bool:
    """Whether a right has ended, and all that it takes to say what it was worth is measured."""
    last = history.stretches[-1]
    return (
        last.to_wh >= until_wh or last.to_at >= over_at or (history.closed_at is not None and history.closed_at <= now)
    )


def true_worth(history: History, old: Blocks, first: Stretch, energy_wh: int, over_at: int) -> int:
    """What the first so many Wh from a stretch on, used before a moment, really cost more than by the old prices."""
    until_wh, worth = first.from_wh + energy_wh, 0
    for s in history.stretches:
        if s.from_at < first.from_at or s.from_at >= over_at or s.from_wh >= until_wh or s.tariff != first.tariff:
            continue
        upto = until_wh
        if s.to_at > over_at:
            upto = min(upto, s.from_wh + (s.to_wh - s.from_wh) * (over_at - s.from_at) // (s.to_at - s.from_at))
        worth += s.cost(s.blocks, upto) - s.cost(old, upto)
    return max(worth, 0)


# ---- what there is to go by ------------------------------------------------------------------------------------------


def accounts_concerned(con: duckdb.DuckDBPyConnection, months: int, now: dt.datetime) -> list[str]:
    """The accounts on a tariff that changed of late, and those whose right has not ended."""
    found = con.execute(
        """
        SELECT account_id FROM journal.account WHERE tariff IN (
            SELECT tariff FROM journal.tariff WHERE effective_on > ?::DATE - to_months(?::INTEGER))
        UNION
        SELECT account_id FROM audit.journal.adjustment WHERE starts_with(adjustment_id, ?)
        GROUP BY account_id, regexp_replace(adjustment_id, ':[^:]*$', '') HAVING NOT bool_or(ends_with(adjustment_id, ':end'))
        """,
        [now.astimezone(TASHKENT).date(), months + 2, f"{OLD_PRICE}:"],
    )
    return [account for (account,) in found.fetchall()]


def find_rights(
    con: duckdb.DuckDBPyConnection, accounts: Sequence[str], months: int, now: dt.datetime
) -> tuple[int, list[Right]]:
    """How many accounts were looked at, and what is to be posted, as the overlay has it."""
    now_us = us_of(now)
    looked_at, found = 0, list[Right]()
    for _ in run_parts(con, accounts):
        for history in histories(con):
            looked_at += 1
            found += rights_of(history, months, now_us)
    return looked_at, found


def histories(con: duckdb.DuckDBPyConnection) -> Iterable[History]:
    """The accounts of a part, each with its stretches, credits, and what was posted before."""
    found: dict[int, History] = {}
    for a, account, closed_at in con.execute(ACCOUNTS).fetchall():
        found[a] = History(account, closed_at=closed_at)
    blocks: dict[int, Blocks] = {
        number: tuple((row["upto_kwh"], row["price"]) for row in rows)
        for number, rows in con.execute("SELECT list, blocks FROM price_list").fetchall()
    }
    stretches: dict[int, list[Stretch]] = defaultdict(list)
    for a, *numbers, tariff, families, number in con.execute(STRETCHES).fetchall():
        from_at, to_at, from_wh, to_wh, low_wh = numbers
        stretches[a].append(Stretch(from_at, to_at, from_wh, to_wh, low_wh, tariff, families, blocks[number]))
    for a, own in stretches.items():
        found[a].stretches = own
    for a, at, amount in (row for row in con.execute(CREDITS).fetchall() if row[0] in found):
        found[a].credits.append((at, amount))
    for a, adjustment_id, amount in (row for row in con.execute(POSTED).fetchall() if row[0] in found):
        found[a].posted[adjustment_id] = amount
    return found.values()


# Where prices go by the hour, each hour's edge would be a rise.
ACCOUNTS = """
    SELECT w.a, w.account_id, max(v.closed_at) FROM who w JOIN version v USING (a) ANTI JOIN by_hours USING (a) GROUP BY ALL
"""
STRETCHES = """
    WITH stretches AS (
        SELECT a, at_us, total_wh, lead(at_us) OVER w AS to_at, lead(total_wh) OVER w AS to_wh
        FROM turning WINDOW w AS (PARTITION BY a ORDER BY at_us)
    )
    SELECT t.a, t.at_us, t.to_at, t.total_wh, t.to_wh, t.total_wh - m.start_wh, s.tariff, s.families, s.list
    FROM stretches t
    JOIN schedule s ON s.a = t.a AND s.from_at <= t.at_us AND t.at_us < s.until_at
    JOIN month_start m ON m.a = t.a AND m.month = month_of(t.at_us) AND m.until = 9_000_000_000_000_000_000
    WHERE t.to_at IS NOT NULL AND t.a NOT IN (SELECT a FROM by_hours)
    ORDER BY t.a, t.at_us
"""
# What re-rating posted is in the bill already, as the overlay has it.
CREDITS = f"""
    SELECT o.a, o.to_at, o.amount_tiyin FROM other o JOIN who w USING (a)
    LEFT JOIN journal.adjustment j ON o.kind = 'adjustment' AND j.partition = w.partition AND j.ordinal = o.ordinal
    WHERE o.kind NOT IN ('usage', 'correction') AND (j.adjustment_id IS NULL
        OR NOT (starts_with(j.adjustment_id, '{TARIFF}:') OR starts_with(j.adjustment_id, '{ACCOUNT}:')))
"""
POSTED = f"""
    SELECT w.a, j.adjustment_id, j.amount_tiyin FROM journal.adjustment j
    JOIN who w ON w.account_id = j.account_id AND w.partition = j.partition
    SEMI JOIN (FROM entry WHERE kind = 'adjustment') e ON e.a = w.a AND e.ordinal = j.ordinal
    WHERE starts_with(j.adjustment_id, '{OLD_PRICE}:')
"""
