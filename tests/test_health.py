"""The metering's health: silent, stuck and spiking meters, clocks that are ahead, and how many of a district were read."""

import datetime as dt
import json
from contextlib import closing

import pyarrow as pa
import pytest

from accounting.records import EVENT_SCHEMAS
from connectors.log import NewRow
from connectors.log.body import pack
from connectors.log.sqlite import open_log
from streams.ingest import ingest_files
from tests.in_process import ask, call
from tests.warehouse_homes import counted, load_and_publish
from tests.whole_homes import copied, new_home, settle
from warehouse.audit import open_published

TASHKENT = dt.timezone(dt.timedelta(hours=5))
START = dt.datetime(2025, 9, 1, tzinfo=TASHKENT)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
END = START + 10 * DAY
ACCOUNTS = {
    "good": "d",
    "silent": "d",
    "never": "d",
    "stuck": "d",
    "spike": "e",
    "ahead": "e",
    "late": "e",
    "gone": "e",
}


def account(name, **more):
    return {
        "account_id": name,
        "effective_at": START.isoformat(),
        "meter_id": f"M-{name}",
        "district": ACCOUNTS.get(name, "d"),
        "tariff": "household",
        "opening_balance_tiyin": 1_000_000_000,
        "opening_register_wh": 0,
        **more,
    }


def reading(name, at, wh, **more):
    return {"meter_id": f"M-{name}", "read_at": at.isoformat(), "register_wh": wh, **more}


def readings_of(name):
    """Every six hours, 3 kWh each time, but for what the meter has."""
    for k in range(1, 41):
        at, wh = START + k * 6 * HOUR, 3_000 * k
        if name == "never" or (name == "silent" and at > START + 7 * DAY) or (name == "gone" and at > START + 2 * DAY):
            continue
        if name == "stuck" and at > START + 5 * DAY:
            wh = 3_000 * 20
        if name == "spike" and k == 30:
            wh += 400_000
        yield reading(name, at, wh)


def given(folder, kind, rows):
    path = folder / f"{kind}.ndjson"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return kind, path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Ten days of eight meters, each with its trouble; not to be changed."""
    folder = tmp_path_factory.mktemp("health")
    home = new_home(folder / "home")
    accounts = [account(name) for name in ACCOUNTS]
    accounts.append(
        account("gone", effective_at=(START + 2 * DAY).isoformat(), closed_at=(START + 2 * DAY).isoformat())
    )
    rows = [row for name in ACCOUNTS for row in readings_of(name)]
    arrived = END - HOUR
    rows.append(reading("ahead", END + 5 * HOUR, 121_000, received_at=arrived.isoformat()))
    rows.append(reading("ahead", END - 30 * HOUR, 106_000, received_at=(END - 30 * HOUR - HOUR / 12).isoformat()))
    rows.append({"meter_id": "M-unknown", "read_at": END.isoformat(), "register_wh": 5})
    ingest_files(home, [given(folder, "account", accounts), given(folder, "reading", rows)])
    settle(home)
    load_and_publish(home)
    return home


def names(found):
    return [m["account_id"] for m in found]


def test_a_meter_without_a_reading_for_a_day_is_silent_and_one_never_read_since_it_was_put_in(home):
    found = ask(home.path, "health")
    assert found["at"] == END.astimezone(dt.UTC).isoformat()
    assert found["meters"] == 7
    assert [(m["account_id"], m["silent_hours"]) for m in found["silent"]] == [("never", 240), ("silent", 72)]
    assert found["silent"][1]["last_read_at"] == (START + 7 * DAY).astimezone(dt.UTC).isoformat()
    assert names(ask(home.path, "health", "--silent-hours", 72)["silent"]) == ["never"]
    assert names(ask(home.path, "health", "--silent-hours", 71)["silent"]) == ["never", "silent"]


def test_a_meter_that_is_read_and_does_not_advance_is_stuck(home):
    (stuck,) = ask(home.path, "health")["stuck"]
    assert (stuck["account_id"], stuck["register_wh"], stuck["stuck_days"]) == ("stuck", 60_000, 5)
    assert stuck["still_since"] == (START + 5 * DAY).astimezone(dt.UTC).isoformat()
    assert names(ask(home.path, "health", "--stuck-days", 5)["stuck"]) == ["stuck"]
    assert ask(home.path, "health", "--stuck-days", 6)["stuck"] == []


def test_a_meter_whose_supply_is_cut_is_not_stuck_and_one_that_has_it_back_stands_still_since_then(home, tmp_path):
    cut = copied(home, tmp_path / "cut")
    load_and_publish(cut)
    tell_supply(cut, 0, "disconnected", START + 6 * DAY)
    assert ask(cut.path, "health")["stuck"] == []
    tell_supply(cut, 1, "connected", START + 6 * DAY + HOUR)
    (stuck,) = ask(cut.path, "health")["stuck"]
    assert stuck["still_since"] == (START + 6 * DAY + HOUR).astimezone(dt.UTC).isoformat()


def tell_supply(home, n, state, at, account_id="stuck"):
    """An event that a meter's supply is so, as if settle had written it; loaded and published."""
    with open_published(home) as con:
        sql = "SELECT partition FROM balances WHERE account_id = ?"
        ((partition,),) = con.execute(sql, [account_id]).fetchall()
    values = {"ordinal": 10**6, "n": n, "account_id": account_id, "changed_at": at, "state": state, "cause": "credit"}
    schema = EVENT_SCHEMAS["supply_state"]
    columns = {
        name: pa.array([values[name]], schema.field(name).type if name in schema.names else None) for name in values
    }
    batches = {"supply_state": pack("supply_state", pa.record_batch(columns))}
    with closing(open_log(home.events)) as events:
        events.append("nobody", [NewRow(partition, n, *counted(batches))])
    load_and_publish(home)


def test_a_clock_that_is_ahead_is_found_by_what_it_dates_too_late(home):
    (ahead,) = ask(home.path, "health")["clocks"]
    assert (ahead["account_id"], ahead["from_the_future"], ahead["ahead_seconds"]) == ("ahead", 1, 6 * 3600)
    assert names(ask(home.path, "health", "--drift-minutes", 600)["clocks"]) == ["ahead"], "it was refused all the same"


def test_spikes_are_counted_by_meter_within_the_days_asked_for(home):
    (spike,) = ask(home.path, "health")["spikes"]
    assert (spike["account_id"], spike["reason"], spike["refused"] + spike["held"]) == ("spike", "implausible_usage", 1)
    assert ask(home.path, "health", "--days", 2)["spikes"] == []


def test_the_read_rate_is_the_share_of_a_districts_open_meters_read_on_each_whole_day(home):
    rates = ask(home.path, "health", "--days", 3)["read_rates"]
    assert [(r["district"], r["day"], r["meters"], r["read"]) for r in rates] == [
        ("d", "2025-09-08", 4, 3),  # the last reading of the silent one is of midnight
        ("d", "2025-09-09", 4, 2),
        ("d", "2025-09-10", 4, 2),
        ("e", "2025-09-08", 3, 3),
        ("e", "2025-09-09", 3, 3),
        ("e", "2025-09-10", 3, 3),
    ]
    assert [r["percent"] for r in rates[:2]] == [75.0, 50.0]


def test_the_page_names_the_meters_and_marks_days_below_the_target(home):
    code, page = call(home.path, "health")
    assert code == 0
    for text in ("7 meters", "M-silent", "M-stuck", "M-ahead", "M-spike", "10.09. 50%*", "10.09. 100%"):
        assert text in page
    assert "50%*" not in call(home.path, "health", "--target", "50")[1]
    assert "and 1 more" in call(home.path, "health", "--limit", "1")[1]


def test_sql_has_the_same_with_thresholds_of_its_own(home):
    with open_published(home) as con:
        (count,) = con.execute("SELECT count(*) FROM silent_meters(hours := 100)").fetchone()
        reasons = con.execute("SELECT DISTINCT reason FROM doubtful_readings(days := 30) ORDER BY 1").fetchall()
        undocumented = con.execute(
            "SELECT function_name FROM duckdb_functions()"
            " WHERE function_type = 'table_macro' AND NOT internal AND comment IS NULL"
        ).fetchall()
    assert count == 1
    assert ("implausible_usage",) in reasons
    assert undocumented == []


def test_a_home_without_a_tick_has_nothing_that_could_be_late(tmp_path):
    home = new_home(tmp_path / "home")
    settle(home)
    load_and_publish(home)
    assert "No tick" in call(home.path, "health")[1]
    found = ask(home.path, "health")
    assert (found["at"], found["silent"], found["read_rates"]) == (None, [], [])


# ---- use held against intervals, and against its own past ---------------------------------------------------------------

BEGIN, WEEKS = START + 10 * DAY, 5  # a home of its own, of five whole weeks
LAST = BEGIN + WEEKS * 7 * DAY
HALF = HOUR / 2
WEEKEND_WH = 4_000  # a quarter of a day of "usual", who uses more on Saturday and Sunday; on other days it is 2,000


def quarter_wh(name, k):
    """What a meter uses in the k-th quarter of a day, by hand."""
    at = BEGIN + k * 6 * HOUR
    recent = at >= LAST - 7 * DAY
    usual = WEEKEND_WH if at.isoweekday() > 5 else 2_000
    return {"low": 900 if recent else usual, "high": 3 * usual if recent else usual}.get(name, usual)


def halves_of_the_last_day(name, register_wh):
    """Half-hours of 100 Wh, and the meter's own intervals, true but for those of "sums" and "few"."""
    for k in range(1, 49):
        use = 2_500 if (name, k) == ("peak", 20) else 100
        register_wh += use
        interval = 110 if name == "sums" else 102 if name == "few" else use
        if not (name == "lost" and k == 30):
            yield reading(name, LAST - DAY + k * HALF, register_wh, interval_wh=interval)


def use_of(name):
    register_wh = 0
    for k in range((WEEKS * 7 - 1) * 4):
        register_wh += quarter_wh(name, k)
        yield reading(name, BEGIN + (k + 1) * 6 * HOUR, register_wh)
    yield from halves_of_the_last_day(name, register_wh)


USED = ("usual", "low", "high", "peak", "sums", "few", "lost")


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """Five weeks of meters whose use and intervals are in doubt; not to be changed."""
    folder = tmp_path_factory.mktemp("used")
    home = new_home(folder / "home")
    begun = {"effective_at": BEGIN.isoformat()}
    accounts = [account(name, **begun) for name in USED]
    ingest_files(
        home,
        [
            given(folder, "account", accounts),
            given(folder, "reading", [row for name in USED for row in use_of(name)]),
        ],
    )
    settle(home)
    load_and_publish(home)
    return home


def test_use_is_held_against_the_same_weekdays_before(used):
    # Six days of 3,600 Wh and one of 4,800; usually five weekdays of 8,000 Wh and two of 16,000.
    found = {m["account_id"]: m for m in ask(used.path, "health")["unusual_usage"]}
    assert set(found) == {"low", "high"}
    assert found["low"]["usage_wh_per_day"] == round((6 * 3_600 + 4_800) / 7)
    assert found["low"]["usual_wh_per_day"] == round(72_000 / 7)
    assert found["low"]["percent"] == round(100 * (6 * 3_600 + 4_800) / 72_000)
    assert names(ask(used.path, "health", "--high-percent", 300)["unusual_usage"]) == ["low"]
    assert names(ask(used.path, "health", "--low-percent", 30)["unusual_usage"]) == ["high"]


def test_one_without_enough_of_a_past_is_not_said_to_be_unusual(home):
    assert ask(home.path, "health")["unusual_usage"] == []


def test_days_without_supply_do_not_make_use_low(used, tmp_path):
    cut = copied(used, tmp_path / "cut")
    load_and_publish(cut)
    tell_supply(cut, 0, "disconnected", LAST - 7 * DAY + HOUR, "low")
    assert names(ask(cut.path, "health")["unusual_usage"]) == ["high"]


def test_a_half_hour_far_above_the_third_highest_of_its_day_is_a_spike(used):
    (spike,) = ask(used.path, "health")["usage_spikes"]
    assert (spike["account_id"], spike["peak_wh"], spike["third_wh"]) == ("peak", 2_500, 100)
    assert spike["peak_at"] == (LAST - DAY + 10 * HOUR).astimezone(dt.UTC).isoformat()
    with open_published(used) as con:
        assert con.execute("SELECT count(*) FROM usage_spikes(ratio := 25.1)").fetchone() == (0,)
        assert con.execute("SELECT count(*) FROM usage_spikes(ratio := 24.9)").fetchone() == (1,)


def test_intervals_that_do_not_come_to_the_registers_advance_are_found_where_all_are_there(used):
    # 48 × 110 Wh against 4,800; 48 × 102 is 96 Wh too much, within 100; the day of "lost" lacks an interval.
    (off,) = ask(used.path, "health")["sum_checks"]
    assert (off["account_id"], off["intervals_wh"], off["register_advance_wh"]) == ("sums", 5_280, 4_800)
    assert off["difference_wh"] == 480
    assert off["day"] == (LAST - DAY).date().isoformat()
    with open_published(used) as con:
        sql = "SELECT account_id FROM sum_checks(tolerance_wh := 90, tolerance_percent := 0.5)"
        assert con.execute(sql).fetchall() == [("sums",), ("few",)]
        assert con.execute("SELECT count(*) FROM sum_checks(tolerance_percent := 10)").fetchone() == (0,)


def test_intervals_change_nothing_of_what_becomes_of_readings(used):
    with open_published(used) as con:
        kept = "SELECT count(*), count(interval_wh) FROM readings WHERE account_id = 'sums'"
        assert con.execute(kept).fetchone() == ((WEEKS * 7 - 1) * 4 + 48, 48)
        charged = con.execute(
            "SELECT account_id, usage_wh FROM balances WHERE account_id IN ('sums', 'few')"
        ).fetchall()
        assert len({wh for _, wh in charged}) == 1
        assert con.execute("SELECT count(*) FROM refused").fetchone() == (0,)


def test_alarms_are_all_of_it_in_one_view(home, used):
    with open_published(used) as con:
        found = con.execute("SELECT alarm, account_id FROM alarms ORDER BY ALL").fetchall()
    assert found == [
        ("sum_check", "sums"),
        ("unusual_usage", "high"),
        ("unusual_usage", "low"),
        ("usage_spike", "peak"),
    ]
    with open_published(home) as con:
        kinds = con.execute("SELECT DISTINCT alarm FROM alarms ORDER BY 1").fetchall()
        districts = con.execute("SELECT DISTINCT district FROM alarms WHERE alarm = 'read_rate'").fetchall()
    assert kinds == [("clock",), ("doubtful",), ("read_rate",), ("silent",), ("stuck",)]
    assert districts == [("d",)]
