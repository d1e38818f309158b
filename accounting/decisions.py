"""Decisions made events: notices, commands and supply states, and what answers them (receipts, acknowledgements,
orders, policies).

What is due is said by `accounting.supply`; here it becomes an event with its evidence, and the state moves on. A
supply state changes by readback alone; what was not answered, or not reached, is `unknown` (promise 7).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from accounting.calendar import US_PER_DAY
from accounting.forecast import forecast_depletion, write_forecast
from accounting.partition import Partition, Record, record_text
from accounting.policies import Place, Policy, check_policy
from accounting.records import ORDER_CAUSES, SUPPLY_STATES, parse_id
from accounting.state import (
    ABSENT,
    CONNECTED,
    DISCONNECT_PENDING,
    DISCONNECTED,
    FOREVER,
    GATES,
    NONE,
    RECONNECT_PENDING,
    UNKNOWN,
)
from accounting.supply import (
    DISCONNECT,
    EXPIRED,
    NOTICE,
    RECONNECT,
    TOLD_OFF,
    TOLD_ON,
    begin_episode,
    give_notice,
    measured_balance,
    review_account,
    review_accounts,
    send_notice,
)
from accounting.texts import time_text

SAFETY = 1 + ORDER_CAUSES.index("safety")
CAUSES = ("credit", *ORDER_CAUSES)
EFFECTS_REMEMBERED_US = 90 * US_PER_DAY
RECONNECT_EXPIRES_US = US_PER_DAY


# when an account is reviewed


def review(p: Partition, i: int, now: int) -> None:
    """A record touched the account: decide at once what is due (no cut for credit: that waits for a tick)."""
    s, rules = p.accounts[i], p.rules_now(now)
    due = review_account(s, i, p.wake_at, p.book.arrays(), rules[s.place], now, False, SAFETY)
    carry_out(p, i, int(due), now)


def review_after_credit(p: Partition, i: int, now: int) -> None:
    """A credit may lift the forecast clear of the notice: then a new episode begins (promise 5)."""
    s, rules = p.accounts[i], p.rules_now(now)
    begin_episode(s, p.book.arrays(), rules[s.place], now)
    review(p, i, now)


def review_all(p: Partition, now: int, *, at_tick: bool) -> None:
    """Look at every account whose time has come, and carry out what is due."""
    rules, due = p.rules_now(now), np.zeros(1, np.int64)
    notices, i = int(p.ledger.size[3]), 0
    while True:
        p.reserve(16, 16, 64, 64)
        i = review_accounts(
            p.accounts, i, p.count, p.wake_at, p.book.arrays(), rules, p.ledger, now, at_tick, SAFETY, due
        )
        if i == p.count:
            break
        if due[0]:
            carry_out(p, i, int(due[0]), now)
            i += 1
    if p.ledger.size[3] > notices:
        remember_notices(p, notices)


def carry_out(p: Partition, i: int, due: int, now: int) -> None:
    """Make what is due into events and state."""
    if not due:
        return
    p.reserve(16, 16, 16, 16)
    s = p.accounts[i]
    if due & EXPIRED:
        set_supply(p, i, UNKNOWN, now, "unanswered")
    if due & NOTICE:
        notices = int(p.ledger.size[3])
        give_notice(s, i, p.book.arrays(), p.rules[s.place], p.ledger, now)
        remember_notices(p, notices)
    if due & DISCONNECT:
        command(p, i, "disconnect", now)
    if due & RECONNECT:
        command(p, i, "reconnect", now)


def remember_notices(p: Partition, first: int) -> None:
    """Remember whose the notices from `first` on are, for their receipts."""
    for notice in p.ledger.notices[first : p.ledger.size[3]].tolist():
        p.effects[notice[0], notice[1]] = (notice[2], notice[4], -1)


def tell(p: Partition, i: int, kind: int, now: int, pay_tiyin: int) -> None:
    """One notice to the account, other than for low credit."""
    notices = int(p.ledger.size[3])
    p.reserve(16, 16, 16, 16)
    s, book = p.accounts[i], p.book.arrays()
    s.depletes_at = forecast_depletion(s, book, 1.0)
    write_forecast(s, i, book, p.ledger, now)
    send_notice(s, i, p.rules[s.place], p.ledger, now, kind, pay_tiyin)
    remember_notices(p, notices)


# commands


def command(p: Partition, i: int, action: str, now: int) -> None:
    """Ask for the supply to be cut or given back, with the evidence it was decided on."""
    s, rules = p.accounts[i], p.rules_of(i)
    before = (int(s.command_ordinal), int(s.command_n))
    in_flight = before[0] >= 0 and s.supply in (DISCONNECT_PENDING, RECONNECT_PENDING, UNKNOWN)
    off = action == "disconnect"
    if off:
        s.command_cause = s.ordered_off
    cause = CAUSES[s.command_cause]
    write_forecast(s, i, p.book.arrays(), p.ledger, now)
    expires_at = now + RECONNECT_EXPIRES_US
    if off and s.command_cause != SAFETY and rules.window_until is not None:
        expires_at = rules.window_until
    s.sequence += 1
    supersedes = p.id_text(*before) if in_flight else None
    text = json.dumps(evidence(p, i, action, cause), ensure_ascii=False, separators=(",", ":"))
    meter = p.meter_name(int(s.meter))
    made = p.emit("command", p.ids[i], meter, now, expires_at, action, cause, int(s.sequence), supersedes, text)
    s.command_ordinal, s.command_n = made
    s.command_expires_at = expires_at
    s.owed = not off
    p.effects[made] = (i, now, int(s.meter))
    set_supply(p, i, DISCONNECT_PENDING if off else RECONNECT_PENDING, now, cause)


def evidence(p: Partition, i: int, action: str, cause: str) -> dict[str, Any]:
    """What a command was decided on, for the auditor: nothing in it was looked up anywhere but in the state."""
    s, rules, book = p.accounts[i], p.rules_of(i), p.book.arrays()
    place, depletes_at = p.places[s.place], int(s.depletes_at)
    found: dict[str, Any] = {
        "verdict": f"{action} for {cause}",
        "balance_tiyin": int(s.balance_tiyin),
        "measured_balance_tiyin": int(measured_balance(s)),
        "emergency_credit_tiyin": int(s.emergency_credit_tiyin),
        "reconnect_tiyin": rules.reconnect_tiyin,
        "position": f"{p.number}-{int(p.ledger.cause[0])}",
        "forecast": {"depletes_at": time_text(depletes_at) if depletes_at != FOREVER else None},
        "policies": list(rules.consulted),
        "district": place.district,
        "feeder": place.feeder,
    }
    if action == "disconnect":
        found["caps"] = {"per_hour": rules.cuts_per_hour, "per_feeder_hour": rules.cuts_per_feeder_hour}
    if s.last_at != NONE:
        found["last_measured"] = {
            "meter_id": p.meter_name(int(s.meter)),
            "read_at": time_text(int(s.last_at)),
            "register_wh": int(s.last_wh),
        }
        found["tariff"] = p.book.names[book.segments[s.segment].tariff]
    if s.notice_ordinal >= 0:
        found["notice"] = {
            "notice_id": p.id_text(int(s.notice_ordinal), int(s.notice_n)),
            "noticed_at": time_text(int(s.noticed_at)),
            "receipt": GATES[s.gate] or None,
            "receipt_at": time_text(int(s.gate_at)) if s.gate_at != NONE else None,
        }
    return found


def set_supply(p: Partition, i: int, state: int, now: int, cause: str) -> None:
    """The supply's state, as far as is known, has changed."""
    s = p.accounts[i]
    if s.supply != state:
        s.supply = state
        p.emit("supply_state", p.ids[i], now, SUPPLY_STATES[state], cause)


# records that answer, order or rule


def apply_acknowledgement(p: Partition, record: Record) -> None:
    """A readback of the switch: the only thing that proves a supply state."""
    effect = _effect_of(p, record["command_id"])
    if effect is None or effect[2] < 0:
        p.refuse("acknowledgement", record, "unknown_command")
        return
    i, number, meter = effect
    s, now = p.accounts[i], p.moment_of("acknowledgement", record)
    if meter != s.meter:  # it tells of a switch that is not this account's any more
        p.ignore("acknowledgement")
        return
    at = min(record["acknowledged_at"], now)  # a clock that is ahead must not make what comes later look stale
    current = number == (s.command_ordinal, s.command_n)
    pending = s.supply in (DISCONNECT_PENDING, RECONNECT_PENDING)
    if record["outcome"] not in ("opened", "closed"):
        if not (current and pending):
            p.ignore("acknowledgement")
            return
        set_supply(p, i, UNKNOWN, now, record["outcome"])
        p.wake_at[i] = NONE  # asked again at the next tick
        return
    if at < s.proven_at or (pending and not current):
        p.ignore("acknowledgement")
        return
    s.proven_at = at
    _prove(p, i, DISCONNECTED if record["outcome"] == "opened" else CONNECTED, now)
    review(p, i, now)


def _prove(p: Partition, i: int, state: int, now: int) -> None:
    s = p.accounts[i]
    if s.supply == state:
        p.ignore("acknowledgement")
        return
    set_supply(p, i, state, now, CAUSES[s.command_cause])
    p.rules_now(now)
    if state == CONNECTED:
        s.owed = 0
    if state == DISCONNECTED and not s.told_off:
        s.told_off = 1
        tell(p, i, TOLD_OFF, now, p.rules_of(i).reconnect_tiyin)
    elif state == CONNECTED and s.told_off:
        s.told_off = 0
        tell(p, i, TOLD_ON, now, 0)
    if state == CONNECTED:
        s.sampled_at, s.sampled_wh = s.last_at, s.usage_wh  # no use while it was off is no low use
        s.command_cause = 0


def apply_receipt(p: Partition, record: Record) -> None:
    """What became of an SMS. The first word that it arrived, or that it never will, opens the way to a cut."""
    effect = _effect_of(p, record["notice_id"])
    if effect is None or effect[2] >= 0:
        p.refuse("receipt", record, "unknown_notice")
        return
    i, number, _ = effect
    s = p.accounts[i]
    status = record["status"]
    if status not in GATES or number != (s.notice_ordinal, s.notice_n) or s.gate_at != NONE:
        p.ignore("receipt")
        return
    s.gate_at, s.gate = max(record["received_at"], s.noticed_at), GATES.index(status)
    review(p, i, p.moment_of("receipt", record))


def apply_order(p: Partition, record: Record) -> None:
    """An order of a person: cut, give back, hold the supply on, or release that hold."""
    i = p.find(record["account_id"])
    s = p.accounts[i]
    if s.phase == ABSENT:
        p.refuse("order", record, "unknown_account")
        return
    if s.closing:
        p.refuse("order", record, "account_closed")
        return
    text = record_text("order", {**record, "received_at": None})
    known = [
        t
        for t in p.taken.get(i, ())
        if t.startswith(f'{{"order_id":{json.dumps(record["order_id"], ensure_ascii=False)},')
    ]
    if known:
        if text in known:
            p.ignore("order")
        else:
            p.refuse("order", record, "duplicate")
        return
    p.taken.setdefault(i, set()).add(text)
    now = p.moment_of("order", record)
    p.rules_now(now)
    action = record["action"]
    if action in ("hold", "release"):
        s.hold = action == "hold"
    elif action == "disconnect":
        s.ordered_off = 1 + ORDER_CAUSES.index(record["cause"])
        p.wake_at[i] = NONE
    else:
        s.ordered_off = 0
        if s.supply != RECONNECT_PENDING:
            if s.supply == CONNECTED:  # as far as we know; who orders it knows better, and the switch is asked
                set_supply(p, i, UNKNOWN, now, record["cause"])
            s.command_cause = 1 + ORDER_CAUSES.index(record["cause"])
    review(p, i, now)


def apply_policy(p: Partition, record: Record) -> None:
    """A policy arrives, or replaces the one under its id: every account is looked at in its light."""
    wrong = check_policy(record["kind"], record["scope"], record.get("value"))
    if wrong is not None:
        if p.unrouted:  # all partitions have the record; one of them says so
            p.refuse("policy", record, "unknown_value", wrong)
        return
    p.policy_count += 1
    names = ("policy_id", "kind", "scope", "starts_at", "ends_at", "value")
    policy = Policy(**{name: record[name] for name in names}, arrival=p.policy_count)
    p.policies[policy.policy_id] = policy
    what, _, name = policy.scope.partition(":")
    if what == "account" and name in p.index:
        single_out(p, p.index[name])
    p.policies_changed()
    if p.last_tick != NONE and p.count > 1:
        p.wake_at[: p.count] = NONE
        review_all(p, p.moment_of("policy", record), at_tick=False)


def single_out(p: Partition, i: int) -> None:
    """Give an account that a policy names a place of its own."""
    place = p.places[p.accounts[i].place]
    p.accounts[i].place = p.place_code(Place(place.district, place.feeder, p.ids[i]))


def forget_effects(p: Partition) -> None:
    """Let go of notices and commands too old to be answered."""
    oldest = p.last_tick - EFFECTS_REMEMBERED_US
    current = set(zip(p.accounts["command_ordinal"].tolist(), p.accounts["command_n"].tolist(), strict=True))
    p.effects = {number: e for number, e in p.effects.items() if e[1] >= oldest or number in current}


def _effect_of(p: Partition, text: str) -> tuple[int, tuple[int, int], int] | None:
    """The account, (ordinal, n) and meter of a command's or notice's id (a notice's meter is −1); None: no such one here."""
    try:
        partition, ordinal, n = parse_id(text)
    except ValueError:
        return None
    effect = p.effects.get((ordinal, n)) if partition == p.number else None
    return (effect[0], (ordinal, n), effect[2]) if effect else None
