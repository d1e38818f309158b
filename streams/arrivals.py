"""Records that arrive live: one process's way into the journal. The poller's readings, answers, receipts, payments, orders.

What is promised: what one call takes is in the journal whole or not at all, together with what the caller wants committed
beside it (how far it has come, say); checked by the contract as files are; in the order, in the partition and with the
account that `streams.ingest` would have given the same records. Ticks are made by the clock alone (`tick`), never by records.

The directory is kept in memory, and hears under the journal's lock what others have journalled: any number of processes may
have an `Arrivals`. For one thread at a time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from accounting.moments import moment_of, us_of
from accounting.records import FILE_KINDS, TIME, TYPES, Column
from connectors.directory import Directory
from connectors.files.check import Checker, arrivals
from connectors.files.formats import RawBatch, columns_of
from connectors.files.stage import as_staged
from connectors.home import Home
from connectors.log import NewRow, Transaction
from connectors.log.body import decode, encode
from connectors.log.sqlite import open_log
from streams.ingest import BATCH_ROWS, CONSUMER
from streams.merge import Chunk
from streams.turns import QUARTER_US, STARTS_CLOCK, TICK_NUMBER, Journalling

NEVER = np.iinfo(np.int64).max

Records = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Place:
    """Where a record stands. With a count to it, it is the id of an event that came of the record."""

    partition: int
    ordinal: int


class Arrivals:
    """Takes records into a home's journal under the producer's name."""

    def __init__(self, home: Home, producer: str) -> None:
        """Open the journal. `close` it at the end."""
        self._producer = producer
        self._saved = home.scratch / "directory.npz"
        self._log = open_log(home.journal)
        self._directory: Directory | None = None  # None too after an error: it may have heard what is not journalled
        self._checkers = {
            kind: Checker(kind, producer, partitions=self._log.partitions - 1, until=NEVER) for kind in FILE_KINDS
        }

    def take(self, records: Records, commits: Mapping[str, Mapping[str, int]] | None = None) -> dict[str, list[Place]]:
        """Journal records, kind by kind as rows of the contract's columns, in one transaction with the commits.

        Times are aware datetimes; optional columns may be absent or None. Gives the place of each record, by kind, in the
        order given (of tariffs: by version and block); tariffs and policies stand in every partition, theirs is the one in
        *unrouted*. Raises ValueError, naming
        the row and the column, if a record does not keep the contract: then nothing is taken.
        """
        batches = {kind: self._checked(kind, records[kind]) for kind in FILE_KINDS if records.get(kind)}
        if unknown := sorted(set(records) - set(FILE_KINDS)):
            raise ValueError(f"unknown kind {', '.join(map(repr, unknown))}: the kinds are {', '.join(FILE_KINDS)}")
        places: dict[str, list[Place]] = {kind: [] for kind in records}
        if not batches and not commits:
            return places
        with self._turn() as (transaction, directory):
            if batches:
                chunk, order_of = _in_order(batches, directory)
                journalling = Journalling(self._log, directory, list(batches), BATCH_ROWS, producer=self._producer)
                stand = journalling.take_whole(transaction, chunk)
                for number, kind in enumerate(batches):
                    places[kind] = _as_given(stand, chunk.source == number, order_of[kind])
            for consumer, values in (commits or {}).items():
                transaction.commit(consumer, values)
        return places

    def committed(self, consumer: str) -> dict[str, int]:
        """What has been committed for a consumer, by key."""
        return self._log.committed(consumer)

    def knows_account(self, account_id: str) -> bool:
        """Whether a version of the account has arrived."""
        with self._turn() as (_, directory):
            return directory.knows(account_id)

    def last_tick(self) -> dt.datetime | None:
        """The last tick in the journal."""
        with self._turn() as (transaction, directory):
            last = _last_tick(transaction, directory)
        return None if last is None else moment_of(last)

    def tick(self, at: dt.datetime) -> bool:
        """Journal a tick, in every partition. False, and nothing is done: one at or after it is there, or the journal holds
        no record yet that starts the clock (tariffs and policies do not: history may still be ingested).
        """
        at_us = us_of(at)
        if at_us % QUARTER_US:
            raise ValueError(f"{at} is not a quarter of an hour")
        with self._turn() as (transaction, directory):
            last = _last_tick(transaction, directory)
            if (last is not None and at_us <= last) or (last is None and not self._has_begun()):
                return False
            batch = pa.record_batch({"ticked_at": pa.array([at_us]).view(TIME)})
            body = encode((np.array([TICK_NUMBER], np.uint8), np.array([1], np.uint32)), {"tick": batch})
            ends = [transaction.end(partition) for partition in range(self._log.partitions)]
            transaction.append(self._producer, [NewRow(p, end, 1, body) for p, end in enumerate(ends)])
            transaction.commit(CONSUMER, {"next_tick": at_us + QUARTER_US})  # as ingest does, which goes on from there
        return True

    def close(self) -> None:
        """Let go of the journal."""
        self._log.close()

    @contextmanager
    def _turn(self) -> Iterator[tuple[Transaction, Directory]]:
        """The turn to write, with a directory that knows all that is journalled."""
        if self._directory is None:
            self._directory = Directory.load(self._saved, self._log)
            self._directory.catch_up(self._log)  # most of it before the turn: others need not wait for that
        directory = self._directory
        try:
            with self._log.writing() as transaction:
                directory.catch_up(self._log, transaction)
                yield transaction, directory
        except BaseException:
            self._directory = None
            raise

    def _has_begun(self) -> bool:
        for partition in range(self._log.partitions):
            position = 0
            while rows := self._log.read(partition, position):
                if any(STARTS_CLOCK[decode(row.body, ()).runs_kind].any() for row in rows):
                    return True
                position = rows[-1].end
        return False

    def _checked(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
        """The rows as a batch of the contract's columns. Raises ValueError."""
        columns = columns_of(kind)
        for number, row in enumerate(rows):
            if unknown := row.keys() - {column.name for column in columns}:
                raise ValueError(f"{kind} {number}: there is no column {min(unknown)!r}")
        given = {column.name: [row.get(column.name) for row in rows] for column in columns}
        typed = {c.name: _typed(kind, c, given[c.name]) for c in columns if not c.optional or _any_of(given[c.name])}
        checked = self._checkers[kind].check(RawBatch(np.arange(len(rows)), typed))
        if checked.bad.num_rows:
            bad = checked.bad.slice(0, 1).to_pylist()[0]
            raise ValueError(f"{kind} {bad['row']}: {bad['column']} is {bad['value']!r}: {bad['reason']}")
        if checked.good.num_rows < len(rows):
            raise ValueError(f"{kind}: a row without any value")
        return checked.good


def _any_of(values: Sequence[Any]) -> bool:
    """Whether there is a value among them."""
    return any(value is not None for value in values)


_PYTHON = {"text": str, "json": str, "int": int, "date": dt.date, "time": dt.datetime, "float": float}


def _typed(kind: str, column: Column, values: Sequence[Any]) -> pa.Array:
    """A column in Arrow. Nothing is converted: a float is no whole number, a naive time no moment."""
    for number, value in enumerate(values):
        if value is None:
            continue
        fits = isinstance(value, _PYTHON[column.type]) and not isinstance(value, bool)
        if column.type == "date":
            fits = fits and not isinstance(value, dt.datetime)
        if not fits or (isinstance(value, dt.datetime) and value.tzinfo is None):
            raise ValueError(f"{kind} {number}: {column.name} is {value!r}, which is no {column.type}")
    try:
        return pa.array(values, TYPES[column.type])
    except (pa.ArrowInvalid, OverflowError) as error:
        raise ValueError(f"{kind}: {column.name}: {error}") from error


def _in_order(
    batches: Mapping[str, pa.RecordBatch], directory: Directory
) -> tuple[Chunk, dict[str, NDArray[np.int64]]]:
    """The records in order of arrival, and at one moment of kinds, as ingest has them; and each kind's own order."""
    moments, sources, parts, order_of = [], [], {}, {}
    for number, (kind, checked) in enumerate(batches.items()):
        batch = as_staged(kind, checked, directory.meters)
        at = arrivals(kind, batch)
        order_of[kind] = np.argsort(at, kind="stable")
        moments.append(at[order_of[kind]])
        sources.append(np.full(len(at), number, np.int32))
        parts[number] = [batch.take(pa.array(order_of[kind]))]
    arrival, source = np.concatenate(moments), np.concatenate(sources)
    order = np.argsort(arrival, kind="stable")
    return Chunk(arrival[order], source[order], parts), order_of


def _as_given(
    places: tuple[NDArray[np.int64], NDArray[np.int64]], is_kind: NDArray[np.bool_], order: NDArray[np.int64]
) -> list[Place]:
    """The places of a kind's records, in the order in which they were given."""
    found = [places[i][is_kind][np.argsort(order)].tolist() for i in range(2)]
    return [Place(partition, ordinal) for partition, ordinal in zip(*found, strict=True)]


def _last_tick(transaction: Transaction, directory: Directory) -> int | None:
    """The last tick, in µs."""
    due = transaction.committed(CONSUMER).get("next_tick")
    ticks = [at for at in (directory.last_tick, None if due is None else due - QUARTER_US) if at is not None]
    return max(ticks, default=None)
