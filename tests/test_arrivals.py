"""Records that arrive live: whole or not at all, routed as ingest routes them, by as many processes as there are."""

import datetime as dt
import os
import random
import signal
import time
from contextlib import closing
from zlib import crc32

import pytest

from connectors.directory import Directory
from connectors.log.sqlite import open_log
from streams.arrivals import Arrivals, Place
from streams.ingest import ingest_files
from tests.journals import bare_home, journal_of
from tests.random_records import random_records, write_csv
from tests.stories import EPOCH, microseconds
from tests.whole_homes import finish, start

ACCOUNTS = 3
UNROUTED = ACCOUNTS


def at(text: str) -> dt.datetime:
    """A moment of 1 May 2025 in UTC."""
    return dt.datetime.fromisoformat(f"2025-05-01T{text}+00:00")


def reading(meter_id="M", read_at="10:00", register_wh=5, **more):
    return {"meter_id": meter_id, "read_at": at(read_at), "register_wh": register_wh, **more}


def account(account_id="A", meter_id="M", since="09:00", **more):
    ids = {"account_id": account_id, "meter_id": meter_id}
    return {**ids, "effective_at": at(since), "district": "d", "tariff": "t", **more}


def payment(payment_id="P", account_id="A", amount_tiyin=100, **more):
    row = {"payment_id": payment_id, "account_id": account_id, "paid_at": at("10:00")}
    return {**row, "amount_tiyin": amount_tiyin, **more}


def partition_of(account_id: str) -> int:
    return crc32(account_id.encode()) % ACCOUNTS


def of_kind(partition, kind):
    return [record for k, record in partition if k == kind]


@pytest.fixture
def home(tmp_path):
    return bare_home(tmp_path / "home", ACCOUNTS)


@pytest.fixture
def arrivals(home):
    with closing(Arrivals(home, "test")) as arrivals:
        yield arrivals


def as_python(row):
    """A record of the random ones as a caller has it."""
    times = {c: EPOCH + dt.timedelta(microseconds=v) for c, v in row.items() if c.endswith("_at") and v is not None}
    dates = {c: dt.date.fromisoformat(v) for c, v in row.items() if c == "effective_on" and isinstance(v, str)}
    return {**row, **times, **dates}


def without_ticks(journal):
    """The journal without what ticks make different: themselves, and where the readings that waited stand among them."""
    return [
        [(kind, {c: v for c, v in record.items() if c != "first_ordinal"}) for kind, record in part if kind != "tick"]
        for part in journal
    ]


# ---- as ingest does --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_the_journal_is_what_ingest_would_have_made_of_the_same_records(tmp_path, seed):
    records = random_records(seed)
    paths = write_csv(records, tmp_path / "files")
    by_file, live = bare_home(tmp_path / "by-file", ACCOUNTS), bare_home(tmp_path / "live", ACCOUNTS)
    assert not ingest_files(by_file, [(path.stem, path) for path in paths]).unreadable
    with closing(Arrivals(live, "test")) as arrivals:
        places = arrivals.take({kind: [as_python(row) for row in rows] for kind, rows in records.items()})
    journal = journal_of(live)
    assert without_ticks(journal) == without_ticks(journal_of(by_file))
    for kind, row, place in [(k, r, p) for k in places for r, p in zip(records[k], places[k], strict=True)]:
        if kind != "tariff":
            stands_kind, stands = journal[place.partition][place.ordinal]
            assert stands_kind == kind
            assert {c: v for c, v in row.items() if v is not None}.items() <= stands.items()


def test_a_reading_of_an_unclaimed_meter_waits_and_is_routed_on_when_an_account_arrives(home, arrivals):
    waiting = arrivals.take({"reading": [reading()]})["reading"]
    assert waiting == [Place(UNROUTED, 0)]
    with closing(Arrivals(home, "another")) as another:  # who was told of it by the journal alone
        place = another.take({"account": [account()]})["account"][0]
    journal = journal_of(home)
    assert [kind for kind, _ in journal[place.partition]] == ["account", "reading"]
    routed = journal[place.partition][1][1]
    assert (routed["account_id"], routed["first_partition"], routed["first_ordinal"]) == ("A", UNROUTED, 0)
    assert arrivals.take({"reading": [reading(register_wh=6)]})["reading"][0].partition == partition_of("A")


def test_a_policy_stands_in_every_partition(home, arrivals):
    row = {
        "policy_id": "p",
        "kind": "moratorium",
        "scope": "all",
        "starts_at": at("10:00"),
        "author": "a",
        "reason": "r",
    }
    arrivals.take({"policy": [row]})
    assert [[kind for kind, _ in partition] for partition in journal_of(home)] == [["policy"]] * (ACCOUNTS + 1)


# ---- whole or not at all ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ({"payment": [payment(), payment(amount_tiyin=0)]}, "payment 1: amount_tiyin is '0': out_of_range"),
        ({"payment": [payment(amount_tiyin=1.0)]}, "amount_tiyin is 1.0, which is no int"),
        ({"payment": [payment(amount_tiyin=1 << 63)]}, "amount_tiyin"),
        ({"payment": [payment(paid_at=dt.datetime(2025, 5, 1))]}, "paid_at"),  # noqa: DTZ001
        ({"payment": [payment(account_id=None)]}, "account_id is None: missing_value"),
        ({"payment": [payment(colour="red")]}, "no column 'colour'"),
        ({"reading": [reading(status="guessed")]}, "status is 'guessed': unknown_value"),
        ({"reading": [reading(account_id="A")]}, "no column 'account_id'"),  # routing is the directory's
        ({"tick": [{"ticked_at": at("10:00")}]}, "unknown kind 'tick'"),
    ],
)
def test_what_breaks_the_contract_is_refused_and_nothing_is_taken(home, arrivals, records, fault):
    with pytest.raises(ValueError, match=fault):
        arrivals.take({"account": [account()], **records}, {"consumer": {"0": 1}})
    assert journal_of(home) == [[]] * (ACCOUNTS + 1)
    assert arrivals.committed("consumer") == {}


def test_records_and_commits_are_one_transaction(home, arrivals, monkeypatch):
    """And the directory forgets what it heard of records that were not journalled."""

    def fail(*_):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr("connectors.log.sqlite.SqliteTransaction.commit", fail)
        with pytest.raises(OSError, match="gone"):
            arrivals.take({"account": [account()]}, {"consumer": {"0": 1}})
    assert journal_of(home) == [[]] * (ACCOUNTS + 1)
    assert arrivals.take({"reading": [reading()]}, {"consumer": {"0": 2}})["reading"][0].partition == UNROUTED
    assert arrivals.committed("consumer") == {"0": 2}


def take_numbered(home, producer: str, until: int) -> None:
    """Payments, readings and accounts by number, each committed with them; goes on where it was stopped."""
    with closing(Arrivals(home, producer)) as arrivals:
        done = arrivals.committed(producer).get("done", 0)
        for n in range(done, until):
            name = f"{producer}-{n}"
            records = {
                "reading": [reading(f"M-{name}"), reading(f"M-{producer}-{n - 1}", register_wh=n)],
                "payment": [payment(name, f"A-{name}")],
            }
            if n % 3 == 2:
                records["account"] = [account(f"A-{producer}-{i}", f"M-{producer}-{i}") for i in (n - 2, n - 1, n)]
            arrivals.take(records, {producer: {"done": n + 1}})


def test_two_processes_killed_again_and_again_take_everything_once_and_route_it_rightly(home):
    rng, until, kills = random.Random(5), 60, 0
    names = ("one", "two")
    running = {name: start(take_numbered, home, name, until) for name in names}
    while kills < 8:
        name = rng.choice(names)
        time.sleep(rng.uniform(0.02, 0.25))
        if running[name].exitcode is None and running[name].pid:
            os.kill(running[name].pid, signal.SIGKILL)
            kills += 1
        running[name].join()
        running[name] = start(take_numbered, home, name, until)
    for process in running.values():
        finish(process)
    journal = journal_of(home)
    everything = [placed for partition in journal for placed in partition]
    expected = {f"{name}-{n}" for name in names for n in range(until)}
    assert sorted(r["payment_id"] for k, r in everything if k == "payment") == sorted(expected)
    numbers = [r["claim_number"] for k, r in everything if k == "account"]
    assert sorted(numbers) == list(range(len(expected)))
    for number, partition in enumerate(journal[:UNROUTED]):
        assert all(partition_of(r["account_id"]) == number for _, r in partition)
    routed = [r for partition in journal[:UNROUTED] for r in of_kind(partition, "reading")]
    assert all(r["account_id"] == r["meter_id"].replace("M-", "A-") for r in routed)
    assert len(routed) == 2 * len(expected) - len(names)  # the first of each has no meter before it
    assert {r["meter_id"] for r in of_kind(journal[UNROUTED], "reading")} >= {f"M-{name}--1" for name in names}


def test_of_what_is_journalled_while_the_directory_reads_it_hears_all_or_nothing(home, arrivals):
    """Claims lie in several partitions: to hear the younger of two and not the elder would number the next one wrongly."""
    ids = {n: [a for a in map("A-{}".format, range(99)) if partition_of(a) == n] for n in (0, 1)}
    arrivals.take({"account": [account(ids[n][0], f"M-{n}") for n in (0, 1)]})
    with closing(open_log(home.journal)) as log:
        directory, read, others = Directory(ACCOUNTS), log.read, [account(ids[n][1], f"M-{n}-1") for n in (0, 1)]

        def read_while_another_writes(partition, position, **limits):
            if partition == 1 and others:
                arrivals.take({"account": [others.pop(0), others.pop(0)]})
            return read(partition, position, **limits)

        log.read = read_while_another_writes
        directory.catch_up(log)
        assert not others
        assert directory.claims_heard == 2
        directory.catch_up(log)
        assert directory.claims_heard == 4


# ---- ticks -----------------------------------------------------------------------------------------------------------
def test_taking_makes_no_tick_and_ticks_never_go_back(home, arrivals):
    arrivals.take({"payment": [payment(paid_at=at("10:07"))]})
    assert arrivals.last_tick() is None
    assert arrivals.tick(at("10:15"))
    arrivals.take({"payment": [payment(paid_at=at("13:00"))]})
    assert not arrivals.tick(at("10:15"))
    assert not arrivals.tick(at("10:00"))
    with closing(Arrivals(home, "another")) as another:
        assert not another.tick(at("10:15"))
        assert another.tick(at("12:00"))
    assert not arrivals.tick(at("11:00"))
    assert arrivals.last_tick() == at("12:00")
    ticks = [[r["ticked_at"] for r in of_kind(partition, "tick")] for partition in journal_of(home)]
    assert ticks == [[microseconds(at("10:15")), microseconds(at("12:00"))]] * (ACCOUNTS + 1)


def test_ingest_goes_on_from_the_ticks_of_the_clock(home, arrivals, tmp_path):
    arrivals.take({"account": [account()]})
    arrivals.tick(at("10:15"))
    paths = write_csv({"payment": [{**payment(paid_at=microseconds(at("10:40")))}]}, tmp_path)
    assert ingest_files(home, [("payment", path) for path in paths]).ticks == 1
    assert arrivals.last_tick() == at("10:30")


def test_the_clock_does_not_start_before_there_is_a_record_that_starts_it(home, arrivals):
    assert not arrivals.tick(at("10:15"))
    arrivals.take({"reading": [reading()]})
    assert arrivals.tick(at("10:15"))


def test_a_tick_is_a_quarter_of_an_hour(arrivals):
    with pytest.raises(ValueError, match="quarter"):
        arrivals.tick(at("10:10"))
