"""Making a home: its folders, its two logs, and the tariffs and policies that every partition of a new journal begins with.

Each step may be repeated, and hisob.toml, which is what makes a folder a home, is written last and in one go. So an
interrupted `init` leaves a folder that is no home yet, and the next `init` completes it. It can also give a home its lost
hisob.toml back: records in the logs are never touched, those it would add it finds there.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
from collections import Counter
from contextlib import closing
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from accounting.records import RECORD_SCHEMAS
from connectors.home import Home
from connectors.log import DivergedError, NewRow
from connectors.log.body import KIND_NUMBER, encode, pack
from connectors.log.sqlite import create_log, open_log
from connectors.small_files import write_whole
from hisob.errors import HisobError
from hisob.settings import settings_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PRODUCER = "init"


def make_home(path: Path, partitions: int, settings: Mapping[str, object] | None = None) -> Home:
    """A home in this folder, with so many account partitions and the unrouted one. Raises HisobError where there is one.

    settings: those that are not to be at their defaults.
    """
    home = Home(path.absolute())
    if home.settings.exists():
        raise HisobError(f"There is a home in {path} already. Name another folder: hisob --home DIR init", exit_code=2)
    for folder in (home.path, home.recovery, home.lake, home.published.parent, home.run):
        folder.mkdir(parents=True, exist_ok=True)
    count, body = default_records()
    rows = [NewRow(partition, 0, count, body) for partition in range(partitions + 1)]
    for log_path in (home.events, home.journal):
        if not log_path.exists():
            create_log(log_path, partitions + 1)
        with closing(open_log(log_path)) as log:
            if log.partitions != partitions + 1:
                raise HisobError(
                    f"{log_path} is there already, with {log.partitions - 1} account partitions:"
                    f" hisob --home {path} init --partitions {log.partitions - 1} keeps it and completes the home.",
                    exit_code=2,
                )
            if log_path == home.journal:
                try:
                    log.append(PRODUCER, rows)
                except DivergedError as error:
                    raise HisobError(
                        f"{log_path} was begun by another version of Hisob: complete the home with that one, or name another."
                    ) from error
    write_whole(home.settings, settings_text(partitions, settings or {}))
    return home


def default_records() -> tuple[int, bytes]:
    """The records that every partition begins with, tariffs first: their count and a row's body. The same at any time."""
    tariffs = tariff_rows()
    policies = _policy_rows(files("hisob.data").joinpath("policies.json").read_text(encoding="utf-8"))
    batches = {
        kind: pack(kind, pa.RecordBatch.from_pylist(rows, schema=RECORD_SCHEMAS[kind]))
        for kind, rows in (("tariff", tariffs), ("policy", policies))
    }
    kinds = np.array([KIND_NUMBER[kind] for kind in batches], np.uint8)
    counts = np.array([batch.num_rows for batch in batches.values()], np.uint32)
    return int(counts.sum()), encode((kinds, counts), batches)


def tariff_rows() -> list[dict[str, Any]]:
    """The rows of the tariff book we ship, those of one version together and numbered, as ingest would have them."""
    text = files("hisob.data").joinpath("tariffs-uz.csv").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = [
        {
            **row,
            "effective_on": dt.date.fromisoformat(row["effective_on"]),
            "block_upto_kwh": int(row["block_upto_kwh"]) if row["block_upto_kwh"] else None,
            "price_tiyin_per_kwh": int(row["price_tiyin_per_kwh"]),
            "hours": row["hours"] or None,
        }
        for row in csv.DictReader(text.splitlines())
    ]
    versions = Counter((row["tariff"], row["effective_on"]) for row in rows)
    numbered: Counter[tuple[str, dt.date]] = Counter()
    for row in rows:
        version = (row["tariff"], row["effective_on"])
        row["block"], row["blocks"] = numbered[version], versions[version]
        numbered[version] += 1
    return rows


def _policy_rows(text: str) -> list[dict[str, Any]]:
    return [
        {**row, "starts_at": dt.datetime.fromisoformat(row["starts_at"]), "value": json.dumps(row["value"])}
        for row in json.loads(text)
    ]
