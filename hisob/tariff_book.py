"""The tariff book: every version of every tariff, what a month costs by it, and what is wrong with a file for it.

The book is that of a home's journal, or, where there is no home, the one we ship. What is in force on a day is, of the
versions dated up to it, the one with the latest date; of the same date, the last to arrive ("The bill, exactly"). Costs
are those of the bill: `accounting.tariffs.cost`, block limits times the families, one floor at the end.

Not here: prices by the time of day. The rules do not have them yet. The old price for energy prepaid before a rise is posted
beside the rules (`warehouse.old_price`).
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hisob.errors import HisobError

if TYPE_CHECKING:
    from pathlib import Path

    from connectors.home import Home

MOST_KWH = 1_000_000_000
Block = tuple[int | None, int]  # (upper limit in kWh or None, price in tiyin per kWh)


@dataclass(frozen=True)
class Version:
    """One version of a tariff. `sources` are its blocks', one each."""

    tariff: str
    effective_on: dt.date
    blocks: tuple[Block, ...]
    sources: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Line:
    """What the month's usage within one block costs. Its limits are those for all families together; upto None: no limit."""

    above_kwh: int
    upto_kwh: int | None
    price_tiyin_per_kwh: int
    usage_wh: int
    amount_tiyin: int


@dataclass(frozen=True)
class Quote:
    """What a month of so much usage costs. The lines add up to it."""

    version: Version
    families: int
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
    found: dict[tuple[str, dt.date, tuple[Block, ...]], Version] = {}
    begun: list[dict[str, Any]] = []
    for row in rows:
        own = (row["tariff"], row["effective_on"], row.get("received_at"))
        begun = [r for r in begun if (r["tariff"], r["effective_on"], r.get("received_at")) == own] + [row]
        if len(begun) < (row["blocks"] or 1):
            continue
        blocks = tuple((r["block_upto_kwh"], r["price_tiyin_per_kwh"]) for r in begun)
        version = Version(row["tariff"], row["effective_on"], blocks, tuple(r.get("source") for r in begun))
        found.setdefault((version.tariff, version.effective_on, blocks), version)  # settle ignores a repetition, too
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


def quote(version: Version, usage_wh: int, families: int = 1) -> Quote:
    """What a calendar month with so much usage costs by a version."""
    from accounting.tariffs import ALWAYS, AccountVersion, History, TariffBook, TariffVersion, cost

    book = TariffBook()
    book.add(TariffVersion(version.tariff, ALWAYS, version.blocks))
    book.schedule(History((AccountVersion(ALWAYS, ALWAYS, version.tariff, families),)))
    arrays = book.arrays()

    def cost_of(wh: int) -> int:
        return int(cost(arrays, int(arrays.segments[0].price), wh))

    lines, low_kwh = [], 0
    for limit_kwh, price in version.blocks:
        upto_kwh = None if limit_kwh is None else limit_kwh * families
        low_wh, top_wh = low_kwh * 1000, usage_wh if upto_kwh is None else min(usage_wh, upto_kwh * 1000)
        if top_wh > low_wh:
            lines.append(Line(low_kwh, upto_kwh, price, top_wh - low_wh, cost_of(top_wh) - cost_of(low_wh)))
        low_kwh = low_kwh if upto_kwh is None else max(low_kwh, upto_kwh)
    return Quote(version, families, usage_wh, cost_of(usage_wh), tuple(lines))


# ---- a file for it ---------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of a tariff file whose values could be read. `is_whole`: so could all others of its version."""

    row: int
    tariff: str
    effective_on: dt.date
    received_at: str | None
    block: Block
    is_whole: bool


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
        findings += judge_blocks(own)
        if own[0].is_whole:
            blocks = {
                limit: (limit, price) for limit, price in reversed([row.block for row in own])
            }  # the first counts
            sound.append(Version(own[0].tariff, own[0].effective_on, tuple(sorted(blocks.values(), key=_by_limit))))
    for number, version in enumerate(sound):
        findings += judge_date(version, [*book, *sound[:number]])
        findings += judge_rise(version, [*book, *sound], rise_percent)
    return findings


def read_rows(path: Path) -> tuple[list[Row], list[Finding]]:
    """The rows that can be read, in the order of the file, and what is wrong with the others, by the contract of ingest."""
    from connectors.files import inspect_file
    from connectors.files.check import Checker
    from connectors.files.formats import read_whole

    now_us = int(dt.datetime.now(dt.UTC).timestamp() * 1_000_000)
    checked = Checker("tariff", path.name, partitions=1, until=now_us).check(read_whole(inspect_file(path), "tariff"))
    pairs = zip(checked.rows.tolist(), checked.good.to_pylist(), strict=True)
    rows = [_row(number, record, is_whole=True) for number, record in pairs]
    findings = []
    for bad in checked.bad.to_pylist():
        if bad["reason"] in {"bad_version", "no_last_block"}:
            rows.append(_row(bad["row"], json.loads(bad["record"]), is_whole=False))
        else:
            value = "no value" if bad["value"] is None else repr(bad["value"])
            what = f"{bad['column']}: {value}" if bad["column"] else value
            findings.append(Finding("fault", bad["reason"], f"row {bad['row']}", f"{what}. {next_step(bad['reason'])}"))
    return sorted(rows), findings


def _row(number: int, record: dict[str, Any], *, is_whole: bool) -> Row:
    """A row of good values, typed or as text."""
    limit, received = record.get("block_upto_kwh"), record.get("received_at")
    return Row(
        number,
        record["tariff"],
        dt.date.fromisoformat(str(record["effective_on"])),
        str(received) if received else None,
        (int(limit) if limit else None, int(record["price_tiyin_per_kwh"])),
        is_whole,
    )


def _by_limit(block: Block) -> tuple[bool, int]:
    return block[0] is None, block[0] or 0


def judge_blocks(rows: Sequence[Row]) -> Iterator[Finding]:
    """Blocks that overlap or are out of order, and usage that no block has a price for."""
    where = f"{rows[0].tariff}, {rows[0].effective_on}"
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


def judge_date(version: Version, others: Sequence[Version]) -> Iterator[Finding]:
    """Another version of the same tariff and date: the periods of the two overlap altogether."""
    same = [v for v in others if (v.tariff, v.effective_on) == (version.tariff, version.effective_on)]
    if any(v.blocks != version.blocks for v in same):
        yield Finding(
            "fault",
            "overlapping_versions",
            f"{version.tariff}, {version.effective_on}",
            "another version of this date has other prices, and the last to arrive will count. What was charged already"
            " is not charged anew.",
        )


def judge_rise(version: Version, others: Sequence[Version], rise_percent: float) -> Iterator[Finding]:
    """A price that rises by more than so much against the version before, wherever in the month's usage it rises most."""
    before = in_force(others, version.tariff, version.effective_on - dt.timedelta(days=1))
    if before is None:
        return
    steps = [(_price_at(before, low), _price_at(version, low), low) for low in sorted(_lower_limits(before, version))]
    old, new, low = max(steps, key=lambda step: (_ratio(*step[:2]), -step[2]))
    if new * 100 > old * (100 + rise_percent):
        by = f"{(new - old) * 100 / old:+.1f} %" if old else "from nothing"
        place = f" above {low:,} kWh" if low else ""
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


def _price_at(version: Version, above_kwh: int) -> int:
    """The price of the kWh right above so many."""
    return next(price for limit, price in version.blocks if limit is None or limit > above_kwh)


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
