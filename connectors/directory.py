"""The directory: whose meter it is, and since when. A view of the account and exchange records in their order of
arrival.

The rule is "Whose a reading is" (DESIGN.md). A **claim** ties a meter to an account from a date on. It is made by
records as they arrive, whether settle takes or refuses them later:

- an account's first version claims its meter always; a later version, and an exchange (`new_meter_id`), unless
  another account *has* that meter. An exchange of an account of which no version has arrived claims nothing.
- an account has the meter it claimed last, until a version with `closed_at` arrives (which claims first, then gives
  up).
- of several claims on a meter, the one with the latest date that reaches back to `read_at` wins; of the same date,
  the last to arrive.

A reading of a meter without a claim waits in the partition *unrouted*; the first claim on the meter wakes those that
wait. The directory counts them, and reads them from the journal when they are woken.

Account and exchange records lie in many partitions. Their `claim_number`, given to them under the journal's lock, is
the order in which all of them arrived.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from numpy.typing import NDArray

from connectors.log import Log, Transaction
from connectors.log.body import KIND_NUMBER, Body, decode, unpack
from connectors.names import Names

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]
Moments = NDArray[np.int64]
Flags = NDArray[np.bool_]

OTHER, READING, ACCOUNT, EXCHANGE = 0, 1, 2, 3  # what a record is to the directory
CLAIMING = {"account": ACCOUNT, "meter_exchange": EXCHANGE}
METER = {"account": "meter_id", "meter_exchange": "new_meter_id", "reading": "meter_id"}
SINCE = {"account": "effective_at", "meter_exchange": "exchanged_at", "reading": "read_at"}
NONE = -1
CACHE_VERSION = 1
_CACHED = (
    "_newest", "_first_account", "_holders", "_waiting", "_has", "_is_known", "_partition",
    "_claim_account", "_claim_since", "_claim_older",
)  # fmt: skip


@njit(cache=True, nogil=True)
def _claim(
    meter: int, account: int, since: int,
    newest: Numbers, claim_account: Numbers, claim_since: Moments, claim_older: Numbers, claims: int,
) -> None:  # fmt: skip
    """Put a claim among those of its meter, which are chained from the latest date to the earliest."""
    claim_account[claims], claim_since[claims] = account, since
    above, below = NONE, newest[meter]
    while below != NONE and claim_since[below] > since:
        above, below = below, claim_older[below]
    claim_older[claims] = below
    if above == NONE:
        newest[meter] = claims
    else:
        claim_older[above] = claims


@njit(cache=True, nogil=True)
def _follow(
    role: Bytes, meter: Numbers, account: Numbers, at: Moments, closes: Flags,
    owner: Numbers, reaches: Flags, woken_at: Moments,
    newest: Numbers, first_account: Numbers, holders: Numbers, waiting: Moments, has: Numbers, is_known: Flags,
    claim_account: Numbers, claim_since: Moments, claim_older: Numbers, claims: int, room: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Take records in their order of arrival: route the readings, hear the claims.

    (how many were taken, how many claims there are now, how many claims woke readings). It stops before a claim that
    would wake more
    than there is `room` for.
    """
    woken = released = 0
    for i in range(role.size):
        m, a = meter[i], account[i]
        if role[i] == READING:
            claim = newest[m]
            if claim == NONE:
                waiting[m] += 1
                continue
            owner[i] = first_account[m]
            while claim != NONE and claim_since[claim] > at[i]:
                claim = claim_older[claim]
            if claim != NONE:
                owner[i], reaches[i] = claim_account[claim], True
        elif role[i] == ACCOUNT or (role[i] == EXCHANGE and is_known[a]):
            if waiting[m] and released and released + waiting[m] > room:
                return i, claims, woken
            others = holders[m] - (1 if has[a] == m else 0)
            if others == 0 or not is_known[a]:
                if newest[m] == NONE:
                    first_account[m] = a
                _claim(m, a, at[i], newest, claim_account, claim_since, claim_older, claims)
                claims += 1
                if has[a] != NONE:
                    holders[has[a]] -= 1
                has[a] = m
                holders[m] += 1
                if waiting[m]:
                    woken_at[woken] = i
                    woken += 1
                    released += waiting[m]
                    waiting[m] = 0
            is_known[a] = True
            if closes[i] and has[a] != NONE:
                holders[has[a]] -= 1
                has[a] = NONE
    return role.size, claims, woken


def account_partitions(account_ids: pa.StringArray, partitions: int) -> NDArray[np.int16]:
    """The partition each account belongs to: crc32 of its id. It is fixed for a journal's life."""
    codes = pc.dictionary_encode(account_ids)
    of_id = [zlib.crc32(account_id.encode()) % partitions for account_id in codes.dictionary.to_pylist()]
    return np.array(of_id, np.int16)[codes.indices.to_numpy()]


@dataclass(frozen=True)
class Arrivals:
    """Records in their order of arrival, as the directory sees them: its own numbers, 0 where a record has none."""

    role: NDArray[np.uint8]
    meter: NDArray[np.int32]
    account: NDArray[np.int32]
    at: NDArray[np.int64]
    closes: NDArray[np.bool_]

    @staticmethod
    def blank(count: int) -> Arrivals:
        """So many records that do not concern the directory."""
        return Arrivals(
            np.zeros(count, np.uint8),
            np.zeros(count, np.int32),
            np.zeros(count, np.int32),
            np.zeros(count, np.int64),
            np.zeros(count, np.bool_),
        )


@dataclass(frozen=True)
class Routes:
    """What became of the first `taken` arrivals. `owner` is the account a reading goes to; NONE: its meter has no
    claim.

    Where no claim `reaches` back to the reading, the owner is the account that was the first to claim its meter.
    woken_at: the arrivals that
    claimed a meter whose readings waited.
    """

    taken: int
    owner: NDArray[np.int32]
    reaches: NDArray[np.bool_]
    woken_at: NDArray[np.int64]


class Directory:
    """Meters and accounts by number, and the claims that tie them. `partitions` are the account partitions of the
    journal.

    Not safe for several threads; several processes have one each, and `catch_up` under the journal's lock.
    """

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.meters, self.accounts = Names(), Names()
        self.claims_heard = 0  # the next claim_number
        self.last_tick: int | None = None
        self._positions = [0] * (partitions + 1)
        self._rows_with_readings: list[int] = []  # positions of unrouted rows
        numbers, counts, flags = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.bool_)
        self._newest, self._first_account, self._holders, self._waiting = (
            numbers,
            numbers,
            numbers,
            counts,
        )  # of each meter
        self._has, self._is_known, self._partition = numbers, flags, np.zeros(0, np.int16)  # of each account
        self._claim_account, self._claim_since, self._claim_older = numbers, counts, numbers
        self._claims = 0

    @property
    def unrouted(self) -> int:
        """The partition in which readings wait."""
        return self.partitions

    @property
    def heard(self) -> int:
        """How many records of the journal it has come past."""
        return sum(self._positions)

    def knows(self, account_id: str) -> bool:
        """Whether a version of the account has arrived."""
        number = pc.index(self.accounts.texts(), account_id).as_py()
        return NONE < number < len(self._is_known) and bool(self._is_known[number])

    @property
    def waiting_count(self) -> int:
        """How many readings wait for a claim on their meter."""
        return int(self._waiting.sum())

    # -- routing
    def follow(self, arrivals: Arrivals, *, room: int) -> Routes:
        """Take records that arrive now, as many as wake no more than about `room` waiting readings, and at least
        one.
        """
        count = len(arrivals.role)
        self._make_room(claims=int(np.count_nonzero(arrivals.role >= ACCOUNT)))
        owner, reaches = np.full(count, NONE, np.int32), np.zeros(count, np.bool_)
        woken_at = np.zeros(np.count_nonzero(arrivals.role >= ACCOUNT), np.int64)
        taken, self._claims, woken = _follow(
            arrivals.role, arrivals.meter, arrivals.account, arrivals.at, arrivals.closes, owner, reaches, woken_at,
            self._newest, self._first_account, self._holders, self._waiting, self._has, self._is_known,
            self._claim_account, self._claim_since, self._claim_older, self._claims, room,
        )  # fmt: skip
        self.claims_heard += int(np.count_nonzero(arrivals.role[:taken] >= ACCOUNT))
        return Routes(int(taken), owner[:taken], reaches[:taken], woken_at[:woken])

    def partition_of(self, accounts: NDArray[np.int32]) -> NDArray[np.int16]:
        """The partition of each account, by number."""
        known = len(self._partition)
        if len(self.accounts) > known:
            new = account_partitions(self.accounts.texts().slice(known), self.partitions)
            self._partition = np.concatenate((self._partition, new))
        return self._partition[accounts]

    # -- the journal
    @staticmethod
    def load(path: Path, log: Log) -> Directory:
        """The directory as it was saved, if it was saved of this journal; else one that knows nothing yet."""
        directory = Directory(log.partitions - 1)
        try:
            with np.load(path) as saved:
                arrays = {name: saved[name] for name in saved.files}
        except (OSError, EOFError, ValueError, BadZipFile):  # there is none, or it is damaged: it is only a shortcut
            return directory
        if (
            arrays.get("version") == CACHE_VERSION
            and _last_rows(log, arrays["positions"]) == arrays["last_rows"].tolist()
        ):
            directory._restore(arrays)
        return directory

    def save(self, path: Path, log: Log) -> None:
        """Keep what is known in a file, whole or not at all, so that the next one need not read the journal from its
        start.
        """
        arrays = {name: getattr(self, name) for name in _CACHED}
        arrays |= {f"meters_{name}": array for name, array in self.meters.arrays().items()}
        arrays |= {f"accounts_{name}": array for name, array in self.accounts.arrays().items()}
        with path.with_name(f"{path.name}.{os.getpid()}").open("wb") as file:
            np.savez(
                file,
                version=CACHE_VERSION,
                positions=self._positions,
                last_rows=_last_rows(log, self._positions),
                rows_with_readings=np.array(self._rows_with_readings, np.int64),
                counts=[self._claims, self.claims_heard, NONE if self.last_tick is None else self.last_tick],
                **arrays,
            )
        Path(file.name).replace(path)

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        for name in _CACHED:
            setattr(self, name, arrays[name])
        for names, prefix in ((self.meters, "meters_"), (self.accounts, "accounts_")):
            names.restore({name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)})
        self._positions = arrays["positions"].tolist()
        self._rows_with_readings = arrays["rows_with_readings"].tolist()
        self._claims, self.claims_heard, last_tick = arrays["counts"].tolist()
        self.last_tick = None if last_tick == NONE else last_tick

    def catch_up(self, log: Log, transaction: Transaction | None = None) -> None:
        """Hear what has been journalled since: claims of all partitions in their order, and what waits.

        Without the caller's own transaction, up to one moment: partition after partition, one might hear a claim whose
        elder, in a partition looked at before, has just been journalled.
        """
        if transaction is None:
            with log.writing() as turn:
                ends = [turn.end(partition) for partition in range(log.partitions)]
        else:
            ends = [transaction.end(partition) for partition in range(log.partitions)]
        claims: list[tuple[NDArray[np.int64], Arrivals]] = []
        for partition in range(self.partitions):
            for _, body in self._new_rows(log, partition, ends[partition], tuple(CLAIMING)):
                claims += [self._claims_in(kind, body.batches[kind]) for kind in CLAIMING if kind in body.batches]
        if claims:
            numbers = np.concatenate([n for n, _ in claims])
            order = np.argsort(numbers, kind="stable")
            self.follow(_joined([arrivals for _, arrivals in claims], order), room=np.iinfo(np.int64).max)
            self.claims_heard = max(self.claims_heard, int(numbers.max()) + 1)
        for position, body in self._new_rows(log, self.unrouted, ends[self.unrouted], ("reading", "tick")):
            if "tick" in body.batches:
                self.last_tick = body.batches["tick"].column("ticked_at")[-1].value
            if "reading" in body.batches:
                self._rows_with_readings.append(position)
                self._count_waiting(unpack("reading", body.batches["reading"]).column("meter_id"))

    def note_appended(self, partition: int, position: int, count: int, *, has_readings: bool) -> None:
        """A row that was journalled by this directory's own routes: nothing new stands in it."""
        self._positions[partition] = position + count
        if partition == self.unrouted and has_readings:
            self._rows_with_readings.append(position)

    def read_waiting(
        self, log: Log, meters: NDArray[np.int32]
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64], pa.RecordBatch]]:
        """The journalled readings of these meters that wait in *unrouted*: their meters, their positions there,
        themselves.
        """
        is_wanted = np.zeros(len(self.meters), np.bool_)
        is_wanted[meters] = True
        for position in self._rows_with_readings:
            (row,) = log.read(self.unrouted, position, max_rows=1)
            body = decode(row.body, ("reading",))
            batch = unpack("reading", body.batches["reading"])
            meter = batch.column("meter_id")
            number_of, indices = self.meters.numbers(meter.dictionary), meter.indices.to_numpy()
            found = np.flatnonzero(is_wanted[number_of][indices])
            if found.size:
                ordinals = row.position + np.flatnonzero(kinds_of(body) == KIND_NUMBER["reading"])
                yield number_of[indices[found]], ordinals[found], batch.take(pa.array(found))

    def _new_rows(self, log: Log, partition: int, end: int, kinds: tuple[str, ...]) -> Iterator[tuple[int, Body]]:
        while self._positions[partition] < end:
            for row in log.read(partition, self._positions[partition]):
                if row.position >= end:
                    return
                yield row.position, decode(row.body, kinds)
                self._positions[partition] = row.end

    def _claims_in(self, kind: str, packed: pa.RecordBatch) -> tuple[NDArray[np.int64], Arrivals]:
        batch = unpack(kind, packed)
        arrivals = Arrivals.blank(batch.num_rows)
        self.see(kind, batch, arrivals, np.arange(batch.num_rows))
        numbers = pc.fill_null(batch.column("claim_number"), NONE).to_numpy(zero_copy_only=False)
        return numbers, arrivals

    def see(self, kind: str, batch: pa.RecordBatch, arrivals: Arrivals, where: NDArray[np.int64]) -> None:
        """Note records of a claiming kind among the arrivals, at the places `where`."""
        arrivals.role[where] = CLAIMING[kind]
        arrivals.meter[where] = self.meters.numbers(batch.column(METER[kind]).cast(pa.string()))
        arrivals.account[where] = self.accounts.numbers(batch.column("account_id").cast(pa.string()))
        arrivals.at[where] = batch.column(SINCE[kind]).cast(pa.int64()).to_numpy()
        if "closed_at" in batch.schema.names:
            arrivals.closes[where] = batch.column("closed_at").is_valid().to_numpy(zero_copy_only=False)

    def _count_waiting(self, meter: pa.DictionaryArray) -> None:
        numbers = self.meters.numbers(meter.dictionary)
        self._make_room(claims=0)
        counts = np.bincount(meter.indices.to_numpy(), minlength=len(numbers))
        without_claim = self._newest[numbers] == NONE
        np.add.at(self._waiting, numbers[without_claim], counts[without_claim])

    def _make_room(self, *, claims: int) -> None:
        """Arrays at least as long as there are names, and `claims` more than there are claims."""
        if len(self.meters) > self._newest.size:
            self._newest = _lengthened(self._newest, len(self.meters), NONE)
            self._first_account = _lengthened(self._first_account, len(self.meters), NONE)
            self._holders = _lengthened(self._holders, len(self.meters), 0)
            self._waiting = _lengthened(self._waiting, len(self.meters), 0)
        if len(self.accounts) > self._has.size:
            self._has = _lengthened(self._has, len(self.accounts), NONE)
            self._is_known = _lengthened(self._is_known, len(self.accounts), False)
        if self._claims + claims > self._claim_older.size:
            self._claim_account = _lengthened(self._claim_account, self._claims + claims, NONE)
            self._claim_since = _lengthened(self._claim_since, self._claims + claims, 0)
            self._claim_older = _lengthened(self._claim_older, self._claims + claims, NONE)


def _last_rows(log: Log, positions: Iterable[int]) -> list[int]:
    """A checksum of the last row before each position, by which a journal is known again; NONE where there is no such
    row.
    """
    sums = []
    for partition, position in enumerate(positions):
        rows = log.read(partition, int(position) - 1, max_rows=1) if position else []
        sums.append(zlib.crc32(rows[0].body) if rows and rows[0].end == position else NONE)
    return sums


def _lengthened(array: NDArray[Any], least: int, blank: int) -> NDArray[Any]:
    """The array with at least so many places, and a half more, so that growing is rare."""
    longer = np.full(least + least // 2, blank, array.dtype)
    longer[: array.size] = array
    return longer


def _joined(pieces: list[Arrivals], order: NDArray[np.int64]) -> Arrivals:
    columns = (tuple(getattr(piece, field) for piece in pieces) for field in Arrivals.__dataclass_fields__)
    return Arrivals(*(np.concatenate(column)[order] for column in columns))


def kinds_of(body: Body) -> NDArray[np.uint8]:
    """The kind number of each record of a body."""
    return np.repeat(body.runs_kind, body.runs_count)
