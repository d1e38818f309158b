"""How the metering does, as of the last tick: silent and stuck meters, read rates, clocks, and readings that are in doubt.

Each is a table macro of the database, its thresholds its parameters, so that an auditor asks as `hisob health` does:

    FROM silent_meters(hours := 48);

A meter is one that an open account has now. Only measured readings count. One dated too late to be true (more than a
quarter of an hour after the last tick) says nothing of a meter but that its clock is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import duckdb

from warehouse.errors import WarehouseError

METERS = """
    WITH version AS (
        FROM journal.account a WHERE NOT EXISTS (
            FROM events.refused r WHERE r.record_kind = 'account' AND r.partition = a.partition AND r.ordinal = a.ordinal
        )
    ), exchange AS (
        FROM journal.meter_exchange e WHERE NOT EXISTS (
            FROM events.refused r
            WHERE r.record_kind = 'meter_exchange' AND r.partition = e.partition AND r.ordinal = e.ordinal
        )
    ), account AS (
        SELECT account_id, arg_max(meter_id, ordinal) AS first_meter, arg_max(district, ordinal) AS district,
               arg_max((feeder, ordinal), ordinal)[1] AS feeder, min(effective_at) AS opened_at
        FROM version GROUP BY account_id HAVING count(closed_at) = 0
    ), exchanged AS (
        SELECT account_id, arg_max(new_meter_id, ordinal) AS meter_id, max(exchanged_at) AS exchanged_at
        FROM exchange GROUP BY account_id
    )
    SELECT account_id, coalesce(e.meter_id, a.first_meter) AS meter_id, district, feeder, opened_at,
           coalesce(e.exchanged_at, opened_at) AS installed_at, b.measured_at, b.measured_wh,
           coalesce(b.supply_state, 'connected') AS supply_state, b.supply_changed_at
    FROM account a LEFT JOIN exchanged e USING (account_id) LEFT JOIN balances b USING (account_id)
"""
METERS_DOC = "The meter each open account has now."
METERS_COLUMNS = [
    ("account_id", "VARCHAR", "The account."),
    ("meter_id", "VARCHAR", "Its meter."),
    ("district", "VARCHAR", "Its district."),
    ("feeder", "VARCHAR", "Its feeder."),
    ("opened_at", "TIMESTAMPTZ", "When the account began (UTC)."),
    ("installed_at", "TIMESTAMPTZ", "Since when it has the meter (UTC)."),
    ("measured_at", "TIMESTAMPTZ", "Time of the last measured register that was charged up to (UTC)."),
    ("measured_wh", "BIGINT", "That register (Wh)."),
    ("supply_state", "VARCHAR", "State of the supply, as far as is known."),
    ("supply_changed_at", "TIMESTAMPTZ", "Since when (UTC)."),
]

TICK = "(SELECT max(ticked_at) FROM journal.tick)"
TODAY = f"tashkent({TICK})::DATE"
SINCE_DAYS = f"(({TODAY} - days::INTEGER)::TIMESTAMP AT TIME ZONE 'Asia/Tashkent')"
TRUE_TIME = f"read_at <= {TICK} + INTERVAL 15 MINUTE AND status IS DISTINCT FROM 'estimated'"

MACROS = {
    "silent_meters(hours := 24)": (
        f"""
        WITH quiet AS (FROM meters WHERE measured_at IS NULL OR measured_at < {TICK} - to_hours(hours)), heard AS (
            SELECT account_id, meter_id, max(read_at) AS last_read_at FROM journal.reading
            WHERE account_id IN (SELECT account_id FROM quiet) AND {TRUE_TIME} GROUP BY ALL
        )
        SELECT district, account_id, meter_id, last_read_at,
               date_diff('second', coalesce(last_read_at, installed_at), {TICK}) // 3600 AS silent_hours, supply_state
        FROM quiet LEFT JOIN heard USING (account_id, meter_id)
        WHERE coalesce(last_read_at, installed_at) < {TICK} - to_hours(hours)
        ORDER BY silent_hours DESC, account_id
        """,
        "Meters not heard for so many hours at the last tick (refused readings were heard): FROM silent_meters(hours := 48).",
    ),
    "stuck_meters(days := 3)": (
        f"""
        WITH step AS (
            SELECT account_id, max(to_at) AS read_at,
                   coalesce(max(to_at) FILTER (usage_wh > 0), min(from_at)) AS advanced_at
            FROM events.entry
            WHERE kind = 'usage' AND basis <> 'estimated' AND to_at > {TICK} - to_days(days * 10) GROUP BY account_id
        ), still AS (
            SELECT district, account_id, meter_id, measured_wh AS register_wh, read_at,
                   greatest(advanced_at, installed_at, supply_changed_at) AS still_since
            FROM meters JOIN step USING (account_id) WHERE supply_state = 'connected'
        )
        SELECT district, account_id, meter_id, register_wh, still_since, read_at AS last_read_at,
               date_diff('second', still_since, read_at) // 86400 AS stuck_days
        FROM still WHERE still_since <= read_at - to_days(days) ORDER BY stuck_days DESC, account_id
        """,
        (
            "Meters that are read and have not advanced for so many days, though the supply is on. It looks back ten times as"
            " far, so one may have stood still for longer than it says: FROM stuck_meters(days := 7)."
        ),
    ),
    "read_rates(days := 7)": (
        f"""
        WITH day AS (SELECT unnest(range({TODAY} - days::INTEGER, {TODAY}, INTERVAL 1 DAY))::DATE AS day), heard AS (
            SELECT DISTINCT account_id, tashkent(read_at)::DATE AS day FROM journal.reading
            WHERE account_id IS NOT NULL AND read_at >= {SINCE_DAYS} AND {TRUE_TIME}
        )
        SELECT district, day, count(*) AS meters, count(heard.account_id) AS read,
               round(100.0 * count(heard.account_id) / count(*), 1)::DOUBLE AS percent
        FROM day JOIN meters ON tashkent(opened_at)::DATE < day LEFT JOIN heard USING (account_id, day)
        GROUP BY district, day ORDER BY district, day
        """,
        "Of each district's meters, how many were read on each of the last so many whole days: FROM read_rates(days := 31).",
    ),
    "clock_drift(minutes := 3, days := 7)": (
        f"""
        WITH ahead AS (
            SELECT meter_id, max(date_diff('second', received_at, read_at)) AS ahead_seconds FROM journal.reading
            WHERE received_at >= {SINCE_DAYS} AND read_at > received_at + to_minutes(minutes::BIGINT)
              AND status IS DISTINCT FROM 'estimated'
            GROUP BY meter_id
        ), refused AS (
            SELECT record ->> 'meter_id' AS meter_id, count(*) AS from_the_future,
                   max(try_cast(record ->> 'read_at' AS TIMESTAMPTZ)) AS latest_read_at
            FROM events.refused
            WHERE record_kind = 'reading' AND reason = 'from_the_future'
              AND try_cast(record ->> 'read_at' AS TIMESTAMPTZ) >= {SINCE_DAYS}
            GROUP BY ALL
        )
        SELECT district, account_id, meter_id, coalesce(from_the_future, 0) AS from_the_future, latest_read_at, ahead_seconds
        FROM ahead FULL JOIN refused USING (meter_id) LEFT JOIN meters USING (meter_id)
        ORDER BY from_the_future DESC, ahead_seconds DESC, meter_id
        """,
        (
            "Meters whose clock is ahead: readings refused from_the_future in the last so many days, and, where readings say"
            " when they arrived, by how many seconds at most they were dated later. A clock that is behind looks like a slow"
            " line: FROM clock_drift(minutes := 10)."
        ),
    ),
    "doubtful_readings(days := 7)": (
        f"""
        WITH doubt AS (
            SELECT record ->> 'meter_id' AS meter_id, reason, 1 AS refused, 0 AS held, record FROM events.refused
            WHERE record_kind = 'reading'
              AND (partition, ordinal) NOT IN (SELECT (partition, ordinal) FROM journal.unreadable)
            UNION ALL
            SELECT record ->> 'meter_id', reason, 0, 1, record FROM held WHERE record_kind = 'reading'
        )
        SELECT district, account_id, meter_id, reason, sum(refused)::BIGINT AS refused, sum(held)::BIGINT AS held,
               min(try_cast(record ->> 'read_at' AS TIMESTAMPTZ)) AS first_read_at,
               max(try_cast(record ->> 'read_at' AS TIMESTAMPTZ)) AS last_read_at
        FROM doubt LEFT JOIN meters USING (meter_id) WHERE try_cast(record ->> 'read_at' AS TIMESTAMPTZ) >= {SINCE_DAYS}
        GROUP BY district, account_id, meter_id, reason ORDER BY count(*) DESC, meter_id, reason
        """,
        (
            "Readings of the last so many days that were refused or are held, by meter and reason; spikes are"
            " implausible_usage: FROM doubtful_readings(days := 31) WHERE reason = 'implausible_usage'."
        ),
    ),
}


@dataclass(frozen=True)
class Thresholds:
    """From when on something is worth an operator's look. They are whole numbers."""

    silent_hours: int = 24
    stuck_days: int = 3
    drift_minutes: int = 3
    days: int = 7


@dataclass(frozen=True)
class Health:
    """How the metering does. Each list is of rows, as the macro of its name has them; spikes of doubtful_readings."""

    at: datetime | None
    meters: int
    silent: list[dict[str, Any]]
    stuck: list[dict[str, Any]]
    read_rates: list[dict[str, Any]]
    clocks: list[dict[str, Any]]
    spikes: list[dict[str, Any]]

    @property
    def last_day(self) -> date | None:
        """The last whole day."""
        return max((rate["day"] for rate in self.read_rates), default=None)


def look_at(con: duckdb.DuckDBPyConnection, limits: Thresholds) -> Health:
    """How the metering does at the last tick of the published database. Raises WarehouseError if it is of an older Hisob."""
    try:
        return _look_at(con, limits)
    except duckdb.CatalogException as error:
        raise WarehouseError(
            "The published database was made by a Hisob that did not look at all of the metering's health yet. Have it made"
            " anew: hisob load"
        ) from error


def _look_at(con: duckdb.DuckDBPyConnection, limits: Thresholds) -> Health:
    at, meters = con.execute(f"SELECT {TICK}, (SELECT count(*) FROM meters)").fetchone() or (None, 0)
    return Health(
        at,
        meters,
        _rows(con, f"FROM silent_meters(hours := {limits.silent_hours:d})"),
        _rows(con, f"FROM stuck_meters(days := {limits.stuck_days:d})"),
        _rows(con, f"FROM read_rates(days := {limits.days:d})"),
        _rows(con, f"FROM clock_drift(minutes := {limits.drift_minutes:d}, days := {limits.days:d})"),
        _rows(con, f"FROM doubtful_readings(days := {limits.days:d}) WHERE reason = 'implausible_usage'"),
    )


def _rows(con: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    found = con.execute(sql)
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
