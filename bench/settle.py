"""Settle: journal → events, durable, one process, on the home that ingest made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc

from bench.ingest import warm_up
from bench.work import Work, measured
from connectors.home import Home
from connectors.log import Log
from connectors.log.body import decode
from connectors.log.rows import lag_of
from connectors.log.sqlite import open_log
from streams.settle import run_settle


def settle(work: Work) -> dict[str, float]:
    """Settle all readings, from the state of the accounts that an earlier settle left, which is resumed first."""
    warm_up(work)
    home = work.copied_home("settled", "city")
    with measured() as took:
        run_settle(home, drain=True)
    return {
        "settle_readings_per_s": work.readings / took.seconds,
        "settle_cpu_s": took.cpu_seconds,
        "charged_tiyin": charged_tiyin(work, home),
    }


def charged_tiyin(work: Work, home: Home) -> int:
    """What all readings cost together. Raises unless each of them has become one entry and nothing is left."""
    entries = charged = 0
    with (
        closing(open_log(home.journal, readonly=True)) as journal,
        closing(open_log(home.events, readonly=True)) as events,
    ):
        left = lag_of(journal, events.committed("settle"))
        for batch in batches_of(events, "entry"):
            is_usage = pc.equal(batch.column("kind").cast(pa.string()), "usage")
            entries += pc.sum(is_usage).as_py()
            charged -= pc.sum(batch.column("amount_tiyin").filter(is_usage)).as_py() or 0
    if left or entries != work.readings:
        raise RuntimeError(f"{entries} entries of use, {left} records left")
    return charged


def batches_of(log: Log, kind: str) -> Iterator[pa.RecordBatch]:
    """All records of a kind, packed, row by row."""
    for partition in range(log.partitions):
        position = 0
        while rows := log.read(partition, position):
            position = rows[-1].end
            batches = (decode(row.body, (kind,)).batches.get(kind) for row in rows)
            yield from (batch for batch in batches if batch is not None)
