"""The independent auditor: agrees with the ledger wherever the rules were kept, and finds what was falsified by one tiyin."""

import json
import os
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting.partition import Partition
from hisob.homes import make_home
from streams.ingest import ingest_files
from streams.settle import run_settle
from tests.core_harness import body_of, route, settle_bytes
from tests.oracle import journal_of, load_case
from tests.random_records import STYLES, random_records
from tests.test_flow import hisob
from tests.warehouse_homes import CASES, history_of, load_and_publish
from tests.warehouse_in_memory import tables_of_events, tables_of_journal, warehouse_in_memory
from warehouse.audit import open_for_audit
from warehouse.reconcile import reconcile

LONDON = Path(__file__).resolve().parents[2] / "shared" / "data" / "london"
PARTITIONS = 3
AT_ONCE = 50  # utilities that share a journal: its ticks are most of the work
UTILITIES = int(
    os.environ.get("HISOB_RECONCILE_UTILITIES", "50")
)  # of 6 to 16 accounts each; small ones: test_stateful
NAMES = ("account_id", "meter_id", "old_meter_id", "new_meter_id", "tariff")


def together(utilities):
    """The records of several utilities as those of one: each has its own accounts, meters and tariffs."""
    records = {}
    for number, utility in enumerate(utilities):
        for kind, rows in utility.items():
            own = [{**r, **{c: f"{number:03}-{r[c]}" for c in NAMES if r.get(c) is not None}} for r in rows]
            records.setdefault(kind, []).extend(own)
    return records


def warehouse_of(records):
    """What the load would make of these records, once settled."""
    tables = []
    for number, placed in enumerate(route(journal_of(records), PARTITIONS)):
        tables += tables_of_journal(number, placed)
        partition = Partition(number, unrouted=number == PARTITIONS)
        for first in range(0, len(placed), 20_000):
            tables += tables_of_events(number, settle_bytes(partition, first, body_of(placed[first : first + 20_000])))
    return warehouse_in_memory(tables)


def entries_of(con):
    return con.execute("SELECT count(*) FROM events.entry").fetchone()[0]


def assert_agrees(con):
    result = reconcile(con)
    assert result.differences == []
    assert result.different == 0
    return result


# ---- where the rules were kept ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cases():
    """All worked cases as one warehouse. What a test changes in it, it takes back."""
    return warehouse_of(together(load_case(folder) for folder in sorted(CASES.iterdir()) if folder.is_dir()))


def test_all_worked_cases_reconcile_to_the_tiyin(cases):
    result = assert_agrees(cases)
    nothings = cases.execute(
        "SELECT count(*) FROM events.entry WHERE kind = 'correction' AND basis = 'measured' AND amount_tiyin = 0"
    ).fetchone()[0]
    assert entries_of(cases) - nothings <= result.entries <= entries_of(cases)
    assert result.balance_tiyin == cases.execute("SELECT sum(balance_tiyin) FROM balances").fetchone()[0]
    assert result.accounts == cases.execute("SELECT count(*) FROM balances").fetchone()[0]


def test_it_comes_to_the_same_part_by_part(cases):
    assert reconcile(cases, part_entries=20_000) == reconcile(cases)


@pytest.mark.parametrize("first", range(0, UTILITIES, AT_ONCE))
def test_random_utilities_reconcile_to_the_tiyin(first):
    styles = ["adversary", "all"] * len(STYLES) + list(STYLES)
    seeds = range(first, first + AT_ONCE)
    assert_agrees(warehouse_of(together(random_records(seed, styles[seed % len(styles)]) for seed in seeds)))


def test_a_block_without_any_width_holds_nothing():
    """Of two blocks with one limit the first counts; what lies above them is charged by the next."""
    from tests.oracle import run

    tariff = {"tariff": "t", "received_at": None}
    records = load_case(CASES / "plain-1-boundaries")
    records = {kind: rows for kind, rows in records.items() if kind in ("account", "reading")}
    blocks = ((1, 30_000), (1, 40_000), (None, 70_000))
    for row in records["account"]:
        row["tariff"] = "t"
    day = load_case(CASES / "plain-1-boundaries")["tariff"][0]["effective_on"].replace(year=2020)
    records["tariff"] = [
        tariff | {"effective_on": day, "block_upto_kwh": upto, "price_tiyin_per_kwh": price} for upto, price in blocks
    ]
    con = warehouse_of(records)
    assert con.execute("SELECT count(*) FROM events.entry").fetchone()[0] > len(records["account"])
    result = reconcile(con)
    assert result.balance_tiyin == sum(run(records).balances.values())


# ---- what was falsified ----------------------------------------------------------------------------------------------
@pytest.fixture
def falsified(cases):
    """The cases, to be changed: all is as before after the test."""
    cases.execute("BEGIN")
    yield cases
    cases.execute("ROLLBACK")


def named(con):
    """The accounts in which something differs."""
    return {d.account_id for d in reconcile(con).differences}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10**9), column=st.sampled_from(["amount_tiyin", "balance_tiyin", "usage_wh", "to_wh"]))
def test_an_entry_falsified_by_one_is_found_and_named(cases, where, column):
    cases.execute("BEGIN")
    try:
        account, partition, ordinal, n = cases.execute(
            f"""
            SELECT account_id, partition, ordinal, n FROM events.entry WHERE {column} IS NOT NULL AND kind <> 'correction'
            ORDER BY ALL LIMIT 1 OFFSET {where % 20_000}
            """
        ).fetchone()
        at = f"partition = {partition} AND ordinal = {ordinal} AND n = {n}"
        cases.execute(f"UPDATE events.entry SET {column} = {column} + 1 WHERE {at}")
        result = reconcile(cases)
        assert {d.account_id for d in result.differences} == {account}
        (found,) = [d for d in result.differences if d.entry_id == f"{partition}-{ordinal}-{n}"]
        name = "moved_tiyin" if column == "balance_tiyin" else column
        assert found.ledger[name] == found.audit[name] + 1
        assert reconcile(cases, account).different == result.different
    finally:
        cases.execute("ROLLBACK")


def test_a_correction_falsified_by_one_tiyin_is_found(falsified):
    at = "SELECT partition, ordinal, n FROM events.entry WHERE kind = 'correction' AND basis = 'measured' ORDER BY ALL LIMIT 1"
    falsified.execute(
        f"UPDATE events.entry SET amount_tiyin = amount_tiyin - 1 WHERE (partition, ordinal, n) IN ({at})"
    )
    assert len(named(falsified)) == 1


def test_a_reading_falsified_by_one_wh_is_found(falsified):
    """Of the register in the journal: the entries before and after it are no longer what it says."""
    account, partition, ordinal = falsified.execute(
        """
        SELECT account_id, partition, ordinal FROM events.entry
        WHERE kind = 'usage' AND basis = 'measured' AND usage_wh > 10 ORDER BY ALL LIMIT 1
        """
    ).fetchone()
    at = f"partition = {partition} AND ordinal = {ordinal}"
    falsified.execute(f"UPDATE journal.reading SET register_wh = register_wh - 1 WHERE {at}")
    result = reconcile(falsified)
    assert {d.account_id for d in result.differences} == {account}
    assert any(d.record == f"{partition}-{ordinal}" and "usage_wh" in d.ledger for d in result.differences)


def test_a_price_falsified_by_one_tiyin_is_found_in_every_account_that_has_it(falsified):
    tariff = falsified.execute(
        "SELECT tariff FROM events.entry WHERE usage_wh > 100_000 ORDER BY ALL LIMIT 1"
    ).fetchone()[0]
    falsified.execute(
        "UPDATE journal.tariff SET price_tiyin_per_kwh = price_tiyin_per_kwh + 1 WHERE tariff = ?", [tariff]
    )
    theirs = "SELECT DISTINCT account_id FROM journal.account WHERE tariff = ?"
    accounts = {name for (name,) in falsified.execute(theirs, [tariff]).fetchall()}
    found = named(falsified)
    assert found
    assert found <= accounts


@pytest.mark.parametrize("kind", ["usage", "payment", "opening"])
def test_an_entry_that_was_taken_out_is_missed(falsified, kind):
    at = f"SELECT partition, ordinal, n FROM events.entry WHERE kind = '{kind}' AND amount_tiyin <> 0 ORDER BY ALL LIMIT 1"
    falsified.execute(f"DELETE FROM events.entry WHERE (partition, ordinal, n) IN ({at})")
    found = [d for d in reconcile(falsified).differences if d.audit and not d.ledger]
    assert [d.what for d in found] == [kind]


def test_an_entry_that_nothing_accounts_for_is_found(falsified):
    falsified.execute(
        """
        INSERT INTO events.entry BY NAME
        SELECT * REPLACE (n + 77 AS n, 'payment' AS kind, 500 AS amount_tiyin, balance_tiyin + 500 AS balance_tiyin)
        FROM events.entry WHERE kind = 'opening' ORDER BY ALL LIMIT 1
        """
    )
    assert any(d.ledger and not d.audit for d in reconcile(falsified).differences)


def test_an_entry_of_an_account_that_there_is_not_is_found(falsified):
    falsified.execute(
        "INSERT INTO events.entry BY NAME SELECT * REPLACE ('nobody' AS account_id) FROM events.entry ORDER BY ALL LIMIT 1"
    )
    assert [d.account_id for d in reconcile(falsified).differences] == ["nobody"]


def test_a_balance_kept_wrong_is_found(falsified):
    falsified.execute(
        "UPDATE main.balances SET balance_tiyin = balance_tiyin + 1 WHERE account_id = (SELECT min(account_id) FROM balances)"
    )
    (found,) = reconcile(falsified).differences
    assert (found.what, found.ledger["tiyin"] - found.audit["tiyin"]) == ("kept balance", 1)


# ---- the command, the flow, and a year ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home whose ledger is right. Not to be changed."""
    history = history_of(tmp_path_factory.mktemp("reconciled") / "home", "one-late")
    load_and_publish(history.home)
    return history.home


@pytest.fixture(scope="module")
def forged(tmp_path_factory):
    """A home in whose log there is a payment that nobody made, and its account."""
    history = history_of(tmp_path_factory.mktemp("forged") / "home", "one-close")
    load_and_publish(history.home)
    with duckdb.connect(str(history.home.published), read_only=True) as con:
        account, partition, last = con.execute(
            "SELECT account_id, partition, last_ordinal FROM balances ORDER BY 1"
        ).fetchone()
    columns = {"account_id": account, "kind": "payment", "usage_wh": 0, "amount_tiyin": 500, "balance_tiyin": 500}
    history.append_event(partition, "entry", ordinal=last, n=77, **columns)
    load_and_publish(history.home)
    return history.home, account


def test_the_command_exits_0_where_all_agrees_and_says_what_it_recomputed(home):
    done = hisob(home, "reconcile")
    assert (done.returncode, done.stderr) == (0, "")
    assert "to the tiyin" in done.stdout
    told = json.loads(hisob(home, "reconcile", "--json").stdout)
    assert (told["different"], told["differences"]) == (0, [])
    assert f"{told['entries']:,} entries" in done.stdout


def test_the_command_exits_1_and_shows_what_differs(forged):
    home, account = forged
    done = hisob(home, "reconcile")
    assert done.returncode == 1
    assert account in done.stdout
    assert "nothing" in done.stdout
    one = hisob(home, "reconcile", "--account", account, "--json")
    assert one.returncode == 1
    assert {d["account_id"] for d in json.loads(one.stdout)["differences"]} == {account}


def test_an_account_there_is_not_is_named(home):
    done = hisob(home, "reconcile", "--account", "nobody")
    assert done.returncode == 1
    assert "There is no account nobody" in done.stderr


def test_the_flow_fails_with_what_differs(home, forged):
    from flows.reconcile import LedgerDiffersError, reconcile_ledger

    assert reconcile_ledger.fn(str(home.path))["different"] == 0
    with pytest.raises(LedgerDiffersError, match=forged[1]):
        reconcile_ledger.fn(str(forged[0].path))


needs_london = pytest.mark.skipif(
    not LONDON.is_dir(), reason="the readings of London are not here (../shared/data/london)"
)


def settled_year(path, readings, *more):
    """A year of readings, settled under the tariff of 2025 and loaded."""
    home = make_home(path, 2)
    ingest_files(home, [("tariff", LONDON / "tariff.csv"), ("account", LONDON / "account.csv")])
    ingest_files(home, [("reading", readings), *more])
    assert run_settle(home, drain=True)
    load_and_publish(home)
    return home


@needs_london
def test_a_year_of_london_reconciles_to_the_tiyin(tmp_path):
    with open_for_audit(settled_year(tmp_path / "home", LONDON / "readings.parquet")) as con:
        result = assert_agrees(con)
    assert (result.accounts, result.readings) == (60, 1_001_840)


@needs_london
def test_a_year_with_every_trouble_reconciles_to_the_tiyin(tmp_path):
    """A sixth of the meters: leaps, registers that went back, estimates, late readings, a tariff that arrives late."""
    readings, tariff = tmp_path / "readings.parquet", tmp_path / "tariff.csv"
    with duckdb.connect() as con:
        con.execute(f"COPY ({TROUBLED}) TO '{readings}'")
    tariff.write_text(
        "tariff,effective_on,block_upto_kwh,price_tiyin_per_kwh,received_at\n"
        "london_blocks,2013-05-15,150,65000,2013-05-01T00:00:00+05:00\n"
        "london_blocks,2013-05-15,,99000,2013-05-01T00:00:00+05:00\n"
        "london_blocks,2013-09-10,100,65001,2013-09-12T10:10:00+05:00\n"
        "london_blocks,2013-09-10,,99007,2013-09-12T10:10:00+05:00\n"
    )
    with open_for_audit(settled_year(tmp_path / "home", readings, ("tariff", tariff))) as con:
        assert_agrees(con)
        kinds = dict(
            con.execute("SELECT kind || ' ' || basis, count(*) FROM entries WHERE basis <> '' GROUP BY 1").fetchall()
        )
    assert kinds["correction measured"] > 50
    assert kinds["correction estimated"] > 500


TROUBLED = f"""
    SELECT meter_id, read_at,
        greatest(0, register_wh + CASE chance WHEN 7 THEN 200_000 WHEN 8 THEN -3 ELSE 0 END) AS register_wh,
        CASE WHEN chance BETWEEN 100 AND 106 THEN 'estimated' END AS status,
        CASE
            WHEN chance BETWEEN 200 AND 209 THEN read_at + INTERVAL (h % 200) HOUR
            WHEN day(read_at) IN (30, 31, 1, 2) AND month_chance = 0
            THEN date_trunc('month', read_at + INTERVAL 4 DAY) + INTERVAL 3 DAY + INTERVAL (h % 3000) MINUTE
        END AS received_at
    FROM (
        SELECT *, hash(meter_id, read_at) >> 3 AS h, h % 1000 AS chance,
            (hash(meter_id, month(read_at + INTERVAL 4 DAY)) >> 3) % 4 AS month_chance
        FROM '{LONDON}/readings.parquet' WHERE hash(meter_id) % 6 = 0
    )
"""
