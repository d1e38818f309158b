"""Whose a reading is: the compiled directory against the oracle's, from memory, from a journal and from its own file."""

from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.directory import ACCOUNT, EXCHANGE, NONE, READING, Arrivals, Directory
from connectors.log.sqlite import create_log, open_log
from streams.ingest import ingest_files
from tests import oracle
from tests.journals import bare_home
from tests.random_records import random_records, write_csv

ROOM = 1 << 40


def arrivals_of(directory: Directory, journal) -> Arrivals:
    """(kind, record) in order of arrival as the directory sees them."""
    arrivals = Arrivals.blank(len(journal))
    for i, (kind, record) in enumerate(journal):
        if kind == "reading":
            arrivals.role[i], meter, at = READING, record["meter_id"], record["read_at"]
        elif kind == "account":
            arrivals.role[i], meter, at = ACCOUNT, record["meter_id"], record["effective_at"]
            arrivals.closes[i] = record.get("closed_at") is not None
        elif kind == "meter_exchange":
            arrivals.role[i], meter, at = EXCHANGE, record["new_meter_id"], record["exchanged_at"]
        else:
            continue
        arrivals.meter[i] = directory.meters.numbers(pa.array([meter]))[0]
        arrivals.at[i] = at
        if kind != "reading":
            arrivals.account[i] = directory.accounts.numbers(pa.array([record["account_id"]]))[0]
    return arrivals


def routed_by_directory(directory: Directory, journal, cut=None) -> list:
    """Of each reading its account, None where no claim reaches back, "" where its meter has none."""
    arrivals, found = arrivals_of(directory, journal), []
    for start in range(0, len(journal), cut or len(journal)):
        end = start + (cut or len(journal))
        piece = Arrivals(*(getattr(arrivals, name)[start:end] for name in Arrivals.__dataclass_fields__))
        routes = directory.follow(piece, room=ROOM)
        accounts = directory.accounts.texts().to_pylist()
        for i in np.flatnonzero(piece.role == READING):
            account = accounts[routes.owner[i]] if routes.reaches[i] else None
            found.append("" if routes.owner[i] == NONE else account)
    return found


def routed_by_oracle(journal) -> list:
    plain, found = oracle.Directory(), []
    for kind, record in journal:
        if kind == "account":
            plain.hear_account(record)
        elif kind == "meter_exchange":
            plain.hear_exchange(record)
        elif kind == "reading":
            has_claim = record["meter_id"] in plain.claims
            found.append(plain.find(record["meter_id"], record["read_at"]) if has_claim else "")
    return found


IDS, METERS, DATES = st.sampled_from("ABC"), st.sampled_from(["M", "N", "O"]), st.integers(1, 6)
RECORDS = st.one_of(
    st.builds(lambda m, at: ("reading", {"meter_id": m, "read_at": at}), METERS, DATES),
    st.builds(
        lambda a, m, at, closes: (
            "account",
            {"account_id": a, "meter_id": m, "effective_at": at, "closed_at": 9 if closes else None},
        ),
        IDS, METERS, DATES, st.booleans(),
    ),
    st.builds(
        lambda a, m, at: ("meter_exchange", {"account_id": a, "new_meter_id": m, "exchanged_at": at}), IDS, METERS, DATES
    ),
)  # fmt: skip


@given(st.lists(RECORDS, max_size=60), st.integers(1, 60))
def test_any_records_are_routed_as_by_the_oracle_however_they_are_cut(journal, cut):
    assert routed_by_directory(Directory(4), journal, cut) == routed_by_oracle(journal)


@pytest.mark.parametrize("seed", range(4))
def test_a_utility_with_every_trouble_is_routed_as_by_the_oracle(seed):
    journal = oracle.journal_of(random_records(seed, "adversary"))
    assert routed_by_directory(Directory(4), journal) == routed_by_oracle(journal)


# ---- the rules, one by one -------------------------------------------------------------------------------------------
def account(account_id, meter_id, at, closed_at=None):
    return "account", {"account_id": account_id, "meter_id": meter_id, "effective_at": at, "closed_at": closed_at}


def exchange(account_id, meter_id, at):
    return "meter_exchange", {"account_id": account_id, "new_meter_id": meter_id, "exchanged_at": at}


def reading(meter_id, at):
    return "reading", {"meter_id": meter_id, "read_at": at}


@pytest.mark.parametrize(
    ("promise", "journal", "routed"),
    [
        ("a reading before the first claim waits", [reading("M", 5)], [""]),
        ("a claim reaches back to its date, that moment included", [account("A", "M", 5), reading("M", 5)], ["A"]),
        ("a reading before every claim is nobody's", [account("A", "M", 5), reading("M", 4)], [None]),
        (
            "the latest date that reaches back wins, not the last to arrive",
            [account("A", "M", 5), account("B", "M", 3), reading("M", 6), reading("M", 4)],
            ["A", "B"],
        ),
        (
            "of the same date the last to arrive wins",
            [account("A", "M", 5), account("B", "M", 5), reading("M", 6)],
            ["B"],
        ),
        (
            "a later version does not take a meter that another account has",
            [account("A", "M", 1), account("B", "N", 1), account("B", "M", 5), reading("M", 6)],
            ["A"],
        ),
        (
            "it takes one that its account gave up by closing",
            [
                account("A", "M", 1),
                account("B", "N", 1),
                account("A", "M", 4, 4),
                account("B", "M", 5),
                reading("M", 6),
            ],
            ["B"],
        ),
        (
            "an exchange of an account that is not known claims nothing",
            [exchange("A", "M", 1), reading("M", 6)],
            [""],
        ),
        (
            "an exchange claims the new meter and leaves the old one",
            [account("A", "M", 1), exchange("A", "N", 3), account("B", "O", 1), account("B", "M", 4), reading("M", 6)],
            ["B"],
        ),
    ],
)
def test_claims(promise, journal, routed):
    assert routed_by_directory(Directory(4), journal) == routed, promise
    assert routed_by_oracle(journal) == routed, promise


def test_a_claim_that_would_wake_more_than_there_is_room_for_waits_for_the_next_turn():
    directory = Directory(4)
    journal = [
        *[reading("M", 1)] * 3,
        *[reading("N", 1)] * 3,
        account("A", "M", 1),
        account("B", "N", 1),
        reading("N", 2),
    ]
    arrivals = arrivals_of(directory, journal)
    routes = directory.follow(arrivals, room=5)
    assert (routes.taken, routes.woken_at.tolist(), directory.waiting_count) == (7, [6], 3)
    rest = Arrivals(*(getattr(arrivals, name)[7:] for name in Arrivals.__dataclass_fields__))
    routes = directory.follow(rest, room=1)
    assert (routes.taken, routes.woken_at.tolist(), directory.waiting_count) == (2, [0], 0)


# ---- from the journal and from its file ------------------------------------------------------------------------------
@pytest.fixture
def journalled(tmp_path):
    """A home into which a utility with every trouble was ingested, and that utility's journal."""
    records = random_records(7, "adversary")
    home = bare_home(tmp_path / "home")
    files = [(path.stem, path) for path in write_csv(records, tmp_path / "files")]
    ingest_files(home, files, batch_rows=50)
    return home, oracle.journal_of(records)


def questions(journal) -> list:
    """Readings of every meter at every moment that occurs, and no other records."""
    read = [record for kind, record in journal if kind == "reading"]
    meters, moments = {r["meter_id"] for r in read}, sorted({r["read_at"] for r in read})[::7]
    return [reading(meter, at) for meter in sorted(meters) for at in moments]


def test_one_that_caught_up_from_the_journal_knows_what_one_knows_that_heard_it_all(journalled):
    home, journal = journalled
    heard, caught_up = Directory(3), Directory(3)
    routed_by_directory(heard, journal)
    with closing(open_log(home.journal)) as log:
        caught_up.catch_up(log)
    assert caught_up.waiting_count == heard.waiting_count
    assert caught_up.claims_heard == heard.claims_heard
    assert routed_by_directory(caught_up, questions(journal)) == routed_by_directory(heard, questions(journal))


def test_one_that_was_saved_knows_what_it_knew(journalled, tmp_path):
    home, journal = journalled
    with closing(open_log(home.journal)) as log:
        before = Directory(3)
        before.catch_up(log)
        before.save(tmp_path / "saved.npz", log)
        after = Directory.load(tmp_path / "saved.npz", log)
        assert after.heard == before.heard > 0
        after.catch_up(log)
    assert (after.last_tick, after.waiting_count, after.claims_heard) == (
        before.last_tick,
        before.waiting_count,
        before.claims_heard,
    )
    assert routed_by_directory(after, questions(journal)) == routed_by_directory(before, questions(journal))


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"no archive at all"])
def test_a_damaged_file_is_as_none(journalled, tmp_path, damage):
    home, _ = journalled
    saved = tmp_path / "saved.npz"
    with closing(open_log(home.journal)) as log:
        directory = Directory(3)
        directory.catch_up(log)
        directory.save(saved, log)
        saved.write_bytes(damage(saved.read_bytes()))
        assert Directory.load(saved, log).heard == 0


def test_the_file_of_another_journal_is_as_none(journalled, tmp_path):
    home, _ = journalled
    with closing(open_log(home.journal)) as log:
        directory = Directory(3)
        directory.catch_up(log)
        directory.save(tmp_path / "saved.npz", log)
    create_log(tmp_path / "other.db", 4)
    with closing(open_log(tmp_path / "other.db")) as other:
        assert Directory.load(tmp_path / "saved.npz", other).heard == 0
