"""`hisob run`: real processes, killed again and again; what was given is settled once, and nothing is left behind."""

import json
import os
import resource
import signal
import subprocess
import threading
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count

import pytest

from connectors.locks import hold, holders
from connectors.log.rows import follow
from connectors.log.sqlite import open_log
from hisob.supervisor import Service, pause_after, supervising
from streams.arrivals import Arrivals
from streams.settle import run_settle
from tests import whole_homes
from tests.journals import journal_of
from tests.whole_homes import command, environment, hisob, new_home

wait_until = partial(whole_homes.wait_until, every_s=0.2)
KEPT = ("clock", "settle", "notify")
SOON_S = 15  # what an orderly end may take on a busy machine


def home_with_accounts(path):
    """A home with accounts A-0 to A-9 since yesterday."""
    home = new_home(path)
    since = datetime.now(UTC) - timedelta(days=1)
    row = {"effective_at": since, "district": "d", "tariff": "household", "opening_register_wh": 0}
    with closing(Arrivals(home, "test")) as arrivals:
        arrivals.take({"account": [{"account_id": f"A-{n}", "meter_id": f"M-{n}", **row} for n in range(10)]})
    return home


@pytest.fixture
def home(tmp_path):
    return home_with_accounts(tmp_path / "home")


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """One run, for the tests that follow each other; the last ends it."""
    home = home_with_accounts(tmp_path_factory.mktemp("live") / "home")
    with running(home) as run:
        yield run


class Running:
    """`hisob run` on a home, and what it has said so far."""

    def __init__(self, home, **settings):
        self.home, self.lines = home, []
        self.given, self.numbers = set(), count()
        settings = {"HISOB_LOAD_MINUTES": "0", **settings}
        self.process = subprocess.Popen(
            command(home.path, "run"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(**settings),
        )  # fmt: skip
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()

    def said(self, text):
        return any(text in line for line in list(self.lines))

    def give(self):
        """Payments into the inbox; they are to be settled."""
        self.given |= drop_payments(self.home, next(self.numbers))

    def has_settled_all(self):
        return payments_settled(self.home) == len(self.given)

    def pids(self):
        return {name: pid for name, pid in holders(self.home.run).items() if pid}

    def has_all(self):
        return set(KEPT) <= set(self.pids())


@contextmanager
def running(home, **settings):
    run = Running(home, **settings)
    try:
        wait_until(run.has_all)
        yield run
    finally:
        run.process.kill()
        run.process.wait()
        for pid in run.pids().values():  # gone with it, unless the test has failed
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def drop(home, name, header, *rows):
    new = home.path / f"new-{name}"
    new.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    new.rename(home.inbox / name)


def drop_payments(home, number, rows=5):
    now = datetime.now(UTC).isoformat()
    rows = [f"P-{number}-{n},A-{n % 10},{now},100" for n in range(rows)]
    drop(home, f"payment-{number}.csv", "payment_id,account_id,paid_at,amount_tiyin", *rows)
    return {row.split(",")[0] for row in rows}


def payments_settled(home):
    """How many payments have become entries."""
    with closing(open_log(home.events, readonly=True)) as events:
        found = [batch.column("kind").to_pylist() for _, batch in follow(events, "entry", {}, until_end=True)]
    return sum(kinds.count("payment") for kinds in found)


def payments_journalled(home):
    return [record["payment_id"] for partition in journal_of(home) for kind, record in partition if kind == "payment"]


# ---- one run, and what happens to it ---------------------------------------------------------------------------------
def test_what_is_dropped_and_what_is_paid_is_settled(live):
    live.give()
    done = hisob(live.home.path, "pay", "A-1", "12.50", "--json")
    live.given.add(json.loads(done.stdout)["payment_id"])
    wait_until(live.has_settled_all)


def test_nothing_is_lost_or_doubled_though_each_process_is_killed(live):
    wait_until(live.has_all)
    for name in KEPT:
        pid = live.pids()[name]
        live.give()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda name=name, pid=pid: live.pids().get(name) not in {pid, None})
    wait_until(live.has_settled_all)
    assert sorted(payments_journalled(live.home)) == sorted(live.given)
    assert live.said("settle: was killed by SIGKILL; it is started again at once")


def test_status_tells_from_outside_who_runs_and_how_often_it_was_started_again(live):
    found = json.loads(hisob(live.home.path, "status", "--json").stdout)
    assert {name: p["restarts"] for name, p in found["processes"].items()} == dict.fromkeys(KEPT, 1)
    assert found["holders"]["run"] == live.process.pid
    assert found["processes"]["settle"]["pid"] == found["holders"]["settle"]
    assert found["lag"]["settle"] == 0


def test_a_second_run_is_refused_and_names_the_first(live):
    refused = hisob(live.home.path, "run")
    assert refused.returncode == 1
    assert f"pid {live.process.pid}" in refused.stderr


def test_a_full_disk_is_said_by_name_and_things_go_on_when_there_is_room(live):
    live.give()
    wait_until(live.has_settled_all)  # both are at work
    clock, settle = (live.pids()[name] for name in ("clock", "settle"))
    limit_files(clock, 4096)
    limit_files(settle, 4096)
    live.give()
    wait_until(lambda: any("clock:" in line and "tried again" in line for line in list(live.lines)))
    limit_files(clock, resource.RLIM_INFINITY)  # now the journal has room, the events have not
    wait_until(lambda: sorted(payments_journalled(live.home)) == sorted(live.given))
    wait_until(lambda: live.said("settle: ended with exit code 1"))  # the next one has no limit
    wait_until(live.has_settled_all)
    assert any("settle: hisob: The disk of" in line for line in list(live.lines))


def test_sigterm_ends_everything_within_seconds_and_leaves_nobody_behind(live):
    wait_until(live.has_all)
    children = live.pids()
    live.process.terminate()
    assert live.process.wait(SOON_S) == 0
    assert not [name for name, pid in children.items() if is_alive(pid)]
    wait_until(lambda: live.said("all processes have ended"))
    assert holders(live.home.run) == {}
    assert run_settle(live.home, drain=True)
    assert live.has_settled_all()


# ---- other runs ------------------------------------------------------------------------------------------------------
def test_a_run_that_is_killed_leaves_nobody_behind_and_the_next_takes_over_at_once(home):
    with running(home) as first:
        children = {name: pid for name, pid in first.pids().items() if name != "run"}
        first.process.kill()
        first.process.wait()
        with running(home, HISOB_LOAD_MINUTES="1") as second:
            wait_until(lambda: not any(is_alive(pid) for pid in children.values()), SOON_S)
            wait_until(lambda: second.has_all() and not set(second.pids().values()) & set(children.values()))
            second.give()
            wait_until(second.has_settled_all)
            wait_until(lambda: second.said("load: Published"))
            second.process.send_signal(signal.SIGINT)  # as Ctrl-C
            assert second.process.wait(SOON_S) == 0


def limit_files(pid, size):
    """How large the files of a process may grow."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))


# ---- the supervisor by itself ----------------------------------------------------------------------------------------
@pytest.fixture
def supervise(home):
    """A supervisor of services, and what it says."""
    with ExitStack() as stack:

        def supervise(*services):
            said = []
            return stack.enter_context(supervising(home.path, services, lambda *line: said.append(line))), said

        yield supervise


def test_what_somebody_else_runs_is_left_to_them_and_taken_over_when_they_have_ended(home, supervise, monkeypatch):
    monkeypatch.setattr("hisob.supervisor.AGAIN_S", 0.0)
    lock = home.run / "settle.lock"
    supervisor, said = supervise(Service("settle", ("status",), lock))
    with hold(lock, "settle"):
        assert supervisor.step()
        assert not supervisor.step()
        assert supervisor.processes[0].as_dict() == {"state": "elsewhere", "pid": os.getpid(), "restarts": 0}
    assert f"runs already, as pid {os.getpid()}" in said[0][1]
    assert supervisor.step()
    assert supervisor.processes[0].state == "running"


def test_what_a_process_says_is_handed_on_with_its_name_and_what_fails_on_schedule_is_tried_again(supervise):
    wrong = Service("load", ("query", "SELECT 1"), every_s=3600)  # nothing is published
    supervisor, said = supervise(wrong)
    wait_until(lambda: supervisor.step() and supervisor.processes[0].state == "waiting")
    wait_until(lambda: ("load", "ended with exit code") in [(name, text[:20]) for name, text in said])
    wait_until(lambda: any(text.startswith("hisob: ") for _, text in said))
    supervisor.processes[0].due_s = 0.0
    assert supervisor.step()
    assert supervisor.processes[0].state == "running"


def test_a_process_that_cannot_be_started_ends_nothing_and_is_tried_again(supervise, monkeypatch):
    supervisor, said = supervise(Service("load", ("status",), every_s=3600))
    with monkeypatch.context() as patched:
        patched.setattr("subprocess.Popen", no_memory)
        assert supervisor.step()
    assert said == [("load", "could not be started: [Errno 12] Cannot allocate memory; it is tried again in 30 s")]
    supervisor.processes[0].due_s = 0.0
    assert supervisor.step()
    assert supervisor.processes[0].state == "running"


def no_memory(*_, **__):
    raise OSError(12, "Cannot allocate memory")


def test_pauses_grow_only_for_what_keeps_dying():
    assert [pause_after(failures) for failures in range(6)] == [0, 0, 0.5, 1, 2, 4]
    assert pause_after(50) == 30
