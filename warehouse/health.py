"""How the metering does, as of the last tick: silent and stuck meters, read rates, clocks, readings and use that are in doubt.

Each is a table macro of the database, its thresholds its parameters, so that an auditor asks as `hisob health` does:

    FROM silent_meters(hours := 48);

A meter is one that an open account has now. Only measured readings count. One dated too late to be true (more than a
quarter of an hour after the last tick) says nothing of a meter but that its clock is wrong. `alarms` is a view of all of it,
by the thresholds that stand here; docs/metering.md says of each where it comes from and what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import duckdb

from accounting.calendar import US_PER_DAY, UTC_OFFSET_US
from warehouse.errors import WarehouseError

TAKEN = """
    WITH version AS (
        FROM journal.account a WHERE NOT EXISTS (
            FROM events.refused r WHERE r.record_kind = 'account' AND r.partition = a.partition AND r.ordinal = a.ordinal
        )
    ), exchange AS (
        FROM journal.meter_exchange e WHERE NOT EXISTS (
            FROM events.refused r
            WHERE r.record_kind = 'meter_exchange' AND r.partition = e.partition AND r.ordinal = e.ordinal
        )
    )"""
METERS = f"""{TAKEN}, account AS (
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

HISTORY_DAYS = 28  # what a meter's use is held against
DAY, OFFSET = US_PER_DAY, UTC_OFFSET_US
FOREVER = 2**62
DAY_NUMBER = f"((epoch_us({{}}) + {OFFSET} - 1) // {DAY})"  # the local day that ends with the moment at the latest

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
    "sum_checks(days := 7, tolerance_wh := 100, tolerance_percent := 1)": (
        f"""
        WITH given AS (
            SELECT account_id, {DAY_NUMBER.format("read_at")} AS day_number, any_value(meter_id) AS meter_id,
                   count(*) AS readings, sum(register_wh) AS registers_wh, sum(interval_wh) AS intervals_wh
            FROM journal.reading WHERE account_id IS NOT NULL AND read_at >= {SINCE_DAYS} AND {TRUE_TIME}
            GROUP BY ALL HAVING count(interval_wh) = count(*) AND min(meter_id) = max(meter_id)
        ), settled AS (
            SELECT account_id, {DAY_NUMBER.format("to_at")} AS day_number, count(*) AS steps, sum(to_wh) AS registers_wh,
                   sum(usage_wh) AS usage_wh, min(from_at) AS from_at, max(to_at) AS to_at,
                   max(epoch_us(to_at) - epoch_us(from_at)) AS longest_us
            FROM events.entry WHERE kind = 'usage' AND basis <> 'estimated' AND to_at >= {SINCE_DAYS}
              AND EXISTS (FROM given)
            GROUP BY ALL HAVING count(*) = count_if(basis = 'measured')
        ), day AS (
            SELECT *, min((epoch_us(to_at) - epoch_us(from_at)) / steps) OVER (PARTITION BY account_id) AS usual_us
            FROM settled
        )
        SELECT district, account_id, g.meter_id, DATE '1970-01-01' + day_number::INTEGER AS day, from_at, to_at,
               intervals_wh::BIGINT AS intervals_wh, usage_wh::BIGINT AS register_advance_wh,
               (intervals_wh - usage_wh)::BIGINT AS difference_wh
        FROM day d JOIN given g USING (account_id, day_number) LEFT JOIN meters USING (account_id)
        WHERE steps = readings AND d.registers_wh = g.registers_wh AND longest_us <= usual_us * 1.5
          AND abs(intervals_wh - usage_wh) > greatest(tolerance_wh, usage_wh * tolerance_percent / 100)
        ORDER BY abs(difference_wh) DESC, account_id, day
        """,
        (
            "Days on which the intervals that a meter metered do not come to its register's advance over the same span, by"
            " more than a tolerance (the larger of both). Days with an interval missing, a reading refused or repeated, or a"
            " step cut by a boundary are left out: FROM sum_checks(days := 31)."
        ),
    ),
    "unusual_usage(days := 7, low_percent := 50, high_percent := 200, least_wh := 500)": (
        f"""
        WITH today AS (SELECT epoch_us({TODAY}::TIMESTAMP) // {DAY} AS today), day AS (
            SELECT account_id, {DAY_NUMBER.format("to_at")} AS day,
                   sum(usage_wh) * {DAY} / sum(epoch_us(to_at) - epoch_us(from_at)) AS usage_wh
            FROM events.entry
            WHERE kind = 'usage' AND basis <> 'estimated'
              AND to_at >= (({TODAY} - days::INTEGER - {HISTORY_DAYS})::TIMESTAMP AT TIME ZONE 'Asia/Tashkent')
            GROUP BY ALL HAVING sum(epoch_us(to_at) - epoch_us(from_at)) BETWEEN {DAY} * 20 // 24 AND {DAY} * 28 // 24
        ), state AS (
            SELECT account_id, state, epoch_us(changed_at) + {OFFSET} AS since,
                   lead(epoch_us(changed_at) + {OFFSET}) OVER (PARTITION BY account_id ORDER BY ordinal, n) AS until
            FROM events.supply_state
        ), known AS (
            SELECT account_id, day, usage_wh, day >= today - days AS is_recent FROM day, today
            WHERE day < today AND NOT EXISTS (
                FROM state s WHERE s.account_id = day.account_id AND state NOT IN ('connected', 'disconnect_pending')
                AND since < (day.day + 1) * {DAY} AND coalesce(until, {FOREVER}) > day.day * {DAY}
            )
        ), before AS (
            SELECT account_id, avg(usage_wh) AS usual_wh FROM known WHERE NOT is_recent
            GROUP BY account_id HAVING count(*) >= {HISTORY_DAYS // 2}
        ), weekday AS (
            SELECT account_id, day % 7 AS weekday, avg(usage_wh) AS usual_wh FROM known WHERE NOT is_recent
            GROUP BY ALL HAVING count(*) >= 2
        ), recent AS (
            SELECT k.account_id, count(*) AS whole_days, avg(k.usage_wh) AS used_wh,
                   avg(coalesce(w.usual_wh, b.usual_wh)) AS usual_wh
            FROM known k JOIN before b USING (account_id)
            LEFT JOIN weekday w ON (w.account_id, w.weekday) = (k.account_id, k.day % 7)
            WHERE is_recent GROUP BY ALL
        )
        SELECT district, account_id, meter_id, whole_days, round(used_wh)::BIGINT AS usage_wh_per_day,
               round(usual_wh)::BIGINT AS usual_wh_per_day, round(100 * used_wh / nullif(usual_wh, 0))::BIGINT AS percent
        FROM recent JOIN meters USING (account_id)
        WHERE (used_wh * 100 < usual_wh * low_percent OR used_wh * 100 > usual_wh * high_percent)
          AND abs(used_wh - usual_wh) >= least_wh
        ORDER BY abs(used_wh - usual_wh) DESC, account_id
        """,
        (
            f"Meters whose last whole days used less or more than so many percent of what the same weekdays did in the"
            f" {HISTORY_DAYS // 7} weeks before, and at least least_wh a day otherwise. Days without supply, and days not"
            f" wholly read, do not count; who has no {HISTORY_DAYS // 2} of them is not listed:"
            " FROM unusual_usage(high_percent := 150)."
        ),
    ),
    "moves(days := 31)": (
        f"""{TAKEN}, closed AS (
            SELECT account_id, arg_min(meter_id, ordinal) AS first_meter, max(closed_at) AS closed_at,
                   max(closing_register_wh) AS closing_wh
            FROM version GROUP BY account_id HAVING count(closed_at) > 0
        ), exchanged AS (
            SELECT account_id, arg_max(new_meter_id, ordinal) AS meter_id, max(exchanged_at) AS exchanged_at,
                   arg_max(new_register_wh, ordinal) AS new_wh
            FROM exchange GROUP BY account_id
        ), gone AS (
            SELECT c.account_id, coalesce(e.meter_id, first_meter) AS meter_id, closed_at,
                   coalesce(closing_wh, if(exchanged_at >= coalesce(measured_at, exchanged_at), new_wh, NULL), measured_wh)
                       AS closed_wh
            FROM closed c LEFT JOIN exchanged e USING (account_id) LEFT JOIN balances b USING (account_id)
            WHERE closed_at >= {SINCE_DAYS}
        ), came AS (
            SELECT account_id, arg_min(district, ordinal) AS district, arg_min(meter_id, ordinal) AS meter_id,
                   min(effective_at) AS opened_at, arg_min((opening_register_wh,), ordinal)[1] AS opening_wh
            FROM version GROUP BY account_id
        ), started AS (
            SELECT account_id, arg_min(from_wh, (ordinal, n)) AS first_wh FROM events.entry
            WHERE kind = 'usage' AND to_at >= {SINCE_DAYS}
              AND account_id IN (SELECT account_id FROM came WHERE opening_wh IS NULL AND opened_at >= {SINCE_DAYS})
            GROUP BY account_id
        )
        SELECT came.district, meter_id, gone.account_id AS left_by, closed_at, closed_wh, came.account_id AS taken_by,
               opened_at, coalesce(opening_wh, first_wh) AS opened_wh, opened_wh - closed_wh AS difference_wh
        FROM gone JOIN came USING (meter_id) LEFT JOIN started s ON s.account_id = came.account_id
        WHERE opened_at >= closed_at AND came.account_id <> gone.account_id
        QUALIFY row_number() OVER (PARTITION BY gone.account_id ORDER BY opened_at, came.account_id) = 1
        ORDER BY closed_at, meter_id
        """,
        (
            "Meters that passed from one account to the next in the last so many days, with the register the one was charged"
            " up to and the one the other is charged from: what lies between was billed to nobody, or, negative, twice:"
            " FROM moves(days := 365) WHERE difference_wh <> 0."
        ),
    ),
    "usage_spikes(days := 7, ratio := 1.8, least_wh := 2000)": (
        f"""
        WITH step AS (
            SELECT account_id, {DAY_NUMBER.format("to_at")} AS day, to_at, usage_wh,
                   epoch_us(to_at) - epoch_us(from_at) AS length_us
            FROM events.entry WHERE kind = 'usage' AND basis <> 'estimated' AND to_at >= {SINCE_DAYS}
        ), day AS (
            SELECT account_id, day, max(usage_wh, 3) AS highest, max_by(to_at, usage_wh) AS peak_at
            FROM step GROUP BY ALL HAVING count(*) >= 40 AND max(length_us) <= {DAY // 48}
        )
        SELECT district, account_id, meter_id, DATE '1970-01-01' + day::INTEGER AS day, peak_at, highest[1] AS peak_wh,
               highest[3] AS third_wh
        FROM day JOIN meters USING (account_id)
        WHERE peak_wh > third_wh * ratio AND peak_wh - third_wh >= least_wh
        ORDER BY peak_wh - third_wh DESC, account_id, day
        """,
        (
            "Days on which the highest half-hour used more than so many times the third highest, and at least least_wh more;"
            " where the day was read at half-hours or closer: FROM usage_spikes(days := 31, least_wh := 0)."
        ),
    ),
}

ALARMS = """
    SELECT 'silent' AS alarm, district, account_id, meter_id, last_read_at AS at, silent_hours || ' hours' AS detail
    FROM silent_meters()
    UNION ALL BY NAME
    SELECT 'stuck' AS alarm, district, account_id, meter_id, still_since AS at,
           stuck_days || ' days at ' || register_wh || ' Wh' AS detail
    FROM stuck_meters()
    UNION ALL BY NAME
    SELECT 'read_rate' AS alarm, district, (day + 1)::TIMESTAMP AT TIME ZONE 'Asia/Tashkent' AS at,
           read || ' of ' || meters || ' meters on ' || day AS detail
    FROM read_rates() WHERE percent < 98
    UNION ALL BY NAME
    SELECT 'clock' AS alarm, district, account_id, meter_id, latest_read_at AS at, from_the_future
           || ' readings from the future, ' || coalesce(ahead_seconds, 0) || ' s ahead' AS detail
    FROM clock_drift()
    UNION ALL BY NAME
    SELECT 'doubtful' AS alarm, district, account_id, meter_id, last_read_at AS at,
           reason || ': ' || refused || ' refused, ' || held || ' held' AS detail
    FROM doubtful_readings()
    UNION ALL BY NAME
    SELECT 'sum_check' AS alarm, district, account_id, meter_id, to_at AS at,
           'intervals ' || intervals_wh || ' Wh, register ' || register_advance_wh || ' Wh on ' || day AS detail
    FROM sum_checks()
    UNION ALL BY NAME
    SELECT 'unusual_usage' AS alarm, district, account_id, meter_id,
           usage_wh_per_day || ' Wh a day, usually ' || usual_wh_per_day || ' Wh' AS detail
    FROM unusual_usage()
    UNION ALL BY NAME
    SELECT 'usage_spike' AS alarm, district, account_id, meter_id, peak_at AS at,
           peak_wh || ' Wh, third highest of the day ' || third_wh || ' Wh' AS detail
    FROM usage_spikes()
    UNION ALL BY NAME
    SELECT 'move' AS alarm, district, taken_by AS account_id, meter_id, opened_at AS at,
           left_by || ' left at ' || closed_wh || ' Wh, ' || taken_by || ' began at ' || opened_wh || ' Wh' AS detail
    FROM moves() WHERE difference_wh <> 0
"""
ALARMS_DOC = (
    "What is wrong with the metering at the last tick, by the usual thresholds: a row a meter, district or day."
)
ALARMS_COLUMNS = [
    (
        "alarm",
        "VARCHAR",
        "One of silent, stuck, read_rate, clock, doubtful, sum_check, unusual_usage, usage_spike, move.",
    ),
    ("district", "VARCHAR", "The district."),
    ("account_id", "VARCHAR", "The account; null for a district, or where no open account has the meter."),
    ("meter_id", "VARCHAR", "The meter; null for a district."),
    ("at", "TIMESTAMPTZ", "The moment it is about (UTC): the last reading, the advance, the day's end, the peak."),
    ("detail", "VARCHAR", "What was found."),
]


@dataclass(frozen=True)
class Thresholds:
    """From when on something is worth an operator's look. They are whole numbers."""

    silent_hours: int = 24
    stuck_days: int = 3
    drift_minutes: int = 3
    days: int = 7
    low_percent: int = 50
    high_percent: int = 200


@dataclass(frozen=True)
class Health:
    """How the metering does. Each list is of rows, as the macro of its name has them; spikes are of doubtful_readings.

    moves: those whose registers do not meet.
    """

    at: datetime | None
    meters: int
    silent: list[dict[str, Any]]
    stuck: list[dict[str, Any]]
    read_rates: list[dict[str, Any]]
    clocks: list[dict[str, Any]]
    spikes: list[dict[str, Any]]
    usage_spikes: list[dict[str, Any]]
    unusual_usage: list[dict[str, Any]]
    sum_checks: list[dict[str, Any]]
    moves: list[dict[str, Any]]

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
        _rows(con, f"FROM usage_spikes(days := {limits.days:d})"),
        _rows(
            con,
            f"FROM unusual_usage(days := {limits.days:d}, low_percent := {limits.low_percent:d},"
            f" high_percent := {limits.high_percent:d})",
        ),
        _rows(con, f"FROM sum_checks(days := {limits.days:d})"),
        _rows(con, f"FROM moves(days := {limits.days:d}) WHERE difference_wh <> 0"),
    )


def _rows(con: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    found = con.execute(sql)
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
