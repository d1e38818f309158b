"""Readings as columns: from a batch of the journal to the compiled rules, and what came of them back into events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from accounting.bill import ACCEPTED, IGNORED, SETTLES, settle_readings
from accounting.incidents import report_incidents
from accounting.partition import Partition, Record, as_json, time_text
from accounting.records import RECORDS
from accounting.state import NONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NOBODY, NO_CLAIM = 0, -1
_TIMES = {c.name for c in RECORDS["reading"] if c.type == "time"}
Unresolved = tuple[int, str, str]  # number of the pair, account_id, meter_id


@dataclass
class Readings:
    """A body's readings for compiled code, and the batch they came from. `routed_on`: those that waited for a claim.

    pair: a number for each (meter_id, account_id) a row has; account_of and meter_of look it up. `unresolved`: the
    pairs whose account or meter is not there yet, which an account or exchange within the same body may bring.
    """

    batch: pa.RecordBatch
    pair: NDArray[np.int32]
    account_of: NDArray[np.int32]
    meter_of: NDArray[np.int32]
    unresolved: list[Unresolved]
    ordinal: NDArray[np.int64]
    account: NDArray[np.int32]
    meter: NDArray[np.int32]
    read_at: NDArray[np.int64]
    register_wh: NDArray[np.int64]
    estimated: NDArray[np.bool_]
    outcome: NDArray[np.uint8]
    routed_on: NDArray[np.int64]

    def records(self, rows: Sequence[int]) -> list[Record]:
        """Some of them as records."""
        columns = self.columns(rows)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def texts(self, ordinals: Sequence[int]) -> list[str]:
        """Some of them, by their place in the journal, whole as JSON: as `record_text` has it, column by column."""
        rows = np.searchsorted(self.ordinal, np.array(ordinals, np.int64)).tolist()
        columns = []
        for name, values in self.columns(rows).items():
            text = _quoted_time if name in _TIMES else as_json
            columns.append(["" if value is None else f',"{name}":{text(value)}' for value in values])
        return [f"{{{''.join(parts)[1:]}}}" for parts in zip(*columns, strict=True)]

    def columns(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """Some of them as columns of the contract, times in µs."""
        some = self.batch.take(pa.array(rows, pa.int64()))
        columns: dict[str, list[Any]] = {}
        for c in RECORDS["reading"]:
            if c.name == "meter_id":
                pair = some.column("pair")
                array = pair.dictionary.field("meter_id").take(pair.indices)
            elif c.internal or c.name not in some.schema.names:
                continue
            else:
                array = some.column(c.name)
            columns[c.name] = (array.cast(pa.int64()) if c.type == "time" else array).to_pylist()
        return columns

    def first(self, row: int) -> tuple[int, int]:
        """The (partition, ordinal) at which a routed-on reading was first journalled."""
        names = ("first_partition", "first_ordinal")
        partition, ordinal = (self.batch.column(name)[row].as_py() for name in names)
        return partition, ordinal


def _quoted_time(at: int) -> str:
    return f'"{time_text(at)}"'


def open_readings(p: Partition, batch: pa.RecordBatch, ordinal: NDArray[np.int64]) -> Readings:
    """Look up accounts and meters of a packed batch: once for each pair of the dictionary, not for each row."""
    names = batch.schema.names
    pair = batch.column("pair")
    account_of, meter_of, unresolved = _look_up(p, pair.dictionary)
    index = pair.indices.to_numpy()
    rows = batch.num_rows
    estimated = np.zeros(rows, np.bool_)
    if "status" in names:
        status = batch.column("status")
        code = pc.index(status.dictionary, "estimated").as_py()
        estimated = pc.fill_null(pc.equal(status.indices, code), fill_value=False).to_numpy(zero_copy_only=False)
    routed_on = np.zeros(0, np.int64)
    if "first_partition" in names:
        routed_on = np.flatnonzero(batch.column("first_partition").is_valid().to_numpy(zero_copy_only=False))
    read_at, register_wh = (_int64(batch.column(name)) for name in ("read_at", "register_wh"))
    outcome = np.zeros(rows, np.uint8)
    return Readings(
        batch,
        index,
        account_of,
        meter_of,
        unresolved,
        ordinal,
        account_of[index],
        meter_of[index],
        read_at,
        register_wh,
        estimated,
        outcome,
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
    r.account, r.meter = r.account_of[r.pair], r.meter_of[r.pair]


def _int64(column: pa.Array) -> NDArray[np.int64]:
    return np.frombuffer(column.buffers()[1], np.int64, len(column), column.offset * 8)


def apply_readings(p: Partition, readings: Readings, first: int, end: int) -> None:
    """Settle readings first … end, in order. Those that waited for a claim also tell what became of them."""
    routed = readings.routed_on[(readings.routed_on >= first) & (readings.routed_on < end)]
    for row in routed.tolist():
        _settle_run(p, readings, first, row)
        _settle_run(p, readings, row, row + 1)
        partition, ordinal = readings.first(row)
        outcome = _outcome_text(int(readings.outcome[row]))
        p.emit("released", f"{partition}-{ordinal}-0", None if p.last_tick == NONE else p.last_tick, outcome)
        first = row + 1
    _settle_run(p, readings, first, end)


def _outcome_text(outcome: int) -> str:
    if outcome < SETTLES:
        return "refused"
    return "unchanged" if outcome in (IGNORED, ACCEPTED) else "settled"


def _settle_run(p: Partition, r: Readings, first: int, end: int) -> None:
    """Call the compiled rules, with room for what they leave; more room where they stop for want of it."""
    entries = end - first + 64
    while first < end:
        p.reserve(entries, 1024)
        incidents = int(p.ledger.size[1])
        book, marks = p.book.arrays(), p.marks
        stopped = settle_readings(
            p.accounts, p.wake_at, book, marks, p.ledger, r.outcome, r.ordinal, first, end, r.account, r.meter, r.read_at,
            r.register_wh, r.estimated, p.last_tick,
        )  # fmt: skip
        report_incidents(p, incidents)
        if stopped == first:
            entries *= 4
        first = stopped


def hold_unrouted(p: Partition, readings: Readings, first: int, end: int) -> None:
    """Readings of meters that nobody has claimed yet wait, by name."""
    for ordinal, record in zip(readings.ordinal[first:end].tolist(), readings.records(range(first, end)), strict=True):
        p.begin(ordinal)
        p.hold("reading", record, "unknown_meter")
