"""Homes with real logs for the warehouse to load: records routed, and settled by the core itself, appended row by row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from accounting.partition import Partition
from accounting.records import EVENT_SCHEMAS, RECORDS
from connectors.home import Home
from connectors.log import NewRow
from connectors.log.body import KIND_NUMBER, encode, pack
from connectors.log.sqlite import create_log, open_log
from tests.core_harness import body_of, route, settle_bytes
from tests.oracle import journal_of, load_case
from warehouse import load as loading
from warehouse import publish

CASES = Path(__file__).parent / "cases"
ROWS = 500  # records in a row of the journal
ACCOUNT_PARTITIONS = 3


class History:
    """A home whose journal is appended to and settled bit by bit, as ingest and settle would."""

    def __init__(self, path: Path) -> None:
        self.home = Home(path)
        path.mkdir(parents=True)
        self.home.settings.touch()
        for log in (self.home.journal, self.home.events):
            create_log(log, ACCOUNT_PARTITIONS + 1)
        self.states = [Partition(n, unrouted=n == ACCOUNT_PARTITIONS) for n in range(ACCOUNT_PARTITIONS + 1)]
        self.ends = [0] * (ACCOUNT_PARTITIONS + 1)

    def append(self, placed: list[list[tuple[str, dict[str, Any]]]], *, settle: bool = True) -> None:
        """Journal these records of each partition, and settle them."""
        with closing(open_log(self.home.journal)) as journal, closing(open_log(self.home.events)) as events:
            for number, records in enumerate(placed):
                for at in range(0, len(records), ROWS):
                    body, count = body_of(records[at : at + ROWS]), len(records[at : at + ROWS])
                    position = self.ends[number]
                    journal.append("test", [NewRow(number, position, count, body)])
                    self.ends[number] += count
                    if settle:
                        self.settle(events, number, position, count, body)

    def settle(self, events: Any, number: int, position: int, count: int, body: bytes) -> None:
        """Settle one row of the journal, as the dataflow does: its events and how far settle has come, together."""
        batches = {k: b for k, b in settle_bytes(self.states[number], position, body).items() if b.num_rows}
        done = {"settle": {str(number): position + count}}
        rows = [NewRow(number, position, *counted(batches))] if batches else []
        events.append("settle", rows, done)

    def append_event(self, number: int, event: str, **values: Any) -> None:
        """An event that no rule made, at the end of a partition."""
        schema = EVENT_SCHEMAS[event]
        columns = {name: pa.array([values.pop(name)]) for name in ("ordinal", "n")}
        columns |= {f.name: pa.array([values.pop(f.name, None)], f.type) for f in schema}
        assert not values
        batches = {event: pack(event, pa.record_batch(columns))}
        with closing(open_log(self.home.events)) as events:
            events.append("nobody", [NewRow(number, self.ends[number], *counted(batches))])


def counted(batches: dict[str, pa.RecordBatch]) -> tuple[int, bytes]:
    """How many records a body of packed batches has, and the body."""
    kinds = np.array([KIND_NUMBER[kind] for kind in batches], np.uint8)
    counts = np.array([batch.num_rows for batch in batches.values()], np.uint32)
    return int(counts.sum()), encode((kinds, counts), batches)


@cache
def placed_case(name: str) -> tuple[list[tuple[str, dict[str, Any]]], ...]:
    """The records of a worked case, partition by partition."""
    return tuple(route(journal_of(load_case(CASES / name)), ACCOUNT_PARTITIONS))


def history_of(path: Path, case: str) -> History:
    """A home with one of the worked cases in its logs."""
    history = History(path)
    history.append(list(placed_case(case)))
    return history


def in_parts(case: str, parts: int) -> list[list[list[Any]]]:
    """The records of a case in parts, one after the other, each with its share of every partition."""
    placed = placed_case(case)
    return [[p[len(p) * k // parts : len(p) * (k + 1) // parts] for p in placed] for k in range(parts)]


def load_and_publish(home: Home) -> loading.Loaded:
    """What the flow does, but for the expectations."""
    with loading.holding(home):
        loaded = loading.load(home)
        if not publish.is_published(home):
            publish.make_candidate(home)
            publish.publish(home)
    return loaded


def history(path: Path, records: dict[str, Any]) -> History:
    """A home with these records in it, loaded and published."""
    made = History(path)
    made.append(route(journal_of(records), ACCOUNT_PARTITIONS))
    load_and_publish(made.home)
    return made


def whole(records: dict[str, Any]) -> dict[str, Any]:
    """Records with every column of their kind: absent ones have their default."""
    return {
        kind: [{c.name: c.default for c in RECORDS[kind] if not c.internal} | row for row in rows]
        for kind, rows in records.items()
    }


@contextmanager
def quick_loads() -> Iterator[None]:
    """Commands that load on their way do so without Prefect and the expectations, which have tests of their own."""
    with patch("hisob.commands.load.load_now", load_and_publish):
        yield
