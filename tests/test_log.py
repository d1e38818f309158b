"""The log: its SQLite engine under the protocol's promises and under what a machine does to it; the codec of its bodies."""

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.register_assert_rewrite("log_conformance")
from log_bodies import readings, row, ticks  # noqa: E402
from log_conformance import PARTITIONS, LogConformance  # noqa: E402
from log_writer import transaction  # noqa: E402

from accounting.records import EVENT_SCHEMAS, EVENTS, RECORD_SCHEMAS, RECORDS  # noqa: E402
from connectors.log import NewRow, TerminalLogError, TransientLogError  # noqa: E402
from connectors.log.body import KIND_NAMES, KIND_NUMBER, decode, encode, pack, runs_of, same_records, unpack  # noqa: E402
from connectors.log.sqlite import create_log, open_log  # noqa: E402

TESTS = Path(__file__).parent
WRITER = TESTS / "log_writer.py"


class SqliteEngine:
    def __init__(self, path):
        self.path = path

    def create(self, partitions):
        create_log(self.path, partitions)
        return self.open()

    def open(self, **options):
        return open_log(self.path, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


class TestSqlite(LogConformance):
    @pytest.fixture
    def engine(self, path):
        return SqliteEngine(path)


def start_writer(path, producer, first, count, *more):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))}
    command = [sys.executable, WRITER, path, producer, str(first), str(count), *more]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def let_go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def check_whole_transactions(log, producer):
    """All partitions hold the same transactions of the producer, numbered without a gap, each record once; how many."""
    numbers = []
    for partition in range(log.partitions):
        position, rows = 0, []
        while batch := log.read(partition, position):
            for r in batch:
                assert r.position == position
                position = r.end
                rows += [r] if r.producer == producer else []
        assert position == log.end(partition)
        numbers.append([r.sequence for r in rows])
        for r in rows:
            assert r.body == transaction(r.sequence, log.partitions)[partition].body
    assert all(n == list(range(len(n))) for n in numbers)
    assert len({len(n) for n in numbers}) == 1
    assert log.committed(producer) == ({"number": len(numbers[0]) - 1} if numbers[0] else {})
    return len(numbers[0])


# ---- several processes -----------------------------------------------------------------------------------------------


def test_four_processes_append_at_once_and_nothing_is_lost(path):
    create_log(path, PARTITIONS)
    count = 100
    writers = [start_writer(path, f"writer {i}", 0, count) for i in range(4)]
    for writer in writers:
        let_go(writer)
    with closing(open_log(path)) as log:
        reads = 0
        while any(writer.poll() is None for writer in writers):  # readers need not wait
            reads += len(log.read(0, max(0, log.end(0) - 1)))
        assert reads
        assert [writer.wait() for writer in writers] == [0] * 4
        assert [check_whole_transactions(log, f"writer {i}") for i in range(4)] == [count] * 4
        records = 4 * sum(number % 5 + 1 for number in range(count))
        assert [log.end(partition) for partition in range(PARTITIONS)] == [records] * PARTITIONS


def test_a_writer_killed_at_any_moment_leaves_whole_transactions(path):
    create_log(path, PARTITIONS)
    chance = random.Random(7)
    durable = 0
    for _ in range(12):
        writer = start_writer(path, "w", durable, 100_000)
        let_go(writer)
        said = int(writer.stdout.readline())
        time.sleep(chance.uniform(0, 0.1))
        writer.kill()
        said = max(said, *map(int, writer.stdout.read().split()), 0)
        writer.wait()
        with closing(open_log(path)) as log:
            found = check_whole_transactions(log, "w")
            assert found > said, "what was said to be durable is not there"
            assert found <= said + 2
            # Whoever was killed does not know what was written last, and offers it again.
            log.append("w", transaction(found - 1, PARTITIONS))
            assert check_whole_transactions(log, "w") == found
        durable = found
    assert durable > 12


def test_a_log_opened_twice_in_a_process_keeps_what_it_writes_after_another_process_closed_it(path):
    """Opening and closing the file once more must not let go of the locks that keep its write-ahead log from being removed."""
    create_log(path, PARTITIONS)
    with closing(open_log(path)) as log:
        log.append("first", transaction(0, log.partitions), {"first": {"number": 0}})
        open_log(path, readonly=True).close()
        other = start_writer(path, "other", 0, 1)
        let_go(other)
        assert other.wait(60) == 0
        log.append("first", transaction(1, log.partitions), {"first": {"number": 1}})
        reader = (
            "import sys; from connectors.log.sqlite import open_log; print(open_log(sys.argv[1]).committed('first'))"
        )
        found = subprocess.run([sys.executable, "-c", reader, path], capture_output=True, text=True, check=True)
    assert found.stdout == "{'number': 1}\n"
    with closing(open_log(path)) as log:
        assert check_whole_transactions(log, "first") == 2
        assert check_whole_transactions(log, "other") == 1


def test_one_that_has_just_written_does_not_overtake_one_that_waits(path):
    create_log(path, PARTITIONS)
    order = []
    with closing(open_log(path)) as busy, closing(open_log(path)) as patient:

        def write_in_turn():
            with patient.writing():
                order.append("patient")

        waiting = threading.Thread(target=write_in_turn)
        with busy.writing():
            order.append("busy")
            waiting.start()
            time.sleep(0.1)  # it stands at the head of the line by now
        with busy.writing():
            order.append("busy")
        waiting.join()
    assert order == ["busy", "patient", "busy"]


def test_two_threads_of_a_process_take_turns(path):
    create_log(path, PARTITIONS)
    with closing(open_log(path)) as log:

        def write(producer):
            for number in range(50):
                log.append(producer, transaction(number, PARTITIONS), {producer: {"number": number}})

        threads = [threading.Thread(target=write, args=(producer,)) for producer in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [check_whole_transactions(log, producer) for producer in "ab"] == [50, 50]


def test_a_log_opened_before_a_fork_does_not_write_after_it(path):
    create_log(path, PARTITIONS)
    with closing(open_log(path)) as log:
        child = os.fork()
        if child == 0:
            try:
                log.append("a", [row(0, 0)])
            except TerminalLogError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert log.end(0) == 0


# ---- locked ----------------------------------------------------------------------------------------------------------


def test_a_lock_held_too_long_is_told_with_the_pid_of_the_holder(path):
    create_log(path, PARTITIONS)
    holder = start_writer(path, "h", 0, 1, "holding")
    let_go(holder)
    assert holder.stdout.readline() == "holding\n"
    try:
        with closing(open_log(path, lock_timeout_s=0.2)) as log:
            with pytest.raises(TransientLogError, match=f"process {holder.pid} "):
                log.append("a", [row(0, 0)])
            assert log.read(0, 0) == []  # reading goes on
            holder.kill()
            holder.wait()
            assert log.append("a", [row(0, 0)]) == [0]  # and the lock is gone with its holder
    finally:
        holder.kill()
        holder.wait()


def test_a_file_locked_by_another_program_is_a_transient_error(path):
    create_log(path, PARTITIONS)
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as stranger,
        closing(open_log(path, lock_timeout_s=0.2)) as log,
    ):
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransientLogError, match="locked"):
            log.append("a", [row(0, 0)])
        stranger.execute("ROLLBACK")
        assert log.append("a", [row(0, 0)]) == [0]


# ---- a full disk -----------------------------------------------------------------------------------------------------


def fill(log, producer, tries):
    """Append until the disk says no; how many rows were taken."""
    noise = np.random.default_rng(3)
    for number in range(tries):
        try:
            log.append(producer, [NewRow(p, number, 1, noise.bytes(50_000)) for p in range(PARTITIONS)])
        except TransientLogError:
            return number
    raise AssertionError("the disk was never full")


def check_full(log, taken):
    for partition in range(PARTITIONS):
        assert log.end(partition) == taken
        assert [r.sequence for r in log.read(partition, 0, max_rows=1000)] == list(range(taken))


def test_a_full_disk_is_a_transient_error_and_nothing_is_half_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 1_000_000)
        create_log(disk / "journal.db", PARTITIONS)
        with closing(open_log(disk / "journal.db")) as log:
            taken = fill(log, "a", 100)
            assert taken > 1
            check_full(log, taken)
            with pytest.raises(TransientLogError, match="full"):
                log.append("a", [NewRow(0, taken, 1, os.urandom(500_000))])
            ballast.unlink()
            assert log.append("a", [row(p, taken) for p in range(PARTITIONS)]) == [taken] * PARTITIONS
        with closing(open_log(disk / "journal.db")) as log:
            check_full(log, taken + 1)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_limit_on_the_size_of_files_is_a_transient_error_and_nothing_is_half_written(path):
    create_log(path, PARTITIONS)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(open_log(path)) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, unlimited[1]))
        try:
            taken = fill(log, "a", 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert taken > 1
        check_full(log, taken)
        assert log.append("a", [row(p, taken) for p in range(PARTITIONS)]) == [taken] * PARTITIONS


def test_a_log_at_its_greatest_size_is_a_transient_error(path):
    create_log(path, PARTITIONS)
    with closing(open_log(path)) as log:
        log._writer.execute("PRAGMA max_page_count=100")
        taken = fill(log, "a", 100)
        check_full(log, taken)
        with pytest.raises(TransientLogError, match="full"):
            log.append("a", [NewRow(0, taken, 1, os.urandom(5_000_000))])


# ---- files that are no log, or no longer -----------------------------------------------------------------------------


def filled_log(path):
    create_log(path, PARTITIONS)
    with closing(open_log(path)) as log:
        for number in range(40):
            log.append("a", [NewRow(p, number, 3, readings(["x", "y", f"{number}"])) for p in range(PARTITIONS)])
            log.append("b", [NewRow(p, number, 1, random.Random(number).randbytes(20_000)) for p in range(PARTITIONS)])


def read_all(path):
    with closing(open_log(path, readonly=True)) as log:
        return [log.read(partition, 0, max_rows=1000) for partition in range(log.partitions)]


def newer(path):
    create_log(path, 1)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=2")


def foreign(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")


def cut(path, size):
    filled_log(path)
    os.truncate(path, size)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "hisob init"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b""), "empty or cut short"),
        (lambda path: path.write_text("meter_id,read_at\n" * 100), "is not a log"),
        (foreign, "is not a log"),
        (newer, "format 2"),
        (lambda path: cut(path, 50), "cut short"),
        (lambda path: cut(path, 16_384), "damaged or cut short"),
        (lambda path: cut(path, 500_000), "damaged or cut short"),
    ],
    ids=[
        "missing",
        "folder",
        "empty",
        "text",
        "another database",
        "newer",
        "cut in the header",
        "cut after it",
        "cut in half",
    ],
)
def test_what_is_no_log_is_told_clearly(path, make, says):
    make(path)
    for readonly in (False, True):
        with pytest.raises(TerminalLogError, match=says):
            open_log(path, readonly=readonly).close()


def test_a_byte_damaged_anywhere_is_never_taken_for_a_record(path):
    filled_log(path)
    whole, rows = path.read_bytes(), read_all(path)
    chance = random.Random(5)
    found = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            read = read_all(path)
        except TerminalLogError:
            found += 1
        else:
            assert all(r == w[: len(r)] for r, w in zip(read, rows, strict=True))
    assert found > 100  # most bytes are somebody's record


def test_a_damaged_file_is_told_when_writing(path):
    filled_log(path)
    with path.open("r+b") as file:
        file.seek(16_384)
        file.write(b"\xff" * 3 * 16_384)
    with pytest.raises(TerminalLogError, match="damaged"), closing(open_log(path)) as log:
        log.append("a", [row(0, 40)])


def test_a_log_is_made_once(path):
    filled_log(path)
    before = path.read_bytes()
    with pytest.raises(TerminalLogError, match="already"):
        create_log(path, PARTITIONS)
    assert path.read_bytes() == before


def test_a_log_in_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(TerminalLogError, match="No such file"):
        create_log(tmp_path / "none" / "journal.db", 1)


def test_an_interrupted_making_leaves_no_log_and_is_made_good(path):
    Path(f"{path}.new").write_bytes(b"half a log")
    create_log(path, PARTITIONS)
    assert read_all(path) == [[], [], []]


def test_a_log_opened_read_only_does_not_write(path):
    filled_log(path)
    with closing(open_log(path, readonly=True)) as log:
        with pytest.raises(TerminalLogError, match="read-only"):
            log.append("a", [row(0, 99)])
        assert len(log.read(0, 0, max_rows=1000)) == 80


def test_a_read_only_folder_is_read_and_not_written():
    """As nobody, if we are root, who may write everywhere."""
    folder = Path(tempfile.mkdtemp())
    path = folder / "journal.db"
    try:
        filled_log(path)
        folder.chmod(0o555)
        for file in folder.iterdir():
            file.chmod(0o444)
        child = os.fork()
        if child == 0:
            if os.getuid() == 0:
                os.setuid(65_534)
            try:
                code = 0 if [len(rows) for rows in read_all(path)] == [80] * PARTITIONS else 1
                try:
                    open_log(path)
                except TerminalLogError:
                    os._exit(code)
                os._exit(2)
            finally:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_long_reader_does_not_keep_a_writer_waiting(path):
    filled_log(path)
    with (
        closing(open_log(path, lock_timeout_s=0.2)) as log,
        closing(sqlite3.connect(path, isolation_level=None)) as reader,
    ):
        reader.execute("BEGIN")
        before = reader.execute("SELECT count(*) FROM row").fetchone()
        log.append("a", [row(0, 99)])
        assert reader.execute("SELECT count(*) FROM row").fetchone() == before
        assert log.last(0, "a") == 99


# ---- bodies ----------------------------------------------------------------------------------------------------------

INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = {  # of a column's type: what its values are drawn from, and as what
    pa.string(): (st.one_of(st.sampled_from(["", "a", "b", "oʻzbek", "кирил"]), st.text(max_size=8)), pa.string()),
    pa.int64(): (INT64, pa.int64()),
    pa.timestamp("us", tz="UTC"): (INT64, pa.int64()),
    pa.date32(): (st.integers(-(2**31), 2**31 - 1), pa.int32()),
}


@st.composite
def batches(draw, kind, size):
    """The contract's columns of a kind, some absent, some without a value, texts plain or as (slices of) dictionaries."""
    schema = EVENT_SCHEMAS[kind] if kind in EVENTS else RECORD_SCHEMAS[kind]
    columns = {}
    if kind in EVENTS:
        columns["ordinal"] = pa.array(draw(st.lists(st.integers(0, 2**62), min_size=size, max_size=size)), pa.int64())
        columns["n"] = pa.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=size, max_size=size)), pa.int32())
    for column, field in zip(EVENTS.get(kind) or RECORDS[kind], schema, strict=True):
        how = draw(st.sampled_from(["values", "values and nulls", "nulls", "absent"])) if column.optional else "values"
        if how == "absent":
            continue
        value, drawn_as = VALUES[field.type]
        value = {"values": value, "values and nulls": value | st.none()}.get(how, st.none())
        array = pa.array(draw(st.lists(value, min_size=size, max_size=size)), drawn_as).cast(field.type)
        if pa.types.is_string(field.type) and draw(st.booleans()):
            array = pa.concat_arrays([pa.array(["unused", "x"]), array]).dictionary_encode()[2:]
        columns[field.name] = array
    return pa.record_batch(columns)


@st.composite
def bodies(draw):
    kinds = draw(st.lists(st.integers(0, len(KIND_NAMES) - 1), min_size=1, max_size=12))
    return kinds, {
        KIND_NAMES[kind]: draw(batches(KIND_NAMES[kind], kinds.count(kind))) for kind in dict.fromkeys(kinds)
    }


def plain(array):
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


@settings(max_examples=60, deadline=None)
@given(bodies())
def test_a_body_gives_back_what_was_put_into_it(given_body):
    kinds, given_batches = given_body
    body = encode(
        runs_of(np.array(kinds, np.uint8)), {kind: pack(kind, batch) for kind, batch in given_batches.items()}
    )
    found = decode(body)
    assert np.repeat(found.runs_kind, found.runs_count).tolist() == kinds
    assert found.count == len(kinds)
    assert found.batches.keys() == given_batches.keys()
    for kind, batch in given_batches.items():
        schema = EVENT_SCHEMAS[kind] if kind in EVENTS else RECORD_SCHEMAS[kind]
        back = unpack(kind, found.batches[kind])
        assert back.schema.names == [*(["ordinal", "n"] if kind in EVENTS else []), *schema.names]
        for name, array in zip(back.schema.names, back.columns, strict=True):
            expected = (
                plain(batch.column(name)) if name in batch.schema.names else pa.nulls(len(array), plain(array).type)
            )
            assert plain(array).equals(expected), (kind, name)
    # Whoever reads it may write it again.
    again = encode((found.runs_kind, found.runs_count), {k: pack(k, unpack(k, b)) for k, b in found.batches.items()})
    assert same_records(body, again)


def test_only_the_kinds_asked_for_are_decoded():
    kinds = [KIND_NUMBER["tick"], KIND_NUMBER["reading"], KIND_NUMBER["tick"]]
    tick = pack("tick", unpack("tick", decode(ticks(5, 2)).batches["tick"]))
    reading = decode(readings(["m"])).batches["reading"]
    body = encode(runs_of(np.array(kinds, np.uint8)), {"tick": tick, "reading": reading})
    found = decode(body, ("reading",))
    assert (list(found.batches), found.count) == (["reading"], 3)
    assert unpack("reading", found.batches["reading"]).column("meter_id").to_pylist() == ["m"]


def test_a_slice_of_a_dictionary_does_not_carry_the_whole_of_it():
    names = pa.array([f"meter-{i:08d}" for i in range(100_000)])
    many = pa.DictionaryArray.from_arrays(pa.array(range(100_000), pa.int32()), names)
    batch = pack("reading", pa.record_batch({"meter_id": many[:10], "register_wh": pa.array(range(10))}))
    assert len(encode(runs_of(np.full(10, KIND_NUMBER["reading"], np.uint8)), {"reading": batch})) < 10_000


@pytest.mark.parametrize("body", [b"", b"HSB1", b"HSB2" + bytes(20), b"nothing of the kind"])
def test_bytes_that_are_no_body_are_told(body):
    with pytest.raises(ValueError, match="not a log body"):
        decode(body)
