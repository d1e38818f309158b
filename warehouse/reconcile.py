"""The independent auditor: every entry and every balance recomputed in SQL, from registers, tariffs and payments alone.

The rules stand in `bill/`, a file a step, each beside the sentence of "The bill, exactly" that it follows; nothing of
`accounting/` is called. Given are the records of the journal and which of them were refused or held; what each that was
taken should have come to is worked out anew and held against the ledger, to the tiyin. Accounts are taken part by part, in
the order in which the lake has them, so memory does not grow with the city.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from warehouse.statement import unknown_account

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

PART_ENTRIES = 1_000_000  # about so many entries at a time: what is in memory
LISTED = 10_000  # differences that are told one by one; all are counted
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COMPARED = (
    "kind",
    "basis",
    "from_at",
    "to_at",
    "from_wh",
    "to_wh",
    "usage_wh",
    "amount_tiyin",
    "moved_tiyin",
    "tariff",
)


@dataclass(frozen=True)
class Difference:
    """One thing that differs: an entry, the bill of an account or its balance. `ledger` and `audit` have the columns that do.

    One of them is empty where the ledger has an entry that nothing accounts for, or lacks one that there should be.
    `moved_tiyin` is what an entry did to the balance. what: the entry's kind, or `bill` (usage and corrections of the account,
    by its registers in order of time), `balance` (the last entry's), `kept balance` (that of `balances`).
    """

    account_id: str
    what: str
    at: str | None
    entry_id: str | None
    record: str | None  # the arrival that caused it, or should have: partition-ordinal
    ledger: dict[str, Any]
    audit: dict[str, Any]


@dataclass
class Reconciliation:
    """What was recomputed, and what differs. `different` counts all differences, `differences` are the first LISTED."""

    accounts: int = 0
    readings: int = 0
    entries: int = 0
    charged_tiyin: int = 0
    credited_tiyin: int = 0
    balance_tiyin: int = 0
    different: int = 0
    differences: list[Difference] = field(default_factory=list)


def reconcile(
    con: duckdb.DuckDBPyConnection, account: str | None = None, part_entries: int = PART_ENTRIES
) -> Reconciliation:
    """Recompute all accounts, or one. Raises UnknownAccountError."""
    result = Reconciliation()
    for first, last in parts(con, account, part_entries):
        con.execute("SET VARIABLE first_account = ?", [first])
        con.execute("SET VARIABLE last_account = ?", [last])
        for script in bill():
            con.execute(script)
        take_part(con, result)
    if account is None:
        take_strangers(con, result)
    return result


@cache
def bill() -> tuple[str, ...]:
    """The files of `bill/`, in order."""
    folder = files("warehouse").joinpath("bill")
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return tuple(file.read_text(encoding="utf-8") for file in found)


def parts(con: duckdb.DuckDBPyConnection, account: str | None, part_entries: int) -> Iterator[tuple[str, str]]:
    """The first and last account of each part."""
    if account is not None:
        if not con.execute("SELECT 1 FROM main.balances WHERE account_id = ?", [account]).fetchall():
            raise unknown_account(con, account)
        yield account, account
        return
    found = con.execute(
        """
        SELECT min(account_id), max(account_id) FROM (
            SELECT account_id, (sum(entries) OVER (ORDER BY account_id) - entries) // ? AS part FROM main.balances
        ) GROUP BY part ORDER BY part
        """,
        [part_entries],
    )
    yield from found.fetchall()


def take_part(con: duckdb.DuckDBPyConnection, result: Reconciliation) -> None:
    """Add what a part came to."""
    counted = con.execute(
        """
        SELECT
            (SELECT count(*) FROM who), (SELECT count(*) FROM reading),
            coalesce(sum(amount_tiyin) FILTER (kind IN ('usage', 'correction')), 0),
            coalesce(sum(amount_tiyin) FILTER (kind NOT IN ('usage', 'correction')), 0), count(*)
        FROM (SELECT kind, amount_tiyin FROM plain UNION ALL SELECT kind, amount_tiyin FROM other)
        """
    ).fetchone() or (0, 0, 0, 0, 0)
    accounts, readings, moved, credited, entries = (int(value) for value in counted)
    result.accounts += accounts
    result.readings += readings
    result.entries += entries
    result.charged_tiyin -= moved
    result.credited_tiyin += credited
    result.balance_tiyin += moved + credited
    ((different,),) = con.execute(
        "SELECT (SELECT count(*) FROM difference) + (SELECT count(*) FROM account_difference)"
    ).fetchall()
    result.different += different
    if different:
        result.differences += read_differences(con, LISTED - len(result.differences))


def take_strangers(con: duckdb.DuckDBPyConnection, result: Reconciliation) -> None:
    """Add the entries of accounts that there are not."""
    found = con.execute(
        """
        SELECT coalesce(account_id, ''), partition, ordinal, n, kind, epoch_us(to_at), amount_tiyin
        FROM events.entry ANTI JOIN main.balances USING (account_id) ORDER BY ALL
        """
    )
    for name, partition, ordinal, n, kind, at, amount in found.fetchall():
        record, ledger = f"{partition}-{ordinal}", {"kind": kind, "amount_tiyin": amount}
        result.different += 1
        if len(result.differences) < LISTED:
            result.differences.append(Difference(name, kind, moment(at), f"{record}-{n}", record, ledger, {}))


def read_differences(con: duckdb.DuckDBPyConnection, most: int) -> list[Difference]:
    """The first so many differences of a part: accounts, each with the entries that make the difference."""
    whole = con.execute(
        """
        SELECT w.account_id, d.kind, d.ledger_tiyin, d.audit_tiyin FROM account_difference d JOIN who w USING (a)
        ORDER BY d.a, d.kind LIMIT ?
        """,
        [most],
    ).fetchall()
    found = [
        Difference(name, kind, None, None, None, {"tiyin": ledger}, {"tiyin": audit})
        for name, kind, ledger, audit in whole
    ]
    entries = con.execute(
        """
        SELECT w.account_id, w.partition, d.ordinal, d.n, d.kind, d.at_us, d.ledger, d.audit
        FROM difference d JOIN who w USING (a) ORDER BY d.a, d.ordinal, d.n LIMIT ?
        """,
        [most - len(found)],
    ).fetchall()
    for name, partition, ordinal, n, kind, at, ledger, audit in entries:
        record = f"{partition}-{ordinal}"
        entry_id = None if n is None else f"{record}-{n}"
        found.append(Difference(name, kind, moment(at), entry_id, record, *what_differs(ledger, audit)))
    return found


def what_differs(ledger: dict[str, Any], audit: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of both sides the columns that are not alike; all there is of the one, where the other is not there."""
    names = [name for name in COMPARED if ledger[name] != audit[name]]
    sides = [{name: shown(name, side[name]) for name in names} for side in (ledger, audit)]
    return (
        sides[0] if ledger["kind"] is not None else {},
        sides[1] if audit["kind"] is not None else {},
    )


def shown(name: str, value: Any) -> Any:
    """A value as it is told: times as ISO 8601 in UTC."""
    return moment(value) if name.endswith("_at") else value


def moment(at: int | None) -> str | None:
    """ISO 8601 in UTC of microseconds."""
    return None if at is None else (EPOCH + timedelta(microseconds=at)).isoformat()
