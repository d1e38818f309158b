"""Ingest: what stands in the journal after files were taken, whatever they were, however they were cut, whoever was killed."""

import datetime as dt
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.log.body import decode, unpack
from connectors.log.sqlite import open_log
from hisob.cli import main
from streams import ingest, turns
from streams.ingest import IngestError, WrongUseError, ingest_files
from streams.merge import merge, regroup
from streams.turns import QUARTER_US, pass_ticks
from tests import oracle
from tests.core_harness import route
from tests.journals import Placed, bare_home, journal_of, rows_of
from tests.random_records import random_records, render_value, write_csv

CASES = sorted(p for p in (Path(__file__).parent / "cases").iterdir() if p.is_dir())
ROOT = Path(__file__).parent.parent
ACCOUNTS = 3
UNROUTED = ACCOUNTS
NOW_US = 1_760_000_000_000_000  # 2025-10-09


def at(text: str) -> int:
    """A moment of 1 May 2025 in UTC, `HH:MM`, as µs."""
    moment = dt.datetime.fromisoformat(f"2025-05-01T{text}+00:00")
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


@pytest.fixture
def home(tmp_path):
    return bare_home(tmp_path / "home", ACCOUNTS)


@pytest.fixture
def take(home, tmp_path):
    """Ingest rows given as text: take(reading=["M1,10:00,5"]) writes a CSV of the kind's columns and ingests it."""
    count = 0

    def take(**kinds):
        nonlocal count
        files = []
        for kind, rows in kinds.items():
            path = tmp_path / f"{kind}-{count}.csv"
            path.write_text("\n".join([HEADERS[kind], *map(expanded, rows), ""]), encoding="utf-8")
            files.append((kind, path))
        count += 1
        return ingest_files(home, files, now_us=NOW_US)

    return take


def expanded(row: str) -> str:
    """`10:00` as that moment of 1 May 2025."""
    fields = row.split(",")
    is_moment = [len(f) == 5 and f[2] == ":" for f in fields]
    return ",".join(f"2025-05-01T{f}:00Z" if m else f for f, m in zip(fields, is_moment, strict=True))


HEADERS = {
    "reading": "meter_id,read_at,register_wh,received_at",
    "account": "account_id,effective_at,meter_id,district,tariff,received_at",
    "payment": "payment_id,account_id,paid_at,amount_tiyin",
    "tariff": "tariff,effective_on,block_upto_kwh,price_tiyin_per_kwh",
    "policy": "policy_id,kind,scope,starts_at,author,reason",
    "acknowledgement": "command_id,acknowledged_at,outcome",
    "receipt": "notice_id,received_at,status",
    "adjustment": "adjustment_id,account_id,adjusted_at,amount_tiyin,author,reason",
    "order": "order_id,account_id,ordered_at,action,cause,author,reason",
    "meter_exchange": "account_id,exchanged_at,old_meter_id,old_register_wh,new_meter_id,new_register_wh",
}


def account(account_id="A", meter_id="M", since="09:00", received=""):
    return f"{account_id},{since},{meter_id},d,t,{received}"


def kinds_of(records: list[Placed]) -> list[str]:
    return [kind for kind, _ in records]


def of_kind(journal, kind: str) -> list[dict]:
    return [record for partition in journal for k, record in partition if k == kind]


def ticks_of(partition: list[Placed]) -> list[int]:
    return [record["ticked_at"] for kind, record in partition if kind == "tick"]


# ---- order -----------------------------------------------------------------------------------------------------------
def modelled(records) -> list[list[Placed]]:
    """What the journal must hold, by the plain model of the order and the routing."""
    placed = route(oracle.journal_of(records), ACCOUNTS)
    return [[(kind, {k: v for k, v in r.items() if v is not None}) for kind, r in partition] for partition in placed]


def without_claim_numbers(journal):
    return [[(kind, {k: v for k, v in r.items() if k != "claim_number"}) for kind, r in part] for part in journal]


def write_mixed(records, folder: Path) -> list[tuple[str, Path]]:
    """The records as files of all three formats."""
    files = [(path.stem, path) for path in write_csv(records, folder)]
    for i, (kind, path) in enumerate(files):
        rows = [{c: render_value(c, v) or None for c, v in row.items()} for row in records[kind]]
        if i % 3 == 1:
            files[i] = (kind, path.with_suffix(".ndjson"))
            files[i][1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        elif i % 3 == 2:
            files[i] = (kind, path.with_suffix(".parquet"))
            pq.write_table(as_table(records[kind]), files[i][1], row_group_size=100)
    return files


def as_table(rows) -> pa.Table:
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        is_time = name.endswith("_at")
        columns[name] = pa.array(values, pa.timestamp("us", "UTC")) if is_time else pa.array(values)
    return pa.table(columns)


@pytest.mark.parametrize(
    "folder", [case for case in CASES if case.name[-2:] in {"-1", "12", "ge", "nt", "er"}], ids=lambda p: p.name
)
def test_the_journal_of_a_case_is_that_of_the_plain_model(home, folder):
    records = oracle.load_case(folder)
    ingest_files(home, [(kind, folder / f"{kind}.csv") for kind in records])
    assert without_claim_numbers(journal_of(home)) == modelled(records)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_rows", [7, 1000])
def test_any_records_in_any_format_and_any_batches_are_journalled_as_by_the_plain_model(
    home, tmp_path, monkeypatch, seed, batch_rows
):
    monkeypatch.setattr(ingest, "LEAST_CHUNK", 40)
    monkeypatch.setattr(ingest, "MOST_CHUNK", 400 if batch_rows > 7 else 40)
    monkeypatch.setattr(turns, "MOST_WOKEN", 5)
    monkeypatch.setattr("connectors.files.stage.RUN_BYTES", 1500)
    monkeypatch.setattr("connectors.files.formats.BLOCK_BYTES", 2000)
    records = random_records(seed, "adversary")
    report = ingest_files(home, write_mixed(records, tmp_path / "files"), batch_rows=batch_rows)
    assert without_claim_numbers(journal_of(home)) == modelled(records)
    assert report.taken == {kind: len(rows) for kind, rows in records.items()}
    assert not report.unreadable
    with closing(open_log(home.journal)) as log:
        for row in [row for p in range(log.partitions) for row in rows_of(log, p)]:
            tariffs = decode(row.body, ("tariff",)).batches.get("tariff")
            assert row.count <= batch_rows or tariffs is not None
            if tariffs is not None:  # a version is never cut
                blocks = unpack("tariff", tariffs).select(["block", "blocks"]).to_pylist()
                assert blocks[0]["block"] == 0
                assert blocks[-1]["block"] == blocks[-1]["blocks"] - 1


SOURCES = st.lists(st.lists(st.lists(st.integers(0, 20), max_size=6), max_size=5), max_size=4)


@given(SOURCES, st.integers(1, 12))
def test_a_merge_is_a_sort_however_sources_come_and_chunks_are_cut(sources, size):
    expected, batches = [], []
    for number, pieces in enumerate(sources):
        moments = sorted(moment for piece in pieces for moment in piece)
        expected += [(moment, number, place) for place, moment in enumerate(moments)]
        starts = np.cumsum([0, *(len(piece) for piece in pieces)])
        pairs = zip(starts.tolist(), starts[1:].tolist(), strict=False)
        records = [pa.record_batch({"place": pa.array(range(a, b), pa.int64())}) for a, b in pairs]
        arrivals = [np.array(moments[r.column(0)[0].as_py() :][: len(r)] if len(r) else [], np.int64) for r in records]
        batches.append(iter(zip(arrivals, records, strict=True)))
    found, lasts = [], []
    for chunk, is_last in regroup(merge(batches), size):
        places = {s: iter([p for b in parts for p in b.column(0).to_pylist()]) for s, parts in chunk.parts.items()}
        found += [(a, s, next(places[s])) for a, s in zip(chunk.arrival.tolist(), chunk.source.tolist(), strict=True)]
        lasts.append(is_last)
        assert len(chunk) == size or is_last
    assert found == sorted(expected)
    assert lasts == [False] * (len(lasts) - 1) + [True] * bool(lasts)


def test_records_of_one_moment_stand_in_the_order_of_kinds_files_and_rows(take, home):
    take(account=[account(since="08:00")])
    take(
        receipt=["0-1-0,10:00,delivered"],
        acknowledgement=["0-1-0,10:00,opened"],
        reading=["M,10:00,2,", "M,10:00,1,"],
        order=["O,A,10:00,hold,court,a,r"],
        adjustment=["J,A,10:00,5,a,r"],
        payment=["P,A,10:00,5"],
        meter_exchange=["A,10:00,M,5,N,6"],
        account=[account(since="10:00")],
        policy=["p,holiday,all,10:00,a,r"],
        tariff=["t,2025-04-30,,5"],
    )
    journal = journal_of(home)
    (mine,) = [part for part in journal if "account" in kinds_of(part)]
    told = [kind for kind, _ in mine if kind != "tick"]
    order = [
        "account",
        "tariff",
        "policy",
        "account",
        "meter_exchange",
        "payment",
        "adjustment",
        "order",
        "reading",
        "reading",
    ]
    assert [kind for kind in told if kind not in {"acknowledgement", "receipt"}] == order
    assert [r["register_wh"] for r in of_kind(journal, "reading")] == [2, 1]
    assert kinds_of(journal[0])[-3:] == ["acknowledgement", "receipt", "tick"]


def test_a_file_given_first_comes_first_at_the_same_moment(home, tmp_path):
    for name, register in (("b", 1), ("a", 2)):
        (tmp_path / name).write_text(
            f"meter_id,read_at,register_wh\nM,2025-05-01T10:00:00Z,{register}\n", encoding="utf-8"
        )
    ingest_files(home, [("reading", tmp_path / "b"), ("reading", tmp_path / "a")])
    assert [r["register_wh"] for r in of_kind(journal_of(home), "reading")] == [1, 2]


def test_received_at_is_when_a_record_arrives(take, home):
    take(reading=["M,10:00,1,11:00", "M,10:30,2,"])
    assert [r["register_wh"] for r in of_kind(journal_of(home), "reading")] == [2, 1]


# ---- ticks -----------------------------------------------------------------------------------------------------------
def test_ticks_go_to_every_partition_from_the_first_record_up_to_the_last(take, home):
    report = take(
        tariff=["t,2025-04-01,,5"],
        policy=["p,holiday,all,08:00,a,r"],
        reading=["M,09:20,1,", "M,10:15,2,"],
        payment=["P,A,10:00,5"],
    )
    journal = journal_of(home)
    expected = [at("09:30"), at("09:45"), at("10:00"), at("10:15")]
    assert [ticks_of(partition) for partition in journal] == [expected] * (ACCOUNTS + 1)
    assert kinds_of(journal[UNROUTED]) == ["tariff", "policy", "reading", "tick", "tick", "tick", "reading", "tick"]
    assert (report.ticks, report.last_tick) == (4, at("10:15"))


def test_the_first_tick_may_be_at_the_first_record_s_own_moment(take, home):
    take(reading=["M,10:00,1,"])
    assert kinds_of(journal_of(home)[UNROUTED]) == ["reading", "tick"]


def test_tariffs_and_policies_start_no_clock_and_are_in_every_partition(take, home):
    take(tariff=["t,2025-04-01,,5"], policy=["p,holiday,all,08:00,a,r"])
    assert [kinds_of(partition) for partition in journal_of(home)] == [["tariff", "policy"]] * (ACCOUNTS + 1)


def test_later_calls_go_on_from_the_last_tick_and_never_back(take, home):
    take(reading=["M,10:00,1,"])
    take(reading=["M,09:00,2,"])
    take(reading=["M,10:40,3,"])
    take(reading=["M,10:44,4,"])
    take(reading=["M,10:45,5,"])
    unrouted = journal_of(home)[UNROUTED]
    assert ticks_of(unrouted) == [at("10:00"), at("10:15"), at("10:30"), at("10:45")]
    assert kinds_of(unrouted) == [
        *["reading", "tick"],
        "reading",
        "tick",
        "tick",
        "reading",
        "reading",
        "reading",
        "tick",
    ]


def test_ticks_that_others_journalled_are_not_made_again(take, home):
    take(reading=["M,10:00,1,"])
    with closing(open_log(home.journal)) as log:
        (*_, row) = rows_of(log, UNROUTED)
        tick = pa.record_batch({"ticked_at": pa.array([at("10:30")], pa.timestamp("us", "UTC"))})
        body = turns.encode(turns.runs_of(np.array([turns.TICK_NUMBER], np.uint8)), {"tick": tick})
        log.append("clock", [turns.NewRow(p, 0, 1, body) for p in range(log.partitions)])
    assert row.producer == "ingest"
    take(reading=["M,11:00,2,"])
    assert ticks_of(journal_of(home)[UNROUTED]) == [at("10:00"), at("10:30"), at("10:45"), at("11:00")]


def test_ten_silent_years_are_all_ticked_in_few_rows(home, tmp_path):
    (tmp_path / "r.csv").write_text(
        "meter_id,read_at,register_wh\nM,2015-05-01T00:00:00Z,1\nM,2025-05-01T00:00:00Z,2\n", encoding="utf-8"
    )
    report = ingest_files(home, [("reading", tmp_path / "r.csv")])
    assert report.ticks == 3653 * 96 + 1
    with closing(open_log(home.journal)) as log:
        for partition in range(log.partitions):
            rows = list(rows_of(log, partition))
            assert len(rows) == 6
            assert sum(row.count for row in rows) == report.ticks + 2 * (partition == UNROUTED)
            assert max(len(decode(row.body).runs_kind) for row in rows) <= 4
            moments = np.concatenate(
                [decode(r.body).batches["tick"].column(0).cast(pa.int64()).to_numpy() for r in rows]
            )
            assert np.all(np.diff(moments) == QUARTER_US)


@given(st.lists(st.integers(0, 200).map(lambda m: m * 5 * 60_000_000), min_size=1).map(sorted), st.data())
def test_ticks_stand_in_the_same_places_however_arrivals_are_cut(arrivals, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(arrivals)), max_size=5)) | {0, len(arrivals)})
    told, next_tick = [], None
    for start, end in pairwise(cuts):
        piece = np.array(arrivals[start:end], np.int64)
        ticks, before, next_tick = pass_ticks(piece, int(piece[0]), next_tick, is_last=end == len(arrivals))
        told += [(start + int(place), int(tick)) for place, tick in zip(before, ticks, strict=True)]
    first, last = -(-arrivals[0] // QUARTER_US) * QUARTER_US, arrivals[-1]
    expected = range(first, last + 1, QUARTER_US)
    assert told == [(sum(a <= tick for a in arrivals), tick) for tick in expected]


def test_a_record_that_would_arrive_later_is_unreadable_and_moves_no_clock(home, tmp_path):
    (tmp_path / "r.csv").write_text(
        "meter_id,read_at,register_wh\nM,2025-05-01T10:00:00Z,1\nM,2030-01-01T00:00:00Z,2\n", encoding="utf-8"
    )
    report = ingest_files(home, [("reading", tmp_path / "r.csv")], now_us=at("12:00"))
    assert report.unreadable == {"arrives_later_than_now": 1}
    assert (report.ticks, report.last_tick) == (1, at("10:00"))


# ---- unreadable rows and refused files -------------------------------------------------------------------------------
def test_a_bad_row_is_journalled_whole_and_the_good_rows_are_taken(take, home):
    report = take(reading=["M,10:00,12.7,", "M,10:00,1,", "M,10:00,,,,", "M,10:15,2,"])
    (unreadable, misfit) = of_kind(journal_of(home), "unreadable")
    assert unreadable == {
        "record_kind": "reading",
        "file": "reading-0.csv",
        "row": 2,
        "column": "register_wh",
        "value": "12.7",
        "reason": "not_an_integer",
        "record": json.dumps(
            {"meter_id": "M", "read_at": "2025-05-01T10:00:00Z", "register_wh": "12.7", "received_at": None}
        ),
    }
    assert (misfit["row"], misfit["reason"]) == (4, "wrong_field_count")
    assert [len(of_kind([partition], "unreadable")) for partition in journal_of(home)] == [0] * ACCOUNTS + [2]
    assert (report.taken, report.unreadable) == ({"reading": 2}, {"not_an_integer": 1, "wrong_field_count": 1})
    assert [example.row for example in report.examples] == [2, 4]


def test_a_file_without_one_good_row_starts_no_clock(take, home):
    take(reading=["M,10:00,x,"])
    assert kinds_of(journal_of(home)[UNROUTED]) == ["unreadable"]


def test_a_refused_file_leaves_nothing_of_the_call_and_all_problems_are_told(home, tmp_path):
    (tmp_path / "good.csv").write_text("meter_id,read_at,register_wh\nM,2025-05-01T10:00:00Z,1\n", encoding="utf-8")
    (tmp_path / "bad.csv").write_text("meter_id,read_at\n", encoding="utf-8")
    (tmp_path / "empty.csv").write_bytes(b"")
    before = home.journal.read_bytes()
    with pytest.raises(WrongUseError) as refused:
        ingest_files(home, [("reading", tmp_path / name) for name in ("good.csv", "bad.csv", "empty.csv", "none.csv")])
    assert all(name in str(refused.value) for name in ("bad.csv", "empty.csv", "none.csv"))
    assert journal_of(home) == [[]] * (ACCOUNTS + 1)
    assert home.journal.read_bytes() == before
    assert not any(home.scratch.iterdir())


def test_an_unknown_kind_is_refused(home, tmp_path):
    with pytest.raises(WrongUseError, match=r"'tick'"):
        ingest_files(home, [("tick", tmp_path / "t.csv")])


# ---- the same file again ---------------------------------------------------------------------------------------------
def test_the_same_content_again_adds_nothing_under_any_name(take, home, tmp_path):
    take(reading=["M,10:00,1,", "M,10:00,x,"])
    before = journal_of(home)
    (tmp_path / "reading-0.csv").rename(tmp_path / "other.csv")
    report = ingest_files(home, [("reading", tmp_path / "other.csv"), ("reading", tmp_path / "other.csv")])
    assert report.skipped == ["other.csv", "other.csv"]
    assert (report.taken, report.unreadable, report.ticks) == ({}, {}, 0)
    assert journal_of(home) == before


def test_a_file_without_records_is_skipped_the_second_time(take):
    assert take(reading=[]).skipped == []
    assert take(reading=[]).skipped == ["reading-1.csv"]


def test_the_same_records_in_another_file_are_records_again(take, home):
    take(reading=["M,10:00,1,"])
    take(reading=["M,10:00,1,", ""])
    take(reading=["M,10:00,1,", "M,10:00,1,"])
    assert len(of_kind(journal_of(home), "reading")) == 4


# ---- routing ---------------------------------------------------------------------------------------------------------
def home_of(journal, kind="account") -> int:
    (partition,) = [p for p, records in enumerate(journal) if kind in kinds_of(records)]
    return partition


def test_a_reading_goes_to_the_partition_of_its_account_with_its_name(take, home):
    take(account=[account()], reading=["M,10:00,1,"])
    journal = journal_of(home)
    assert of_kind([journal[home_of(journal)]], "reading") == [
        {"meter_id": "M", "read_at": at("10:00"), "register_wh": 1, "account_id": "A"}
    ]


def test_a_reading_that_no_claim_reaches_goes_there_without_a_name(take, home):
    take(account=[account(since="09:00", received="07:00")], reading=["M,08:00,1,"])
    journal = journal_of(home)
    assert of_kind([journal[home_of(journal)]], "reading") == [
        {"meter_id": "M", "read_at": at("08:00"), "register_wh": 1}
    ]


@pytest.mark.parametrize("calls", [1, 2])
def test_waiting_readings_follow_the_record_that_claims_their_meter_by_read_at(take, home, calls):
    waiting = ["M,10:00,3,10:00", "N,09:30,9,10:01", "M,09:30,1,10:02", "M,08:30,0,10:03", "M,09:30,2,10:04"]
    claim = [account(since="09:00", received="11:00")]
    if calls == 2:
        report = take(reading=waiting)
        assert (report.waiting, report.routed_on) == (5, 0)
        report = take(account=claim, reading=["M,11:30,4,"])
    else:
        report = take(reading=[*waiting, "M,11:30,4,"], account=claim)
    assert (report.waiting, report.routed_on) == (1, 4)
    journal = journal_of(home)
    mine = journal[home_of(journal)]
    at_claim = kinds_of(mine).index("account")
    assert kinds_of(mine)[at_claim : at_claim + 6] == ["account", "reading", "reading", "reading", "reading", "tick"]
    woken = of_kind([mine], "reading")
    assert [r["register_wh"] for r in woken] == [0, 1, 2, 3, 4]
    assert [r.get("account_id") for r in woken] == [None, "A", "A", "A", "A"]
    for reading in woken[:-1]:
        assert reading["first_partition"] == UNROUTED
        kind, first = journal[UNROUTED][reading["first_ordinal"]]
        assert kind == "reading"
        assert first == {
            k: v for k, v in reading.items() if k not in {"account_id", "first_partition", "first_ordinal"}
        }
    assert "first_ordinal" not in woken[-1]


def test_answers_go_where_the_command_or_notice_came_from(take, home):
    report = take(
        acknowledgement=["2-17-0,10:00,opened", "3-17-0,10:00,opened"],
        receipt=["1-5-3,10:00,delivered", "x,10:00,delivered"],
    )
    journal = journal_of(home)
    assert [kinds_of(partition) for partition in journal[:3]] == [
        ["tick"],
        ["receipt", "tick"],
        ["acknowledgement", "tick"],
    ]
    assert report.unreadable == {"unknown_value": 2}


def test_claims_are_numbered_through_all_partitions_and_calls(take, home):
    take(account=[account(a, f"M{a}") for a in "ABCDE"])
    take(account=[account("F", "MF")], meter_exchange=["A,10:00,M,5,N,6"])
    claims = of_kind(journal_of(home), "account") + of_kind(journal_of(home), "meter_exchange")
    assert sorted(r["claim_number"] for r in claims) == list(range(7))
    assert {r["account_id"]: r["claim_number"] for r in claims[:6]} == {a: i for i, a in enumerate("ABCDEF")}


# ---- interrupted -----------------------------------------------------------------------------------------------------
class InterruptedHere(Exception):  # noqa: N818 (no error: the test's own)
    pass


def interrupt_after(count: int):
    """A callback that ends the call after so many turns at the journal."""
    done = 0

    def on_progress(what, *_):
        nonlocal done
        done += what == "journalling"
        if done == count:
            raise InterruptedHere

    return on_progress


@pytest.fixture
def small_turns(monkeypatch):
    monkeypatch.setattr(ingest, "LEAST_CHUNK", 20)
    monkeypatch.setattr(ingest, "MOST_CHUNK", 20)
    monkeypatch.setattr("connectors.files.stage.RUN_BYTES", 2000)
    monkeypatch.setattr("connectors.files.formats.BLOCK_BYTES", 2000)


def troubled_files(folder: Path) -> list[tuple[str, Path]]:
    """A utility with every trouble, and bad rows among the good ones."""
    files = [(path.stem, path) for path in write_csv(random_records(11, "adversary"), folder)]
    for _, path in files:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if path.stem != "tariff":
            lines[2:2] = ["not,a,row\n"]
        path.write_text("".join([*lines, "neither,is,this\n"]), encoding="utf-8")
    return files


def test_a_call_interrupted_after_every_turn_comes_to_the_same_journal(tmp_path, small_turns):
    files = troubled_files(tmp_path / "files")
    whole, broken = bare_home(tmp_path / "whole", ACCOUNTS), bare_home(tmp_path / "broken", ACCOUNTS)
    ingest_files(whole, files)
    calls = 0
    while True:
        try:
            report = ingest_files(broken, files, on_progress=interrupt_after(1))
        except InterruptedHere:
            calls += 1
        else:
            break
    assert calls > 5
    assert sorted(report.skipped) == sorted(path.name for _, path in files)
    assert journal_of(broken) == journal_of(whole)


def test_an_interrupted_call_is_gone_on_with_whatever_the_next_one_names(tmp_path, small_turns):
    files = troubled_files(tmp_path / "files")
    home = bare_home(tmp_path / "home", ACCOUNTS)
    with pytest.raises(InterruptedHere):
        ingest_files(home, files, on_progress=interrupt_after(4))
    (tmp_path / "more.csv").write_text("meter_id,read_at,register_wh\nZ,2025-09-01T10:00:00Z,1\n", encoding="utf-8")
    readings = [file for file in files if file[0] == "reading"]
    first = ingest_files(home, [("reading", tmp_path / "more.csv"), *readings])
    assert "reading.csv" in first.resumed
    ingest_files(home, files)
    last = ingest_files(home, files)
    assert len(last.skipped) == len(files)
    records = random_records(11, "adversary")
    journal = journal_of(home)
    once = [r for r in of_kind(journal, "reading") if "first_ordinal" not in r]
    given = sorted(
        (r["meter_id"], r["read_at"], r["register_wh"])
        for r in [*records["reading"], {"meter_id": "Z", "read_at": 0, "register_wh": 1}]
    )
    assert sorted((r["meter_id"], r["read_at"] if r["meter_id"] != "Z" else 0, r["register_wh"]) for r in once) == given
    assert len(of_kind(journal, "account")) == len(records["account"])
    ticks = ticks_of(journal[0])
    assert np.all(np.diff(ticks) == QUARTER_US)


def test_what_was_in_the_future_at_the_first_call_stays_unreadable_when_it_is_gone_on_with(home, tmp_path, small_turns):
    rows = "".join(f"M,2025-05-01T{h:02d}:{m:02d}:00Z,{h * 60 + m}\n" for h in range(10, 20) for m in range(60))
    (tmp_path / "r.csv").write_text("meter_id,read_at,register_wh\n" + rows, encoding="utf-8")
    with pytest.raises(InterruptedHere):
        ingest_files(home, [("reading", tmp_path / "r.csv")], now_us=at("15:00"), on_progress=interrupt_after(20))
    ingest_files(home, [("reading", tmp_path / "r.csv")], now_us=at("23:00"))
    journal = journal_of(home)
    assert len(of_kind(journal, "reading")) == 301
    assert len(of_kind(journal, "unreadable")) == 299


CALL = """
import sys
from pathlib import Path
from connectors.home import Home
from streams import ingest
ingest.LEAST_CHUNK = ingest.MOST_CHUNK = int(sys.argv[2])
files = [tuple(arg.split("=")) for arg in sys.argv[3:]]
ingest.ingest_files(Home(Path(sys.argv[1])), [(kind, Path(path)) for kind, path in files], batch_rows=64)
"""


def start_call(home, chunk: int, files) -> subprocess.Popen:
    named = [f"{kind}={path}" for kind, path in files]
    return subprocess.Popen([sys.executable, "-c", CALL, home.path, str(chunk), *named], cwd=ROOT)


def end_of(log) -> int:
    return sum(log.end(partition) for partition in range(log.partitions))


def test_a_process_killed_at_any_moment_and_called_again_comes_to_the_same_journal(tmp_path):
    files = troubled_files(tmp_path / "files")
    whole, broken = bare_home(tmp_path / "whole", ACCOUNTS), bare_home(tmp_path / "broken", ACCOUNTS)
    ingest_files(whole, files, batch_rows=64)
    chance = random.Random(5)
    with closing(open_log(whole.journal)) as log:
        length = end_of(log)
    kills = 0
    with closing(open_log(broken.journal)) as log:
        for share in (0.1, 0.4, 0.7):
            process = start_call(broken, 20, files)
            while process.poll() is None and end_of(log) < share * length:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.01)
            kills += process.poll() is None
            process.kill()
            assert process.wait() in {-signal.SIGKILL, 0}
    assert start_call(broken, 20, files).wait() == 0
    assert kills
    assert journal_of(broken) == journal_of(whole)
    assert not any(broken.scratch.iterdir())  # what the killed ones left there is taken away


# ---- two at once -----------------------------------------------------------------------------------------------------
def test_two_processes_at_once_lose_and_double_nothing(tmp_path):
    home = bare_home(tmp_path / "home", ACCOUNTS)
    files = []
    for number in range(2):
        accounts, readings = tmp_path / f"account-{number}.csv", tmp_path / f"reading-{number}.csv"
        accounts.write_text(
            "account_id,effective_at,meter_id,district,tariff\n"
            + "".join(f"A{number}-{i},2025-05-01T{10 + i % 5}:00:00Z,M{number}-{i},d,t\n" for i in range(50)),
            encoding="utf-8",
        )
        # Each reads the other's meters too, which may be claimed by then or not.
        readings.write_text(
            "meter_id,read_at,register_wh\n"
            + "".join(
                f"M{other}-{i},2025-05-01T{hour}:{minute:02d}:00Z,{number}\n"
                for hour in range(10, 16) for minute in range(0, 60, 5) for other in range(2) for i in range(50)
            ),
            encoding="utf-8",
        )  # fmt: skip
        files.append([("account", accounts), ("reading", readings)])
    processes = [start_call(home, 300, given) for given in files]
    assert [process.wait() for process in processes] == [0, 0]

    journal = journal_of(home)
    readings = of_kind(journal, "reading")
    once = [r for r in readings if "first_ordinal" not in r]
    assert len(once) == 2 * 72 * 100
    assert len({(r["meter_id"], r["read_at"], r["register_wh"]) for r in once}) == len(once)
    # Every one that had to wait was routed on, once; every reading has come to its account.
    waited = [i for i, (kind, _) in enumerate(journal[UNROUTED]) if kind == "reading"]
    assert sorted(r["first_ordinal"] for r in readings if "first_ordinal" in r) == waited
    for partition in journal[:UNROUTED]:
        claimed: set[str] = set()
        for kind, record in partition:
            claimed |= {record["meter_id"]} if kind == "account" else set()
            assert kind != "reading" or record["meter_id"] in claimed
    assert sorted(r["claim_number"] for r in of_kind(journal, "account")) == list(range(100))
    for partition in journal:
        assert np.all(np.diff(ticks_of(partition)) == QUARTER_US)
        assert ticks_of(partition) == ticks_of(journal[0])


def test_two_processes_with_the_same_file_double_nothing(tmp_path):
    home = bare_home(tmp_path / "home", ACCOUNTS)
    path = tmp_path / "r.csv"
    rows = "".join(f"M{i},2025-05-01T{10 + i // 1000}:00:00Z,{i}\n" for i in range(5000))
    path.write_text("meter_id,read_at,register_wh\n" + rows, encoding="utf-8")
    processes = [start_call(home, 250, [("reading", path)]) for _ in range(2)]
    codes = sorted(process.wait() for process in processes)
    assert codes in ([0, 0], [0, 1])
    if codes == [1, 1]:
        ingest_files(home, [("reading", path)])
    assert sorted(r["register_wh"] for r in of_kind(journal_of(home), "reading")) == list(range(5000))


def test_another_process_on_the_same_file_is_named(home, tmp_path, small_turns):
    path = tmp_path / "r.csv"
    path.write_text(
        "meter_id,read_at,register_wh\n" + "".join(f"M,2025-05-01T10:00:00Z,{i}\n" for i in range(500)),
        encoding="utf-8",
    )
    done = False

    def on_progress(what, *_):
        nonlocal done
        if what == "journalling" and not done:
            done = True
            ingest_files(home, [("reading", path)])

    with pytest.raises(IngestError, match=r"r.csv: another process is journalling the same file"):
        ingest_files(home, [("reading", path)], on_progress=on_progress)
    assert [r["register_wh"] for r in of_kind(journal_of(home), "reading")] == list(range(500))


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(20, 500))
def test_the_sizes_of_rows_and_turns_change_no_sequence(tmp_path_factory, seed, batch_rows, turn):
    folder = tmp_path_factory.mktemp("sizes")
    files = [(path.stem, path) for path in write_csv(random_records(seed, "one-lateaccount"), folder / "files")]
    journals = []
    for name, rows, records in (("whole", 1 << 16, 1 << 16), ("cut", batch_rows, turn)):
        home = bare_home(folder / name, ACCOUNTS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ingest, "LEAST_CHUNK", records)
            patch.setattr(ingest, "MOST_CHUNK", records)
            ingest_files(home, files, batch_rows=rows)
        journals.append(journal_of(home))
    assert journals[0] == journals[1]


# ---- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture
def hisob(tmp_path, monkeypatch, capsys):
    """The command in this process: its exit code, and what it wrote to either side."""

    def hisob(*args, stdin=b""):
        monkeypatch.setattr("sys.argv", ["hisob", "--home", str(tmp_path / "hisob"), *map(str, args)])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    assert hisob("init")[0] == 0
    return hisob


def test_the_command_tells_what_was_taken_and_exits_by_what_became_of_it(hisob, tmp_path):
    good = b"meter_id,read_at,register_wh\nM,2025-05-01T10:00:00Z,1\n"
    code, out, err = hisob("ingest", "reading=-", stdin=good)
    assert (code, err) == (0, "")
    assert "taken                 1  reading" in out

    code, out, _ = hisob("ingest", "reading=-", "--json", stdin=good)
    assert (code, json.loads(out)["skipped"]) == (0, ["-"])

    code, out, _ = hisob("ingest", "reading=-", stdin=good + b"M,2025-05-01T10:00:00,1\n")
    assert code == 1
    assert "-, row 3, read_at: '2025-05-01T10:00:00'" in out

    line = b'{"meter_id": "M", "read_at": "2025-05-01T10:00:00Z", "register_wh": 1e3}'
    code, out, _ = hisob("ingest", "reading=-", "--json", stdin=line)
    assert (code, json.loads(out)["unreadable"]) == (1, {"not_an_integer": 1})


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("reading=none.csv",), "none.csv"),
        (("readings=none.csv",), "The kinds are"),
        (("reading",), "KIND=FILE"),
        (("reading=-", "payment=-"), "only once"),
        ((), "Missing argument"),
    ],
)
def test_wrong_use_is_told_on_stderr_and_exits_2(hisob, args, said):
    code, out, err = hisob("ingest", *args, stdin=b"meter_id,read_at,register_wh\n")
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_a_pipe_is_read_once_and_taken(hisob, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=(tmp_path / "pipe").write_bytes, args=(b"meter_id,read_at,register_wh\nM,2025-05-01T10:00:00Z,1\n",)
    )
    writer.start()
    code, out, _ = hisob("ingest", f"reading={tmp_path / 'pipe'}", "--json")
    writer.join()
    assert (code, json.loads(out)["taken"]) == (0, {"reading": 1})
