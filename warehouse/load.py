"""The load: everything both logs have gained since the last one, into the lake and `warehouse.duckdb`, in one transaction.

What it takes in is a consistent picture: the events, and the journal exactly as far as settle had come when it wrote the
last of them. The positions covered are kept in the same transaction, so a load that is run twice adds nothing, and one that
is killed at any step has taken in nothing: what it left in the lake is swept away by the next. In the same transaction it
takes in what channels' lists of payments came to (`payment_runs.py`).

Memory is bounded by slices. Decoding, sorting and writing Parquet run in two threads: Arrow and NumPy let go of Python's lock.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, islice
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import duckdb

from connectors.locks import AlreadyRunningError, hold
from connectors.log.sqlite import open_log
from warehouse.errors import BusyError, WarehouseError, first_line
from warehouse.lake import Slice, Taken, add_files, lake_sql, merge_files, slices, sweep, take_slice
from warehouse.payment_runs import make_run_tables, new_runs, take_run
from warehouse.tables import add_columns, create_later_tables, create_tables, fingerprint, log_of, quoted
from warehouse.views import definitions_digest, make_views

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from connectors.home import Home
    from connectors.log import Log

Positions = dict[str, dict[int, int]]  # of each log, of each partition
THREADS = 2
MEMORY_LIMIT = "2GB"  # of DuckDB; what needs more spills to scratch/


@dataclass(frozen=True)
class Loaded:
    """What a load came to. `load` is the number of the latest load; `records` is 0 if there was nothing new."""

    load: int
    records: int
    rows: dict[str, int]
    merged_files: int
    waiting: int  # records of the journal that settle has not come to yet


@contextmanager
def holding(home: Home) -> Iterator[None]:
    """Be the only one who loads and publishes on the home. Raises BusyError, naming the other's pid, if there is one."""
    try:
        with hold(home.run / "load.lock", "load"):
            yield
    except AlreadyRunningError as error:
        raise BusyError(f"Another load is running on {home.path} (pid {error.pid}). Wait for it to end.") from None


def load(home: Home) -> Loaded:
    """Take in what both logs have gained, all of it or nothing. The caller is `holding` the home."""
    try:
        return load_logs(home)
    except (duckdb.Error, OSError) as error:
        raise WarehouseError(
            f"The load into {home.warehouse} failed: {first_line(error)}. Mend that and load again: nothing is lost."
        ) from error


def load_logs(home: Home) -> Loaded:
    """Open everything, take in what is new, note it, and make the views anew, in one transaction."""
    with closing(open_log(home.journal, readonly=True)) as journal, closing(open_log(home.events)) as events:
        reach, waiting = reach_of(journal, events)
        with open_warehouse(home, journal.partitions) as con:
            published = published_manifest(home, warehouse_id(con))
            sweep(con, home.lake, published.paths)
            covered = covered_positions(con)
            records = check_reach(home, covered, reach)
            rows, merged = {}, 0
            con.begin()
            make_run_tables(con)
            runs = new_runs(con, home)
            number = latest_load(con) + 1
            if records:
                logs = {"journal": journal, "events": events}
                parts = chain.from_iterable(slices(log, name, covered[name], reach[name]) for name, log in logs.items())
                rows = take_in(con, home.lake, parts, number)
                keep_balances(con, home.lake, number)
                merged = merge_files(con, home.lake, published.load)
            if runs:
                for run in runs:
                    take_run(con, run)
                rows["payment_reconciliation"] = len(runs)
            if records or runs:
                note_load(con, number, records, covered, reach)
            if follow_home(con, home) or records or definitions_of(con) != definitions_digest(journal.partitions):
                make_views(con, home.lake.absolute(), journal.partitions, published.load)
            con.commit()
            con.execute("CHECKPOINT")
            return Loaded(latest_load(con), records, rows, merged, waiting)


def follow_home(con: duckdb.DuckDBPyConnection, home: Home) -> bool:
    """Whether the home lies elsewhere than when the views were made, as it does at first; from now on it is here."""
    lake = str(home.lake.absolute())
    if lake_of(con) == lake:
        return False
    con.execute("UPDATE load.contract SET lake = ?", [lake])
    return True


def reach_of(journal: Log, events: Log) -> tuple[Positions, int]:
    """How far to load, as one picture: the events there are, and the journal up to where settle had come with them.

    Also how many records of the journal settle has still to come to.
    """
    with events.writing() as turn:  # nobody writes meanwhile, so both are of the same moment
        settled = turn.committed("settle")
        ends = {p: turn.end(p) for p in range(events.partitions)}
    taken = {p: settled.get(str(p), 0) for p in range(journal.partitions)}
    waiting = sum(journal.end(p) - taken[p] for p in range(journal.partitions))
    return {"journal": taken, "events": ends}, waiting


def check_reach(home: Home, covered: Positions, reach: Positions) -> int:
    """How many records there are to take in. A warehouse that has come further than the logs is not theirs."""
    for log, positions in covered.items():
        for partition, position in positions.items():
            if position > reach[log].get(partition, 0):
                raise WarehouseError(
                    f"{home.warehouse} covers {log} partition {partition} up to {position}, but the log ends at "
                    f"{reach[log].get(partition, 0)}: it was made from other logs. Put the logs back, or move "
                    "warehouse.duckdb and lake/ away and load again."
                )
    return sum(sum(reach[log].values()) - sum(covered[log].values()) for log in reach)


@contextmanager
def open_warehouse(home: Home, partitions: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """The warehouse open for writing, made if there is none."""
    home.scratch.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(home.scratch / "duckdb")}
    try:
        con = duckdb.connect(str(home.warehouse), config=config)
    except duckdb.IOException as error:
        if "lock" in str(error):
            raise BusyError(f"{home.warehouse} is open in another program. Close it and load again.") from error
        raise WarehouseError(f"{home.warehouse} cannot be opened: {first_line(error)}") from error
    with closing(con):
        con.execute("SET TimeZone = 'UTC'")
        if con.execute("SELECT count(*) FROM duckdb_tables() WHERE schema_name = 'load'").fetchone() == (0,):
            con.begin()
            create_tables(con)
            con.execute("INSERT INTO load.contract VALUES (?, ?, ?, '')", [str(uuid4()), fingerprint(), partitions])
            con.commit()
        follow_version(con, home)
        yield con


def follow_version(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Let a warehouse that an older Hisob made have what has been added since."""
    con.begin()
    create_later_tables(con)
    if con.execute("SELECT fingerprint FROM load.contract").fetchone() != (fingerprint(),) and not add_columns(con):
        raise WarehouseError(
            f"{home.warehouse} was made by another version of Hisob. The logs hold everything: move warehouse.duckdb "
            "and lake/ away and load again."
        )
    con.commit()


def covered_positions(con: duckdb.DuckDBPyConnection) -> Positions:
    """The positions the warehouse covers."""
    covered: Positions = {"journal": {}, "events": {}}
    for log, partition, position in con.execute(
        "SELECT log, partition, max(end_position) FROM load.progress GROUP BY ALL"
    ).fetchall():
        covered[log][partition] = position
    return covered


def latest_load(con: duckdb.DuckDBPyConnection) -> int:
    """The number of the latest load; 0 before the first."""
    ((number,),) = con.execute(
        "SELECT coalesce(max(load), 0) FROM load.loads"
    ).fetchall()  # to the end: `register` may follow
    return int(number)


def warehouse_id(con: duckdb.DuckDBPyConnection) -> str:
    """The name given to the warehouse when it was made."""
    (name,) = con.execute("SELECT warehouse FROM load.contract").fetchone() or ("",)
    return str(name)


def lake_of(con: duckdb.DuckDBPyConnection) -> str:
    """Where the lake lay when the views were made."""
    (lake,) = con.execute("SELECT lake FROM load.contract").fetchone() or ("",)
    return str(lake)


def definitions_of(con: duckdb.DuckDBPyConnection) -> str:
    """What the views and macros were made by; nothing, if that was before it was noted."""
    try:
        (digest,) = con.execute("SELECT digest FROM load.definitions").fetchone() or ("",)
    except duckdb.CatalogException:
        return ""
    return str(digest)


@dataclass(frozen=True)
class Published:
    """What the published database refers to. Up to `load` all has passed the expectations, and somebody may be reading it."""

    load: int = 0
    lake: str = ""
    definitions: str = ""
    paths: frozenset[str] = frozenset()


def published_manifest(home: Home, warehouse: str) -> Published:
    """The load and the files of the published database. Load 0 if there is none to be read, or it is another warehouse's."""
    try:
        with duckdb.connect(str(home.published), read_only=True) as con:
            live = con.execute("SELECT path FROM load.files WHERE retired_at IS NULL").fetchall()
            paths = frozenset(path for (path,) in live)
            number = latest_load(con) if warehouse_id(con) == warehouse else 0
            return Published(number, lake_of(con), definitions_of(con), paths)
    except duckdb.Error:
        return Published()


# ---- the steps of a load ---------------------------------------------------------------------------------------------


def take_in(con: duckdb.DuckDBPyConnection, lake: Path, parts: Iterator[Slice], number: int) -> dict[str, int]:
    """Take in slice after slice, THREADS of them at work while one is waiting; rows by kind."""
    rows: dict[str, int] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        at_work = deque(pool.submit(take_slice, lake, part) for part in islice(parts, THREADS + 1))
        while at_work:
            taken = at_work.popleft().result()
            if (part := next(parts, None)) is not None:
                at_work.append(pool.submit(take_slice, lake, part))
            keep_slice(con, taken, number)
            for kind, count in chain(
                ((f.kind, f.rows) for f in taken.files), ((k, t.num_rows) for k, t in taken.tables.items())
            ):
                rows[kind] = rows.get(kind, 0) + count
    return rows


def keep_slice(con: duckdb.DuckDBPyConnection, taken: Taken, number: int) -> None:
    """Enter a slice's files into the manifest and its other rows into their tables."""
    add_files(con, taken.files, number)
    for kind, table in taken.tables.items():
        con.register("taken", table)
        con.execute(f"INSERT INTO {log_of(kind)}.{quoted(kind)} BY NAME FROM taken")
        con.unregister("taken")


def note_load(con: duckdb.DuckDBPyConnection, number: int, records: int, covered: Positions, reach: Positions) -> None:
    """Enter the load and the positions it covers."""
    con.execute("INSERT INTO load.loads VALUES (?, now(), ?)", [number, records])
    gained = [
        [number, log, partition, covered[log].get(partition, 0), end]
        for log, ends in reach.items()
        for partition, end in ends.items()
        if end > covered[log].get(partition, 0)
    ]
    if gained:
        con.executemany("INSERT INTO load.progress VALUES (?, ?, ?, ?, ?)", gained)


def keep_balances(con: duckdb.DuckDBPyConnection, lake: Path, number: int) -> None:
    """Make `balances` anew of the old ones and the entries, forecasts and supply states that this load took in."""
    new = {kind: lake_sql(con, lake, kind, after_load=number - 1) for kind in ("entry", "forecast")}
    sql = files("warehouse").joinpath("balances.sql").read_text(encoding="utf-8")
    con.execute(f"CREATE OR REPLACE TEMP TABLE next_balances AS {sql.format(**new)}")
    con.execute("DELETE FROM main.balances")
    con.execute("INSERT INTO main.balances BY NAME FROM next_balances ORDER BY account_id")
    con.execute("DROP TABLE next_balances")
