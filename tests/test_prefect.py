"""The load on a schedule, by a real Prefect server, pool and worker: one that succeeds, and one that fails for all to see."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import duckdb
import httpx
import pytest

from flows.local import free_port
from tests import whole_homes
from tests.test_flow import environment, processes_of_session
from tests.warehouse_homes import History, in_parts

ROOT = Path(__file__).resolve().parent.parent
QUICK = {  # the worker and the scheduler look every second; nobody looks at the pages
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
}
wait_until = partial(whole_homes.wait_until, every_s=0.2)
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def local_prefect(home, *arguments):
    """The command behind `make prefect`."""
    return [sys.executable, "-m", "flows.local", str(home), *arguments]


def said_by(command):
    """A command that ends by itself."""
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=60)


class Server:
    """A running `make prefect`, asked by its API."""

    def __init__(self, home, port, log):
        self.api = f"http://127.0.0.1:{port}/api"
        command = local_prefect(home.path, "--port", str(port))
        self.log, self.output = log, log.open("wb")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(**QUICK), stdout=self.output, stderr=self.output, start_new_session=True
        )

    def said(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def is_deployed(self):
        assert self.process.poll() is None, self.said()
        return "is deployed" in self.said()

    def ask(self, path, **body):
        return httpx.post(f"{self.api}{path}", json=body, timeout=30, trust_env=False).raise_for_status().json()

    def scheduled(self):
        """The loads that the schedule of prefect.yaml has planned, the next one first."""
        planned = {"state": {"type": {"any_": ["SCHEDULED"]}}}
        loads = {"name": {"any_": ["hourly"]}}
        return self.ask("/flow_runs/filter", flow_runs=planned, deployments=loads, sort="EXPECTED_START_TIME_ASC")

    def bring_forward(self, run_id):
        """Its hour has come: now."""
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}}
        assert self.ask(f"/flow_runs/{run_id}/set_state", state=state)["status"] == "ACCEPT"

    def state(self, run_id):
        run = httpx.get(f"{self.api}/flow_runs/{run_id}", timeout=30, trust_env=False).raise_for_status().json()
        return run["state"]

    def run_now(self):
        """Bring the next planned run forward; the state it ends in."""
        run = wait_until(self.scheduled)[0]
        assert run["auto_scheduled"], "by the schedule, not by hand"
        self.bring_forward(run["id"])
        return wait_until(lambda: (s := self.state(run["id"]))["type"] in FINAL and s)


@pytest.fixture
def history(tmp_path):
    history = History(tmp_path / "home")
    history.append(in_parts("one-gap", 2)[0])
    return history


@pytest.fixture
def server(history, tmp_path):
    started = Server(history.home, free_port(), tmp_path / "log")
    try:
        wait_until(started.is_deployed)
        yield started
    finally:
        started.process.send_signal(signal.SIGINT)
        started.process.wait(60)
        started.output.close()
        for pid in started_by(history.home.path):
            os.kill(pid, signal.SIGKILL)


def started_by(home):
    """The processes that know the home by their environment: whatever Prefect started for it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PREFECT_HOME={home / 'prefect'}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_scheduled_load_succeeds_and_a_broken_one_fails_visibly_with_the_published_file_intact(server, history):
    """One test, for one server: a second one on the home is refused meanwhile, and Ctrl-C ends all that was started."""
    home = history.home
    state = server.run_now()
    assert state["type"] == "COMPLETED", state
    published = home.published.read_bytes()
    break_ledger(history)
    state = server.run_now()
    assert state["type"] == "FAILED"
    assert "balance_is_the_sum_of_its_entries" in state["message"]
    assert home.published.read_bytes() == published

    second = said_by(local_prefect(home.path))
    assert second.returncode == 1
    assert str(server.process.pid) in second.stderr

    assert len(started_by(home.path)) >= 2
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    assert started_by(home.path) == []
    assert processes_of_session(server.process.pid) == []
    assert "the worker has ended" in server.said()


def break_ledger(history):
    """An entry in the log that no rule made, and that no balance counts."""
    with duckdb.connect(str(history.home.published), read_only=True) as con:
        account_id, partition, last = con.execute("SELECT account_id, partition, last_ordinal FROM balances").fetchone()
    columns = {"account_id": account_id, "kind": "payment", "usage_wh": 0, "amount_tiyin": 500, "balance_tiyin": 1}
    history.append_event(partition, "entry", ordinal=last, n=77, **columns)


def test_where_there_is_no_home_it_says_so(tmp_path):
    done = said_by(local_prefect(tmp_path))
    assert done.returncode == 2
    assert "init" in done.stderr


def test_interrupted_before_the_server_is_up_it_ends_as_well(tmp_path):
    home = History(tmp_path / "home").home
    started = Server(home, free_port(), tmp_path / "log")
    wait_until(lambda: "starting the server" in started.said())
    started.process.send_signal(signal.SIGINT)
    assert started.process.wait(60) == 0
    started.output.close()
    assert started_by(home.path) == []
    assert "Traceback" not in started.said().partition("the server has ended")[2]
