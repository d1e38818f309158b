"""The scheduled load and its three commands: load, query, statement; what they print, refuse and exit with."""

import csv
import inspect
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import yaml

from tests.warehouse_homes import History, history_of, in_parts, load_and_publish

ROOT = Path(__file__).resolve().parent.parent


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HISOB_", "PREFECT_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "TERM": "dumb", **more}


def hisob(home, *arguments, **more):
    command = [sys.executable, "-m", "hisob", "--home", str(home.path), *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(**more),
        check=False,
        start_new_session=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done


def processes_of_session(session: int) -> list[str]:
    """The processes that a command left behind, by their names."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        name, _, rest = text.partition(") ")
        if int(rest.split()[3]) == session:
            found.append(name)
    return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> History:
    """A home with history, published; not to be changed."""
    history = history_of(tmp_path_factory.mktemp("loaded") / "home", "one-gap")
    load_and_publish(history.home)
    return history


# ---- the flow --------------------------------------------------------------------------------------------------------


def test_the_command_runs_the_flow_with_no_server_and_starts_none(tmp_path):
    home = history_of(tmp_path / "home", "one-gap").home
    command = [sys.executable, "-m", "hisob", "--home", str(home.path), "load", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    ) as running:
        said, complaints = running.communicate(timeout=120)
        assert processes_of_session(running.pid) == []
    outcome = json.loads(said)
    assert (running.returncode, outcome["load"], outcome["new"], outcome["waiting"]) == (0, 1, True, 0)
    assert outcome["records"] == sum(outcome["rows"].values()) > 0
    assert complaints == ""
    with duckdb.connect(str(home.published), read_only=True) as con:
        assert con.execute("SELECT count(*) FROM entries").fetchone() == (outcome["rows"]["entry"],)
    again = json.loads(hisob(home, "load", "--json").stdout)
    assert (again["records"], again["new"]) == (0, False)


def test_called_as_a_flow_without_a_server_it_says_so_at_once_and_starts_none(tmp_path):
    home = History(tmp_path / "home").home
    script = f"from flows.load_history import load_history\nload_history({str(home.path)!r})"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(PREFECT_HOME=str(tmp_path / "prefect")),
        start_new_session=True,
    ) as running:
        _, complaints = running.communicate(timeout=60)
        assert processes_of_session(running.pid) == []
    assert running.returncode != 0
    assert "PREFECT_API_URL" in complaints
    assert not home.published.exists()


def test_within_a_flow_run_each_step_is_a_task(monkeypatch):
    from flows import load_history as module

    class Step:
        def __call__(self, number):
            return f"task {number}"

        @staticmethod
        def fn(number):
            return f"plain {number}"

    assert module.run(Step(), 1) == "plain 1"
    monkeypatch.setattr(module.FlowRunContext, "get", object)
    assert module.run(Step(), 2) == "task 2"


DESCRIBED = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("deployment", DESCRIBED["deployments"], ids=lambda d: d["name"])
def test_a_deployment_names_a_flow_there_is_and_gives_it_what_it_asks_for(deployment):
    from prefect.flows import load_flow_from_entrypoint

    path, _, name = deployment["entrypoint"].partition(":")
    flow = load_flow_from_entrypoint(f"{ROOT / path}:{name}")
    assert set(deployment["parameters"]) == set(inspect.signature(flow.fn).parameters)
    assert deployment["schedules"][0]["cron"]
    assert deployment["work_pool"]["name"] == "local"
    assert "directory" in DESCRIBED["pull"][0]["prefect.deployments.steps.set_working_directory"]


def test_a_failed_expectation_publishes_nothing_exits_1_and_is_not_forgotten(tmp_path):
    history = History(tmp_path / "home")
    home = history.home
    one, two = in_parts("one-gap", 2)
    history.append(one)
    load_and_publish(home)
    published = home.published.read_bytes()
    with duckdb.connect(str(home.published), read_only=True) as con:
        account = con.execute("SELECT account_id, partition, last_ordinal FROM balances LIMIT 1").fetchone()
    history.append_event(
        account[1],
        "entry",
        ordinal=account[2],
        n=77,
        account_id=account[0],
        kind="payment",
        to_at=None,
        usage_wh=0,
        amount_tiyin=500,
        balance_tiyin=1,
    )
    failed = hisob(home, "load")
    assert failed.returncode == 1
    for name in ("balance_is_the_sum_of_its_entries", "entry_is_complete"):
        assert name in failed.stderr
    assert f"{account[1]}-{account[2]}-77" in failed.stderr
    assert home.published.read_bytes() == published
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        assert con.execute("SELECT count(*) FROM events.entry WHERE n = 77").fetchone() == (1,), "the load stays"
    history.append(two)
    again = hisob(home, "load")
    assert again.returncode == 1
    assert "entry_is_complete" in again.stderr
    assert home.published.read_bytes() == published


def test_a_load_on_a_home_that_another_holds_is_refused_naming_it(loaded):
    from warehouse.load import holding

    with holding(loaded.home):
        refused = hisob(loaded.home, "load")
    assert refused.returncode == 1
    assert f"pid {os.getpid()}" in refused.stderr


def test_a_load_where_there_is_no_home_is_wrong_use(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hisob", "--home", str(tmp_path), "load"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 2
    assert "init" in done.stderr


# ---- query -----------------------------------------------------------------------------------------------------------


def test_query_prints_a_table_json_and_csv_of_the_same_rows(loaded):
    sql = "SELECT account_id, balance_tiyin, forecast_at, soum(balance_tiyin) AS soum FROM balances ORDER BY account_id"
    rows = json.loads(hisob(loaded.home, "query", sql, "--json").stdout)
    lines = list(csv.DictReader(io.StringIO(hisob(loaded.home, "query", sql, "--csv").stdout)))
    assert rows
    assert [{k: str(v) for k, v in row.items()} for row in rows] == lines
    assert rows[0]["forecast_at"].endswith("+00:00")
    assert rows[0]["soum"].replace(".", "") == str(rows[0]["balance_tiyin"])
    table = hisob(loaded.home, "query", sql)
    assert all(row["account_id"] in table.stdout for row in rows)
    assert json.loads(hisob(loaded.home, "query", f"FROM ({sql}) WHERE false", "--json").stdout) == []


def test_a_row_wider_than_the_terminal_is_printed_a_column_a_line(loaded):
    said = hisob(loaded.home, "query", "FROM balances LIMIT 1", COLUMNS="80").stdout
    assert [line.split()[0] for line in said.splitlines()[1:4]] == ["account_id", "partition", "balance_tiyin"]


@pytest.mark.parametrize(
    "sql",
    ["SELEC 1", "SELECT nothing FROM entries", "SELECT error('boom')", "DELETE FROM balances", "DROP VIEW entries"],
)
def test_wrong_sql_is_explained_and_changes_nothing(loaded, sql):
    before = loaded.home.published.read_bytes()
    done = hisob(loaded.home, "query", sql)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error" in done.stderr
    assert loaded.home.published.read_bytes() == before


def test_query_and_statement_before_a_load_say_what_to_do(tmp_path):
    home = History(tmp_path / "home").home
    for arguments in (("query", "SELECT 1"), ("statement", "A")):
        done = hisob(home, *arguments)
        assert done.returncode == 1
        assert f"hisob --home {home.path} load" in done.stderr


# ---- statement -------------------------------------------------------------------------------------------------------


def test_a_statement_adds_up_in_text_and_json(loaded):
    (account,) = json.loads(
        hisob(loaded.home, "query", "SELECT account_id FROM balances ORDER BY entries DESC LIMIT 1", "--json").stdout
    )
    account = account["account_id"]
    page = json.loads(hisob(loaded.home, "statement", account, "--json").stdout)
    sums = page["credits_tiyin"] + page["usage_tiyin"] + page["corrections_tiyin"]
    assert page["opening_tiyin"] + sums == page["closing_tiyin"] == page["account"]["balance_tiyin"]
    assert (page["adds_up"], page["explained"]) == (True, True)
    text = hisob(loaded.home, "statement", account)
    assert text.returncode == 0
    for words in (f"Account {account}", "Usage by ", "opening balance", "closing balance", "It adds up"):
        assert words in text.stdout
    whole, rest = divmod(abs(page["closing_tiyin"]), 100)
    assert f"{whole:,}.{rest:02}".replace(",", " ") in text.stdout
    month = page["usage"][0]["first_day"][:7]
    of_month = json.loads(hisob(loaded.home, "statement", account, "--month", month, "--json").stdout)
    assert of_month["month"] == month
    assert of_month["opening_tiyin"] == 0


def test_a_statement_of_nobody_or_of_no_month_is_explained(loaded):
    nobody = hisob(loaded.home, "statement", "nobody")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "no account nobody" in nobody.stderr
    wrong = hisob(loaded.home, "statement", "nobody", "--month", "2025-13")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "2025-13" in wrong.stderr
