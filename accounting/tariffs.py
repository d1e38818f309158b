"""Tariffs and what is in force when: block prices, and for each account the schedule of its prices over time.

*In force* at a moment is, of the versions (of the account, of its tariff) in effect by then, the one with the latest date of
its own; of the same date, the last to arrive ("The bill, exactly", DESIGN). A version that arrives when an account's last
measured register is already later takes effect there instead, so settled steps are never repriced by it.

A **schedule** is that rule worked out: segments in order of time, each with a price (blocks × families) and a
tariff's name, and whether the segment begins with a *boundary* (blocks or families differ). Accounts whose history is
alike share one. Compiled code reads the same as arrays, the `Book`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from accounting.compiled import compiled, row_type, rule, untracked
from accounting.exact import INT64_MAX

ALWAYS = -(2**62)  # before every moment
Block = tuple[int | None, int]  # (upper limit in kWh or None, price in tiyin per kWh)


SPAN = row_type([("first", "i8"), ("end", "i8")])
SEGMENT = row_type([("from_at", "i8"), ("price", "i4"), ("tariff", "i4"), ("cut", "u1")])
BLOCK = row_type([("limit_wh", "i8"), ("rate", "i8")])


class Book(NamedTuple):
    """Schedules, prices and blocks as rows. A schedule is a span of segments, a price a span of blocks."""

    schedules: Any  # rows of SPAN
    segments: Any  # rows of SEGMENT
    prices: Any  # rows of SPAN
    blocks: Any  # rows of BLOCK


@rule
def hold_book(book: Book) -> Book:
    """The book for a compiled loop, its arrays untracked."""
    return Book(untracked(book.schedules), untracked(book.segments), untracked(book.prices), untracked(book.blocks))


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


@compiled
def segment_at(book: Book, schedule: int, at: int) -> int:
    """The segment of a schedule in force at a moment."""
    segment = book.schedules[schedule].first
    while segment + 1 < book.schedules[schedule].end and book.segments[segment + 1].from_at <= at:
        segment += 1
    return segment


@compiled
def price_range(book: Book, first: int, end: int) -> float:
    """How many times the cheapest kWh of these segments the dearest costs; 0 where some cost nothing."""
    cheapest, dearest = INT64_MAX, 0
    for segment in range(first, end):
        price = book.prices[book.segments[segment].price]
        for block in range(price.first, price.end):
            rate = book.blocks[block].rate
            cheapest, dearest = min(cheapest, rate), max(dearest, rate)
    return dearest / cheapest if cheapest > 0 else 0.0


@dataclass(frozen=True)
class TariffVersion:
    """One version of a tariff: from `effective_at` (00:00 Asia/Tashkent of its date) these blocks. One of another source is
    another version, though its blocks be the same: a decree may put back what a wrong one took away.
    """

    tariff: str
    effective_at: int
    blocks: tuple[Block, ...]
    sources: tuple[str | None, ...] = ()


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
    _segments: list[tuple[int, int, int, bool]] = field(default_factory=list)
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

    def _work_out(self, history: History) -> list[tuple[int, int, int, bool]]:
        late = dict(history.late)
        effects = [late.get(i, v.effective_at) for i, v in enumerate(self.versions)]
        used = {v.tariff for v in history.versions}
        moments = {v.effect_at for v in history.versions}
        moments |= {e for e, v in zip(effects, self.versions, strict=True) if v.tariff in used}
        segments: list[tuple[int, int, int, bool]] = []
        for at in sorted(moments):
            found = self._in_force(history, effects, at)
            if found is None:
                continue
            price, tariff = found
            if segments and segments[-1][1:3] == (price, tariff):
                continue
            cut = bool(segments) and segments[-1][1] != price
            segments.append((at if segments else ALWAYS, price, tariff, cut))
        return segments

    def _in_force(self, history: History, effects: list[int], at: int) -> tuple[int, int] | None:
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
        price = self.prices.setdefault((tariff.blocks, account.families), len(self.prices))
        return price, self.name_code(account.tariff)

    def _make_arrays(self) -> Book:
        spans: list[tuple[int, int]] = []
        blocks: list[tuple[int, int]] = []
        for version_blocks, families in self.prices:
            first = len(blocks)
            for upto_kwh, rate in version_blocks:
                limit = INT64_MAX if upto_kwh is None else min(upto_kwh * 1000 * families, INT64_MAX)
                blocks.append((limit, rate))
            spans.append((first, len(blocks)))
        rows = ((self._spans, SPAN), (self._segments, SEGMENT), (spans, SPAN), (blocks, BLOCK))
        return Book(*(np.array(values, kind) for values, kind in rows))
