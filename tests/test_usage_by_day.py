"""Use day by day: what a gap's days may have used, by similar days before; it adds up to the charge, and moves no money."""

from collections import Counter
from datetime import date
from fractions import Fraction

import pytest

from tests.in_process import ask, call
from tests.random_records import random_records
from tests.stories import DAY, HOUR, local, microseconds
from tests.warehouse_homes import history, whole
from warehouse.audit import open_published
from warehouse.page import chart_of, render
from warehouse.statement import make_statement
from warehouse.words import LANGUAGES, Words

START = local("2025-03-03 00:00")  # a Monday
GAP = START + 4 * 7 * DAY + 14 * HOUR  # and so is this, at 14:00: 2025-03-31, and the month turns within the gap
BACK = GAP + 2 * DAY + 19 * HOUR  # Thursday at 9:00
GAP_WH = 33_333


def half_hour_wh(at):
    """What the customer uses up to this moment: more by day than by night, and at weekends."""
    before = at - HOUR / 2
    return (500 if before.isoweekday() > 5 else 100) + (300 if 8 <= before.hour < 20 else 0)


def readings_of(meter, *, until, every=HOUR / 2, holes=()):
    """Registers from START on, but for those within a hole, whose use the first after it shows; each (register, moment)."""
    register_wh, at, rows = 0, START, []
    while at < until:
        at += every
        register_wh += half_hour_wh(at) if every < DAY else 4_800
        if not any(a < at < b for a, b in holes):
            rows.append((register_wh, at))
    return [
        {"meter_id": meter, "read_at": microseconds(at), "register_wh": wh, "status": None, "received_at": None}
        for wh, at in rows
    ]


def records_of(readings):
    """A customer for each meter, at one price."""
    meters = sorted({row["meter_id"] for row in readings})
    account = {
        "effective_at": microseconds(START),
        "district": "d",
        "tariff": "t",
        "opening_register_wh": 0,
        "max_power_w": 100_000,
    }
    return {
        "tariff": [
            {"tariff": "t", "effective_on": date(2025, 1, 1), "block_upto_kwh": None, "price_tiyin_per_kwh": 1000}
        ],
        "account": [{"account_id": f"A-{meter}", "meter_id": meter, **account} for meter in meters],
        "reading": readings,
    }


def with_gap(readings):
    """The readings with what the gap used set to GAP_WH, whatever the days used."""
    (after,) = [row["register_wh"] for row in readings if row["read_at"] == microseconds(BACK)]
    before = max(row["register_wh"] for row in readings if row["read_at"] <= microseconds(GAP))
    for row in readings:
        if row["read_at"] >= microseconds(BACK):
            row["register_wh"] += GAP_WH - (after - before)
    return readings


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Customers whose meters were silent for a while: "gap" for days, "night" over midnight, "new" with no past, "daily" and
    "monthly" are read as seldom as that.
    """
    until = BACK + DAY
    readings = with_gap(readings_of("gap", until=until, holes=[(GAP, BACK)]))
    night = START + 8 * DAY - HOUR
    readings += readings_of("night", until=START + 10 * DAY, holes=[(night, night + 2 * HOUR)])
    readings += readings_of("new", until=START + 4 * DAY, holes=[(START + 12 * HOUR, START + 3 * DAY)])
    readings += readings_of("daily", until=START + 10 * DAY, every=DAY)
    readings += [r for r in readings_of("sparse", until=START + 40 * DAY, every=DAY) if r["register_wh"] % 48_000 == 0]
    return history(tmp_path_factory.mktemp("gaps") / "home", whole(records_of(readings))).home


def days_of(home, account):
    return {
        day: (wh, basis)
        for day, wh, basis in (
            tuple(row.values()) for row in ask(home.path, "query", f"FROM usage_by_day('{account}') ORDER BY day")
        )
    }


def largest_remainder(total, weights):
    """Whole shares of a total: the rests go to the largest remainders, the earlier first."""
    exact = {day: Fraction(total * weight, sum(weights.values())) for day, weight in weights.items()}
    shares = {day: int(share) for day, share in exact.items()}
    by_rest = sorted(exact, key=lambda day: (shares[day] - exact[day], day))
    for day in by_rest[: total - sum(shares.values())]:
        shares[day] += 1
    return shares


def shape_of(first, last):
    """What the days of a stretch would have used, each by its hours."""
    weights, at = Counter(), first
    while at < last:
        at += HOUR / 2
        weights[(at - HOUR / 2).date()] += half_hour_wh(at)
    return weights


def test_a_gap_of_days_is_shared_out_by_the_same_hours_of_the_week_before_it(home):
    # The month turns at midnight: the bill set the register there evenly over time, so each month's part adds up by itself.
    turn = local("2025-04-01 00:00")
    march_wh = GAP_WH * ((turn - GAP) // HOUR) // ((BACK - GAP) // HOUR)
    found = days_of(home, "A-gap")
    gap = largest_remainder(GAP_WH - march_wh, shape_of(turn, BACK))
    assert gap.keys() == {date(2025, 4, 1), date(2025, 4, 2), date(2025, 4, 3)}
    for day, wh in gap.items():
        measured = sum(wh for d, wh in shape_of(BACK, BACK + DAY).items() if d == day)
        assert found[str(day)] == (wh + measured, "estimated")
    assert found["2025-03-31"] == (march_wh + sum(shape_of(GAP - 14 * HOUR, GAP).values()), "interpolated")
    assert found["2025-03-30"] == (24 * 1_000 + 12 * 600, "measured")


def test_a_gap_of_two_hours_over_midnight_is_shared_out_evenly(home):
    # From 23:00 to 1:00; a day is 48 half-hours of 100 Wh, and 24 of 300 more.
    found = days_of(home, "A-night")
    assert found["2025-03-10"] == (48 * 100 + 24 * 300, "interpolated")
    assert found["2025-03-11"] == (48 * 100 + 24 * 300, "interpolated")
    assert found["2025-03-09"][1] == "measured"


def test_without_a_past_a_gap_is_shared_out_evenly(home):
    # From Monday 12:00 to Thursday 0:00, 60 hours, of which 12, 24 and 24 lie in the three days.
    found = days_of(home, "A-new")
    used = sum(shape_of(START + 12 * HOUR, START + 3 * DAY).values())
    weights = {date(2025, 3, 3): 12, date(2025, 3, 4): 24, date(2025, 3, 5): 24}
    shares = largest_remainder(used, weights)
    morning = sum(shape_of(START, START + 12 * HOUR).values())
    assert found["2025-03-03"] == (shares[date(2025, 3, 3)] + morning, "interpolated")
    assert found["2025-03-04"] == (shares[date(2025, 3, 4)], "interpolated")


def test_who_is_read_at_midnight_each_day_is_measured_and_who_is_read_seldom_is_interpolated(home):
    assert set(days_of(home, "A-daily").values()) == {(4_800, "measured")}
    assert set(days_of(home, "A-sparse").values()) == {(4_800, "interpolated")}


def test_the_statement_marks_the_days_of_a_gap_and_leaves_their_money_whole(home):
    with open_published(home) as con:
        march, april = (make_statement(con, "A-gap", date(2025, month, 1)) for month in (3, 4))
        charged = con.execute(
            "SELECT usage_wh, amount_tiyin FROM entries WHERE account_id = 'A-gap' AND basis = 'interpolated' ORDER BY n"
        ).fetchall()
    assert march.adds_up
    assert april.adds_up
    (stretch,) = [u for u in april.usage if u.first_day < u.last_day]
    assert [(stretch.usage_wh, stretch.amount_tiyin)] == charged[1:]
    assert sum(d.usage_wh for d in stretch.days) == stretch.usage_wh
    assert {d.basis for d in stretch.days} == {"estimated"}
    soft = [bar for bar in chart_of(april, april.usage).bars if bar.estimated]
    assert len(soft) == len(stretch.days)
    assert not any(u.days for u in march.usage)
    for language in LANGUAGES:
        words, page = Words(language), render(april, language)
        for share in stretch.days:
            assert f"≈ {words.day(share.day)}" in page
        assert words["days_legend"] in page
    _, said = call(home.path, "statement", "A-gap", "--month", "2025-04")
    assert "≈ 02.04.2025" in said
    assert "by similar days" in said
    assert "≈" not in call(home.path, "statement", "A-gap", "--month", "2025-03")[1]


@pytest.fixture(scope="module")
def utilities(tmp_path_factory):
    """Homes with trouble of all kinds, made of random numbers."""
    folder = tmp_path_factory.mktemp("utilities")
    seeds = ((21, "adversary"), (12, "all"))
    return [history(folder / style, random_records(seed, style)).home for seed, style in seeds]


def test_whatever_is_charged_and_stands_is_shared_out_to_the_watt_hour(utilities):
    for home in utilities:
        with open_published(home) as con:
            stands = con.execute("SELECT account_id, sum(usage_wh) FROM entries GROUP BY ALL").fetchall()
            assert len(stands) > 5
            for account, total in stands:
                found = con.execute(f"SELECT sum(usage_wh), min(usage_wh) FROM usage_by_day('{account}')").fetchone()
                assert (found[0] or 0, (found[1] or 0) >= 0) == (total, True), account


def test_every_entry_that_rests_on_an_estimate_or_an_interpolated_register_says_so(utilities):
    """By the records alone: an end of an entry that nobody measured is named in its basis."""
    bases = Counter()
    for home in utilities:
        with open_published(home) as con:
            measured, estimates = (set(con.execute(sql).fetchall()) for sql in (MEASURED, ESTIMATED))
            usage = con.execute(
                "SELECT account_id, from_at, from_wh, to_at, to_wh, basis FROM entries WHERE kind = 'usage'"
            ).fetchall()
        for account, from_at, from_wh, to_at, to_wh, basis in usage:
            bases[basis] += 1
            first, last = (account, from_at, from_wh), (account, to_at, to_wh)
            if basis == "measured":
                assert {first, last} <= measured
            if last in estimates - measured:
                assert basis == "estimated"
            if basis == "interpolated":
                assert not {first, last} <= measured
    assert min(bases[basis] for basis in ("measured", "interpolated", "estimated")) > 10


# Every register that was read, by a meter or a person, of an account that names where it begins or begins at a reading.
MEASURED = """
    SELECT account_id, read_at, register_wh FROM readings WHERE status IS DISTINCT FROM 'estimated' AND account_id IS NOT NULL
    UNION ALL SELECT account_id, exchanged_at, unnest([old_register_wh, new_register_wh]) FROM meter_exchanges
    UNION ALL SELECT account_id, effective_at, opening_register_wh FROM accounts
    UNION ALL SELECT account_id, closed_at, closing_register_wh FROM accounts
"""
ESTIMATED = (
    "SELECT account_id, read_at, register_wh FROM readings WHERE status = 'estimated' AND account_id IS NOT NULL"
)
