"""Tariffs and what is in force when: block prices, and for each account the schedule of its prices over time.

*In force* at a moment is, of the versions (of the account, of its tariff) in effect by then, the one with the latest date of
its own; of the same date, the last to arrive ("The bill, exactly", DESIGN). A version that arrives when an account's last
measured register is already later takes effect there instead, so settled steps are never repriced by it.

A **schedule** is that rule worked out: segments in order of time, each with a price (blocks × families) and a
tariff's name, and whether the segment begins with a *boundary* (blocks or families differ). Accounts whose history is
alike share one. Compiled code reads the same as arrays, the `Book`.

Where a tariff's prices change with the hour, a segment has a **day** instead of one price: the moments of the day at which
another price begins, each a boundary too. Hours with the same blocks are no change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from accounting.calendar import US_PER_DAY, US_PER_MINUTE, UTC_OFFSET_US
from accounting.compiled import compiled, row_type, rule, untracked
from accounting.exact import INT64_MAX
from accounting.hours import MINUTES_A_DAY, by_hours, parse_hours

ALWAYS = -(2**62)  # before every moment
Block = tuple[int | None, int]  # (upper limit in kWh or None, price in tiyin per kWh)
Day = tuple[tuple[int, int], ...]  # (minute of the day, the price from there on); before the first, the last goes on


SPAN = row_type([("first", "i8"), ("end", "i8")])
SEGMENT = row_type(
    [
        ("from_at", "i8"),
        ("price", "i4"),  # −1: the prices of a day, its periods first … end
        ("tariff", "i4"),
        ("first", "i4"),
        ("end", "i4"),
        ("cut", "u1"),
    ]
)
PERIOD = row_type([("from_us", "i8"), ("price", "i8")])  # since midnight
BLOCK = row_type([("limit_wh", "i8"), ("rate", "i8")])


class Book(NamedTuple):
    """Schedules, days, prices and blocks as rows. A schedule is a span of segments, a price a span of blocks."""

    schedules: Any  # rows of SPAN
    segments: Any  # rows of SEGMENT
    periods: Any  # rows of PERIOD
    prices: Any  # rows of SPAN
    blocks: Any  # rows of BLOCK


@rule
def hold_book(book: Book) -> Book:
    """The book for a compiled loop, its arrays untracked."""
    return Book(
        untracked(book.schedules),
        untracked(book.segments),
        untracked(book.periods),
        untracked(book.prices),
        untracked(book.blocks),
    )


@rule
def cost(book: Book, price: int, wh: int) -> int:
    """Σ (Wh in each block × price per kWh) // 1000, one floor at the end: what a month's first `wh` cost, in tiyin."""
    whole, rest, low = 0, 0, 0
    for block in range(book.prices[price].first, book.prices[price].end):
        top = min(wh, book.blocks[block].limit_wh)
        if top > low:  # of two blocks with one limit, the second holds nothing
            whole += (top - low) // 1000 * book.blocks[block].rate
            rest += (top - low) % 1000 * book.blocks[block].rate
            low = top
        if wh <= low:
            break
    return whole + rest // 1000


@rule
def cost_between(book: Book, price: int, from_wh: int, to_wh: int) -> int:
    """`cost` of a month's first `to_wh` less that of its first `from_wh`, which are no more."""
    whole, rest, rest_before, low = 0, 0, 0, 0
    for block in range(book.prices[price].first, book.prices[price].end):
        limit, rate = book.blocks[block].limit_wh, book.blocks[block].rate
        top = min(to_wh, limit)
        if top > low:
            until = max(min(from_wh, limit), low)
            whole += ((top - low) // 1000 - (until - low) // 1000) * rate
            rest += (top - low) % 1000 * rate
            rest_before += (until - low) % 1000 * rate
            low = top
        if to_wh <= low:
            break
    return whole + rest // 1000 - rest_before // 1000


@rule
def time_of_day(at: int) -> int:
    """The µs since midnight in Asia/Tashkent."""
    return (at + UTC_OFFSET_US) % US_PER_DAY


@compiled
def segment_at(book: Book, schedule: int, at: int) -> int:
    """The segment of a schedule in force at a moment."""
    segment = book.schedules[schedule].first
    while segment + 1 < book.schedules[schedule].end and book.segments[segment + 1].from_at <= at:
        segment += 1
    return segment


@compiled
def period_at(book: Book, segment: int, at: int) -> int:
    """The period of a segment's day that a moment lies in; before the first one of the day, the last goes on."""
    first, period, since_midnight = book.segments[segment].first, book.segments[segment].end - 1, time_of_day(at)
    while period >= first and book.periods[period].from_us > since_midnight:
        period -= 1
    return period if period >= first else book.segments[segment].end - 1


@rule
def price_at(book: Book, segment: int, at: int) -> int:
    """The price in force at a moment within a segment."""
    price = book.segments[segment].price
    return price if price >= 0 else book.periods[period_at(book, segment, at)].price


@compiled
def next_edge(book: Book, segment: int, at: int) -> int:
    """The first moment after `at` at which the hours change a segment's price; never where they do not."""
    first, end = book.segments[segment].first, book.segments[segment].end
    if first == end:
        return INT64_MAX
    since_midnight = time_of_day(at)
    for period in range(first, end):
        if book.periods[period].from_us > since_midnight:
            return at - since_midnight + book.periods[period].from_us
    return at - since_midnight + US_PER_DAY + book.periods[first].from_us


@compiled
def next_boundary(book: Book, schedule: int, segment: int, at: int) -> int:
    """The first moment after `at`, which lies in the segment, at which another price comes into force; never if none does."""
    end = book.schedules[schedule].end
    while True:
        until = INT64_MAX if segment + 1 >= end else book.segments[segment + 1].from_at
        edge = next_edge(book, segment, at)
        if edge < until or until == INT64_MAX:
            return edge
        segment, at = segment + 1, until
        if book.segments[segment].cut:
            return until


@compiled
def most_pieces(book: Book, schedule: int, from_at: int, to_at: int) -> int:
    """No step between these moments is cut into more pieces."""
    first, end, a_day = book.schedules[schedule].first, book.schedules[schedule].end, 0
    for segment in range(first, end):
        a_day = max(a_day, book.segments[segment].end - book.segments[segment].first)
    days = (to_at - from_at) // US_PER_DAY + 2
    return end - first + days * a_day + days // 28 + 2


@compiled
def even_cost(book: Book, segment: int, wh: int) -> int:
    """What a month's first `wh` cost where they are used evenly over the hours of the day: of each price the cost of all
    of them, times its share of the day.
    """
    first, end = book.segments[segment].first, book.segments[segment].end
    if first == end:
        return cost(book, book.segments[segment].price, wh)
    total, until = 0, book.periods[first].from_us + US_PER_DAY
    for period in range(end - 1, first - 1, -1):
        minutes = (until - book.periods[period].from_us) // US_PER_MINUTE
        total += minutes * cost(book, book.periods[period].price, wh)
        until = book.periods[period].from_us
    return total // MINUTES_A_DAY


@compiled
def price_range(book: Book, first: int, end: int) -> float:
    """How many times the cheapest kWh of these segments the dearest costs; 0 where some cost nothing, or prices change with
    the hour.
    """
    cheapest, dearest = INT64_MAX, 0
    for segment in range(first, end):
        if book.segments[segment].price < 0:
            return 0.0
        price = book.prices[book.segments[segment].price]
        for block in range(price.first, price.end):
            rate = book.blocks[block].rate
            cheapest, dearest = min(cheapest, rate), max(dearest, rate)
    return dearest / cheapest if cheapest > 0 else 0.0


@compiled
def falls_by_the_hour(book: Book, first: int, end: int) -> bool:
    """Whether prices of these segments change with the hour, and some of them fall with the month's use."""
    for segment in range(first, end):
        for period in range(book.segments[segment].first, book.segments[segment].end):
            price = book.prices[book.periods[period].price]
            for block in range(price.first + 1, price.end):
                if book.blocks[block].rate < book.blocks[block - 1].rate:
                    return True
    return False


@dataclass(frozen=True)
class TariffVersion:
    """One version of a tariff: from `effective_at` (00:00 Asia/Tashkent of its date) these blocks, each with the hours it
    holds in (`hours` is empty where all hold all day). One of another source is another version, though its blocks be the
    same: a decree may put back what a wrong one took away.
    """

    tariff: str
    effective_at: int
    blocks: tuple[Block, ...]
    sources: tuple[str | None, ...] = ()
    hours: tuple[str | None, ...] = ()

    def lists(self) -> dict[str | None, tuple[Block, ...]]:
        """The blocks that hold in the same hours, by those hours."""
        return by_hours(self.hours, self.blocks)


@dataclass(frozen=True)
class AccountVersion:
    """What of an account's version moves prices. `own_at` is its own date, `effect_at` when it took effect."""

    own_at: int
    effect_at: int
    tariff: str
    families: int


@dataclass(frozen=True)
class History:
    """All that a schedule depends on beside the tariffs: versions in order of arrival, and for tariff versions that
    arrived late (by their number) the moment at which they took effect.
    """

    versions: tuple[AccountVersion, ...]
    late: tuple[tuple[int, int], ...] = ()


@dataclass
class TariffBook:
    """All tariff versions that have arrived, and the schedules made of them."""

    versions: list[TariffVersion] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    _schedules: dict[History, int] = field(default_factory=dict)
    prices: dict[tuple[tuple[Block, ...], int], int] = field(default_factory=dict)  # numbered for good
    _segments: list[tuple[int, Day, int, bool]] = field(default_factory=list)
    _spans: list[tuple[int, int]] = field(default_factory=list)
    _arrays: Book | None = None

    def knows(self, tariff: str, at: int) -> bool:
        """Whether a version of the tariff has a date up to this moment."""
        return any(v.tariff == tariff and v.effective_at <= at for v in self.versions)

    def add(self, version: TariffVersion) -> int | None:
        """Take a version in; its number, or None if an identical one is here already. Schedules stay as they are."""
        if version in self.versions:
            return None
        self.versions.append(version)
        return len(self.versions) - 1

    def schedule(self, history: History) -> int:
        """The number of the schedule of this history, made if it is new."""
        number = self._schedules.get(history)
        if number is None:
            number = len(self.histories)
            self.histories.append(history)
            self._schedules[history] = number
            first = len(self._segments)
            self._segments.extend(self._work_out(history))
            self._spans.append((first, len(self._segments)))
            self._arrays = None
        return number

    def forget_schedules(self) -> None:
        """Drop all schedules: a new tariff version changes what they work out to. Accounts are given new ones."""
        self.histories, self._schedules, self._segments, self._spans, self._arrays = [], {}, [], [], None

    def arrays(self) -> Book:
        """The schedules as arrays for compiled code."""
        if self._arrays is None:
            self._arrays = self._make_arrays()
        return self._arrays

    def name_code(self, name: str) -> int:
        """The number under which entries carry a tariff's name."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def _work_out(self, history: History) -> list[tuple[int, Day, int, bool]]:
        late = dict(history.late)
        effects = [late.get(i, v.effective_at) for i, v in enumerate(self.versions)]
        used = {v.tariff for v in history.versions}
        moments = {v.effect_at for v in history.versions}
        moments |= {e for e, v in zip(effects, self.versions, strict=True) if v.tariff in used}
        segments: list[tuple[int, Day, int, bool]] = []
        for at in sorted(moments):
            found = self._in_force(history, effects, at)
            if found is None:
                continue
            day, tariff = found
            if segments and segments[-1][1:3] == (day, tariff):
                continue
            cut = bool(segments) and _price_of_day(segments[-1][1], at - 1) != _price_of_day(day, at)
            segments.append((at if segments else ALWAYS, day, tariff, cut))
        return segments

    def _in_force(self, history: History, effects: list[int], at: int) -> tuple[Day, int] | None:
        account = None
        for v in history.versions:
            if v.effect_at <= at and (account is None or v.own_at >= account.own_at):
                account = v
        if account is None:
            return None
        tariff = None
        for effect, t in zip(effects, self.versions, strict=True):
            if (
                t.tariff == account.tariff
                and effect <= at
                and (tariff is None or t.effective_at >= tariff.effective_at)
            ):
                tariff = t
        if tariff is None:
            return None
        return self._day_of(tariff, account.families), self.name_code(account.tariff)

    def _day_of(self, version: TariffVersion, families: int) -> Day:
        """The prices of a version's day, from each minute at which another begins."""
        spans: list[tuple[int, int]] = []
        for hours, blocks in version.lists().items():
            price = self.prices.setdefault((blocks, families), len(self.prices))
            spans += [(first, price) for first, _ in parse_hours(hours)]
        spans.sort()
        return tuple(span for k, span in enumerate(spans) if span[1] != spans[k - 1][1]) or ((0, spans[0][1]),)

    def _make_arrays(self) -> Book:
        spans: list[tuple[int, int]] = []
        blocks: list[tuple[int, int]] = []
        for version_blocks, families in self.prices:
            first = len(blocks)
            for upto_kwh, rate in version_blocks:
                limit = INT64_MAX if upto_kwh is None else min(upto_kwh * 1000 * families, INT64_MAX)
                blocks.append((limit, rate))
            spans.append((first, len(blocks)))
        segments: list[tuple[int, int, int, int, int, bool]] = []
        periods: list[tuple[int, int]] = []
        for from_at, day, tariff, cut in self._segments:
            first = len(periods)
            if len(day) > 1:
                periods += [(minute * US_PER_MINUTE, price) for minute, price in day]
            segments.append((from_at, -1 if len(day) > 1 else day[0][1], tariff, first, len(periods), cut))
        rows = ((self._spans, SPAN), (segments, SEGMENT), (periods, PERIOD), (spans, SPAN), (blocks, BLOCK))
        return Book(*(np.array(values, kind) for values, kind in rows))


def _price_of_day(day: Day, at: int) -> int:
    """The price in force at a moment, by the prices of its day."""
    minute = (at + UTC_OFFSET_US) % US_PER_DAY // US_PER_MINUTE
    return ([price for first, price in day if first <= minute] or [day[-1][1]])[-1]
