"""A payment channel's own list of what it took, held against the payments of the published database.

Every payment of the list is *matched*, *differing* (in which columns) or *missing here*: not in the ledger, because it never
arrived, was refused or is held. Every payment of ours that the list should have is matched, differing or *missing there*.
So, of counts as of money: theirs = matched + differing + missing here, and ours = matched + differing + missing there. A
reversal is a payment of its own, and less money.

**Which are the same payment** is told by its id, and by what else agrees: first those alike in every column, then of one id
those of the same account and channel, of the same account, of the same channel and day. (Channels may give one id twice: to
different accounts, on another day.) Of the payments here, those in the ledger come before the refused ones. Order plays no
part.

**What the list should have** are ours of its channels and days. Its days are those of its rows, from the first to the last, by
Asia/Tashkent, unless one is named; its channels those its rows name. All of it is SQL, in `payments.sql` and
`payments_outcome.sql`, on temporary tables that spill to disk.

What a run came to is kept for auditors (`payment_runs.py`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from connectors.files import inspect_file
from connectors.files.check import Checker
from connectors.files.formats import read_batches
from warehouse.errors import WarehouseError

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

    from connectors.files import Inspected

CONTENT = ("payment_id", "account_id", "paid_at", "amount_tiyin", "channel", "reverses")
SAME = (  # what two records of one payment agree in, the narrowest first
    CONTENT,
    ("payment_id", "account_id", "channel"),
    ("payment_id", "account_id"),
    ("payment_id", "channel", "tashkent(paid_at)::DATE"),
)
BAD_ROWS_NAMED = 5


class PaymentListError(WarehouseError):
    """The list cannot be compared; the message says why and what to do."""


@dataclass(frozen=True)
class ChannelTotal:
    """Counts and totals of a channel. theirs, ours: by whose list; `refused` and `held` are among those missing here."""

    channel: str | None
    theirs: int
    theirs_tiyin: int
    ours: int
    ours_tiyin: int
    matched: int
    matched_tiyin: int
    differing: int
    differing_theirs_tiyin: int
    differing_ours_tiyin: int
    missing_here: int
    missing_here_tiyin: int
    refused: int
    held: int
    missing_there: int
    missing_there_tiyin: int
    reversed: int
    reversed_tiyin: int
    repeated: int
    repeated_tiyin: int

    @property
    def agrees(self) -> bool:
        """Whether both lists say the same, each payment once."""
        return not (self.differing or self.missing_here or self.missing_there or self.repeated)


@dataclass(frozen=True)
class Difference:
    """A payment that is not matched, or of which there is more to say: it was reversed here, or its id stands twice there.

    outcome: differing, missing_here, missing_there, reversed, repeated. row: of the file. Its columns are as the list has
    them, where it does. reason: why it is missing here. record: where ours lies in the journal, partition-ordinal. columns:
    those that differ, with both values. rows: all that have a repeated id.
    """

    channel: str | None
    outcome: str
    row: int | None
    payment_id: str
    account_id: str
    paid_at: str
    amount_tiyin: int
    reverses: str | None = None
    reason: str | None = None
    record: str | None = None
    columns: list[dict[str, Any]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PaymentReconciliation:
    """One run: which list, of which days, against which published database (its last tick), and what it came to."""

    run: str
    reconciled_at: str
    file: str
    fingerprint: str
    ticked_at: str | None
    first_day: str
    last_day: str
    rows: int
    other_days: int  # rows of days that the caller did not ask for
    channels: list[ChannelTotal]
    differences: list[Difference]

    @property
    def agrees(self) -> bool:
        """Whether everything matched and nothing stands twice in the list."""
        told = {difference.outcome for difference in self.differences} - {"reversed"}
        return not told and all(channel.agrees for channel in self.channels)


def reconcile_payments(
    con: duckdb.DuckDBPyConnection, path: Path, channel: str | None = None, day: date | None = None
) -> PaymentReconciliation:
    """Compare a list with the published database. Raises FileError, PaymentListError.

    channel: of the rows that name none. day: the one that is compared; without it, all the days of the list.
    """
    now = datetime.now(UTC)
    file = inspect_file(path)
    rows = read_list(con, file, channel)
    first, last = days_of(con, file.name, rows, channel, day)
    for statement in statements("payments.sql"):
        con.execute(statement)
    pair_up(con)
    for statement in statements("payments_outcome.sql"):
        con.execute(statement)
    channels = [ChannelTotal(*values) for values in select_totals(con)]
    (ticked_at,) = con.execute("SELECT utc_text(max(ticked_at)) FROM main.ticks").fetchone() or (None,)
    return PaymentReconciliation(
        run=f"{now:%Y%m%dT%H%M%S.%fZ}-{file.fingerprint[:12]}",
        reconciled_at=now.isoformat(),
        file=file.name,
        fingerprint=file.fingerprint,
        ticked_at=ticked_at,
        first_day=first.isoformat(),
        last_day=last.isoformat(),
        rows=rows,
        other_days=rows - sum(total.theirs + total.repeated for total in channels),
        channels=channels,
        differences=[*select_differences(con), *select_repeated(con)],
    )


# ---- the list --------------------------------------------------------------------------------------------------------


def read_list(con: duckdb.DuckDBPyConnection, file: Inspected, channel: str | None) -> int:
    """Read the file into `given`, every value checked; how many rows it has. With one bad row no total would be right."""
    con.execute(
        """
        CREATE OR REPLACE TEMP TABLE given (
            "row" BIGINT, payment_id VARCHAR, account_id VARCHAR, paid_at TIMESTAMPTZ, amount_tiyin BIGINT, channel VARCHAR,
            reverses VARCHAR
        )
        """
    )
    checker = Checker("payment", file.name, partitions=1, until=time.time_ns() // 1000)
    bad: list[dict[str, Any]] = []
    count = 0
    for raw in read_batches(file, "payment"):
        checked = checker.check(raw)
        count += checked.bad.num_rows
        bad += checked.bad.slice(0, BAD_ROWS_NAMED - len(bad)).to_pylist()
        if checked.good.num_rows:
            names = [name for name in checked.good.schema.names if name in CONTENT]
            good = checked.good.select(names).append_column("row", pa.array(checked.rows))
            con.register("checked", pa.Table.from_batches([good]))
            con.execute("INSERT INTO given BY NAME FROM checked")
            con.unregister("checked")
    file.check_unchanged()
    if bad:
        raise PaymentListError(bad_rows(file.name, bad, count))
    name_channel(con, file.name, channel)
    ((rows,),) = con.execute("SELECT count(*) FROM given").fetchall()
    return int(rows)


def bad_rows(name: str, bad: list[dict[str, Any]], count: int) -> str:
    """Which rows cannot be read, and why."""
    told = "; ".join(
        f"row {row['row']}" + (f", {row['column']}" if row["column"] else "") + f" ({row['reason']}): {row['value']}"
        for row in bad
    )
    more = f"; and {count - len(bad):,} more rows" if count > len(bad) else ""
    return f"{name} was not compared, for not all of it can be read: {told}{more}. Mend them, and give the file again."


def name_channel(con: duckdb.DuckDBPyConnection, name: str, channel: str | None) -> None:
    """Rows that name no channel are of the one the caller named; then none may name another."""
    con.execute("CREATE OR REPLACE TEMP TABLE asked (channel VARCHAR)")
    if channel is None:
        return
    con.execute("INSERT INTO asked VALUES (?)", [channel])
    con.execute("UPDATE given SET channel = ? WHERE channel IS NULL", [channel])
    others = con.execute(
        'SELECT "row", channel FROM given WHERE channel <> ? ORDER BY "row" LIMIT 1', [channel]
    ).fetchall()
    for row, other in others:
        raise PaymentListError(
            f"{name}, row {row}, channel: {other}, and you say that the list is of {channel}. Without --channel each row is "
            "compared under its own."
        )


def days_of(
    con: duckdb.DuckDBPyConnection, name: str, rows: int, channel: str | None, day: date | None
) -> tuple[date, date]:
    """The first and last day that are compared, told to the database too."""
    if not rows and (day is None or channel is None):
        raise PaymentListError(f"{name} holds no payments: --day and --channel say of when and of whom it is.")
    if day is None:
        found = con.execute("SELECT min(tashkent(paid_at))::DATE, max(tashkent(paid_at))::DATE FROM given").fetchall()
        ((first, last),) = found
    else:
        first = last = day
    con.execute("SET VARIABLE first_day = ?::DATE", [first])
    con.execute("SET VARIABLE last_day = ?::DATE", [last])
    return first, last


# ---- the comparison --------------------------------------------------------------------------------------------------


def statements(name: str) -> list[str]:
    """The statements of a file of SQL, in order."""
    texts = files("warehouse").joinpath(name).read_text(encoding="utf-8").split(";\n")
    return [text for text in texts if text.strip()]


def pair_up(con: duckdb.DuckDBPyConnection) -> None:
    """Pair what is the same payment: those in the ledger first, and the more that agrees the sooner."""
    for status in ("= 'credited'", "<> 'credited'"):
        for same in SAME:
            con.execute(pair_sql(status, same))


def pair_sql(status: str, same: tuple[str, ...]) -> str:
    """Pair those not paired yet that are alike in these; of several alike, the first with the first by their contents."""
    numbered = f"row_number() OVER (PARTITION BY {', '.join(same)} ORDER BY {', '.join(CONTENT)}) AS place"
    keys = ", ".join(f"{key} AS k{i}" for i, key in enumerate(same))
    alike = " AND ".join(f"a.k{i} IS NOT DISTINCT FROM b.k{i}" for i in range(len(same)))
    return f"""
        INSERT INTO pair SELECT t, o
        FROM (SELECT t, {keys}, {numbered} FROM theirs WHERE t NOT IN (SELECT t FROM pair)) a
        JOIN (SELECT o, {keys}, {numbered} FROM ours WHERE status {status} AND o NOT IN (SELECT o FROM pair)) b
        ON {alike} AND a.place = b.place
    """


def select_totals(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    """The channels' counts and totals, whole numbers."""
    names = ", ".join(f.name if f.name == "channel" else f"{f.name}::HUGEINT" for f in fields(ChannelTotal))
    return con.execute(f"SELECT {names} FROM channel_total ORDER BY channel").fetchall()


def select_differences(con: duckdb.DuckDBPyConnection) -> list[Difference]:
    """What is not matched, and what is and was reversed here, channel by channel."""
    found = con.execute(
        """
        SELECT channel, CASE WHEN outcome = 'matched' THEN 'reversed' ELSE outcome END, "row", payment_id, account_id,
            utc_text(paid_at), amount_tiyin, reverses, reason, partition || '-' || ordinal,
            CASE WHEN t IS NULL OR o IS NULL THEN [] ELSE differs END
        FROM outcome WHERE outcome <> 'matched' OR is_reversed
        ORDER BY channel, 2, paid_at, payment_id, account_id, amount_tiyin, reverses
        """
    ).fetchall()
    return [Difference(*(*row[:-1], [compared(side) for side in row[-1]])) for row in found]


def compared(side: dict[str, Any]) -> dict[str, Any]:
    """A column with both its values; an amount as a number."""
    if side["column"] != "amount_tiyin":
        return side
    return {name: int(value) if name != "column" and value is not None else value for name, value in side.items()}


def select_repeated(con: duckdb.DuckDBPyConnection) -> list[Difference]:
    """The ids that the list has more than once for an account of a channel, the same or not, with all their rows."""
    found = con.execute(
        """
        SELECT channel, 'repeated', min("row"), payment_id, account_id, utc_text(min(paid_at)),
            arg_min(amount_tiyin, (paid_at, amount_tiyin)), NULL, NULL, NULL, [], list("row" ORDER BY "row")
        FROM given g WHERE EXISTS (
            FROM theirs t SEMI JOIN outcome USING (t)
            WHERE t.payment_id = g.payment_id AND t.account_id = g.account_id AND t.channel IS NOT DISTINCT FROM g.channel
        )
        GROUP BY channel, payment_id, account_id HAVING count(*) > 1 ORDER BY channel, payment_id, account_id
        """
    ).fetchall()
    return [Difference(*row) for row in found]
