"""The tariff book: every version of every tariff, what a month costs by it, and what is wrong with a file for it.

The book is that of a home's journal, or, where there is no home, the one we ship. What is in force on a day is, of the
versions dated up to it, the one with the latest date; of the same date, the last to arrive ("The bill, exactly"). Costs
are those of the bill: `accounting.tariffs.cost`, block limits times the families, one floor at the end.

Where prices change with the hour, a quote takes the usage to be even over the day, or over the hours asked for: of each
block's Wh the lists of blocks get their share by the minutes they hold in.

Not here: the old price for energy prepaid before a rise, which is posted beside the rules (`warehouse.old_price`).
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from accounting.hours import MINUTES_A_DAY, Span, by_hours, gaps_and_overlaps, parse_hours
from hisob.errors import HisobError

if TYPE_CHECKING:
    from pathlib import Path

    from connectors.home import Home

MOST_KWH = 1_000_000_000
OF_VERSION = frozenset({"bad_version", "no_last_block", "overlapping_hours", "gap_in_hours"})  # faults of no row alone
Block = tuple[int | None, int]  # (upper limit in kWh or None, price in tiyin per kWh)


@dataclass(frozen=True)
class Version:
    """One version of a tariff. `sources` are its blocks', one each; so are `hours`, or empty where all hold all day."""

    tariff: str
    effective_on: dt.date
    blocks: tuple[Block, ...]
    sources: tuple[str | None, ...] = ()
    hours: tuple[str | None, ...] = ()

    def lists(self) -> dict[str | None, tuple[Block, ...]]:
        """The blocks that hold in the same hours, by those hours."""
        return by_hours(self.hours, self.blocks)


@dataclass(frozen=True)
class Line:
    """What the month's usage within one block costs. Its limits are those for all families together; upto None: no limit.
    hours: those of the day it holds in, where not in all.
    """

    above_kwh: int
    upto_kwh: int | None
    price_tiyin_per_kwh: int
    usage_wh: int
    amount_tiyin: int
    hours: str | None = None


@dataclass(frozen=True)
class Quote:
    """What a month of so much usage costs, spread evenly over the hours it is `within`. The lines add up to it."""

    version: Version
    families: int
    within: str | None
    usage_wh: int
    amount_tiyin: int
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Finding:
    """Something wrong with a tariff file (`fault`), or to be looked at twice (`warning`)."""

    severity: str
    reason: str
    where: str
    text: str


# ---- the book --------------------------------------------------------------------------------------------------------


def shipped_book() -> list[Version]:
    """The versions of the book that every new home begins with."""
    from hisob.homes import tariff_rows

    return versions_of(tariff_rows())


def journal_book(home: Home) -> list[Version]:
    """The versions in a home's journal, in order of arrival."""
    from connectors.log.body import decode, unpack
    from connectors.log.sqlite import open_log

    found: list[dict[str, Any]] = []
    with closing(open_log(home.journal, readonly=True)) as log:
        unrouted, position = log.partitions - 1, 0  # every partition has them; this one is the shortest
        while rows := log.read(unrouted, position):
            for row in rows:
                batch = decode(row.body, ("tariff",)).batches.get("tariff")
                found += unpack("tariff", batch).to_pylist() if batch is not None else ()
            position = rows[-1].end
    return versions_of(found)


def versions_of(rows: Iterable[dict[str, Any]]) -> list[Version]:
    """Versions out of rows as they lie in the journal: a version arrives with its last block, a part of one never does."""
    found: dict[Version, Version] = {}
    begun: list[dict[str, Any]] = []
    for row in rows:
        own = (row["tariff"], row["effective_on"], row.get("received_at"))
        begun = [r for r in begun if (r["tariff"], r["effective_on"], r.get("received_at")) == own] + [row]
        if len(begun) < (row["blocks"] or 1):
            continue
        blocks = tuple((r["block_upto_kwh"], r["price_tiyin_per_kwh"]) for r in begun)
        sources, hours = (tuple(r.get(name) for r in begun) for name in ("source", "hours"))
        version = Version(row["tariff"], row["effective_on"], blocks, sources, hours if any(hours) else ())
        found.setdefault(replace(version, sources=()), version)  # settle ignores a repetition, too
        begun = []
    return list(found.values())


def in_force(versions: Sequence[Version], tariff: str, on: dt.date) -> Version | None:
    """The version of a tariff in force on a day; None before the first."""
    found = None
    for version in versions:
        if version.tariff == tariff and version.effective_on <= on:
            found = version if found is None or version.effective_on >= found.effective_on else found
    return found


def names_of(versions: Iterable[Version]) -> list[str]:
    """The tariffs there are, in the order of their first versions."""
    return list(dict.fromkeys(version.tariff for version in versions))


def check_name(versions: Sequence[Version], tariff: str) -> None:
    """Raise HisobError (exit 2) if there is no such tariff."""
    if tariff not in (names := names_of(versions)):
        raise HisobError(f"There is no tariff {tariff!r}: there are {', '.join(names)}.", exit_code=2)


# ---- what it costs ---------------------------------------------------------------------------------------------------


def quote(version: Version, usage_wh: int, families: int = 1, within: str | None = None) -> Quote:
    """What a calendar month with so much usage costs by a version, used evenly over the day or over hours of it.

    The bill's sum: of each block Wh × price, one floor at the end. What the lines show are differences of floored sums.
    """
    lists = version.lists()
    minutes = {hours: minutes_within(hours, within) for hours in lists}
    limits = {limit * families * 1000 for blocks in lists.values() for limit, _ in blocks if limit is not None}
    ends = sorted({*(limit for limit in limits if limit < usage_wh), usage_wh})
    lines: dict[tuple[str | None, int], Line] = {}
    total, low_wh = 0, 0
    for top_wh in ends:
        for hours, part_wh in shared(top_wh - low_wh, minutes):
            line = line_at(lists[hours], hours, low_wh, families)
            before, total = total, total + part_wh * line.price_tiyin_per_kwh
            line = lines.get((hours, line.above_kwh), line)
            usage, amount = line.usage_wh + part_wh, line.amount_tiyin + total // 1000 - before // 1000
            lines[hours, line.above_kwh] = replace(line, usage_wh=usage, amount_tiyin=amount)
        low_wh = top_wh
    ordered = sorted(lines.values(), key=lambda line: (list(lists).index(line.hours), line.above_kwh))
    return Quote(version, families, within, usage_wh, total // 1000, tuple(line for line in ordered if line.usage_wh))


def minutes_within(hours: str | None, within: str | None) -> int:
    """How many minutes of a day lie both in the one and in the other."""
    spans = [(one, other) for one in parse_hours(hours) for other in parse_hours(within)]
    return sum(max(0, min(one[1], other[1]) - max(one[0], other[0])) for one, other in spans)


def shared(wh: int, minutes: dict[str | None, int]) -> Iterator[tuple[str | None, int]]:
    """Wh shared out by minutes, whole ones: differences of floored sums, so they add up."""
    whole, passed = sum(minutes.values()), 0
    for hours, own in minutes.items():
        yield hours, wh * (passed + own) // whole - wh * passed // whole
        passed += own


def line_at(blocks: tuple[Block, ...], hours: str | None, wh: int, families: int) -> Line:
    """The block of a list that holds right above so many Wh, with nothing used in it yet."""
    above_kwh = 0
    for limit, price in blocks:
        if limit is None or limit * families * 1000 > wh:
            return Line(above_kwh, None if limit is None else limit * families, price, 0, 0, hours)
        above_kwh = max(above_kwh, limit * families)
    raise ValueError("a list of blocks without an open last one")  # ingest takes none


# ---- a file for it ---------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of a tariff file whose values could be read. `fault`: why ingest would not take its version, if so."""

    row: int
    tariff: str
    effective_on: dt.date
    received_at: str | None
    block: Block
    hours: str | None
    fault: str | None


def check_file(path: Path, book: Sequence[Version], rise_percent: float) -> list[Finding]:
    """What is wrong with a tariff file, each version held against the one before it, in the file or the book.

    Raises connectors.files.FileError where the file cannot be read as a whole.
    """
    rows, findings = read_rows(path)
    versions: dict[tuple[str, dt.date, str | None], list[Row]] = {}
    for row in rows:
        versions.setdefault((row.tariff, row.effective_on, row.received_at), []).append(row)
    sound: list[Version] = []
    for own in versions.values():
        for hours in dict.fromkeys(row.hours for row in own):
            findings += judge_blocks([row for row in own if row.hours == hours])
        if own[0].fault != "bad_version":  # the hours of the rows that could not be read are not known
            findings += judge_hours(own)
        if own[0].fault is None:
            sound.append(_version_of(own))
    for number, version in enumerate(sound):
        findings += judge_date(version, [*book, *sound[:number]])
        findings += judge_rise(version, [*book, *sound], rise_percent)
    return findings


def _version_of(rows: Sequence[Row]) -> Version:
    """The version that ingest makes of rows. Of two blocks with one limit the first counts."""
    found = {(row.hours, row.block[0]): row.block for row in reversed(rows)}
    hours, blocks = zip(*sorted(((h, b) for (h, _), b in found.items()), key=_in_order), strict=True)
    return Version(rows[0].tariff, rows[0].effective_on, blocks, (), hours if any(hours) else ())


def _in_order(row: tuple[str | None, Block]) -> tuple[str, bool, int]:
    hours, (limit, _) = row
    return hours or "", limit is None, limit or 0


def read_rows(path: Path) -> tuple[list[Row], list[Finding]]:
    """The rows that can be read, in the order of the file, and what is wrong with the others, by the contract of ingest."""
    from connectors.files import inspect_file
    from connectors.files.check import Checker
    from connectors.files.formats import read_whole

    now_us = int(dt.datetime.now(dt.UTC).timestamp() * 1_000_000)
    checked = Checker("tariff", path.name, partitions=1, until=now_us).check(read_whole(inspect_file(path), "tariff"))
    pairs = zip(checked.rows.tolist(), checked.good.to_pylist(), strict=True)
    rows = [_row(number, record, None) for number, record in pairs]
    findings = []
    for bad in checked.bad.to_pylist():
        if bad["reason"] in OF_VERSION:
            rows.append(_row(bad["row"], json.loads(bad["record"]), bad["reason"]))
        else:
            value = "no value" if bad["value"] is None else repr(bad["value"])
            what = f"{bad['column']}: {value}" if bad["column"] else value
            findings.append(Finding("fault", bad["reason"], f"row {bad['row']}", f"{what}. {next_step(bad['reason'])}"))
    return sorted(rows, key=lambda row: row.row), findings


def _row(number: int, record: dict[str, Any], fault: str | None) -> Row:
    """A row of good values, typed or as text."""
    limit, received = record.get("block_upto_kwh"), record.get("received_at")
    return Row(
        number,
        record["tariff"],
        dt.date.fromisoformat(str(record["effective_on"])),
        str(received) if received else None,
        (int(limit) if limit else None, int(record["price_tiyin_per_kwh"])),
        record.get("hours") or None,
        fault,
    )


def _by_limit(block: Block) -> tuple[bool, int]:
    return block[0] is None, block[0] or 0


def judge_blocks(rows: Sequence[Row]) -> Iterator[Finding]:
    """Of one version and the same hours: blocks that overlap or are out of order, and usage that no block has a price for."""
    where = ", ".join(filter(None, (rows[0].tariff, str(rows[0].effective_on), rows[0].hours)))
    limits = [row.block[0] for row in rows]
    for limit, count in Counter(limits).items():
        if count > 1:
            same = _join(str(row.row) for row in rows if row.block[0] == limit)
            what = "open last blocks" if limit is None else f"blocks up to {limit:,} kWh"
            yield Finding(
                "fault",
                "repeated_block",
                where,
                f"rows {same} are {count} {what}: they overlap, and only the first counts.",
            )
    if limits != [limit for limit, _ in sorted((row.block for row in rows), key=_by_limit)]:
        order = ", ".join("open" if limit is None else f"{limit:,}" for limit in limits)
        yield Finding(
            "fault",
            "unordered_blocks",
            where,
            f"the blocks stand in the order {order}: write them from the lowest limit up.",
        )
    if None not in limits:
        above = max(limit for limit in limits if limit is not None)
        yield Finding(
            "fault", "no_last_block", where, f"usage above {above:,} kWh has no price. {next_step('no_last_block')}"
        )


def judge_hours(rows: Sequence[Row]) -> Iterator[Finding]:
    """Hours of the day that a version has no price for, or more than one."""
    where = f"{rows[0].tariff}, {rows[0].effective_on}"
    gaps, overlaps = gaps_and_overlaps({row.hours for row in rows})
    for reason, spans, text in (
        ("overlapping_hours", overlaps, "has two prices"),
        ("gap_in_hours", gaps, "has no price"),
    ):
        if spans:
            when = _join(span_text(span) for span in spans)
            yield Finding("fault", reason, where, f"{when} {text}: each hour of the day must stand once.")


def span_text(span: Span) -> str:
    """Minutes of the day by the clock: 06:00–09:00."""
    return "–".join(f"{minute // 60:02}:{minute % 60:02}" for minute in span)


def judge_date(version: Version, others: Sequence[Version]) -> Iterator[Finding]:
    """Another version of the same tariff and date: the periods of the two overlap altogether."""
    same = [v for v in others if (v.tariff, v.effective_on) == (version.tariff, version.effective_on)]
    if any(v.lists() != version.lists() for v in same):
        yield Finding(
            "fault",
            "overlapping_versions",
            f"{version.tariff}, {version.effective_on}",
            "another version of this date has other prices, and the last to arrive will count. What was charged already"
            " is not charged anew.",
        )


def judge_rise(version: Version, others: Sequence[Version], rise_percent: float) -> Iterator[Finding]:
    """A price that rises by more than so much against the version before, at whatever hour and wherever in the month's usage
    it rises most.
    """
    before = in_force(others, version.tariff, version.effective_on - dt.timedelta(days=1))
    if before is None:
        return
    steps = [
        (_price_at(before, span, low), _price_at(version, span, low), low, span)
        for span in _spans_of(before, version)
        for low in sorted(_lower_limits(before, version))
    ]
    old, new, low, span = max(steps, key=lambda step: (_ratio(*step[:2]), -step[2], -step[3][0]))
    if new * 100 > old * (100 + rise_percent):
        by = f"{(new - old) * 100 / old:+.1f} %" if old else "from nothing"
        place = f" {span_text(span)}" if span != (0, MINUTES_A_DAY) else ""
        place += f" above {low:,} kWh" if low else ""
        yield Finding(
            "warning",
            "steep_rise",
            f"{version.tariff}, {version.effective_on}",
            f"a kWh{place} costs {soum(new)} soum instead of {soum(old)} ({by}; version of {before.effective_on}).",
        )


def _ratio(old: int, new: int) -> float:
    if old:
        return new / old
    return float("inf") if new else 1.0


def _lower_limits(*versions: Version) -> set[int]:
    return {0, *(limit for version in versions for limit, _ in version.blocks if limit is not None)}


def _spans_of(*versions: Version) -> list[Span]:
    """The day, cut wherever the hours of one of them begin or end."""
    edges = {0, MINUTES_A_DAY}
    edges |= {edge for v in versions for hours in v.lists() for span in parse_hours(hours) for edge in span}
    return list(pairwise(sorted(edges)))


def _price_at(version: Version, span: Span, above_kwh: int) -> int:
    """The price at these hours of the kWh right above so many."""
    for hours, blocks in version.lists().items():
        if any(first <= span[0] < end for first, end in parse_hours(hours)):
            return line_at(blocks, hours, above_kwh * 1000, 1).price_tiyin_per_kwh
    raise ValueError(f"{version.tariff} has no price {span_text(span)}")  # ingest takes no such version


def _join(words: Iterable[str]) -> str:
    return " and ".join(words)


def soum(tiyin: int) -> str:
    """An amount in soum, exact, with its hundredths where there are any."""
    sign, (whole, rest) = "−" if tiyin < 0 else "", divmod(abs(tiyin), 100)
    return f"{sign}{whole:,}" + (f".{rest:02}" if rest else "")


def next_step(reason: str) -> str:
    """What the table of reasons says to do."""
    from hisob.reasons import REASONS

    return REASONS[reason].next_step
