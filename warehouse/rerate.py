"""Re-rating: what accounts would have been charged, had other facts been recorded in time; in SQL, apart from the rules.

The auditor (`reconcile.py`, `bill/`) works out every entry from `journal.*` and `events.*` alone. Here its scripts run
unchanged over an **overlay**: an empty database in memory with the published one attached as `audit`, whose `journal` and
`events` are views onto it, but for what should have been recorded otherwise. A tariff version put right lies before every
record, so it is in force from its own date, and takes the place of those of its tariff and date that arrived before it. An
account put right (`changes.py`) has rows of its own in `own`. What the registers then come to, less what the ledger
charged, less what was posted already, is what has to be posted.

The journal alone says what was put right before: the id of an adjustment names it, and its number.

    tariff-correct:3f9a01bcd2+77ab01cd90:1      the versions, by digest; all of them lie in the journal
    rerate:from=2025-02-28T19:00:00Z&families=2:1      what of the account, in words

So every picture holds all that was ever put right, and what is posted is what remains.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from accounting.records import RECORD_SCHEMAS
from warehouse.audit import open_published
from warehouse.errors import WarehouseError
from warehouse.load import MEMORY_LIMIT
from warehouse.reconcile import PART_ENTRIES, bill, parts
from warehouse.tables import literal

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from connectors.home import Home

Row = dict[str, Any]
TARIFF, ACCOUNT = "tariff-correct", "rerate"  # what the ids of adjustments begin with
ROOM = 1 << 20  # between two ordinals of the journal, for what should have arrived there
EARLIEST = -(1 << 40)  # an ordinal before every record's
OWN = ("account", "reading", "meter_exchange")  # what an account put right has of its own
NO_PRICE = ("tariff", "effective_on", "received_at", "source", "block", "blocks")  # of a row, what prices nothing


class RerateError(WarehouseError):
    """It cannot be re-rated; the message says why, and what to do instead."""


@dataclass(frozen=True)
class Version:
    """A tariff version, its rows as the journal has them.

    `place`: that of its last row among all rows of tariffs; None: it is not in the journal yet.
    """

    tariff: str
    effective_on: dt.date
    rows: tuple[Row, ...]
    place: int | None = None
    is_repetition: bool = False  # of an earlier one, its source included: ignored by the rules

    @property
    def sources(self) -> tuple[str | None, ...]:
        """Where its rows come from."""
        return tuple(row.get("source") for row in self.rows)

    @property
    def digest(self) -> str:
        """A name for what it says: tariff, date and blocks, not its source nor when it was received."""
        blocks = [{k: v for k, v in row.items() if v is not None and k not in NO_PRICE} for row in self.rows]
        said = json.dumps([self.tariff, str(self.effective_on), blocks], sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Rerated:
    """An account re-rated.

    `times`: how often this correction was posted to it; `usage_wh`: what it has used since the correction begins.
    """

    account_id: str
    charged_tiyin: int
    right_tiyin: int
    posted_tiyin: int
    times: int
    usage_wh: int

    @property
    def due_tiyin(self) -> int:
        """What remains to be posted: credit +, charge −."""
        return self.charged_tiyin - self.right_tiyin - self.posted_tiyin


# ---- the picture -----------------------------------------------------------------------------------------------------


@contextmanager
def open_overlay(home: Home) -> Iterator[duckdb.DuckDBPyConnection]:
    """The published database with nothing put right yet. What is worked out spills into scratch/."""
    open_published(home).close()  # says what is wrong, if anything is
    home.scratch.mkdir(parents=True, exist_ok=True)
    with lay_over(home.published) as con:
        con.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        con.execute(f"SET temp_directory = {literal(str(home.scratch / 'rerate'))}")
        yield con


@contextmanager
def lay_over(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An overlay of a database file that nobody has open for writing."""
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false")
        con.execute(f"ATTACH {literal(str(database))} AS audit (READ_ONLY)")
        con.execute("CREATE SCHEMA journal; CREATE SCHEMA events; CREATE SCHEMA own")
        con.execute("CREATE TABLE own.accounts (account_id VARCHAR)")
        con.execute("CREATE TABLE concerned (account_id VARCHAR)")
        con.execute("CREATE VIEW main.balances AS FROM audit.main.balances SEMI JOIN concerned USING (account_id)")
        spread = f"SELECT * REPLACE (ordinal * {ROOM} AS ordinal) FROM audit"
        con.execute(f"CREATE TABLE journal.tariff AS {spread}.journal.tariff")
        for kind in OWN:
            con.execute(f"CREATE TABLE own.{kind} AS FROM audit.journal.{kind} LIMIT 0")
            con.execute(
                f"CREATE VIEW journal.{kind} AS {spread}.journal.{kind} ANTI JOIN own.accounts USING (account_id)"
                f" UNION ALL BY NAME FROM own.{kind}"
            )
        for kind in ("payment", "adjustment"):
            con.execute(f"CREATE VIEW journal.{kind} AS {spread}.journal.{kind}")
        for kind in ("entry", "refused", "held"):
            con.execute(f"CREATE VIEW events.{kind} AS {spread}.events.{kind}")
        con.execute(f"CREATE VIEW events.released AS {RELEASED}")
        yield con


# The id of what was held has an ordinal in it, which has room about it, too.
RELEASED = f"""
    SELECT * REPLACE (ordinal * {ROOM} AS ordinal, concat_ws('-', split_part(held_id, '-', 1),
        split_part(held_id, '-', 2)::BIGINT * {ROOM}, split_part(held_id, '-', 3)) AS held_id)
    FROM audit.events.released
"""


def own_account(con: duckdb.DuckDBPyConnection, account: str) -> None:
    """Give an account rows of its own, as they are so far: what is changed in them is put right."""
    if con.execute("SELECT 1 FROM own.accounts WHERE account_id = ?", [account]).fetchall():
        return
    for kind in OWN:
        con.execute(f"INSERT INTO own.{kind} FROM journal.{kind} WHERE account_id = ?", [account])
    con.execute("INSERT INTO own.accounts VALUES (?)", [account])


# ---- tariffs ---------------------------------------------------------------------------------------------------------


def read_versions(con: duckdb.DuckDBPyConnection) -> list[Version]:
    """The tariff versions that were loaded, in order of arrival. One arrives with its last row."""
    found = con.execute(
        """
        SELECT row_number() OVER (ORDER BY ordinal) AS place, * FROM audit.journal.tariff
        WHERE partition = (SELECT max(partition) FROM audit.journal.tariff) ORDER BY ordinal
        """
    )
    names = [column[0] for column in found.description or []]
    versions, begun, known = [], list[Row](), set()
    for row in (dict(zip(names, values, strict=True)) for values in found.fetchall()):
        begun = [row] if not row["block"] else [*begun, row]
        if len(begun) >= (row["blocks"] or 1):
            rows = tuple({k: v for k, v in r.items() if k not in {"place", "partition", "ordinal"}} for r in begun)
            version = Version(row["tariff"], row["effective_on"], rows, row["place"])
            versions.append(replace(version, is_repetition=(version.digest, version.sources) in known))
            known.add((version.digest, version.sources))
    return versions


def put_right_before(con: duckdb.DuckDBPyConnection) -> list[Version]:
    """The versions by which accounts were re-rated before; of several of one tariff and date, the last to arrive."""
    ids = con.execute(
        "SELECT DISTINCT split_part(adjustment_id, ':', 2) FROM audit.journal.adjustment WHERE starts_with(adjustment_id, ?)",
        [f"{TARIFF}:"],
    ).fetchall()
    digests = {digest for (joined,) in ids for digest in joined.split("+")}
    if not digests:
        return []
    arrived = (v for v in read_versions(con) if v.digest in digests and not v.is_repetition)
    right = {(v.tariff, v.effective_on): v for v in arrived}
    return list(right.values())


def put_tariffs_right(con: duckdb.DuckDBPyConnection, versions: Iterable[Version]) -> None:
    """Have these versions be there from the start, instead of those of their tariff and date that arrived before them."""
    right = {(v.tariff, v.effective_on): v for v in (*put_right_before(con), *versions)}
    if not right:
        return
    gone = [
        place
        for v in read_versions(con)
        if v.is_repetition or arrived_by(v, right.get((v.tariff, v.effective_on)))
        for place in places_of(v)
    ]
    numbered = (
        "SELECT *, row_number() OVER (PARTITION BY partition ORDER BY ordinal) AS place FROM audit.journal.tariff"
    )
    con.execute(
        f"CREATE OR REPLACE TABLE journal.tariff AS SELECT * EXCLUDE (place) REPLACE (ordinal * {ROOM} AS ordinal)"
        f" FROM ({numbered}) WHERE NOT list_contains(?::BIGINT[], place)",
        [gone],
    )
    rows = pa.Table.from_pylist([row for v in right.values() for row in v.rows], schema=RECORD_SCHEMAS["tariff"])
    ordinals = pa.array(range(EARLIEST, EARLIEST + rows.num_rows), pa.int64())
    con.register("right_rows", rows.append_column("ordinal", ordinals))
    con.execute(
        "INSERT INTO journal.tariff BY NAME"
        " SELECT * FROM right_rows CROSS JOIN (SELECT DISTINCT partition FROM audit.journal.tariff)"
    )
    con.unregister("right_rows")


def arrived_by(version: Version, right: Version | None) -> bool:
    """Whether a version of the journal had arrived when the right one did."""
    return right is not None and (right.place is None or (version.place or 0) <= right.place)


def places_of(version: Version) -> range:
    """The places of a version's rows among all rows of tariffs."""
    last = version.place or 0
    return range(last - len(version.rows) + 1, last + 1)


def accounts_on(con: duckdb.DuckDBPyConnection, tariffs: Iterable[str]) -> list[str]:
    """The accounts that are, or ever were, on one of these tariffs."""
    found = con.execute(
        "SELECT DISTINCT account_id FROM journal.account WHERE list_contains(?::VARCHAR[], tariff) ORDER BY 1",
        [list(tariffs)],
    )
    return [account for (account,) in found.fetchall()]


# ---- re-rating -------------------------------------------------------------------------------------------------------


def rerate(
    con: duckdb.DuckDBPyConnection,
    accounts: Sequence[str],
    what: str,
    since: dt.datetime,
    part_entries: int = PART_ENTRIES,
) -> list[Rerated]:
    """Re-rate these accounts as the overlay has them. what: the id of the correction, up to its number; since: when it begins.

    Raises RerateError where the registers of an account come to no bill, or to another one by another way.
    """
    con.execute("SET VARIABLE what = ?", [f"{what}:"])
    con.execute("SET VARIABLE since = epoch_us(?::TIMESTAMPTZ)", [since])
    found: list[Rerated] = []
    for _ in run_parts(con, accounts, part_entries):
        for account, charged, right, otherwise, *rest in con.execute(COMPARED).fetchall():
            if right is None or right != otherwise:
                raise RerateError(
                    f"Account {account} cannot be re-rated: its registers come to no bill that way (one register is below the"
                    " one before it, or there is no price at its start). Nothing was posted: look at them with"
                    f" hisob statement {account}, and post the adjustment by hand (hisob ingest adjustment=FILE)."
                )
            found.append(Rerated(account, charged, right, *rest))
    return found


def run_parts(
    con: duckdb.DuckDBPyConnection, accounts: Sequence[str], part_entries: int = PART_ENTRIES
) -> Iterator[None]:
    """Run the auditor's scripts over the overlay for these accounts, part by part: its tables are those of the part."""
    con.execute("DELETE FROM concerned")
    con.register("given", pa.table({"account_id": pa.array(accounts, pa.string())}))
    con.execute("INSERT INTO concerned FROM given")
    con.unregister("given")
    for first, last in parts(con, None, part_entries):
        con.execute("SET VARIABLE first_account = ?", [first])
        con.execute("SET VARIABLE last_account = ?", [last])
        for script in bill():
            con.execute(script)
        yield


COMPARED = f"""
    WITH ledger AS (
        SELECT a, -sum(amount_tiyin)::BIGINT AS tiyin FROM entry WHERE kind IN ('usage', 'correction') GROUP BY a
    ), expected_charge AS (
        SELECT a, -sum(amount_tiyin)::BIGINT AS tiyin
        FROM (SELECT a, kind, amount_tiyin FROM plain UNION ALL SELECT a, kind, amount_tiyin FROM other)
        WHERE kind IN ('usage', 'correction') GROUP BY a
    ), posted AS (
        SELECT w.a, sum(j.amount_tiyin)::BIGINT AS tiyin, count_if(starts_with(j.adjustment_id, getvariable('what'))) AS times
        FROM journal.adjustment j JOIN who w ON w.account_id = j.account_id AND w.partition = j.partition
        SEMI JOIN (FROM entry WHERE kind = 'adjustment') e ON e.a = w.a AND e.ordinal = j.ordinal
        WHERE starts_with(j.adjustment_id, '{TARIFF}:') OR starts_with(j.adjustment_id, '{ACCOUNT}:')
        GROUP BY w.a
    ), used AS (
        SELECT a, max(total_wh) - coalesce(max(
            CASE WHEN at_us <= getvariable('since') THEN total_wh
            WHEN from_at < getvariable('since')
            THEN total_wh - usage_wh + register_there(usage_wh, getvariable('since') - from_at, at_us - from_at) END), 0) AS wh
        FROM register GROUP BY a
    )
    SELECT w.account_id, coalesce(l.tiyin, 0),
        CASE WHEN w.a NOT IN (SELECT a FROM onto_end WHERE usage_wh IS NULL) THEN b.charge_tiyin END,  -- no register went back
        coalesce(x.tiyin, 0), coalesce(p.tiyin, 0),
        coalesce(p.times, 0), coalesce(u.wh, 0)
    FROM who w JOIN bill b USING (a) LEFT JOIN ledger l USING (a) LEFT JOIN expected_charge x USING (a)
    LEFT JOIN posted p USING (a) LEFT JOIN used u USING (a)
    ORDER BY w.account_id
"""


def last_tick(con: duckdb.DuckDBPyConnection) -> dt.datetime | None:
    """The last tick that was loaded: up to when the picture goes."""
    ((tick,),) = con.execute("SELECT max(ticked_at) FROM audit.journal.tick").fetchall()
    moment: dt.datetime | None = tick
    return moment
