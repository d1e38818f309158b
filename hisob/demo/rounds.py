"""The demo's rounds: what the world sends goes in as files, through `ingest`, and what was decided and done goes back to it.

The files stay in `given/` of the home, as a utility would have them: readings as Parquet, what offices and banks send as
CSV, policies as NDJSON.
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

from accounting.records import RECORDS
from hisob.demo.world import Decisions, World

AS_JSON = ("policy",)
Files = list[tuple[str, Path]]


@dataclass
class Played:
    """What has been played so far: rounds, records given by kind, the seconds that ingest took and those in which the live
    processes did their part; and of each light that a payment brought back, the seconds from the payment's file to readback.
    """

    rounds: int = 0
    records: Counter[str] = field(default_factory=Counter)
    ingest_s: float = 0.0
    live_s: float = 0.0
    light_s: list[float] = field(default_factory=list)


def play(
    world: World,
    folder: Path,
    ingest: Callable[[Files], object],
    settled: Callable[[], Decisions],
    watch: Callable[[dt.datetime, Played], None],
) -> Played:
    """Play the world to its end. settled waits until nothing is open. watch is told the moment and what has been played."""
    played = Played()
    while world.now < world.end:
        until = world.next_round()
        records = world.records(until)
        files = write_files(folder / f"{until:%Y-%m-%d}", f"{until:%H%M%S}", records)
        began = perf_counter()
        ingest(files)
        ingested = perf_counter()
        decisions = settled()
        played.ingest_s += ingested - began
        played.live_s += perf_counter() - ingested
        paid = {row["account_id"] for row in records.get("payment", ())}
        played.light_s += [
            a.heard_s - began for a in decisions.answers if a.outcome == "closed" and a.account_id in paid
        ]
        world.learn(decisions)
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
