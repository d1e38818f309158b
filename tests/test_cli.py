"""The command line as a person or a program meets it: init, tail, digest, status; what they print, refuse and exit with."""

import datetime as dt
import fcntl
import json
import os
import select
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from accounting.records import EVENT_ID, EVENT_SCHEMAS, EVENTS, RECORD_SCHEMAS
from connectors.home import Home
from connectors.log import NewRow
from connectors.log.body import KIND_NUMBER, decode, encode, pack, runs_of, unpack
from connectors.log.digest import ALL, digest_events
from connectors.log.rows import follow, parse_positions, position_of
from connectors.log.sqlite import create_log, open_log
from hisob import homes
from hisob.errors import HisobError
from hisob.settings import Settings, load_settings, open_home

ROOT = Path(__file__).parent.parent
AT = dt.datetime(2025, 9, 15, 3, 0, tzinfo=dt.UTC)


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HISOB_")}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "200", **more}


def hisob(home, *arguments, **more):
    command = [sys.executable, "-m", "hisob", "--home", home, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**more), check=False, timeout=60)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def home(tmp_path):
    return homes.make_home(tmp_path / "home", 3)


def batch(kind, *rows):
    """Events of a kind, given as (ordinal, n, {column: value}); the columns not given are null."""
    given = {"ordinal": pa.array([r[0] for r in rows], pa.int64()), "n": pa.array([r[1] for r in rows], pa.int32())}
    for field in EVENT_SCHEMAS[kind]:
        given[field.name] = pa.array([r[2].get(field.name) for r in rows], field.type)
    return pa.record_batch(given)


def events_row(partition, sequence, events):
    """A row of events, given as (kind, ordinal, n, {column: value})."""
    by_kind = {}
    for kind, *rest in events:
        by_kind.setdefault(kind, []).append(rest)
    runs = runs_of(np.array([KIND_NUMBER[kind] for kind, *_ in events], np.uint8))
    body = encode(runs, {kind: pack(kind, batch(kind, *rows)) for kind, rows in by_kind.items()})
    return NewRow(partition, sequence, len(events), body)


def append_events(home, *rows):
    with closing(open_log(home.events)) as log:
        log.append("settle", rows)


def command_event(ordinal, n, account):
    values = {
        "account_id": account,
        "meter_id": f"M-{account}",
        "issued_at": AT,
        "expires_at": AT + dt.timedelta(hours=3, microseconds=5),
        "action": "disconnect",
        "cause": "credit",
        "sequence": 1,
        "evidence": '{"balance_tiyin": -5, "нима": "қарз"}',
    }
    return ("command", ordinal, n, values)


def entry_event(ordinal, n=0, amount_tiyin=-5):
    return ("entry", ordinal, n, {"account_id": "A", "kind": "usage", "to_at": AT, "amount_tiyin": amount_tiyin})


# ---- init ------------------------------------------------------------------------------------------------------------


def test_init_makes_a_home_that_holds_the_tariffs_and_policies_in_every_partition(tmp_path):
    done = hisob(tmp_path / "h", "init", "--partitions", "4", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"home": str(tmp_path / "h"), "partitions": 4}
    home, settings = open_home(tmp_path / "h")
    assert settings.model_dump() == Settings().model_dump()
    assert all(folder.is_dir() for folder in (home.recovery, home.lake, home.published.parent))
    with closing(open_log(home.journal)) as journal, closing(open_log(home.events)) as events:
        assert (journal.partitions, events.partitions) == (5, 5)
        first = [journal.read(partition, 0)[0] for partition in range(5)]
    assert len({row.body for row in first}) == 1
    body = decode(first[0].body)
    tariffs = unpack("tariff", body.batches["tariff"]).to_pylist()
    prices = {(t["tariff"], str(t["effective_on"]), t["block_upto_kwh"]): t["price_tiyin_per_kwh"] for t in tariffs}
    assert prices["household", "2017-07-01", None] == 20_430
    assert prices["household", "2025-05-01", 200] == 60_000
    assert prices["household_stove", "2025-05-01", None] == 100_000
    assert prices["commercial", "2025-05-01", None] == 100_000
    numbers = [t["block"] for t in tariffs if str(t["effective_on"]) == "2024-05-01"]
    assert numbers == [0, 1, 2, 3, 4] * 2 + [0] + [0, 1, 2] + [0]  # commercial, by the hour, state-funded
    assert all(t["source"] for t in tariffs)
    plain = [t for t in tariffs if t["hours"] is None]
    assert all((t["block_upto_kwh"] is None) == (t["block"] == t["blocks"] - 1) for t in plain)
    policies = unpack("policy", body.batches["policy"]).to_pylist()
    assert [p["kind"] for p in policies] == ["disconnect_window", "quiet_hours", "threshold"]
    assert json.loads(policies[1]["value"]) == {"from": "20:00", "to": "09:00"}


def test_the_household_tariff_costs_what_it_costs_by_hand():
    """500 kWh in a month cost 360,000 soum before and after 1 May 2025; the rest is by hand from the table."""
    rows = unpack("tariff", decode(homes.default_records()[1]).batches["tariff"]).to_pylist()

    def cost(kwh, version):
        soum, below = 0, 0
        for row in (r for r in rows if r["tariff"] == "household" and str(r["effective_on"]) == version):
            upto = row["block_upto_kwh"] or kwh
            soum += max(0, min(kwh, upto) - below) * row["price_tiyin_per_kwh"] // 100
            below = upto
        return soum

    assert cost(500, "2024-05-01") == 360_000
    by_hand = {200: 120_000, 201: 120_800, 500: 360_000, 1_000: 860_000, 1_500: 1_610_000, 6_000: 8_610_000}
    assert {kwh: cost(kwh, "2025-05-01") for kwh in by_hand} == by_hand
    assert cost(12_000, "2025-05-01") == 19_610_000


def test_init_in_a_home_is_refused_and_touches_nothing(home):
    before = {path: path.read_bytes() for path in home.path.glob("*.*")}
    done = hisob(home.path, "init")
    assert done.returncode == 2
    assert "already" in done.stderr
    assert {path: path.read_bytes() for path in home.path.glob("*.*")} == before


def test_init_takes_any_folder_that_has_no_home(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert hisob(tmp_path, "init").returncode == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_homes_begin_with_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        homes.make_home(tmp_path / name, 2)
        with closing(open_log(tmp_path / name / "journal.db")) as log:
            (tmp_path / f"{name}.body").write_bytes(log.read(2, 0)[0].body)
    assert (tmp_path / "one.body").read_bytes() == (tmp_path / "other.body").read_bytes()


STEPS = [
    ("mkdir", 1),
    ("mkdir", 3),
    ("create_log", 1),
    ("open_log", 1),
    ("create_log", 2),
    ("open_log", 2),
    ("write_whole", 1),
]


@pytest.mark.parametrize(("step", "time"), STEPS)
def test_an_interrupted_init_leaves_no_home_and_the_next_completes_it(tmp_path, monkeypatch, step, time):
    owner = Path if step == "mkdir" else homes
    real, calls = getattr(owner, step), []

    def interrupted(*args, **options):
        calls.append(step)
        if len(calls) == time:
            raise KeyboardInterrupt
        return real(*args, **options)

    path = tmp_path / "h"
    monkeypatch.setattr(owner, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        homes.make_home(path, 2)
    monkeypatch.undo()
    with pytest.raises(HisobError, match="no home"):
        open_home(path)
    homes.make_home(path, 2)
    open_home(path)
    count, body = homes.default_records()
    with closing(open_log(path / "journal.db")) as log:
        assert [[(r.count, r.body) for r in log.read(partition, 0)] for partition in range(3)] == [[(count, body)]] * 3


def test_a_home_that_lost_its_settings_is_given_them_back_and_keeps_its_records(home):
    append_events(home, events_row(0, 0, [entry_event(0)]))
    home.settings.unlink()
    assert hisob(home.path, "status").returncode == 2
    wrong = hisob(home.path, "init", "--partitions", "16")
    assert wrong.returncode == 2
    assert "--partitions 3" in wrong.stderr
    assert hisob(home.path, "init", "--partitions", "3").returncode == 0
    assert json.loads(hisob(home.path, "status", "--json").stdout)["event_rows"] == 1


# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings_come_from_the_environment_then_the_file(home, monkeypatch):
    home.settings.write_text("batch_rows = 100\nsnapshot_seconds = 5\n")
    monkeypatch.setenv("HISOB_BATCH_ROWS", "7")
    settings = load_settings(home)
    assert (settings.batch_rows, settings.snapshot_seconds) == (7, 5.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch_rows = 0", "batch_rows"),
        ("batch_row = 5", "batch_row"),
        ("batch_rows =", "not TOML"),
        ("batch_rows = 'x'", "batch_rows"),
    ],
)
def test_a_wrong_setting_is_named(home, text, says):
    home.settings.write_text(text)
    done = hisob(home.path, "digest")
    assert done.returncode == 2
    assert says in done.stderr
    assert str(home.settings) in done.stderr


# ---- wrong use and damage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["digest", "--nothing"],
        ["tail"],
        ["tail", "meters"],
        ["tail", "entries", "--from", "here"],
        ["tail", "entries", "--from", "9-0-0"],
        ["tail", "entries", "--from", "0-1-0,0-2-0"],
        ["init", "--partitions", "0"],
        ["init", "--partitions", "many"],
    ],
    ids=" ".join,
)
def test_wrong_use_exits_2_and_says_why(home, arguments):
    done = hisob(home.path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip()


@pytest.mark.parametrize("arguments", [["digest"], ["status"], ["tail", "entries"]], ids=" ".join)
def test_without_a_home_a_command_says_how_to_make_one(tmp_path, arguments):
    done = hisob(tmp_path / "none", *arguments)
    assert done.returncode == 2
    assert f"hisob --home {tmp_path / 'none'} init" in done.stderr


def test_the_home_may_be_named_by_the_environment(home):
    done = subprocess.run(
        [sys.executable, "-m", "hisob", "status", "--json"],
        capture_output=True,
        env=environment(HISOB_HOME=str(home.path)),
        check=True,
    )
    assert json.loads(done.stdout)["home"] == str(home.path)


@pytest.mark.parametrize("arguments", [["digest"], ["status"], ["tail", "entries", "--until-end"]], ids=" ".join)
def test_a_damaged_log_is_one_clear_paragraph_and_exit_1(home, arguments):
    home.events.write_bytes(home.events.read_bytes()[:20_000])
    done = hisob(home.path, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert "damaged or cut short" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unforeseen_fault_is_no_traceback_unless_asked_for(home):
    with closing(sqlite3.connect(home.events)) as db:
        db.execute("UPDATE log SET partitions = 'x'")
        db.commit()
    done = hisob(home.path, "digest")
    assert done.returncode == 1
    assert "HISOB_DEBUG=1" in done.stderr


def test_help_names_the_commands_that_there_are(tmp_path):
    done = hisob(tmp_path, "--help")
    assert done.returncode == 0
    assert all(f" {name} " in done.stdout for name in ("init", "tail", "status", "digest"))
    assert " simulate " not in done.stdout or (ROOT / "hisob/commands/simulate.py").exists()
    assert hisob(tmp_path, "--version").stdout.startswith("hisob ")


# ---- digest ----------------------------------------------------------------------------------------------------------

STORY = [
    [entry_event(0), entry_event(1), command_event(1, 1, "A"), entry_event(1, 2, 7), entry_event(5)],
    [("forecast", 3, 0, {"account_id": "Ў", "forecast_at": AT, "balance_tiyin": -1})],
    [("refused", 4, 0, {"record_kind": "reading", "reason": "duplicate", "record": "{}"}), entry_event(9)],
]


def log_of(path, story, cuts=()):
    """A log of events: each partition's, cut into rows before the events so numbered. Codes of texts differ with the cuts."""
    create_log(path, len(story))
    log = open_log(path)
    for partition, events in enumerate(story):
        edges = [0, *(c for c in cuts if c < len(events)), len(events)]
        rows = [events_row(partition, a, events[a:b]) for a, b in pairwise(edges) if a < b]
        log.append("settle", rows)
    return log


def digests_of(path, story, cuts=()):
    with closing(log_of(path, story, cuts)) as log:
        return digest_events(log)


def test_the_digest_does_not_depend_on_how_rows_were_batched(tmp_path):
    found = {
        tuple(digests_of(tmp_path / f"{n}.db", STORY, cuts).items())
        for n, cuts in enumerate([(), (1,), (2, 3), (1, 2, 3, 4)])
    }
    assert len(found) == 1


def changed(story, partition, number, **values):
    kind, ordinal, n, given = story[partition][number]
    copy = [list(events) for events in story]
    copy[partition][number] = (kind, values.pop("ordinal", ordinal), values.pop("n", n), {**given, **values})
    return copy


@pytest.mark.parametrize(
    ("kind", "story"),
    [
        ("entry", changed(STORY, 0, 0, amount_tiyin=-6)),
        ("entry", changed(STORY, 0, 0, amount_tiyin=None)),
        ("entry", changed(STORY, 0, 0, tariff="")),
        ("entry", changed(STORY, 0, 0, account_id="AB", kind="sage")),
        ("entry", changed(STORY, 0, 0, from_at=AT)),
        ("entry", changed(STORY, 0, 4, ordinal=6)),
        ("entry", changed(STORY, 0, 3, n=3)),
        ("command", changed(STORY, 0, 2, evidence="{}")),
        ("forecast", changed(STORY, 1, 0, balance_tiyin=0)),
        ("refused", changed(STORY, 2, 0, detail="x")),
        ("entry", [STORY[0][:-1], *STORY[1:]]),
        ("entry", [[STORY[0][1], STORY[0][0], *STORY[0][2:]], *STORY[1:]]),
        ("forecast", [STORY[0], [], [*STORY[1], *STORY[2]]]),
    ],
)
def test_the_digest_sees_every_change_and_names_its_kind(tmp_path, kind, story):
    before, after = digests_of(tmp_path / "a.db", STORY), digests_of(tmp_path / "b.db", story)
    assert {name for name in before if before[name] != after[name]} == {kind, ALL}


def test_digest_prints_lines_of_kind_and_hash_and_nothing_else(home):
    append_events(home, *(events_row(partition, 0, events) for partition, events in enumerate(STORY)))
    done = hisob(home.path, "digest")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    assert [kind for kind, _ in lines] == [*EVENTS, "all"]
    assert all(len(sha256) == 64 and int(sha256, 16) >= 0 for _, sha256 in lines)
    assert json.loads(hisob(home.path, "digest", "--json").stdout) == dict(lines)


# ---- tail ------------------------------------------------------------------------------------------------------------


def test_tail_prints_the_columns_of_the_contract_as_ndjson(home):
    append_events(home, events_row(1, 0, [entry_event(7), command_event(7, 1, "A")]))
    done = hisob(home.path, "tail", "commands", "--until-end")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    event = json.loads(line)
    assert list(event) == ["command_id", *(column.name for column in EVENTS["command"])]
    assert event["command_id"] == "1-7-1"
    assert (event["issued_at"], event["expires_at"]) == ("2025-09-15T03:00:00Z", "2025-09-15T06:00:00.000005Z")
    assert (event["supersedes"], event["sequence"]) == (None, 1)
    assert event["evidence"] == {"balance_tiyin": -5, "нима": "қарз"}
    assert "қарз" in line


def test_tail_knows_each_kind_by_both_its_names(home):
    for names in (("entry", "entries"), ("supply_states",), ("held",)):
        for name in names:
            assert hisob(home.path, "tail", name, "--until-end").returncode == 0, name


def test_tail_goes_partition_by_partition_and_from_a_position_on(home):
    rows = [
        events_row(p, s, [command_event(s + i, 0, f"{p}{s + i}") for i in range(3)])
        for p in (0, 2)
        for s in (0, 3, 6, 100)
    ]
    append_events(home, *rows)
    every = [f"{p}-{o}-0" for p in (0, 2) for o in (0, 1, 2, 3, 4, 5, 6, 7, 8, 100, 101, 102)]

    def tail(*since):
        lines = hisob(home.path, "tail", "commands", "--until-end", *since).stdout.splitlines()
        return [json.loads(line)["command_id"] for line in lines]

    assert tail() == tail("--from", "start") == every
    assert tail("--from", "end") == []
    assert tail("--from", "0-100-0,2-4-0") == [*every[9:12], *every[16:]]


def test_a_position_is_found_wherever_rows_were_cut(tmp_path):
    story = [[entry_event(o, n) for o in (0, 3, 4, 9, 10, 20) for n in range(2)]]
    for number, cuts in enumerate([(), (2, 4), (2, 6, 8, 10), tuple(range(2, 12, 2))]):
        create_log(tmp_path / f"{number}.db", 1)
        with closing(open_log(tmp_path / f"{number}.db")) as log:
            edges = [0, *cuts, 12]
            for a, b in pairwise(edges):
                log.append("settle", [events_row(0, story[0][a][1], story[0][a:b])])
            for wanted in range(-1, 22):
                since = parse_positions(f"0-{wanted}-1", 1) if wanted >= 0 else {}
                found = [
                    (o, n)
                    for _, b in follow(log, "entry", since, until_end=True)
                    for o, n in zip(b.column("ordinal").to_pylist(), b.column("n").to_pylist(), strict=True)
                ]
                assert found == [(o, n) for _, o, n, _ in story[0] if (o, n) >= (wanted, 1) or wanted < 0]
            assert position_of(log, 0, 10**9) == log.end(0) - (12 - edges[-2])


def test_tail_follows_what_comes(home):
    append_events(home, events_row(0, 0, [command_event(0, 0, "old")]))
    command = [sys.executable, "-m", "hisob", "--home", home.path, "tail", "commands"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert json.loads(process.stdout.readline())["account_id"] == "old"
            append_events(home, events_row(3, 0, [command_event(0, 0, "new")]))
            began = time.monotonic()
            assert select.select([process.stdout], [], [], 10)[0]
            assert json.loads(process.stdout.readline())["account_id"] == "new"
            assert time.monotonic() - began < 2
        finally:
            process.kill()


# ---- status ----------------------------------------------------------------------------------------------------------


def journal_ticks(home, *moments):
    tick = pa.record_batch([pa.array(moments, pa.timestamp("us", tz="UTC"))], schema=RECORD_SCHEMAS["tick"])
    body = encode(runs_of(np.full(len(moments), KIND_NUMBER["tick"], np.uint8)), {"tick": pack("tick", tick)})
    with closing(open_log(home.journal)) as log:
        log.append("ingest", [NewRow(p, log.end(p), len(moments), body) for p in range(log.partitions)])


def test_status_tells_the_last_tick_the_lags_and_who_is_at_work(home):
    defaults, _ = homes.default_records()
    found = json.loads(hisob(home.path, "status", "--json").stdout)
    assert (found["last_tick"], found["journal_records"]) == (None, 4 * defaults)
    assert found["lag"] == {"settle": 4 * defaults, "load": None}
    assert (found["open"], found["holders"], found["processes"]) == ({"commands": 0, "notices": 0}, {}, {})

    journal_ticks(home, AT, AT + dt.timedelta(minutes=15))
    with closing(open_log(home.events)) as events:
        events.append("settle", [events_row(0, 0, [entry_event(0)])], {"settle": {"0": defaults + 2, "1": defaults}})
    (home.run / "settle.lock").write_text("4242\n")
    with (home.run / "settle.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = json.loads(hisob(home.path, "status", "--json").stdout)
        assert found["last_tick"] == "2025-09-15T03:15:00Z"
        assert (found["lag"]["settle"], found["event_rows"]) == (2 + 2 * (defaults + 2), 1)
        assert found["holders"] == {"settle": 4242}
        text = hisob(home.path, "status").stdout
        assert "settle (pid 4242)" in text
        assert f"{found['lag']['settle']} records behind" in text
    assert json.loads(hisob(home.path, "status", "--json").stdout)["holders"] == {}


def test_ids_are_rendered_for_the_kinds_that_have_one():
    assert set(EVENT_ID) < set(EVENTS)
    assert Home(Path("h")).settings == Path("h/hisob.toml")


def test_status_counts_what_is_open_as_last_loaded(home):
    """Open: a command neither answered, superseded nor expired; a notice that can be sent and has no final receipt."""
    journal_ticks(home, AT)
    with duckdb.connect(home.published) as con:
        con.execute("CREATE SCHEMA load")
        con.execute("CREATE TABLE load.progress (log TEXT, partition INTEGER, end_position BIGINT)")
        con.execute("INSERT INTO load.progress VALUES ('journal', 0, 10), ('journal', 0, 20), ('events', 1, 0)")
        tables = {
            "commands": pa.Table.from_pylist(
                [
                    {"command_id": "0-0-0", "expires_at": AT + dt.timedelta(hours=1)},  # open
                    {"command_id": "0-1-0", "expires_at": AT + dt.timedelta(hours=1)},  # answered
                    {"command_id": "0-2-0", "expires_at": AT + dt.timedelta(hours=1)},  # superseded by the next
                    {"command_id": "0-3-0", "expires_at": AT + dt.timedelta(hours=1), "supersedes": "0-2-0"},  # open
                    {"command_id": "0-4-0", "expires_at": AT},  # expired
                ],
                schema=EVENT_SCHEMAS["command"].append(pa.field("command_id", pa.string())),
            ),
            "notices": pa.Table.from_pylist(
                [
                    {"notice_id": "0-0-1", "phone": "+998"},
                    {"notice_id": "0-1-1", "phone": "+998"},
                    {"notice_id": "0-2-1"},
                ],
                schema=EVENT_SCHEMAS["notice"].append(pa.field("notice_id", pa.string())),
            ),
            "acknowledgements": pa.Table.from_pylist(
                [{"command_id": "0-1-0"}], schema=RECORD_SCHEMAS["acknowledgement"]
            ),
            "receipts": pa.Table.from_pylist(
                [{"notice_id": "0-0-1", "status": "accepted"}, {"notice_id": "0-1-1", "status": "delivered"}],
                schema=RECORD_SCHEMAS["receipt"],
            ),
        }
        for name, table in tables.items():
            con.register("given", table)
            con.execute(f"CREATE TABLE {name} AS FROM given")
    found = json.loads(hisob(home.path, "status", "--json").stdout)
    assert found["open"] == {"commands": 2, "notices": 1}
    assert found["lag"]["load"] == found["journal_records"] - 20
