"""Small stories of a few customers, told record by record to one partition of the core.

A story keeps its journal, so that it can be told again, cut otherwise, and every event with its id. Customers use
what they are told to, by a tariff of one price, so that a balance can be reckoned in the head: 500 W are 12 kWh, or
1,200 soum, a day. Moments are written as a clock in Tashkent shows them: "2025-09-01 10:00", a Monday.
"""

import json
import random
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from accounting.partition import Partition
from accounting.records import EVENTS, OWN_TIME
from accounting.snapshot import restore, snapshot
from accounting.state import NONE
from connectors.log.body import unpack
from tests.core_harness import body_of, settle_bytes

TASHKENT = ZoneInfo("Asia/Tashkent")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
USE_W = 500
DAY_TIYIN = 120_000  # what a day at 500 W costs
PRICE = ((None, 10_000),)
DEFAULT_POLICIES = json.loads((Path(__file__).parent.parent / "hisob" / "data" / "policies.json").read_text("utf-8"))


def local(text):
    """A moment as a clock in Tashkent shows it."""
    return datetime.fromisoformat(text).replace(tzinfo=TASHKENT)


def microseconds(moment):
    return (moment - EPOCH) // timedelta(microseconds=1)


def columns_of(given):
    """A record's columns as the journal has them."""
    return {c: microseconds(v) if isinstance(v, datetime) else v for c, v in given.items()}


@dataclass
class Meter:
    """What a customer's meter shows, and what is used behind it."""

    meter_id: str
    register_wh: int = 0
    use_w: int = USE_W
    is_read: bool = True


class Story:
    """One partition from its first record on. `now` is the last tick."""

    def __init__(self, start="2025-08-29 00:00", *, policies=DEFAULT_POLICIES, blocks=PRICE):
        self.partition = Partition(0)
        self.journal = []
        self.events = {kind: [] for kind in EVENTS}
        self.meters = {}
        self.now = local(start)
        self.count = 0
        names = ("block_upto_kwh", "price_tiyin_per_kwh", "hours")  # the hours may be left out
        rows = [dict(zip(names, block, strict=False)) for block in blocks]
        for block, row in enumerate(rows):
            self.take("tariff", tariff="t", effective_on=date(2025, 1, 1), block=block, blocks=len(rows), **row)
        for policy in policies:
            self.policy(
                policy["policy_id"], policy["kind"], policy["value"], policy["scope"], local("1970-01-02 00:00")
            )

    def take(self, kind, /, **given):
        """One record; the events it causes, kind by kind."""
        return self.settle([(kind, columns_of(given))])

    def settle(self, records):
        told = settle_bytes(self.partition, len(self.journal), body_of(records))
        self.journal += records
        found = {kind: with_ids(unpack(kind, batch).to_pylist()) for kind, batch in told.items()}
        for kind, rows in found.items():
            self.events[kind] += rows
        return {kind: found.get(kind, []) for kind in EVENTS}

    def number(self):
        self.count += 1
        return self.count

    # -- what happens
    def account(self, account_id="A", **given):
        meter = self.meters[account_id] = Meter(f"M-{account_id}")
        return self.take("account", **self.version(account_id, meter_id=meter.meter_id, **given))

    def version(self, account_id="A", **given):
        """The columns of a version; a customer has a phone unless told otherwise."""
        common = {"effective_at": self.now, "district": "d", "feeder": "f", "tariff": "t", "phone": "+998901234567"}
        meter = self.meters[account_id]
        return {"account_id": account_id, "meter_id": meter.meter_id, "opening_register_wh": 0, **common, **given}

    def until(self, moment):
        """Half-hourly readings of all meters, and ticks, up to the moment: `now` is the last quarter by then."""
        moment = local(moment) if isinstance(moment, str) else moment
        records = []
        while self.now + QUARTER <= moment:
            self.now += QUARTER
            for account_id, meter in self.meters.items():
                meter.register_wh += meter.use_w // 4
                if meter.is_read and self.now.minute in {0, 30}:
                    records.append(("reading", self.reading(account_id)))
            records.append(("tick", {"ticked_at": microseconds(self.now)}))
        return self.settle(records)

    def reading(self, account_id="A", **given):
        meter = self.meters[account_id]
        row = {"meter_id": meter.meter_id, "account_id": account_id, "read_at": self.now}
        return columns_of({**row, "register_wh": meter.register_wh, **given})

    def tick(self):
        """The next quarter, with nothing read."""
        self.now += QUARTER
        return self.take("tick", ticked_at=self.now)

    def pay(self, amount_tiyin, at=None, account_id="A", **given):
        row = {"payment_id": f"P{self.number()}", "account_id": account_id, "amount_tiyin": amount_tiyin}
        return self.take("payment", paid_at=at or self.now, **{**row, **given})

    def adjust(self, amount_tiyin, at=None, account_id="A"):
        row = {"adjustment_id": f"J{self.number()}", "account_id": account_id, "amount_tiyin": amount_tiyin}
        return self.take("adjustment", adjusted_at=at or self.now, author="a", reason="r", **row)

    def order(self, action, cause="request", at=None, account_id="A", **given):
        row = {"order_id": f"O{self.number()}", "account_id": account_id, "ordered_at": at or self.now}
        return self.take("order", **{**row, "action": action, "cause": cause, "author": "a", "reason": "r", **given})

    def policy(self, policy_id, kind, value=None, scope="all", starts_at=None, ends_at=None):
        text = None if value is None else json.dumps(value)
        row = {"policy_id": policy_id, "kind": kind, "scope": scope, "value": text, "author": "a", "reason": "r"}
        return self.take("policy", starts_at=starts_at or self.now, ends_at=ends_at, received_at=self.now, **row)

    def receipt(self, status="delivered", notice=None, at=None):
        notice = notice or self.notices("low_credit")[-1]
        return self.take("receipt", notice_id=notice["id"], received_at=at or self.now, status=status)

    def answer(self, outcome, command=None, at=None):
        command = command or self.events["command"][-1]
        return self.take("acknowledgement", command_id=command["id"], acknowledged_at=at or self.now, outcome=outcome)

    def exchange(self, new_meter_id="N", at=None, account_id="A"):
        meter = self.meters[account_id]
        row = {
            "account_id": account_id,
            "exchanged_at": at or self.now,
            "new_meter_id": new_meter_id,
            "new_register_wh": 0,
        }
        told = self.take("meter_exchange", old_meter_id=meter.meter_id, old_register_wh=meter.register_wh, **row)
        self.meters[account_id] = Meter(new_meter_id, 0, meter.use_w, meter.is_read)
        return told

    def restart(self):
        """The process dies and goes on from its snapshot."""
        self.partition = restore(snapshot(self.partition))

    # -- what came of it
    @property
    def balance(self):
        return self.events["entry"][-1]["balance_tiyin"]

    def notices(self, kind="low_credit"):
        return [n for n in self.events["notice"] if n["kind"] == kind]

    def commands(self):
        return [(c["action"], c["issued_at"]) for c in self.events["command"]]

    def states(self):
        return [s["state"] for s in self.events["supply_state"]]


def with_ids(rows):
    return [{"id": f"0-{row['ordinal']}-{row['n']}", **row} for row in rows]


def ready_to_be_cut(opening_tiyin=2 * DAY_TIYIN, *, receipt="delivered", until="2025-09-01 09:45", **given):
    """A customer for whom every condition of a cut holds but the hour: the window opens with the next tick, Monday 10:00.

    Opened on Friday with two days' credit, noticed at 06:00 of it, told at 09:05, below zero since Sunday 00:00.
    """
    story = Story()
    story.account(opening_balance_tiyin=opening_tiyin, **given)
    story.until("2025-08-29 09:00")
    assert [n["noticed_at"] for n in story.notices()] == [local("2025-08-29 06:00")]
    if receipt:
        story.receipt(receipt, at=local("2025-08-29 09:05"))
    story.until(until)
    assert not story.events["command"]
    return story


def cut():
    """A customer who was asked to be cut on Monday 10:00; nobody has answered yet."""
    story = ready_to_be_cut()
    story.until("2025-09-01 10:00")
    assert story.commands() == [("disconnect", local("2025-09-01 10:00"))]
    return story


def switched_off():
    """A customer whose switch was read back open at 10:02, and who uses nothing since."""
    story = cut()
    story.answer("opened", at=local("2025-09-01 10:02"))
    story.meters["A"].use_w = 0
    assert story.states()[-1] == "disconnected"
    return story


def told_again(journal, *, size=None, between=None):
    """The events of a journal: in bodies of size(left) records, the state passed through `between` after each.

    Without a size, every tick is a body of its own and so is all that lies between two.
    """
    partition, at, events = Partition(0), 0, {kind: [] for kind in EVENTS}
    kinds = [kind == "tick" for kind, _ in journal]
    while at < len(journal):
        if size is not None:
            end = at + size(len(journal) - at)
        else:
            end = at + 1
            while not kinds[at] and end < len(journal) and not kinds[end]:
                end += 1
        for kind, batch in settle_bytes(partition, at, body_of(journal[at:end])).items():
            events[kind] += with_ids(unpack(kind, batch).to_pylist())
        at = end
        if between is not None:
            partition = between(partition)
    return events


def all_awake(partition):
    """Every account looked at by the next tick, whatever the rules thought they could pass by."""
    partition.wake_at[: partition.count] = NONE
    return partition


# ---- stories of chance --------------------------------------------------------------------------------------------------
class Director:
    """Tells a story by chance: customers who use, pay, move; switches and phones that answer or do not; rules that change."""

    def __init__(self, seed, days=16, blocks=None):
        self.chance = random.Random(seed)
        span = {
            "from": self.chance.choice(["00:00", "08:00", "22:00"]),
            "to": self.chance.choice(["24:00", "18:00", "06:00"]),
        }
        window = {"days": self.chance.choice([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4]]), **span}
        threshold = {
            "notice_gap_hours": self.chance.choice([1, 6, 24]),
            "reconnect_tiyin": self.chance.choice([0, 0, 0, 30_000, -20_000]),
        }
        quiet = {"from": "20:00", "to": self.chance.choice(["09:00", "20:15"])}
        policies = [
            {"policy_id": kind, "kind": kind, "value": value, "scope": "all"}
            for kind, value in (("disconnect_window", window), ("threshold", threshold), ("quiet_hours", quiet))
        ]
        by_chance = self.chance.choice([PRICE, ((20, 5_000), (100, 12_000), (None, 30_000))])
        start = self.chance.choice(["2025-08-26 00:00", "2025-09-11 13:15"])
        self.story = Story(start, policies=policies, blocks=blocks or by_chance)
        self.ends = self.story.now + days * DAY
        self.answered = set()
        self.closed = set()

    def tell(self):
        """The journal and its events as first told."""
        for number in range(self.chance.randint(2, 4)):
            self.arrive(f"A{number}")
        while self.story.now < self.ends:
            self.story.until(self.story.now + self.chance.choice([1, 1, 2, 5, 12, 40]) * QUARTER)
            self.answer()
            for _ in range(self.chance.choice([0, 1, 1, 2])):
                self.happen()
        return self.story.journal, self.story.events

    def arrive(self, account_id):
        chance = self.chance
        self.story.account(
            account_id,
            opening_balance_tiyin=chance.choice([0, -5_000, 30_000, 2 * DAY_TIYIN, 5 * DAY_TIYIN]),
            opening_register_wh=chance.choice([0, 0, None]),
            emergency_credit_tiyin=chance.choice([None, 0, 40_000]),
            phone=chance.choice([None, "+998901234567", "+998901234567"]),
            feeder=chance.choice(["f", "g", None]),
            effective_at=self.story.now,
        )
        self.story.meters[account_id].use_w = chance.choice([0, 200, 500, 2000])

    def moment(self):
        """Within the quarter after the last tick."""
        return self.story.now + timedelta(seconds=self.chance.randrange(0, 900))

    def somebody(self):
        return self.chance.choice([a for a in self.story.meters if a not in self.closed] or list(self.story.meters))

    def answer(self):
        """Switches and phones: most answer once, some never, some twice or with a readback that is long past."""
        chance, story = self.chance, self.story
        for command in story.events["command"][-6:]:
            if chance.random() < (0.4 if command["id"] not in self.answered else 0.05):
                self.answered.add(command["id"])
                right = "opened" if command["action"] == "disconnect" else "closed"
                outcome = chance.choice([right, right, right, "unreachable", "mismatch", "expired", "opened", "closed"])
                story.answer(outcome, command, self.moment() - chance.choice([0, 0, 0, 1, 30]) * HOUR)
        for notice in story.events["notice"][-6:]:
            if chance.random() < (0.5 if notice["id"] not in self.answered else 0.05):
                self.answered.add(notice["id"])
                status = chance.choice(["delivered", "delivered", "accepted", "undeliverable", "expired", "rejected"])
                story.receipt(status, notice, self.moment())

    def happen(self):
        """Something by chance."""
        chance, story, account_id = self.chance, self.story, self.somebody()
        meter, amount = story.meters[account_id], chance.choice([1, 20_000, DAY_TIYIN, 4 * DAY_TIYIN, 12 * DAY_TIYIN])
        what = chance.choice(
            ["pay"] * 5 + ["use"] * 3 + ["adjust", "order", "policy", "version", "exchange", "odd", "odd"]
        )
        if what == "pay":
            story.pay(amount, self.moment(), account_id)
            if chance.random() < 0.15:
                paid = story.journal[-1][1]["payment_id"]
                story.pay(amount, self.moment(), account_id, reverses=paid)
        elif what == "use":
            meter.use_w = chance.choice([0, 100, 500, 500, 3000])
            meter.is_read = chance.random() < 0.85
        elif what == "adjust":
            story.adjust(chance.choice([-1, 1]) * amount, self.moment(), account_id)
        elif what == "order":
            action = chance.choice(["disconnect", "reconnect", "reconnect", "hold", "release", "release"])
            story.order(action, chance.choice(["court", "safety", "tamper", "request"]), self.moment(), account_id)
        elif what == "policy":
            self.rule(account_id)
        elif what == "version":
            self.change(account_id)
        elif what == "exchange":
            story.exchange(chance.choice([meter.meter_id, f"N{story.number()}", f"M-{account_id}"]), None, account_id)
        else:
            self.read_oddly(account_id)

    def rule(self, account_id):
        chance, story = self.chance, self.story
        kind = chance.choice(["moratorium", "holiday", "threshold", "threshold", "disconnect_window", "quiet_hours"])
        value = {
            "threshold": {
                "notice_hours": chance.choice([1, 48, 72, 240]),
                "max_reading_age_hours": chance.choice([2, 24]),
            },
            "disconnect_window": {
                "days": [1, 2, 3, 4, 5, 6, 7],
                "from": "09:30",
                "to": chance.choice(["11:00", "23:00"]),
            },
            "quiet_hours": {"from": chance.choice(["18:00", "20:05"]), "to": "07:00"},
        }.get(kind)
        scope = chance.choice(["all", "district:d", "district:e", "feeder:f", "feeder:g", f"account:{account_id}"])
        starts_at = story.now + chance.choice([-24, 0, 0, 1, 5.1, 30]) * HOUR
        ends_at = chance.choice([None, starts_at + HOUR, starts_at + 20 * HOUR])
        if kind in {"moratorium", "holiday"} and ends_at is None:
            ends_at = starts_at + chance.choice([3, 40]) * HOUR
        story.policy(f"X{chance.randrange(12)}", kind, value, scope, starts_at, ends_at)

    def change(self, account_id):
        chance, story = self.chance, self.story
        given = {
            "supply_class": chance.choice([None, "normal", "protected"]),
            "emergency_credit_tiyin": chance.choice([0, 0, 50_000]),
            "phone": chance.choice([None, "+998901234567"]),
            "district": chance.choice(["d", "e"]),
            "feeder": chance.choice(["f", "g"]),
            "families": chance.choice([1, 3]),
        }
        if chance.random() < 0.12:
            given["closed_at"] = story.now
            given["closing_register_wh"] = chance.choice([None, story.meters[account_id].register_wh])
            self.closed.add(account_id)
            story.meters[account_id].is_read = False
        story.take("account", **story.version(account_id, **given))
        if len(story.meters) < 6 and chance.random() < 0.3:
            self.arrive(f"B{story.number()}")

    def read_oddly(self, account_id):
        """A standing estimate, a leap that is held, or a reading that comes late into a gap."""
        chance, story, meter = self.chance, self.story, self.story.meters[account_id]
        what = chance.choice(["estimate", "leap", "late"])
        at, register = self.moment(), meter.register_wh
        if what == "estimate":
            register += chance.choice([0, 2_000])
        elif what == "leap":
            register += 500_000
        else:
            at = story.now - chance.choice([1, 30]) * HOUR
        given = {"read_at": at, "register_wh": register, "status": "estimated" if what == "estimate" else None}
        story.take("reading", **story.reading(account_id, **given))


def arrival_of(kind, record):
    return record.get("received_at") or record[OWN_TIME[kind]]
