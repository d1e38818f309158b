"""The live clock and the inbox: each tick in its turn, never back; each file once, or refused with a word why."""

import datetime as dt
import os
import resource
import time
from contextlib import closing, nullcontext

import pytest

from connectors.locks import AlreadyRunningError, hold
from hisob.cli import main
from streams.arrivals import Arrivals
from streams.clock import QUARTER, Patience, Ticker, run_clock
from streams.inbox import Inbox, kind_of
from streams.ingest import ingest_files
from tests.journals import bare_home, journal_of
from tests.stories import microseconds
from tests.whole_homes import finish, new_home, start, wait_until

AT = dt.datetime(2025, 5, 1, 10, tzinfo=dt.UTC)
SECOND, MINUTE = dt.timedelta(seconds=1), dt.timedelta(minutes=1)
ACCOUNTS = "account_id,effective_at,meter_id,district,tariff\nA,2025-05-01T09:00:00Z,M,d,t\n"
READINGS = "meter_id,read_at,register_wh\nM,2025-05-01T09:30:00Z,5\nM,2025-05-01T12:00:00Z,7\n"
PAYMENTS = "payment_id,account_id,paid_at,amount_tiyin\nP,A,2025-05-01T10:00:00Z,100\n"


@pytest.fixture
def home(tmp_path):
    home = bare_home(tmp_path / "home")
    for folder in (home.run, home.scratch):
        folder.mkdir()
    return home


@pytest.fixture
def arrivals(home):
    with closing(Arrivals(home, "clock")) as arrivals:
        arrivals.take({"reading": [{"meter_id": "M", "read_at": AT, "register_wh": 5}]})
        yield arrivals


def ticks_of(home):
    return [record["ticked_at"] for kind, record in journal_of(home)[0] if kind == "tick"]


def records_of(home, kind):
    return [record for partition in journal_of(home) for k, record in partition if k == kind]


# ---- ticks -----------------------------------------------------------------------------------------------------------
def test_each_quarter_of_an_hour_is_ticked_once(home, arrivals):
    ticker = Ticker(arrivals, lambda _: None)
    now, made = AT - MINUTE, 0
    while now < AT + 2 * QUARTER + MINUTE:
        made += ticker.look(now)
        now += 7 * SECOND
    assert made == 3
    assert ticks_of(home) == [microseconds(AT + n * QUARTER) for n in range(3)]


def test_missed_ticks_are_said_and_not_made_up(home, arrivals):
    said = []
    ticker = Ticker(arrivals, said.append)
    assert ticker.look(AT + SECOND)
    assert not ticker.look(AT + 9 * QUARTER + 5 * MINUTE)  # nobody was there, nor at the beginning of this quarter
    assert ticker.look(AT + 10 * QUARTER + SECOND)
    assert ticks_of(home) == [microseconds(AT), microseconds(AT + 10 * QUARTER)]
    assert any("9 ticks after 2025-05-01T10:00:00Z were missed" in text for text in said)


def test_a_restart_right_after_a_quarter_is_no_miss(home, arrivals):
    assert Ticker(arrivals, lambda _: None).look(AT + SECOND)
    assert Ticker(arrivals, lambda _: None).look(AT + QUARTER + 30 * SECOND)
    assert not Ticker(arrivals, lambda _: None).look(AT + QUARTER + 40 * SECOND)
    assert len(ticks_of(home)) == 2


def test_a_clock_stepped_back_makes_no_tick_until_it_is_past_the_last_one(home, arrivals):
    said = []
    ticker = Ticker(arrivals, said.append)
    ticker.look(AT + 4 * QUARTER + SECOND)
    said.clear()
    for n in range(4):  # an hour back
        assert not ticker.look(AT + n * QUARTER + SECOND)
    assert not ticker.look(AT + 4 * QUARTER + 2 * SECOND)
    assert ticker.look(AT + 5 * QUARTER + SECOND)
    assert ticks_of(home) == [microseconds(AT + n * QUARTER) for n in (4, 5)]
    assert sum("no tick is made until" in text for text in said) == 1


def test_a_full_disk_is_said_once_and_the_tick_made_when_there_is_room(home, arrivals, monkeypatch):
    said = []
    ticker, patience = Ticker(arrivals, said.append), Patience(said.append)
    with monkeypatch.context() as full:
        full.setattr("connectors.log.sqlite.SqliteTransaction.append", disk_full)
        for _ in range(3):
            with patience:
                ticker.look(AT + SECOND)
    assert len(said) == 1
    assert "full" in said[0]
    with patience:
        assert ticker.look(AT + 3 * SECOND)
    assert "works again" in said[-1]
    assert ticks_of(home) == [microseconds(AT)]


def disk_full(*_):
    raise OSError(28, "No space left on device: full")


def test_beside_a_live_clock_the_command_ingest_makes_no_ticks(tmp_path, monkeypatch):
    home = new_home(tmp_path / "home")
    for number, is_live in enumerate((True, False)):
        path = tmp_path / f"reading-{number}.csv"
        path.write_text(READINGS.replace("M,", f"M{number},"), encoding="utf-8")
        monkeypatch.setattr("sys.argv", ["hisob", "--home", str(home.path), "ingest", f"reading={path}"])
        with hold(home.clock_lock, "clock") if is_live else nullcontext(), pytest.raises(SystemExit):
            main()
        assert bool(ticks_of(home)) is not is_live


def test_one_alone_holds_the_lease(home):
    with hold(home.clock_lock, "clock"), pytest.raises(AlreadyRunningError, match=f"pid {os.getpid()}"):
        run_clock(home, makes_ticks=True, batch_rows=1, say=print)


# ---- the inbox -------------------------------------------------------------------------------------------------------
@pytest.fixture
def inbox(home):
    said = []
    inbox = Inbox(home, batch_rows=1 << 16, makes_ticks=False, say=said.append)
    inbox.said = said
    return inbox


def drop(home, name, text):
    new = home.path / f"new-{name}"
    new.write_text(text, encoding="utf-8")
    new.rename(home.inbox / name)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("reading.csv", "reading"), ("readings-2.ndjson", "reading"), ("meter_exchange_1.parquet", "meter_exchange"),
        ("accounts.csv", "account"), ("reading.txt", None), ("my-reading.csv", None), ("tick.csv", None),
    ],
)  # fmt: skip
def test_a_file_is_named_by_its_kind(name, kind):
    assert kind_of(name) == kind


def test_files_complete_at_once_are_journalled_together_in_order_of_arrival_without_ticks(home, inbox):
    drop(home, "reading.csv", READINGS)
    drop(home, "accounts.csv", ACCOUNTS)
    inbox.look(time.time() + 2)
    assert names_in(home.inbox) == []
    assert names_in(home.inbox / "taken") == ["accounts.csv", "reading.csv"]
    assert [r["account_id"] for r in records_of(home, "reading")] == ["A", "A"]  # the account came first
    assert ticks_of(home) == []


def test_by_the_journals_clock_the_files_make_their_ticks(home):
    drop_into = Inbox(home, batch_rows=1 << 16, makes_ticks=True, say=lambda _: None)
    drop(home, "reading.csv", READINGS)
    drop_into.look(time.time() + 2)
    assert len(ticks_of(home)) == 11  # from 9:30 to 12:00


def test_a_file_that_is_still_written_to_is_left_alone(home, inbox):
    (home.inbox / "reading.csv").write_text(READINGS[:40], encoding="utf-8")
    for name in (".reading.csv", "reading.csv.tmp", "reading.csv.part"):
        (home.inbox / name).write_text(READINGS, encoding="utf-8")
    written_s = (home.inbox / "reading.csv").stat().st_mtime
    inbox.look(written_s + 0.1)
    inbox.look(written_s + 0.9)
    assert records_of(home, "reading") == []
    (home.inbox / "reading.csv").write_text(READINGS, encoding="utf-8")
    inbox.look((home.inbox / "reading.csv").stat().st_mtime + 0.5)
    assert records_of(home, "reading") == []
    inbox.look((home.inbox / "reading.csv").stat().st_mtime + 1.1)
    assert len(records_of(home, "reading")) == 2
    assert len(names_in(home.inbox)) == 3


def test_what_cannot_be_taken_is_refused_with_a_word_why_and_stops_no_other(home, inbox):
    drop(home, "reading-1.csv", "meter_id,register_wh\nM,5\n")
    drop(home, "holiday.csv", "what,is,this\n")
    drop(home, "account.csv", ACCOUNTS)
    drop(home, "payment.csv", PAYMENTS + "P2,A,2025-05-01T10:00:00Z,1.5\n")
    inbox.look(time.time() + 2)
    assert names_in(home.inbox / "taken") == ["account.csv", "payment.csv", "payment.csv.txt"]
    refused = home.inbox / "refused"
    assert names_in(refused) == ["holiday.csv", "holiday.csv.txt", "reading-1.csv", "reading-1.csv.txt"]
    assert "read_at" in (refused / "reading-1.csv.txt").read_text()
    assert "by its kind" in (refused / "holiday.csv.txt").read_text()
    assert "not_an_integer" in (home.inbox / "taken" / "payment.csv.txt").read_text()
    assert len(records_of(home, "payment")) == len(records_of(home, "account")) == 1


def test_a_file_that_was_journalled_but_not_moved_is_journalled_once(home, inbox):
    drop(home, "payment.csv", PAYMENTS)
    ingest_files(home, [("payment", home.inbox / "payment.csv")], makes_ticks=False)  # and killed before it was moved
    inbox.look(time.time() + 2)
    drop(home, "payment.csv", PAYMENTS)  # and once more under the same name
    inbox.look(time.time() + 2)
    assert len(records_of(home, "payment")) == 1
    assert names_in(home.inbox / "taken") == ["payment.1.csv", "payment.csv"]


def work(home, log):
    def say(text):
        with log.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    run_clock(home, makes_ticks=True, batch_rows=1 << 16, say=say)


def test_a_full_disk_stops_the_inbox_only_while_it_is_full(home, tmp_path):
    """A process of its own, whose files may not grow for a while."""
    log, unlimited = tmp_path / "said.txt", resource.RLIM_INFINITY
    log.touch()
    process = start(work, home, log)
    wait_until((home.inbox / "taken").exists)
    _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, most))
    drop(home, "payment.csv", PAYMENTS)
    wait_until(lambda: "tried again" in log.read_text())
    assert names_in(home.inbox) == ["payment.csv"]
    assert records_of(home, "payment") == []
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (unlimited, most))
    wait_until(lambda: "works again" in log.read_text())
    wait_until(lambda: names_in(home.inbox) == [])
    assert len(records_of(home, "payment")) == 1
    process.terminate()
    finish(process)
