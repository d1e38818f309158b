"""Account versions, meter exchanges and tariff versions. "An account version", "An exchange" in the bill's rules."""

from __future__ import annotations

from sys import intern
from typing import TYPE_CHECKING

import numpy as np

from accounting.bill import (
    FROM_THE_FUTURE,
    REGISTER_OUT_OF_RANGE,
    TAKEN,
    judge_read_by_person,
    refuse_held,
    reprice_estimate,
    set_next_change,
    settle_read_by_person,
    start_account,
)
from accounting.calendar import QUARTER_US, day_start
from accounting.compiled import compiled
from accounting.decisions import review, review_after_credit, set_supply
from accounting.ledger import NO_BASIS, OPENING, post
from accounting.partition import Partition, Record, digest, reason_text
from accounting.payments import apply_waiting, is_credit
from accounting.policies import Place
from accounting.records import RECORDS, SUPPLY_STATES
from accounting.state import ABSENT, ARRIVED, CONNECTED, NONE, STARTED, UNKNOWN, Account, Accounts, new_accounts
from accounting.tariffs import ALWAYS, AccountVersion, History, TariffVersion, most_pieces, price_at, segment_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accounting.tariffs import Book

MOST_POWER_W = 2**60
_DEFAULTS = {
    kind: {c.name: c.default for c in RECORDS[kind] if c.default is not None} for kind in ("account", "meter_exchange")
}


def whole(kind: str, record: Record) -> Record:
    """The record with each absent column at its default: a version is whole."""
    return {name: _DEFAULTS[kind].get(name) if value is None else value for name, value in record.items()}


# account versions


def apply_account(p: Partition, given: Record) -> None:
    """Take an account version: it takes effect, then its closing settles; or it is refused whole."""
    record = whole("account", given)
    i = p.find(record["account_id"])
    mark = digest("account", record)
    if i and (_signed(mark) == p.accounts[i].version_digest or mark in p.taken.get(i, ())):
        p.ignore("account")
        return
    reason = judge_version(p, i, record)
    if reason is not None:
        p.refuse("account", given, reason)
        return
    if i == 0:
        i = open_account(p, record)
        p.accounts[i].version_digest = _signed(mark)
        change_account(p, i, record)
        begin_account(p, i, record)
    else:
        p.taken.setdefault(i, set()).add(mark)
        change_account(p, i, record)
        change_prices(p, i, record)
    if record["closed_at"] is not None:
        close_account(p, i, record)
    now = p.moment_of("account", record)
    if _release_waiting(p, i):
        review_after_credit(p, i, now)
    else:
        review(p, i, now)


def judge_version(p: Partition, i: int, record: Record) -> str | None:
    """Why a version is refused, the first reason that applies; None if it is taken."""
    s = p.accounts[i]
    if s.closing:
        return "account_closed"
    if i and p.meters.get(record["meter_id"], -1) != s.meter:
        return "use_meter_exchange"
    if not p.book.knows(record["tariff"], record["effective_at"]):
        return "unknown_tariff"
    opening = record["opening_register_wh"]
    if i == 0 and opening is not None and not 0 <= opening < record["register_modulus_wh"]:
        return reason_text(REGISTER_OUT_OF_RANGE)
    closed_at, closing = record["closed_at"], record["closing_register_wh"]
    if closed_at is None:
        return None
    if p.last_tick != NONE and closed_at > p.last_tick + QUARTER_US:
        return reason_text(FROM_THE_FUTURE)
    if closing is None:
        return None
    reason = judge_read_by_person(s if i else _as_it_would_open(record), closed_at, closing, p.last_tick)
    return None if reason == TAKEN else reason_text(reason)


def _as_it_would_open(record: Record) -> Account:
    """The row a first version would make, for its closing register to be judged by."""
    s, opening = new_accounts(1)[0], record["opening_register_wh"]
    s.phase = ARRIVED if opening is None else STARTED
    s.effective_at, s.modulus_wh = record["effective_at"], record["register_modulus_wh"]
    if opening is not None:
        s.start_at = s.last_at = record["effective_at"]
        s.last_wh = opening
    return s


def open_account(p: Partition, record: Record) -> int:
    """The row of a first version: what only the first one says."""
    i = p.add_account(record["account_id"])
    s = p.accounts[i]
    s.phase = ARRIVED
    s.effective_at = record["effective_at"]
    s.modulus_wh = record["register_modulus_wh"]
    s.meter = p.meter_code(record["meter_id"])
    s.episode = 1
    history = History((AccountVersion(ALWAYS, ALWAYS, record["tariff"], record["families"]),))
    s.schedule = p.book.schedule(history)
    return i


def begin_account(p: Partition, i: int, record: Record) -> None:
    """The opening balance, and the opening register if there is one."""
    s, opening = p.accounts[i], record["opening_register_wh"]
    s.balance_tiyin = amount = record["opening_balance_tiyin"]
    at = record["effective_at"]
    post(p.ledger, i, OPENING, NO_BASIS, -1, NONE, at, NONE, NONE if opening is None else opening, 0, amount, amount)
    if opening is not None:
        start_account(s, p.book.arrays(), at, opening)
    p.wake_at[i] = NONE
    p.emit("supply_state", p.ids[i], at, SUPPLY_STATES[CONNECTED], "opening")


def change_account(p: Partition, i: int, record: Record) -> None:
    """What every version says: tariff and families from its moment, the rest from its arrival."""
    s = p.accounts[i]
    s.max_power_w = min(record["max_power_w"], MOST_POWER_W)
    s.emergency_credit_tiyin = record["emergency_credit_tiyin"]
    s.protected = record["supply_class"] == "protected"
    if (p.phones[i], p.languages[i]) != (record["phone"], record["language"]):
        p.take_notices()  # what was decided before goes where it was meant to
        language = record["language"]
        p.phones[i], p.languages[i] = record["phone"], language and intern(language)  # one text for a million accounts
    s.reachable = record["phone"] is not None
    named = any(policy.scope == f"account:{p.ids[i]}" for policy in p.policies.values())
    s.place = p.place_code(Place(record["district"], record["feeder"], p.ids[i] if named else None))


def change_prices(p: Partition, i: int, record: Record) -> None:
    """A later version's tariff and families,
    from its own moment or, if that is settled already, from the last measured register.
    """
    s = p.accounts[i]
    history = p.book.histories[s.schedule]
    first, own = history.versions[0], record["effective_at"]
    effect_at = max(own, int(s.last_at)) if s.phase == STARTED else own
    versions = (AccountVersion(int(s.effective_at), ALWAYS, first.tariff, first.families), *history.versions[1:])
    added = AccountVersion(own, effect_at, record["tariff"], record["families"])
    adopt_schedule(p, i, p.book.schedule(History((*versions, added), history.late)))


def adopt_schedule(p: Partition, i: int, schedule: int) -> None:
    """Give the account another schedule: what is settled stays, a standing estimate is priced anew."""
    s = p.accounts[i]
    if s.phase != STARTED:
        s.schedule = schedule
        return
    before = int(price_at(p.book.arrays(), s.segment, s.last_at))
    s.schedule = schedule
    book = p.book.arrays()
    s.segment = segment_at(book, schedule, s.last_at)
    set_next_change(s, book)
    _after_adopting(p, i, before)


def _after_adopting(p: Partition, i: int, price_before: int) -> None:
    s, book = p.accounts[i], p.book.arrays()
    if s.gap_to_at != NONE and price_at(book, s.segment, s.last_at) != price_before:
        s.mark = p.add_mark(int(s.mark), price_before, int(s.month_wh))
    if s.estimate_at != NONE:
        p.reserve(64 + 2 * int(most_pieces(book, s.schedule, s.last_at, s.estimate_at)))
        reprice_estimate(s, i, book, p.ledger)


def close_account(p: Partition, i: int, record: Record) -> None:
    """The closing register settles at closed_at, if given; the account is closed."""
    s, closing = p.accounts[i], record["closing_register_wh"]
    if closing is not None:
        _settle_read(p, i, record["closed_at"], closing)
    elif s.held_at != NONE:
        refuse_held(s, i, p.ledger)
    s.closed_at, s.closing = record["closed_at"], 1


def _settle_read(p: Partition, i: int, at: int, register_wh: int) -> None:
    s = p.accounts[i]
    if s.last_at != NONE:
        p.reserve(128 + 4 * int(most_pieces(p.book.arrays(), s.schedule, s.last_at, at)))
    settle_read_by_person(s, i, p.book.arrays(), p.ledger, at, register_wh)


def _release_waiting(p: Partition, i: int) -> bool:
    """Judge what waited for the account, in order of arrival. Whether any of it was credited."""
    credited = False
    for ordinal, n, kind, record in p.waiting.pop(p.ids[i], ()):
        p.reserve(16)
        outcome = apply_waiting(p, i, kind, record)
        credited |= outcome == "settled" and is_credit(record)
        p.emit("released", p.id_text(ordinal, n), None if p.last_tick == NONE else p.last_tick, outcome)
    return credited


# exchanges


def apply_exchange(p: Partition, given: Record) -> None:
    """Take a meter exchange: the old register settles onto the end, and the month goes on from the new one."""
    record = whole("meter_exchange", given)
    i = p.find(record["account_id"])
    s = p.accounts[i]
    mark = "x" + digest("meter_exchange", record)
    if i and mark in p.taken.get(i, ()):
        p.ignore("meter_exchange")
        return
    reason = judge_exchange(p, i, record)
    if reason is not None:
        p.refuse("meter_exchange", given, reason)
        return
    p.taken.setdefault(i, set()).add(mark)
    at = record["exchanged_at"]
    _settle_read(p, i, at, record["old_register_wh"])
    s = p.accounts[i]
    s.last_at, s.last_wh = at, record["new_register_wh"]
    if record["register_modulus_wh"] is not None:
        s.modulus_wh = record["register_modulus_wh"]
    s.gap_from_at = s.gap_to_at = NONE
    s.mark = -1
    s.late_limit_at = at
    now = p.moment_of("meter_exchange", record)
    if record["new_meter_id"] != record["old_meter_id"]:
        _change_meter(p, i, record["new_meter_id"], now)
    p.wake_at[i] = NONE


def judge_exchange(p: Partition, i: int, record: Record) -> str | None:
    """Why an exchange is refused, the first reason that applies; None if it is taken."""
    s = p.accounts[i]
    if s.phase == ABSENT:
        return "unknown_account"
    if s.closing:
        return "account_closed"
    if p.meters.get(record["old_meter_id"], -1) != s.meter:
        return "wrong_meter"
    modulus_wh = record["register_modulus_wh"]
    if not 0 <= record["new_register_wh"] < (s.modulus_wh if modulus_wh is None else modulus_wh):
        return reason_text(REGISTER_OUT_OF_RANGE)
    reason = judge_read_by_person(s, record["exchanged_at"], record["old_register_wh"], p.last_tick)
    return None if reason == TAKEN else reason_text(reason)


def _change_meter(p: Partition, i: int, meter_id: str, now: int) -> None:
    """Commands are counted by meter, and nothing is known of the new meter's switch while the old one's was not plainly on."""
    s = p.accounts[i]
    p.commands[f"{p.ids[i]} {p.meter_name(int(s.meter))}"] = int(s.sequence)
    s.meter = p.meter_code(meter_id)
    s.sequence = p.commands.get(f"{p.ids[i]} {meter_id}", 0)
    if s.supply != CONNECTED:
        set_supply(p, i, UNKNOWN, now, "meter_exchange")


# tariffs


def apply_tariff(p: Partition, record: Record) -> None:
    """One row of a tariff version; with its last row the version arrives."""
    same = [r for r in p.tariff_rows if _version_of(r) == _version_of(record)]
    for stray in p.tariff_rows[: len(p.tariff_rows) - len(same)]:
        if p.unrouted:
            p.refuse("tariff", stray, "incomplete_tariff")
    p.tariff_rows = [*same, record]
    if len(p.tariff_rows) < (record.get("blocks") or 1):
        return
    rows, p.tariff_rows = p.tariff_rows, []
    blocks = tuple((r["block_upto_kwh"], r["price_tiyin_per_kwh"]) for r in rows)
    sources, hours = (tuple(r.get(name) for r in rows) for name in ("source", "hours"))
    has_hours = any(text is not None for text in hours)
    effective_at = int(day_start(record["effective_on"]))
    version = TariffVersion(record["tariff"], effective_at, blocks, sources, hours if has_hours else ())
    before = p.book.arrays()
    histories = p.book.histories
    number = p.book.add(version)
    if number is None:
        if p.unrouted:
            p.ignore("tariff")
        return
    if p.count > 1:
        _adopt_tariff(p, number, version.effective_at, before, histories)
        p.wake_at[1 : p.count] = NONE


def _version_of(row: Record) -> tuple[object, ...]:
    return row["tariff"], row["effective_on"], row.get("received_at")


def _adopt_tariff(p: Partition, number: int, effective_at: int, before: Book, histories: list[History]) -> None:
    """Work out every schedule anew; where the version comes late, it takes effect at the account's last measured register."""
    rows = p.accounts[1 : p.count]
    started = rows["phase"] == STARTED
    effect = np.where(started & (rows["last_at"] > effective_at), rows["last_at"], NONE)
    pairs, code = np.unique(np.stack([rows["schedule"].astype(np.int64), effect], 1), axis=0, return_inverse=True)
    prices = _prices_in_force(p.accounts, p.count, before)[1:]
    p.book.forget_schedules()
    numbers = []
    for schedule, at in pairs.tolist():
        history = histories[schedule]
        late = history.late if at == NONE else (*history.late, (number, at))
        numbers.append(p.book.schedule(History(history.versions, late)))
    rows["schedule"] = np.array(numbers, np.int32)[code.reshape(-1)]
    book = p.book.arrays()
    _place_in_schedules(p.accounts, p.count, book)
    changed = started & (prices != _prices_in_force(p.accounts, p.count, book)[1:]) & (rows["gap_to_at"] != NONE)
    for k in np.flatnonzero(changed | (rows["estimate_at"] != NONE)).tolist():
        _after_adopting(p, k + 1, int(prices[k]))


@compiled
def _prices_in_force(accounts: Accounts, count: int, book: Book) -> NDArray[np.int64]:
    """The price at each account's last measured register; −1 where it has not started."""
    found = np.full(count, -1, np.int64)
    for i in range(1, count):
        s = accounts[i]
        if s.phase == STARTED:
            found[i] = price_at(book, s.segment, s.last_at)
    return found


@compiled
def _place_in_schedules(accounts: Accounts, count: int, book: Book) -> None:
    for i in range(1, count):
        s = accounts[i]
        if s.phase == STARTED:
            s.segment = segment_at(book, s.schedule, s.last_at)
            set_next_change(s, book)


def _signed(mark: str) -> int:
    """A digest as the int64 that the state has room for."""
    return int.from_bytes(bytes.fromhex(mark), "big", signed=True)
