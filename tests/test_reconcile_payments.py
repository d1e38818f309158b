"""A channel's own list against the payments here: each outcome by a hand-made day, and of any two lists all adds up."""

import json
from datetime import UTC, datetime, timedelta

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.records import RECORD_SCHEMAS
from streams.ingest import ingest_files
from tests.in_process import ask, call
from tests.warehouse_homes import load_and_publish
from tests.whole_homes import copied, new_home, settle
from warehouse.audit import open_published
from warehouse.errors import WarehouseError
from warehouse.payments import CONTENT, reconcile_payments
from warehouse.tables import create_tables
from warehouse.views import make_views

HEADER = "payment_id,account_id,paid_at,amount_tiyin,channel,reverses\n"
ACCOUNTS = """\
account_id,effective_at,meter_id,district,tariff,opening_balance_tiyin,opening_register_wh
A,2025-09-01T00:00:00+05:00,MA,d,household,10000000,0
B,2025-09-01T00:00:00+05:00,MB,d,household,10000000,0
"""
# A day at Click, and what surrounds it. 2025-10-01 begins at 19:00 UTC of September.
OURS = """\
same,A,2025-10-01T09:00:00+05:00,100000,Click,
first,A,2025-09-30T19:00:00Z,1100,Click,
last,B,2025-10-01T18:59:59.999999Z,1200,Click,
before,A,2025-09-30T18:59:59.999999Z,1300,Click,
after,A,2025-10-01T19:00:00Z,1400,Click,
amount,A,2025-10-01T10:00:00+05:00,5000,Click,
account,A,2025-10-01T10:01:00+05:00,6000,Click,
way,A,2025-10-01T10:02:00+05:00,7000,Payme,
late,A,2025-10-02T00:00:01+05:00,8000,Click,
only here,B,2025-10-01T11:00:00+05:00,900,Click,
of another,B,2025-10-01T11:00:00+05:00,901,Payme,
taken back,A,2025-10-01T12:00:00+05:00,2000,Click,
back,A,2025-10-01T12:30:00+05:00,2000,Click,taken back
taken back later,A,2025-10-01T13:00:00+05:00,3000,Click,
back later,A,2025-10-03T12:30:00+05:00,3000,Click,taken back later
nobody's,Z,2025-10-01T14:00:00+05:00,4000,Click,
back of nothing,A,2025-10-01T15:00:00+05:00,50,Click,nothing
broken,A,2025-10-01T16:00:00+05:00,12.5,Click,
not back,A,2025-10-01T17:00:00+05:00,99,Click,first
end,A,2025-10-04T00:00:00+05:00,1,Payme,
"""
THEIRS = """\
same,A,2025-10-01T04:00:00Z,100000,Click,
first,A,2025-09-30T19:00:00Z,1100,Click,
last,B,2025-10-01T18:59:59.999999Z,1200,Click,
amount,A,2025-10-01T10:00:00+05:00,5001,Click,
account,B,2025-10-01T10:01:00+05:00,6000,Click,
way,A,2025-10-01T10:02:00+05:00,7000,Click,
late,A,2025-10-01T23:59:59+05:00,8000,Click,
only there,B,2025-10-01T11:00:00+05:00,902,Click,
taken back,A,2025-10-01T12:00:00+05:00,2000,Click,
back,A,2025-10-01T12:30:00+05:00,2000,Click,taken back
taken back later,A,2025-10-01T13:00:00+05:00,3000,Click,
nobody's,Z,2025-10-01T14:00:00+05:00,4000,Click,
back of nothing,A,2025-10-01T15:00:00+05:00,50,Click,nothing
broken,A,2025-10-01T16:00:00+05:00,13,Click,
same,A,2025-10-01T04:00:00Z,100000,Click,
"""


def written(folder, text, name="click.csv"):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(HEADER + text)
    return folder / name


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """A home with the payments of OURS, published."""
    folder = tmp_path_factory.mktemp("day")
    home = new_home(folder / "home")
    (folder / "account.csv").write_text(ACCOUNTS)
    ingest_files(home, [("account", folder / "account.csv"), ("payment", written(folder, OURS, "payment.csv"))])
    settle(home)
    load_and_publish(home)
    return home


@pytest.fixture(scope="module")
def compared(day, tmp_path_factory):
    return ask(day.path, "reconcile-payments", written(tmp_path_factory.mktemp("theirs"), THEIRS))


def found(result, outcome):
    return {d["payment_id"]: d for d in result["differences"] if d["outcome"] == outcome}


# ---- each outcome ----------------------------------------------------------------------------------------------------


def test_what_is_the_same_to_the_microsecond_by_the_days_of_tashkent_is_matched(compared):
    (click,) = compared["channels"]
    assert (compared["first_day"], compared["last_day"]) == ("2025-10-01", "2025-10-01")
    assert click["matched"] == 6
    assert click["matched_tiyin"] == 100000 + 1100 + 1200 + 2000 - 2000 + 3000
    assert compared["agrees"] is False


def test_each_column_that_differs_is_named_with_both_values(compared):
    columns = {d["payment_id"]: d["columns"] for d in compared["differences"] if d["outcome"] == "differing"}
    assert columns == {
        "amount": [{"column": "amount_tiyin", "theirs": 5001, "ours": 5000}],
        "account": [{"column": "account_id", "theirs": "B", "ours": "A"}],
        "way": [{"column": "channel", "theirs": "Click", "ours": "Payme"}],
        "late": [
            {"column": "paid_at", "theirs": "2025-10-01T18:59:59+00:00", "ours": "2025-10-01T19:00:01+00:00"},
        ],
    }


def test_what_is_missing_here_says_why(compared):
    reasons = {name: d["reason"] for name, d in found(compared, "missing_here").items()}
    assert reasons == {
        "only there": "never_arrived",
        "nobody's": "unknown_account",
        "back of nothing": "unknown_payment",
        "broken": "not_an_integer",
    }
    (click,) = compared["channels"]
    assert (click["missing_here"], click["refused"], click["held"]) == (4, 2, 1)
    assert click["missing_here_tiyin"] == 902 + 4000 - 50 + 13


def test_what_is_missing_there_is_ours_of_the_days_and_channels_of_the_list(compared):
    missing = found(compared, "missing_there")
    assert set(missing) == {"only here"}
    assert missing["only here"]["row"] is None
    assert missing["only here"]["record"]


def test_what_was_reversed_here_is_told(compared):
    assert set(found(compared, "reversed")) == {"taken back", "taken back later"}
    (click,) = compared["channels"]
    assert (click["reversed"], click["reversed_tiyin"]) == (2, 5000)


def test_what_stands_twice_in_the_list_is_named_with_its_rows_and_counted_once(compared):
    assert {name: d["rows"] for name, d in found(compared, "repeated").items()} == {"same": [2, 16]}
    (click,) = compared["channels"]
    assert (click["repeated"], click["repeated_tiyin"]) == (1, 100000)
    assert compared["rows"] == click["theirs"] + click["repeated"] == 15


def test_counts_and_totals_add_up_for_both_sides_and_on_the_page(day, compared, tmp_path):
    (click,) = compared["channels"]
    assert click["theirs"] == click["matched"] + click["differing"] + click["missing_here"]
    assert click["ours"] == click["matched"] + click["differing"] + click["missing_there"]
    code, page = call(day.path, "reconcile-payments", written(tmp_path, THEIRS))
    assert code == 1
    columns = {
        line.split("  ")[0]: [cell.strip() for cell in line.split("  ")[1:] if cell.strip()]
        for line in page.splitlines()
        if line.startswith(("matched", "differing", "missing here  ", "in all"))
    }
    soum = [round(float(columns[name][1].replace(" ", "").replace("−", "-")) * 100) for name in columns]
    assert sum(soum[:-1]) == soum[-1] == click["theirs_tiyin"]
    assert "soum: 50.01 there, 50.00 here" in " ".join(page.split())
    assert "paid: 2025-10-01 23:59:59 there, 2025-10-02 00:00:01 here" in " ".join(page.split())
    assert "rows 2, 16" in " ".join(page.split())


# ---- days and channels -----------------------------------------------------------------------------------------------

MATCHING = "same,A,2025-10-01T09:00:00+05:00,100000,Click,\n"
ALL_OF_CLICK = [line for line in OURS.splitlines(keepends=True) if ",Click," in line]


def test_a_list_that_says_the_same_ends_with_0(day, tmp_path):
    in_ledger = [
        line for line in ALL_OF_CLICK if not line.startswith(("nobody's", "back of nothing", "broken", "not back"))
    ]
    code, page = call(day.path, "reconcile-payments", written(tmp_path, "".join(reversed(in_ledger))))
    assert code == 0, page
    assert page.rstrip().endswith("Everything matched.")


def test_without_a_day_the_list_speaks_for_all_from_its_first_to_its_last(day, tmp_path):
    lines = [line for line in ALL_OF_CLICK if line.startswith(("before", "after"))]
    result = ask(day.path, "reconcile-payments", written(tmp_path, "".join(lines)))
    assert (result["first_day"], result["last_day"]) == ("2025-09-30", "2025-10-02")
    assert {"same", "first", "last", "only here", "late"} <= set(found(result, "missing_there"))
    assert not {"of another", "back later"} & set(found(result, "missing_there"))


def test_with_a_day_rows_of_others_are_left_out_and_counted(day, tmp_path):
    path = written(tmp_path, "".join(ALL_OF_CLICK).replace("12.5", "12"))
    result = ask(day.path, "reconcile-payments", path, "--day", "2025-10-02")
    (click,) = result["channels"]
    assert (click["theirs"], click["matched"], click["ours"]) == (2, 2, 2)
    assert result["other_days"] == result["rows"] - 2
    assert result["agrees"] is True


def test_a_list_without_a_channel_is_of_the_one_that_is_named(day, tmp_path):
    path = tmp_path / "day.ndjson"
    path.write_text(
        '{"payment_id": "way", "account_id": "A", "paid_at": "2025-10-01T10:02:00+05:00", "amount_tiyin": 7000}\n'
    )
    named = ask(day.path, "reconcile-payments", path, "--channel", "Payme")
    assert [(c["channel"], c["matched"], c["missing_there"]) for c in named["channels"]] == [("Payme", 1, 1)]
    unnamed = ask(day.path, "reconcile-payments", path)
    assert found(unnamed, "differing")["way"]["columns"] == [{"column": "channel", "theirs": None, "ours": "Payme"}]


def test_channels_are_counted_apart(day, tmp_path):
    text = MATCHING + "of another,B,2025-10-01T11:00:00+05:00,901,Payme,\nnew,B,2025-10-01T11:00:00+05:00,5,Paynet,\n"
    result = ask(day.path, "reconcile-payments", written(tmp_path, text))
    assert [(c["channel"], c["matched"], c["missing_here"]) for c in result["channels"]] == [
        ("Click", 1, 0),
        ("Payme", 1, 0),
        ("Paynet", 0, 1),
    ]


def test_an_id_that_a_channel_gives_again_to_another_account_on_another_day_is_another_payment(day, tmp_path):
    result = ask(day.path, "reconcile-payments", written(tmp_path, "same,B,2025-10-03T09:00:00+05:00,1,Click,\n"))
    assert found(result, "missing_here")["same"]["reason"] == "never_arrived"
    assert not found(result, "differing")


def test_days_that_the_published_database_does_not_reach_are_pointed_out(day, tmp_path):
    known, later = (f"x,A,2025-10-{d}T09:00:00+05:00,5,Click,\n" for d in ("03", "05"))
    assert "ends before these days do" in call(day.path, "reconcile-payments", written(tmp_path, later))[1]
    assert "ends before these days do" not in call(day.path, "reconcile-payments", written(tmp_path, known))[1]


# ---- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        (MATCHING + "x,A,2025-10-01T09:00:00,5,Click,\n", (), "row 3, paid_at (naive_time)"),
        (MATCHING + "x,A,2025-10-01T09:00:00Z,5.5,Click,\n", (), "row 3, amount_tiyin (not_an_integer): 5.5"),
        (MATCHING + "x,A,2025-10-01T09:00:00Z,5\n", (), "row 3 (wrong_field_count)"),
        (MATCHING, ("--channel", "Payme"), "row 2, channel: Click"),
        (MATCHING, ("--day", "1.10.2025"), "--day is a day"),
        ("", (), "holds no payments"),
        ("", ("--day", "2025-10-01"), "holds no payments"),
    ],
)
def test_a_list_that_cannot_be_compared_is_wrong_use_named_with_row_and_column(day, tmp_path, text, options, told):
    before = sorted(day.reconciled.glob("*"))
    code, message = call(day.path, "reconcile-payments", written(tmp_path, text), *options)
    assert code == 2
    assert told in message
    assert sorted(day.reconciled.glob("*")) == before


def test_a_file_that_is_not_there_or_has_other_columns_is_wrong_use(day, tmp_path):
    code, message = call(day.path, "reconcile-payments", tmp_path / "none.csv")
    assert code == 2
    assert "none.csv" in message
    (tmp_path / "other.csv").write_text("id,sum\n1,2\n")
    assert call(day.path, "reconcile-payments", tmp_path / "other.csv")[0] == 2


def test_an_empty_list_of_a_day_and_channel_lacks_all_of_them(day, tmp_path):
    result = ask(
        day.path, "reconcile-payments", written(tmp_path, ""), "--day", "2025-10-02", "--channel", "Click"
    )  # fmt: skip
    assert set(found(result, "missing_there")) == {"after", "late"}


# ---- kept for auditors -----------------------------------------------------------------------------------------------


def test_each_run_is_in_the_audit_database_after_the_next_load_and_again_in_one_made_anew(day, tmp_path):
    home = copied(day, tmp_path / "home")
    for old in home.reconciled.glob("*"):
        old.unlink()
    load_and_publish(home)
    result = ask(home.path, "reconcile-payments", written(tmp_path, THEIRS))
    assert rows(home, "FROM payment_reconciliations") == []
    load_and_publish(home)
    check_kept(home, result)
    load_and_publish(home)  # nothing twice
    check_kept(home, result)
    home.warehouse.unlink()
    load_and_publish(home)
    check_kept(home, result)


def rows(home, sql):
    with open_published(home) as con:
        return con.execute(sql).fetchall()


def check_kept(home, result):
    (click,) = result["channels"]
    assert rows(home, "SELECT run, file, fingerprint, first_day::VARCHAR, channel, theirs, ours_tiyin, ticked_at IS NULL"
        " FROM payment_reconciliations") == [
        (result["run"], "click.csv", result["fingerprint"], "2025-10-01", "Click", click["theirs"], click["ours_tiyin"], False)
    ]  # fmt: skip
    assert rows(home, "SELECT count(*) FROM payment_differences") == [(len(result["differences"]),)]
    assert rows(home, "SELECT columns[1].ours FROM payment_differences WHERE payment_id = 'amount'") == [("5000",)]
    assert rows(home, "SELECT \"rows\" FROM payment_differences WHERE outcome = 'repeated'") == [([2, 16],)]


def test_a_run_that_somebody_spoiled_stops_the_load_and_is_named(day, tmp_path):
    home = copied(day, tmp_path / "home")
    home.reconciled.mkdir(exist_ok=True)
    (home.reconciled / "spoiled.json").write_text('{"run": "spoiled"')
    with pytest.raises(WarehouseError, match=r"spoiled\.json"):
        load_and_publish(home)
    (home.reconciled / "spoiled.json").unlink()
    load_and_publish(home)


# ---- any two lists ---------------------------------------------------------------------------------------------------

MIDNIGHT = datetime(2025, 9, 30, 19, tzinfo=UTC)
payments = st.fixed_dictionaries(
    {
        "payment_id": st.sampled_from(["1", "2", "3"]),
        "account_id": st.sampled_from(["A", "B"]),
        "paid_at": st.sampled_from([MIDNIGHT + timedelta(hours=h) for h in (-1, 0, 1, 23, 24)]),
        "amount_tiyin": st.sampled_from([1, 10, 100]),
        "channel": st.sampled_from([None, "Click", "Payme"]),
        "reverses": st.sampled_from([None, None, "1"]),
    }
)
statuses = st.sampled_from(["credited", "credited", "refused", "held"])


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty warehouse in memory, as the load makes it."""
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET threads = 1")
    create_tables(con)
    make_views(con, tmp_path_factory.mktemp("lake"), 2, 0)
    return con


def put_in(con, ours):
    """These payments in the journal, and what became of them."""
    for table in ("journal.payment", "events.refused", "events.held"):
        con.execute(f"DELETE FROM {table}")
    for ordinal, (payment, status) in enumerate(ours):
        columns = ", ".join(CONTENT)
        con.execute(
            f"INSERT INTO journal.payment (partition, ordinal, {columns}) VALUES (0, ?, ?, ?, ?, ?, ?, ?)",
            [ordinal, *content(payment)],
        )
        if status != "credited":
            record = json.dumps({k: v for k, v in payment.items() if v is not None}, default=datetime.isoformat)
            columns = "partition, ordinal, n, record_kind, reason, record"
            con.execute(
                f"INSERT INTO events.{status} ({columns}) VALUES (0, ?, 0, 'payment', 'a_reason', ?)", [ordinal, record]
            )


def as_file(path, theirs):
    schema = pa.schema([f for f in RECORD_SCHEMAS["payment"] if f.name != "received_at"])
    pa.parquet.write_table(pa.Table.from_pylist(theirs, schema), path)
    return path


def content(payment):
    return tuple(payment[name] for name in CONTENT)


@settings(max_examples=60, deadline=None)
@given(
    theirs=st.lists(payments, min_size=1, max_size=8),
    ours=st.lists(st.tuples(payments, statuses), max_size=8, unique_by=lambda p: content(p[0])),
    order=st.randoms(use_true_random=False),
    whole_day=st.booleans(),
)
def test_of_any_two_lists_counts_and_totals_add_up_and_the_order_of_rows_plays_no_part(
    database, tmp_path_factory, theirs, ours, order, whole_day
):
    path = tmp_path_factory.getbasetemp() / "theirs.parquet"
    day = None if whole_day else (MIDNIGHT + timedelta(hours=5)).date()
    put_in(database, ours)
    result = reconcile_payments(database, as_file(path, theirs), day=day)
    check_sums(result, theirs, [p for p, status in ours if status == "credited"], day)

    order.shuffle(theirs)
    order.shuffle(ours)
    put_in(database, ours)
    again = reconcile_payments(database, as_file(path, theirs), day=day)
    assert again.channels == result.channels
    assert sorted(map(unplaced, again.differences)) == sorted(map(unplaced, result.differences))


def unplaced(d):
    """A difference without the places of its records."""
    return repr((d.outcome, d.channel, d.payment_id, d.account_id, d.amount_tiyin, d.reverses, d.reason, d.columns))


def signed(payment):
    return payment["amount_tiyin"] * (1 if payment["reverses"] is None else -1)


def check_sums(result, theirs, credited, day):
    for c in result.channels:
        assert c.theirs == c.matched + c.differing + c.missing_here
        assert c.ours == c.matched + c.differing + c.missing_there
        assert c.theirs_tiyin == c.matched_tiyin + c.differing_theirs_tiyin + c.missing_here_tiyin
        assert c.ours_tiyin == c.matched_tiyin + c.differing_ours_tiyin + c.missing_there_tiyin
        assert c.refused + c.held <= c.missing_here
    ids = {content(p) for p in theirs}
    assert result.rows == len(theirs)
    if day is None:
        distinct = [dict(zip(CONTENT, each, strict=True)) for each in ids]
        assert result.other_days == 0
        assert sum(c.theirs for c in result.channels) == len(distinct)
        assert sum(c.theirs_tiyin for c in result.channels) == sum(map(signed, distinct))
        assert sum(c.repeated for c in result.channels) == len(theirs) - len(ids)
        assert sum(c.matched for c in result.channels) == len(ids & {content(p) for p in credited})
        channels = {p["channel"] for p in theirs}
        days = [(p["paid_at"] + timedelta(hours=5)).date() for p in theirs]
        listed = [
            p for p in credited
            if p["channel"] in channels and min(days) <= (p["paid_at"] + timedelta(hours=5)).date() <= max(days)
        ]  # fmt: skip
        assert sum(c.ours for c in result.channels) >= len(listed)
        if {content(p) for p in credited} == ids and len(ids) == len(theirs):
            assert result.agrees
