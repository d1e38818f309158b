"""What was refused and what is held, from the published database: grouped, listed, and to be offered again.

A refused record changes nothing and can be offered again. Whether it *came in* since is a matter of counting: every arrival
of a content is refused, or ends in the ledger, or waits, or is ignored as a repetition of one that did. So a content that
arrived more often than it was refused is in; one that was refused each time is open. What is offered is each open content
once, in the order of the records' own times, as the contract has it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from accounting.records import FILE_KINDS, KEY, OWN_TIME, RECORDS, Column
from warehouse.tables import EVERY_PARTITION, SQL_TYPES, literal, quoted

if TYPE_CHECKING:
    import duckdb

MICROSECOND = timedelta(microseconds=1)
UNREADABLE = "(partition, ordinal) IN (SELECT (partition, ordinal) FROM journal.unreadable)"


@dataclass(frozen=True)
class Group:
    """The refusals of a kind and reason. `open`: contents that never came in; of unreadable rows, those as given."""

    record_kind: str
    reason: str
    unreadable: bool
    count: int
    open: int
    example: str | None


@dataclass(frozen=True)
class Refusal:
    """One refused arrival."""

    refused_id: str
    record_kind: str
    reason: str
    key: str | None
    detail: str | None
    record: Any


@dataclass(frozen=True)
class Waiting:
    """Held records that wait for the same thing, `awaits`. first_at … last_at: their own times."""

    record_kind: str
    reason: str
    awaits: str
    count: int
    first_at: datetime
    last_at: datetime


# ---- refused ---------------------------------------------------------------------------------------------------------


def group_refused(con: duckdb.DuckDBPyConnection, reason: str | None = None, kind: str | None = None) -> list[Group]:
    """How many were refused of each kind and reason, how many of them are open still, and an example; the most first."""
    where, values = _chosen(reason, kind)
    found = con.execute(
        f"""
        SELECT record_kind, reason, unreadable, count(*), count(DISTINCT record) FILTER (unreadable),
               arg_min(CASE WHEN unreadable THEN detail ELSE coalesce("key", record::VARCHAR) END, (partition, ordinal, n))
        FROM (SELECT *, {UNREADABLE} AS unreadable FROM refused WHERE {where})
        GROUP BY ALL ORDER BY count(*) DESC, record_kind, reason
        """,
        values,
    ).fetchall()
    open_ = {(k, r): count for k in FILE_KINDS for r, count in _count_open(con, k)}
    return [
        Group(kind, reason, unreadable, count, distinct if unreadable else open_.get((kind, reason), 0), example)
        for kind, reason, unreadable, count, distinct, example in found
    ]


def list_refused(con: duckdb.DuckDBPyConnection, reason: str | None, kind: str | None, limit: int) -> list[Refusal]:
    """Refused arrivals, one by one, the latest of each partition first."""
    where, values = _chosen(reason, kind)
    found = con.execute(
        f"""
        SELECT refused_id, record_kind, reason, "key", detail, record::VARCHAR FROM refused WHERE {where}
        ORDER BY ordinal DESC, partition, n LIMIT {limit}
        """,
        values,
    ).fetchall()
    return [
        Refusal(refused_id, record_kind, why, key, detail, None if record is None else json.loads(record))
        for refused_id, record_kind, why, key, detail, record in found
    ]


def _chosen(reason: str | None, kind: str | None) -> tuple[str, list[str]]:
    chosen = [(column, value) for column, value in (("reason", reason), ("record_kind", kind)) if value is not None]
    return " AND ".join(["true", *(f"{column} = ?" for column, _ in chosen)]), [value for _, value in chosen]


def _count_open(con: duckdb.DuckDBPyConnection, kind: str) -> list[tuple[str, int]]:
    if not _any_refused(con, kind):
        return []
    return con.execute(f"SELECT reason, count(*) FROM ({open_sql(kind)}) GROUP BY reason").fetchall()


def _any_refused(con: duckdb.DuckDBPyConnection, kind: str) -> bool:
    """Whether there is anything to look for: readings are many, and most homes have no refused policy."""
    sql = f"SELECT count(*) FROM events.refused WHERE record_kind = ? AND NOT {UNREADABLE}"
    return con.execute(sql, [kind]).fetchone() != (0,)


def open_sql(kind: str) -> str:
    """The query for the open contents of a kind: the `reason` and `record` of the last refusal of each, in order."""
    columns = [c for c in RECORDS[kind] if not c.internal and (c.name != "received_at" or OWN_TIME[kind] == c.name)]
    refused = ", ".join(f"{_from_json(c)} AS {quoted(c.name)}" for c in columns)
    names = ", ".join(quoted(c.name) for c in columns)
    key = " AND ".join(f"j.{quoted(name)} = r.{quoted(name)}" for name in KEY[kind])
    same = " AND ".join(f"{_or_default(c, 'j')} IS NOT DISTINCT FROM r.{quoted(c.name)}" for c in columns)
    once = "AND j.partition = (SELECT max(partition) FROM journal.tick)" if kind in EVERY_PARTITION else ""
    once = "AND j.first_partition IS NULL" if kind == "reading" else once  # routed on, it is in the journal twice
    return f"""
        WITH refused AS (
            SELECT partition, ordinal, n, reason, record, {refused}
            FROM events.refused WHERE record_kind = {literal(kind)} AND NOT {UNREADABLE}
        ), contents AS (
            SELECT {names}, count(*) AS refusals, max_by((reason, record), (partition, ordinal, n)) AS latest,
                   min((partition, ordinal, n)) AS first
            FROM refused GROUP BY {names}
        ), arrived AS (
            SELECT r.latest, r.first, r.refusals, r.{quoted(OWN_TIME[kind])} AS own_time, count(j.ordinal) AS arrivals
            FROM contents r LEFT JOIN journal.{quoted(kind)} j ON {key} AND {same} {once} GROUP BY ALL
        )
        SELECT latest[1] AS reason, latest[2] AS record FROM arrived WHERE arrivals <= refusals ORDER BY own_time, first
    """


def _from_json(column: Column) -> str:
    value = f"try_cast(record ->> {literal(column.name)} AS {SQL_TYPES[column.type]})"
    return value if column.default is None else f"coalesce({value}, {_literal(column.default)})"


def _or_default(column: Column, table: str) -> str:
    value = f"{table}.{quoted(column.name)}"
    return value if column.default is None else f"coalesce({value}, {_literal(column.default)})"


def _literal(value: int | str) -> str:
    return literal(value) if isinstance(value, str) else str(value)


# ---- offered again ---------------------------------------------------------------------------------------------------


def records_to_offer(con: duckdb.DuckDBPyConnection, reason: str | None, kind: str | None) -> dict[str, list[str]]:
    """The open records by kind, as lines of NDJSON by the contract, all arriving anew at one moment."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in FILE_KINDS if kind is None else (kind,):
        if _any_refused(con, each):
            rows = con.execute(open_sql(each)).fetchall()
            if records := [json.loads(text) for why, text in rows if reason in {None, why}]:
                found[each] = records
    arrival = _arrival(con, [record for records in found.values() for record in records])
    for each, records in found.items():
        if arrival is not None and each not in {"tariff", "receipt"}:  # theirs says which version, and when
            for record in records:
                record["received_at"] = arrival
    return {each: [json.dumps(r, ensure_ascii=False) for r in records] for each, records in found.items()}


def _arrival(con: duckdb.DuckDBPyConnection, records: list[dict[str, Any]]) -> str | None:
    """When they arrive: at the last tick, later than ever before, so that ingest does not take the file for the same again.

    By the machine's clock, ingest would make all the ticks up to now on a home of history. None before the first tick.
    """
    (tick,) = con.execute("SELECT max(ticked_at) FROM ticks").fetchone() or (None,)
    if tick is None:
        return None
    before = [datetime.fromisoformat(r["received_at"]) + MICROSECOND for r in records if "received_at" in r]
    return max([tick, *before]).isoformat()


def rows_to_mend(con: duckdb.DuckDBPyConnection, reason: str | None, kind: str | None) -> dict[str, list[str]]:
    """The rows that could not be understood, by kind, each once and as it was given, a line each."""
    where, values = _chosen(reason, kind)
    rows = con.execute(
        f"""
        SELECT record_kind, record::VARCHAR FROM refused WHERE {where} AND {UNREADABLE} AND record IS NOT NULL
        GROUP BY ALL ORDER BY min((partition, ordinal, n))
        """,
        values,
    ).fetchall()
    found: dict[str, list[str]] = {}
    for each, text in rows:
        found.setdefault(each, []).append(json.dumps(json.loads(text), ensure_ascii=False))
    return found


# ---- held ------------------------------------------------------------------------------------------------------------

AWAITS = {"unknown_meter": "meter_id", "unknown_account": "account_id", "implausible_usage": "meter_id"}


def list_held(con: duckdb.DuckDBPyConnection) -> list[Waiting]:
    """What waits, by what it waits for: the meter or account of that name; those that have waited longest first."""
    awaits = " ".join(f"WHEN {literal(reason)} THEN record ->> '{column}'" for reason, column in AWAITS.items())
    own = " ".join(f"WHEN {literal(kind)} THEN record ->> '{column}'" for kind, column in OWN_TIME.items())
    found = con.execute(
        f"""
        SELECT record_kind, reason, awaits, count(*), min(own_time), max(own_time) FROM (
            SELECT record_kind, reason, CASE reason {awaits} END AS awaits,
                   (CASE record_kind {own} END)::TIMESTAMPTZ AS own_time
            FROM held
        ) GROUP BY ALL ORDER BY 5, record_kind, reason, awaits
        """
    ).fetchall()
    return [Waiting(*row) for row in found]
