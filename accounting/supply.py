"""Notices and supply decisions: when to warn, when to cut, when to give the light back. DESIGN, "Decisions, to begin with".

The functions here only say what is due; `accounting.partition` makes the events and moves the state. A cut needs
every one of its conditions and is only ever decided at a tick; whatever ends a cut needs one reason and is decided at
once. Money is judged on measured registers alone: what a standing estimate charged is left out, so no estimate can
cut anybody off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.calendar import QUARTER_US, US_PER_DAY, US_PER_HOUR
from accounting.compiled import compiled, loop, row_type, rule, untracked
from accounting.forecast import FIRST_GUESS_US, forecast_depletion, guess_level, sample_usage, set_pace, write_forecast
from accounting.ledger import NO_BASIS, Ledger, hold_ledger, post, take_count
from accounting.records import NOTICE_KINDS
from accounting.state import (
    ABSENT,
    CONNECTED,
    DISCONNECT_PENDING,
    DISCONNECTED,
    FOREVER,
    GATES,
    NONE,
    RECONNECT_PENDING,
    STARTED,
    UNKNOWN,
    Account,
    Accounts,
)
from accounting.tariffs import Book, even_cost, falls_by_the_hour, hold_book, price_range

# What is due, as bits
NOTHING, NOTICE, DISCONNECT, RECONNECT, EXPIRED = 0, 1, 2, 4, 8

LOW_CREDIT, TOLD_OFF, TOLD_ON = (NOTICE_KINDS.index(kind) for kind in ("low_credit", "disconnected", "reconnected"))
NO_PHONE = GATES.index("no_phone")
LOOK_AHEAD_US = US_PER_DAY + US_PER_HOUR  # quiet hours are at most a day long, and a forecast is good to the Wh
SPARE_US = 6 * US_PER_HOUR
PAY_FOR_DAYS = 30  # a low-credit notice asks for the debt and so many days of use

# accounting.policies.Rules for compiled code; NONE where there is none.
RULES = row_type(
    [
        ("window_until", "i8"),
        ("quiet_until", "i8"),
        ("quiet_from", "i8"),
        ("quiet_next_until", "i8"),
        ("notice_us", "i8"),
        ("notice_gap_us", "i8"),
        ("reconnect_tiyin", "i8"),
        ("max_reading_age_us", "i8"),
        ("quiet_turns_at", "i8"),  # the next moment at which the quiet hours, in force or next, may be others
        ("forbidden", "u1"),
    ]
)


@rule
def measured_balance(s: Account) -> int:
    """The balance without the standing estimate."""
    return s.balance_tiyin + s.estimate_tiyin


@compiled
def may_cut_for_credit(s: Account, rules: Any, now: int) -> bool:
    """Every condition of a disconnection for credit (promises 1 to 3)."""
    return (
        s.phase == STARTED
        and measured_balance(s) + s.emergency_credit_tiyin < 0
        and measured_balance(s) < rules.reconnect_tiyin  # or it would be given back at once
        and now - s.last_at <= rules.max_reading_age_us
        and s.notice_ordinal >= 0
        and s.gate_at != NONE
        and now - s.gate_at >= rules.notice_gap_us
        and rules.window_until != NONE
        and not rules.forbidden
        and not s.protected
        and not s.hold
    )


@compiled
def may_cut_for_order(s: Account, rules: Any, safety_cause: int) -> bool:
    """A standing order to disconnect keeps to the windows too, and spares the protected; danger does not wait."""
    if s.ordered_off == 0:
        return False
    return s.ordered_off == safety_cause or (
        rules.window_until != NONE and not rules.forbidden and not s.protected and not s.hold
    )


@compiled
def ends_cut(s: Account, supply: int, rules: Any, safety_cause: int) -> bool:
    """Whether a supply that is off, or may be, should be on (promise 4)."""
    pending = supply == DISCONNECT_PENDING  # not proven to be off yet: void it as soon as it may not be asked for
    if s.closing:  # the meter goes on to whoever comes next: no cut for debt outlives the account, nor one under way
        return s.ordered_off == 0 or (pending and safety_cause not in (s.command_cause, s.ordered_off))
    barred = rules.window_until == NONE or rules.forbidden != 0 or s.protected != 0 or s.hold != 0
    if s.ordered_off != 0:
        return pending and barred and safety_cause not in (s.command_cause, s.ordered_off)
    balance = measured_balance(s)
    if s.command_cause != 0 or s.owed != 0 or s.protected != 0 or balance >= rules.reconnect_tiyin:
        return True
    return pending and (barred or balance + s.emergency_credit_tiyin >= 0)


@compiled
def decide_supply(s: Account, rules: Any, now: int, at_tick: bool, safety_cause: int) -> int:
    """DISCONNECT, RECONNECT, or NOTHING; with EXPIRED where the last command went unanswered."""
    due, supply = NOTHING, s.supply
    if supply in (DISCONNECT_PENDING, RECONNECT_PENDING) and now >= s.command_expires_at:
        due, supply = EXPIRED, UNKNOWN
    if supply in (DISCONNECT_PENDING, DISCONNECTED, UNKNOWN) and ends_cut(s, supply, rules, safety_cause):
        return due | RECONNECT
    if s.closing:
        return due
    if supply in (CONNECTED, UNKNOWN, RECONNECT_PENDING):
        by_order = may_cut_for_order(s, rules, safety_cause) and (at_tick or s.ordered_off == safety_cause)
        if by_order or (at_tick and supply != RECONNECT_PENDING and may_cut_for_credit(s, rules, now)):
            return due | DISCONNECT
    return due


@compiled
def notice_is_due(s: Account, rules: Any, now: int, at_tick: bool) -> bool:
    """Whether the episode's one low-credit notice is due: within notice_hours,
    or falling due in the quiet hours about to begin.
    """
    if s.notice_ordinal >= 0 or s.phase != STARTED or s.closing or s.depletes_at == FOREVER:
        return False
    due_at = s.depletes_at - rules.notice_us
    if now >= due_at:
        return True
    before_quiet = rules.quiet_from != NONE and rules.quiet_from - QUARTER_US <= now < rules.quiet_from
    return at_tick and before_quiet and due_at < rules.quiet_next_until


@compiled
def review_account(
    s: Account,
    account: int,
    wake_at: NDArray[np.int64],
    book: Book,
    rules: Any,
    now: int,
    at_tick: bool,
    safety_cause: int,
) -> int:
    """What is due for one account, and when it must be looked at again if no record touches it before."""
    guess_level(s)
    s.depletes_at = forecast_depletion(s, book, 1.0)
    due = decide_supply(s, rules, now, at_tick, safety_cause)
    if notice_is_due(s, rules, now, at_tick):
        due |= NOTICE
    wake_at[account] = next_look(s, book, rules, now, due)
    return due


@compiled
def next_look(s: Account, book: Book, rules: Any, now: int, due: int) -> int:
    """The moment up to which no tick need look at the account, if it keeps its pace; NONE: look at the next one.

    Where the notice is not due soon, the account may use a little more than its pace before anybody looks: SPARE_US of
    use brings depletion forward by no more than that time, times how much dearer a kWh can be now than it will be then
    (both fall in one month, for `begin_day` looks at all). Where prices change with the hour there is no such spare, and a
    pace holds within one period (the reading that ends it wakes the account): what is used less there leaves cheaper kWh
    to the periods after it, unless somebody's prices fall with the month's use.
    """
    if s.supply != CONNECTED or s.ordered_off != 0 or due not in (NOTHING, NOTICE):
        return NONE
    if s.phase != STARTED:
        return FOREVER
    if s.level_wh < 0.0:
        s.watch_tiyin, s.pace_rate = 1, np.inf  # no forecast before the first guess, unless there is no credit
        guess_at = s.sampled_at + FIRST_GUESS_US - QUARTER_US  # a reading may be a quarter ahead of the tick
        return guess_at if guess_at > now and s.balance_tiyin > 0 else NONE
    if measured_balance(s) + s.emergency_credit_tiyin < 0:
        return next_look_below(s, rules, now)
    set_pace(s, -s.emergency_credit_tiyin)
    if s.notice_ordinal >= 0 or due == NOTICE:
        s.pace_rate = np.inf  # told already: only the balance is watched
        return FOREVER
    due_at, end = s.depletes_at - rules.notice_us, book.schedules[s.schedule].end
    if falls_by_the_hour(book, s.segment, end):
        return NONE
    spare_us = int(SPARE_US * price_range(book, s.segment, end))
    if spare_us > 0 and due_at - spare_us > now:
        s.pace_wh += int(s.pace_rate * SPARE_US)
        due_at -= spare_us
    if due_at - LOOK_AHEAD_US > now:
        return due_at - LOOK_AHEAD_US
    look_at = min(due_at, rules.quiet_turns_at)
    if rules.quiet_from != NONE and due_at < rules.quiet_next_until:
        look_at = min(look_at, rules.quiet_from - QUARTER_US)
    return look_at


@compiled
def next_look_below(s: Account, rules: Any, now: int) -> int:
    """As next_look, for one that is below zero: nothing can be due before the notice's way to a cut is open."""
    may_be_cut_at = FOREVER if s.gate_at == NONE else s.gate_at + rules.notice_gap_us
    if s.notice_ordinal < 0 or may_be_cut_at <= now:
        return NONE
    set_pace(s, NONE)
    s.pace_rate = np.inf  # the receipt is waited for, or the gap after it; use changes nothing
    return may_be_cut_at


@compiled
def send_notice(s: Account, account: int, rules: Any, ledger: Ledger, now: int, kind: int, pay_tiyin: int) -> None:
    """One notice, sent at once or, in quiet hours, when they end. pay_tiyin: what to pay beside the debt."""
    notice = ledger.notices[ledger.size[3]]
    ledger.size[3] += 1
    notice.ordinal = ledger.cause[0]
    notice.n = take_count(ledger)
    notice.account = account
    notice.kind = kind
    notice.noticed_at = now
    notice.send_after = now if rules.quiet_until == NONE else rules.quiet_until
    notice.balance_tiyin = s.balance_tiyin
    notice.pay_tiyin = pay_tiyin - min(s.balance_tiyin, 0)
    notice.depletes_at = s.depletes_at
    notice.episode = s.episode


@compiled
def give_notice(s: Account, account: int, book: Book, rules: Any, ledger: Ledger, now: int) -> None:
    """The episode's low-credit notice. Where no phone is known, that it cannot arrive is recorded with it."""
    write_forecast(s, account, book, ledger, now)
    month_wh = int(max(s.level_wh, 0.0)) * PAY_FOR_DAYS
    s.notice_ordinal = ledger.cause[0]
    s.notice_n = ledger.cause[1]
    s.noticed_at = now
    send_notice(s, account, rules, ledger, now, LOW_CREDIT, even_cost(book, s.segment, month_wh))
    if not s.reachable:
        s.gate_at, s.gate = now, NO_PHONE


@compiled
def begin_episode(s: Account, book: Book, rules: Any, now: int) -> None:
    """A credit that lifts the forecast clear of the notice begins a new episode (promise 5)."""
    if s.notice_ordinal >= 0 and forecast_depletion(s, book, 1.0) - now > rules.notice_us:
        s.episode += 1
        s.notice_ordinal, s.gate_at, s.gate = -1, NONE, 0


@compiled
def post_payment(
    s: Account, account: int, wake_at: NDArray[np.int64], ledger: Ledger, what: int, at: int, amount_tiyin: int
) -> None:
    """Money, signed, that no use of energy moved: its entry, and a look at the account at the next tick."""
    s.balance_tiyin += amount_tiyin
    wake_at[account] = NONE
    post(ledger, account, what, NO_BASIS, -1, NONE, at, NONE, NONE, 0, amount_tiyin, s.balance_tiyin)


@loop
def settle_payments(
    accounts: Accounts,
    wake_at: NDArray[np.int64],
    book: Book,
    rules: Any,
    ledger: Ledger,
    postings: NDArray[np.int64],
    first: int,
    safety_cause: int,
    due: NDArray[np.int64],
) -> int:
    """Post payments and adjustments from the first … on, and decide after each one what is due.

    postings: int64[n, 7]: ordinal, account, kind of entry, moment, signed amount, whether it is a credit, and the moment at
    which is decided. Stops at the first one with something due and returns it: due[0] says what. Returns n when
    all have been posted. The ledger has to have room for an entry each.
    """
    for k in range(first, len(postings)):
        ordinal, account, what, at, amount, is_credit, now = postings[k]
        ledger.cause[0], ledger.cause[1] = ordinal, 0
        s = accounts[account]
        post_payment(s, account, wake_at, ledger, what, at, amount)
        if is_credit:
            begin_episode(s, book, rules[s.place], now)
        due[0] = review_account(s, account, wake_at, book, rules[s.place], now, False, safety_cause)
        if due[0] != NOTHING:
            return k
    return len(postings)


@loop
def review_accounts(
    accounts: Accounts,
    first: int,
    count: int,
    wake_at: NDArray[np.int64],
    book: Book,
    rules: Any,
    ledger: Ledger,
    now: int,
    at_tick: bool,
    safety_cause: int,
    due: NDArray[np.int64],
) -> int:
    """Look at every account from `first` on whose time has come, and give the notices that are due.

    Stops at the first account with more than a notice due, or without room in the ledger, and returns it: due[0] says
    what is due (NOTHING: only room). Returns count when all have been looked at.
    """
    accounts, wake_at, rules = untracked(accounts), untracked(wake_at), untracked(rules)
    book, ledger = hold_book(book), hold_ledger(ledger)
    due[0] = NOTHING
    for i in range(first, count):
        if wake_at[i] > now:
            continue
        s = accounts[i]
        if s.phase == ABSENT:
            wake_at[i] = FOREVER
            continue
        if ledger.size[2] == ledger.forecasts.size or ledger.size[3] == ledger.notices.size:
            return i
        what = review_account(s, i, wake_at, book, rules[s.place], now, at_tick, safety_cause)
        if what == NOTICE:
            give_notice(s, i, book, rules[s.place], ledger, now)
        elif what != NOTHING:
            due[0] = what
            return i
    return count


@loop
def begin_day(accounts: Accounts, count: int, wake_at: NDArray[np.int64], book: Book, ledger: Ledger, at: int) -> None:
    """The day's first tick: take the day's use into the level, and write each account's forecast."""
    accounts, wake_at = untracked(accounts), untracked(wake_at)
    book, ledger = hold_book(book), hold_ledger(ledger)
    for i in range(count):
        s = accounts[i]
        if s.phase != STARTED or s.closing:
            continue
        sample_usage(s)
        write_forecast(s, i, book, ledger, at)
        wake_at[i] = NONE
