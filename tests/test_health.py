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
        "district": ACCOUNTS[name],
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


def tell_supply(home, n, state, at):
    """An event that the supply of the stuck meter is so, as if settle had written it; loaded and published."""
    with open_published(home) as con:
        ((partition,),) = con.execute("SELECT partition FROM balances WHERE account_id = 'stuck'").fetchall()
    values = {"ordinal": 10**6, "n": n, "account_id": "stuck", "changed_at": at, "state": state, "cause": "credit"}
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
