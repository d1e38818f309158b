"""From merged records to journal rows: what happens to a chunk of records in one turn at the journal.

A turn holds the journal's lock. In it the directory hears what other processes have journalled, the readings are
routed, the ticks that have passed are put between the records, each partition's share is cut into rows and encoded,
and all of it is appended. So a turn is in the journal whole or not at all, and a reading is always routed by exactly
what stands in the journal before it.

In a partition stand, in merged order: its own records; all tariffs and policies; the ticks, each after the records of
its moment; and, right after a record that is the first to claim a meter, the readings that waited for it in
*unrouted*, by `read_at`, with their first position. The rows in which that sequence lies depend on the sizes of chunk
and row. The sequence does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from accounting.records import TIME, parse_id
from connectors.directory import ACCOUNT, CLAIMING, NONE, READING, Arrivals, Directory, Routes, account_partitions
from connectors.files import STATUSES
from connectors.log import Log, NewRow, Transaction
from connectors.log.body import KIND_NAMES, KIND_NUMBER, encode, pack, runs_of
from streams.merge import Chunk

PRODUCER = "ingest"
QUARTER_US = 15 * 60 * 1_000_000
TO_ALL = ("tariff", "policy")  # every partition needs them
ANSWERS = {"acknowledgement": "command_id", "receipt": "notice_id"}  # they belong where the event came from
EVERYWHERE = -1
ENCODERS = 2  # threads
MOST_WOKEN = 1 << 20  # waiting readings routed on in one turn (all those of one meter, however many they are)
ABSENT = np.iinfo(np.int64).min  # for a number or a time that is not there

READING_NUMBER, TARIFF_NUMBER, TICK_NUMBER = KIND_NUMBER["reading"], KIND_NUMBER["tariff"], KIND_NUMBER["tick"]
STARTS_CLOCK = np.array([kind not in {*TO_ALL, "unreadable"} for kind in KIND_NAMES])
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Turn:
    """What a turn has appended: `taken` records of the chunk, and what came beside them."""

    taken: int
    ticks: int
    routed_on: int
    next_tick: int | None


# ---- ticks -----------------------------------------------------------------------------------------------------------
def pass_ticks(
    arrival: Ints, starts: int | None, next_tick: int | None, *, is_last: bool
) -> tuple[Ints, Ints, int | None]:
    """The ticks that pass among records arriving so: (their times, before which record each stands, the tick due next).

    `starts` is the arrival of the first record that starts the clock, should it not go yet. A tick stands after the
    records of its
    moment, so while more of them may come (`is_last` is false) that of the last moment has not passed.
    """
    if next_tick is None and starts is not None:
        next_tick = -(-starts // QUARTER_US) * QUARTER_US
    if next_tick is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), None
    ticks = np.arange(next_tick, max(int(arrival[-1]) + is_last, next_tick), QUARTER_US, dtype=np.int64)
    return ticks, np.searchsorted(arrival, ticks, side="right"), next_tick + len(ticks) * QUARTER_US


# ---- the turn --------------------------------------------------------------------------------------------------------
class Journalling:
    """Takes turns at the journal. `kinds` says what each source of the chunks holds; batch_rows, how long a row may
    be; producer, under what name rows are appended; makes_ticks is false where a clock makes them.
    """

    def __init__(
        self,
        log: Log,
        directory: Directory,
        kinds: Sequence[str],
        batch_rows: int,
        *,
        producer: str = PRODUCER,
        makes_ticks: bool = True,
    ) -> None:
        self._log, self._directory, self._batch_rows, self._producer = log, directory, batch_rows, producer
        self._makes_ticks = makes_ticks
        self._kinds = np.array([KIND_NUMBER[kind] for kind in kinds], np.uint8)

    def take_turn(self, transaction: Transaction, chunk: Chunk, next_tick: int | None, *, is_last: bool) -> Turn:
        """Append the chunk, or as much of its beginning as one turn should take, with the ticks that pass meanwhile.
        The directory has caught up.
        """
        share, routes = self._route(chunk, room=MOST_WOKEN)
        count = 0
        if self._makes_ticks:
            arrival = chunk.arrival[: routes.taken]
            starts = share.starts_clock_at() if next_tick is None else None
            ticks, before, next_tick = pass_ticks(
                arrival,
                None if starts is None else int(arrival[starts]),
                next_tick,
                is_last=is_last and routes.taken == len(chunk),
            )
            share.set_ticks(ticks, before)
            count = len(ticks)
        routed_on = self._wake(transaction, share, routes)
        self._append(transaction, share)
        return Turn(routes.taken, count, routed_on, next_tick)

    def take_whole(self, transaction: Transaction, chunk: Chunk) -> tuple[Ints, Ints]:
        """Append all of the chunk, whatever it wakes, and no ticks: those are the clock's. The partition and the ordinal of
        each record; of what stands everywhere, those in *unrouted*.
        """
        share, routes = self._route(chunk, room=np.iinfo(np.int64).max)
        self._wake(transaction, share, routes)
        places = share.places(transaction)
        self._append(transaction, share)
        return places

    def _route(self, chunk: Chunk, *, room: int) -> tuple[_Share, Routes]:
        share = _Share(chunk, self._kinds, self._directory)
        routes = self._directory.follow(share.arrivals, room=room)
        share.route(routes)
        return share, routes

    def _wake(self, transaction: Transaction, share: _Share, routes: Routes) -> int:
        """Route on what waited for the claims of this turn: how many."""
        unrouted = self._directory.unrouted
        kinds, rows = share.sequence(unrouted)
        waiting = np.flatnonzero(kinds == READING_NUMBER)
        return share.wake(routes, self._log, rows[waiting], transaction.end(unrouted) + waiting)

    def _append(self, transaction: Transaction, share: _Share) -> None:
        """Encode the rows, several at once (compressing needs no GIL), and append them partition by partition."""
        with ThreadPoolExecutor(ENCODERS) as encoders:
            rows = [
                (partition, kinds, encoders.submit(share.encode, kinds, of_kind))
                for partition in range(self._directory.unrouted + 1)
                for kinds, of_kind in share.rows(partition, self._batch_rows)
            ]
            for partition, kinds, body in rows:
                position = transaction.end(partition)
                transaction.append(self._producer, [NewRow(partition, position, len(kinds), body.result())])
                has_readings = bool((kinds == READING_NUMBER).any())
                self._directory.note_appended(partition, position, len(kinds), has_readings=has_readings)


class _Share:
    """The records of one turn: what they are, where each belongs, and how a partition's part of them is written.

    A record is known by its place in the chunk. For each place: `_kind`, its kind's number; `_row`, its row among
    those of its
    kind; `_partition`, where it belongs.
    """

    def __init__(self, chunk: Chunk, kinds: NDArray[np.uint8], directory: Directory) -> None:
        self._directory = directory
        self._kind = kinds[chunk.source]
        self._row = np.zeros(len(chunk), np.int64)
        self._partition = np.full(len(chunk), directory.unrouted, np.int16)
        self.arrivals = Arrivals.blank(len(chunk))
        self._batches: dict[str, pa.RecordBatch] = {}
        self._readings = Readings.none()
        self._ticks = self._ticks_before = np.zeros(0, np.int64)
        self._woken_by = np.zeros(0, np.int64)  # of the readings routed on: the place of the claim
        self._woken_partition = np.zeros(0, np.int16)
        places_of = {KIND_NAMES[number]: np.flatnonzero(self._kind == number) for number in np.unique(self._kind)}
        for kind, places in places_of.items():
            self._row[places] = np.arange(len(places))
            self._gather(kind, places, _in_order(chunk, kinds, kind, places))
        self._number_claims(places_of)

    def _gather(self, kind: str, places: Ints, batch: pa.RecordBatch) -> None:
        """Note the records of a kind, which are at these places."""
        if kind == "reading":
            self._readings = Readings.of_staged(batch)
            self.arrivals.role[places] = READING
            self.arrivals.meter[places] = self._readings.meter
            self.arrivals.at[places] = self._readings.read_at
            return
        self._batches[kind] = batch
        if kind in CLAIMING:
            self._directory.see(kind, batch, self.arrivals, places)
        if kind in TO_ALL:
            self._partition[places] = EVERYWHERE
        elif kind in ANSWERS:
            self._partition[places] = [parse_id(text)[0] for text in batch.column(ANSWERS[kind]).to_pylist()]
        elif kind != "unreadable":
            self._partition[places] = account_partitions(batch.column("account_id"), self._directory.partitions)

    def _number_claims(self, places_of: dict[str, Ints]) -> None:
        claiming = np.cumsum(self.arrivals.role >= ACCOUNT) + (self._directory.claims_heard - 1)
        for kind in places_of.keys() & CLAIMING.keys():
            numbers = pa.array(claiming[places_of[kind]])
            self._batches[kind] = self._batches[kind].append_column("claim_number", numbers)

    def route(self, routes: Routes) -> None:
        """Keep what the turn takes, and send its readings where they belong."""
        taken = routes.taken
        self._kind, self._row, self._partition = self._kind[:taken], self._row[:taken], self._partition[:taken]
        places = np.flatnonzero(self._kind == READING_NUMBER)
        owner = routes.owner[places]
        routed = owner != NONE
        self._partition[places[routed]] = self._directory.partition_of(owner[routed])
        account = np.where(routes.reaches[places], owner, np.int32(NONE))
        self._readings = replace(self._readings.take(slice(len(places))), account=account)

    def starts_clock_at(self) -> int | None:
        """The place of the first record that starts the clock."""
        starts = STARTS_CLOCK[self._kind]
        return int(starts.argmax()) if starts.any() else None

    def set_ticks(self, ticks: Ints, before: Ints) -> None:
        """These ticks pass, each before the record at a place."""
        self._ticks, self._ticks_before = ticks, before

    def wake(self, routes: Routes, log: Log, waiting: Ints, ordinals: Ints) -> int:
        """Route on what waited for the claims of this turn, in the journal and in the turn itself: how many.

        waiting: the rows of the turn's own readings that go to *unrouted*; ordinals: their positions there.
        """
        claims = routes.woken_at[np.argsort(self.arrivals.meter[routes.woken_at])]
        if not claims.size:
            return 0
        meters = self.arrivals.meter[claims]
        waited = [
            Readings.of_journal(meter, ordinal, batch)
            for meter, ordinal, batch in self._directory.read_waiting(log, meters)
        ]
        here = replace(self._readings.take(waiting), first_ordinal=ordinals)
        woken = Readings.join([*waited, here.take(np.flatnonzero(np.isin(here.meter, meters)))])
        claim = claims[np.searchsorted(meters, woken.meter)]
        order = np.lexsort((woken.first_ordinal, woken.read_at, claim))
        woken, self._woken_by = woken.take(order), claim[order]
        owner = self.arrivals.account[self._woken_by]
        reaches = self.arrivals.at[self._woken_by] <= woken.read_at
        self._woken_partition = self._directory.partition_of(owner)
        self._readings = Readings.join(
            [self._readings, replace(woken, account=np.where(reaches, owner, np.int32(NONE)))]
        )
        return len(order)

    def sequence(self, partition: int) -> tuple[NDArray[np.uint8], Ints]:
        """What the partition gets, in order: of each record its kind's number and its row among those of its kind."""
        own, woken, order = self._order(partition)
        before_woken = len(self._readings) - len(self._woken_by)
        kinds = np.repeat(np.array([READING_NUMBER, TICK_NUMBER], np.uint8), (len(woken), len(self._ticks)))
        rows = (self._row[own], before_woken + woken, np.arange(len(self._ticks)))
        return np.concatenate((self._kind[own], kinds))[order], np.concatenate(rows)[order]

    def _order(self, partition: int) -> tuple[Ints, Ints, Ints]:
        """What the partition gets: the places of records, the woken readings, and the order of these, then of the ticks."""
        own = np.flatnonzero((self._partition == partition) | (self._partition == EVERYWHERE))
        woken = np.flatnonzero(self._woken_partition == partition)
        # Between two records: first what the former woke, then the ticks that passed.
        key = np.concatenate((3 * own + 1, 3 * self._woken_by[woken] + 2, 3 * self._ticks_before))
        return own, woken, np.argsort(key, kind="stable")

    def places(self, transaction: Transaction) -> tuple[Ints, Ints]:
        """Where each record comes to stand: its partition and its ordinal there."""
        partition = np.where(self._partition == EVERYWHERE, self._directory.unrouted, self._partition)
        ordinal = np.zeros(len(partition), np.int64)
        for number in np.unique(partition).tolist():  # *unrouted* is the last: there what stands everywhere counts
            own, _, order = self._order(number)
            ordinal[own] = transaction.end(number) + np.argsort(order)[: len(own)]
        return partition.astype(np.int64), ordinal

    def rows(self, partition: int, most: int) -> Iterator[tuple[NDArray[np.uint8], Ints]]:
        """What the partition gets, cut into rows of at most so many records. A tariff version stays whole."""
        kinds, rows = self.sequence(partition)
        start = 0
        while start < len(kinds):
            end = min(start + most, len(kinds))
            while end < len(kinds) and kinds[end] == TARIFF_NUMBER and self._is_later_block(int(rows[end])):
                end += 1
            yield kinds[start:end], rows[start:end]
            start = end

    def _is_later_block(self, row: int) -> bool:
        return bool(self._batches["tariff"].column("block")[row].as_py())

    def encode(self, kinds: NDArray[np.uint8], rows: Ints) -> bytes:
        """The body of these records."""
        batches = {}
        for number in np.unique(kinds):
            of_kind = rows[kinds == number]
            kind = KIND_NAMES[number]
            if kind == "reading":
                batches[kind] = self._readings.take(of_kind).packed(self._directory)
            elif kind == "tick":
                batches[kind] = pa.record_batch({"ticked_at": pa.array(self._ticks[of_kind]).view(TIME)})
            else:
                batches[kind] = pack(kind, self._batches[kind].take(pa.array(of_kind)))
        return encode(runs_of(kinds), batches)


def _in_order(chunk: Chunk, kinds: NDArray[np.uint8], kind: str, places: Ints) -> pa.RecordBatch:
    """The chunk's records of a kind, from whichever sources, in merged order."""
    sources = [source for source in sorted(chunk.parts) if kinds[source] == KIND_NUMBER[kind] and chunk.parts[source]]
    tables = [pa.Table.from_batches(chunk.parts[source]) for source in sources]
    together = pa.concat_tables(tables, promote_options="default")
    if len(tables) > 1:
        by_source = np.argsort(chunk.source[places], kind="stable")
        back = np.empty_like(by_source)
        back[by_source] = np.arange(len(back))
        together = together.take(pa.array(back))
    return together.combine_chunks().to_batches()[0]


# ---- readings --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Readings:
    """Readings in columns. `meter` and `account` are the directory's numbers, `status` one into STATUSES; NONE,
    ABSENT: no value.
    """

    meter: NDArray[np.int32]
    account: NDArray[np.int32]
    read_at: Ints
    register_wh: Ints
    status: NDArray[np.int8]
    interval_wh: Ints
    received_at: Ints
    first_ordinal: Ints

    def __len__(self) -> int:
        return len(self.meter)

    @staticmethod
    def none() -> Readings:
        """No readings."""
        numbers, values = np.zeros(0, np.int32), np.zeros(0, np.int64)
        return Readings(numbers, numbers, values, values, np.zeros(0, np.int8), values, values, values)

    @staticmethod
    def of_staged(batch: pa.RecordBatch) -> Readings:
        """Readings of a staged file, their meters numbered by the directory."""
        meter = batch.column("meter_id").to_numpy()
        return Readings._of(meter, np.full(len(meter), ABSENT), batch, _numbers(batch, "status", NONE))

    @staticmethod
    def of_journal(meter: NDArray[np.int32], ordinal: Ints, batch: pa.RecordBatch) -> Readings:
        """Readings that wait in *unrouted*."""
        status = batch.column("status")
        code_of = pc.index_in(status.dictionary, pa.array(STATUSES)).take(status.indices)
        return Readings._of(meter, ordinal, batch, code_of.fill_null(NONE).to_numpy(zero_copy_only=False))

    @staticmethod
    def _of(meter: NDArray[np.int32], ordinal: Ints, batch: pa.RecordBatch, status: NDArray[np.int8]) -> Readings:
        return Readings(
            meter,
            np.full(len(meter), NONE, np.int32),
            _numbers(batch, "read_at", ABSENT),
            _numbers(batch, "register_wh", ABSENT),
            status.astype(np.int8, copy=False),
            _numbers(batch, "interval_wh", ABSENT),
            _numbers(batch, "received_at", ABSENT),
            ordinal,
        )

    @staticmethod
    def join(pieces: Sequence[Readings]) -> Readings:
        """All of them, one after the other."""
        return Readings(*(np.concatenate([getattr(piece, f.name) for piece in pieces]) for f in fields(Readings)))

    def take(self, rows: Ints | slice) -> Readings:
        """Those readings, in that order."""
        return Readings(*(getattr(self, f.name)[rows] for f in fields(Readings)))

    def packed(self, directory: Directory) -> pa.RecordBatch:
        """As they lie in a body (`connectors.log.body.pack`): one code for a meter and its account, no column without
        a value.
        """
        columns = {
            "pair": _pairs(self.meter, self.account, directory),
            "read_at": pa.array(self.read_at).view(TIME),
            "register_wh": pa.array(self.register_wh),
        }
        if (self.status != NONE).any():
            codes = pa.array(self.status.astype(np.int32), mask=self.status == NONE)
            columns["status"] = pa.DictionaryArray.from_arrays(codes, pa.array(STATUSES))
        if (self.interval_wh != ABSENT).any():
            columns["interval_wh"] = pa.array(self.interval_wh, mask=self.interval_wh == ABSENT)
        if (self.received_at != ABSENT).any():
            columns["received_at"] = pa.array(self.received_at, mask=self.received_at == ABSENT).view(TIME)
        waited = self.first_ordinal != ABSENT
        if waited.any():
            columns["first_partition"] = pa.array(np.full(len(self), directory.unrouted, np.int64), mask=~waited)
            columns["first_ordinal"] = pa.array(self.first_ordinal, mask=~waited)
        return pa.record_batch(columns)


def _numbers(batch: pa.RecordBatch, name: str, absent: int) -> NDArray[Any]:
    """A column of numbers or times as whole numbers, `absent` where there is no value."""
    if name not in batch.schema.names:
        return np.full(batch.num_rows, absent)
    column = batch.column(name)
    if pa.types.is_timestamp(column.type):
        column = column.view(pa.int64())
    return (column.fill_null(absent) if column.null_count else column).to_numpy(zero_copy_only=False)


def _pairs(meter: NDArray[np.int32], account: NDArray[np.int32], directory: Directory) -> pa.DictionaryArray:
    """Codes into the (meter_id, account_id) that occur, in order of number (`connectors.log.body.pair_codes`)."""
    accounts = len(directory.accounts) + 1  # the first stands for none
    codes = pc.dictionary_encode(pa.array(meter.astype(np.int64) * accounts + account + 1))
    # In order of their numbers, so that rows which name the same meters have the same dictionary, and settle looks it up once.
    used = codes.dictionary.to_numpy()
    order = np.argsort(used)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    meters_used, accounts_used = np.divmod(used[order], accounts)
    names = (
        directory.meters.texts().take(pa.array(meters_used)),
        directory.accounts.texts().take(pa.array(accounts_used - 1, mask=accounts_used == 0)),
    )
    pairs = pa.StructArray.from_arrays(names, names=("meter_id", "account_id"))
    return pa.DictionaryArray.from_arrays(pa.array(rank[codes.indices.to_numpy()]), pairs)
