"""Readings as columns: from a batch of the journal to the compiled rules, and what came of them back into events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from accounting.bill import ACCEPTED, IGNORED, SETTLES, settle_readings
from accounting.partition import Partition, Record
from accounting.records import RECORDS, Column
from accounting.state import NONE
from accounting.texts import as_json, join, time_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NOBODY, NO_CLAIM = 0, -1
Unresolved = tuple[int, str, str]  # number of the pair, account_id, meter_id


@dataclass
class Readings:
    """A body's readings for compiled code, and the batch they came from. `routed_on`: those that waited for a claim.

    pair: a number for each (meter_id, account_id) a row has; account_of and meter_of look it up. `unresolved`: the
    pairs whose account or meter is not there yet, which an account or exchange within the same body may bring.
    `run_rows` and `run_ordinals`: where a run of readings begins, in the batch and in the journal.
    """

    batch: pa.RecordBatch
    pair: NDArray[np.int32]
    account_of: NDArray[np.int32]
    meter_of: NDArray[np.int32]
    unresolved: list[Unresolved]
    run_rows: NDArray[np.int64]
    run_ordinals: NDArray[np.int64]
    read_at: NDArray[np.int64]
    register_wh: NDArray[np.int64]
    estimated: NDArray[np.bool_]
    outcome: NDArray[np.uint8]
    routed_on: NDArray[np.int64]

    def records(self, rows: Sequence[int]) -> list[Record]:
        """Some of them as records."""
        some = self.batch.take(pa.array(rows, pa.int64()))
        columns = {c.name: _column(some, c).to_pylist() for c in _given(some)}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def texts(self, ordinals: NDArray[np.int64]) -> pa.StringArray:
        """Some of them, by their place in the journal, whole as JSON: as `record_text` has it, column by column."""
        run = np.searchsorted(self.run_ordinals, ordinals, "right") - 1
        some = self.batch.take(pa.array(ordinals - self.run_ordinals[run] + self.run_rows[run]))
        parts: list[pa.Array | str] = []
        for c in _given(some):
            quote, values = _json(_column(some, c), c)
            before = f'{"," if parts else "{"}"{c.name}":{quote}'
            parts += (
                [before, values, quote] if not values.null_count else [pc.fill_null(join(before, values, quote), "")]
            )
        return join(*parts, "}")

    def first(self, row: int) -> tuple[int, int]:
        """The (partition, ordinal) at which a routed-on reading was first journalled."""
        names = ("first_partition", "first_ordinal")
        partition, ordinal = (self.batch.column(name)[row].as_py() for name in names)
        return partition, ordinal


def _given(batch: pa.RecordBatch) -> list[Column]:
    """The contract's columns that a packed batch has."""
    names = {*batch.schema.names, "meter_id"}
    return [c for c in RECORDS["reading"] if c.name in names and not c.internal]


def _column(batch: pa.RecordBatch, c: Column) -> pa.Array:
    """A column of the contract out of a packed batch, times in µs."""
    if c.name == "meter_id":
        pair = batch.column("pair")
        return pair.dictionary.field("meter_id").take(pair.indices)
    array = batch.column(c.name)
    if c.type == "time":
        return array.cast(pa.int64())
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _json(array: pa.Array, c: Column) -> tuple[str, pa.StringArray]:
    """What quotes values in JSON, and their texts; none where there is none."""
    if c.type == "time":
        return '"', time_texts(array)
    if c.type == "int":
        return "", array.cast(pa.string())
    if not c.choices and _has_escapes(array):
        return "", pa.array([None if text is None else as_json(text) for text in array.to_pylist()], pa.string())
    return '"', array


def _has_escapes(array: pa.StringArray) -> bool:
    """Whether JSON writes a character of these texts otherwise (it leaves all beyond ASCII as they are)."""
    data = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    return bool(((data < ord(" ")) | (data == ord('"')) | (data == ord("\\"))).any())


def open_readings(p: Partition, batch: pa.RecordBatch, runs: Sequence[tuple[int, int]]) -> Readings:
    """Look up accounts and meters of a packed batch: once for each pair of the dictionary, not for each row.

    runs: the place in the journal and the length of each run of readings.
    """
    names = batch.schema.names
    pair = batch.column("pair")
    account_of, meter_of, unresolved = _look_up(p, pair.dictionary)
    rows = batch.num_rows
    estimated = np.zeros(rows, np.bool_)
    if "status" in names:
        status = batch.column("status")
        texts = status.dictionary.to_pylist()
        if "estimated" in texts:
            estimated = pc.fill_null(status.indices, -1).to_numpy() == texts.index("estimated")
    routed_on = np.zeros(0, np.int64)
    if "first_partition" in names:
        routed_on = np.flatnonzero(batch.column("first_partition").is_valid().to_numpy(zero_copy_only=False))
    ordinals, lengths = np.array(runs, np.int64).T
    read_at, register_wh = (_int64(batch.column(name)) for name in ("read_at", "register_wh"))
    return Readings(
        batch,
        pair.indices.to_numpy().astype(np.int32, copy=False),
        account_of,
        meter_of,
        unresolved,
        np.cumsum(lengths) - lengths,
        ordinals,
        read_at,
        register_wh,
        estimated,
        np.zeros(rows, np.uint8),
        routed_on,
    )


def _look_up(p: Partition, pairs: pa.StructArray) -> tuple[NDArray[np.int32], NDArray[np.int32], list[Unresolved]]:
    """Account and meter of each pair, and the pairs not found.

    Rows of one source mostly bring the same pairs: looked up once.
    """
    if p.pairs is not None and p.pairs[0].equals(pairs):
        return p.pairs[1], p.pairs[2], []
    accounts, meters = (pairs.field(name).to_pylist() for name in ("account_id", "meter_id"))
    account_of = np.array([NO_CLAIM if a is None else p.index.get(a, NOBODY) for a in accounts], np.int32)
    meter_of = np.array([p.meters.get(m, -1) for m in meters], np.int32)
    missing = np.flatnonzero((account_of == NOBODY) | (meter_of < 0)).tolist()
    unresolved = [(k, accounts[k], meters[k]) for k in missing if accounts[k] is not None]
    p.pairs = None if unresolved else (pairs, account_of, meter_of)
    return account_of, meter_of, unresolved


def resolve(p: Partition, r: Readings) -> None:
    """Look again for the accounts and meters that were not there, after records that may have brought them."""
    found = [(k, p.index.get(a, NOBODY), p.meters.get(m, -1)) for k, a, m in r.unresolved]
    changed = [
        (k, account, meter) for k, account, meter in found if account != r.account_of[k] or meter != r.meter_of[k]
    ]
    if not changed:
        return
    for k, account, meter in changed:
        r.account_of[k], r.meter_of[k] = account, meter
    r.unresolved = [entry for entry in r.unresolved if r.account_of[entry[0]] == NOBODY or r.meter_of[entry[0]] < 0]


def _int64(column: pa.Array) -> NDArray[np.int64]:
    return np.frombuffer(column.buffers()[1], np.int64, len(column), column.offset * 8)


def apply_readings(p: Partition, readings: Readings, first: int, end: int, ordinal: int) -> None:
    """Settle readings first … end, the first of which is the journal's `ordinal`, in order. Those that waited for a claim
    also tell what became of them.
    """
    shift = ordinal - first
    routed = readings.routed_on[(readings.routed_on >= first) & (readings.routed_on < end)]
    for row in routed.tolist():
        _settle_run(p, readings, first, row, shift)
        _settle_run(p, readings, row, row + 1, shift)
        partition, ordinal = readings.first(row)
        outcome = _outcome_text(int(readings.outcome[row]))
        p.emit("released", f"{partition}-{ordinal}-0", None if p.last_tick == NONE else p.last_tick, outcome)
        first = row + 1
    _settle_run(p, readings, first, end, shift)


def _outcome_text(outcome: int) -> str:
    if outcome < SETTLES:
        return "refused"
    return "unchanged" if outcome in (IGNORED, ACCEPTED) else "settled"


def _settle_run(p: Partition, r: Readings, first: int, end: int, shift: int) -> None:
    """Call the compiled rules, with room for what they leave; more room where they stop for want of it."""
    entries = end - first + 64
    while first < end:
        p.reserve(entries, 1024)
        stopped = settle_readings(
            p.accounts, p.wake_at, p.book.arrays(), p.marks, p.ledger, r.outcome, shift, first, end, r.pair, r.account_of,
            r.meter_of, r.read_at, r.register_wh, r.estimated, p.last_tick,
        )  # fmt: skip
        if stopped == first:
            entries *= 4
        first = stopped


def hold_unrouted(p: Partition, readings: Readings, first: int, end: int, ordinal: int) -> None:
    """Readings of meters that nobody has claimed yet wait, by name."""
    for k, record in enumerate(readings.records(range(first, end))):
        p.begin(ordinal + k)
        p.hold("reading", record, "unknown_meter")
