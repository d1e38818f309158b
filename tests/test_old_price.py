"""The right to the old price for energy prepaid before a rise, worked by hand: in advance, and settled at the end."""

import datetime as dt

import pytest

from flows.old_price import post_old_price
from streams.ingest import ingest_files
from tests.in_process import ask, call
from tests.test_tariff_correct import file_of, records_in
from tests.warehouse_homes import load_and_publish, quick_loads
from tests.whole_homes import new_home, settle
from warehouse.old_price import History, Stretch, cost, energy_for, is_rise, months_after, rights_of

OLD, NEW = ((None, 50_000),), ((50, 60_000), (None, 80_000))
T, DAY = dt.datetime(2025, 5, 1, tzinfo=dt.timezone(dt.timedelta(hours=5))), dt.timedelta(days=1)
SOUM = 100


@pytest.fixture(scope="module", autouse=True)
def _quick_loads():
    with quick_loads():
        yield


def us(moment):
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def history(*later, opening=100_000, **more):
    """100 kWh were used in April, for 50,000 of 100,000 soum. later: (from day, to day, kWh) since the rise."""
    april = Stretch(us(T - 10 * DAY), us(T), 0, 100_000, 0, "t", 1, OLD)
    stretches, total, months = [april], 100_000, {}
    for first, last, kwh in later:
        month = (T + first * DAY).month
        low = months.get(month, 0)
        moments = (us(T + first * DAY), us(T + last * DAY))
        stretches.append(Stretch(*moments, total, total + kwh * 1000, low, "t", 1, NEW))
        total += kwh * 1000
        months[month] = low + kwh * 1000
    return History("A", stretches, [(us(T - 10 * DAY), opening * SOUM)], **more)


def rights(found, now, months=2):
    return [(r.part, r.energy_wh, r.worth_tiyin, r.due_tiyin) for r in rights_of(found, months, us(T + now * DAY))]


ADVANCE = {"old-price:t:2025-05-01:advance": 20_000 * SOUM}


def test_in_advance_it_is_what_the_prepaid_energy_costs_more_from_the_position_at_the_rise():
    """50,000 soum buy 100 kWh at 500. They cost 50 x 600 + 50 x 800 = 70,000 now: 20,000 more."""
    assert rights(history((0, 10, 10)), now=10) == [("advance", 100_000, 20_000 * SOUM, 20_000 * SOUM)]
    assert rights(history((0, 10, 10), posted=ADVANCE), now=10) == []


def test_at_the_end_each_piece_counts_at_its_place_in_its_month():
    """60 kWh of May cost 38,000 instead of 30,000; the last 40 fall into June, 24,000 instead of 20,000: 12,000 in all."""
    used_up = history((0, 31, 60), (31, 40, 70), posted=ADVANCE)
    assert rights(used_up, now=40) == [("end", 100_000, 12_000 * SOUM, -8_000 * SOUM)]


def test_it_ends_after_its_months_though_energy_is_left():
    """After one month: only the 60 kWh of May."""
    found = history((0, 31, 60), (31, 40, 70), posted=ADVANCE)
    assert rights(found, now=40, months=1) == [("end", 100_000, 8_000 * SOUM, -12_000 * SOUM)]
    half = history((0, 31, 20), (31, 71, 40), posted=ADVANCE)  # a step over the end, 30 of its 40 days before it
    assert rights(half, now=71) == [("end", 100_000, (2_000 + 3_000) * SOUM, -15_000 * SOUM)]


def test_it_ends_when_the_account_is_closed():
    found = history((0, 10, 10), posted=ADVANCE, closed_at=us(T + 10 * DAY))
    assert rights(found, now=11) == [("end", 100_000, 1_000 * SOUM, -19_000 * SOUM)]


def test_used_up_before_anybody_looked_it_is_posted_whole():
    assert rights(history((0, 31, 60), (31, 40, 70)), now=40) == [("end", 100_000, 12_000 * SOUM, 12_000 * SOUM)]


def test_once_it_is_settled_nothing_more_is_posted():
    ended = ADVANCE | {"old-price:t:2025-05-01:end": -8_000 * SOUM}
    assert rights(history((0, 31, 60), (31, 40, 70), posted=ended), now=40) == []


def test_a_debt_buys_no_energy_and_an_old_rise_gives_no_right():
    assert rights(history((0, 10, 10), opening=50_000), now=10) == []
    assert rights(history((0, 10, 10)), now=62) == []


def test_a_rise_while_a_right_runs_gives_none_of_its_own():
    dearer = ((None, 90_000),)
    found = history((0, 10, 10))
    found.stretches.append(Stretch(us(T + 10 * DAY), us(T + 20 * DAY), 110_000, 115_000, 10_000, "t", 1, dearer))
    assert [part for part, *_ in rights(found, now=20)] == ["advance"]
    found.posted = {"old-price:t:2025-05-01:advance": 20_000 * SOUM}
    assert rights(found, now=20) == []


def test_no_right_where_no_wh_costs_more_or_the_tariff_is_another():
    assert not is_rise(NEW, OLD)  # 500 is less than either
    assert is_rise(((10, 1), (None, 5)), ((20, 1), (None, 6)))
    found = history((0, 10, 10))
    found.stretches[0] = Stretch(us(T - 10 * DAY), us(T), 0, 100_000, 0, "another", 1, OLD)
    assert rights(found, now=10) == []


@pytest.mark.parametrize("blocks", [OLD, NEW, ((3, 333), (7, 45_001), (None, 99_999))])
@pytest.mark.parametrize("tiyin", [0, 1, 999, 45_001, 5_000_000, 10**12])
@pytest.mark.parametrize("position", [0, 1, 2_999, 50_000])
def test_the_energy_is_the_most_that_the_money_buys(blocks, tiyin, position):
    def costs(wh):
        return cost(blocks, 2, position + wh) - cost(blocks, 2, position)

    found = energy_for(blocks, 2, position, tiyin)
    assert costs(found) <= tiyin < costs(found + 1)


def test_calendar_months_end_on_a_day_that_there_is():
    def after(text, months):
        return months_after(us(dt.datetime.fromisoformat(text)), months)

    assert after("2025-12-31T00:00:00+05:00", 2) == us(dt.datetime.fromisoformat("2026-02-28T00:00:00+05:00"))
    assert after("2025-05-01T00:00:00+05:00", 2) == us(dt.datetime.fromisoformat("2025-07-01T00:00:00+05:00"))


# ---- a whole home ----------------------------------------------------------------------------------------------------

TARIFFS = """\
tariff,effective_on,block_upto_kwh,price_tiyin_per_kwh
t,2025-01-01,,50000
t,2025-05-01,50,60000
t,2025-05-01,,80000
"""
ACCOUNTS = """\
account_id,effective_at,meter_id,district,tariff,opening_balance_tiyin,opening_register_wh
A,2025-04-21T00:00:00+05:00,MA,d,t,9000000,0
B,2025-04-21T00:00:00+05:00,MB,d,t,0,0
"""
PAYMENTS = """\
payment_id,account_id,paid_at,amount_tiyin,received_at
P,A,2025-04-30T12:00:00+05:00,1000000,2025-05-02T12:00:00+05:00
"""
MAY = """\
meter_id,read_at,register_wh
MA,2025-05-01T00:00:00+05:00,100000
MA,2025-05-11T00:00:00+05:00,110000
MB,2025-05-11T00:00:00+05:00,90000
"""
JUNE = """\
meter_id,read_at,register_wh
MA,2025-06-01T00:00:00+05:00,160000
MA,2025-06-10T00:00:00+05:00,230000
"""


def balance(home):
    return ask(home.path, "query", "SELECT balance_tiyin FROM balances WHERE account_id = 'A'")[0]["balance_tiyin"]


def test_a_home_that_has_the_right_posts_it_once_and_settles_it_at_the_end(tmp_path, monkeypatch):
    home = new_home(tmp_path / "home")
    files = {"tariff": TARIFFS, "account": ACCOUNTS, "payment": PAYMENTS, "reading": MAY}
    ingest_files(home, [(kind, file_of(tmp_path, f"{kind}.csv", text)) for kind, text in files.items()])
    settle(home)
    code, text = call(home.path, "tariff", "old-price")
    assert (code, "old_price_months is 0" in text) == (2, True)
    assert post_old_price.fn(str(home.path)) == {"on": False}
    monkeypatch.setenv("HISOB_OLD_PRICE_MONTHS", "2")
    load_and_publish(home)
    before = records_in(home)
    shown = ask(home.path, "tariff", "old-price", "--dry-run")
    assert records_in(home) == before
    posted = ask(home.path, "tariff", "old-price")
    assert shown["adjustments"] == posted["adjustments"]
    assert posted["adjustments"] == [
        {
            "account_id": "A",
            "adjustment_id": "old-price:t:2025-05-01:advance",
            "amount_tiyin": 2_000_000,
            "reason": "Old price for 100 kWh prepaid before the prices of t rose on 2025-05-01: 20,000.00 soum in advance",
        }
    ]
    assert ask(home.path, "tariff", "old-price")["adjustments"] == []
    ingest_files(home, [("reading", file_of(tmp_path, "june.csv", JUNE))])
    told = post_old_price.fn(str(home.path))
    assert told == {"on": True, "posted": 1, "credit_tiyin": 0, "charge_tiyin": 800_000}
    (end,) = ask(home.path, "query", "SELECT adjustment_id, amount_tiyin FROM adjustments WHERE author = 'nightly'")
    assert end == {"adjustment_id": "old-price:t:2025-05-01:end", "amount_tiyin": -800_000}
    assert ask(home.path, "tariff", "old-price")["adjustments"] == []
    # 100,000 paid, 50,000 for April, 38,000 for May, 30,000 + 16,000 for June, 12,000 of it by the right
    assert balance(home) == (100_000 - 50_000 - 38_000 - 46_000 + 12_000) * SOUM
    assert ask(home.path, "reconcile")["different"] == 0
