"""Prices by the hour of the day: worked by pen and paper, against the oracle and the auditor, and for what looks ahead.

The tariff of the worked tests is one of a kWh a price: peak 06–09 and 17–22 1,500 soum, half-peak 09–17 1,000, night 22–06 600
up to 1 kWh in the month and 900 above.
"""

import random
from datetime import UTC, date, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.calendar import US_PER_DAY, US_PER_HOUR
from accounting.forecast import deplete
from accounting.hours import gaps_and_overlaps, is_hours, parse_hours
from accounting.state import new_accounts
from accounting.tariffs import ALWAYS, AccountVersion, History, TariffBook, TariffVersion, even_cost
from tests.core_harness import settle_journal
from tests.oracle import holds, run, run_journal
from tests.random_records import OF_HOURS, random_records, write_csv
from tests.stories import Director, all_awake, told_again
from tests.test_bill import assert_the_core_agrees
from tests.test_reconcile import assert_agrees, together, warehouse_of
from tests.warehouse_homes import load_and_publish
from tests.whole_homes import ingest, new_home, settle
from warehouse.audit import open_for_audit
from warehouse.reconcile import reconcile

PEAK, HALF_PEAK, NIGHT = "06:00-09:00,17:00-22:00", "09:00-17:00", "22:00-06:00"
LISTS = ((PEAK, ((None, 150_000),)), (HALF_PEAK, ((None, 100_000),)), (NIGHT, ((1, 60_000), (None, 90_000))))
TASHKENT = timezone(timedelta(hours=5))
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us(text):
    """A moment by the clocks of Tashkent, as µs since 1970."""
    return (datetime.fromisoformat(text).replace(tzinfo=TASHKENT) - EPOCH) // timedelta(microseconds=1)


def tariff(name="by_hours", lists=LISTS, since=date(2025, 1, 1)):
    return ("tariff", {"tariff": name, "effective_on": since, "received_at": None, "lists": lists})


def account(at, register_wh=0, **given):
    row = {"account_id": "A", "effective_at": us(at), "meter_id": "M", "district": "d", "tariff": "by_hours"}
    return ("account", row | {"opening_register_wh": register_wh} | given)


def reading(at, register_wh, **given):
    return ("reading", {"meter_id": "M", "read_at": us(at), "register_wh": register_wh} | given)


def charged(*journal):
    """What each reading charged (− corrections), as the core and the oracle both have it."""
    settled, expected = settle_journal(journal, accounts=1), run_journal(journal)
    assert settled.outcome.balances == expected.balances
    assert sorted(settled.outcome.refused) == sorted(expected.refused)
    return settled


def pieces(settled):
    """Of each entry that is no opening: from, to (hour and minute), its Wh, what it charged, how."""

    def clock(moment):
        return f"{moment.astimezone(TASHKENT):%H:%M}"

    return [
        (clock(e["from_at"]), clock(e["to_at"]), e["usage_wh"], -e["amount_tiyin"], e["basis"])
        for e in settled.events["entry"]
        if e["kind"] != "opening"
    ]


# ---- by pen and paper ------------------------------------------------------------------------------------------------
def test_a_step_over_one_edge_is_cut_there_and_the_register_found_between():
    """100 Wh from 08:30 to 09:15: at 09:00 thirty of 45 minutes have passed, 100 · 30 // 45 = 66 Wh.
    66 Wh × 1,500 soum = 99 soum; 34 Wh × 1,000 = 34 soum.
    """
    settled = charged(tariff(), account("2025-06-10 08:30", 10_000), reading("2025-06-10 09:15", 10_100))
    assert pieces(settled) == [
        ("08:30", "09:00", 66, 9_900, "interpolated"),
        ("09:00", "09:15", 34, 3_400, "interpolated"),
    ]


def test_a_night_goes_on_over_midnight_and_a_month_turns_in_it():
    """31 May, from 21:00: 800 Wh in two hours, half of them peak (400 × 1,500 = 600 soum), half night (400 × 600 = 240).
    1,200 Wh from 23:00 to 05:00: a sixth, 200, before midnight fills the first kWh of May (120 soum); June begins anew
    with 1,000 × 600 = 600. Then 600 Wh from 05:00 to 07:00: 300 of the night, above June's first kWh (300 × 900 = 270), and
    300 of the peak (450). The next midnight is no boundary.
    """
    settled = charged(
        tariff(),
        account("2025-05-31 21:00"),
        reading("2025-05-31 23:00", 800),
        reading("2025-06-01 05:00", 2_000),
        reading("2025-06-01 07:00", 2_600),
        reading("2025-06-01 23:00", 2_600),
        reading("2025-06-02 01:00", 2_700),
    )
    assert [p[:4] for p in pieces(settled)] == [
        ("21:00", "22:00", 400, 60_000),
        ("22:00", "23:00", 400, 24_000),
        ("23:00", "00:00", 200, 12_000),
        ("00:00", "05:00", 1_000, 60_000),
        ("05:00", "06:00", 300, 27_000),
        ("06:00", "07:00", 300, 45_000),
        ("07:00", "09:00", 0, 0),
        ("09:00", "17:00", 0, 0),
        ("17:00", "22:00", 0, 0),
        ("22:00", "23:00", 0, 0),
        ("23:00", "01:00", 100, 9_000),
    ]
    assert settled.outcome.balances == {"A": -(60_000 + 24_000 + 12_000 + 60_000 + 27_000 + 45_000 + 9_000)}


@pytest.mark.parametrize(
    ("plain_price", "expected"),
    [
        (80_000, [("11:00", "12:00", 100, 8_000), ("12:00", "13:00", 100, 10_000)]),  # cut at noon: 80 and 100 soum
        (100_000, [("11:00", "13:00", 200, 20_000)]),  # half-peak costs just as much: nothing changes at noon
    ],
)
def test_a_plain_tariff_changed_for_one_by_hours_at_noon_is_cut_where_the_price_then_differs(plain_price, expected):
    """200 Wh from 11:00 to 13:00; and then 400 Wh from 16:00 to 18:00, half of them peak: 200 + 300 soum."""
    settled = charged(
        tariff(),
        tariff("plain", ((None, ((None, plain_price),)),)),
        account("2025-06-10 11:00", tariff="plain"),
        account("2025-06-10 12:00"),
        reading("2025-06-10 13:00", 200),
        reading("2025-06-10 16:00", 200),
        reading("2025-06-10 18:00", 600),
    )
    assert [p[:4] for p in pieces(settled)] == [
        *expected,
        ("13:00", "16:00", 0, 0),
        ("16:00", "17:00", 200, 20_000),
        ("17:00", "18:00", 200, 30_000),
    ]


def test_a_late_reading_cuts_the_step_over_an_edge_anew_until_the_next_edge_has_passed():
    """400 Wh from 08:00 to 10:00, half before 09:00: 300 + 200 soum. At 09:30 the register was 340: 340 · 60 // 90 = 226 by
    09:00, so 339 + 114 + 60 = 513 soum, 13 more. At 08:45 it was 150: 150 + (190 · 15 // 45 = 63) = 213 before 09:00, so
    319.50 + 127 + 60 = 506.50 soum, 6.50 back. Once 17:00 has passed, 08:50 is too late: it lies before the end of the gap
    before the last; at 09:50 nothing can change any more; 12:00 lies in the last gap, and moves the register at 17:00.
    """
    journal = [tariff(), account("2025-06-10 08:00"), reading("2025-06-10 10:00", 400)]
    assert charged(*journal).outcome.balances == {"A": -50_000}
    journal.append(reading("2025-06-10 09:30", 340))
    assert charged(*journal).outcome.balances == {"A": -51_300}
    journal.append(reading("2025-06-10 08:45", 150))
    assert charged(*journal).outcome.balances == {"A": -50_650}
    journal.append(reading("2025-06-10 17:30", 1_150))  # 750 Wh in 7.5 h: 700 + 50 × 1.5
    assert charged(*journal).outcome.balances == {"A": -50_650 - 70_000 - 7_500}
    settled = charged(*journal, reading("2025-06-10 08:50", 160), reading("2025-06-10 09:50", 380))
    assert [reason for _, _, reason in settled.outcome.refused] == ["too_late"]
    assert settled.outcome.balances == {"A": -128_150}
    # 600 by 12:00: 550 Wh in 5.5 h, so 1,100 at 17:00 as before; 490 then: 660 Wh, 600 of them before 17:00
    assert charged(*journal, reading("2025-06-10 12:00", 600)).outcome.balances == {"A": -128_150}
    assert charged(*journal, reading("2025-06-10 12:00", 490)).outcome.balances == {"A": -50_650 - 69_000 - 9_000}


def test_a_backlog_is_taken_in_order_of_time_and_refused_backwards():
    """A meter that was silent over the edges of a day: read at its end, then the hours between arrive."""
    journal = [tariff(), account("2025-06-10 05:00"), reading("2025-06-10 23:00", 18_000)]
    between = [reading(f"2025-06-10 {hour:02}:30", 1_000 * (hour - 5) + 500) for hour in (7, 12, 19)]
    assert charged(*journal, *between).outcome.refused == []
    backwards = charged(*journal, *reversed(between))  # 19:30 leaves the gap over 22:00, and is the limit from then on
    assert [reason for _, _, reason in backwards.outcome.refused] == ["too_late"] * 2


def test_an_edge_between_hours_of_the_same_blocks_is_no_boundary():
    lists = ((PEAK, ((None, 150_000),)), (HALF_PEAK, ((None, 60_000),)), (NIGHT, ((None, 60_000),)))
    settled = charged(tariff(lists=lists), account("2025-06-10 21:00"), reading("2025-06-10 23:00", 200))
    assert [p[:3] for p in pieces(settled)] == [("21:00", "22:00", 100), ("22:00", "23:00", 100)]
    one = (("00:00-12:00", ((5, 1), (None, 2))), ("12:00-00:00", ((5, 1), (None, 2))))
    settled = charged(tariff(lists=one), account("2025-06-10 01:00"), reading("2025-06-12 23:00", 2_000))
    assert [p[:3] for p in pieces(settled)] == [("01:00", "23:00", 2_000)]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**9))
def test_half_hours_on_the_line_between_cost_what_the_one_step_does(seed):
    chance = random.Random(seed)
    usage, halves = chance.randrange(200_000), chance.randrange(2, 200)
    start = us("2025-06-25 00:00") + chance.randrange(48) * US_PER_HOUR // 2
    limits = sorted(chance.sample([1, 3, 10, 40, 90], 2))
    lists = tuple((h, tuple(zip((*limits, None), chance.sample(range(1, 200_000), 3), strict=True))) for h, _ in LISTS)
    opened = account("2025-06-25 00:00", max_power_w=10**9)
    opened[1]["effective_at"] = start
    points = [
        ("reading", {"meter_id": "M", "read_at": start + k * US_PER_HOUR // 2, "register_wh": usage * k // halves})
        for k in range(1, halves + 1)
    ]
    one = charged(tariff(lists=lists), opened, points[-1])
    many = charged(tariff(lists=lists), opened, *points)
    assert one.outcome.balances == many.outcome.balances
    assert not many.outcome.refused


# ---- against the oracle and the auditor --------------------------------------------------------------------------------
@settings(deadline=None, max_examples=9)
@given(st.integers(0, 10**9), st.sampled_from(sorted(OF_HOURS)))
def test_random_utilities_with_prices_by_hours_end_as_in_the_oracle_however_the_journal_is_cut(seed, style):
    assert_the_core_agrees(seed, style)


def test_random_utilities_with_prices_by_hours_reconcile_and_hours_falsified_by_a_minute_are_found():
    styles = sorted(OF_HOURS)
    con = warehouse_of(together(random_records(seed, styles[seed % len(styles)]) for seed in range(8)))
    assert_agrees(con)
    for clock in ("06:0", "12:0"):
        con.execute("UPDATE journal.tariff SET hours = replace(hours, $1 || '0', $1 || '1')", [clock])
    assert reconcile(con).different


def test_files_with_hours_end_in_the_published_database_as_in_the_oracle(tmp_path):
    records, home = random_records(4, "hours-plain"), new_home(tmp_path / "home")
    write_csv(records, tmp_path / "files")
    ingest(home, tmp_path / "files")
    settle(home)
    load_and_publish(home)
    with open_for_audit(home) as con:
        result = assert_agrees(con)
        found = dict(con.execute("SELECT account_id, balance_tiyin FROM balances").fetchall())
    assert found == run(records).balances
    assert result.entries > 500


# ---- what looks ahead --------------------------------------------------------------------------------------------------
def book_of(lists):
    book = TariffBook()
    rows = [(hours, block) for hours, blocks in lists for block in blocks]
    hours, blocks = zip(*rows, strict=True)
    book.add(TariffVersion("t", ALWAYS, blocks, hours=hours))
    book.schedule(History((AccountVersion(ALWAYS, ALWAYS, "t", 1),)))
    return book.arrays()


def test_credit_runs_out_at_the_hour_it_does_by_hand():
    """100 Wh an hour from 08:00: 150 soum by 09:00, 800 more by 17:00, then 150 an hour: 1,250 soum last until 19:00.
    The night from 22:00 costs 60 an hour up to the first kWh of the month, which is long gone: 90.
    """
    book, s = book_of(LISTS), new_accounts(1)[0]
    at = us("2025-06-10 08:00")
    assert deplete(s, book, 2_400.0, at, 0, 125_000) == us("2025-06-10 19:00")
    whole_day = 15_000 + 80_000 + 75_000 + 8 * 9_000 + 2 * 15_000
    assert deplete(s, book, 2_400.0, at, 5_000, whole_day) == us("2025-06-11 08:00")
    assert deplete(s, book, 2_400.0, at, 5_000, 3 * whole_day + 7_500) == us("2025-06-13 08:30")


def test_a_month_used_evenly_over_the_hours_costs_each_prices_share_of_the_day():
    """What a low-credit notice asks for: 30 kWh, of which 8 hours of 24 are peak, 8 half-peak, 8 night."""
    whole = Fraction(8 * 30 * 150_000 + 8 * 30 * 100_000 + 8 * (60_000 + 29 * 90_000), 24)
    assert even_cost(book_of(LISTS), 0, 30_000) == whole.__floor__()
    assert even_cost(book_of(((None, ((1, 60_000), (None, 90_000))),)), 0, 30_000) == 60_000 + 29 * 90_000


RISING = ((20, 5_000, PEAK), (None, 30_000, PEAK), (None, 10_000, HALF_PEAK), (60, 4_000, NIGHT), (None, 9_000, NIGHT))
FALLING = ((20, 30_000, PEAK), (None, 5_000, PEAK), (None, 10_000, HALF_PEAK), (60, 9_000, NIGHT), (None, 100, NIGHT))


@settings(deadline=None, max_examples=2)
@given(st.integers(0, 10**9), st.sampled_from([RISING, FALLING]))
def test_the_accounts_that_a_tick_passes_by_have_nothing_due_by_hours_either(seed, blocks):
    journal, events = Director(seed, days=6, blocks=blocks).tell()
    assert told_again(journal, between=all_awake) == events


# ---- the hours themselves ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "spans"),
    [
        (None, [(0, 1440)]),
        ("00:00-24:00", [(0, 1440)]),
        ("06:00-09:00,17:00-22:00", [(360, 540), (1020, 1320)]),
        ("22:00-06:00", [(1320, 1440), (0, 360)]),
        ("18:30-00:00", [(1110, 1440)]),
    ],
)
def test_hours_are_read_to_the_minute_and_over_midnight(text, spans):
    assert parse_hours(text) == spans
    for minute in range(0, 1440, 15):
        at = us("2025-06-10 00:00") + minute * 60_000_000
        assert holds(text, at) == any(first <= minute < end for first, end in spans)


@pytest.mark.parametrize(
    "text",
    ["", "6:00-09:00", "06:00–09:00", "06:00-09:00, 17:00-22:00", "06:00", "06:60-09:00", "24:00-06:00", "06:00-25:00",
     "06:00-06:00", "06:00-09:00,", "06:00:00-09:00", "peak", "٠٦:00-09:00"],
)  # fmt: skip
def test_what_is_no_hours_of_the_day_is_none(text):
    assert not is_hours(text)


def test_gaps_and_overlaps_of_hours_are_found_to_the_minute():
    assert gaps_and_overlaps([PEAK, HALF_PEAK, NIGHT]) == ([], [])
    assert gaps_and_overlaps([None]) == ([], [])
    assert gaps_and_overlaps([PEAK, "09:00-16:59", NIGHT]) == ([(1019, 1020)], [])
    assert gaps_and_overlaps([PEAK, "08:00-17:00", NIGHT]) == ([], [(480, 540)])
    assert gaps_and_overlaps([None, "23:00-01:00"]) == ([], [(0, 60), (1380, 1440)])


def test_a_day_is_a_day_whatever_its_number():
    """Before 1970 too, where the remainder of a negative number tells whether it was floored."""
    book = book_of(LISTS)
    at = us("1960-02-29 08:00")
    assert deplete(new_accounts(1)[0], book, 2_400.0, at, 5_000, 15_000 + 80_000) == us("1960-02-29 17:00")
    assert us("1960-02-29 08:00") % US_PER_DAY == 3 * US_PER_HOUR
