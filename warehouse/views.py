"""The views and macros: what people query. Made anew by each load, in its transaction, over exactly the files of the manifest.

Paths in them are absolute, so a copy of the database opens from any working directory; a home that was moved needs a load.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

from accounting.records import EVENT_ID, KEY, RECORDS
from warehouse import health, usage
from warehouse.lake import empty_sql, lake_sql
from warehouse.tables import (
    EVERY_PARTITION,
    LAKE,
    LOGS,
    VIEWS,
    columns_of,
    comments,
    is_event,
    literal,
    log_of,
    quoted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import duckdb

WITH_OFFSET = "[0-9]{2}:[0-9]{2}.*(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"
UTC_TEXT = f"""
    CASE WHEN NOT regexp_matches(t::VARCHAR, '{WITH_OFFSET}') OR try_cast(t AS TIMESTAMPTZ) IS NULL THEN t::VARCHAR
    ELSE replace(strftime(try_cast(t AS TIMESTAMPTZ) AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%f+00:00'), '.000000', '') END
"""
MACROS = {
    "event_id(partition, ordinal, n)": (
        "partition || '-' || ordinal || '-' || n",
        "An event's id: the position that caused it and a count.",
    ),
    "utc_text(t)": (
        UTC_TEXT,
        "A moment as ISO 8601 in UTC, 2025-03-21T19:00:00+00:00; what is no moment stays as it is.",
    ),
    "tashkent(t)": ("t AT TIME ZONE 'Asia/Tashkent'", "A moment by the clocks of Tashkent, as TIMESTAMP."),
    "soum(tiyin)": ("tiyin * 0.01::DECIMAL(3, 2)", "An amount in soum (100 tiyin), exact."),
}
KEY_DOC = "What tells the record from others of its kind: its columns joined by |, times in UTC."
ID_DOC = "The event's id, partition-ordinal-n."


def make_views(con: duckdb.DuckDBPyConnection, lake: Path, partitions: int, checked_load: int) -> None:
    """Make all macros and views anew. `checked_load`: the load up to which all has passed the expectations already."""

    def rows_of(kind: str, after_load: int) -> str:
        return lake_sql(con, lake, kind, after_load=after_load)

    for statement in definitions(rows_of, partitions, checked_load):
        con.execute(statement)
    con.execute("DELETE FROM load.definitions")
    con.execute("INSERT INTO load.definitions VALUES (?)", [definitions_digest(partitions)])


def definitions_digest(partitions: int) -> str:
    """A name for all macros and views, whatever files they read: another one means that they are to be made anew."""
    statements = definitions(lambda kind, _: empty_sql(kind), partitions)
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()


def definitions(rows_of: Callable[[str, int], str], partitions: int, checked_load: int = 0) -> Iterator[str]:
    """The statements that make every macro and view. rows_of(kind, load): the query for what later loads put in the lake."""
    for signature, (sql, doc) in MACROS.items():
        yield f"CREATE OR REPLACE MACRO {signature} AS {sql}"
        yield f"COMMENT ON MACRO {signature.partition('(')[0]} IS {literal(doc)}"
    for kind in LAKE:
        columns, doc = columns_of(kind), VIEWS[kind][1]
        name = f"{log_of(kind)}.{quoted(kind)}"
        yield from view(name, rows_of(kind, 0), f"{doc} As they lie in the log.", columns)
        new_doc = f"{doc} Only those not checked by an earlier load."
        yield from view(f"load.new_{kind}", rows_of(kind, checked_load), new_doc, columns)
    for kind, (name, doc) in VIEWS.items():
        yield from view(f"main.{name}", view_sql(kind, partitions), doc, view_columns(kind))
    yield from view("main.positions", POSITIONS, POSITIONS_DOC, POSITIONS_COLUMNS)
    yield from view("main.reconciliation", reconcile_sql(), RECONCILIATION_DOC, RECONCILIATION_COLUMNS)
    yield from view("main.meters", health.METERS, health.METERS_DOC, health.METERS_COLUMNS)
    tables = {"cause_of(id)": (cause_sql(), CAUSE_DOC), **usage.macros(), **health.MACROS}
    for signature, (sql, doc) in tables.items():
        yield f"CREATE OR REPLACE MACRO {signature} AS TABLE {sql}"
        yield f"COMMENT ON MACRO TABLE {signature.partition('(')[0]} IS {literal(doc)}"
    yield from view("main.alarms", health.ALARMS, health.ALARMS_DOC, health.ALARMS_COLUMNS)


def view(name: str, sql: str, doc: str, columns: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """The statements that make one view, with its comments."""
    yield f"CREATE OR REPLACE VIEW {name} AS {sql}"
    yield from comments("VIEW", name, doc, columns)


def view_columns(kind: str) -> list[tuple[str, str, str]]:
    """The columns people see: what tells the event or record first, then the contract's, its position last."""
    columns = columns_of(kind)
    position = 3 if is_event(kind) else 2
    shown = columns[position:] + columns[:position]
    if kind in ("refused", "held"):
        shown.insert(2, ("key", "VARCHAR", KEY_DOC))
    if kind in EVENT_ID:
        shown.insert(0, (EVENT_ID[kind], "VARCHAR", ID_DOC))
    return shown


def view_sql(kind: str, partitions: int) -> str:
    """The query behind the view of a kind."""
    own = {c.name: quoted(c.name) for c in LOGS[log_of(kind)][kind]}
    own |= {
        c.name: f"try_cast({quoted(c.name)} AS JSON) AS {quoted(c.name)}"
        for c in LOGS[log_of(kind)][kind]
        if c.type == "json"
    }
    expressions = {name: own.get(name, quoted(name)) for name, _, _ in view_columns(kind)}
    if kind in EVENT_ID:
        expressions[EVENT_ID[kind]] = f"event_id(partition, ordinal, n) AS {EVENT_ID[kind]}"
    if kind in ("refused", "held"):
        expressions["key"] = f'{key_sql()} AS "key"'
    sql = f"SELECT {', '.join(expressions.values())} FROM {log_of(kind)}.{quoted(kind)}"
    if kind in EVERY_PARTITION:
        sql += f" WHERE partition = {partitions - 1}"
    if kind == "held":
        sql += " WHERE event_id(partition, ordinal, n) NOT IN (SELECT held_id FROM events.released WHERE held_id IS NOT NULL)"
    return sql


def key_sql() -> str:
    """The expression that makes the key of a refused or held record from its JSON."""
    cases = []
    for kind, names in KEY.items():
        times = {c.name for c in RECORDS[kind] if c.type == "time"}
        parts = (f"record ->> '{name}'" for name in names)
        texts = (f"utc_text({part})" if name in times else part for name, part in zip(names, parts, strict=True))
        cases.append(f"WHEN '{kind}' THEN concat_ws('|', {', '.join(f'({text})' for text in texts)})")
    return f"CASE WHEN json_valid(record) THEN CASE record_kind {' '.join(cases)} END END"


CAUSE_DOC = "The journal's record that caused an event, by the event's id, whole: FROM cause_of('3-1200-0')."


def cause_sql() -> str:
    """The query that finds a record of the journal by an event's id."""
    at = "partition = split_part(id, '-', 1)::INTEGER AND ordinal = split_part(id, '-', 2)::BIGINT"
    kinds = (
        f"SELECT '{kind}' AS kind, to_json(r) AS record FROM journal.{quoted(kind)} r WHERE {at}" for kind in RECORDS
    )
    return " UNION ALL ".join(kinds)


POSITIONS = (
    "SELECT log, partition, max(end_position) AS position, max(load) AS load FROM load.progress GROUP BY log, partition"
)
POSITIONS_DOC = "How far this database has come in each partition of the logs."
POSITIONS_COLUMNS = [
    ("log", "VARCHAR", "`journal` or `events`."),
    ("partition", "INTEGER", "Partition of the log."),
    ("position", "BIGINT", "The position after the last record taken in."),
    ("load", "INTEGER", "The load that took it in."),
]
RECONCILIATION_DOC = (
    "Every balance recomputed from the whole ledger: a row an account where something does not agree. Empty is right."
)
RECONCILIATION_COLUMNS = [
    ("account_id", "VARCHAR", "The account."),
    ("balance_tiyin", "BIGINT", "Its balance in `balances` (tiyin)."),
    ("recomputed_tiyin", "BIGINT", "The sum of its entries (tiyin)."),
    ("usage_wh", "BIGINT", "Its usage in `balances` (Wh)."),
    ("recomputed_wh", "BIGINT", "The sum of its entries' usage (Wh)."),
    ("broken_links", "BIGINT", "Entries whose balance is not the balance before plus their amount."),
]


def reconcile_sql() -> str:
    """The query that recomputes every balance; it stands in a file of its own, to be read and run by anybody."""
    return files("warehouse").joinpath("reconcile.sql").read_text(encoding="utf-8")
