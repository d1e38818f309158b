"""The stages of a run, each a function called in a process of its own: `python -m bench.stages NAME FOLDER SCALE`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from bench.work import Work, measured, peak_rss_mib


@dataclass(frozen=True)
class Stage:
    """Where its function is, and which stages have to be done before it."""

    function: str
    needs: tuple[str, ...] = ()


PREPARING = {
    "warm-up": Stage("bench.ingest:make_warm_up"),
    "city": Stage("bench.ingest:make_city", ("warm-up",)),
    "million": Stage("bench.million:make_million", ("warm-up",)),
    "year": Stage("bench.history:make_year", ("warm-up",)),
    "troubles": Stage("bench.troubled:make_troubled", ("city",)),
}
MEASURING = {
    "ingest": Stage("bench.ingest:ingest_parquet", ("city",)),
    "csv": Stage("bench.ingest:ingest_csv", ("city",)),
    "settle": Stage("bench.settle:settle", ("ingest",)),
    "idiomatic": Stage("bench.idiomatic:idiomatic", ("settle",)),
    "polars": Stage("bench.polars_batch:polars_batch", ("settle",)),
    "passthrough": Stage("bench.passthrough:passthrough", ("settle",)),
    "troubled": Stage("bench.troubled:settle", ("troubles",)),
    "troubled-passthrough": Stage("bench.troubled:passthrough", ("troubled",)),
    "memory": Stage("bench.million:memory", ("million",)),
    "resume": Stage("bench.million:resume", ("memory",)),
    "load": Stage("bench.history:load", ("settle",)),
    "reconcile": Stage("bench.history:reconcile", ("load",)),
    "statement": Stage("bench.history:statement", ("year",)),
    "live": Stage("bench.live:live", ("settle",)),
    "poll": Stage("bench.switches:poll", ("warm-up",)),
    "switches": Stage("bench.switches:switches", ("warm-up",)),
}
CRASHES = {
    "crashes": Stage("bench.crashes:crashes"),
    "write-crashes": Stage("bench.switches:write_crashes", ("warm-up",)),
}
STAGES = {**PREPARING, **MEASURING, **CRASHES}


def in_order(wanted: list[str]) -> list[str]:
    """These stages with all they need, each after what it needs."""
    found: dict[str, None] = {}
    for name in wanted:
        found |= dict.fromkeys([*in_order(list(STAGES[name].needs)), name])
    return list(found)


def result_file(folder: Path, name: str) -> Path:
    """Where a stage leaves what it measured; it is there once the stage is done."""
    return folder / "results" / f"{name}.json"


def main() -> None:
    """Do a stage and leave its result, with what the whole of it took."""
    name, folder, scale = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    module, _, function = STAGES[name].function.partition(":")
    load_average = os.getloadavg()[0]
    with measured() as took:
        result = getattr(import_module(module), function)(Work(folder, scale)) or {}
    result["stage"] = {
        "seconds": took.seconds,
        "cpu_seconds": took.cpu_seconds,
        "peak_rss_mib": peak_rss_mib(),
        "load_average_before": load_average,
    }
    result_file(folder, name).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
