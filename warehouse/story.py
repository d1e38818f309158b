"""What happened to one account, up to a moment, as the published database has it: every record and event, each with its id.

Nothing is judged here. A record is known from where it lies in the journal on, so what was known at a moment is what lies
before the tick after it and had arrived by then; later knowledge of earlier things is left out, as it was for who decided.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any

from accounting.moments import TASHKENT
from accounting.records import OWN_TIME, render_id
from warehouse.errors import WarehouseError
from warehouse.statement import unknown_account
from warehouse.tables import is_event, log_of, quoted

if TYPE_CHECKING:
    import duckdb

ENDLESS = 2**62


class OutsideError(WarehouseError):
    """The moment asked for is none that the database knows anything of."""


EVENT_TIME = {
    "entry": "to_at",
    "forecast": "forecast_at",
    "notice": "noticed_at",
    "command": "issued_at",
    "supply_state": "changed_at",
}
OF_THE_ACCOUNT = ("account", "meter_exchange", "payment", "adjustment", "order", *EVENT_TIME)
ANSWERS = {"receipt": ("notice_id", "notice"), "acknowledgement": ("command_id", "command")}
OF_ALL = ("policy", "tariff")


@dataclass(frozen=True)
class Happening:
    """One record or event: its own time, where it lies, what it says. `n` is −1 for a record: it comes before its events."""

    kind: str
    at: datetime
    partition: int
    ordinal: int
    n: int
    values: dict[str, Any]

    @property
    def id(self) -> str:
        """An event's id, a record's position."""
        return f"{self.partition}-{self.ordinal}" if self.n < 0 else render_id(self.partition, self.ordinal, self.n)

    @property
    def place(self) -> tuple[int, int]:
        """What puts those of one partition in order."""
        return self.ordinal, self.n

    def __getitem__(self, column: str) -> Any:
        return self.values[column]


@dataclass
class Story:
    """An account up to a moment. Each list is in the order of the journal."""

    account_id: str
    partition: int
    at: datetime
    accounts: list[Happening] = field(default_factory=list)  # versions taken
    meter_exchanges: list[Happening] = field(default_factory=list)
    payments: list[Happening] = field(default_factory=list)
    adjustments: list[Happening] = field(default_factory=list)
    orders: list[Happening] = field(default_factory=list)
    policies: list[Happening] = field(default_factory=list)
    tariffs: list[Happening] = field(default_factory=list)
    entries: list[Happening] = field(default_factory=list)
    forecasts: list[Happening] = field(default_factory=list)
    notices: list[Happening] = field(default_factory=list)
    receipts: list[Happening] = field(default_factory=list)
    commands: list[Happening] = field(default_factory=list)
    acknowledgements: list[Happening] = field(default_factory=list)
    supply_states: list[Happening] = field(default_factory=list)

    @property
    def account(self) -> Happening:
        """The version in force."""
        begun = [v for v in self.accounts if v["effective_at"] <= self.at]
        return max(begun or self.accounts[:1], key=lambda v: (v["effective_at"], v.ordinal))

    @property
    def state(self) -> str:
        """The state of the supply, as far as is known: it is connected until something else is said."""
        return self.supply_states[-1]["state"] if self.supply_states else "connected"

    @property
    def balance_tiyin(self) -> int:
        """The balance after the last entry."""
        return self.entries[-1]["balance_tiyin"] if self.entries else 0

    @property
    def measured_balance_tiyin(self) -> int:
        """The balance without what a standing estimate charged: what supply is decided by."""
        return self.balance_tiyin - sum(e["amount_tiyin"] for e in self.entries if e["basis"] == "estimated")

    def upto(self, event: Happening) -> Story:
        """The story as it stood when the event came of it."""
        lists = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("account_id", "partition", "at")}
        known: dict[str, Any] = {name: [h for h in some if h.place <= event.place] for name, some in lists.items()}
        return replace(self, at=event.at, **known)

    def receipts_of(self, notice: Happening) -> list[Happening]:
        """What was said of a notice."""
        return [r for r in self.receipts if r["notice_id"] == notice.id]

    def cause_of(self, event: Happening) -> Happening | None:
        """The record that an event came of; None: a reading or a tick, the common causes."""
        causes = self.payments, self.adjustments, self.orders, self.accounts, self.policies, self.meter_exchanges
        answers = self.receipts, self.acknowledgements
        return next((r for some in (*causes, *answers) for r in some if r.ordinal == event.ordinal), None)


PLURALS = {"policy": "policies", "entry": "entries"}


def read_story(con: duckdb.DuckDBPyConnection, account_id: str, at: datetime | None = None) -> Story:
    """The account's story up to `at`, or all there is. Raises UnknownAccountError, or OutsideError where `at` is before
    or after that.
    """
    found = con.execute(
        "SELECT partition, min(effective_at) FROM journal.account WHERE account_id = ? GROUP BY partition", [account_id]
    ).fetchone()
    if found is None:
        raise unknown_account(con, account_id)
    partition, begins_at = found
    (last_tick,) = con.execute(
        "SELECT max(ticked_at) FROM journal.tick WHERE partition = ?", [partition]
    ).fetchone() or (None,)
    if last_tick is None:
        raise WarehouseError("The database holds no tick yet: nothing was decided.")
    if at is not None and not begins_at <= at <= last_tick:
        raise OutsideError(
            f"Account {account_id} is known from {begins_at.isoformat()} on, and the database up to its last tick,"
            f" {last_tick.isoformat()}: {at.isoformat()} is outside."
        )
    known = _Known(con, account_id, partition, at)
    story = Story(account_id, partition, at or last_tick)
    for kind in (*OF_THE_ACCOUNT, *OF_ALL, *ANSWERS):
        setattr(story, PLURALS.get(kind, f"{kind}s"), known.read(kind, story))
    if at is None:
        story.at = max([last_tick, *(s.at for s in story.supply_states[-1:])])
    if not story.accounts:
        raise WarehouseError(f"Every version of account {account_id} was refused: `hisob query` on `refused` says why.")
    return story


class _Known:
    """What was known of an account at a moment."""

    def __init__(self, con: duckdb.DuckDBPyConnection, account_id: str, partition: int, at: datetime | None) -> None:
        self._con, self._account_id, self._partition, self._at = con, account_id, partition, at
        self._before, self._after = self._ticks_around(at) if at else (ENDLESS, ENDLESS)

    def _ticks_around(self, at: datetime) -> tuple[int, int]:
        """The ordinals of the last tick up to the moment and of the next one."""
        sql = f"""
            SELECT coalesce(max(ordinal) FILTER (ticked_at <= $at), -1),
                coalesce(min(ordinal) FILTER (ticked_at > $at), {ENDLESS})
            FROM journal.tick WHERE partition = $partition
            """
        before, after = self._con.execute(sql, {"at": at, "partition": self._partition}).fetchone() or (-1, ENDLESS)
        return before, after

    def read(self, kind: str, story: Story) -> list[Happening]:
        """The records or events of a kind."""
        position = "ordinal, n" if is_event(kind) else "ordinal, -1 AS n"
        own = EVENT_TIME.get(kind) or OWN_TIME[kind]
        values: dict[str, Any] = {"partition": self._partition, "before": self._before, "after": self._after}
        where = "r.partition = $partition AND ordinal < $after"
        if kind in OF_THE_ACCOUNT:
            where += " AND account_id = $account"
            values["account"] = self._account_id
        elif kind in ANSWERS:
            column, of = ANSWERS[kind]
            where += f" AND list_contains($ids, {column})"
            values["ids"] = [event.id for event in getattr(story, f"{of}s")]
        if self._at is None:
            where += " AND ordinal <= $before"
        else:
            arrived = own if is_event(kind) or kind == "receipt" else f"coalesce(received_at, {own}::TIMESTAMPTZ)"
            where += f" AND (ordinal <= $before OR {arrived} <= $at)"
            values["at"] = self._at
        if not is_event(kind):
            where += f""" AND NOT EXISTS (FROM events.refused f
                WHERE f.record_kind = '{kind}' AND f.partition = r.partition AND f.ordinal = r.ordinal)"""
        sql = f"SELECT {position}, * EXCLUDE (partition, ordinal{', n' if is_event(kind) else ''})"
        cursor = self._con.cursor()
        cursor.execute("SET TimeZone = 'UTC'")
        cursor.execute(f"{sql} FROM {log_of(kind)}.{quoted(kind)} r WHERE {where} ORDER BY ordinal, n", values)
        names = [column[0] for column in cursor.description or []]
        rows = (dict(zip(names, row, strict=True)) for row in cursor.fetchall())
        return [
            Happening(kind, moment_of(row[own]), self._partition, row.pop("ordinal"), row.pop("n"), row) for row in rows
        ]


def moment_of(at: date) -> datetime:
    """A moment; of a day, its beginning in Tashkent."""
    return at if isinstance(at, datetime) else datetime.combine(at, time(), TASHKENT)
