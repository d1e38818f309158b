"""The bill, exactly: what becomes of a reading, and what a step between two registers charges.

Rules and their order are those of DESIGN's "The bill, exactly"; the branches of `judge_reading` stand in the order of
its table, under the same names. `s` is always one row of ACCOUNT, changed in place. Usage is charged as the
difference of two cumulative costs of the month, so the charges of a month add up to its bill to the tiyin however its
readings came.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.calendar import QUARTER_US, month_of, month_start
from accounting.compiled import compiled, loop, row_type, rule, untracked
from accounting.exact import beyond_power, multiply_divide
from accounting.ledger import (
    CORRECTION,
    ESTIMATED,
    HELD,
    HELD_REFUSED,
    HELD_SETTLED,
    INTERPOLATED,
    MEASURED,
    REFUSED,
    UNCHANGED,
    USAGE,
    Ledger,
    hold_ledger,
    note,
    post,
)
from accounting.state import ABSENT, ARRIVED, NONE, STARTED, Account, Accounts
from accounting.tariffs import (
    Book,
    cost,
    cost_between,
    hold_book,
    most_pieces,
    next_boundary,
    next_edge,
    price_at,
    segment_at,
)

# Reasons of refusal, numbered; docs/refused.md has one line for each.
REASONS = (
    "",
    "account_closed",
    "already_reversed",
    "duplicate",
    "from_the_future",
    "implausible_usage",
    "late_estimate",
    "not_yet_installed",
    "register_out_of_range",
    "register_went_back",
    "too_late",
    "unknown_account",
    "unknown_meter",
    "unknown_payment",
    "unknown_tariff",
    "use_meter_exchange",
    "wrong_meter",
    "zero_register",
    "unknown_command",
    "unknown_notice",
)
(
    TAKEN,
    ACCOUNT_CLOSED,
    _ALREADY_REVERSED,
    DUPLICATE,
    FROM_THE_FUTURE,
    IMPLAUSIBLE_USAGE,
    LATE_ESTIMATE,
    NOT_YET_INSTALLED,
    REGISTER_OUT_OF_RANGE,
    REGISTER_WENT_BACK,
    TOO_LATE,
    UNKNOWN_ACCOUNT,
    UNKNOWN_METER,
    _UNKNOWN_PAYMENT,
    _UNKNOWN_TARIFF,
    _USE_METER_EXCHANGE,
    WRONG_METER,
    ZERO_REGISTER,
    _UNKNOWN_COMMAND,
    _UNKNOWN_NOTICE,
) = range(len(REASONS))

# Outcomes of judging a reading that are no refusal.
SETTLES, STARTS, IGNORED, STANDS, LATE_IN_GAP, ACCEPTED, CONFIRMS_HELD, UNSETTLES_HELD, IS_HELD = (
    100,
    101,
    102,
    103,
    104,
    105,
    106,
    107,
    108,
)
WENT_BACK = -1


# Price changes that took effect at a measured register since the last gap's end: a linked list for each account.
# Settled steps before such a change were charged at the old price, later ones at the new; a late reading that moves
# the month's start needs both.
MARK = row_type([("before", "i8"), ("price", "i8"), ("month_wh", "i8")])  # mark before it (−1: none); price up to it


@rule
def usage_between(from_wh: int, to_wh: int, modulus_wh: int) -> int:
    """Usage from one register to a later one, rolled over or not; WENT_BACK if it went back."""
    if to_wh >= from_wh:
        return to_wh - from_wh
    if from_wh >= modulus_wh - modulus_wh // 10 and to_wh < modulus_wh // 10:
        return to_wh + modulus_wh - from_wh
    return WENT_BACK


@compiled
def price_step(
    s: Account,
    account: int,
    book: Book,
    ledger: Ledger,
    posting: bool,
    basis: int,
    from_at: int,
    from_wh: int,
    to_at: int,
    usage_wh: int,
    month_wh: int,
    segment: int,
) -> tuple[int, int, int, bool]:
    """Cut a step at every boundary b with from_at < b ≤ to_at and charge each piece by what is in force at its start.

    Returns (charge in tiyin, Wh of the month at to_at, segment at to_at, whether it held a boundary). With `posting`,
    each piece becomes an entry and moves the balance.
    """
    charge, done, at, wh, held_boundary = 0, 0, from_at, from_wh, False
    month_end = month_start(month_of(from_at) + 1)
    end = book.schedules[s.schedule].end
    while True:
        boundary = min(month_end, next_boundary(book, s.schedule, segment, at))
        cut = boundary <= to_at
        if not cut and at == to_at:
            break
        until = boundary if cut else to_at
        upto = multiply_divide(usage_wh, boundary - from_at, to_at - from_at) if cut else usage_wh
        piece, price = upto - done, price_at(book, segment, at)
        amount = cost_between(book, price, month_wh, month_wh + piece)
        reached = (from_wh + upto) % s.modulus_wh
        if posting:
            s.balance_tiyin -= amount
            between = (cut and boundary != to_at) or at != from_at
            how = INTERPOLATED if basis == MEASURED and between else basis
            tariff = book.segments[segment].tariff
            post(ledger, account, USAGE, how, tariff, at, until, wh, reached, piece, -amount, s.balance_tiyin)
        charge, done, at, wh, month_wh = charge + amount, upto, until, reached, month_wh + piece
        if cut:
            held_boundary = True
            if boundary == month_end:
                month_wh, month_end = 0, month_start(month_of(at) + 1)
        while segment + 1 < end and book.segments[segment + 1].from_at <= at:
            segment += 1
        if not cut:
            break
    return charge, month_wh, segment, held_boundary


@compiled
def set_next_change(s: Account, book: Book) -> None:
    """Work out the moment before which a step from the last measured register is a single piece."""
    change = min(month_start(month_of(s.last_at) + 1), next_edge(book, s.segment, s.last_at))
    if s.segment + 1 < book.schedules[s.schedule].end:
        change = min(change, book.segments[s.segment + 1].from_at)
    s.next_change_at = change


@compiled
def start_account(s: Account, book: Book, at: int, register_wh: int) -> None:
    """The account's first register: nothing is charged, and usage of its first month counts from here."""
    s.phase = STARTED
    s.start_at = s.last_at = s.late_limit_at = at
    s.last_wh = register_wh
    s.month_wh = 0
    s.segment = segment_at(book, s.schedule, at)
    s.sampled_at = at
    set_next_change(s, book)


@rule
def settle_one_piece(
    s: Account, account: int, book: Book, ledger: Ledger, at: int, register_wh: int, usage_wh: int
) -> None:
    """The commonest step: from the last measured register to one before the next boundary."""
    price = price_at(book, s.segment, s.last_at)
    amount = cost_between(book, price, s.month_wh, s.month_wh + usage_wh)
    s.month_wh += usage_wh
    s.usage_wh += usage_wh
    s.balance_tiyin -= amount
    tariff = book.segments[s.segment].tariff
    post(
        ledger,
        account,
        USAGE,
        MEASURED,
        tariff,
        s.last_at,
        at,
        s.last_wh,
        register_wh,
        usage_wh,
        -amount,
        s.balance_tiyin,
    )
    s.last_at = at
    s.last_wh = register_wh


@compiled
def settle_onto_end(
    s: Account, account: int, book: Book, ledger: Ledger, at: int, register_wh: int, usage_wh: int
) -> None:
    """A measured register becomes the newest: the standing estimate is given back, and the step to it charged."""
    if s.estimate_at != NONE:
        give_back_estimate(s, account, book, ledger)
    if at < s.next_change_at:
        settle_one_piece(s, account, book, ledger, at, register_wh, usage_wh)
        return
    from_at, from_wh, from_month_wh = s.last_at, s.last_wh, s.month_wh
    _, s.month_wh, s.segment, held_boundary = price_step(
        s, account, book, ledger, True, MEASURED, from_at, from_wh, at, usage_wh, from_month_wh, s.segment
    )
    if held_boundary:
        if s.gap_to_at != NONE:
            s.late_limit_at = s.gap_to_at
        set_gap(s, from_at, from_wh, at, register_wh, usage_wh, from_month_wh)
        s.mark = -1
    s.last_at = at
    s.last_wh = register_wh
    s.usage_wh += usage_wh
    set_next_change(s, book)


@compiled
def set_gap(s: Account, from_at: int, from_wh: int, to_at: int, to_wh: int, usage_wh: int, month_wh: int) -> None:
    """Remember a step that held a boundary: inside it, and only there, a late reading can still change a price."""
    s.gap_from_at, s.gap_from_wh, s.gap_to_at, s.gap_to_wh = from_at, from_wh, to_at, to_wh
    s.gap_usage_wh, s.gap_month_wh = usage_wh, month_wh


@compiled
def give_back_estimate(s: Account, account: int, book: Book, ledger: Ledger) -> None:
    """What the standing estimate charged is given back whole, as a correction."""
    s.balance_tiyin += s.estimate_tiyin
    tariff = book.segments[s.segment].tariff
    post(
        ledger,
        account,
        CORRECTION,
        ESTIMATED,
        tariff,
        s.last_at,
        s.estimate_at,
        s.last_wh,
        s.estimate_wh,
        -s.estimate_usage_wh,
        s.estimate_tiyin,
        s.balance_tiyin,
    )
    s.estimate_at = NONE
    s.estimate_tiyin = s.estimate_usage_wh = 0


@compiled
def stand_estimate(
    s: Account, account: int, book: Book, ledger: Ledger, at: int, register_wh: int, usage_wh: int
) -> None:
    """An estimate takes the place of the one that stood: one step from the last measured register, never final."""
    if s.estimate_at != NONE:
        give_back_estimate(s, account, book, ledger)
    charge, _, _, _ = price_step(
        s, account, book, ledger, True, ESTIMATED, s.last_at, s.last_wh, at, usage_wh, s.month_wh, s.segment
    )
    s.estimate_at, s.estimate_wh, s.estimate_usage_wh, s.estimate_tiyin = at, register_wh, usage_wh, charge


@compiled
def reprice_estimate(s: Account, account: int, book: Book, ledger: Ledger) -> None:
    """Charge the standing estimate anew if its price has changed."""
    if s.estimate_at == NONE:
        return
    charge, _, _, _ = price_step(
        s,
        account,
        book,
        ledger,
        False,
        ESTIMATED,
        s.last_at,
        s.last_wh,
        s.estimate_at,
        s.estimate_usage_wh,
        s.month_wh,
        s.segment,
    )
    if charge != s.estimate_tiyin:
        stand_estimate(s, account, book, ledger, s.estimate_at, s.estimate_wh, s.estimate_usage_wh)


@compiled
def recharge_since_gap(s: Account, book: Book, marks: Any, month_wh: int, shift_wh: int) -> int:
    """How much more everything charged since the gap's end costs, if the month's use up to there is shift_wh more.

    month_wh: the month's use at the gap's end, before the shift. Walks the marks from the newest back.
    """
    more, upto_wh, price, mark = 0, s.month_wh, price_at(book, s.segment, s.last_at), s.mark
    while True:
        from_wh = marks[mark].month_wh if mark >= 0 else month_wh
        more += cost(book, price, upto_wh + shift_wh) - cost(book, price, from_wh + shift_wh)
        more -= cost(book, price, upto_wh) - cost(book, price, from_wh)
        if mark < 0:
            return more
        upto_wh, price, mark = from_wh, marks[mark].price, marks[mark].before


@compiled
def recut_gap(s: Account, account: int, book: Book, marks: Any, ledger: Ledger, at: int, register_wh: int) -> int:
    """A late reading inside the last gap: cut the step anew in two, and correct what that changes. The reason if refused."""
    first_wh = (register_wh - s.gap_from_wh) % s.modulus_wh
    second_wh = s.gap_usage_wh - first_wh
    if second_wh < 0:
        return REGISTER_WENT_BACK
    most_w = 4 * s.max_power_w
    if beyond_power(first_wh, most_w, at - s.gap_from_at) or beyond_power(second_wh, most_w, s.gap_to_at - at):
        return IMPLAUSIBLE_USAGE
    a_at, a_wh, a_month_wh, b_at, b_wh = s.gap_from_at, s.gap_from_wh, s.gap_month_wh, s.gap_to_at, s.gap_to_wh
    segment = segment_at(book, s.schedule, a_at)
    basis = MEASURED
    old, old_month_wh, _, _ = price_step(
        s, account, book, ledger, False, basis, a_at, a_wh, b_at, s.gap_usage_wh, a_month_wh, segment
    )
    one, cut_month_wh, cut_segment, one_held = price_step(
        s, account, book, ledger, False, basis, a_at, a_wh, at, first_wh, a_month_wh, segment
    )
    two, month_wh, _, two_held = price_step(
        s, account, book, ledger, False, basis, at, register_wh, b_at, second_wh, cut_month_wh, cut_segment
    )
    shift_wh = month_wh - old_month_wh
    more = one + two - old
    if shift_wh != 0:
        more += recharge_since_gap(s, book, marks, old_month_wh, shift_wh)
        s.month_wh += shift_wh
        mark = s.mark
        while mark >= 0:
            marks[mark].month_wh += shift_wh
            mark = marks[mark].before
    s.balance_tiyin -= more
    post(
        ledger,
        account,
        CORRECTION,
        MEASURED,
        book.segments[segment].tariff,
        a_at,
        b_at,
        a_wh,
        b_wh,
        0,
        -more,
        s.balance_tiyin,
    )
    if one_held:
        set_gap(s, a_at, a_wh, at, register_wh, first_wh, a_month_wh)
    if two_held:
        if one_held:
            s.late_limit_at = at
        set_gap(s, at, register_wh, b_at, b_wh, second_wh, cut_month_wh)
    reprice_estimate(s, account, book, ledger)
    return TAKEN


@rule
def is_known(s: Account, at: int) -> bool:
    """Whether a settled register of this moment is remembered: the last measured and both ends of the last gap."""
    return at == s.last_at or (s.gap_to_at != NONE and at in (s.gap_from_at, s.gap_to_at))


@compiled
def known_register(s: Account, at: int) -> int:
    """The register of a known moment, the held reading's included."""
    if at == s.last_at:
        return s.last_wh
    if at == s.gap_from_at:
        return s.gap_from_wh
    if at == s.gap_to_at:
        return s.gap_to_wh
    return s.held_wh


@rule
def judge_reading(s: Account, meter: int, at: int, register_wh: int, estimated: bool, last_tick: int) -> int:
    """What becomes of a reading: an outcome, or a reason of refusal. One row of the design's table after the other."""
    if at >= s.closed_at:
        return ACCOUNT_CLOSED
    if s.phase == ABSENT or meter != s.meter:
        return WRONG_METER
    if register_wh < 0 or register_wh >= s.modulus_wh:
        return REGISTER_OUT_OF_RANGE
    if at < s.effective_at or (s.phase == STARTED and at < s.start_at):
        return NOT_YET_INSTALLED
    if last_tick != NONE and at > last_tick + QUARTER_US:
        return FROM_THE_FUTURE
    if s.phase == ARRIVED:
        return LATE_ESTIMATE if estimated else STARTS
    if estimated:
        return judge_estimate(s, at, register_wh)
    return judge_measured(s, at, register_wh)


@compiled
def judge_estimate(s: Account, at: int, register_wh: int) -> int:
    """The rows of the table for an estimated reading of a started account."""
    if is_known(s, at):
        return LATE_ESTIMATE
    if at == s.estimate_at:
        return IGNORED if register_wh == s.estimate_wh else DUPLICATE
    if at < s.last_at or at < s.estimate_at:
        return LATE_ESTIMATE
    usage_wh = usage_between(s.last_wh, register_wh, s.modulus_wh)
    if usage_wh == WENT_BACK:
        return REGISTER_WENT_BACK
    if beyond_power(usage_wh, s.max_power_w, at - s.last_at):
        return IMPLAUSIBLE_USAGE
    return STANDS


@rule
def judge_measured(s: Account, at: int, register_wh: int) -> int:
    """The rows of the table for a measured reading of a started account."""
    if (at <= s.last_at and is_known(s, at)) or at == s.held_at:  # none after last_at, and a gap's ends cost a look
        return IGNORED if register_wh == known_register(s, at) else DUPLICATE
    if at < s.last_at:
        if s.gap_to_at != NONE and s.gap_from_at < at < s.gap_to_at:
            return LATE_IN_GAP
        return ACCEPTED if at > s.late_limit_at else TOO_LATE
    usage_wh = usage_between(s.last_wh, register_wh, s.modulus_wh)
    if usage_wh == WENT_BACK:
        return ZERO_REGISTER if register_wh == 0 else REGISTER_WENT_BACK
    if s.held_at != NONE and at > s.held_at:
        since_held_wh = usage_between(s.held_wh, register_wh, s.modulus_wh)
        if since_held_wh == 0:
            return IGNORED
        if (
            since_held_wh != WENT_BACK
            and not beyond_power(since_held_wh, 4 * s.max_power_w, at - s.held_at)
            and usage_between(s.last_wh, s.held_wh, s.modulus_wh) != WENT_BACK
        ):
            return CONFIRMS_HELD
        return UNSETTLES_HELD
    if beyond_power(usage_wh, s.max_power_w, at - s.last_at):
        return IMPLAUSIBLE_USAGE if s.held_at != NONE else IS_HELD
    return SETTLES


@rule
def settle_reading(
    s: Account,
    account: int,
    book: Book,
    marks: Any,
    ledger: Ledger,
    meter: int,
    at: int,
    register_wh: int,
    estimated: bool,
    last_tick: int,
) -> int:
    """Take one reading to its outcome: entries, a refusal, or held. Returns the outcome or reason."""
    outcome = judge_reading(s, meter, at, register_wh, estimated, last_tick)
    if outcome == SETTLES and at < s.next_change_at and s.estimate_at == NONE:
        usage_wh = usage_between(s.last_wh, register_wh, s.modulus_wh)
        settle_one_piece(s, account, book, ledger, at, register_wh, usage_wh)
        return outcome
    return act_on(outcome, s, account, book, marks, ledger, at, register_wh)


@compiled
def act_on(
    outcome: int, s: Account, account: int, book: Book, marks: Any, ledger: Ledger, at: int, register_wh: int
) -> int:
    """Do what a reading's outcome says; the outcome, or the reason it was refused for after all."""
    if outcome == UNSETTLES_HELD:
        refuse_held(s, account, ledger)
        outcome = judge_measured(s, at, register_wh)
    if outcome == CONFIRMS_HELD:
        settle_held(s, account, book, ledger)
    if outcome in (SETTLES, CONFIRMS_HELD):
        usage_wh = usage_between(s.last_wh, register_wh, s.modulus_wh)
        settle_onto_end(s, account, book, ledger, at, register_wh, usage_wh)
    elif outcome == STARTS:
        start_account(s, book, at, register_wh)
    elif outcome == STANDS:
        usage_wh = usage_between(s.last_wh, register_wh, s.modulus_wh)
        stand_estimate(s, account, book, ledger, at, register_wh, usage_wh)
    elif outcome == LATE_IN_GAP:
        reason = recut_gap(s, account, book, marks, ledger, at, register_wh)
        outcome = LATE_IN_GAP if reason == TAKEN else reason
    elif outcome == IS_HELD:
        s.held_n = note(ledger, account, HELD, IMPLAUSIBLE_USAGE, s, False)
        s.held_ordinal, s.held_at, s.held_wh = ledger.cause[0], at, register_wh
    if outcome < SETTLES:
        note(ledger, account, REFUSED, outcome, s, False)
    elif outcome in (IGNORED, ACCEPTED):
        note(ledger, account, UNCHANGED, 0, s, False)
        ledger.cause[1] -= 1  # counted, but no event
    return outcome


@compiled
def settle_held(s: Account, account: int, book: Book, ledger: Ledger) -> None:
    """The held reading is confirmed and settles onto the end."""
    at, held_wh = s.held_at, s.held_wh
    s.held_at = NONE
    settle_onto_end(s, account, book, ledger, at, held_wh, usage_between(s.last_wh, held_wh, s.modulus_wh))
    note(ledger, account, HELD_SETTLED, 0, s, True)


@compiled
def refuse_held(s: Account, account: int, ledger: Ledger) -> None:
    """The held reading is refused: one event says so, and one that it is held no longer."""
    note(ledger, account, HELD_REFUSED, IMPLAUSIBLE_USAGE, s, True)
    ledger.cause[1] += 1
    s.held_at = NONE


@rule
def keeps_pace(s: Account) -> bool:
    """Whether a settled reading can bring no decision closer: the balance is not below what is watched for, and no more was
    used than the last forecast reckoned with (then credit lasts at least as long as it said).
    """
    return s.balance_tiyin >= s.watch_tiyin and s.usage_wh - s.pace_wh <= s.pace_rate * (s.last_at - s.pace_at)


@loop
def settle_readings(
    accounts: Accounts,
    wake_at: NDArray[np.int64],
    book: Book,
    marks: Any,
    ledger: Ledger,
    outcomes: NDArray[np.uint8],
    shift: int,
    first: int,
    end: int,
    pair: NDArray[np.int32],
    account_of: NDArray[np.int32],
    meter_of: NDArray[np.int32],
    read_at: NDArray[np.int64],
    register_wh: NDArray[np.int64],
    estimated: NDArray[np.bool_],
    last_tick: int,
) -> int:
    """Take readings first … end of a batch into the ledger, one after the other, in order of arrival.

    accounts: ACCOUNT[n], changed in place. pair, read_at, register_wh, estimated: one value a reading; account_of, meter_of:
    one a pair, account −1 being one to which no claim reaches back. Reading i is the journal's `shift + i`. outcomes: what
    became of each. An account is woken for the next tick unless the reading was a plain one that keeps its pace, or moved
    nothing. Returns the reading it stopped before, for want of room in the ledger.
    """
    accounts, wake_at, marks = untracked(accounts), untracked(wake_at), untracked(marks)
    book, ledger = hold_book(book), hold_ledger(ledger)
    for i in range(first, end):
        who = account_of[pair[i]]
        ledger.cause[0], ledger.cause[1] = shift + i, 0
        if ledger.size[1] + 4 > ledger.incidents.size:
            return i
        if who < 0:
            note(ledger, -1, REFUSED, NOT_YET_INSTALLED, accounts[0], False)
            outcomes[i] = NOT_YET_INSTALLED
            continue
        s = accounts[who]
        plain = read_at[i] < s.next_change_at and s.estimate_at == NONE and s.held_at == NONE
        if ledger.size[0] + (4 if plain else room_for(s, book, read_at[i])) > ledger.entries.size:
            return i
        outcomes[i] = settle_reading(
            s, who, book, marks, ledger, meter_of[pair[i]], read_at[i], register_wh[i], estimated[i], last_tick
        )
        if outcomes[i] == SETTLES:
            is_quiet = plain and keeps_pace(s)
        else:
            is_quiet = outcomes[i] < SETTLES or outcomes[i] in (IGNORED, ACCEPTED, IS_HELD)
        if not is_quiet:
            wake_at[who] = NONE
    return end


@compiled
def room_for(s: Account, book: Book, at: int) -> int:
    """More entries than a reading of this moment can leave."""
    if s.phase != STARTED:
        return 4
    newest = max(at, s.estimate_at, s.held_at)
    return 16 + 4 * most_pieces(book, s.schedule, min(s.last_at, at), newest)


@compiled
def judge_read_by_person(s: Account, at: int, register_wh: int, last_tick: int) -> int:
    """A register read by a person, at an exchange or a closing: TAKEN, or the reason why not."""
    if register_wh < 0 or register_wh >= s.modulus_wh:
        return REGISTER_OUT_OF_RANGE
    if at < s.effective_at or (s.phase == STARTED and at < s.start_at):
        return NOT_YET_INSTALLED
    if last_tick != NONE and at > last_tick + QUARTER_US:
        return FROM_THE_FUTURE
    if s.phase == ARRIVED:
        return TAKEN
    if at < s.last_at:
        return TOO_LATE
    if at == s.last_at:
        return TAKEN if register_wh == s.last_wh else DUPLICATE
    if usage_between(s.last_wh, register_wh, s.modulus_wh) == WENT_BACK:
        return ZERO_REGISTER if register_wh == 0 else REGISTER_WENT_BACK
    return TAKEN


@compiled
def settle_read_by_person(s: Account, account: int, book: Book, ledger: Ledger, at: int, register_wh: int) -> None:
    """Settle a register read by a person onto the end; it ends the standing estimate and refuses the held reading."""
    if s.phase == ARRIVED:
        start_account(s, book, at, register_wh)
    elif at > s.last_at:
        usage_wh = usage_between(s.last_wh, register_wh, s.modulus_wh)
        settle_onto_end(s, account, book, ledger, at, register_wh, usage_wh)
    elif s.estimate_at != NONE:
        give_back_estimate(s, account, book, ledger)
    if s.held_at != NONE:
        refuse_held(s, account, ledger)
