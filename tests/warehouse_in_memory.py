"""What the load would make of a journal and its events, as tables in memory: no log, no lake, many utilities at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from accounting.records import EVENT_SCHEMAS, RECORD_SCHEMAS
from connectors.log.body import unpack
from tests.core_harness import Placed
from warehouse.tables import columns_of, quoted

LOGS = (("journal", RECORD_SCHEMAS), ("events", EVENT_SCHEMAS))
BALANCES = """
    CREATE TABLE main.balances AS
    SELECT account_id, any_value(partition) AS partition, max_by(balance_tiyin, (ordinal, n)) AS balance_tiyin,
        count(*) AS entries
    FROM events.entry GROUP BY account_id
"""
Part = tuple[str, str, pa.Table]  # log, kind, and rows with the partition they are of


def tables_of_journal(partition: int, placed: Sequence[Placed]) -> Iterator[Part]:
    """The records of a partition, those at its positions 0 …"""
    for kind in sorted({kind for kind, _ in placed}):
        rows = [{"partition": partition, "ordinal": o, **r} for o, (k, r) in enumerate(placed) if k == kind]
        yield "journal", kind, table_of("journal", kind, rows)


def tables_of_events(partition: int, events: Mapping[str, pa.RecordBatch]) -> Iterator[Part]:
    """What settling a body of the partition came to."""
    for kind, packed in events.items():
        rows = pa.table(unpack(kind, packed))
        yield "events", kind, rows.add_column(0, "partition", pa.array([partition] * rows.num_rows, pa.int32()))


def rows_to_tables(rows: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> Iterator[Part]:
    """Rows of any partitions, by log and kind."""
    for (log, kind), of_kind in rows.items():
        yield log, kind, table_of(log, kind, of_kind)


def table_of(log: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows with their position, times as UTC µs, as a table."""
    position = [("partition", pa.int32()), ("ordinal", pa.int64()), *([("n", pa.int32())] if log == "events" else [])]
    arrays = {name: pa.array([row[name] for row in rows], type_) for name, type_ in position}
    for field in dict(LOGS)[log][kind]:
        values = [row.get(field.name) for row in rows]
        is_time = pa.types.is_timestamp(field.type)
        arrays[field.name] = pa.array(values, pa.int64()).cast(field.type) if is_time else pa.array(values, field.type)
    return pa.table(arrays)


def warehouse_in_memory(parts: Iterable[Part]) -> duckdb.DuckDBPyConnection:
    """A warehouse that the auditor can be set on."""
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'; SET threads = 2; CREATE SCHEMA journal; CREATE SCHEMA events")
    rows: dict[tuple[str, str], list[pa.Table]] = {(log, kind): [] for log, kinds in LOGS for kind in kinds}
    for log, kind, table in parts:
        rows[log, kind].append(table)
    for (log, kind), tables in rows.items():
        columns = ", ".join(f"{quoted(name)} {sql_type}" for name, sql_type, _ in columns_of(kind))
        con.execute(f"CREATE TABLE {log}.{quoted(kind)} ({columns})")
        if tables:
            con.register("part", pa.concat_tables(tables, promote_options="permissive"))
            con.execute(f"INSERT INTO {log}.{quoted(kind)} BY NAME FROM part")
            con.unregister("part")
    con.execute(BALANCES)
    return con
