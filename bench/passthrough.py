"""Pass-through: what settle would cost if there were no rules. The bound that the log, Arrow and bytewax set.

The same journal is read by the same source and every row decoded; for each reading an entry is made up of the reading
itself, as columns, and events of other kinds are those that settle has made of the row, at hand already. They are encoded
as settle's are, then appended and committed, all in the same threads beside. There is no state and no lookup.
"""

from __future__ import annotations

import shutil
from contextlib import closing, nullcontext
from functools import partial
from statistics import median
from typing import Any

import bytewax.operators as op
import numpy as np
import pyarrow as pa
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from accounting.columns import narrow
from accounting.records import BASES, ENTRY_KINDS, EVENTS
from bench.ingest import small_work, warm_up
from bench.work import HALF_HOUR_US, PARTITIONS, Work, measured
from connectors.home import Home
from connectors.log import Row
from connectors.log.body import Body, decode
from connectors.log.rows import records_in
from connectors.log.sqlite import create_log, open_log
from streams.pipeline import Pipeline
from streams.settle import EventSink, JournalSource, _JournalPart, run_settle

ROUNDS = 5
TEXTS = pa.dictionary(pa.int32(), pa.string())


class FromHere(JournalSource):
    """The journal from where settle began, too."""

    def __init__(self, home: Home, starts: dict[str, int]) -> None:
        super().__init__(home, drain=True)
        self.starts = starts

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _JournalPart:  # noqa: ARG002
        start = self.starts[str(int(for_part))] if resume_state is None else resume_state
        return _JournalPart(self._open(), int(for_part), start, drain=True)


# Events but entries, by the partition and position of the journal's row that caused them.
Others = dict[tuple[int, int], dict[str, pa.RecordBatch]]


def others_in(home: Home, starts: dict[str, int]) -> Others:
    """Those that settle has made of the rows from `starts` on, packed as they lay in its log."""
    found: Others = {}
    with closing(open_log(home.events, readonly=True)) as log:
        for partition in range(log.partitions):
            position = 0
            while rows := log.read(partition, position):
                position = rows[-1].end
                for row in rows:
                    if row.sequence >= starts[str(partition)]:
                        found[partition, row.sequence] = decode(row.body, set(EVENTS) - {"entry"}).batches
    return found


class PassThrough(StatefulBatchLogic[Row, int, bytes]):
    """As SettleLogic, without a state and without rules."""

    def __init__(self, pipeline: Pipeline, others: Others) -> None:
        self.pipeline, self.others = pipeline, others

    def on_batch(self, values: list[Row]) -> tuple[list[int], bool]:
        for row, body in zip(values, self.pipeline.decoded(values), strict=True):
            self.pipeline.encode(row, partial(passed, row, body, self.others), {})
        return [len(values)], StatefulBatchLogic.RETAIN

    def snapshot(self) -> bytes:
        self.pipeline.wait()
        return b""


def passed(row: Row, body: Body, others: Others) -> dict[str, pa.RecordBatch]:
    """A row's readings as so many entries, and the other events."""
    readings = body.batches.get("reading")
    entries = {"entry": entries_of(readings)} if readings is not None else {}
    return entries | others.get((row.partition, row.position), {})


def entries_of(readings: pa.RecordBatch) -> pa.RecordBatch:
    """An entry a reading, in the columns that settle writes. What is in them is made up, as hard to compress as the true."""
    pair, read_at = readings.column("pair"), readings.column("read_at")
    register_wh = readings.column("register_wh").to_numpy()
    usage_wh = register_wh % 509
    rows = readings.num_rows
    return pa.record_batch(
        {
            "ordinal": pa.array(np.ones(rows, np.int64)),
            "n": pa.array(np.zeros(rows, np.int32)),
            "account_id": pa.DictionaryArray.from_arrays(pair.indices, pair.dictionary.field("account_id")),
            "kind": constant(ENTRY_KINDS, rows),
            "from_at": pa.array(read_at.cast(pa.int64()).to_numpy() - HALF_HOUR_US).cast(read_at.type),
            "to_at": read_at,
            "to_wh": narrow(register_wh),
            "usage_wh": narrow(usage_wh),
            "amount_tiyin": narrow(usage_wh * -60),
            "balance_tiyin": narrow(60_000_000 - register_wh),
            "tariff": constant(("household",), rows),
            "basis": constant(BASES, rows),
        }
    )


def constant(names: tuple[str, ...], rows: int) -> pa.Array:
    """The first of these names in every row."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(names, pa.string())).cast(TEXTS)


def fresh_home(work: Work, name: str, source: str) -> tuple[Home, dict[str, int]]:
    """A home with another's journal, an empty event log and no state; and where settle began to read that journal."""
    home, of = work.home(name), work.home(source)
    shutil.rmtree(home.path, ignore_errors=True)
    home.path.mkdir(parents=True)
    shutil.copy(of.journal, home.journal)
    with closing(open_log(of.events, readonly=True)) as events:
        starts = events.committed("settle")
        create_log(home.events, PARTITIONS + 1)
    home.recovery.mkdir()
    init_db_dir(home.recovery, 4)
    return home, starts


def run(home: Home, starts: dict[str, int], others: Others) -> None:
    """The dataflow, with recovery on as settle has it."""
    with closing(Pipeline(home, lambda: nullcontext(enter_result=True))) as pipeline:
        flow = Dataflow("passthrough")
        journal = op.input("journal", flow, FromHere(home, starts))
        through = op.stateful_batch("pass", journal, lambda _state: PassThrough(pipeline, others))
        op.output("events", through, EventSink(pipeline))
        config: dict[str, Any] = {"epoch_interval": None, "recovery_config": RecoveryConfig(home.recovery)}
        cli_main(flow, **config)


def events_in(home: Home) -> int:
    """How many events were written."""
    with closing(open_log(home.events, readonly=True)) as events:
        return records_in(events)


def passthrough(work: Work) -> dict[str, float]:
    """The journal that settle is measured with, passed through."""
    rate, ratio = pass_through(work, "city", "settled", work.readings)
    return {"passthrough_readings_per_s": rate, "passthrough_ratio": ratio}


def pass_through(work: Work, source: str, settled: str, readings: int) -> tuple[float, float]:
    """How many readings a second, of so many in a home's journal, and how much longer settle takes for the same; medians of
    rounds in which both take turns, for a machine is not equally fast at all times. settled: the home in which settle has
    settled that journal.
    """
    warm_up(work)
    run(*fresh_home(small_work(work), "passed", "city"), {})
    seconds, ratios = [], []
    for _ in range(ROUNDS):
        home, starts = fresh_home(work, "passed", source)
        others = others_in(work.home(settled), starts)
        with measured() as passing:
            run(home, starts, others)
        expected = readings + sum(batch.num_rows for batches in others.values() for batch in batches.values())
        if events_in(home) != expected:
            raise RuntimeError(f"{events_in(home)} events instead of {expected}")
        home = work.copied_home("passed-settled", source)
        with measured() as settling:
            run_settle(home, drain=True)
        seconds.append(passing.seconds)
        ratios.append(settling.seconds / passing.seconds)
    return readings / median(seconds), median(ratios)
