"""Who lives outside Hisob, played: houses that use energy while they have any, customers who pay.

The demo goes in **rounds**. `records` gives all that reaches the utility as files up to a moment; what Hisob decided on it
and what the switches answered, `learn` is told; and what follows of that (a payment when the customer gets to it) is
among the records of later rounds. A house that is cut uses nothing until it is
switched on again, so a round ends (`next_round`) before anything can happen in it that would change what a meter counts.

All is drawn from the district's seed and from what Hisob decided, so the same Hisob makes the same history.
"""

from __future__ import annotations

import datetime as dt
import heapq
import random
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

from accounting.moments import TASHKENT
from hisob.demo.district import (
    DAY_SLOTS,
    HALF_HOUR,
    SOUM,
    STARTS_AT,
    Customer,
    District,
    Given,
    slot,
    time_of,
)
from hisob.demo.meters import READING_SCHEMA, Meters

PHONE_TAKES = dt.timedelta(minutes=1)  # until somebody looks at it
# Of the policies that `init` journals: where supplies can be cut, rounds have to be short. They decide nothing else here.
NOTICE_GAP = dt.timedelta(hours=24)
CUT_DAYS = (1, 2, 3, 4)  # ISO weekdays
CUT_HOURS = (10, 16)
ROUND_ENDS = (10, 16, 20)  # local hours
DEAREST_TIYIN_PER_WH = 150  # beyond 1,000 kWh in a month: no house here gets beyond the next block
PAYDAY = slot(10, 18)
TOP_UPS = {50_000: 5, 100_000: 25, 150_000: 25, 200_000: 25, 300_000: 12, 400_000: 8}  # soum
CHANNELS = {"Click": 35, "Payme": 35, "Paynet": 20, "U-Pay": 10}
# How long after the notice has reached them they pay, and after it went dark, in hours; absent: not at all.
PAYS_AFTER_NOTICE = {"prompt": (1, 40), "payday": (24, 66), "late": (60, 150)}
PAYS_AFTER_CUT = {"prompt": (0.3, 3), "payday": (0.5, 5), "late": (0.5, 8), "after_cut": (0.7, 26)}


@dataclass(frozen=True)
class Notice:
    """A notice that Hisob gave out."""

    account_id: str
    kind: str
    send_after: dt.datetime


@dataclass(frozen=True)
class Answer:
    """What became of a command, and when it was heard of, in seconds of this machine's own."""

    account_id: str
    outcome: str
    at: dt.datetime
    heard_s: float = 0.0


@dataclass(frozen=True)
class Decisions:
    """What came out of a round: notices, what switches answered to commands, and how the balances it touched now stand."""

    notices: list[Notice]
    answers: list[Answer]
    balances: dict[str, int]


class World:
    """The district as it lives, up to the moment `now`."""

    def __init__(self, district: District) -> None:
        self.district = district
        self.now, self.end = time_of(0), time_of(district.slots)
        self.meters = Meters(district)
        people = district.customers
        self.by_account = {c.account_id: c for c in people}
        self.is_on = np.ones(len(people), bool)
        self.balance_tiyin = np.array([c.opening_balance_tiyin for c in people])
        self.may_be_cut_from = np.full(len(people), district.slots + 1)  # the half hour a day after the notice
        self.draws = [random.Random(f"{district.seed} {c.account_id}") for c in people]
        self.pays_at = {c.number: time_of(PAYDAY + c.number % 9) for c in people if c.temperament == "payday"}
        self.numbers = count(1)
        self.agenda: list[tuple[dt.datetime, int, Given]] = []
        for given in district.given:
            self.expect(given)

    def expect(self, given: Given) -> None:
        """Put a record on the agenda; of several at a moment, the one put there first comes first."""
        heapq.heappush(self.agenda, (given.arrives_at, next(self.numbers), given))

    # ---- a round ---------------------------------------------------------------------------------------------------

    def next_round(self) -> dt.datetime:
        """Up to which moment the next round may go."""
        day, today = divmod(slot_before(self.now), DAY_SLOTS)
        ends = [slot(day, hour) for hour in ROUND_ENDS if hour * 2 > today] or [slot(day + 1, ROUND_ENDS[0])]
        ends += [t.first for t in self.district.troubles if t.kind == "exchange"]
        moments = [
            *map(time_of, ends),
            *(at for number, at in self.pays_at.items() if not self.is_on[number]),
            self.end,
        ]
        return self.first_cut(min(at for at in moments if at > self.now))

    def first_cut(self, end: dt.datetime) -> dt.datetime:
        """The first half hour before `end` at which the balance of somebody warned may be below zero in cutting hours."""
        local, first, last = self.now.astimezone(TASHKENT), slot_before(self.now) + 1, slot_before(end)
        if local.isoweekday() not in CUT_DAYS or not CUT_HOURS[0] <= local.hour < CUT_HOURS[1] or first > last:
            return end
        protected = np.array([c.protected for c in self.district.customers])
        numbers = np.flatnonzero(self.is_on & ~protected & (self.may_be_cut_from <= last))
        usage = self.district.usage_wh[numbers, first : last + 1]
        below = self.balance_tiyin[numbers, None] < np.cumsum(usage, axis=1) * DEAREST_TIYIN_PER_WH
        below_at = np.where(below.any(axis=1), first + below.argmax(axis=1), last + 1)
        return min(end, time_of(int(np.maximum(below_at, self.may_be_cut_from[numbers]).min(initial=last + 1))))

    def records(self, until: dt.datetime) -> dict[str, Any]:
        """All that reaches the utility up to this moment, by kind: readings as a table, the others as rows."""
        self.pay(until)
        readings, given = self.meters.read_until(slot_before(until), self.is_on)
        for each in given:
            self.expect(each)
        rows: dict[str, Any] = {}
        while self.agenda and self.agenda[0][0] <= until:
            each = heapq.heappop(self.agenda)[2]
            rows.setdefault(each.kind, []).append(each.row)
        again = pa.Table.from_pylist(rows.get("reading", []), READING_SCHEMA)
        self.now = until
        return rows | {"reading": pa.concat_tables([readings, again])}

    def learn(self, decisions: Decisions) -> None:
        """Take in what Hisob decided and did: phones ring, lights go out and on, customers make up their minds."""
        for account_id, balance_tiyin in decisions.balances.items():
            self.balance_tiyin[self.by_account[account_id].number] = balance_tiyin
        for notice in sorted(decisions.notices, key=lambda n: (n.send_after, n.account_id, n.kind)):
            self.ring(notice, self.by_account[notice.account_id])
        for answer in sorted(decisions.answers, key=lambda a: (a.at, a.account_id)):
            self.switched(answer, self.by_account[answer.account_id])

    # ---- who lives there -------------------------------------------------------------------------------------------

    def ring(self, notice: Notice, customer: Customer) -> None:
        """An SMS arrives, or does not; who reads that the money runs out pays, in their time."""
        if notice.kind != "low_credit":
            return
        self.may_be_cut_from[customer.number] = slot_after(notice.send_after + NOTICE_GAP)
        if customer.phone and customer.phone_works:
            self.plan_payment(customer, notice.send_after + PHONE_TAKES, PAYS_AFTER_NOTICE.get(customer.temperament))

    def switched(self, answer: Answer, customer: Customer) -> None:
        """The switch was read back; whose light went out pays sooner."""
        if answer.outcome == "opened":
            self.is_on[customer.number] = False
            self.plan_payment(customer, answer.at, PAYS_AFTER_CUT.get(customer.temperament))
        elif answer.outcome == "closed":
            self.is_on[customer.number] = True

    def plan_payment(self, customer: Customer, at: dt.datetime, hours: tuple[float, float] | None) -> None:
        """Pay within so many hours, when people are awake, unless it was to be sooner anyway."""
        if hours is None:
            return
        draw = self.draws[customer.number]
        pays_at = (at + dt.timedelta(hours=draw.uniform(*hours))).astimezone(TASHKENT)
        if pays_at.hour < 7:
            pays_at = pays_at.replace(hour=7 + draw.randrange(3))
        pays_at = max(pays_at, self.now + dt.timedelta(minutes=draw.randrange(2, 20))).replace(microsecond=0)
        self.pays_at[customer.number] = min(pays_at, self.pays_at.get(customer.number, pays_at))

    def pay(self, until: dt.datetime) -> None:
        """Put the payments up to this moment on the agenda."""
        due = sorted((at, number) for number, at in self.pays_at.items() if at <= until)
        for at, number in due:
            del self.pays_at[number]
            customer, draw = self.district.customers[number], self.draws[number]
            (top_up,) = draw.choices(list(TOP_UPS), list(TOP_UPS.values()))
            (channel,) = draw.choices(list(CHANNELS), list(CHANNELS.values()))
            debt = max(0, -int(self.balance_tiyin[number]) // SOUM)
            soum = -(-debt // 10_000) * 10_000 + (top_up // 2 if customer.flat else top_up)
            if debt and draw.random() < 0.15:  # some pay a part first, stay dark, and pay again
                soum = max(1_000, debt // 2_000 * 1_000)
                self.pays_at[number] = at + dt.timedelta(minutes=draw.randrange(60, 300))
            row = {
                "payment_id": f"{channel.upper()}-{next(self.numbers):06d}",
                "account_id": customer.account_id,
                "paid_at": at.isoformat(),
                "amount_tiyin": soum * SOUM,
                "channel": channel,
            }
            self.expect(Given(at, "payment", row))


def slot_before(at: dt.datetime) -> int:
    """The last half hour that ends at or before a moment."""
    return (at - STARTS_AT) // HALF_HOUR


def slot_after(at: dt.datetime) -> int:
    """The first half hour that ends at or after a moment."""
    return -((STARTS_AT - at) // HALF_HOUR)
