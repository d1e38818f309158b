"""The worked cases from their files to the published database, line for line; and the same history however one comes to it."""

import os
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
BY_COMMAND = ("one-exchange", "all-4", "adversary-12")


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


def load(home):
    """The load in this process, which imports what it takes once."""
    os.environ.setdefault("PREFECT_HOME", str(home.scratch / "prefect"))
    from flows.load_history import load_history

    load_history.fn(str(home.path))


def assert_published_as_expected(home, folder):
    for what in PUBLISHED:
        assert published(home, what) == expected(folder, what), what


def test_a_case_is_published_as_expected_line_for_line(folder, whole):
    load(whole)
    assert_published_as_expected(whole, folder)


def test_small_batches_make_the_same_history(folder, digest, tmp_path):
    random = Random(folder.name)
    home = new_home(tmp_path / "home")
    least, most = random.choice(((7, 50), (50, 500), (50, 500)))
    ingest(home, folder, batch_rows=random.randint(least, most), turn=random.choice((100, 1000, 10_000)))
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


def run(home, *arguments, cwd=None):
    """A command that does what it says, and complains of nothing."""
    done = hisob(home.path, *arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_case_ends_as_expected_by_the_commands_alone(tmp_path):
    """As tests/cases/README.md has it."""
    home, folder = Home(tmp_path / "home"), case("plain-2-refusals")
    run(home, "init")
    run(home, "ingest", *[f"{kind}={path}" for kind, path in files_of(folder)])
    run(home, "settle", "--drain")
    run(home, "load")
    assert_published_as_expected(home, folder)


@pytest.mark.parametrize("name", BY_COMMAND)
def test_commands_killed_in_ingest_and_in_settle_and_on_two_processes_end_as_expected(name, tmp_path):
    random, home, folder = Random(name), new_home(tmp_path / "home"), case(name)
    call = ("ingest", *[f"{kind}={path.name}" for kind, path in files_of(folder)], "--batch-rows", "50")
    with running(home.path, *call, cwd=folder) as process:
        wait_until(lambda: any(home.scratch.glob("ingest-*")) or process.poll() is not None)
        time.sleep(random.uniform(0, 0.2))
        process.kill()
    run(home, *call, cwd=folder)
    with running(home.path, "settle", "--drain", HISOB_SNAPSHOT_SECONDS="0.1") as process:
        wait_until(lambda: settled_records(home) or process.poll() is not None)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
    run(home, "settle", "--drain", "--processes", "2")
    load(home)
    assert_published_as_expected(home, folder)
