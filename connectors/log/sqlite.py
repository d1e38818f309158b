"""The embedded engine of the log: one SQLite file, several processes, no server.

What it promises, beyond the protocol (`connectors.log`):

- What `append` returned from is on the disk: write-ahead log, `synchronous=FULL`. A process killed at any moment, or the power
  lost, leaves whole transactions only.
- Readers never wait for writers nor writers for readers. SQLite is unfair among busy writers, so they stand in line instead:
  one *turn* (`….lock`), and one place at the head of the line (`….queue`) that a writer keeps until it has the turn. One that
  has just written therefore cannot overtake one that waits.
- Every row carries a checksum of all that it holds: a page damaged on the disk is an error, never another number.
- Whatever SQLite says comes out as a `LogError` that tells whether to try again and what to do.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import threading
import time
import zlib
from collections import Counter
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from connectors.log import DivergedError, LogError, NewRow, Row, TerminalLogError, TransientLogError
from connectors.log.body import same_records
from connectors.small_files import sync

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

APPLICATION_ID = 0x4853424C  # "HSBL", in the file's header: by it `file` and we know a log
FORMAT_VERSION = 1
LOCK_TIMEOUT_S = 30.0
# 16 KiB: a small commit writes whole pages, a long row should not be cut into many. Measured from 4 to 64 KiB.
PAGE_BYTES = 16_384
# Room for some hundred long rows in the write-ahead log before they are moved into the file, in one go.
CHECKPOINT_PAGES = 4_096
POLL_S = 0.0005
POLL_MOST_S = 0.005

_SCHEMA = """
CREATE TABLE log (partitions INTEGER NOT NULL);
CREATE TABLE row (
    id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, position INTEGER NOT NULL, count INTEGER NOT NULL,
    producer TEXT NOT NULL, sequence INTEGER NOT NULL, checksum INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE UNIQUE INDEX row_by_position ON row (partition, position, count);
CREATE UNIQUE INDEX row_by_sequence ON row (partition, producer, sequence);
CREATE TABLE commitment (
    consumer TEXT NOT NULL, key TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (consumer, key)
) WITHOUT ROWID;
"""
_HEADER = struct.Struct(">16s44xI4xI")  # of an SQLite file: magic, user_version, application_id
_ROW_HEAD = struct.Struct("<qqqq")


def create_log(path: str | Path, partitions: int) -> None:
    """Make an empty log of `partitions` partitions, numbered from 0. It is there whole or not at all."""
    path = Path(path)
    if partitions < 1:
        raise TerminalLogError(f"A log has at least one partition, not {partitions}.")
    turn = _Turn(path)
    new = path.with_name(path.name + ".new")
    try:
        with turn.held(LOCK_TIMEOUT_S), _clear_errors(path):
            if path.exists():
                raise TerminalLogError(f"{path} is there already; a log is made once.")
            for leftover in (new, Path(f"{new}-wal"), Path(f"{new}-shm"), Path(f"{new}-journal")):
                leftover.unlink(missing_ok=True)
            db = sqlite3.connect(new, isolation_level=None)
            try:
                db.execute(f"PRAGMA page_size={PAGE_BYTES}")
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={FORMAT_VERSION}")
                db.executescript(_SCHEMA)
                db.execute("INSERT INTO log VALUES (?)", (partitions,))
            finally:
                db.close()
            new.rename(path)
            sync(path.parent)
    finally:
        turn.close()


def open_log(path: str | Path, *, readonly: bool = False, lock_timeout_s: float = LOCK_TIMEOUT_S) -> SqliteLog:
    """Open the log at `path`. One for each process: it does not survive a fork.

    Raises TerminalLogError where there is no log, none that this version reads, or a damaged one.
    """
    return SqliteLog(Path(path), readonly=readonly, lock_timeout_s=lock_timeout_s)


class SqliteLog:
    """A `connectors.log.Log` in an SQLite file. Reads see what is committed, those of the writing process too."""

    def __init__(self, path: Path, *, readonly: bool, lock_timeout_s: float) -> None:
        self.path = path
        self._file = _enter(path)
        self._is_closed = False
        self._lock_timeout_s = lock_timeout_s
        self._pid = os.getpid()
        self._turn: _Turn | None = None
        self._writer: sqlite3.Connection | None = None
        self._one_writer = threading.Lock()
        with _clear_errors(path):
            try:
                self._reader = _connect_readonly(path, lock_timeout_s) if readonly else _connect(path, lock_timeout_s)
            except BaseException:
                _leave(self._file)
                raise
            try:
                (self._partitions,) = self._reader.execute("SELECT partitions FROM log").fetchone()
                if not readonly:
                    self._turn = _Turn(path)
                    self._writer = _connect(path, lock_timeout_s)
            except BaseException:
                self.close()
                raise

    @property
    def partitions(self) -> int:
        """How many partitions there are."""
        return int(self._partitions)

    @contextmanager
    def writing(self) -> Iterator[SqliteTransaction]:
        """Wait for the turn to write and hold it. An exception inside undoes all of it."""
        if self._turn is None or self._writer is None:
            raise TerminalLogError(f"{self.path} was opened read-only.")
        if os.getpid() != self._pid:
            raise TerminalLogError(f"{self.path} was opened before a fork: open it anew in this process.")
        if not self._one_writer.acquire(timeout=self._lock_timeout_s):
            raise TransientLogError(f"{self.path}: another thread of this process has been writing for too long.")
        try:
            with self._turn.held(self._lock_timeout_s), _clear_errors(self.path):
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield SqliteTransaction(self.path, self._writer, self.partitions)
                    self._writer.execute("COMMIT")
                except BaseException:
                    # A full disk may have ended the transaction already.
                    if self._writer.in_transaction:
                        with suppress(sqlite3.Error):
                            self._writer.execute("ROLLBACK")
                    raise
        finally:
            self._one_writer.release()

    def append(
        self, producer: str, rows: Sequence[NewRow], commits: Mapping[str, Mapping[str, int]] | None = None
    ) -> list[int]:
        """The rows, and commits as {consumer: {key: value}}, together; each row's position."""
        with self.writing() as transaction:
            positions = transaction.append(producer, rows)
            for consumer, values in (commits or {}).items():
                transaction.commit(consumer, values)
        return positions

    def read(self, partition: int, position: int, *, max_rows: int = 64, max_bytes: int = 1 << 26) -> list[Row]:
        """Rows in order from the one that holds `position`; at least one if there is one, then up to the limits."""
        _check_partition(partition, self.partitions)
        with _clear_errors(self.path):
            # The index alone answers the commonest question, that there is nothing new.
            first = self._reader.execute(
                "SELECT position, count FROM row WHERE partition = ? AND position <= ? ORDER BY position DESC LIMIT 1",
                (partition, position),
            ).fetchone()
            if first is None or sum(first) <= position:
                return []
            return self._read_rows(partition, first[0], max_rows, max_bytes)

    def _read_rows(self, partition: int, start: int, max_rows: int, max_bytes: int) -> list[Row]:
        found: list[Row] = []
        size, expected = 0, start
        cursor = self._reader.execute(
            "SELECT position, count, producer, sequence, checksum, body FROM row"
            " WHERE partition = ? AND position >= ? ORDER BY position LIMIT ?",
            (partition, start, max_rows),
        )
        with closing(cursor):  # or it would keep the write-ahead log from being moved into the file
            for position, count, producer, sequence, checksum, body in cursor:
                size += len(body)
                if found and size > max_bytes:
                    break
                row = Row(partition, position, count, producer, sequence, body)
                if position != expected or checksum != _checksum(row):
                    raise _damaged(self.path, f"Record {expected} of partition {partition} is not as it was written.")
                found.append(row)
                expected = row.end
        return found

    def end(self, partition: int) -> int:
        """The position after the partition's last record."""
        with _clear_errors(self.path):
            return _end(self._reader, partition, self.partitions)

    def last(self, partition: int, producer: str) -> int | None:
        """The highest sequence this producer has written to the partition; None: nothing yet."""
        with _clear_errors(self.path):
            return _last(self._reader, partition, producer, self.partitions)

    def commit(self, consumer: str, values: Mapping[str, int]) -> None:
        """Keep these whole numbers for the consumer, by key."""
        with self.writing() as transaction:
            transaction.commit(consumer, values)

    def committed(self, consumer: str) -> dict[str, int]:
        """What the consumer has committed, by key."""
        with _clear_errors(self.path):
            return _committed(self._reader, consumer)

    def close(self) -> None:
        """Let go of the log. What was appended is durable already."""
        for db in (self._reader, self._writer):
            if db is not None:
                db.close()
        if self._turn is not None:
            self._turn.close()
        if not self._is_closed:
            self._is_closed = True
            _leave(self._file)


class SqliteTransaction:
    """A writer's turn, from `SqliteLog.writing`: ends and last sequences are looked up once, then counted on."""

    def __init__(self, path: Path, db: sqlite3.Connection, partitions: int) -> None:
        self._path = path
        self._db = db
        self._partitions = partitions
        self._ends: dict[int, int] = {}
        self._lasts: dict[tuple[int, str], int | None] = {}

    def end(self, partition: int) -> int:
        """The position after the partition's last record, this transaction's own included."""
        if partition not in self._ends:
            self._ends[partition] = _end(self._db, partition, self._partitions)
        return self._ends[partition]

    def last(self, partition: int, producer: str) -> int | None:
        """The highest sequence this producer has written to the partition; None: nothing yet."""
        key = (partition, producer)
        if key not in self._lasts:
            self._lasts[key] = _last(self._db, partition, producer, self._partitions)
        return self._lasts[key]

    def committed(self, consumer: str) -> dict[str, int]:
        """What the consumer has committed, by key."""
        return _committed(self._db, consumer)

    def append(self, producer: str, rows: Sequence[NewRow]) -> list[int]:
        """Write rows in their order; each one's position. Rows that stand there already are left out."""
        return [self._append_row(producer, row) for row in rows]

    def _append_row(self, producer: str, new: NewRow) -> int:
        if new.count < 1:
            raise ValueError(f"a row holds at least one record, not {new.count}")
        last = self.last(new.partition, producer)
        if last is not None and new.sequence <= last:
            return self._find_same(producer, new)
        row = Row(new.partition, self.end(new.partition), new.count, producer, new.sequence, new.body)
        self._db.execute(
            "INSERT INTO row (partition, position, count, producer, sequence, checksum, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.partition, row.position, row.count, row.producer, row.sequence, _checksum(row), row.body),
        )
        self._ends[row.partition] = row.end
        self._lasts[row.partition, producer] = row.sequence
        return row.position

    def _find_same(self, producer: str, new: NewRow) -> int:
        """The position of the row that stands under this sequence, which must hold the same records."""
        stands = self._db.execute(
            "SELECT position, count, body FROM row WHERE partition = ? AND producer = ? AND sequence = ?",
            (new.partition, producer, new.sequence),
        ).fetchone()
        where = f"{self._path}, partition {new.partition}, producer {producer!r}, sequence {new.sequence}"
        if stands is None:
            raise DivergedError(f"{where}: a row is offered where, by what was written after it, there was none.")
        position, count, body = stands
        if count != new.count or not (body == new.body or same_records(body, new.body)):
            raise DivergedError(f"{where}: other records stand there than those offered now. Nothing was written.")
        return int(position)

    def commit(self, consumer: str, values: Mapping[str, int]) -> None:
        """Keep these whole numbers for the consumer, by key."""
        self._db.executemany(
            "INSERT INTO commitment VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            [(consumer, key, value) for key, value in values.items()],
        )


class _Turn:
    """Who may write, among all processes: a line of writers, of which the first waits at the head and the others behind.

    Both are advisory locks of the operating system, gone with the process that held them. The holder's pid stands in the file
    for whoever has waited too long for it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self._lock = os.open(f"{path}.lock", flags, 0o644)
            self._queue = os.open(f"{path}.queue", flags, 0o644)
        except OSError as error:
            raise TerminalLogError(f"{path} cannot be written to: {error.filename}: {error.strerror}.") from error

    @contextmanager
    def held(self, timeout_s: float) -> Iterator[None]:
        """The turn, once it has come. Raises TransientLogError if it does not."""
        until = time.monotonic() + timeout_s
        self._take(self._queue, until)
        try:
            self._take(self._lock, until)
        finally:
            fcntl.flock(self._queue, fcntl.LOCK_UN)
        try:
            os.pwrite(self._lock, f"{os.getpid():10d}\n".encode(), 0)
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _take(self, lock: int, until: float) -> None:
        wait_s = POLL_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise TransientLogError(
                        f"{self._path} is locked: {self._holder()} is writing for too long. Try again, or end that process."
                    ) from None
                time.sleep(wait_s)
                wait_s = min(wait_s * 1.5, POLL_MOST_S)
            else:
                return

    def _holder(self) -> str:
        pid = os.pread(self._lock, 11, 0).decode(errors="replace").strip()
        return f"process {pid}" if pid.isdigit() else "another process"

    def close(self) -> None:
        os.close(self._lock)
        os.close(self._queue)


_logs_open: Counter[tuple[int, int]] = Counter()  # of this process, by device and inode
_entering = threading.Lock()


def _enter(path: Path) -> tuple[int, int]:
    """Check the file's header, unless this process has it open; which file it is, noted as open.

    For whoever opens and closes a file by himself takes all of his process's locks on it away, SQLite's too (that is POSIX).
    Then another process that closes the log believes it is the last one to have it, and removes the write-ahead log that
    this one goes on writing to.
    """
    with _entering:
        try:
            found = path.stat()
        except OSError:
            _check_header(path)  # which says why
            raise
        file = (found.st_dev, found.st_ino)
        if not _logs_open[file]:
            _check_header(path)
        _logs_open[file] += 1
    return file


def _leave(file: tuple[int, int]) -> None:
    with _entering:
        _logs_open[file] -= 1


def _check_header(path: Path) -> None:
    """Whether the file is a log that this version reads, before SQLite sees it (it would take an empty file for its own)."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
    except FileNotFoundError:
        raise TerminalLogError(f"There is no {path}. `hisob init` makes a home with its logs.") from None
    except OSError as error:
        raise TerminalLogError(f"{path} cannot be read: {error.strerror}.") from error
    magic, version, application_id = _HEADER.unpack(head) if len(head) == _HEADER.size else (b"", 0, 0)
    if magic != b"SQLite format 3\0" or application_id != APPLICATION_ID:
        what = "is empty or cut short" if len(head) < _HEADER.size else "is not a log of Hisob"
        raise TerminalLogError(f"{path} {what}. Put the log back from a backup, or make a new home with `hisob init`.")
    if version != FORMAT_VERSION:
        raise TerminalLogError(
            f"{path} has log format {version}; this Hisob reads format {FORMAT_VERSION}. Use the version that wrote it."
        )


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        db.execute(f"PRAGMA journal_size_limit={2 * CHECKPOINT_PAGES * PAGE_BYTES}")
    except BaseException:
        db.close()
        raise
    return db


def _connect_readonly(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A connection that cannot write. Where SQLite may make no side files and there are none: the file as it lies."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    for how in ("", "&immutable=1"):
        db = sqlite3.connect(uri + how, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        try:
            db.execute("SELECT partitions FROM log")
        except sqlite3.OperationalError as error:
            db.close()
            wal = Path(f"{path}-wal")
            folder_closed = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
            if how or not folder_closed or (wal.exists() and wal.stat().st_size):
                raise
        except BaseException:
            db.close()
            raise
        else:
            return db
    raise AssertionError("the loop returns or raises")


def _check_partition(partition: int, partitions: int) -> None:
    if not 0 <= partition < partitions:
        raise ValueError(f"there is no partition {partition}: they are numbered 0 to {partitions - 1}")


def _end(db: sqlite3.Connection, partition: int, partitions: int) -> int:
    _check_partition(partition, partitions)
    row = db.execute(
        "SELECT position + count FROM row WHERE partition = ? ORDER BY position DESC LIMIT 1", (partition,)
    ).fetchone()
    return int(row[0]) if row else 0


def _last(db: sqlite3.Connection, partition: int, producer: str, partitions: int) -> int | None:
    _check_partition(partition, partitions)
    (sequence,) = db.execute(
        "SELECT max(sequence) FROM row WHERE partition = ? AND producer = ?", (partition, producer)
    ).fetchone()
    return sequence


def _committed(db: sqlite3.Connection, consumer: str) -> dict[str, int]:
    return dict(db.execute("SELECT key, value FROM commitment WHERE consumer = ?", (consumer,)))


def _checksum(row: Row) -> int:
    head = _ROW_HEAD.pack(row.partition, row.position, row.count, row.sequence) + row.producer.encode()
    return zlib.crc32(row.body, zlib.crc32(head))


def _damaged(path: Path, why: str) -> TerminalLogError:
    return TerminalLogError(
        f"{path} is damaged or cut short. {why} Put the log back from a backup; do not write to this one."
    )


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Whatever SQLite or the system says of the file, as a LogError."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(path, error) from error


def _explain(path: Path, error: sqlite3.Error) -> LogError:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # the caller misused the module, a closed log for instance
        return TerminalLogError(f"{path}: {error}.")
    primary = code & 0xFF
    said = f"{error} ({error.sqlite_errorname})"
    if primary == sqlite3.SQLITE_FULL:
        return TransientLogError(f"The disk of {path} is full; nothing of this write stays. Make room and try again.")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return TransientLogError(f"{path} is locked by a program that does not stand in line: {said}. Try again.")
    if primary == sqlite3.SQLITE_IOERR:
        return TransientLogError(f"The disk of {path} fails: {said}; nothing of this write stays. Look at that disk.")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return _damaged(path, f"SQLite says: {said}.")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return TerminalLogError(
            f"{path} cannot be opened so: {said}. Look at the permissions of the file and of its folder."
        )
    return TerminalLogError(f"{path}: {said}.")
