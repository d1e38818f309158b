"""The worked cases from their files to the published database, line for line; and the same history however one comes to it."""

import os
import signal
import time
from random import Random

import duckdb
import pytest

from connectors.home import Home
from tests.whole_homes import (
    CASES,
    case,
    digest_of,
    expected,
    files_of,
    hisob,
    ingest,
    kill_at_random,
    new_home,
    running,
    settle,
    settle_on_two,
    settled_records,
    wait_until,
)

PUBLISHED = {
    "balances": "SELECT account_id, balance_tiyin FROM balances",
    "usage": "SELECT account_id, sum(usage_wh)::BIGINT FROM entries GROUP BY ALL",
    "refused": "SELECT record_kind, key, reason FROM refused",
    "held": "SELECT record_kind, key, reason FROM held",
}
BY_COMMAND = {
    "plain-2-refusals": (),
    "adversary-12": (),
    "one-exchange": ("--partitions", "3"),
    "one-unknown": ("--partitions", "1"),
    "all-1": ("--partitions", "2"),
    "all-4": ("--partitions", "3"),
}  # and what init is given


def published(home, what):
    with duckdb.connect(str(home.published), read_only=True) as con:
        return sorted(tuple(map(str, row)) for row in con.execute(PUBLISHED[what]).fetchall())


@pytest.fixture(scope="module", params=CASES, ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The case's home after one call of each, in rows as large as they come. Not to be changed."""
    home = new_home(tmp_path_factory.mktemp(folder.name) / "home")
    ingest(home, folder)
    settle(home)
    return home


@pytest.fixture(scope="module")
def digest(whole):
    return digest_of(whole)


@pytest.fixture(scope="module")
def loaded(whole):
    """The same home, published."""
    os.environ.setdefault("PREFECT_HOME", str(whole.scratch / "prefect"))
    from flows.load_history import load_history

    load_history.fn(str(whole.path))
    return whole


def test_a_case_is_published_as_expected_line_for_line(folder, loaded):
    for what in PUBLISHED:
        assert published(loaded, what) == expected(folder, what), what


def test_small_batches_make_the_same_history(folder, digest, tmp_path):
    random = Random(folder.name)
    home = new_home(tmp_path / "home")
    ingest(home, folder, batch_rows=random.randint(7, 50), turn=random.choice((100, 1000, 10_000)))
    settle(home)
    assert digest_of(home) == digest


def test_killed_and_resumed_it_is_the_same_history(folder, digest, tmp_path):
    random = Random(folder.name)
    home = new_home(tmp_path / "home")
    kill_at_random(random, 2, 0.3, ingest, home, folder, batch_rows=500, turn=1000)
    kill_at_random(random, 2, 1.0, settle, home, snapshot_every_s=random.choice((0.05, 60)))
    assert digest_of(home) == digest


def test_two_processes_make_the_same_history(folder, digest, tmp_path):
    home = new_home(tmp_path / "home")
    ingest(home, folder, batch_rows=1000)
    settle_on_two(home)
    assert digest_of(home) == digest


@pytest.mark.parametrize("name", BY_COMMAND)
def test_by_the_commands_killed_twice_and_on_two_processes_a_case_ends_as_expected(name, tmp_path):
    """As tests/cases/README.md has it, with a kill -9 in ingest, another in settle, and the rest on two processes."""
    home, folder = tmp_path / "home", case(name)
    made = hisob(home, "init", *BY_COMMAND[name])
    assert (made.returncode, made.stderr) == (0, "")
    given = [f"{kind}={path.name}" for kind, path in files_of(folder)]
    with running(home, "ingest", *given, "--batch-rows", "50", cwd=folder) as process:
        wait_until(lambda: any(home.glob("scratch/ingest-*")) or process.poll() is not None)
        time.sleep(Random(name).uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
    taken = hisob(home, "ingest", *given, "--batch-rows", "50", cwd=folder)
    assert (taken.returncode, taken.stderr) == (0, "")
    with running(home, "settle", "--drain", HISOB_SNAPSHOT_SECONDS="0.1") as process:
        wait_until(lambda: settled_records(Home(home)) or process.poll() is not None)
        time.sleep(Random(name).uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
    done = hisob(home, "settle", "--drain", "--processes", "2")
    assert (done.returncode, done.stderr) == (0, "")
    loaded = hisob(home, "load")
    assert (loaded.returncode, loaded.stderr) == (0, "")
    for what in PUBLISHED:
        assert published(Home(home), what) == expected(folder, what), what
