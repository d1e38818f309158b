"""A partition: the state of its accounts and what grows beside it, and the events being written.

The columns of `accounting.state` hold what every account has; side tables hold what only some have (payments
remembered, held records, contacts). Account 0 is nobody: readings of an account that is not there find it and are
refused. Nothing here decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from accounting.bill import MARK, REASONS
from accounting.calendar import QUARTER_US
from accounting.events import AccountIds
from accounting.incidents import HeldTexts
from accounting.ledger import Ledger, make_room, new_ledger, take_count
from accounting.notices import Told
from accounting.policies import Place, Policy, Rules, quiet_hours_hold_until, rules_at, rules_hold_until
from accounting.records import OWN_TIME, RECORDS
from accounting.state import FOREVER, NONE, new_accounts
from accounting.supply import RULES
from accounting.tariffs import TariffBook
from accounting.texts import as_json, date_text, time_text

if TYPE_CHECKING:
    from collections.abc import Iterable

REMEMBERED_US = 400 * 86_400_000_000
Record = dict[str, Any]
CONTENT = {
    kind: tuple(c.name for c in columns if not c.internal and c.name != "received_at")
    for kind, columns in RECORDS.items()
}


def record_text(kind: str, record: Record) -> str:
    """A record whole, as JSON: the contract's columns that have a value, times and dates in ISO 8601."""
    columns = {}
    for c in RECORDS[kind]:
        value = record.get(c.name)
        if value is None or c.internal:
            continue
        columns[c.name] = time_text(value) if c.type == "time" else date_text(value) if c.type == "date" else value
    return as_json(columns)


def digest(kind: str, record: Record) -> str:
    """Tells contents apart, `received_at` aside."""
    content = [record.get(name) for name in CONTENT[kind]]
    return blake2b(repr(content).encode(), digest_size=8).hexdigest()


@dataclass(slots=True)
class Payment:
    """What is remembered of a payment or adjustment for 400 days from its own time: its content, `received_at` aside."""

    at: int
    amount_tiyin: int
    by: str | None  # channel or author
    of: str | None  # the payment that it reverses, or a reason
    is_reversal: bool
    reversed: bool = False

    @property
    def content(self) -> tuple[int, int, str | None, str | None]:
        """What the same payment has in common with this one; another with its id has not."""
        return self.at, self.amount_tiyin, self.by, self.of


class Texts:
    """A text or none for each account. Restored ones stay an Arrow column until one is asked for: most never are."""

    def __init__(self, column: pa.Array | None = None) -> None:
        """As restored, or with a text for nobody alone."""
        self._column = column
        self._values: list[str | None] = [None]

    def __getitem__(self, i: int) -> str | None:
        """That of account `i`."""
        return self._listed()[i]

    def of(self, accounts: Iterable[int]) -> list[str | None]:
        """Those of some accounts."""
        texts = self._listed()
        return [texts[i] for i in accounts]

    def __setitem__(self, i: int, text: str | None) -> None:
        """Another one for account `i`."""
        self._listed()[i] = text

    def append(self, text: str | None) -> None:
        """One more, for a new account."""
        self._listed().append(text)

    def column(self) -> pa.Array:
        """All of them."""
        return pa.array(self._values, pa.string()) if self._column is None else self._column

    def _listed(self) -> list[str | None]:
        if self._column is not None:
            self._values, self._column = self._column.to_pylist(), None
        return self._values


@dataclass
class Partition:
    """State and events of one partition. `unrouted` is the one where readings of unclaimed meters wait."""

    number: int
    unrouted: bool = False
    accounts: Any = field(default_factory=lambda: new_accounts(16))
    wake_at: Any = field(default_factory=lambda: np.full(16, FOREVER))
    count: int = 1
    ids: list[str] = field(default_factory=lambda: [""])
    index: dict[str, int] = field(default_factory=dict)
    meters: dict[str, int] = field(default_factory=dict)
    phones: Texts = field(default_factory=Texts)
    languages: Texts = field(default_factory=Texts)
    taken: dict[int, set[str]] = field(default_factory=dict)  # digests of versions and exchanges taken, by account
    book: TariffBook = field(default_factory=TariffBook)
    tariff_rows: list[Record] = field(default_factory=list)  # of a tariff version still arriving
    marks: Any = field(default_factory=lambda: np.zeros(16, MARK))
    mark_count: int = 0
    payments: dict[int, dict[str, Payment]] = field(default_factory=dict)  # key: kind and id
    waiting: dict[str, list[tuple[int, int, str, Record]]] = field(default_factory=dict)  # unknown_account, by id
    held_records: HeldTexts = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    policy_count: int = 0
    places: list[Place] = field(default_factory=lambda: [Place("", None, None)])
    commands: dict[str, int] = field(
        default_factory=dict
    )  # sequence by "account meter", where more than one meter had some
    effects: dict[tuple[int, int], tuple[int, int, int]] = field(
        default_factory=dict
    )  # notices, commands: account, moment, and a command's meter (of a notice −1)
    last_tick: int = NONE
    last_day: int = NONE
    ignored: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make what is derived or only lives for a batch."""
        self.ledger: Ledger = new_ledger(4096)
        self.events: dict[str, list[tuple[Any, ...]]] = {}
        self.notices: list[Told] = []
        self.rules = np.zeros(0, RULES)
        self.rules_by_class: list[Rules] = []
        self.class_of: dict[tuple[bool, ...], int] = {}  # of places, by the scoped policies that cover them
        self.place_class: list[int] = []
        self.rules_from, self.rules_until = FOREVER, NONE
        self.meter_names: list[str] = []
        self.pairs: tuple[Any, Any, Any] | None = None  # of the last readings: dictionary, accounts, meters (all found)
        self.account_ids = AccountIds(self.ids)
        self.place_index = {place: i for i, place in enumerate(self.places)}

    # accounts

    def find(self, account_id: str) -> int:
        """The account's row; 0 if it is not there."""
        return self.index.get(account_id, 0)

    def add_account(self, account_id: str) -> int:
        """A row for a new account."""
        if self.count == self.accounts.size:
            self.accounts = np.concatenate([self.accounts, new_accounts(self.count)])
            self.wake_at = np.concatenate([self.wake_at, np.full(self.count, FOREVER)])
        i = self.count
        self.count += 1
        self.ids.append(account_id)
        self.index[account_id] = i
        self.phones.append(None)
        self.languages.append(None)
        return i

    def meter_code(self, meter_id: str) -> int:
        """The number of a meter, given one if it is new."""
        return self.meters.setdefault(meter_id, len(self.meters))

    def meter_name(self, code: int) -> str:
        """The meter of a number."""
        if len(self.meter_names) != len(self.meters):
            self.meter_names = list(self.meters)
        return self.meter_names[code]

    def place_code(self, place: Place) -> int:
        """The number of a place, given one if it is new."""
        code = self.place_index.get(place)
        if code is None:
            code = self.place_index[place] = len(self.places)
            self.places.append(place)
        return code

    # price changes at measured registers

    def add_mark(self, before: int, price: int, month_wh: int) -> int:
        """Remember a price change at a measured register; its number."""
        if self.mark_count == self.marks.size:
            self.marks = np.concatenate([self.marks, np.zeros(self.marks.size, MARK)])
        self.marks[self.mark_count] = (before, price, month_wh)
        self.mark_count += 1
        return self.mark_count - 1

    # rules of places

    def rules_now(self, now: int) -> Any:
        """The rules of every place at a moment, for compiled code; wakes every account when a threshold changes, and
        after a restore, for a snapshot does not say which thresholds held.
        """
        if not self.rules_hold(now):
            before, policies = self.rules_by_class, list(self.policies.values())
            self.rules_by_class, self.rules_from = [], now
            self.rules_until = rules_hold_until(policies, now)
            self._classify_places(policies)
            after = self.rules_by_class[: len(before)]
            if not before or [thresholds_of(r) for r in before] != [thresholds_of(r) for r in after]:
                self.wake_at[: self.count] = NONE
        elif len(self.place_class) < len(self.places):
            self._classify_places(list(self.policies.values()))
        return self.rules

    def rules_hold(self, now: int) -> bool:
        """Whether the rules last worked out hold at a moment."""
        return self.rules_from <= now < self.rules_until

    def rules_of(self, i: int) -> Rules:
        """The rules of an account's place, as last asked for by `rules_now`."""
        return self.rules_by_class[self.place_class[self.accounts["place"][i]]]

    def _classify_places(self, policies: list[Policy]) -> None:
        """Places that the same policies cover have the same rules, worked out once: there may be a place a feeder."""
        scoped = [policy for policy in policies if policy.scope != "all"]
        for place in self.places[len(self.place_class) :]:
            covered = tuple(policy.covers(place) for policy in scoped)
            self.place_class.append(self.class_of.setdefault(covered, len(self.class_of)))
        for number in range(len(self.rules_by_class), len(self.class_of)):
            example = self.places[self.place_class.index(number)]
            self.rules_by_class.append(rules_at(policies, example, self.rules_from))
        rows = np.zeros(len(self.rules_by_class), RULES)
        quiet_turns_at = quiet_hours_hold_until(policies, self.rules_from)
        for row, rules in zip(rows, self.rules_by_class, strict=True):
            found = {**vars(rules), "quiet_turns_at": quiet_turns_at, "forbidden": rules.forbidden is not None}
            for name in RULES.names or ():
                row[name] = NONE if found[name] is None else found[name]
        self.rules = rows[self.place_class]

    def policies_changed(self) -> None:
        """The rules of all places have to be worked out anew."""
        self.rules_until = NONE
        self.place_class, self.class_of = [], {}

    def moment_of(self, kind: str, record: Record) -> int:
        """The moment at which a record's decisions are taken: its arrival, within the quarter after the last tick."""
        own = record.get(OWN_TIME[kind])
        arrival = record.get("received_at") or own or self.last_tick
        if self.last_tick == NONE:
            return int(arrival)
        return min(max(int(arrival), self.last_tick), self.last_tick + QUARTER_US)

    # events

    def begin(self, ordinal: int) -> None:
        """Turn to the next record: its events are counted from 0. There is room for what one record can leave."""
        self.turn_to(ordinal)
        self.reserve(64)

    def turn_to(self, ordinal: int) -> None:
        """As `begin`, for one that leaves nothing in the ledger at once."""
        self.ledger.cause[0], self.ledger.cause[1] = ordinal, 0

    def reserve(self, entries: int, incidents: int = 16, forecasts: int = 8, notices: int = 8) -> None:
        """Make sure the ledger has room for so many more."""
        ledger = self.ledger
        size = ledger.size.tolist()
        if (
            size[0] + entries > len(ledger.entries)
            or size[1] + incidents > len(ledger.incidents)
            or size[2] + forecasts > len(ledger.forecasts)
            or size[3] + notices > len(ledger.notices)
        ):
            self.ledger = make_room(ledger, entries, incidents, forecasts, notices)

    def emit(self, kind: str, *values: Any) -> tuple[int, int]:
        """One event of the record at work; its (ordinal, n)."""
        ordinal, n = int(self.ledger.cause[0]), int(take_count(self.ledger))
        self.events.setdefault(kind, []).append((ordinal, n, *values))
        return ordinal, n

    def refuse(self, kind: str, record: Record, reason: str, detail: str | None = None) -> None:
        """A record is refused by name, whole."""
        self.emit("refused", kind, reason, detail, record_text(kind, record))

    def hold(self, kind: str, record: Record, reason: str, detail: str | None = None) -> tuple[int, int]:
        """A record is held by name, whole; its held_id."""
        return self.emit("held", kind, reason, detail, record_text(kind, record))

    def ignore(self, kind: str, count: int = 1) -> None:
        """Count records that change nothing."""
        if count:
            self.ignored[kind] = self.ignored.get(kind, 0) + count

    def take_notices(self) -> None:
        """Take the ledger's notices out of it, for the phone and in the language that the accounts have now."""
        rows = self.ledger.notices[: self.ledger.size[3]].copy()
        if rows.size:
            accounts = rows["account"].tolist()
            ids, phones, languages = self.ids, self.phones, self.languages
            self.notices.append(Told(rows, [ids[i] for i in accounts], phones.of(accounts), languages.of(accounts)))
            self.ledger.size[3] = 0

    def id_text(self, ordinal: int, n: int) -> str:
        """An event's id."""
        return f"{self.number}-{ordinal}-{n}"


def reason_text(reason: int) -> str:
    """A reason's name."""
    return REASONS[reason]


def thresholds_of(rules: Rules) -> tuple[int, int, int, int]:
    """What of the rules moves the moments at which accounts are looked at."""
    return rules.notice_us, rules.notice_gap_us, rules.reconnect_tiyin, rules.max_reading_age_us
