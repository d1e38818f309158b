"""What the warehouse is made of: schemas, tables and views, and what each column means, by the contract's names and units.

    journal, events   a table (or, for what grows, a view over Parquet) for each kind, as it lies in the logs
    load              the loads, the positions they covered, and the manifest of Parquet files
    main              what people query: a view for each kind under its plural name, and `balances`

Every row carries the position that it lies at or that caused it (`partition`, `ordinal`, and for events `n`), so that any
figure can be followed back to the record it came from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accounting.records import EVENTS, RECORDS, Column

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    import duckdb

LAYOUT = 1  # raise it when tables or files are laid out otherwise: a warehouse of another layout is not loaded into


@dataclass(frozen=True)
class Lake:
    """A kind that grows: which log it comes from, and the column whose month it is filed under."""

    log: str
    month_of: str


LAKE = {
    "reading": Lake("journal", "read_at"),
    "entry": Lake("events", "to_at"),
    "forecast": Lake("events", "forecast_at"),
}
LOGS: dict[str, dict[str, tuple[Column, ...]]] = {"journal": RECORDS, "events": EVENTS}
SQL_TYPES = {
    "text": "VARCHAR",
    "int": "BIGINT",
    "time": "TIMESTAMPTZ",
    "date": "DATE",
    "json": "VARCHAR",
    "float": "DOUBLE",
}

JOURNAL_POSITION = (
    ("partition", "INTEGER", "Partition of the journal the record lies in."),
    ("ordinal", "BIGINT", "Its ordinal in the partition, from 0."),
)
EVENT_POSITION = (
    ("partition", "INTEGER", "Partition of the journal record that caused the event."),
    ("ordinal", "BIGINT", "Ordinal in the partition of the journal record that caused the event."),
    ("n", "INTEGER", "Count among the events that the record caused, from 0."),
)

# kind: (name of its view, what a row is)
VIEWS = {
    "tariff": ("tariffs", "Tariff versions as they arrived, a row a block."),
    "policy": ("policies", "Policies as they arrived: windows, holidays, moratoria, thresholds, quiet hours."),
    "account": ("accounts", "Account versions as they arrived, the refused ones included."),
    "meter_exchange": ("meter_exchanges", "Meter exchanges as they arrived."),
    "payment": ("payments", "Payments and reversals as they arrived, the refused ones included."),
    "adjustment": ("adjustments", "Adjustments as they arrived."),
    "order": ("orders", "Orders to disconnect, reconnect, hold or release, as they arrived."),
    "reading": (
        "readings",
        "Readings as they arrived, refused ones too; one that waited for its meter twice: where it waited, and where it went.",
    ),
    "acknowledgement": ("acknowledgements", "What the switches answered to commands."),
    "receipt": ("receipts", "What the SMS channel said of notices."),
    "unreadable": ("unreadable", "Rows of files that could not be understood, whole, with the reason."),
    "tick": ("ticks", "The quarters of an hour that have passed: the only clock there is."),
    "entry": ("entries", "The ledger: everything that moved a balance, in order of arrival."),
    "refused": ("refused", "Records refused, with the reason."),
    "held": ("held", "Records held and not released yet."),
    "released": ("released", "What became of held records."),
    "forecast": (
        "forecasts",
        "Forecasts of depletion, one a day for each account and one beside each notice and command.",
    ),
    "notice": ("notices", "Notices to customers."),
    "command": ("commands", "Commands to the switches."),
    "supply_state": ("supply_states", "Changes of the state of an account's supply."),
}
EVERY_PARTITION = ("tariff", "policy", "tick")  # journalled in each partition; the views show unrouted's copy

# What every table of `load`, and `balances`, is made of: (column, type, meaning).
LOAD_TABLES: dict[str, tuple[str, tuple[tuple[str, str, str], ...]]] = {
    "contract": (
        "What this warehouse was made by and for; one row.",
        (
            ("warehouse", "VARCHAR", "Name given to it when it was made, unlike any other's."),
            ("fingerprint", "VARCHAR", "SHA-256 of the columns and the layout it was made with."),
            ("partitions", "INTEGER", "Partitions of the logs, `unrouted`, the last one, included."),
            ("lake", "VARCHAR", "Folder of the Parquet files when the views were last made."),
        ),
    ),
    "loads": (
        "Every load, one row each.",
        (
            ("load", "INTEGER", "Number of the load, from 1."),
            ("loaded_at", "TIMESTAMPTZ", "When it was made, by the machine's clock (UTC)."),
            ("records", "BIGINT", "Records of both logs taken in by it."),
        ),
    ),
    "progress": (
        "Which positions of the logs each load took in. The first is the end of the load before: nothing is skipped.",
        (
            ("load", "INTEGER", "Number of the load."),
            ("log", "VARCHAR", "`journal` or `events`."),
            ("partition", "INTEGER", "Partition of the log."),
            ("first_position", "BIGINT", "First position taken in."),
            ("end_position", "BIGINT", "The position after the last one taken in."),
        ),
    ),
    "files": (
        "The manifest: every Parquet file there is. The views read exactly those that are not retired.",
        (
            ("path", "VARCHAR", "Where it lies, within the lake."),
            ("kind", "VARCHAR", "Kind of the record or event it holds."),
            ("month", "DATE", "Month in Asia/Tashkent of its rows (first day)."),
            ("rows", "BIGINT", "Rows in it."),
            ("bytes", "BIGINT", "Its size (bytes)."),
            ("last_load", "INTEGER", "The latest load whose rows it holds."),
            ("retired_at", "TIMESTAMPTZ", "When another file took its rows over (UTC); it is removed some time later."),
        ),
    ),
    "spans": (
        "Which positions of its log a Parquet file holds the rows of (those of its kind and month).",
        (
            ("path", "VARCHAR", "The file."),
            ("partition", "INTEGER", "Partition of the log."),
            ("first_position", "BIGINT", "First position it was made of."),
            ("end_position", "BIGINT", "The position after the last one it was made of."),
            ("rows", "BIGINT", "Rows it holds of them."),
        ),
    ),
}
# What warehouses made by an older Hisob do not have; made in them when it is wanted.
LATER_TABLES: dict[str, tuple[str, tuple[tuple[str, str, str], ...]]] = {
    "added_columns": (
        "Columns that came with a newer Hisob: files of the lake up to a load do not have them.",
        (
            ("kind", "VARCHAR", "Kind of the record or event."),
            ("column", "VARCHAR", "The column."),
            ("load", "INTEGER", "The latest load whose files are without it."),
        ),
    ),
    "definitions": (
        "What the views and macros were made by; one row.",
        (("digest", "VARCHAR", "SHA-256 of their definitions."),),
    ),
}
BALANCES_DOC = "Where each account stands: one row an account, kept up by each load from the entries it took in."
BALANCES = (
    ("account_id", "VARCHAR", "The customer's account."),
    ("partition", "INTEGER", "Partition of the journal the account lies in."),
    ("balance_tiyin", "BIGINT", "Balance after its last entry; may be negative (tiyin)."),
    ("entries", "BIGINT", "How many entries it has."),
    ("last_ordinal", "BIGINT", "Ordinal of the record that caused its last entry."),
    ("last_n", "INTEGER", "Count of its last entry among the events of that record."),
    ("usage_wh", "BIGINT", "Usage since the account's start, a standing estimate included (Wh)."),
    ("opening_tiyin", "BIGINT", "Balance brought along (tiyin)."),
    ("payment_tiyin", "BIGINT", "Sum of its payments (tiyin)."),
    ("reversal_tiyin", "BIGINT", "Sum of its reversals, negative (tiyin)."),
    ("adjustment_tiyin", "BIGINT", "Sum of its adjustments (tiyin)."),
    ("charged_tiyin", "BIGINT", "Sum of its usage and correction entries, negative (tiyin)."),
    ("measured_at", "TIMESTAMPTZ", "Time of the last measured register that was charged up to (UTC)."),
    ("measured_wh", "BIGINT", "That register (Wh); right after an exchange, the old meter's."),
    ("supply_state", "VARCHAR", "State of the supply, as far as is known."),
    ("supply_changed_at", "TIMESTAMPTZ", "Since when (UTC)."),
    ("forecast_at", "TIMESTAMPTZ", "When the last forecast kept was made (UTC)."),
    ("usage_wh_per_day", "BIGINT", "Level of use it found (Wh a day)."),
    ("depletes_at", "TIMESTAMPTZ", "When, by it, the credit runs out (UTC); null: not within its reach."),
)


def is_event(kind: str) -> bool:
    """Whether the kind is an event's, not a record's."""
    return kind in EVENTS


def log_of(kind: str) -> str:
    """The log that holds the kind, which is also the schema of its table."""
    return "events" if is_event(kind) else "journal"


def columns_of(kind: str) -> list[tuple[str, str, str]]:
    """(name, SQL type, meaning) of the kind's columns as they lie in the log: its position, then the contract's."""
    own = [(c.name, SQL_TYPES[c.type], meaning(c)) for c in LOGS[log_of(kind)][kind]]
    return [*(EVENT_POSITION if is_event(kind) else JOURNAL_POSITION), *own]


def meaning(column: Column) -> str:
    """A column's comment: what it means, its unit, and the values it may take."""
    unit = {"int": unit_of(column.name), "time": "UTC"}.get(column.type, "")
    text = f"{column.doc.removesuffix('.')} ({unit})." if unit else column.doc
    return f"{text} One of {', '.join(column.choices)}." if column.choices else text


def unit_of(name: str) -> str:
    """The unit a number's name says it has."""
    for part, unit in (
        ("wh_per_day", "Wh a day"),
        ("tiyin_per_kwh", "tiyin per kWh, 100 tiyin = 1 soum"),
        ("_tiyin", "tiyin, 100 = 1 soum"),
        ("_kwh", "kWh"),
        ("_wh", "Wh"),
        ("_w", "W"),
    ):
        if name.endswith(part):
            return unit
    return ""


def fingerprint(there_are: Mapping[str, Container[str]] | None = None) -> str:
    """A name for the shape of everything the warehouse keeps: another one cannot be loaded into.

    there_are: the columns of each kind that a warehouse made by an older Hisob has. What was not there yet is left out,
    so it is the name which that one gave, if nothing else has changed since.
    """
    of_kind = {kind: [c[:2] for c in columns_of(kind)] for kind in VIEWS}
    if there_are is not None:
        of_kind = {k: [c for c in of_kind[k] if c[0] in there_are[k]] for k in of_kind if k in there_are}
    return hashlib.sha256(repr([LAYOUT, of_kind, LOAD_TABLES, BALANCES]).encode()).hexdigest()


def create_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Make everything of a new warehouse that has rows of its own, with its comments."""
    for schema in ("journal", "events", "load"):
        con.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    for kind, (_, doc) in VIEWS.items():
        if kind not in LAKE:
            create_table(con, f'{log_of(kind)}."{kind}"', f"{doc} As they lie in the log.", columns_of(kind))
    for name, (doc, columns) in LOAD_TABLES.items():
        create_table(con, f"load.{name}", doc, columns)
    create_table(con, "main.balances", BALANCES_DOC, BALANCES)
    create_later_tables(con)


def create_later_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Make those of LATER_TABLES that are not there."""
    found = con.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'load'").fetchall()
    for name, (doc, columns) in LATER_TABLES.items():
        if (name,) not in found:
            create_table(con, f"load.{name}", doc, columns)


def add_columns(con: duckdb.DuckDBPyConnection) -> bool:
    """Give the warehouse the columns and kinds that came with a newer Hisob. False: it is of another shape altogether."""
    there_are: dict[str, set[str]] = {}
    for log, kind, column in con.execute(
        "SELECT schema_name, table_name, column_name FROM duckdb_columns() WHERE schema_name IN ('journal', 'events')"
    ).fetchall():
        if kind in VIEWS and log == log_of(kind):
            there_are.setdefault(kind, set()).add(column)
    if con.execute("SELECT fingerprint FROM load.contract").fetchone() != (fingerprint(there_are),):
        return False
    for kind, (_, doc) in VIEWS.items():
        name, columns = f"{log_of(kind)}.{quoted(kind)}", columns_of(kind)
        added = [c for c in columns if c[0] not in there_are.get(kind, ())]
        if kind in LAKE:
            sql = "INSERT INTO load.added_columns SELECT ?, ?, coalesce(max(load), 0) FROM load.loads"
            for column, _, _ in added:
                con.execute(sql, [kind, column])
        elif kind not in there_are:
            create_table(con, name, f"{doc} As they lie in the log.", columns)
        else:
            for column, sql_type, text in added:
                con.execute(f"ALTER TABLE {name} ADD COLUMN {quoted(column)} {sql_type}")
                con.execute(f"COMMENT ON COLUMN {name}.{quoted(column)} IS {literal(text)}")
    con.execute("UPDATE load.contract SET fingerprint = ?", [fingerprint()])
    return True


def create_table(con: duckdb.DuckDBPyConnection, name: str, doc: str, columns: Iterable[tuple[str, str, str]]) -> None:
    """One table with the comments of it and its columns."""
    columns = list(columns)
    con.execute(f"CREATE TABLE {name} ({', '.join(f'{quoted(c)} {sql_type}' for c, sql_type, _ in columns)})")
    for statement in comments("TABLE", name, doc, columns):
        con.execute(statement)


def comments(what: str, name: str, doc: str, columns: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """The statements that say what a table or view and each of its columns means, where any DuckDB client shows it."""
    yield f"COMMENT ON {what} {name} IS {literal(doc)}"
    for column, _, text in columns:
        yield f"COMMENT ON COLUMN {name}.{quoted(column)} IS {literal(text)}"


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever words SQL keeps for itself."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL takes it where no parameter can stand."""
    return "'" + text.replace("'", "''") + "'"
