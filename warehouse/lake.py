"""The lake: what grows, as Parquet that is written once and never changed.

    lake/entry/2025-03/000000000000000-000001250000.parquet

A file holds the rows of one kind and one month (Asia/Tashkent) out of a slice of a log, sorted by account, then position, so
that one account is a few row groups of few files. Its name says which slice: how many records of the log, all partitions
together, were taken in before and after it. It is written under another name, made durable and then renamed: a file with
its name is whole. What counts is the manifest (`load.files`, `load.spans`), which changes with the load's transaction; a
file it does not know is a leftover of a load that died, and is swept away.

Small files are merged into larger ones. A merged-away file is retired: it stays for a day, and for as long as the published
database refers to it, since somebody may be reading it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from accounting.calendar import UTC_OFFSET_US
from accounting.records import EVENT_SCHEMAS, RECORD_SCHEMAS
from connectors.log import body as log_body
from connectors.small_files import sync
from warehouse.errors import WarehouseError
from warehouse.tables import LAKE, columns_of, is_event, literal, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import duckdb
    from numpy.typing import NDArray

    from connectors.log import Log, Row

SLICE_RECORDS = 1_000_000  # what is decoded and sorted at a time: bounds the memory
ROW_GROUP = 122_880
SMALL_ROWS = 65_536  # files up to this are of the first size, each next size is eight times as large
MERGE_FILES = 8  # so many of one size that hold the same partition become one
MERGE_ROWS = 100_000_000  # a file of so many rows is left as it is
GRACE = timedelta(days=1)
MONTHS = (np.datetime64("2000-01", "M"), np.datetime64("2099-12", "M"))  # a clock gone wrong is filed under the nearer


@dataclass(frozen=True)
class Slice:
    """A part of what a load takes in: whole rows of the log, and how many records of it came before and up to its end."""

    log: str
    rows: tuple[Row, ...]
    before: int
    after: int


@dataclass(frozen=True)
class Span:
    """Rows of a file that come from positions first … end − 1 of a partition."""

    partition: int
    first: int
    end: int
    rows: int


@dataclass(frozen=True)
class File:
    """A file as the manifest knows it."""

    path: str
    kind: str
    month: date
    rows: int
    size: int
    spans: tuple[Span, ...]


@dataclass
class Taken:
    """What a slice came to: the files written of what grows, and the rest as tables."""

    files: list[File] = field(default_factory=list)
    tables: dict[str, pa.Table] = field(default_factory=dict)


def slices(log: Log, name: str, covered: dict[int, int], reach: dict[int, int]) -> Iterator[Slice]:
    """The log from `covered` to `reach`, partition after partition, in slices of about SLICE_RECORDS."""
    before = after = sum(covered.values())
    rows: list[Row] = []
    for partition in sorted(reach):
        position = covered.get(partition, 0)
        while position < reach[partition]:
            for row in log.read(partition, position):
                if row.position != position:
                    raise WarehouseError(
                        f"The {name} log has a row at {partition}-{row.position} where {position} was to come: it is not the "
                        "one loaded before. Put that one back, or move warehouse.duckdb and lake/ away and load again."
                    )
                if position >= reach[partition]:
                    break
                rows.append(row)
                position = row.end
                after += row.count
                if after - before >= SLICE_RECORDS:
                    yield Slice(name, tuple(rows), before, after)
                    rows, before = [], after
    if rows:
        yield Slice(name, tuple(rows), before, after)


def take_slice(lake: Path, part: Slice) -> Taken:
    """Decode a slice; write the files of what grows, and give the rest back as tables."""
    batches: dict[str, list[pa.RecordBatch]] = {}
    for row in part.rows:
        for kind, batch in decode_row(row):
            batches.setdefault(kind, []).append(batch)
    taken = Taken()
    for kind in list(batches):
        table = pa.Table.from_batches(batches.pop(kind)).unify_dictionaries().combine_chunks()
        if kind in LAKE:
            taken.files += write_by_month(lake, kind, table, part)
        else:
            taken.tables[kind] = table
    return taken


def decode_row(row: Row) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The kinds of a row, each with its positions and the contract's columns."""
    body = log_body.decode(row.body)
    kinds = np.repeat(body.runs_kind, body.runs_count) if len(body.batches) > 1 else None
    for kind, packed in body.batches.items():
        batch = log_body.unpack(kind, packed)
        schema = EVENT_SCHEMAS[kind] if is_event(kind) else RECORD_SCHEMAS[kind]
        columns = {"partition": pa.array(np.full(batch.num_rows, row.partition, np.int32))}
        if is_event(kind):
            columns |= {"ordinal": batch.column("ordinal"), "n": batch.column("n").cast(pa.int32())}
        else:
            at = np.arange(batch.num_rows) if kinds is None else np.flatnonzero(kinds == log_body.KIND_NUMBER[kind])
            columns["ordinal"] = pa.array(at + row.position)
        columns |= {f.name: in_type(batch.column(f.name), f.type) for f in schema}
        yield kind, pa.record_batch(columns)


def in_type(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """The array in the contract's type; texts as codes into a dictionary that has each value once, and no null."""
    if not pa.types.is_dictionary(array.type):
        return array if array.type == wanted else array.cast(wanted)
    once = pc.dictionary_encode(array.dictionary)  # a reading's meter and account lie in one dictionary of pairs
    return pa.DictionaryArray.from_arrays(once.indices.take(array.indices), once.dictionary)


def write_by_month(lake: Path, kind: str, table: pa.Table, part: Slice) -> list[File]:
    """Write a slice's rows of one kind, sorted by account, a file for each month they lie in."""
    months = months_of(table.column(LAKE[kind].month_of).chunk(0))
    order = order_by_account(table.column("account_id").chunk(0))
    months = months[order]
    files = []
    for month in np.unique(months):
        rows = table.take(pa.array(order[months == month]))
        path = f"{kind}/{month}/{part.before:012}-{part.after:012}.parquet"
        size = write_file(lake / path, rows)
        files.append(File(path, kind, month.astype("datetime64[D]").item(), rows.num_rows, size, spans_of(rows, part)))
    return files


def months_of(times: pa.Array) -> NDArray[np.datetime64]:
    """The months, in Asia/Tashkent, that moments lie in; what has no moment is filed under the first month there is."""
    us = pc.fill_null(times.cast(pa.int64()), 0).to_numpy(zero_copy_only=False) + UTC_OFFSET_US
    return np.clip(us.astype("datetime64[us]").astype("datetime64[M]"), *MONTHS)


def order_by_account(accounts: pa.DictionaryArray) -> NDArray[np.int64]:
    """The order that sorts by account and leaves the rest as it was, which is by position. Rows without account come last."""
    names = len(accounts.dictionary)
    rank = np.full(names + 1, names, np.uint16 if names < 1 << 16 else np.int64)  # numpy sorts 16 bits by radix
    rank[:names] = pc.rank(accounts.dictionary, tiebreaker="dense").to_numpy() - 1
    return np.argsort(rank[pc.fill_null(accounts.indices, names).to_numpy()], kind="stable")


def spans_of(rows: pa.Table, part: Slice) -> tuple[Span, ...]:
    """Which positions of each partition the slice covers, and how many of these rows come from there."""
    partitions, counts = np.unique(rows.column("partition").to_numpy(), return_counts=True)
    first = {row.partition: row.position for row in reversed(part.rows)}
    end = {row.partition: row.end for row in part.rows}
    return tuple(
        Span(int(p), first[int(p)], end[int(p)], int(count)) for p, count in zip(partitions, counts, strict=True)
    )


def write_file(path: Path, rows: pa.Table) -> int:
    """Write a Parquet file that is whole and durable once it has its name; its size in bytes."""
    texts = [f.name for f in rows.schema if pa.types.is_dictionary(f.type)]
    numbers = {f.name: "DELTA_BINARY_PACKED" for f in rows.schema if f.name not in texts}
    with whole_file(path) as unfinished:
        pq.write_table(
            rows,
            unfinished,
            row_group_size=ROW_GROUP,
            compression="zstd",
            compression_level=1,
            use_dictionary=texts,
            column_encoding=numbers,
        )
    return path.stat().st_size


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write a file to; at the end it is made durable and given its name."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.parent.parents[:2]:  # the kind's and the lake, so that the new folders stay in them
            sync(folder)
    unfinished = path.with_name(path.name + ".unfinished")
    yield unfinished
    sync(unfinished)
    unfinished.replace(path)
    sync(path.parent)


# ---- the manifest ----------------------------------------------------------------------------------------------------


def add_files(con: duckdb.DuckDBPyConnection, files: Sequence[File], load: int) -> None:
    """Enter files into the manifest, as this load's."""
    if not files:
        return
    con.executemany(
        "INSERT INTO load.files VALUES (?, ?, ?, ?, ?, ?, NULL)",
        [[f.path, f.kind, f.month, f.rows, f.size, load] for f in files],
    )
    con.executemany(
        "INSERT INTO load.spans VALUES (?, ?, ?, ?, ?)",
        [[f.path, s.partition, s.first, s.end, s.rows] for f in files for s in f.spans],
    )


def live_files(con: duckdb.DuckDBPyConnection, kind: str, *, after_load: int = 0) -> list[str]:
    """The paths, within the lake, of the files that hold the kind; those of later loads only, if asked."""
    found = con.execute(
        "SELECT path FROM load.files WHERE kind = ? AND retired_at IS NULL AND last_load > ? ORDER BY path",
        [kind, after_load],
    )
    return [path for (path,) in found.fetchall()]


def merge_files(con: duckdb.DuckDBPyConnection, lake: Path, upto_load: int) -> int:
    """Merge the small files of months that have gathered too many; how many went into larger ones. In the load's transaction.

    Only files that have passed the expectations (of loads up to `upto_load`) are touched.
    """
    merged = 0
    while due := files_to_merge(con, upto_load):
        merge(con, lake, due)
        merged += len(due)
    return merged


def files_to_merge(con: duckdb.DuckDBPyConnection, upto_load: int) -> list[str]:
    """The files of one kind, month and size, if some partition lies in MERGE_FILES of them; else none."""
    found = con.execute(
        """
        SELECT list(DISTINCT f.path ORDER BY f.path)
        FROM load.files f JOIN load.spans s ON s.path = f.path
        WHERE f.retired_at IS NULL AND f.last_load <= ? AND f.rows < ?
        GROUP BY f.kind, f.month, floor(log(greatest(f.rows, ?) / ?) / log(8)), s.partition
        HAVING count(DISTINCT f.path) >= ?
        ORDER BY 1 LIMIT 1
        """,
        [upto_load, MERGE_ROWS, SMALL_ROWS, SMALL_ROWS, MERGE_FILES],
    ).fetchone()
    return found[0] if found else []


def merge(con: duckdb.DuckDBPyConnection, lake: Path, paths: list[str]) -> None:
    """Write one file of the rows of several, enter it into the manifest and retire them."""
    kind, month = paths[0].split("/")[:2]
    reaches = [path.split("/")[2].removesuffix(".parquet").split("-") for path in paths]
    path = f"{kind}/{month}/{min(r[0] for r in reaches)}-{max(r[1] for r in reaches)}.parquet"
    by = "account_id NULLS LAST, partition, ordinal" + (", n" if is_event(kind) else "")
    with whole_file(lake / path) as unfinished:
        con.execute(
            f"COPY (FROM ({files_sql(con, lake, kind, paths)}) ORDER BY {by}) TO {literal(str(unfinished))} "
            f"(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, PARQUET_VERSION v2, ROW_GROUP_SIZE {ROW_GROUP})"
        )
    con.execute(
        """
        INSERT INTO load.files
        SELECT $new, any_value(kind), any_value(month), sum(rows), $size, max(last_load), NULL
        FROM load.files WHERE list_contains($old, path)
        """,
        {"new": path, "size": (lake / path).stat().st_size, "old": paths},
    )
    con.execute(
        """
        INSERT INTO load.spans
        WITH old AS (
            SELECT *, first_position IS DISTINCT FROM lag(end_position) OVER w AS opens FROM load.spans
            WHERE list_contains($old, path) WINDOW w AS (PARTITION BY partition ORDER BY first_position)
        ), joined AS (
            SELECT *, count_if(opens) OVER (PARTITION BY partition ORDER BY first_position) AS run FROM old
        )
        SELECT $new, partition, min(first_position), max(end_position), sum(rows) FROM joined GROUP BY partition, run
        """,
        {"new": path, "old": paths},
    )
    con.execute("DELETE FROM load.spans WHERE list_contains($old, path)", {"old": paths})
    con.execute("UPDATE load.files SET retired_at = now() WHERE list_contains($old, path)", {"old": paths})


def sweep(con: duckdb.DuckDBPyConnection, lake: Path, published: frozenset[str]) -> None:
    """Remove leftovers of loads that died, and files retired longer than GRACE ago; none that the published database needs."""
    known = {path for (path,) in con.execute("SELECT path FROM load.files").fetchall()}
    for file in lake.glob("*/*/*"):
        path = file.relative_to(lake).as_posix()
        if path not in known and path not in published:
            file.unlink()
    retired = con.execute("SELECT path FROM load.files WHERE retired_at < now() - ?::INTERVAL", [GRACE]).fetchall()
    for (path,) in retired:
        if path not in published:
            (lake / path).unlink(missing_ok=True)
            con.execute("DELETE FROM load.files WHERE path = ?", [path])


def read_parquet(lake: Path, paths: Sequence[str]) -> str:
    """The table function, as SQL, that reads exactly these files."""
    files = ", ".join(literal(str(lake / path)) for path in paths)
    return f"read_parquet([{files}], hive_partitioning = false)"


def lake_sql(con: duckdb.DuckDBPyConnection, lake: Path, kind: str, *, after_load: int = 0) -> str:
    """A query for the kind's rows in the files there are, of later loads only if asked; typed where there are none."""
    return files_sql(con, lake, kind, live_files(con, kind, after_load=after_load))


def files_sql(con: duckdb.DuckDBPyConnection, lake: Path, kind: str, paths: Sequence[str]) -> str:
    """A query for the kind's rows in these files. What a file is older than stands there as null."""
    found = con.execute(
        """
        SELECT f.path, list(a.column) FROM load.files f JOIN load.added_columns a ON a.kind = f.kind AND a.load >= f.last_load
        WHERE list_contains($paths, f.path) GROUP BY f.path
        """,
        {"paths": list(paths)},
    ).fetchall()
    without = {path: frozenset(columns) for path, columns in found}
    alike: dict[frozenset[str], list[str]] = {}
    for path in paths:
        alike.setdefault(without.get(path, frozenset()), []).append(path)
    return " UNION ALL ".join(
        f"{select(kind, missing)} FROM {read_parquet(lake, files)}" for missing, files in alike.items()
    ) or empty_sql(kind)


def empty_sql(kind: str) -> str:
    """A query for no rows, with the kind's columns and types."""
    return f"{select(kind, frozenset(name for name, _, _ in columns_of(kind)))} WHERE false"


def select(kind: str, missing: frozenset[str]) -> str:
    """The kind's columns as a query takes them, null where they are missing."""
    columns = (
        f"NULL::{sql_type} AS {quoted(name)}" if name in missing else quoted(name)
        for name, sql_type, _ in columns_of(kind)
    )
    return f"SELECT {', '.join(columns)}"
