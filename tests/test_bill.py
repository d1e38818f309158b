"""The compiled bill against a plain one: the same balances, usage, refusals and holds, however the journal is cut.

`oracle` was written from the design's text alone, row by row; here thousands of random records go through both. What
the bill stands on (exact products, the calendar, the cost of a month) is held against Python's own integers, dates
and fractions.
"""

import csv
import json
import os
import random
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accounting import calendar
from accounting.calendar import US_PER_DAY, US_PER_HOUR
from accounting.exact import INT64_MAX, beyond_power, multiply_divide
from accounting.records import EVENTS
from accounting.snapshot import restore, snapshot
from accounting.tariffs import ALWAYS, AccountVersion, History, TariffBook, TariffVersion, cost, cost_between
from tests import oracle
from tests.core_harness import Settled, settle_journal
from tests.random_records import STYLES, random_records

ROOT = Path(__file__).resolve().parent.parent
CASES = sorted(p for p in (ROOT / "tests" / "cases").iterdir() if p.is_dir())
TASHKENT = ZoneInfo("Asia/Tashkent")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
FEW_UTILITIES = [(seed, style) for seed, style in enumerate(["adversary"] * 8 + ["all"] * 4 + ["plain"] * 3)]
FEW_UTILITIES += [(20, "hours-adversary"), (21, "hours-all")]

seeds = st.integers(0, 10**9)
many = settings(deadline=None)


def journal_of(records):
    """The journal of a utility, with only those ticks that stand right before a record: the bill knows no others."""
    journal = oracle.journal_of(records)
    kinds = [kind for kind, _ in journal]
    return [
        placed
        for placed, now, following in zip(journal, kinds, [*kinds[1:], "tick"], strict=True)
        if (now, following) != ("tick", "tick")
    ]


def settle(journal, chance=None) -> Settled:
    """Settle a journal; with a source of chance in random bodies, the state saved and read back between some of them."""
    if chance is None:
        return settle_journal(journal, accounts=2, cut=lambda left: left)
    sizes = chance.choice([(1, 2, 90), (9, 60, 200), (150, 400)])
    return settle_journal(
        journal,
        accounts=2,
        cut=lambda _left: chance.choice(sizes),
        between=lambda p: restore(snapshot(p)) if chance.random() < 0.2 else p,
    )


def lines(outcome):
    return {
        "balances": outcome.balances,
        "usage": outcome.usage,
        "refused": sorted(outcome.refused),
        "held": sorted(outcome.held),
    }


def assert_every_arrival_ends_once(settled, journal, expected):
    """What the core says of each arrival, in numbers: none is lost and none counts twice (promise 9)."""
    arrivals = sum(kind not in {"tick", "policy"} for kind, _ in journal)
    ignored = sum(sum(p.ignored.values()) for p in settled.partitions)
    outcome = settled.outcome
    assert ignored == expected.ignored + expected.unchanged
    assert arrivals == expected.taken + ignored + len(outcome.refused) + len(outcome.held)
    held = {f"{e['partition']}-{e['ordinal']}-{e['n']}": e["record"] for e in settled.events["held"]}
    released = [e["held_id"] for e in settled.events["released"]]
    assert len(released) == len(set(released))
    assert set(released) <= set(held)
    refused = [e["record"] for e in settled.events["refused"]]
    assert all(held[e["held_id"]] in refused for e in settled.events["released"] if e["outcome"] == "refused")


# ---- the core against the oracle ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_a_case_ends_in_the_core_as_expected_line_for_line(folder):
    journal = journal_of(oracle.load_case(folder))
    settled = settle(journal, random.Random(folder.name))
    for what, found in lines(settled.outcome).items():
        with (folder / f"expected_{what}.csv").open(newline="", encoding="utf-8") as file:
            expected = sorted(tuple(line) for line in list(csv.reader(file))[1:])
        found_lines = [(a, str(n)) for a, n in found.items()] if isinstance(found, dict) else found
        assert sorted(found_lines) == expected, what
    assert_every_arrival_ends_once(settled, journal, oracle.run_journal(journal))


def assert_the_core_agrees(seed, style):
    journal = journal_of(random_records(seed, style))
    expected = oracle.run_journal(journal)
    cut = settle(journal, random.Random(seed))
    assert lines(cut.outcome) == lines(expected)
    assert_every_arrival_ends_once(cut, journal, expected)
    whole = settle(journal)
    for kind in EVENTS:
        assert whole.events[kind] == cut.events[kind], kind


@settings(many, max_examples=35)
@given(seeds)
def test_troubles_on_equal_moments_end_as_in_the_oracle_however_the_journal_is_cut(seed):
    assert_the_core_agrees(seed, "adversary")


@settings(many, max_examples=15)
@given(seeds)
def test_all_troubles_at_once_end_as_in_the_oracle_however_the_journal_is_cut(seed):
    assert_the_core_agrees(seed, "all")


@settings(many, max_examples=30)
@given(seeds, st.sampled_from(sorted(STYLES)))
def test_each_trouble_alone_ends_as_in_the_oracle_however_the_journal_is_cut(seed, style):
    assert_the_core_agrees(seed, style)


def few_events():
    """The events of a few utilities, as JSON can say them."""
    found = []
    for seed, style in FEW_UTILITIES:
        settled = settle(journal_of(random_records(seed, style)))
        found.append({kind: [json.loads(json.dumps(e, default=str)) for e in settled.events[kind]] for kind in EVENTS})
    return found


def test_the_rules_uncompiled_give_the_same_events_row_for_row():
    """Uncompiled, an integer that outgrows 64 bits is a warning, and here an error: compiled it would wrap in silence."""
    command = "import json, sys; from tests.test_bill import few_events; json.dump(few_events(), sys.stdout)"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", command],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for compiled, uncompiled in zip(few_events(), json.loads(done.stdout), strict=True):
        for kind in EVENTS:
            assert compiled[kind] == uncompiled[kind], kind


# ---- promise 6: the balance, from registers up --------------------------------------------------------------------------
def month_of(at):
    local = (EPOCH + at * MICROSECOND).astimezone(TASHKENT)
    return local.year, local.month


def month_begins(month):
    return (datetime(*month, 1, tzinfo=TASHKENT) - EPOCH) // MICROSECOND


def after(month):
    year, number = month
    return (year, number + 1) if number < 12 else (year + 1, 1)


def price_of(wh, blocks, families):
    """What a month's Wh cost in tiyin, as a fraction: no integer division that could be the same mistake twice."""
    total, lower = Fraction(0), 0
    for upto_kwh, price in blocks:
        upper = wh if upto_kwh is None else min(wh, upto_kwh * 1000 * families)
        total += Fraction(max(upper - lower, 0) * price, 1000)
        lower = max(lower, upper)
    return total.numerator // total.denominator


def bill_of(points, blocks, families):
    """What registers cost under one tariff: points are (moment, Wh used since the start). Whole months, each by itself."""
    months = {}
    for (t0, w0), (t1, w1) in pairwise(points):
        month, at = month_of(t0), w0
        while (turn := month_begins(after(month))) <= t1:
            there = w0 + Fraction((w1 - w0) * (turn - t0), t1 - t0).__floor__()
            months[month] = months.get(month, 0) + there - at
            month, at = after(month), there
        months[month] = months.get(month, 0) + w1 - at
    return sum(price_of(wh, blocks, families) for wh in months.values())


@settings(many, max_examples=25)
@given(seeds)
def test_at_any_position_the_balance_is_opening_and_credits_less_the_cost_of_its_registers(seed):
    chance = random.Random(seed)
    modulus, families, opening = 1_000_000, chance.choice([1, 1, 2, 3]), chance.randrange(-(10**7), 10**8)
    limits = [*sorted(chance.sample([1, 2, 5, 20, 100, 500], chance.randrange(4))), None]
    blocks = tuple((limit, chance.choice([0, 1, 999, 45_000, 60_001, 200_000])) for limit in limits)
    at = month_begins((2025, chance.randint(1, 12))) + chance.randrange(0, 30 * US_PER_DAY)
    account = {
        "account_id": "A", "effective_at": at, "meter_id": "M", "district": "d", "tariff": "t", "families": families,
        "opening_balance_tiyin": opening, "opening_register_wh": (register := chance.randrange(modulus)),
        "register_modulus_wh": modulus, "max_power_w": 10**9,
    }  # fmt: skip
    tariff = {"tariff": "t", "effective_on": date(2024, 1, 1), "received_at": None, "blocks": blocks}
    journal, balances, points, credits_tiyin = [("tariff", tariff), ("account", account)], [0, opening], [(at, 0)], 0
    for number in range(chance.randint(5, 25)):
        at += chance.choice([1, US_PER_HOUR // 2, US_PER_DAY - 1, 9 * US_PER_DAY, 70 * US_PER_DAY])
        if chance.random() < 0.3:
            amount = chance.choice([1, 500_000, 10**8])
            payment = {"payment_id": f"P{number}", "account_id": "A", "paid_at": at, "amount_tiyin": amount}
            credits_tiyin += amount
            journal.append(("payment", payment))
        elif chance.random() < 0.1:
            amount = chance.choice([-1, -777_777, 12])
            journal.append(
                ("adjustment", {"adjustment_id": f"J{number}", "account_id": "A", "adjusted_at": at,
                                "amount_tiyin": amount, "author": "a", "reason": "r"})
            )  # fmt: skip
            credits_tiyin += amount
        else:
            usage = min(chance.choice([0, 1, 999, 99_999]), 10**9 * (at - points[-1][0]) // US_PER_HOUR)
            register = (register + usage) % modulus
            points.append((at, points[-1][1] + usage))
            journal.append(("reading", {"meter_id": "M", "read_at": at, "register_wh": register}))
        balances.append(opening + credits_tiyin - bill_of(points, blocks, families))
    found = []

    def look(p):
        if not p.unrouted:
            found.append(int(p.accounts[1].balance_tiyin) if p.count > 1 else 0)
        return p

    rows = len(blocks)  # a tariff version is as many records
    settled = settle_journal(journal, accounts=1, cut=lambda _left: 1, between=look)
    assert found[rows - 1 :] == balances
    assert not settled.outcome.refused


# ---- what the bill stands on --------------------------------------------------------------------------------------------
numbers = st.one_of(st.integers(0, INT64_MAX), st.integers(0, 10**6), st.integers(2**62 - 9, 2**62 + 9))


@settings(many, max_examples=300)
@given(numbers, numbers, st.one_of(st.integers(1, 2**62 - 1), st.integers(1, 1000), st.integers(2**62 - 9, 2**62 - 1)))
@example(2**62, 2**62 - 1, 2**62 - 1)
@example(INT64_MAX, 1, 1)
@example(3, 2**62, 2)
def test_a_wide_product_divided_is_exact(a, b, c):
    quotient = a * b // c
    if quotient <= INT64_MAX:
        assert multiply_divide(a, b, c) == quotient


@settings(many, max_examples=300)
@given(
    numbers,
    st.one_of(st.integers(1, 2**62), st.integers(1, 10**5)),
    st.one_of(st.integers(1, 2**62), st.integers(1, 2**41)),
)
@example(2**62 + 1, 2**62, US_PER_HOUR)
@example(2**62, 2**62, US_PER_HOUR)
@example(INT64_MAX, 2**62, 2 * US_PER_HOUR - 1)
@example(15_000, 15_000, US_PER_HOUR)
@example(15_001, 15_000, US_PER_HOUR)
def test_beyond_a_power_is_exact_at_any_size(usage_wh, power_w, duration_us):
    assert beyond_power(usage_wh, power_w, duration_us) == (usage_wh * US_PER_HOUR > power_w * duration_us)


@settings(many, max_examples=300)
@given(st.datetimes(datetime(1993, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001  Hypothesis wants them bare
def test_days_weekdays_and_months_are_those_of_tashkent(moment):
    at, local = (moment - EPOCH) // MICROSECOND, moment.astimezone(TASHKENT)
    day, month = calendar.day_of(at), calendar.month_of(at)
    assert EPOCH.date() + timedelta(days=day) == local.date()
    assert calendar.iso_weekday(day) == local.isoweekday()
    assert month == local.year * 12 + local.month - 1
    assert EPOCH + calendar.day_start(day) * MICROSECOND == datetime(*local.timetuple()[:3], tzinfo=TASHKENT)
    assert EPOCH + calendar.month_start(month) * MICROSECOND == datetime(local.year, local.month, 1, tzinfo=TASHKENT)


@settings(many, max_examples=200)
@given(st.datetimes(datetime(2, 1, 1), datetime(9990, 1, 1)))  # noqa: DTZ001  as above
def test_the_calendar_holds_for_all_years(moment):
    """Five hours ahead of UTC for good: before 1993 Tashkent's clocks were set otherwise, and no record is so old."""
    local = moment.replace(tzinfo=timezone(timedelta(hours=5)))
    at = (local - EPOCH) // MICROSECOND
    month = calendar.month_of(at)
    assert (month // 12, month % 12 + 1) == (local.year, local.month)
    assert calendar.month_start(month) <= at < calendar.month_start(month + 1)
    assert calendar.day_start(calendar.day_of(at)) <= at < calendar.day_start(calendar.day_of(at) + 1)


def book_of(blocks, families):
    book = TariffBook()
    book.add(TariffVersion("t", 0, tuple(blocks)))
    schedule = book.schedule(History((AccountVersion(ALWAYS, ALWAYS, "t", families),)))
    assert schedule == 0
    return book.arrays()


def test_a_decree_that_puts_an_old_price_back_is_a_version_of_its_own():
    book = TariffBook()
    versions = [
        TariffVersion("t", 0, ((None, price),), (source,)) for price, source in ((60, "1"), (70, "2"), (60, "3"))
    ]
    assert [book.add(version) for version in versions] == [0, 1, 2]
    book.schedule(History((AccountVersion(ALWAYS, ALWAYS, "t", 1),)))
    assert cost(book.arrays(), book.arrays().segments[0].price, 1_000_000) == 60_000
    assert book.add(versions[1]) is None


blocks_of = st.lists(st.tuples(st.integers(1, 10**6) | st.integers(1, 3), st.integers(0, 10**7)), max_size=5).flatmap(
    lambda some: st.integers(0, 10**7).map(lambda last: (*sorted(some), (None, last)))
)


@settings(many, max_examples=200)
@given(blocks_of, st.integers(1, 40), st.lists(st.integers(0, 10**12), min_size=2, max_size=2).map(sorted))
@example(((200, 45_000), (None, 90_000)), 1, [0, 10**12])
@example(((10, 30_000), (10, 40_000), (None, 70_000)), 1, [10_000, 15_000])  # one block holds nothing
def test_a_month_costs_what_fractions_say_and_its_parts_add_up(blocks, families, two):
    book, (part, wh) = book_of(blocks, families), two
    assert cost(book, 0, wh) == price_of(wh, blocks, families)
    first, rest = cost_between(book, 0, 0, part), cost_between(book, 0, part, wh)
    assert min(first, rest) >= 0
    assert (first, first + rest) == (price_of(part, blocks, families), price_of(wh, blocks, families))


def household_blocks(tariff, effective_on):
    with (ROOT / "hisob" / "data" / "tariffs-uz.csv").open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if (r["tariff"], r["effective_on"]) == (tariff, effective_on)]
    blocks = [(int(r["block_upto_kwh"]) if r["block_upto_kwh"] else None, int(r["price_tiyin_per_kwh"])) for r in rows]
    return sorted(blocks, key=lambda block: (block[0] is None, block[0]))


@pytest.mark.parametrize(
    ("effective_on", "kwh", "soum"),
    [
        ("2024-05-01", 500, 360_000),
        ("2025-05-01", 500, 360_000),
        ("2025-05-01", 200, 120_000),
        ("2025-05-01", 201, 120_800),
        ("2025-05-01", 1_000, 860_000),
        ("2025-05-01", 1_500, 1_610_000),
        ("2025-05-01", 6_000, 8_610_000),
        ("2025-05-01", 12_000, 19_610_000),
    ],
)
def test_a_household_pays_what_the_decree_comes_to_by_hand(effective_on, kwh, soum):
    assert cost(book_of(household_blocks("household", effective_on), 1), 0, kwh * 1000) == soum * 100


def test_families_that_share_a_meter_have_as_many_blocks():
    blocks = household_blocks("household", "2025-05-01")
    assert cost(book_of(blocks, 3), 0, 600_000) == 3 * cost(book_of(blocks, 1), 0, 200_000)
