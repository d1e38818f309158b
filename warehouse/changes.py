"""What should have been recorded of one account, put into its rows of the overlay, in time.

    version     another tariff or number of families from a moment on; with neither, what was recorded late, from its own time
    moved_out   the account ended at a moment, with a register: nothing after it is its own
    moved_in    the account began at a moment, with a register: its meter's readings since then are its own
    exchanged   the meter was exchanged at a moment: the old register ends there, the new one goes on

*In time* is: just before the first arrival of a later register, so that it takes effect at its own moment, as the rules have
it. Each change is known by a text (`rerate:` in the ids of adjustments), so the journal tells which were made before; an
account is put right by all of them, in the order in which they were posted.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from accounting.moments import TASHKENT, us_of
from warehouse.reconcile import bill
from warehouse.rerate import ACCOUNT, ROOM, RerateError, own_account

if TYPE_CHECKING:
    from collections.abc import Iterable

    import duckdb

CHANGES = ("version", "moved_out", "moved_in", "exchanged")
NUMBERS = ("families", "register", "old_register", "new_register")
# Refusals that are about whose a reading is, not about what it shows.
WHOSE = ("not_yet_installed", "wrong_meter", "account_closed")


@dataclass(frozen=True)
class Change:
    """What should have been recorded, from a moment on. The values: those of its kind that are given."""

    kind: str
    since: dt.datetime
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """It in one word without a colon, for an adjustment's id."""
        return urlencode({self.kind: self.since.astimezone(dt.UTC).isoformat(), **dict(self.values)})

    @staticmethod
    def parse(text: str) -> Change:
        """The change of such a text."""
        (kind, since), *rest = parse_qsl(text)
        if kind not in CHANGES:
            raise ValueError(kind)
        values = tuple((name, int(value) if name in NUMBERS else value) for name, value in rest)
        return Change(kind, dt.datetime.fromisoformat(since), values)

    def get(self, name: str) -> Any:
        """A value, or None."""
        return dict(self.values).get(name)

    @property
    def when(self) -> str:
        """The moment by the clocks of Tashkent."""
        return f"{self.since.astimezone(TASHKENT):%Y-%m-%d %H:%M}"


def put_accounts_right(con: duckdb.DuckDBPyConnection, accounts: Iterable[str]) -> None:
    """Put into the overlay what these accounts were put right by before."""
    found = con.execute(
        """
        SELECT account_id, regexp_extract(adjustment_id, '^[^:]*:([^:]*):', 1) AS change FROM audit.journal.adjustment
        WHERE starts_with(adjustment_id, ?) AND list_contains(?::VARCHAR[], account_id)
        GROUP BY ALL ORDER BY account_id, max(ordinal)
        """,
        [f"{ACCOUNT}:", list(accounts)],
    )
    for account, text in found.fetchall():
        try:
            change = Change.parse(text)
        except (ValueError, KeyError) as error:
            raise RerateError(
                f"Account {account} has an adjustment {ACCOUNT}:{text} that says of no change, so it was not posted by hisob"
                " rerate. Take it back by another adjustment of its own, and post what is due by hand."
            ) from error
        put_account_right(con, account, change)


def put_account_right(con: duckdb.DuckDBPyConnection, account: str, change: Change) -> None:
    """Put one change into the account's rows of the overlay. Raises RerateError where it cannot be worked out."""
    own_account(con, account)
    look_at(con, account)
    work = {"version": change_version, "moved_out": move_out, "moved_in": move_in, "exchanged": exchange}
    work[change.kind](con, account, change)


def look_at(con: duckdb.DuckDBPyConnection, account: str) -> None:
    """Work out what arrived for the account, and which registers settled, as the overlay has it by now.

    It lies in the auditor's tables then: `version`, `exchange`, `arrival`, `register` and the others.
    """
    con.execute("DELETE FROM concerned")
    con.execute("INSERT INTO concerned VALUES (?)", [account])
    con.execute("SET VARIABLE first_account = ?", [account])
    con.execute("SET VARIABLE last_account = ?", [account])
    for script in bill()[:2]:  # what is given, and the registers
        con.execute(script)


def one(con: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> tuple[Any, ...] | None:
    """The row of a query that has one, or none."""
    row: tuple[Any, ...] | None = con.execute(sql, list(values)).fetchone()
    return row


def number(con: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> int | None:
    """The one number of a query; None where it is NULL."""
    ((value,),) = con.execute(sql, list(values)).fetchall()
    return None if value is None else int(value)


def beginning(con: duckdb.DuckDBPyConnection, account: str) -> tuple[int, int]:
    """Of the account's first version: its ordinal, and its moment."""
    row = one(con, "SELECT ordinal, own_at FROM version WHERE is_first")
    if row is None:
        raise RerateError(
            f"No version of account {account} was taken: hisob refused says why. There is nothing to re-rate."
        )
    return row[0], row[1]


def first_after(con: duckdb.DuckDBPyConnection, at_us: int) -> int | None:
    """The first arrival of a measured register later than a moment: what is placed before it is in time."""
    return number(con, "SELECT min(ordinal) FROM arrival WHERE NOT estimated AND at_us > ?", at_us)


def not_late(change: Change, record: str) -> RerateError:
    """Nothing is settled beyond the moment."""
    return RerateError(
        f"Nothing is measured after {change.when}, so it is not late: the rules take it as it is. Nothing was posted; record"
        f" it: hisob ingest {record}=FILE."
    )


# ---- a tariff, or families -------------------------------------------------------------------------------------------


def change_version(con: duckdb.DuckDBPyConnection, account: str, change: Change) -> None:
    """Another tariff or families from the moment on, until the account's next version."""
    first, began_us = beginning(con, account)
    since_us = us_of(change.since)
    if since_us < began_us:
        raise RerateError(
            f"Account {account} begins only after {change.when}. If it should have begun then: --moved-in --register WH."
        )
    if not change.values:
        count_late_versions(con, account, change, first)
        return
    tariff = change.get("tariff")
    if tariff is not None and not number(
        con, "SELECT count(*) FROM journal.tariff WHERE tariff = ? AND effective_on <= ?", tariff, local_day(change)
    ):
        raise RerateError(f"There is no tariff {tariff!r} by {change.when}: hisob tariff show has those there are.")
    new = {"tariff": tariff, "families": change.get("families")}
    sets = ", ".join(f"{name} = coalesce(${name}, {name})" for name in new)
    if since_us == began_us:
        con.execute(f"UPDATE own.account SET {sets} WHERE account_id = $account AND ordinal = $first",
                    {**new, "account": account, "first": first})  # fmt: skip
        return
    before = first_after(con, since_us)
    if before is None:
        raise not_late(change, "account")
    copy_version(con, account, since_us, before - 1)
    con.execute(
        "DELETE FROM own.account WHERE account_id = ? AND epoch_us(effective_at) = ? AND closed_at IS NULL AND ordinal <> ?",
        [account, since_us, first],
    )
    con.execute(f"UPDATE copied SET {sets}", new)
    con.execute("INSERT INTO own.account FROM copied")


def local_day(change: Change) -> dt.date:
    """Its day in Tashkent."""
    return change.since.astimezone(TASHKENT).date()


def copy_version(con: duckdb.DuckDBPyConnection, account: str, since_us: int, ordinal: int) -> None:
    """Into `copied`: what is in force by its own date at a moment, once more from that moment on, with another ordinal."""
    con.execute(
        """
        CREATE OR REPLACE TEMP TABLE copied AS SELECT * REPLACE (make_timestamptz(?) AS effective_at, ?::BIGINT AS ordinal,
            NULL::TIMESTAMPTZ AS closed_at, NULL::BIGINT AS closing_register_wh)
        FROM own.account WHERE account_id = ? AND ordinal = (
            SELECT max_by(ordinal, (own_at, ordinal)) FROM version WHERE own_at <= ?)
        """,
        [since_us, ordinal, account, since_us],
    )


def count_late_versions(con: duckdb.DuckDBPyConnection, account: str, change: Change, first: int) -> None:
    """Every version from the moment on that arrived late, from its own moment on; of several of one moment, the last."""
    late = con.execute(
        "SELECT max(ordinal), own_at FROM version WHERE own_at >= ? AND closed_at IS NULL AND NOT is_first GROUP BY own_at",
        [us_of(change.since)],
    ).fetchall()
    moved = [(o, at, before) for o, at in late if (before := first_after(con, at)) is not None and before < o]
    if not moved:
        raise RerateError(
            f"No version of account {account} from {change.when} on was recorded late: each took effect at its own moment."
            " Say what should have been: --tariff, --families, --moved-out, --moved-in or --exchanged."
        )
    for ordinal, at, before in moved:
        con.execute(
            "DELETE FROM own.account WHERE account_id = ? AND epoch_us(effective_at) = ? AND ordinal NOT IN (?, ?)",
            [account, at, ordinal, first],
        )
        con.execute(
            "UPDATE own.account SET ordinal = ? WHERE account_id = ? AND ordinal = ?", [before - 1, account, ordinal]
        )


# ---- moves -----------------------------------------------------------------------------------------------------------


def move_out(con: duckdb.DuckDBPyConnection, account: str, change: Change) -> None:
    """The account ended at the moment: what it was charged for beyond the closing register is not its own."""
    first, began_us = beginning(con, account)
    since_us, closing_wh = us_of(change.since), change.get("register")
    if since_us < began_us:
        raise RerateError(f"Account {account} begins only after {change.when}: it cannot have ended then.")
    check_no_exchange(con, account, change)
    check_register(con, since_us, closing_wh)
    before = number(con, "SELECT min(ordinal) FROM arrival WHERE at_us > ?", since_us)
    if before is None:
        if not number(con, "SELECT count(*) FROM version WHERE closed_at IS NOT NULL"):
            raise not_late(change, "account")
        before = (number(con, "SELECT max(ordinal) FROM arrival") or 0) + ROOM
    copy_version(con, account, since_us, before - 1)
    con.execute("UPDATE copied SET closed_at = effective_at, closing_register_wh = ?", [closing_wh])
    con.execute("DELETE FROM own.reading WHERE account_id = ? AND epoch_us(read_at) > ?", [account, since_us])
    con.execute(
        "DELETE FROM own.account WHERE account_id = ? AND (ordinal > ? OR closed_at IS NOT NULL) AND ordinal <> ?",
        [account, before, first],
    )
    con.execute("INSERT INTO own.account FROM copied")


def check_register(con: duckdb.DuckDBPyConnection, at_us: int, register_wh: int) -> None:
    """Raise RerateError where a register does not lie between the measured ones around its moment."""
    around = one(
        con,
        """
        SELECT r.from_wh, r.register_wh, r.usage_wh, m.modulus_wh
        FROM register r JOIN modulus m ON m.a = r.a AND m.since < r.ordinal AND r.ordinal <= m.until
        WHERE r.from_at <= ? AND r.at_us > ? LIMIT 1
        """,
        at_us,
        at_us,
    )
    if around and (register_wh - around[0]) % around[3] > around[2]:
        raise RerateError(
            f"The register {register_wh:,} Wh does not lie between those measured before and after it, {around[0]:,} and"
            f" {around[1]:,} Wh: look at it again. Nothing was posted."
        )


def check_no_exchange(con: duckdb.DuckDBPyConnection, account: str, change: Change) -> None:
    """Raise RerateError where the meter was exchanged since: the registers after it are another meter's."""
    if number(con, "SELECT count(*) FROM exchange WHERE at_us > ?", us_of(change.since)):
        raise RerateError(
            f"The meter of account {account} was exchanged after {change.when}: that is not worked out. Nothing was posted;"
            " post the adjustment by hand (hisob ingest adjustment=FILE)."
        )


def move_in(con: duckdb.DuckDBPyConnection, account: str, change: Change) -> None:
    """The account began at the moment, with this register; its meter's readings since then are its own."""
    first, began_us = beginning(con, account)
    since_us, opening_wh = us_of(change.since), change.get("register")
    if since_us > began_us:
        raise RerateError(
            f"Account {account} began before {change.when}. Of another tariff or families from then on: --tariff, --families."
        )
    ((meter, recorded_wh),) = con.execute(
        "SELECT meter_id, opening_register_wh FROM own.account WHERE account_id = ? AND ordinal = ?", [account, first]
    ).fetchall()
    seen = [(began_us, recorded_wh)] if recorded_wh is not None and since_us < began_us else []
    until = one(con, "SELECT at_us, register_wh FROM register WHERE place > 0 ORDER BY at_us LIMIT 1")
    con.execute(
        "UPDATE own.account SET effective_at = make_timestamptz(?), opening_register_wh = ?"
        " WHERE account_id = ? AND ordinal = ?",
        [since_us, opening_wh, account, first],
    )
    put_readings(con, meter, find_readings(con, meter, since_us, opening_wh, until, seen), first + 1)


def find_readings(
    con: duckdb.DuckDBPyConnection,
    meter: str,
    since_us: int,
    from_wh: int,
    until: tuple[Any, ...] | None,
    seen: Iterable[tuple[int, int]] = (),
) -> list[tuple[int, int]]:
    """The measured readings of a meter between two registers, whoever they were taken for: when, and the register.

    Those that were refused for what they show stay away, and so do those that do not lie between the registers around them.
    """
    found = con.execute(
        """
        SELECT epoch_us(r.read_at) AS at_us, max(r.register_wh) FROM audit.journal.reading r
        LEFT JOIN audit.events.refused f ON f.record_kind = 'reading' AND f.partition = r.partition AND f.ordinal = r.ordinal
        WHERE r.meter_id = ? AND r.status IS DISTINCT FROM 'estimated' AND epoch_us(r.read_at) > ? AND epoch_us(r.read_at) < ?
            AND (f.reason IS NULL OR list_contains(?::VARCHAR[], f.reason))
        GROUP BY at_us HAVING min(r.register_wh) = max(r.register_wh)
        """,
        [meter, since_us, until[0] if until else 2**62, list(WHOSE)],
    ).fetchall()
    last_wh, kept = from_wh, []
    for at, register_wh in sorted({**dict(found), **dict(seen)}.items()):
        if last_wh <= register_wh and (until is None or register_wh <= until[1]):
            kept.append((at, register_wh))
            last_wh = register_wh
    return kept


def put_readings(con: duckdb.DuckDBPyConnection, meter: str, readings: list[tuple[int, int]], ordinal: int) -> None:
    """Give them to the account that is looked at, one after the other from an ordinal on."""
    if len(readings) >= ROOM - 2:
        raise RerateError(
            f"Meter {meter} has {len(readings):,} readings since then: more than can be worked out at once."
        )
    if readings:
        con.executemany(
            """
            INSERT INTO own.reading BY NAME
            SELECT partition, account_id, $1::BIGINT AS ordinal, $2 AS meter_id, make_timestamptz($3) AS read_at,
                $4::BIGINT AS register_wh
            FROM who
            """,
            [[ordinal + i, meter, at, register_wh] for i, (at, register_wh) in enumerate(readings)],
        )


# ---- an exchange -----------------------------------------------------------------------------------------------------


def exchange(con: duckdb.DuckDBPyConnection, account: str, change: Change) -> None:
    """The meter was exchanged at the moment. It takes the place of what was recorded of it, then or later."""
    _, began_us = beginning(con, account)
    since_us = us_of(change.since)
    if since_us < began_us:
        raise RerateError(f"Account {account} begins only after {change.when}.")
    before = first_after(con, since_us)
    if before is None:
        raise not_late(change, "meter_exchange")
    old, new = (change.get(name) or meter_by(con, account, since_us) for name in ("old_meter", "new_meter"))
    first_own = one(
        con,
        """
        SELECT t.at_us, t.register_wh FROM own.reading r JOIN reading t ON t.ordinal = r.ordinal
        WHERE r.account_id = ? AND r.meter_id = ? AND t.at_us > ? AND NOT t.estimated ORDER BY t.at_us LIMIT 1
        """,
        account,
        new,
        since_us,
    )
    con.execute(
        """
        DELETE FROM own.meter_exchange WHERE account_id = $account AND (epoch_us(exchanged_at) = $since
            OR (epoch_us(exchanged_at) > $since AND old_meter_id = $old AND new_meter_id = $new AND $old <> $new))
        """,
        {"account": account, "since": since_us, "old": old, "new": new},
    )
    check_exchanges_left(con, account, change)
    readings: list[tuple[int, int]] = []
    if old != new:
        con.execute(
            "DELETE FROM own.reading WHERE account_id = ? AND meter_id = ? AND epoch_us(read_at) > ?",
            [account, old, since_us],
        )
        readings = find_readings(con, new, since_us, change.get("new_register"), first_own)
    if readings and before % ROOM:
        raise RerateError(
            f"The meter of account {account} was exchanged among readings that another change gave it: that is not worked out."
            " Nothing was posted; post the adjustment by hand (hisob ingest adjustment=FILE)."
        )
    ordinal = before - 1 - len(readings)
    con.execute(
        """
        INSERT INTO own.meter_exchange BY NAME
        SELECT partition, account_id, $1::BIGINT AS ordinal, make_timestamptz($2) AS exchanged_at, $3 AS old_meter_id,
            $4::BIGINT AS old_register_wh, $5 AS new_meter_id, $6::BIGINT AS new_register_wh
        FROM who
        """,
        [ordinal, since_us, old, change.get("old_register"), new, change.get("new_register")],
    )
    put_readings(con, new, readings, ordinal + 1)


def meter_by(con: duckdb.DuckDBPyConnection, account: str, at_us: int) -> str:
    """The meter that the account had at a moment, by what was recorded before it."""
    ((meter,),) = con.execute(
        """
        SELECT max_by(meter_id, (at_us, ordinal)) FROM (
            SELECT epoch_us(effective_at) AS at_us, ordinal, meter_id FROM own.account WHERE account_id = $1
            UNION ALL SELECT epoch_us(exchanged_at), ordinal, new_meter_id FROM own.meter_exchange
            WHERE account_id = $1 AND ordinal IN (SELECT ordinal FROM exchange)
        ) WHERE at_us <= $2
        """,
        [account, at_us],
    ).fetchall()
    return str(meter)


def check_exchanges_left(con: duckdb.DuckDBPyConnection, account: str, change: Change) -> None:
    """Raise RerateError where the meter was exchanged once more since."""
    left = number(
        con,
        "SELECT count(*) FROM own.meter_exchange WHERE account_id = ? AND epoch_us(exchanged_at) > ?"
        " AND ordinal IN (SELECT ordinal FROM exchange)",
        account, us_of(change.since),
    )  # fmt: skip
    if left:
        raise RerateError(
            f"The meter of account {account} was exchanged once more after {change.when}: that is not worked out. Nothing was"
            " posted; post the adjustment by hand (hisob ingest adjustment=FILE)."
        )
