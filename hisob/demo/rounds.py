"""The demo's rounds: what the world sends goes in as files, through `ingest` and `settle`, and what comes out goes back to it.

The files stay in `given/` of the home, as a utility would have them: readings as Parquet, what offices and banks send as
CSV, what switches and phones send as NDJSON.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from accounting.records import RECORDS, render_id
from connectors.log import Log
from connectors.log.body import decode, unpack
from hisob.demo.world import Command, Decisions, Notice, World

AS_JSON = ("acknowledgement", "receipt", "policy")
WANTED = ("notice", "command", "entry")
Files = list[tuple[str, Path]]


@dataclass
class Played:
    """What has been played so far: rounds, records given by kind, and the seconds that each command took in all."""

    rounds: int = 0
    records: Counter[str] = field(default_factory=Counter)
    ingest_s: float = 0.0
    settle_s: float = 0.0


def play(
    world: World,
    folder: Path,
    events: Log,
    ingest: Callable[[Files], object],
    settle: Callable[[], object],
    watch: Callable[[dt.datetime, Played], None],
) -> Played:
    """Play the world to its end. watch is told the moment and what has been played, after each round."""
    played = Played()
    positions = [0] * events.partitions
    while world.now < world.end:
        until = world.next_round()
        records = world.records(until)
        files = write_files(folder / f"{until:%Y-%m-%d}", f"{until:%H%M%S}", records)
        began = perf_counter()
        ingest(files)
        ingested = perf_counter()
        settle()
        played.ingest_s += ingested - began
        played.settle_s += perf_counter() - ingested
        world.learn(decisions_since(events, positions))
        played.rounds += 1
        played.records.update({kind: len(rows) for kind, rows in records.items()})
        watch(until, played)
    return played


def write_files(folder: Path, stem: str, records: Mapping[str, Any]) -> Files:
    """A file a kind, named by the kind and the time of day."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kind, rows in records.items():
        if not len(rows):
            continue
        if isinstance(rows, pa.Table):
            path = folder / f"{kind}-{stem}.parquet"
            pq.write_table(rows, path, compression="zstd")
        elif kind in AS_JSON:
            path = folder / f"{kind}-{stem}.ndjson"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        else:
            path = folder / f"{kind}-{stem}.csv"
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, [c.name for c in RECORDS[kind] if any(c.name in row for row in rows)])
                writer.writeheader()
                writer.writerows(rows)
        files.append((kind, path))
    return files


def decisions_since(events: Log, positions: list[int]) -> Decisions:
    """The notices, commands and balances in the events after these positions, which are moved to the end."""
    found = Decisions([], [], {})
    for partition, position in enumerate(positions):
        while rows := events.read(partition, position):
            for row in rows:
                take_decisions(found, partition, row.body)
            position = positions[partition] = rows[-1].end  # noqa: PLW2901  read on from there
    return found


def take_decisions(found: Decisions, partition: int, body: bytes) -> None:
    """Add what one row of events holds."""
    batches = {kind: unpack(kind, batch) for kind, batch in decode(body).batches.items() if kind in WANTED}
    for row in rows_of(batches.get("notice"), ("account_id", "kind", "send_after")):
        notice_id = render_id(partition, row["ordinal"], row["n"])
        found.notices.append(Notice(notice_id, row["account_id"], row["kind"], row["send_after"]))
    for row in rows_of(batches.get("command"), ("account_id", "action", "issued_at")):
        command_id = render_id(partition, row["ordinal"], row["n"])
        found.commands.append(Command(command_id, row["account_id"], row["action"], row["issued_at"]))
    if entries := batches.get("entry"):
        found.balances.update(zip(entries["account_id"].to_pylist(), entries["balance_tiyin"].to_pylist(), strict=True))


def rows_of(batch: pa.RecordBatch | None, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Some columns of a batch, row by row."""
    return [] if batch is None else batch.select(["ordinal", "n", *columns]).to_pylist()
