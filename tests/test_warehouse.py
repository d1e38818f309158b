"""The warehouse: what is loaded is all there is, once, and what is published is whole, checked and explains itself."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from accounting.records import EVENTS, RECORDS
from connectors.home import Home
from tests.warehouse_homes import CASES, History, history_of, in_parts, load_and_publish
from warehouse import expectations, lake, publish
from warehouse import load as loading
from warehouse.audit import NotPublishedError, QueryError, open_published, reconcile_balances, run_query
from warehouse.errors import BusyError, WarehouseError
from warehouse.statement import UnknownAccountError, make_statement
from warehouse.tables import VIEWS, log_of

ROOT = Path(__file__).resolve().parent.parent
SOME_CASES = ["plain-4-versions", "one-estimate", "one-exchange", "one-late", "one-unknown", "one-unknownpay"]
SOME_CASES += ["all-1", "all-4", "adversary-01", "adversary-12"]
BUSY_CASE = "all-2"  # it has a bit of everything


def contents(home: Home) -> dict[str, list[tuple]]:
    """Everything the warehouse has taken in, in an order of its own."""
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        found = {
            kind: con.execute(f'FROM {log_of(kind)}."{kind}" ORDER BY ALL').fetchall() for kind in (*RECORDS, *EVENTS)
        }
        found["balances"] = con.execute("FROM balances ORDER BY account_id").fetchall()
        found["positions"] = con.execute("SELECT log, partition, position FROM positions ORDER BY ALL").fetchall()
        return found


def lake_files(home: Home) -> set[str]:
    return {p.relative_to(home.lake).as_posix() for p in home.lake.rglob("*") if p.is_file()}


def manifest(home: Home, which: str = "retired_at IS NULL") -> set[str]:
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        return {path for (path,) in con.execute(f"SELECT path FROM load.files WHERE {which}").fetchall()}


@pytest.fixture(scope="module")
def busy(tmp_path_factory) -> History:
    """A published home with a bit of everything in it; not to be changed."""
    history = history_of(tmp_path_factory.mktemp("busy") / "home", BUSY_CASE)
    load_and_publish(history.home)
    return history


# ---- what the views say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SOME_CASES)
def test_a_case_ends_as_expected_and_every_statement_adds_up_and_is_explained(case, tmp_path):
    home = history_of(tmp_path / "home", case).home
    load_and_publish(home)
    with open_published(home) as con:
        for what, sql in {
            "balances": "SELECT account_id, balance_tiyin::VARCHAR FROM balances",
            "usage": "SELECT account_id, usage_wh::VARCHAR FROM balances",
            "refused": 'SELECT record_kind, "key", reason FROM refused',
            "held": 'SELECT record_kind, "key", reason FROM held',
        }.items():
            with (CASES / case / f"expected_{what}.csv").open(newline="", encoding="utf-8") as file:
                expected = sorted(tuple(line) for line in list(csv.reader(file))[1:])
            assert sorted(con.execute(sql).fetchall()) == expected, what
        assert reconcile_balances(con) == []
        for (account,) in con.execute("SELECT account_id FROM balances").fetchall():
            page = make_statement(con, account)
            assert page.adds_up, account
            assert page.explained, [u for u in page.usage if u.rest_tiyin]


def test_an_empty_home_has_every_view_typed_and_without_rows(tmp_path):
    home = History(tmp_path / "home").home
    assert load_and_publish(home).records == 0
    with open_published(home) as con:
        for kind, (view, _) in VIEWS.items():
            rows = con.execute(f"FROM {view}")
            types = {name: str(sql_type) for name, sql_type, *_ in rows.description}
            assert rows.fetchall() == []
            own = {"journal": RECORDS, "events": EVENTS}[log_of(kind)][kind]
            times = {c.name for c in own if c.type == "time"}
            assert {types[name] for name in times} <= {"TIMESTAMP WITH TIME ZONE"}, view


def test_every_table_view_and_column_says_what_it_means(busy):
    with open_published(busy.home) as con:
        silent = con.execute(
            """
            SELECT schema_name, table_name, '' FROM duckdb_tables() WHERE comment IS NULL
            UNION ALL SELECT schema_name, view_name, '' FROM duckdb_views() WHERE NOT internal AND comment IS NULL
            UNION ALL SELECT schema_name, table_name, column_name FROM duckdb_columns() WHERE NOT internal AND comment IS NULL
            """
        ).fetchall()
        assert silent == []
        units = con.execute(
            "SELECT column_name, comment FROM duckdb_columns() "
            "WHERE NOT internal AND regexp_matches(column_name, '_(wh|tiyin)$')"
        ).fetchall()
        assert units
        assert all("Wh" in text if name.endswith("_wh") else "tiyin" in text for name, text in units)


def test_any_event_leads_back_to_the_record_that_caused_it(busy):
    with open_published(busy.home) as con:
        ids = con.execute("SELECT entry_id FROM entries WHERE kind = 'payment' LIMIT 3").fetchall()
        for (entry_id,) in ids:
            assert con.execute("SELECT kind FROM cause_of(?)", [entry_id]).fetchall() == [("payment",)]


def test_a_query_that_would_write_is_refused(busy):
    with open_published(busy.home) as con, pytest.raises(QueryError, match="read-only"):
        run_query(con, "DELETE FROM main.balances")


# ---- nothing twice, nothing lost -------------------------------------------------------------------------------------


def test_loading_twice_adds_nothing(tmp_path):
    home = history_of(tmp_path / "home", "one-gap").home
    first = load_and_publish(home)
    before, files, published = contents(home), lake_files(home), home.published.read_bytes()
    again = load_and_publish(home)
    assert first.records > 0
    assert (again.records, again.load) == (0, first.load)
    assert (contents(home), lake_files(home), home.published.read_bytes()) == (before, files, published)


def test_many_loads_come_to_the_same_as_one(busy, tmp_path):
    history = History(tmp_path / "home")
    for part in in_parts(BUSY_CASE, 3):
        history.append(part)
        load_and_publish(history.home)
    assert contents(history.home) == contents(busy.home)


def test_slices_of_any_size_come_to_the_same(tmp_path, monkeypatch):
    whole = history_of(tmp_path / "whole", "all-1").home
    load_and_publish(whole)
    cut = tmp_path / "cut"
    cut.mkdir()
    for log in ("journal.db", "events.db", "hisob.toml"):
        shutil.copy(whole.path / log, cut / log)
    monkeypatch.setattr(lake, "SLICE_RECORDS", 700)
    load_and_publish(Home(cut))
    assert len(lake_files(Home(cut))) > len(lake_files(whole))
    assert contents(Home(cut)) == contents(whole)


def test_the_journal_is_loaded_only_as_far_as_it_is_settled(tmp_path):
    history = History(tmp_path / "home")
    one, two = in_parts("one-gap", 2)
    history.append(one)
    history.append(two, settle=False)
    loaded = load_and_publish(history.home)
    assert loaded.waiting == sum(map(len, two))
    found = contents(history.home)
    assert sum(position for log, _, position in found["positions"] if log == "journal") == sum(map(len, one))
    assert sum(len(found[kind]) for kind in RECORDS) == sum(map(len, one))


def test_what_is_not_in_the_manifest_is_swept_away_and_the_rest_is_never_touched(tmp_path):
    history = History(tmp_path / "home")
    one, two = in_parts("one-gap", 2)
    history.append(one)
    load_and_publish(history.home)
    before = {path: (history.home.lake / path).read_bytes() for path in lake_files(history.home)}
    stray = history.home.lake / next(iter(before))
    for name in ("000000000777-000000000888.parquet", "000000000777-000000000888.parquet.unfinished"):
        stray.with_name(name).write_bytes(b"half")
    history.append(two)
    load_and_publish(history.home)
    assert manifest(history.home) == lake_files(history.home)
    assert all((history.home.lake / path).read_bytes() == data for path, data in before.items())


def test_months_are_those_of_tashkent_and_a_clock_gone_wrong_makes_no_folders():
    moments = [
        datetime(2025, 3, 31, 18, 59, 59, tzinfo=UTC),
        datetime(2025, 3, 31, 19, 0, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 1, 1, tzinfo=UTC),
        None,
    ]
    months = lake.months_of(pa.array(moments, pa.timestamp("us", "UTC")))
    assert [str(m) for m in months] == ["2025-03", "2025-04", "2000-01", "2099-12", "2000-01"]


def test_a_file_is_sorted_by_account_whatever_its_dictionary_holds():
    codes = pa.DictionaryArray.from_arrays(pa.array([2, 0, None, 1, 0], pa.int32()), pa.array(["b", "a", "b"]))
    assert lake.order_by_account(lake.in_type(codes, pa.string())).tolist() == [3, 0, 1, 4, 2]


# ---- killed at any step ----------------------------------------------------------------------------------------------

KILLED = """
import itertools, os, signal, sys
from pathlib import Path
from connectors.home import Home
from tests import warehouse_homes
from warehouse import lake, load, publish

home, module, name, when, count = sys.argv[1:]
lake.SLICE_RECORDS = 2000
calls = itertools.count(1)  # several threads write files

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(function):
    def call(*arguments, **named):
        call_number = next(calls)
        if when == "before" and call_number == int(count):
            die()
        result = function(*arguments, **named)
        if when == "after" and call_number == int(count):
            die()
        return result
    return call

class Connection:
    def __init__(self, con):
        self.con = con
    def __getattr__(self, attribute):
        found = getattr(self.con, attribute)
        return dying(found) if attribute == name else found

if module == "connection":
    opened = load.open_warehouse
    class open_warehouse:
        def __init__(self, *arguments):
            self.manager = opened(*arguments)
        def __enter__(self):
            return Connection(self.manager.__enter__())
        def __exit__(self, *exception):
            return self.manager.__exit__(*exception)
    load.open_warehouse = open_warehouse
else:
    owner = {"lake": lake, "load": load, "publish": publish, "Path": Path, "shutil": publish.shutil}[module]
    setattr(owner, name, dying(getattr(owner, name)))
warehouse_homes.load_and_publish(Home(Path(home)))
"""
STEPS = [
    ("load", "reach_of", "after", 1),
    ("load", "create_tables", "after", 1),
    ("load", "sweep", "after", 1),
    ("lake", "sync", "before", 1),
    ("Path", "replace", "after", 3),
    ("load", "keep_slice", "before", 2),
    ("load", "keep_slice", "after", 3),
    ("load", "note_load", "after", 1),
    ("load", "keep_balances", "after", 1),
    ("load", "make_views", "after", 1),
    ("connection", "commit", "before", 1),
    ("connection", "commit", "after", 1),
    ("shutil", "copyfile", "before", 1),
    ("shutil", "copyfile", "after", 1),
    ("publish", "publish", "before", 1),
    ("publish", "publish", "after", 1),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    home = history_of(tmp_path_factory.mktemp("whole") / "home", "all-1").home
    load_and_publish(home)
    return home, contents(home)


@pytest.mark.parametrize(("module", "name", "when", "count"), STEPS, ids=str)
def test_a_load_killed_at_any_step_and_run_again_equals_an_uninterrupted_one(
    module, name, when, count, uninterrupted, tmp_path
):
    whole, expected = uninterrupted
    home = Home(tmp_path / "home")
    home.path.mkdir()
    for log in (whole.journal, whole.events, whole.settings):
        shutil.copy(log, home.path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(home.path), module, name, when, str(count)], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL, "the step was never reached"
    load_and_publish(home)
    assert contents(home) == expected
    assert lake_files(home) == manifest(home)
    with open_published(home) as con:
        assert con.execute("SELECT max(load) FROM load.loads").fetchone() == (1,)
        assert reconcile_balances(con) == []


# ---- small files become large ones -----------------------------------------------------------------------------------


def test_small_files_are_merged_and_old_ones_stay_for_whoever_may_be_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(lake, "MERGE_FILES", 3)
    history = History(tmp_path / "home")
    home = history.home
    merged, readers, answers = 0, [], []
    for part in in_parts("one-gap", 7):
        history.append(part)
        merged += load_and_publish(home).merged_files
        readers.append(duckdb.connect(str(home.published), read_only=True))
        answers.append(readers[-1].execute("SELECT count(*), sum(balance_tiyin) FROM entries").fetchone())
        readers[-1].close()
        kept = tmp_path / f"old-{len(readers)}.duckdb"
        shutil.copy(home.published, kept)
        readers[-1] = kept
    assert merged >= 6
    by_month: dict[str, int] = {}
    for path in manifest(home):
        month = path.rpartition("/")[0]
        by_month[month] = by_month.get(month, 0) + 1
    assert max(by_month.values()) < 6, "so many loads of a month, and they stay apart"
    retired = manifest(home, "retired_at IS NOT NULL")
    assert retired
    assert manifest(home) | retired == lake_files(home)
    for kept, answer in zip(readers, answers, strict=True):
        with duckdb.connect(str(kept), read_only=True) as con:
            assert con.execute("SELECT count(*), sum(balance_tiyin) FROM entries").fetchone() == answer
    whole = history_of(tmp_path / "whole", "one-gap")
    load_and_publish(whole.home)
    assert contents(home) == contents(whole.home)
    with duckdb.connect(str(home.published), read_only=True) as con:
        assert expectations.evaluate(con, expectations.on_positions(con)) == []


def test_a_retired_file_goes_after_a_day_unless_the_published_database_needs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lake, "MERGE_FILES", 2)
    history = History(tmp_path / "home")
    home = history.home
    parts = in_parts("one-gap", 5)
    for part in parts[:2]:
        history.append(part)
        load_and_publish(home)
    history.append(parts[2])
    with loading.holding(home):
        assert loading.load(home).merged_files > 0  # and not published
    retired = manifest(home, "retired_at IS NOT NULL")
    with duckdb.connect(str(home.warehouse)) as con:
        con.execute("UPDATE load.files SET retired_at = retired_at - INTERVAL 2 DAY WHERE retired_at IS NOT NULL")
    with loading.holding(home):
        loading.load(home)
    assert retired <= lake_files(home), "the published database still reads them"
    history.append(parts[3])
    load_and_publish(home)
    with duckdb.connect(str(home.published), read_only=True) as con:
        con.execute("SELECT count(*) FROM entries").fetchone()
    history.append(parts[4])
    load_and_publish(home)
    load_and_publish(home)
    assert not retired & lake_files(home)


# ---- publishing ------------------------------------------------------------------------------------------------------


def test_the_published_file_opens_from_anywhere_with_duckdb_alone(busy, tmp_path):
    script = (
        "import duckdb, sys; con = duckdb.connect(sys.argv[1], read_only=True);"
        "count = lambda view: con.execute('SELECT count(*) FROM ' + view).fetchone()[0];"
        "print((count('entries'), count('balances'), count('readings')))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    said = subprocess.run(
        [sys.executable, "-I", "-c", script, str(busy.home.published)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = contents(busy.home)
    assert said.strip() == str((len(found["entry"]), len(found["balances"]), len(found["reading"])))


READER = """
import duckdb, sys
con = duckdb.connect(sys.argv[1], read_only=True)
for _ in range(2):
    print(con.execute("SELECT count(*), max(ordinal) FROM entries").fetchone(), flush=True)
    sys.stdin.readline()
"""


def test_a_reader_keeps_the_old_database_while_a_new_one_is_published(tmp_path):
    history = History(tmp_path / "home")
    one, two = in_parts("one-gap", 2)
    history.append(one)
    load_and_publish(history.home)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(history.home.published)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    before = reader.stdout.readline()
    history.append(two)
    load_and_publish(history.home)
    reader.stdin.write("\n")
    reader.stdin.flush()
    assert reader.stdout.readline() == before
    reader.communicate("\n")
    with open_published(history.home) as con:
        assert str(con.execute("SELECT count(*), max(ordinal) FROM entries").fetchone()) != before.strip()


def test_a_home_that_was_moved_says_so_and_a_load_mends_it(tmp_path):
    old = history_of(tmp_path / "old", "one-gap").home
    load_and_publish(old)
    expected = contents(old)
    home = Home(tmp_path / "new")
    old.path.rename(home.path)
    with pytest.raises(WarehouseError, match="moved"):
        open_published(home)
    assert load_and_publish(home).records == 0
    assert contents(home) == expected
    open_published(home).close()


def test_before_anything_is_published_one_is_told_what_to_do(tmp_path):
    with pytest.raises(NotPublishedError, match="load"):
        open_published(History(tmp_path / "home").home)


def test_a_second_load_is_refused_and_names_the_first(busy):
    with loading.holding(busy.home), pytest.raises(BusyError, match=f"pid {os.getpid()}"), loading.holding(busy.home):
        pass


def test_a_warehouse_of_other_logs_is_not_loaded_into(tmp_path):
    home = history_of(tmp_path / "home", "one-gap").home
    load_and_publish(home)
    before = contents(home)
    other = History(tmp_path / "other").home
    for log in ("journal.db", "events.db"):
        shutil.copy(other.path / log, home.path / log)
    with pytest.raises(WarehouseError, match="other logs"):
        load_and_publish(home)
    assert contents(home) == before


def test_a_warehouse_of_another_version_is_not_loaded_into(tmp_path):
    home = history_of(tmp_path / "home", "one-gap").home
    load_and_publish(home)
    with duckdb.connect(str(home.warehouse)) as con:
        con.execute("UPDATE load.contract SET fingerprint = 'another'")
    with pytest.raises(WarehouseError, match="another version"):
        load_and_publish(home)


# ---- what is expected ------------------------------------------------------------------------------------------------

ENTRIES = "CREATE OR REPLACE VIEW load.new_entry AS SELECT * REPLACE ({}) FROM events.entry"
FIRST_USAGE = "(SELECT min(ordinal) FROM events.entry WHERE kind = 'usage' AND usage_wh > 0 AND partition = 0)"
OF_FIRST = f"partition = 0 AND ordinal = {FIRST_USAGE} AND n = 0"
# For each expectation, what breaks it.
CORRUPTIONS = {
    "balance_is_the_sum_of_its_entries": "UPDATE main.balances SET balance_tiyin = balance_tiyin + 1 WHERE partition = 0",
    "balance_is_the_sum_of_its_parts": "UPDATE main.balances SET payment_tiyin = payment_tiyin + 1 WHERE partition = 0",
    "account_has_one_balance": "INSERT INTO main.balances FROM main.balances LIMIT 1",
    "entry_follows_on_the_balance_before": ENTRIES.format(f"balance_tiyin + if({OF_FIRST}, 1, 0) AS balance_tiyin"),
    "entry_id_is_used_once": """
        CREATE OR REPLACE VIEW load.new_entry AS FROM events.entry UNION ALL (FROM events.entry LIMIT 1)""",
    "entry_is_complete": ENTRIES.format(f"if({OF_FIRST}, NULL, account_id) AS account_id"),
    "entry_kind_is_known": ENTRIES.format(f"if({OF_FIRST}, 'gift', kind) AS kind"),
    "entry_has_the_sign_of_its_kind": ENTRIES.format(f"if({OF_FIRST}, 1, amount_tiyin) AS amount_tiyin"),
    "usage_is_the_difference_of_its_registers": ENTRIES.format(f"if({OF_FIRST}, usage_wh + 1, usage_wh) AS usage_wh"),
    "entry_is_of_an_account_there_is": ENTRIES.format(f"if({OF_FIRST}, 'nobody', account_id) AS account_id"),
    "load_begins_where_the_one_before_ended": "UPDATE load.progress SET first_position = 1 WHERE partition = 1",
    "every_position_is_kept": "DELETE FROM journal.tick WHERE ordinal = (SELECT max(ordinal) FROM journal.tick)",
    "file_is_as_the_manifest_says": "UPDATE load.files SET rows = rows + 1 WHERE kind = 'entry'",
    "reading_is_of_an_account_that_is_named": (
        "CREATE OR REPLACE VIEW load.new_reading AS SELECT * REPLACE ('nobody' AS account_id) FROM journal.reading LIMIT 1"
    ),
    "payment_ends_somewhere": """
        INSERT INTO journal.payment
        SELECT * REPLACE ('another' AS payment_id, ordinal + 1 AS ordinal) FROM journal.payment LIMIT 1""",
    "refused_says_why": "UPDATE events.refused SET reason = ''",
    "held_is_released_once": "INSERT INTO events.released (held_id, outcome) VALUES ('0-0-0', 'settled')",
    "tick_follows_tick": "UPDATE journal.tick SET ticked_at = '2001-01-01' WHERE ordinal > 100",
    "clock_does_not_stand_still": (
        "UPDATE journal.tick SET ticked_at = ticked_at + INTERVAL 2 HOUR "
        "WHERE ordinal > (SELECT median(ordinal) FROM journal.tick WHERE partition = 3)"
    ),
    "few_readings_are_refused": """
        CREATE TABLE one AS FROM events.refused WHERE record_kind = 'reading' LIMIT 1;
        INSERT INTO events.refused SELECT one.* FROM one, range(60);
        CREATE OR REPLACE VIEW load.new_reading AS
        SELECT * REPLACE ((SELECT record ->> 'meter_id' FROM one) AS meter_id) FROM journal.reading LIMIT 101""",
}


@pytest.fixture
def candidate(busy, tmp_path) -> Path:
    return Path(shutil.copy(busy.home.published, tmp_path / "candidate.duckdb"))


def test_what_was_loaded_meets_every_critical_expectation(candidate, tmp_path):
    assert {f.name for f in expectations.validate(candidate, tmp_path, 0)} <= {"few_readings_are_refused"}


def test_every_expectation_has_its_corruption(candidate):
    with duckdb.connect(str(candidate), read_only=True) as con:
        assert {e.name for e in expectations.expectations(con, 0)} == set(CORRUPTIONS)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_candidate_breaks_the_expectation_and_its_rows_are_shown(name, candidate):
    with duckdb.connect(str(candidate)) as con:
        con.execute(CORRUPTIONS[name])
        wanted = [e for e in expectations.expectations(con, 0) if e.name == name]
        (finding,) = expectations.evaluate(con, wanted)
    assert finding.broken >= 1
    assert finding.rows


def test_a_critical_finding_stops_and_a_warning_does_not(candidate, tmp_path):
    with duckdb.connect(str(candidate)) as con:
        con.execute(CORRUPTIONS["clock_does_not_stand_still"])
    assert "clock_does_not_stand_still" in [f.name for f in expectations.validate(candidate, tmp_path, 0)]
    with duckdb.connect(str(candidate)) as con:
        con.execute(CORRUPTIONS["balance_is_the_sum_of_its_parts"])
    with pytest.raises(expectations.ExpectationError, match=r"balance_is_the_sum_of_its_parts: \d+ broken") as failed:
        expectations.validate(candidate, tmp_path, 0)
    assert [f.name for f in failed.value.findings] == ["balance_is_the_sum_of_its_parts"]


def test_an_expectation_that_cannot_be_evaluated_has_not_been_met(candidate):
    with duckdb.connect(str(candidate), read_only=True) as con:
        for sql in ("SELECT * FROM nowhere", "SELECT error('boom') AS x FROM main.balances"):
            with pytest.raises(expectations.ValidationError, match="could not be evaluated"):
                expectations.evaluate(con, [expectations.Expectation("broken", "it is broken", sql)])


def test_a_parquet_file_that_is_gone_is_no_clean_bill(tmp_path):
    home = history_of(tmp_path / "home", "one-gap").home
    load_and_publish(home)
    next(iter((home.lake / "entry").rglob("*.parquet"))).unlink()
    with pytest.raises(expectations.ValidationError, match="nothing was published"):
        expectations.validate(publish.make_candidate(home), home.scratch, 0)


def test_what_an_earlier_run_did_not_pass_is_looked_at_again(tmp_path):
    history = History(tmp_path / "home")
    one, two = in_parts("one-gap", 2)
    history.append(one)
    with loading.holding(history.home):
        loading.load(history.home)  # and never published
    history.append(two)
    with loading.holding(history.home):
        loading.load(history.home)
    with duckdb.connect(str(history.home.warehouse), read_only=True) as con:
        assert (
            con.execute("SELECT count(*) FROM load.new_entry").fetchone()
            == con.execute("SELECT count(*) FROM events.entry").fetchone()
        )


def test_reconciliation_finds_a_balance_and_a_link_that_are_wrong(candidate):
    with duckdb.connect(str(candidate)) as con:
        con.execute("UPDATE main.balances SET balance_tiyin = balance_tiyin - 7 WHERE partition = 1")
        con.execute(
            f"CREATE TABLE kept AS SELECT * REPLACE (balance_tiyin + if({OF_FIRST}, 1, 0) AS balance_tiyin) FROM events.entry"
        )
        con.execute("CREATE OR REPLACE VIEW events.entry AS FROM kept")
        found = reconcile_balances(con)
        wrong = con.execute("SELECT count(*) FROM main.balances WHERE partition = 1").fetchone()[0]
    assert sum(row["balance_tiyin"] != row["recomputed_tiyin"] for row in found) == wrong
    assert any(row["broken_links"] for row in found)


# ---- the statement ---------------------------------------------------------------------------------------------------


def months_between(first: date, last: date) -> list[date]:
    months = [first.replace(day=1)]
    while (following := (months[-1] + timedelta(days=31)).replace(day=1)) <= last:
        months.append(following)
    return months


def test_the_months_of_a_statement_follow_on_each_other(busy):
    with open_published(busy.home) as con:
        for (account,) in con.execute("SELECT account_id FROM balances LIMIT 12").fetchall():
            whole = make_statement(con, account)
            pages = [make_statement(con, account, month) for month in months_between(whole.first_day, whole.last_day)]
            assert all(page.adds_up for page in pages)
            assert pages[0].opening_tiyin == 0
            assert [p.opening_tiyin for p in pages[1:]] == [p.closing_tiyin for p in pages[:-1]]
            assert pages[-1].closing_tiyin == whole.closing_tiyin == whole.account["balance_tiyin"]
            assert sum(p.usage_wh for p in pages) == whole.usage_wh == whole.account["usage_wh"]


def test_each_day_of_a_statement_is_the_sum_of_its_blocks(busy):
    with open_published(busy.home) as con:
        for (account,) in con.execute("SELECT account_id FROM balances").fetchall():
            for usage in make_statement(con, account).usage:
                assert sum(b.usage_wh for b in usage.blocks) == usage.usage_wh
                assert sum(b.amount_tiyin for b in usage.blocks) + usage.rest_tiyin == usage.amount_tiyin


def test_a_charge_that_is_not_what_its_blocks_come_to_is_shown_as_a_rest(candidate):
    with duckdb.connect(str(candidate)) as con:
        con.execute("UPDATE journal.tariff SET price_tiyin_per_kwh = price_tiyin_per_kwh + 1")
        account = con.execute(
            "SELECT account_id FROM entries WHERE kind = 'usage' AND usage_wh > 1000 LIMIT 1"
        ).fetchone()[0]
        page = make_statement(con, account)
    assert not page.explained
    assert page.adds_up


def test_a_statement_that_is_not_the_ledgers_balance_does_not_add_up(candidate):
    with duckdb.connect(str(candidate)) as con:
        con.execute("UPDATE main.balances SET balance_tiyin = balance_tiyin + 1")
        account = con.execute("SELECT account_id FROM balances LIMIT 1").fetchone()[0]
        assert not make_statement(con, account).adds_up


def test_an_account_there_is_not_is_answered_with_those_there_are(busy):
    with open_published(busy.home) as con:
        (account,) = con.execute("SELECT min(account_id) FROM balances").fetchone()
        with pytest.raises(UnknownAccountError, match=account):
            make_statement(con, account + "x")
