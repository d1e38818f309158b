"""The bill, row by row: the rules of "The bill, exactly" (DESIGN.md) as a plain model beside the compiled core.

Nothing here is fast and nothing is clever: Python integers, one record after the other, the branches in the order of
the text's tables. Registers are kept as *Wh since the account's start*, which rollovers and exchanges do not disturb.

    run(records)             kind -> rows in file order: merges the files, makes the ticks, and bills
    run_journal(sequence)    (kind, record) in any order of arrival, ("tick", {"ticked_at": µs}) among them
    journal_of(records)      the sequence that `run` gives to `run_journal`
    load_case(folder)        the records of a folder of CSV files

Times are UTC µs, dates `datetime.date`, absent values None (or no such key). In a journal a tariff version is one
record with its `blocks`, or `lists` of them by the hours (see `gather_tariffs`). An `Outcome` holds balances, usage,
refused, held, what was counted, and in `ledger` what each record of the journal did to each balance. What a held record
does when it is released counts for the record that released it: the version or exchange that claimed the meter, the
version that brought the account.

Where the text can be read in more than one way, this is the reading under which every case of `cases/` comes out; in
brackets the cases that fail under the other one, "none" where no case tells.

 1. The *latest* claim that reaches back is the one with the latest date [adversary-10], not the last to arrive; of
    claims with the same date, the last to arrive [none].
 2. The directory hears records as they arrive, before they are judged: a refused version claims [adversary-01, -02,
    -04, -07, -10, -11], a refused exchange claims [adversary-01, -02, -03, -05, -06, -10, -11, -12, all-3].
 3. An exchange of an account of which no version has arrived claims nothing [adversary-02]; a refused version is
    enough for it to claim [none].
 4. The *first version*, which claims always, is the first version to arrive, even if it was refused [adversary-07].
 5. Any `closed_at` that arrives, also in a refused version, ends that the account has its meter [adversary-10]. The
    version that closes claims first (if it may), then has no more [none]. A later record that claims a meter for the
    closed account makes it *have* that meter again [adversary-10, -12].
 6. Only *another* account's having a meter stops a claim: to claim one's own meter anew is one more claim, with its
    own date [adversary-02]. A claim that is stopped leaves the account with the meter it had.
 7. Waiting readings are judged right after the record that claims their meter has been judged [adversary-01, -03,
    -05, -07, -08, -09, -12, all-1, all-2, all-4], whatever became of that record (refused: `wrong_meter`); at the
    same `read_at` in the order of arrival [adversary-05]. Each is looked up in the directory, and may find another
    account.
 8. `account_closed` comes before `wrong_meter` for an account that is there, also for a meter that it no longer has
    [none]. `closed_at` there is that of the version *taken*, and the `effective_at` two rows on that of the first
    version *taken*; a later version with an earlier date does not move it [none].
 9. Ticks stand at whole quarters of an hour, each after the records of its moment [adversary-09, -12]; the first is
    at the first record's own moment if that is a whole quarter [none]. Exactly 15 minutes after the last tick is not
    yet the future [33 cases]; exactly 400 days old at the last tick is not yet too old, and still remembered [none].
10. Estimates: usage, and beyond, are measured from the last measured register, not from the standing estimate
    [adversary-03, -05, -07, -12, all-*, one-estimate]. One that went back to 0 is `register_went_back` [adversary-01,
    -06]; so is a late reading of 0 [none]. An estimate at the time of the held reading is judged on by the rows below
    [none].
11. A measured reading that settles, or an exchange, ends the standing estimate also where it is older than the
    estimate [adversary-01, -07, all-4]. Closing without a register leaves it standing [none].
12. A boundary within a month is only where blocks (compared by their limits and prices) or families differ from those
    just before [adversary-02, -04, -10, -11, -12, all-*]; such a boundary makes a gap like the start of a month does
    [adversary-04, -05, -08, -12, all-*], also exactly at the end of the step [adversary-05].
13. *After the late limit* is strictly after: at it, `too_late` [adversary-03, -12]. Where both halves of a recut hold
    a boundary, the late limit is the reading that cut them [none]; where one does, it stays.
14. In a recut a half "holds a boundary" by what is in force by then: a version that took effect at the end of the
    step after it had settled makes the later half a gap; where neither half holds one any more (what changed at the
    end of the step has been taken back since), there is no last gap until the next, and the late limit stays [none].
15. `max_power_w` is that of the last version to be taken, whatever its date [adversary-12].
16. Of versions with the same date the last to arrive is in force [adversary-01, -08, -09, -12]; a later date wins
    over a later taking effect [adversary-09, -10, -11, -12]. A tariff version is moved for each account by itself,
    also for accounts on other tariffs [none]; for an account not started, or that arrives later, it takes effect on
    its date.
17. *Identical to one taken* means any one taken, not only the last [none]; versions are compared with their defaults
    filled in (`language` uz-Latn, `supply_class` normal) [none], exchanges as they are. A tariff version is compared
    with all earlier ones of its `effective_on`, with its `source` [none]. Payments: with `channel` and `reverses`
    [none].
18. `unknown_tariff` asks for the tariff's date, not for when it takes effect for the account [adversary-01].
19. The old register at an exchange, the closing register and `late` readings are measured with the modulus until
    then; the new register of an exchange with the new modulus. The new one is judged before the old one [none].
20. Payments and adjustments have ids apart; `too_late` comes before `duplicate` [adversary-03, -05, -09, -10, -11]; a
    forgotten id can be used again [adversary-03, -05, -09, -11], and is then a payment that was not reversed [none].
    What waited for its account is judged in the order of arrival [none], by the last tick of then, right after the
    version has been taken; the opening balance comes first.
21. A reading newer than the held one with the same register is counted before its power is asked for [none]. Power
    for it, and for the held one having gone back, are as of then: the last measured register may have moved since it
    was held.
22. The blocks in force are those of the list whose hours the moment lies in. So an edge of hours between two lists of the
    same blocks is no boundary, and neither is a version that changes only what holds at other hours [none].
"""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

Record = Mapping[str, Any]
Records = Mapping[str, Sequence[Record]]
Journal = Iterable[tuple[str, Record]]
Blocks = tuple[tuple[int | None, int], ...]

TASHKENT = ZoneInfo("Asia/Tashkent")
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)
MINUTE_US = 60 * 1_000_000
HOUR_US = 60 * MINUTE_US
QUARTER_US = 15 * MINUTE_US
MEMORY_US = 400 * 24 * HOUR_US

# The order of kinds that arrive at the same moment, and the column that is a record's own time.
KINDS = {
    "tariff": "effective_on",
    "policy": "starts_at",
    "account": "effective_at",
    "meter_exchange": "exchanged_at",
    "payment": "paid_at",
    "adjustment": "adjusted_at",
    "order": "ordered_at",
    "reading": "read_at",
    "acknowledgement": "acknowledged_at",
    "receipt": "received_at",
}
KEYS = {
    "reading": ("meter_id", "read_at"),
    "payment": ("payment_id",),
    "adjustment": ("adjustment_id",),
    "meter_exchange": ("account_id", "exchanged_at"),
    "account": ("account_id", "effective_at"),
}
# What an absent column of an account version means.
DEFAULTS: dict[str, Any] = {
    "families": 1,
    "language": "uz-Latn",
    "supply_class": "normal",
    "emergency_credit_tiyin": 0,
    "opening_balance_tiyin": 0,
    "register_modulus_wh": 1_000_000_000,
    "max_power_w": 15_000,
}


# ---- times -----------------------------------------------------------------------------------------------------------
def microseconds(moment: dt.datetime) -> int:
    """UTC µs since 1970."""
    return (moment - EPOCH) // MICROSECOND


def render(at: int) -> str:
    """ISO 8601 in UTC, as in the keys of the expected files."""
    return (EPOCH + at * MICROSECOND).isoformat()


def midnight(day: dt.date) -> int:
    """00:00 Asia/Tashkent of a day."""
    return microseconds(dt.datetime(day.year, day.month, day.day, tzinfo=TASHKENT))


def month_starts(after: int, up_to: int) -> Iterator[int]:
    """Every start of a calendar month in Asia/Tashkent, `after` < b ≤ `up_to`."""
    first = (EPOCH + after * MICROSECOND).astimezone(TASHKENT).date().replace(day=1)
    while (start := midnight(first)) <= up_to:
        if start > after:
            yield start
        first = (first + dt.timedelta(days=31)).replace(day=1)


def holds(hours: str | None, at: int) -> bool:
    """Whether hours of the day, such as 06:00-09:00,22:00-06:00, hold at a moment."""
    if hours is None:
        return True
    now = (EPOCH + at * MICROSECOND).astimezone(TASHKENT).strftime("%H:%M")
    spans = [part.split("-") for part in hours.split(",")]
    return any(first <= now < end if first < end else now >= first or now < end for first, end in spans)


def edges(hours: str, after: int, up_to: int) -> Iterator[int]:
    """Every moment at which these hours begin or end, `after` < b ≤ `up_to`."""
    day = (EPOCH + after * MICROSECOND).astimezone(TASHKENT).date()
    minutes = [int(clock[:2]) * 60 + int(clock[3:]) for clock in hours.replace(",", "-").split("-")]
    while (start := midnight(day)) <= up_to:
        yield from (b for m in minutes if after < (b := start + m * MINUTE_US) <= up_to)
        day += dt.timedelta(days=1)


# ---- money -----------------------------------------------------------------------------------------------------------
def cost_tiyin(wh: int, blocks: Blocks, families: int) -> int:
    """The exact cumulative cost of a month's Wh: one floor, at the end."""
    total, lower = 0, 0
    for upto_kwh, price in blocks:
        upper = wh if upto_kwh is None else min(wh, upto_kwh * 1000 * families)
        total += max(upper - lower, 0) * price
        lower = max(lower, upper)
    return total // 1000


def usage_wh(before: int, after: int, modulus: int) -> int | None:
    """Usage between two registers of one meter; None where the register went back."""
    if after >= before:
        return after - before
    if before >= modulus - modulus // 10 and after < modulus // 10:
        return after + modulus - before
    return None


def is_beyond(usage: int, power_w: int, elapsed_us: int) -> bool:
    """Whether the usage needs more than this power for all of the time."""
    return usage * HOUR_US > power_w * elapsed_us


# ---- the state of an account -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TariffVersion:
    """Price lists and the date of their own: (hours or None, blocks), blocks as (limit in kWh or None for the last, tiyin
    per kWh).
    """

    tariff: str
    dated: int
    lists: tuple[tuple[str | None, Blocks], ...]
    source: Any = None


@dataclass(frozen=True)
class AccountVersion:
    """A taken version: the date of its own, and from when it takes effect here."""

    record: Record
    dated: int
    in_effect: int
    tariff: str
    families: int


@dataclass(frozen=True)
class Point:
    """A register at a moment: as the meter showed it, and in Wh since the account's start."""

    at: int
    register: int
    total: int


@dataclass(frozen=True)
class Step:
    """What lies between two measured registers that follow each other."""

    start: Point
    end: Point


@dataclass
class Account:
    """An account that has been taken, with all its settled steps.

    `start` is where it began, `last` the last measured register, `month_total` the register at the start of the month
    that `last` lies in. `tariff_in_effect` holds the tariff versions that take effect here later than on their date.
    """

    account_id: str
    first_effective_at: int
    meter_id: str
    modulus: int
    max_power_w: int = 0
    versions: list[AccountVersion] = field(default_factory=list)
    tariff_in_effect: dict[TariffVersion, int] = field(default_factory=dict)
    exchanges: list[Record] = field(default_factory=list)
    closed_at: int | None = None
    start: Point | None = None
    last: Point | None = None
    steps: list[Step] = field(default_factory=list)
    last_gap: Step | None = None
    late_limit: int = 0
    estimate: Point | None = None
    held: Record | None = None
    credited_tiyin: int = 0
    charged_tiyin: int = 0
    month_total: int = 0
    estimate_tiyin: int = 0
    payments: dict[str, Record] = field(default_factory=dict)
    adjustments: dict[str, Record] = field(default_factory=dict)
    reversed_ids: set[str] = field(default_factory=set)

    @property
    def balance_tiyin(self) -> int:
        return self.credited_tiyin - self.charged_tiyin - self.estimate_tiyin

    @property
    def usage_wh(self) -> int:
        end = self.estimate or self.last
        return end.total if end else 0

    def known_registers(self) -> dict[int, int]:
        """When and what: the last measured register and both ends of the last gap (the held one aside)."""
        gap = [self.last_gap.start, self.last_gap.end] if self.last_gap else []
        return {p.at: p.register for p in [*gap, self.last]}

    def add_gap(self, step: Step) -> None:
        if self.last_gap is not None:
            self.late_limit = self.last_gap.end.at
        self.last_gap = step

    def forget_gaps(self, at: int) -> None:
        self.last_gap, self.late_limit = None, at


def same_content(one: Record, other: Record) -> bool:
    """Identical, `received_at` aside."""

    def content(record: Record) -> dict[str, Any]:
        return {c: v for c, v in record.items() if c != "received_at" and v is not None}

    return content(one) == content(other)


# ---- whose a meter is ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Claim:
    """An account says that a meter is its own, from a moment on."""

    account_id: str
    since: int


@dataclass
class Directory:
    """Whose meter it is. A view of the records as they arrive, before anyone judges them."""

    claims: dict[str, list[Claim]] = field(default_factory=dict)
    has: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def hear_account(self, record: Record) -> bool:
        """Whether this is the first claim on its meter."""
        account_id = record["account_id"]
        is_first = account_id not in self.seen
        self.seen.add(account_id)
        first_claim = self.claim(account_id, record["meter_id"], record["effective_at"], always=is_first)
        if record.get("closed_at") is not None:
            self.has.pop(account_id, None)
        return first_claim

    def hear_exchange(self, record: Record) -> bool:
        """Whether this is the first claim on its new meter."""
        if record["account_id"] not in self.seen:
            return False
        return self.claim(record["account_id"], record["new_meter_id"], record["exchanged_at"], always=False)

    def claim(self, account_id: str, meter_id: str, since: int, *, always: bool) -> bool:
        another_has_it = any(m == meter_id and a != account_id for a, m in self.has.items())
        if another_has_it and not always:
            return False
        first_claim = meter_id not in self.claims
        self.claims.setdefault(meter_id, []).append(Claim(account_id, since))
        self.has[account_id] = meter_id
        return first_claim

    def find(self, meter_id: str, at: int) -> str | None:
        """The account of the claim with the latest date up to `at`; of the same date, the last to arrive."""
        latest = None
        for claim in self.claims[meter_id]:
            if claim.since <= at and (latest is None or claim.since >= latest.since):
                latest = claim
        return latest.account_id if latest else None


# ---- the outcome -----------------------------------------------------------------------------------------------------
class Entry(NamedTuple):
    """All that one record did to one balance: its place in the journal (ticks count), the sum, the balance after it."""

    index: int
    amount_tiyin: int
    balance_tiyin: int


@dataclass
class Outcome:
    """What the records end in.

    `refused` and `held` hold (kind, key, reason) as in the expected files; `ledger` holds, for each account, one entry
    for each record that changed its balance. Counted, an arrival each: `taken` (it settled, started the account, stood
    as an estimate, was credited, took effect), `ignored` ("ignored and counted"), `unchanged` ("accepted, changes
    nothing"). So every arrival ends in exactly one of taken, ignored, unchanged, refused and held.
    """

    balances: dict[str, int] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    held: list[tuple[str, str, str]] = field(default_factory=list)
    taken: int = 0
    ignored: int = 0
    unchanged: int = 0
    ledger: dict[str, list[Entry]] = field(default_factory=dict)

    def balances_after(self, index: int) -> dict[str, int]:
        """The balances after the record with this place in the journal, of the accounts with an entry by then."""
        entries = {a: [e for e in es if e.index <= index] for a, es in self.ledger.items()}
        return {a: es[-1].balance_tiyin for a, es in entries.items() if es}


def key_of(kind: str, record: Record) -> str:
    """How the expected files name a record."""
    return "|".join(render(v) if isinstance(v := record[c], int) else v for c in KEYS[kind])


class Oracle:
    """Takes records in the order of the journal, one after the other."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.tariffs: list[TariffVersion] = []
        self.directory = Directory()
        self.last_tick: int | None = None
        self.waiting_readings: list[Record] = []
        self.waiting_credits: list[tuple[str, Record]] = []
        self.outcome = Outcome()

    def take(self, kind: str, record: Record) -> None:
        """One record of the journal, to its end."""
        if kind == "tick":
            self.last_tick = record["ticked_at"]
        elif kind == "tariff":
            self.take_tariff(record)
        elif kind == "account":
            first_claim = self.directory.hear_account(record)
            self.judge_version(record)
            if first_claim:
                self.release_readings(record["meter_id"])
        elif kind == "meter_exchange":
            first_claim = self.directory.hear_exchange(record)
            self.judge_exchange(record)
            if first_claim:
                self.release_readings(record["new_meter_id"])
        elif kind == "reading":
            self.judge_reading(record)
        elif kind in {"payment", "adjustment"}:
            self.judge_credit(kind, record)

    def note_entries(self, index: int) -> None:
        """Write down what the record at this place did to each balance."""
        for account in self.accounts.values():
            entries = self.outcome.ledger.setdefault(account.account_id, [])
            before = entries[-1].balance_tiyin if entries else 0
            if account.balance_tiyin != before:
                entries.append(Entry(index, account.balance_tiyin - before, account.balance_tiyin))

    def outcome_now(self) -> Outcome:
        """The outcome, if no more records come."""
        out = replace(self.outcome, balances={}, usage={}, held=[])
        for account in self.accounts.values():
            out.balances[account.account_id] = account.balance_tiyin
            out.usage[account.account_id] = account.usage_wh
            if account.held is not None:
                out.held.append(("reading", key_of("reading", account.held), "implausible_usage"))
        out.held += [("reading", key_of("reading", r), "unknown_meter") for r in self.waiting_readings]
        out.held += [(kind, key_of(kind, r), "unknown_account") for kind, r in self.waiting_credits]
        return out

    def refuse(self, kind: str, record: Record, reason: str) -> None:
        self.outcome.refused.append((kind, key_of(kind, record), reason))

    def is_future(self, at: int) -> bool:
        return self.last_tick is not None and at > self.last_tick + QUARTER_US

    # -- tariffs, and what is in force
    def take_tariff(self, record: Record) -> None:
        dated = midnight(record["effective_on"])
        lists = record.get("lists") or ((None, record["blocks"]),)
        version = TariffVersion(record["tariff"], dated, lists, record.get("source"))
        if version in self.tariffs:
            self.outcome.ignored += 1
            return
        self.outcome.taken += 1
        self.tariffs.append(version)
        for account in self.accounts.values():
            if account.last is not None and account.last.at > dated:
                account.tariff_in_effect[version] = account.last.at
            self.price_estimate(account)

    def in_force(self, account: Account, at: int) -> tuple[Blocks, int]:
        """The blocks and the families that price an account's Wh at a moment."""
        of_account = latest_dated(v for v in account.versions if v.in_effect <= at)
        of_tariff = latest_dated(
            t for t in self.tariffs if t.tariff == of_account.tariff and account.tariff_in_effect.get(t, t.dated) <= at
        )
        (blocks,) = [blocks for hours, blocks in of_tariff.lists if holds(hours, at)]
        return blocks, of_account.families

    def boundaries(self, account: Account, after: int, up_to: int) -> list[int]:
        """Starts of months, and moments at which the blocks or the families in force change, also by the hour of the day;
        `after` < b ≤ `up_to`.
        """
        moments = {v.in_effect for v in account.versions}
        moments |= {account.tariff_in_effect.get(t, t.dated) for t in self.tariffs}
        used = {v.tariff for v in account.versions}
        hours = {h for t in self.tariffs if t.tariff in used for h, _ in t.lists if h is not None}
        moments |= {b for h in hours for b in edges(h, after, up_to)}
        changes = {
            b for b in moments if after < b <= up_to and self.in_force(account, b - 1) != self.in_force(account, b)
        }
        return sorted(changes | set(month_starts(after, up_to)))

    # -- charging
    def price_step(self, account: Account, step: Step, month_total: int) -> tuple[int, int]:
        """What a step charges, and the register at the start of the month that its end lies in."""
        usage, elapsed = step.end.total - step.start.total, step.end.at - step.start.at
        months = set(month_starts(step.start.at, step.end.at))
        charged, at, total = 0, step.start.at, step.start.total
        for boundary in self.boundaries(account, step.start.at, step.end.at):
            there = step.start.total + usage * (boundary - step.start.at) // elapsed
            charged += self.price_piece(account, at, total - month_total, there - month_total)
            at, total = boundary, there
            if boundary in months:
                month_total = there
        charged += self.price_piece(account, at, total - month_total, step.end.total - month_total)
        return charged, month_total

    def price_piece(self, account: Account, at: int, from_wh: int, to_wh: int) -> int:
        """A piece that starts at `at`, from and to so many Wh of its month."""
        blocks, families = self.in_force(account, at)
        return cost_tiyin(to_wh, blocks, families) - cost_tiyin(from_wh, blocks, families)

    def price_settled(self, account: Account) -> None:
        """The settled steps, all of them anew: their sum, from the account's start."""
        account.charged_tiyin, account.month_total = 0, 0
        for step in account.steps:
            charged, account.month_total = self.price_step(account, step, account.month_total)
            account.charged_tiyin += charged
        self.price_estimate(account)

    def price_estimate(self, account: Account) -> None:
        """The step from the last measured register to the standing estimate, as of now."""
        account.estimate_tiyin = 0
        if account.estimate is not None:
            step = Step(account.last, account.estimate)
            account.estimate_tiyin, _ = self.price_step(account, step, account.month_total)

    @staticmethod
    def start(account: Account, at: int, register: int) -> None:
        """The account counts from here; this charges nothing."""
        account.start = account.last = Point(at, register, 0)
        account.forget_gaps(at)

    def settle(self, account: Account, at: int, register: int) -> None:
        """A measured register onto the end; it ends the standing estimate."""
        before = account.last
        end = Point(at, register, before.total + usage_wh(before.register, register, account.modulus))
        step = Step(before, end)
        account.steps.append(step)
        if self.boundaries(account, before.at, at):
            account.add_gap(step)
        charged, account.month_total = self.price_step(account, step, account.month_total)
        account.charged_tiyin += charged
        account.last = end
        account.estimate, account.estimate_tiyin = None, 0

    # -- readings
    def release_readings(self, meter_id: str) -> None:
        """The meter's first claim has arrived: judge what waited for it, in the order of read_at."""
        waiting = [r for r in self.waiting_readings if r["meter_id"] == meter_id]
        self.waiting_readings = [r for r in self.waiting_readings if r["meter_id"] != meter_id]
        for reading in sorted(waiting, key=lambda r: r["read_at"]):
            self.judge_reading(reading)

    def judge_reading(self, reading: Record) -> None:
        meter_id, at, register = reading["meter_id"], reading["read_at"], reading["register_wh"]
        if meter_id not in self.directory.claims:
            self.waiting_readings.append(reading)
            return
        account_id = self.directory.find(meter_id, at)
        account = self.accounts.get(account_id) if account_id else None
        estimated = reading.get("status") == "estimated"
        if account_id is None:
            self.refuse("reading", reading, "not_yet_installed")
        elif account is not None and account.closed_at is not None and at >= account.closed_at:
            self.refuse("reading", reading, "account_closed")
        elif account is None or account.meter_id != meter_id:
            self.refuse("reading", reading, "wrong_meter")
        elif reason := self.refusal_of_register(account, at, register):
            self.refuse("reading", reading, reason)
        elif account.last is None and estimated:
            self.refuse("reading", reading, "late_estimate")
        elif account.last is None:
            self.outcome.taken += 1
            self.start(account, at, register)
        elif estimated:
            self.judge_estimate(account, reading)
        else:
            self.judge_measured(account, reading)

    def refusal_of_register(self, account: Account, at: int, register: int) -> str | None:
        """What any register is refused for, a meter's own or one read by a person."""
        if not 0 <= register < account.modulus:
            return "register_out_of_range"
        if at < account.first_effective_at or (account.start is not None and at < account.start.at):
            return "not_yet_installed"
        if self.is_future(at):
            return "from_the_future"
        return None

    def judge_estimate(self, account: Account, reading: Record) -> None:
        """The rows of the table for an estimated reading, of an account that has started."""
        at, register = reading["read_at"], reading["register_wh"]
        last, standing = account.last, account.estimate
        usage = usage_wh(last.register, register, account.modulus)
        if at in account.known_registers():
            self.refuse("reading", reading, "late_estimate")
        elif standing is not None and at == standing.at and register == standing.register:
            self.outcome.ignored += 1
        elif standing is not None and at == standing.at:
            self.refuse("reading", reading, "duplicate")
        elif at < last.at or (standing is not None and at < standing.at):
            self.refuse("reading", reading, "late_estimate")
        elif usage is None:
            self.refuse("reading", reading, "register_went_back")
        elif is_beyond(usage, account.max_power_w, at - last.at):
            self.refuse("reading", reading, "implausible_usage")
        else:
            self.outcome.taken += 1
            account.estimate = Point(at, register, last.total + usage)
            self.price_estimate(account)

    def judge_measured(self, account: Account, reading: Record) -> None:
        """The rows of the table for a measured reading, of an account that has started."""
        at, register = reading["read_at"], reading["register_wh"]
        last, gap, held = account.last, account.last_gap, account.held
        known = account.known_registers()
        if held is not None:
            known[held["read_at"]] = held["register_wh"]
        if at in known and register == known[at]:
            self.outcome.ignored += 1
        elif at in known:
            self.refuse("reading", reading, "duplicate")
        elif at < last.at and gap is not None and gap.start.at < at < gap.end.at:
            self.judge_late(account, reading)
        elif at < last.at and at > account.late_limit:
            self.outcome.unchanged += 1
        elif at < last.at:
            self.refuse("reading", reading, "too_late")
        elif usage_wh(last.register, register, account.modulus) is None:
            self.refuse("reading", reading, "register_went_back" if register else "zero_register")
        elif held is not None and at > held["read_at"]:
            self.judge_after_held(account, reading)
        else:
            self.judge_newest(account, reading)

    def judge_after_held(self, account: Account, reading: Record) -> None:
        """Newer than the held one: it confirms the held one, or does away with it, or is as stuck as that."""
        held = account.held
        at, register = reading["read_at"], reading["register_wh"]
        held_usage = usage_wh(account.last.register, held["register_wh"], account.modulus)
        usage = usage_wh(held["register_wh"], register, account.modulus)
        plausible = usage is not None and not is_beyond(usage, 4 * account.max_power_w, at - held["read_at"])
        if usage == 0:
            self.outcome.ignored += 1
        elif plausible and held_usage is not None:
            self.outcome.taken += 2
            account.held = None
            self.settle(account, held["read_at"], held["register_wh"])
            self.settle(account, at, register)
        else:
            self.refuse_held(account)
            self.judge_newest(account, reading)

    def judge_newest(self, account: Account, reading: Record) -> None:
        """The last rows of the table: it settles onto the end, or is beyond what the account can draw."""
        at, register = reading["read_at"], reading["register_wh"]
        usage = usage_wh(account.last.register, register, account.modulus)
        if not is_beyond(usage, account.max_power_w, at - account.last.at):
            self.outcome.taken += 1
            self.settle(account, at, register)
        elif account.held is not None:
            self.refuse("reading", reading, "implausible_usage")
        else:
            account.held = reading

    def refuse_held(self, account: Account) -> None:
        if account.held is not None:
            self.refuse("reading", account.held, "implausible_usage")
            account.held = None

    def judge_late(self, account: Account, reading: Record) -> None:
        """Inside the last gap: the step is cut anew in two."""
        at, register = reading["read_at"], reading["register_wh"]
        gap, power_w = account.last_gap, 4 * account.max_power_w
        usage = (register - gap.start.register) % account.modulus
        rest = gap.end.total - gap.start.total - usage
        if rest < 0:
            self.refuse("reading", reading, "register_went_back")
        elif is_beyond(usage, power_w, at - gap.start.at) or is_beyond(rest, power_w, gap.end.at - at):
            self.refuse("reading", reading, "implausible_usage")
        else:
            self.outcome.taken += 1
            middle = Point(at, register, gap.start.total + usage)
            halves = [Step(gap.start, middle), Step(middle, gap.end)]
            where = account.steps.index(gap)
            account.steps[where : where + 1] = halves
            account.last_gap = None
            for half in halves:
                if self.boundaries(account, half.start.at, half.end.at):
                    account.add_gap(half)
            self.price_settled(account)

    # -- registers read by a person
    def refusal_of_person(self, account: Account, at: int, register: int) -> str | None:
        """What the old register at an exchange, or the closing one, is refused for."""
        if reason := self.refusal_of_register(account, at, register):
            return reason
        if account.last is None:
            return None
        if at < account.last.at:
            return "too_late"
        if at == account.last.at and register != account.last.register:
            return "duplicate"
        if usage_wh(account.last.register, register, account.modulus) is None:
            return "register_went_back" if register else "zero_register"
        return None

    def settle_person(self, account: Account, at: int, register: int) -> None:
        """Taken: it starts the account or settles onto its end, and no reading is held any more."""
        if account.last is None:
            self.start(account, at, register)
        else:
            self.settle(account, at, register)
        self.refuse_held(account)

    def judge_exchange(self, record: Record) -> None:
        account = self.accounts.get(record["account_id"])
        if account is None:
            self.refuse("meter_exchange", record, "unknown_account")
            return
        at, old, new = record["exchanged_at"], record["old_register_wh"], record["new_register_wh"]
        modulus = record.get("register_modulus_wh")
        modulus = account.modulus if modulus is None else modulus
        if any(same_content(record, taken) for taken in account.exchanges):
            self.outcome.ignored += 1
        elif account.closed_at is not None:
            self.refuse("meter_exchange", record, "account_closed")
        elif record["old_meter_id"] != account.meter_id:
            self.refuse("meter_exchange", record, "wrong_meter")
        elif not 0 <= new < modulus:
            self.refuse("meter_exchange", record, "register_out_of_range")
        elif reason := self.refusal_of_person(account, at, old):
            self.refuse("meter_exchange", record, reason)
        else:
            self.outcome.taken += 1
            self.settle_person(account, at, old)
            account.exchanges.append(record)
            account.meter_id, account.modulus = record["new_meter_id"], modulus
            account.last = replace(account.last, register=new)
            account.forget_gaps(at)

    # -- account versions
    def judge_version(self, record: Record) -> None:
        account = self.accounts.get(record["account_id"])
        is_first = account is None
        record = whole(record)
        opening, closed_at = record.get("opening_register_wh"), record.get("closed_at")
        if account is None:
            account = Account(
                record["account_id"], record["effective_at"], record["meter_id"], record["register_modulus_wh"]
            )
        if any(same_content(record, v.record) for v in account.versions):
            self.outcome.ignored += 1
        elif account.closed_at is not None:
            self.refuse("account", record, "account_closed")
        elif record["meter_id"] != account.meter_id:
            self.refuse("account", record, "use_meter_exchange")
        elif not any(t.tariff == record["tariff"] and t.dated <= record["effective_at"] for t in self.tariffs):
            self.refuse("account", record, "unknown_tariff")
        elif is_first and opening is not None and not 0 <= opening < account.modulus:
            self.refuse("account", record, "register_out_of_range")
        elif closed_at is not None and self.is_future(closed_at):
            self.refuse("account", record, "from_the_future")
        else:
            if is_first and opening is not None:
                self.start(account, record["effective_at"], opening)
            if reason := self.refusal_of_closing(account, record):
                self.refuse("account", record, reason)
            else:
                self.take_version(account, record)

    def refusal_of_closing(self, account: Account, record: Record) -> str | None:
        closed_at, closing = record.get("closed_at"), record.get("closing_register_wh")
        if closed_at is None or closing is None:
            return None
        return self.refusal_of_person(account, closed_at, closing)

    def take_version(self, account: Account, record: Record) -> None:
        """It takes effect, then the closing register settles, then the account is closed."""
        self.outcome.taken += 1
        dated, closed_at, closing = record["effective_at"], record.get("closed_at"), record.get("closing_register_wh")
        in_effect = dated if account.last is None else max(dated, account.last.at)
        account.versions.append(AccountVersion(record, dated, in_effect, record["tariff"], record["families"]))
        account.max_power_w = record["max_power_w"]
        self.price_estimate(account)
        if closed_at is not None:
            if closing is not None:
                self.settle_person(account, closed_at, closing)
            self.refuse_held(account)
            account.closed_at = closed_at
        if account.account_id not in self.accounts:
            self.accounts[account.account_id] = account
            account.credited_tiyin = record["opening_balance_tiyin"]
            self.release_credits(account.account_id)

    # -- payments and adjustments
    def release_credits(self, account_id: str) -> None:
        """The account is known now: judge what waited for it, in the order of arrival."""
        waiting = [w for w in self.waiting_credits if w[1]["account_id"] == account_id]
        self.waiting_credits = [w for w in self.waiting_credits if w[1]["account_id"] != account_id]
        for kind, record in waiting:
            self.judge_credit(kind, record)

    def is_old(self, at: int) -> bool:
        """Longer ago than payments are remembered."""
        return self.last_tick is not None and self.last_tick - at > MEMORY_US

    def judge_credit(self, kind: str, record: Record) -> None:
        account = self.accounts.get(record["account_id"])
        if account is None:
            self.waiting_credits.append((kind, record))
            return
        own_time, record_id, reverses = record[KINDS[kind]], record[f"{kind}_id"], record.get("reverses")
        credited = account.payments if kind == "payment" else account.adjustments
        remembered = {i: r for i, r in credited.items() if not self.is_old(r[KINDS[kind]])}
        if self.is_old(own_time):
            self.refuse(kind, record, "too_late")
        elif record_id in remembered and same_content(record, remembered[record_id]):
            self.outcome.ignored += 1
        elif record_id in remembered:
            self.refuse(kind, record, "duplicate")
        elif reverses is not None and not is_reversal_of(record, remembered.get(reverses)):
            self.refuse(kind, record, "unknown_payment")
        elif reverses is not None and reverses in account.reversed_ids:
            self.refuse(kind, record, "already_reversed")
        else:
            self.outcome.taken += 1
            credited[record_id] = record
            if kind == "payment":
                account.reversed_ids.discard(record_id)  # an id used again, after its first payment was forgotten
            if reverses is not None:
                account.reversed_ids.add(reverses)
            account.credited_tiyin += record["amount_tiyin"] if reverses is None else -record["amount_tiyin"]


def is_reversal_of(record: Record, payment: Record | None) -> bool:
    """Whether the payment it names is remembered, has the same amount, and is not a reversal itself."""
    if payment is None or payment.get("reverses") is not None:
        return False
    return payment["amount_tiyin"] == record["amount_tiyin"]


def whole(version: Record) -> dict[str, Any]:
    """An account version with its defaults in the place of what is absent."""
    return dict(version) | {c: v for c, v in DEFAULTS.items() if version.get(c) is None}


Dated = TypeVar("Dated", TariffVersion, AccountVersion)


def latest_dated(versions: Iterable[Dated]) -> Dated:
    """The one with the latest date of its own; of the same date, the last to arrive."""
    latest = None
    for version in versions:
        if latest is None or version.dated >= latest.dated:
            latest = version
    assert latest is not None, "a taken version always has a tariff"
    return latest


# ---- the order of the journal ----------------------------------------------------------------------------------------
def gather_tariffs(rows: Iterable[Record]) -> list[dict[str, Any]]:
    """Tariff versions, each where its first row is: the rows of one tariff, effective_on and received_at."""
    versions: dict[tuple[Any, ...], list[Record]] = {}
    for row in rows:
        versions.setdefault((row["tariff"], row["effective_on"], row.get("received_at")), []).append(row)
    gathered = []
    for (tariff, effective_on, received_at), its_rows in versions.items():
        its_rows.sort(key=lambda r: (r.get("hours") or "", r["block_upto_kwh"] is None, r["block_upto_kwh"]))
        gathered.append(
            {
                "tariff": tariff,
                "effective_on": effective_on,
                "received_at": received_at,
                "source": tuple(r.get("source") for r in its_rows),
            }
            | blocks_of(its_rows)
        )
    return gathered


def blocks_of(rows: Sequence[Record]) -> dict[str, Any]:
    """The rows of a version: `blocks`, or, where some of them name hours, the `lists` of blocks for each of those."""
    lists: dict[str | None, Blocks] = {}
    for row in rows:
        block = (row["block_upto_kwh"], row["price_tiyin_per_kwh"])
        lists[row.get("hours")] = (*lists.get(row.get("hours"), ()), block)
    return {"blocks": lists[None]} if lists.keys() == {None} else {"lists": tuple(lists.items())}


def arrival(kind: str, record: Record) -> int:
    """By `received_at` where given, else by the record's own time."""
    if record.get("received_at") is not None:
        return record["received_at"]
    own = record[KINDS[kind]]
    return midnight(own) if kind == "tariff" else own


def order_records(records: Records) -> list[tuple[int, str, Record]]:
    """(moment of arrival, kind, record) of all files merged: by moment, by kind, as in the file."""
    merged = []
    for kind in KINDS:
        rows = records.get(kind, ())
        merged += [(arrival(kind, r), kind, r) for r in (gather_tariffs(rows) if kind == "tariff" else rows)]
    return sorted(merged, key=lambda m: m[0])


def with_ticks(merged: Sequence[tuple[int, str, Record]]) -> Iterator[tuple[str, Record]]:
    """Ticks at each quarter of an hour up to the last record, each after the records of its moment."""
    tick = None
    for at, kind, record in merged:
        while tick is not None and tick < at:
            yield "tick", {"ticked_at": tick}
            tick += QUARTER_US
        if tick is None and kind not in {"tariff", "policy"}:
            tick = -(-at // QUARTER_US) * QUARTER_US
        yield kind, record
    if merged and tick == merged[-1][0]:
        yield "tick", {"ticked_at": tick}


def run_journal(sequence: Journal) -> Outcome:
    """Records that are in the order of a journal already, ticks among them: ("tick", {"ticked_at": µs}).

    A tariff version is one record here, with its `blocks` or `lists`, as `gather_tariffs` makes it.
    """
    oracle = Oracle()
    for index, (kind, record) in enumerate(sequence):
        oracle.take(kind, record)
        if kind != "tick":
            oracle.note_entries(index)
    return oracle.outcome_now()


def journal_of(records: Records, *, opening_tariffs: Iterable[Record] = ()) -> list[tuple[str, Record]]:
    """The journal that files make: kind -> rows in file order; the opening tariffs (rows too) stand before all."""
    opening = [("tariff", t) for t in gather_tariffs(opening_tariffs)]
    return [*opening, *with_ticks(order_records(records))]


def run(records: Records, *, opening_tariffs: Iterable[Record] = ()) -> Outcome:
    """Order, ticks, and the bill."""
    return run_journal(journal_of(records, opening_tariffs=opening_tariffs))


# ---- CSV -------------------------------------------------------------------------------------------------------------
INTEGERS = {
    "families",
    "emergency_credit_tiyin",
    "opening_balance_tiyin",
    "opening_register_wh",
    "register_modulus_wh",
    "max_power_w",
    "closing_register_wh",
    "register_wh",
    "old_register_wh",
    "new_register_wh",
    "amount_tiyin",
    "block_upto_kwh",
    "price_tiyin_per_kwh",
}


def read_value(column: str, text: str) -> Any:
    """A field of a CSV file, typed by its column."""
    if not text:
        return None
    if column == "effective_on":
        return dt.date.fromisoformat(text)
    if column.endswith("_at"):
        return microseconds(dt.datetime.fromisoformat(text))
    return int(text) if column in INTEGERS else text


def load_case(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of a folder of CSV files, kind -> rows in file order."""
    records: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        path = folder / f"{kind}.csv"
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                records[kind] = [{c: read_value(c, t) for c, t in row.items()} for row in csv.DictReader(file)]
    return records
