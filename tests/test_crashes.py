"""Whatever is killed, stopped or damaged, and whenever: the same journal gives the same events, or settle says what is wrong.

HISOB_TEST_KILLS says how many processes are killed (20).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections import defaultdict
from contextlib import closing
from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from accounting.events import Settled
from connectors.locks import AlreadyRunningError, hold
from connectors.log import Row
from connectors.log.body import KIND_NAMES, _plain, decode, unpack
from connectors.log.rows import follow
from connectors.log.sqlite import SqliteTransaction, _checksum, create_log, open_log
from streams import settle as settling
from streams.ingest import ingest_files
from streams.pipeline import SettleError
from streams.settle import run_settle
from tests.journals import journal_of, rows_of
from tests.whole_homes import (
    PARTITIONS,
    TIMEOUT_S,
    case,
    children_of,
    copied,
    digest_of,
    finish,
    hisob,
    ingest,
    is_free,
    is_settled,
    kill_at_random,
    new_home,
    running,
    seconds_of,
    settle,
    settled_records,
    start,
    wait_until,
)

KILLS = int(os.environ.get("HISOB_TEST_KILLS", "20"))
KILLS_A_HOME = 3
FOLDER = case("adversary-12")
BATCH_ROWS, TURN = 8, 50  # the journal: thousands of rows, written in some twenty turns


@pytest.fixture(scope="module")
def journalled(tmp_path_factory):
    """A home with a journal and no events yet. Not to be changed."""
    home = new_home(tmp_path_factory.mktemp("journalled") / "home")
    ingest(home, FOLDER, BATCH_ROWS, TURN)
    return home


@pytest.fixture(scope="module")
def settled(journalled, tmp_path_factory):
    """The same, settled without interruption. Not to be changed."""
    home = copied(journalled, tmp_path_factory.mktemp("settled") / "home")
    settle(home)
    return home


@pytest.fixture(scope="module")
def digest(settled):
    return digest_of(settled)


def columns_of(home):
    """Of each partition of the journal the kinds in their order, and the records of each kind."""
    partitions = []
    with closing(open_log(home.journal, readonly=True)) as journal:
        for n in range(journal.partitions):
            kinds, batches = [], defaultdict(list)
            for row in rows_of(journal, n):
                body = decode(row.body)
                kinds.append(np.repeat(body.runs_kind, body.runs_count))
                for kind, batch in body.batches.items():
                    batches[kind].append(_plain(unpack(kind, batch)))
            partitions.append(
                (np.concatenate(kinds).tobytes(), {k: pa.Table.from_batches(b) for k, b in batches.items()})
            )
    return partitions


def homes(tmp_path):
    """Fresh folders, one after the other."""
    number = 0
    while True:
        number += 1
        yield tmp_path / f"home-{number}"


# ---- kill -9 ---------------------------------------------------------------------------------------------------------
def test_ingest_killed_at_random_moments_leaves_the_journal_as_one_call_does(journalled, tmp_path):
    random, kills, whole = Random(1), 0, columns_of(journalled)
    longest_s = seconds_of(ingest, new_home(tmp_path / "timed"), FOLDER, BATCH_ROWS, TURN)
    for path in homes(tmp_path):
        home = new_home(path)
        kills += kill_at_random(random, KILLS_A_HOME, longest_s, ingest, home, FOLDER, BATCH_ROWS, TURN)
        assert columns_of(home) == whole
        if kills >= KILLS // 4:
            break


@pytest.mark.parametrize("snapshot_every_s", [0.02, 60], ids=["snapshots often", "no snapshot"])
def test_settle_killed_at_random_moments_ends_with_the_same_events(snapshot_every_s, journalled, digest, tmp_path):
    random, kills = Random(snapshot_every_s), 0
    longest_s = seconds_of(settle, copied(journalled, tmp_path / "timed"), snapshot_every_s=snapshot_every_s)
    for path in homes(tmp_path):
        home = copied(journalled, path)
        kills += kill_at_random(random, KILLS_A_HOME, longest_s, settle, home, snapshot_every_s=snapshot_every_s)
        assert digest_of(home) == digest
        if kills >= KILLS // 4:
            break


def test_a_process_of_two_killed_at_random_moments_ends_both_and_both_begin_again(journalled, digest, tmp_path):
    random, kills = Random(4), 0
    longest_s = seconds_of(settle, copied(journalled, tmp_path / "timed"), processes=2)
    for path in homes(tmp_path):
        home = copied(journalled, path)
        parent = start(settle, home, processes=2, snapshot_every_s=0.1)
        for _ in range(KILLS_A_HOME):
            parent.join(random.uniform(0, longest_s))
            if children := children_of(parent.pid):
                os.kill(random.choice(children), signal.SIGKILL)
                wait_until(lambda: parent.exitcode is not None or not set(children) & set(children_of(parent.pid)))  # noqa: B023
                kills += 1
        finish(parent)
        assert digest_of(home) == digest
        if kills >= KILLS // 4:
            break
    assert kills >= KILLS // 4


def test_killed_on_two_processes_it_goes_on_with_one(journalled, digest, tmp_path):
    home = copied(journalled, tmp_path / "home")
    parent = start(settle, home, processes=2, snapshot_every_s=0.05)
    wait_until(lambda: settled_records(home))
    children = children_of(parent.pid)
    for pid in (parent.pid, *children):
        os.kill(pid, signal.SIGKILL)
    parent.join()
    wait_until(lambda: is_free(home), 10)
    settle(home)
    assert digest_of(home) == digest


def test_when_what_started_two_processes_is_killed_they_end_and_the_home_is_free(journalled, digest, tmp_path):
    home = copied(journalled, tmp_path / "home")
    parent = start(run_settle, home, drain=False, processes=2)
    wait_until(lambda: settled_records(home))
    children = children_of(parent.pid)
    assert len(children) == 2
    parent.kill()
    parent.join()
    wait_until(lambda: is_free(home), 10)
    settle(home)
    assert digest_of(home) == digest


def without_events(home):
    """The home with nothing but its journal."""
    shutil.rmtree(home.recovery)
    for path in home.path.glob("events.db*"):
        path.unlink()
    create_log(home.events, PARTITIONS + 1)
    return home


# ---- stopped, and twice at once --------------------------------------------------------------------------------------
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_ends_settle_in_order_and_it_goes_on_exactly_there(processes, journalled, digest, tmp_path):
    home = copied(journalled, tmp_path / "home")
    with running(home.path, "settle", "--processes", str(processes), "--json") as process:
        wait_until(lambda: settled_records(home))
        process.terminate()
        said, complaints = process.communicate(timeout=TIMEOUT_S)
    so_far = settled_records(home)
    assert (process.returncode, complaints) == (0, "")
    assert json.loads(said)["records"] == so_far
    assert not home.run.joinpath("settle.lock").read_text()
    rest = hisob(home.path, "settle", "--drain", "--json")
    assert json.loads(rest.stdout)["records"] == settled_records(home) - so_far
    assert digest_of(home) == digest


def test_a_drain_that_is_stopped_has_not_done_what_it_says(journalled, tmp_path):
    home = copied(journalled, tmp_path / "home")
    with running(home.path, "settle", "--drain") as process:
        wait_until(lambda: settled_records(home))
        process.terminate()
        _, complaints = process.communicate(timeout=TIMEOUT_S)
    assert not is_settled(home)
    assert process.returncode == 1
    assert "the same call goes on" in complaints


def test_a_second_settle_is_refused_and_names_the_first(settled, tmp_path):
    home = copied(settled, tmp_path / "home")
    with hold(home.run / "settle.lock", "settle"):
        with pytest.raises(AlreadyRunningError, match=f"pid {os.getpid()}"):
            run_settle(home, drain=True)
        refused = hisob(home.path, "settle", "--drain")
    assert refused.returncode == 1
    assert f"pid {os.getpid()}" in refused.stderr
    settle(home)


def test_nothing_is_said_but_the_result_on_two_processes(journalled, digest, tmp_path):
    home = copied(journalled, tmp_path / "home")
    done = hisob(home.path, "settle", "--drain", "--processes", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert digest_of(home) == digest


# ---- damaged, lost, put back -----------------------------------------------------------------------------------------
def falsify_an_event(home):
    """Under a position of partition 0 stand the events of another, as if the rules had been others."""
    with closing(open_log(home.events)) as events:
        row, other = events.read(0, 0)[0], events.read(1, 0)[0]
    false = Row(row.partition, row.position, row.count, row.producer, row.sequence, other.body)
    with closing(sqlite3.connect(home.events)) as db, db:
        db.execute(
            "UPDATE row SET body = ?, checksum = ? WHERE partition = 0 AND position = ?",
            (false.body, _checksum(false), false.position),
        )


@pytest.mark.parametrize("processes", [1, 2])
def test_events_that_come_out_otherwise_stop_settle_with_an_error(processes, settled, tmp_path):
    home = copied(settled, tmp_path / "home")
    shutil.rmtree(home.recovery)
    falsify_an_event(home)
    done = hisob(home.path, "settle", "--drain", "--processes", str(processes))
    assert done.returncode == 1
    assert "partition 0" in done.stderr
    assert "The rules that settle now are not those that settled then" in done.stderr
    assert "panicked" not in done.stderr


@pytest.mark.parametrize("damage", ["deleted", "cut short", "of another version", "a part gone"])
def test_without_its_snapshots_the_journal_is_settled_again_and_nothing_is_added(damage, settled, digest, tmp_path):
    home = copied(settled, tmp_path / "home")
    if damage == "deleted":
        shutil.rmtree(home.recovery)
    elif damage == "cut short":
        (home.recovery / "part-1.sqlite3").write_bytes(b"no database")
    elif damage == "of another version":
        (home.recovery / "state-version").write_text("0\n")
    else:
        (home.recovery / "part-2.sqlite3").unlink()
    records = settled_records(home)
    settle(home)
    assert digest_of(home) == digest
    assert settled_records(home) == records


def test_an_older_copy_of_the_events_is_noticed_and_made_whole(settled, digest, tmp_path):
    home = copied(settled, tmp_path / "home")
    with closing(sqlite3.connect(home.events)) as db, db:
        db.execute(
            "DELETE FROM row WHERE partition = 1 AND position > (SELECT max(position) / 2 FROM row WHERE partition = 1)"
        )
        (last,) = db.execute("SELECT max(sequence) FROM row WHERE partition = 1").fetchone()
        db.execute("UPDATE commitment SET value = ? WHERE consumer = 'settle' AND key = '1'", (last,))
    with pytest.raises(SettleError, match=r"partition 1.*Settle once more"):
        settle(home)
    settle(home)
    assert digest_of(home) == digest


def test_the_kinds_of_a_body_stand_in_the_order_that_every_version_wrote_them_in(settled):
    """Or what an older one wrote would not be found again, and its homes could not be settled."""
    order = ["entry", "forecast", "refused", "held", "released", "notice", "command", "supply_state"]
    found = set()
    with closing(open_log(settled.events, readonly=True)) as events:
        for partition in range(events.partitions):
            for row in events.read(partition, 0, max_rows=10**6):
                kinds = [KIND_NAMES[kind] for kind in decode(row.body).runs_kind]
                assert kinds == [kind for kind in order if kind in kinds]
                found |= set(kinds)
    assert found == set(order)


def test_a_journal_that_is_not_that_of_the_events_is_refused(settled, tmp_path):
    home = copied(settled, tmp_path / "home")
    shutil.copy(new_home(tmp_path / "other").journal, home.journal)
    with pytest.raises(SettleError, match="Put back the right one"):
        run_settle(home, drain=True)


@pytest.mark.parametrize("step", ["source", "rules", "events", "append"])
@pytest.mark.parametrize("fails_at", [1, 3, "last"])
def test_a_step_that_fails_is_told_as_it_is_and_leaves_nothing_out(
    step, fails_at, journalled, digest, tmp_path, monkeypatch, capfd
):
    home = copied(journalled, tmp_path / "home")
    owner, name = {
        "source": (type(open_log(home.journal, readonly=True)), "read"),
        "rules": (settling.SettleLogic, "settle"),
        "events": (Settled, "events"),
        "append": (SqliteTransaction, "_append_row"),  # rows, for how many come together is a matter of time
    }[step]
    whole, calls = getattr(owner, name), []

    def counting(self, *args, **named):
        calls.append(1)
        if len(calls) == fails_at:
            raise OSError("a fault of the machine")
        return whole(self, *args, **named)

    monkeypatch.setattr(owner, name, counting)
    if fails_at == "last":
        run_settle(copied(journalled, tmp_path / "counted"), drain=True)
        fails_at = len(calls)
        calls.clear()
    with pytest.raises(OSError, match="a fault of the machine"):
        run_settle(home, drain=True, snapshot_every_s=0.001)
    assert "panicked" not in capfd.readouterr().err
    fails_at = None
    settle(home)
    assert digest_of(home) == digest


# ---- live ------------------------------------------------------------------------------------------------------------
def csv_of(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def readings_file(path, meters, after, count, hours):
    """`count` half-hourly readings of each meter, from the registers they have."""
    lines = ["meter_id,read_at,register_wh"]
    for meter in meters:
        lines += [
            f"{meter},{(after + timedelta(hours=hours * (k + 1))).isoformat()},{1_000 + 100 * k}" for k in range(count)
        ]
    return csv_of(path, lines)


def accounts_file(path, meters, at):
    lines = ["account_id,effective_at,meter_id,district,tariff,opening_register_wh"]
    return csv_of(path, lines + [f"A-{m},{at.isoformat()},{m},bektemir,household,0" for m in meters])


def entries_of(home):
    with closing(open_log(home.events, readonly=True)) as events:
        return [entry for _, batch in follow(events, "entry", {}, until_end=True) for entry in batch.to_pylist()]


def test_a_reading_that_arrives_while_settle_follows_is_out_within_two_seconds(tmp_path):
    home, begin = new_home(tmp_path / "home"), datetime(2025, 9, 1, tzinfo=UTC)
    ingest_files(home, [("account", accounts_file(tmp_path / "account.csv", ["M-1", "M-2"], begin))])
    follower = start(run_settle, home, drain=False)
    wait_until(lambda: is_settled(home))
    waits = []
    for k in range(5):
        at = begin + timedelta(hours=k)
        ingest_files(home, [("reading", readings_file(tmp_path / f"{k}.csv", ["M-1", "M-2"], at, 1, 0.5))])
        appended = time.monotonic()
        wait_until(lambda: is_settled(home))
        waits.append(time.monotonic() - appended)
    os.kill(follower.pid, signal.SIGTERM)
    finish(follower)
    assert len(entries_of(home)) == 2 + 2 * 5
    assert max(waits) < 2, waits


def test_two_ingests_at_once_while_settle_follows_make_a_history_that_settles_the_same_again(tmp_path):
    home, begin = new_home(tmp_path / "home"), datetime(2025, 9, 1, tzinfo=UTC)
    meters = [f"M-{n}" for n in range(20)]
    halves = [readings_file(tmp_path / f"{n}.csv", meters[n::2], begin, 200, 0.5) for n in range(2)]
    follower = start(run_settle, home, drain=False, snapshot_every_s=0.1)
    ingest_files(home, [("account", accounts_file(tmp_path / "account.csv", meters, begin))])
    writers = [start(ingest_files, home, [("reading", half)], batch_rows=50) for half in halves]
    for writer in writers:
        finish(writer)
    wait_until(lambda: is_settled(home))
    os.kill(follower.pid, signal.SIGTERM)
    finish(follower)
    again = without_events(copied(home, tmp_path / "again"))
    settle(again)
    assert digest_of(again) == digest_of(home)
    readings = [r for part in journal_of(home) for kind, r in part if kind == "reading"]
    assert len(readings) == 20 * 200
