"""What was recorded late of an account, put right: the balances end as if it had been recorded in time."""

import datetime as dt

import pytest

from streams.ingest import ingest_files
from tests.in_process import ask, call
from tests.oracle import microseconds, run
from tests.random_records import DAY_US, LAST_ARRIVAL, random_records
from tests.test_reconcile import NAMES, warehouse_of
from tests.test_tariff_correct import file_of, records_in
from tests.warehouse_homes import load_and_publish, quick_loads
from tests.whole_homes import new_home, settle
from warehouse.changes import Change, put_account_right
from warehouse.rerate import RerateError, lay_over, rerate

TASHKENT = dt.timezone(dt.timedelta(hours=5))
BLOCKS = [(100, 40_000), (None, 80_000)]  # 400 soum up to 100 kWh, then 800
TARIFFS = {"flat": [(None, 50_000)], "stove": [(None, 30_000)], "blocks": BLOCKS}


@pytest.fixture(scope="module", autouse=True)
def _quick_loads():
    with quick_loads():
        yield


def at(text):
    """A moment of May 2025 in Tashkent: "11", or "16 12"."""
    day, _, hour = text.partition(" ")
    return dt.datetime(2025, 5, int(day), int(hour or 0), tzinfo=TASHKENT)


def us(text):
    return None if text is None else microseconds(at(text))


def version(account, when, meter, received=None, **more):
    row = {"account_id": account, "effective_at": us(when), "meter_id": meter, "district": "d", "tariff": "flat"}
    row |= {"families": 1, "phone": None, "language": "uz-Latn", "opening_balance_tiyin": None, "closed_at": None}
    row |= {"opening_register_wh": None, "register_modulus_wh": None, "max_power_w": None, "closing_register_wh": None}
    return row | {"received_at": us(received)} | more


def readings(meter, **registers):
    """Of a meter: _11=100 is 100 kWh on the 11th."""
    return [
        {
            "meter_id": meter,
            "read_at": us(day[1:].replace("_", " ")),
            "register_wh": kwh * 1000,
            "status": None,
            "received_at": None,
        }
        for day, kwh in registers.items()
    ]


def records(accounts, rows, exchanges=()):
    tariffs = [
        {
            "tariff": name,
            "effective_on": dt.date(2025, 1, 1),
            "block_upto_kwh": upto,
            "price_tiyin_per_kwh": price,
            "received_at": None,
        }
        for name, blocks in TARIFFS.items()
        for upto, price in blocks
    ]
    found = {"tariff": tariffs, "account": list(accounts), "reading": rows, "meter_exchange": list(exchanges)}
    return {kind: rows for kind, rows in found.items() if rows}


def change(kind, when, **values):
    return Change(kind, at(when), tuple(values.items()))


@pytest.fixture(scope="module")
def put_right(tmp_path_factory):
    """What re-rating accounts of some records comes to: the tiyin due to each, by changes of each."""
    made_of = {}

    def warehouse_file(given):
        if (known := repr(given)) not in made_of:
            made_of[known] = path = tmp_path_factory.mktemp("late") / "audit.duckdb"
            with warehouse_of(given) as con:
                con.execute(f"ATTACH '{path}' AS file; COPY FROM DATABASE memory TO file; DETACH file")
        return made_of[known]

    def work_out(given, changes):
        path = warehouse_file(given)
        with lay_over(path) as con:
            for account, made in changes.items():
                for each in made:
                    put_account_right(con, account, each)
            return {r.account_id: r.due_tiyin for r in rerate(con, list(changes), "x", at("1"))}

    return work_out


def assert_as_in_time(late, due, in_time):
    """With what is due, the balances are those of the records that came in time."""
    before, after = run(late), run(in_time)
    assert {a: before.balances[a] + due.get(a, 0) for a in after.balances} == after.balances
    return before


# ---- tariff and families ---------------------------------------------------------------------------------------------

USED = readings("M", _11=100, _21=300, _31=400)


def test_a_change_of_tariff_recorded_late_counts_from_its_own_time(put_right):
    opening = version("A", "1", "M", opening_register_wh=0)
    late = records([opening, version("A", "11", "M", "25", tariff="stove")], USED)
    due = put_right(late, {"A": [change("version", "11")]})
    assert due == {"A": 200 * 20_000}  # 200 kWh, 200 soum dearer than they should have been
    assert_as_in_time(late, due, records([opening, version("A", "11", "M", tariff="stove")], USED))


def test_a_change_that_was_never_recorded_is_said_by_the_options(put_right):
    opening = version("A", "1", "M", opening_register_wh=0)
    due = put_right(records([opening], USED), {"A": [change("version", "11", tariff="stove")]})
    assert due == {"A": 300 * 20_000}


def test_families_within_a_step_are_cut_at_their_moment(put_right):
    """From the 16th on two families: 200 kWh of the step 11–21, half of them before it, and 100 after."""
    opening = version("A", "1", "M", opening_register_wh=0, tariff="blocks")
    late = records([opening], USED)
    due = put_right(late, {"A": [change("version", "16", families=2)]})
    # one family: 100 kWh at 400, 300 at 800; two: 200 kWh are used by the 16th, so nothing is cheap any more
    assert due == {"A": 0}
    due = put_right(late, {"A": [change("version", "11", families=2)]})
    assert due == {"A": 100 * 40_000}  # the second hundred at 400 instead of 800
    assert_as_in_time(late, due, records([opening, version("A", "11", "M", tariff="blocks", families=2)], USED))


def test_changes_one_after_the_other_add_up_and_the_later_one_of_a_moment_counts(put_right):
    opening = version("A", "1", "M", opening_register_wh=0)
    wrong, right = change("version", "11", tariff="blocks"), change("version", "11", tariff="stove")
    back = change("version", "21", tariff="flat")
    assert put_right(records([opening], USED), {"A": [wrong, back, right]}) == {"A": 200 * 20_000}


def test_what_is_not_late_is_left_to_the_rules(put_right):
    opening = version("A", "1", "M", opening_register_wh=0)
    with pytest.raises(RerateError, match="not late"):
        put_right(records([opening], USED), {"A": [change("version", "31", families=2)]})
    with pytest.raises(RerateError, match="No version of account A from 2025-05-11 00:00 on was recorded late"):
        put_right(records([opening], USED), {"A": [change("version", "11")]})
    with pytest.raises(RerateError, match="--moved-in"):
        put_right(
            records([version("A", "11", "M", opening_register_wh=0)], USED), {"A": [change("version", "1", families=2)]}
        )
    with pytest.raises(RerateError, match="no tariff 'nothing'"):
        put_right(records([opening], USED), {"A": [change("version", "11", tariff="nothing")]})


# ---- a move ----------------------------------------------------------------------------------------------------------

METER = readings("M", _11=100, _16=200, _21=250, _26=300, _31=400)
OLD = version("O", "1", "M", opening_register_wh=0, tariff="blocks")


def moved(recorded, **more):
    """The next customer on the meter: they came on the 16th at noon, at 210 kWh."""
    return version("N", recorded, "M", tariff="blocks", **more)


def test_a_move_recorded_late_is_put_right_for_both(put_right):
    late = records([OLD, moved("26", received="28", opening_register_wh=300_000)], METER)
    due = put_right(
        late,
        {
            "O": [change("moved_out", "16 12", register=210_000)],
            "N": [change("moved_in", "16 12", register=210_000)],
        },
    )
    # the old one: 90 kWh at 800 back; the new one: 190 kWh, 100 of them at 400, where 100 kWh at 400 were charged
    assert due == {"O": 90 * 80_000, "N": -90 * 80_000}
    closing = OLD | {"effective_at": us("16 12"), "closed_at": us("16 12"), "closing_register_wh": 210_000}
    assert_as_in_time(late, due, records([OLD, closing, moved("16 12", opening_register_wh=210_000)], METER))


def test_readings_since_the_move_cut_the_new_account_s_months(put_right):
    """Recorded with its true date, only late: the meter's readings say what was used by the turn of the month."""
    later = {0: 400, 3: 430, 12: 480}  # days after the 31st
    rows = readings("M", _11=100, _21=250)
    for days, kwh in later.items():
        (row,) = readings("M", _31=kwh)
        rows.append(row | {"read_at": row["read_at"] + days * DAY_US})
    received = microseconds(at("31") + dt.timedelta(days=4))
    late = records([OLD, moved("16 12", opening_register_wh=210_000) | {"received_at": received}], rows)
    due = put_right(
        late,
        {"O": [change("moved_out", "16 12", register=210_000)], "N": [change("moved_in", "16 12", register=210_000)]},
    )
    assert due["N"] != 0
    closing = OLD | {"effective_at": us("16 12"), "closed_at": us("16 12"), "closing_register_wh": 210_000}
    assert_as_in_time(late, due, records([OLD, closing, moved("16 12", opening_register_wh=210_000)], rows))


def test_one_closed_without_a_register_gets_its_final_bill(put_right):
    closing = OLD | {"effective_at": us("16 12"), "closed_at": us("16 12")}
    rows = readings("M", _11=100, _16=200)
    due = put_right(records([OLD, closing], rows), {"O": [change("moved_out", "16 12", register=210_000)]})
    assert due == {"O": -10 * 80_000}


def test_a_register_that_the_meter_never_showed_is_told(put_right):
    with pytest.raises(RerateError, match="does not lie between"):
        put_right(records([OLD], METER), {"O": [change("moved_out", "16 12", register=260_000)]})
    with pytest.raises(RerateError, match="cannot be re-rated"):
        put_right(
            records([OLD, moved("26", received="28", opening_register_wh=300_000)], METER),
            {"N": [change("moved_in", "16 12", register=900_000)]},
        )


# ---- an exchange -----------------------------------------------------------------------------------------------------


def exchanged(when, old, new, received=None):
    return {
        "account_id": "E", "exchanged_at": us(when), "old_meter_id": "X", "old_register_wh": old * 1000, "new_meter_id": "Y",
        "new_register_wh": new * 1000, "register_modulus_wh": None, "received_at": us(received),
    }  # fmt: skip


def test_an_exchange_recorded_late_goes_by_the_new_meter_s_own_readings(put_right):
    """The old meter was still reported for ten days, and the exchange recorded with the day it was noticed."""
    opening = version("E", "1", "X", opening_register_wh=0, tariff="blocks")
    rows = readings("X", _11=100, _26=290) + readings("Y", _21=35, _27=68, _31=95)
    late = records([opening], rows, [exchanged("27 12", 300, 70)])
    due = put_right(
        late,
        {"E": [change("exchanged", "16 12", old_register=210_000, new_register=5_000, old_meter="X", new_meter="Y")]},
    )
    assert due == {"E": 25 * 80_000}  # 300 kWh and 25 were charged; 210 and 90 are right
    old_meter = [row for row in rows if row["meter_id"] == "X" and row["read_at"] > us("16 12")]
    right = records([opening], [row for row in rows if row not in old_meter], [exchanged("16 12", 210, 5)])
    assert run(late).balances["E"] + due["E"] == run(right).balances["E"]


def test_a_register_reset_that_was_not_recorded(put_right):
    """The same meter went on from 0 in the night of the 16th, and what it showed since was taken for usage."""
    opening = version("E", "1", "X", opening_register_wh=0)
    rows = readings("X", _11=100, _21=150, _31=250)
    due = put_right(records([opening], rows), {"E": [change("exchanged", "16", old_register=160_000, new_register=0)]})
    assert due == {"E": 250 * 50_000 - (160 + 250) * 50_000}


# ---- at random -------------------------------------------------------------------------------------------------------


def households(seeds):
    """Random households, each with the number of its utility before its names; and the first version of each."""
    found = {}
    for seed in seeds:
        for kind, rows in random_records(seed, "plain").items():
            own = [{**r, **{c: f"{seed}{r[c]}" for c in NAMES if r.get(c) is not None}} for r in rows]
            found.setdefault(kind, []).extend(own)
    found["account"] = [row for row in found["account"] if not row["tariff"].endswith("e")]  # there is no such tariff
    openings = {}
    for row in sorted(found["account"], key=lambda r: r["effective_at"]):
        openings.setdefault(row["account_id"], row)
    found["account"] = [r | {"max_power_w": openings[r["account_id"]]["max_power_w"]} for r in found["account"]]
    return found, openings


def moment_of(us):
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=us)


def test_any_versions_recorded_late_end_as_if_they_had_come_in_time(put_right):
    in_time, openings = households(range(3))
    begins = {account: row["effective_at"] for account, row in openings.items()}
    rows = [
        r | {"received_at": LAST_ARRIVAL} if r["effective_at"] > begins[r["account_id"]] else r
        for r in in_time["account"]
    ]
    late = in_time | {"account": rows}
    last = {
        account: max(r["read_at"] for r in in_time["reading"] if r["meter_id"] == row["meter_id"])
        for account, row in openings.items()
    }
    changes = {
        r["account_id"]: [Change("version", moment_of(begins[r["account_id"]]))]
        for r in rows
        if r["received_at"] and r["effective_at"] < last[r["account_id"]]
    }
    due = put_right(late, changes)
    assert_as_in_time(late, due, in_time)
    assert sum(amount != 0 for amount in due.values()) > 5


def test_any_move_recorded_late_ends_as_if_it_had_come_in_time(put_right):
    in_time, openings = households(range(10, 12))
    in_time["account"] = list(openings.values())
    late, changes = in_time | {"account": list(openings.values())}, {}
    for account, opening in openings.items():
        own = sorted(
            (r["read_at"], r["register_wh"]) for r in in_time["reading"] if r["meter_id"] == opening["meter_id"]
        )
        if len(own) < 8 or own[-1][1] < own[0][1]:
            continue
        (before, low), (after, high) = own[2:4]
        noticed, register = own[5]
        at_us, there = (before + after) // 2, (low + high) // 2
        follower = opening | {"account_id": f"{account}-next", "opening_balance_tiyin": 0}
        closing = opening | {"effective_at": at_us, "closed_at": at_us, "closing_register_wh": there}
        in_time["account"] += [closing, follower | {"effective_at": at_us, "opening_register_wh": there}]
        recorded = {"effective_at": noticed, "opening_register_wh": register, "received_at": noticed + 1}
        late["account"] = [*late["account"], follower | recorded]
        changes[account] = [Change("moved_out", moment_of(at_us), (("register", there),))]
        changes[f"{account}-next"] = [Change("moved_in", moment_of(at_us), (("register", there),))]
    due = put_right(late, changes)
    assert_as_in_time(late, due, in_time)
    assert sum(amount != 0 for amount in due.values()) > 10


# ---- the command -----------------------------------------------------------------------------------------------------

TARIFF_FILE = (
    "tariff,effective_on,block_upto_kwh,price_tiyin_per_kwh\nflat,2025-01-01,,50000\nstove,2025-01-01,,30000\n"
)
ACCOUNT_FILE = """\
account_id,effective_at,meter_id,district,tariff,opening_register_wh
A,2025-05-01T00:00:00+05:00,M,d,flat,0
"""
READING_FILE = """\
meter_id,read_at,register_wh
M,2025-05-11T00:00:00+05:00,100000
M,2025-05-21T00:00:00+05:00,300000
M,2025-05-31T00:00:00+05:00,400000
"""
SINCE = ("--from", "2025-05-11T00:00:00+05:00")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rerated")
    home = new_home(folder / "home")
    files = {"tariff": TARIFF_FILE, "account": ACCOUNT_FILE, "reading": READING_FILE}
    ingest_files(home, [(kind, file_of(folder, f"{kind}.csv", text)) for kind, text in files.items()])
    settle(home)
    load_and_publish(home)
    return home


def test_it_is_shown_then_posted_once_and_the_remaining_difference_alone(home):
    before = records_in(home)
    shown = ask(home.path, "rerate", "A", *SINCE, "--tariff", "stove", "--dry-run")
    assert records_in(home) == before
    assert [a["amount_tiyin"] for a in shown["adjustments"]] == [300 * 20_000]
    posted = ask(home.path, "rerate", "A", *SINCE, "--tariff", "stove", "--author", "Nodira", "--reason", "act 12")
    assert [a["adjustment_id"] for a in posted["adjustments"]] == [a["adjustment_id"] for a in shown["adjustments"]]
    (row,) = ask(home.path, "query", "SELECT amount_tiyin, author, reason FROM adjustments")
    assert row == {
        "amount_tiyin": 6_000_000,
        "author": "Nodira",
        "reason": "Tariff stove from 2025-05-11 00:00: 300 kWh used since cost 60,000.00 soum less than was charged (act 12)",
    }
    assert ask(home.path, "rerate", "A", *SINCE, "--tariff", "stove")["adjustments"] == []
    back = ask(home.path, "rerate", "A", "--from", "2025-05-21T00:00:00+05:00", "--tariff", "flat")
    assert [a["amount_tiyin"] for a in back["adjustments"]] == [-100 * 20_000]
    assert ask(home.path, "reconcile")["different"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("A", "--from", "2025-05-11"), 2, "with its offset"),
        (("nobody", *SINCE, "--families", "2"), 2, "There is no account 'nobody'"),
        (("A", *SINCE, "--moved-out"), 2, "--moved-out needs --register"),
        (("A", *SINCE, "--moved-in", "--moved-out", "--register", "5"), 2, "one at a time"),
        (("A", *SINCE, "--register", "5"), 2, "--register is no option of a change"),
        (("A", *SINCE, "--exchanged", "--old-register", "5"), 2, "--exchanged needs --new-register"),
        (("A", "--from", "2025-04-01T00:00:00Z", "--moved-out", "--register", "5"), 1, "begins only after"),
    ],
)
def test_wrong_use_is_told_and_nothing_is_journalled(home, arguments, code, said):
    before = records_in(home)
    if code == 1:  # of the warehouse: told by the program itself
        with pytest.raises(AssertionError, match=said):
            call(home.path, "rerate", *arguments)
    else:
        found, text = call(home.path, "rerate", *arguments)
        assert (found, said in text) == (code, True), text
    assert records_in(home) == before
