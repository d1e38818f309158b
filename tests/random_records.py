"""Random small utilities, from a seed: records of every kind that moves money, with every trouble they can have.

`random_records(seed, style)` gives kind -> rows in file order, typed as the oracle takes them (times UTC µs, dates
`datetime.date`, None for what is absent); `write_csv` writes them as files for `hisob ingest`. The same seed and
style give the same records, so a test needs to name no more than these two. Styles are named after the worked cases
they are like: `adversary` (troubles of all kinds, on a coarse grid of times, so that equal moments abound), `all`
(the same, times to the µs), `plain` (boundaries and versions only), and `one-X` for each X of TROUBLES. `hours-X` is the style
X with tariffs whose prices change with the hour; `one-hours` has nothing else.

Every row is a valid row of the contract: what becomes of it is for the rules to say, never for the reader of files.
No record arrives before 2025-03-01 or after 2025-09-30.
"""

from __future__ import annotations

import csv
import datetime as dt
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
FIRST_DAY = dt.date(2025, 3, 1)
OPENS_AT = (dt.datetime(2025, 3, 1, 19, tzinfo=dt.UTC) - EPOCH) // dt.timedelta(microseconds=1)  # 00:00 in Tashkent
DAYS = 110
LONGEST_DELAY_DAYS = 95
LAST_ARRIVAL = OPENS_AT + 210 * DAY_US

TROUBLES = (
    "rollover",  # registers that begin just below their modulus
    "large",  # moduli up to 10^12, powers up to 10^9 W
    "duplicate",  # the same record again, or the same name with other content
    "late",  # readings that arrive hours or days later
    "verylate",  # readings that arrive weeks later
    "estimate",  # readings by estimate
    "gap",  # weeks without a reading
    "spike",  # registers that leap, and come back or stay
    "stuck",  # registers that stand still, fall to 0 or go back
    "range",  # registers that no such meter can show
    "future",  # records of a time that has not come yet
    "unknown",  # meters and accounts that nobody has heard of
    "unknownpay",  # payments before their account arrives
    "lateaccount",  # accounts that arrive after their readings
    "version",  # families, tariffs and powers that change, also backdated and with tariffs that do not exist
    "tariff",  # tariff versions that arrive late, that take back another, that come again
    "exchange",  # meters exchanged for others, also for another account's
    "reset",  # the same meter on both sides of an exchange
    "close",  # accounts closed, with a register and without
    "reopen",  # versions and exchanges after closing, and another account on the meter
    "reversal",  # payments taken back, twice, or with another amount
    "adjust",  # adjustments
    "old",  # payments older than they are remembered
)


# Hours of the day that lists of blocks may hold in; readings on a coarse grid lie at the edges of most of them.
DAYS_BY_HOURS = (
    ("06:00-09:00,17:00-22:00", "09:00-17:00", "22:00-06:00"),
    ("12:00-18:00", "18:00-06:00", "06:00-12:00"),
    ("00:00-12:00", "12:00-24:00"),
    ("00:00-01:00", "01:00-00:00"),
    ("11:59-12:01", "12:01-11:59"),
    ("00:00-24:00",),
)


@dataclass(frozen=True)
class Style:
    """How large a utility is, how coarse its times are, and what troubles it has."""

    troubles: frozenset[str]
    coarse: bool = False
    accounts: int = 6
    readings: int = 40


STYLES: dict[str, Style] = {
    "adversary": Style(frozenset(TROUBLES), coarse=True),
    "all": Style(frozenset(TROUBLES), accounts=8, readings=60),
    "plain": Style(frozenset({"version"}), accounts=8, readings=60),
} | {f"one-{t}": Style(frozenset({t, "close"} if t == "reopen" else {t})) for t in TROUBLES}
OF_HOURS: dict[str, Style] = {
    f"hours-{name}": replace(STYLES[name], troubles=STYLES[name].troubles | {"hours"})
    for name in ("adversary", "all", "plain", "one-late", "one-tariff")
} | {"one-hours": Style(frozenset({"hours"}))}


@dataclass
class Meter:
    """What a meter shows: from a moment and a total on, of a register with a modulus."""

    meter_id: str
    modulus: int
    register: int
    total: int


@dataclass
class Household:
    """An account as it really is: its moments, what it has used by then, and the meters that show it."""

    account_id: str
    max_power_w: int
    tariff: str
    moments: list[int]
    totals: list[int]
    meters: list[tuple[int, Meter]]
    opening: Row = field(default_factory=dict)
    closed_at: int | None = None

    def meter_at(self, at: int) -> Meter:
        return [m for since, m in self.meters if since <= at or since == self.meters[0][0]][-1]

    def register_at(self, at: int) -> int:
        total = max([t for moment, t in zip(self.moments, self.totals, strict=True) if moment <= at], default=0)
        meter = self.meter_at(at)
        return (meter.register + max(total - meter.total, 0)) % meter.modulus


class RandomUtility:
    """Makes the records of one utility, file by file."""

    def __init__(self, seed: int, style: Style) -> None:
        self.random = random.Random(seed)
        self.style = style
        if style.troubles.issuperset(TROUBLES):  # none but the rarest meet when all are there at once
            kept = self.random.choice([0.5, 0.7, 0.9, 1])
            some = frozenset(t for t in TROUBLES if self.chance(kept))
            self.style = replace(style, troubles=some | style.troubles.difference(TROUBLES))
        self.tariffs = ["a", "b", "c", "d"] if self.troubled("tariff") else ["a", "b"]
        self.households: list[Household] = []
        self.rows: dict[str, list[Row]] = {
            k: [] for k in ("tariff", "account", "meter_exchange", "payment", "adjustment", "reading")
        }

    def make(self) -> dict[str, list[Row]]:
        """All of it, the rows of each file in no order."""
        self.make_tariffs()
        for number in range(self.style.accounts):
            self.make_household(number)
        for household in self.households:
            self.make_exchanges(household)
            self.make_versions(household)
            self.make_readings(household)
            self.make_credits(household)
        self.make_strangers()
        for kind, rows in self.rows.items():
            if kind != "tariff":
                self.random.shuffle(rows)
        return {kind: rows for kind, rows in self.rows.items() if rows}

    # -- chances
    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def troubled(self, trouble: str, probability: float = 1.0) -> bool:
        """Whether this trouble is had here and now."""
        return trouble in self.style.troubles and self.chance(probability)

    def moment(self, first_day: int = 0, last_day: int = DAYS) -> int:
        day = self.random.randint(first_day, last_day - 1)
        if self.style.coarse:
            hour = self.random.choices([0, 12, 6, 18, 1], [60, 20, 8, 8, 4])[0]
            return OPENS_AT + day * DAY_US + hour * HOUR_US
        fraction = self.random.choice([1, 1, 1, SECOND_US])  # to the second, now and then to the µs
        return OPENS_AT + day * DAY_US + self.random.randrange(DAY_US // fraction) * fraction

    def later(self, at: int, longest_days: int = LONGEST_DELAY_DAYS) -> int:
        """A moment of arrival after `at`."""
        if self.style.coarse:
            days = self.random.choice([d for d in (0, 1, 2, 4, 8, 15, 30, 60, 90) if d <= longest_days])
            return min(at + days * DAY_US + self.random.choice([0, 0, HOUR_US, 4 * HOUR_US]), LAST_ARRIVAL)
        return min(at + self.random.randrange(longest_days * DAY_US), LAST_ARRIVAL)

    def day(self, first: int, last: int) -> dt.date:
        return FIRST_DAY + dt.timedelta(days=self.random.randint(first, last))

    # -- tariffs
    def make_tariffs(self) -> None:
        for tariff in self.tariffs:
            date = self.day(20, 60) if tariff == "d" else dt.date(2025, 1, 1)
            self.add_tariff(tariff, date, None)
        changes = self.random.randint(1, 5) if self.troubled("tariff") else self.random.randint(0, 2)
        for _ in range(changes):
            tariff, date = self.random.choice(self.tariffs), self.day(5, DAYS)
            arrives = None
            if self.troubled("tariff", 0.6):
                arrives = self.later((date - dt.date(1970, 1, 1)).days * DAY_US - 5 * HOUR_US, 60)
            rows = self.add_tariff(tariff, date, arrives)
            if self.troubled("tariff", 0.4):  # once more, or taken back by what was in force before, of the same date
                source = self.random.choice([rows, [r for r in self.rows["tariff"] if r["tariff"] == tariff]])
                first = source[0]
                again = [r for r in source if self.same_version(r, first)]
                received_at = self.later((arrives or OPENS_AT) + DAY_US, 60)
                self.rows["tariff"] += [{**r, "effective_on": date, "received_at": received_at} for r in again]

    @staticmethod
    def same_version(row: Row, other: Row) -> bool:
        return all(row[c] == other[c] for c in ("tariff", "effective_on", "received_at"))

    def add_tariff(self, tariff: str, date: dt.date, received_at: int | None) -> list[Row]:
        base = {"tariff": tariff, "effective_on": date, "received_at": received_at}
        if any(self.same_version(row, base) for row in self.rows["tariff"]):
            return [row for row in self.rows["tariff"] if self.same_version(row, base)]
        if "hours" in self.style.troubles:
            base["hours"] = None
        lists = self.make_lists() if self.troubled("hours", 0.7) else {None: self.make_blocks()}
        rows = [
            base | ({"hours": hours} if hours else {}) | block for hours, blocks in lists.items() for block in blocks
        ]
        self.rows["tariff"] += rows
        return rows

    def make_lists(self) -> dict[str | None, list[Row]]:
        """Blocks by the hours they hold in, now and then the same in several."""
        lists: dict[str | None, list[Row]] = {}
        for hours in self.random.choice(DAYS_BY_HOURS):
            same = self.random.choice(list(lists.values())) if lists and self.chance(0.2) else None
            lists[hours] = same or self.make_blocks()
        return lists

    def make_blocks(self) -> list[Row]:
        """A list of blocks: limits and prices."""
        limits: list[int | None] = [
            *sorted(self.random.sample([3, 10, 50, 200, 1000], self.random.randint(0, 3))),
            None,
        ]
        prices = sorted(self.random.sample([22500, 30000, 45001, 61000, 70000, 90007, 99999, 180000], len(limits)))
        return [
            {"block_upto_kwh": limit, "price_tiyin_per_kwh": price} for limit, price in zip(limits, prices, strict=True)
        ]

    # -- accounts
    def make_household(self, number: int) -> None:
        modulus = self.random.choice([100_000, 1_000_000, 10**9])
        max_power_w = self.random.choice([100, 1000, 15_000])
        if self.style.coarse and self.chance(0.25):
            modulus, max_power_w = 1001, self.random.choice([1, 10])
        if self.troubled("large", 0.4):
            modulus, max_power_w = self.random.choice([10**10, 10**12]), self.random.choice([900_000, 10**7, 10**9])
        starts_at = self.moment(0, 40)
        moments = sorted({starts_at, *(self.moment(0, DAYS) for _ in range(self.style.readings))})
        moments = [m for m in moments if m >= starts_at]
        if self.troubled("gap", 0.6) and len(moments) > 8:
            cut = self.random.randrange(1, len(moments) - 4)
            del moments[cut : cut + self.random.randint(3, max(3, len(moments) // 2))]
        register = self.random.randrange(modulus)
        if self.troubled("rollover", 0.5):
            register = modulus - 1 - self.random.randrange(max(modulus // 50, 2))
        household = Household(
            account_id=f"A{number}",
            max_power_w=max_power_w,
            tariff=self.random.choice(self.tariffs),
            moments=moments,
            totals=self.make_totals(moments, modulus, max_power_w),
            meters=[(starts_at, Meter(f"M{number}", modulus, register, 0))],
        )
        self.households.append(household)
        household.opening = self.make_opening(household, starts_at, register)

    def make_totals(self, moments: Sequence[int], modulus: int, max_power_w: int) -> list[int]:
        """What is used by each moment: at most the power, and seldom more than the meter can tell."""
        totals = [0]
        habit = self.random.choice([0.1, 0.5, 0.95])
        for before, after in itertools.pairwise(moments):
            most = max_power_w * (after - before) // HOUR_US
            if self.chance(0.95):
                most = min(most, modulus // 9)
            used = self.random.choice([0, int(most * habit * self.random.random()), int(most * habit)])
            totals.append(totals[-1] + used)
        return totals

    def make_opening(self, household: Household, starts_at: int, register: int) -> Row:
        number = household.account_id[1:]
        opening = self.random.choice([None, register, register, max(register - 3, 0)])
        if self.troubled("range", 0.1):
            opening = self.random.choice([-1, household.meters[0][1].modulus])
        row = {
            "account_id": household.account_id,
            "effective_at": starts_at,
            "meter_id": f"M{number}",
            "district": "d",
            "tariff": household.tariff,
            "families": self.random.choice([None, 1, 2, 3]),
            "phone": None,
            "language": "uz-Latn",
            "opening_balance_tiyin": self.random.choice([None, 0, 1_000_000, 74_540_340]),
            "opening_register_wh": opening,
            "register_modulus_wh": household.meters[0][1].modulus,
            "max_power_w": household.max_power_w,
            "closed_at": None,
            "closing_register_wh": None,
            "received_at": None,
        }
        if self.troubled("lateaccount", 0.4):
            row["received_at"] = self.later(starts_at, 60)
        elif self.troubled("future", 0.05):
            row["received_at"] = OPENS_AT
        self.rows["account"].append(row)
        return row

    def make_versions(self, household: Household) -> None:
        versions = self.random.randint(0, 3) if self.troubled("version") else 0
        for _ in range(versions):
            at = self.any_moment(household)
            row = household.opening | {
                "effective_at": at,
                "received_at": None,
                "meter_id": self.its_meter(household, at),
            }
            row["families"] = self.random.choice([None, 1, 2, 3, 5])
            row["tariff"] = self.random.choice([*self.tariffs, household.tariff])
            if self.chance(0.1):
                row["tariff"] = "e"
            if self.chance(0.3):
                row["max_power_w"] = self.random.choice(
                    [household.max_power_w * 2, household.max_power_w // 2 + 1, None]
                )
            self.delay(row, at, "lateaccount", 0.4, 60)
            self.rows["account"].append(row)
        if self.troubled("close", 0.5):
            self.close(household)
        for row in [r for r in self.rows["account"] if r["account_id"] == household.account_id]:
            if self.troubled("duplicate", 0.2):
                received_at = self.later(row["received_at"] or row["effective_at"], 60)
                self.rows["account"].append(row | {"received_at": received_at})

    def close(self, household: Household) -> None:
        at = self.random.choice(household.moments[len(household.moments) // 3 :])
        household.closed_at = at
        register = household.register_at(at)
        if self.troubled("stuck", 0.15):
            register = self.random.choice([0, max(register - 1, 0)])
        if self.troubled("range", 0.1):
            register = self.random.choice([-5, household.meter_at(at).modulus])
        row = household.opening | {
            "effective_at": self.random.choice([at, at, self.any_moment(household)]),
            "meter_id": self.its_meter(household, at),
            "closed_at": at,
            "closing_register_wh": None if self.chance(0.25) else register,
            "received_at": None,
        }
        if row["effective_at"] < at:
            row["received_at"] = at
        self.delay(row, at, "late", 0.4, 30)
        if self.troubled("future", 0.1):
            row["received_at"] = at - self.random.choice([1, 12, 48]) * HOUR_US
        self.rows["account"].append(row)
        if self.troubled("reopen", 0.5):
            self.reopen(household, row)

    def reopen(self, household: Household, closing: Row) -> None:
        """The same account once more, or the next one on the same meter."""
        at = self.random.choice([self.moment(30, DAYS), household.moments[0], closing["closed_at"]])
        row = closing | {"effective_at": at, "closed_at": None, "closing_register_wh": None, "received_at": None}
        if self.chance(0.6):
            row |= {"account_id": f"B{household.account_id[1:]}", "opening_register_wh": None}
            if self.chance(0.5):
                row["opening_register_wh"] = household.register_at(at)
        elif self.chance(0.4):
            row["meter_id"] = f"N{self.random.randrange(5)}"
        self.delay(row, at, "lateaccount", 0.3, 30)
        self.rows["account"].append(row)

    # -- exchanges
    def make_exchanges(self, household: Household) -> None:
        for trouble in ("exchange", "reset"):
            if self.troubled(trouble, 0.35) and len(household.moments) > 3:
                self.exchange(household, is_reset=trouble == "reset")
        if self.troubled("exchange", 0.15):
            at = self.any_moment(household)
            self.rows["meter_exchange"].append(self.exchange_row(household.account_id, at, "N0", 5, "N1", 0))

    def exchange(self, household: Household, *, is_reset: bool) -> None:
        at = self.random.choice(household.moments[1:])
        old, register = household.meter_at(at), household.register_at(at)
        new_id = old.meter_id if is_reset else f"{self.random.choice('NNM')}{self.random.randrange(5)}"
        modulus = self.random.choice([None, old.modulus, 10_000_000])
        new_register = self.random.choice([0, 5, 498])
        total = max([t for m, t in zip(household.moments, household.totals, strict=True) if m <= at], default=0)
        household.meters.append((at, Meter(new_id, modulus or old.modulus, new_register, total)))
        household.meters.sort(key=lambda m: m[0])
        if self.troubled("stuck", 0.15):
            register = self.random.choice([0, max(register - 7, 0)])
        if self.troubled("range", 0.1):
            register, new_register = self.random.choice([(old.modulus, 0), (register, modulus or old.modulus)])
        row = self.exchange_row(household.account_id, at, old.meter_id, register, new_id, new_register)
        row["register_modulus_wh"] = modulus
        self.delay(row, at, "late", 0.5, 30)
        if self.troubled("future", 0.1):
            row["received_at"] = at - self.random.choice([1, 24]) * HOUR_US
        self.rows["meter_exchange"].append(row)
        if self.troubled("duplicate", 0.4):
            again = row | {"received_at": self.later(row["received_at"] or at, 30)}
            again["old_register_wh"] += self.random.choice([0, 0, 1])
            self.rows["meter_exchange"].append(again)

    @staticmethod
    def exchange_row(account_id: str, at: int, old_id: str, old_wh: int, new_id: str, new_wh: int) -> Row:
        return {
            "account_id": account_id,
            "exchanged_at": at,
            "old_meter_id": old_id,
            "old_register_wh": old_wh,
            "new_meter_id": new_id,
            "new_register_wh": new_wh,
            "register_modulus_wh": None,
            "received_at": None,
        }

    # -- readings
    def make_readings(self, household: Household) -> None:
        leap_until, leap = 0, 0
        withheld = self.withhold(household)
        for at in household.moments:
            meter = household.meter_at(at)
            register = household.register_at(at)
            if self.troubled("spike", 0.06):
                leap = self.random.choice([household.max_power_w * 30, household.max_power_w * 300, meter.modulus // 3])
                leap_until = at + self.random.choice([0, 0, 2, 9]) * DAY_US
            if at <= leap_until:
                register = (register + leap) % meter.modulus
            if self.troubled("stuck", 0.04):
                register = self.random.choice([0, max(register - 1, 0), max(register - 500, 0)])
            if self.troubled("range", 0.03):
                register = self.random.choice([-1, meter.modulus, meter.modulus + 5])
            row = self.reading_row(self.its_meter(household, at), at, register)
            if self.troubled("estimate", 0.15):
                row["status"] = "estimated"
                row["register_wh"] = self.random.choice([register, register + 3, max(register - 2, 0)])
            elif self.chance(0.1):
                row["status"] = "measured"
            self.delay(row, at, "late", 0.1, 8)
            if at in withheld:
                row["received_at"] = withheld[at] if self.chance(0.5) else self.later(withheld[at], 4)
            self.delay(row, at, "verylate", 0.1, LONGEST_DELAY_DAYS)
            if self.troubled("future", 0.04):
                ahead = self.random.choice([1, 15 * 60, 16 * 60, 31 * 60, 86400])
                row["received_at"] = max(OPENS_AT, at - ahead * SECOND_US)
            self.rows["reading"].append(row)
            self.repeat_reading(row)

    def withhold(self, household: Household) -> dict[int, int]:
        """Stretches of readings that arrive only after the one that ends the stretch: so a gap is filled in late."""
        withheld = {}
        for _ in range(self.random.randint(1, 3) if self.troubled("late") and len(household.moments) > 4 else 0):
            first = self.random.randrange(1, len(household.moments) - 2)
            last = min(first + self.random.randint(1, 8), len(household.moments) - 1)
            for at in household.moments[first:last]:
                withheld[at] = household.moments[last] + self.random.choice([0, 0, HOUR_US, DAY_US, 4 * DAY_US])
        return withheld

    def repeat_reading(self, row: Row) -> None:
        if self.troubled("duplicate", 0.1):
            again = row | {"received_at": self.later(row["received_at"] or row["read_at"])}
            again["register_wh"] += self.random.choice([0, 0, 0, 1, 10, -1])
            again["status"] = self.random.choice([row["status"], row["status"], None, "estimated"])
            if again["status"] == "estimated" and "estimate" not in self.style.troubles:
                again["status"] = None
            self.rows["reading"].append(again)

    @staticmethod
    def reading_row(meter_id: str, at: int, register: int) -> Row:
        return {"meter_id": meter_id, "read_at": at, "register_wh": register, "status": None, "received_at": None}

    # -- payments and adjustments
    def make_credits(self, household: Household) -> None:
        number = household.account_id[1:]
        for count in range(self.random.randint(1, 5)):
            payment_id = f"P{self.random.randrange(3)}" if self.style.coarse else f"P{number}-{count}"
            row = {
                "payment_id": payment_id,
                "account_id": household.account_id,
                "paid_at": self.any_moment(household),
                "amount_tiyin": self.random.choice([100, 200, 300, 43_378_124]),
                "channel": self.random.choice([None, "payme"]),
                "reverses": None,
                "received_at": None,
            }
            if self.troubled("unknownpay", 0.3):
                row["paid_at"] = self.moment(0, 20)
            self.add_credit("payment", "paid_at", row)
            if self.troubled("reversal", 0.4):
                self.reverse(row)
        for count in range(self.random.randint(0, 2) if self.troubled("adjust") else 0):
            row = {
                "adjustment_id": f"J{self.random.randrange(2)}" if self.style.coarse else f"J{number}-{count}",
                "account_id": household.account_id,
                "adjusted_at": self.any_moment(household),
                "amount_tiyin": self.random.choice([70, -854_233, 465_704, 0]),
                "author": "inspector",
                "reason": "case",
                "received_at": None,
            }
            self.add_credit("adjustment", "adjusted_at", row)

    def add_credit(self, kind: str, own_time: str, row: Row) -> None:
        if self.troubled("old", 0.15):
            row["received_at"] = self.moment(20, DAYS)
            row[own_time] = row["received_at"] - self.random.choice([399, 400, 401, 430]) * DAY_US
            row[own_time] -= self.random.choice([0, 0, HOUR_US // 4])
        else:
            self.delay(row, row[own_time], "late", 0.2, 30)
        self.rows[kind].append(row)
        if self.troubled("duplicate", 0.25):
            again = row | {"received_at": self.later(row["received_at"] or row[own_time])}
            again["amount_tiyin"] += self.random.choice([0, 0, 1])
            self.rows[kind].append(again)

    def reverse(self, payment: Row) -> None:
        for _ in range(self.random.choice([1, 1, 2])):
            at = payment["paid_at"] + self.random.choice([0, 1, 5]) * DAY_US
            arrives = max(at, payment["received_at"] or at)
            reversal_id = f"V{self.random.randrange(3)}" if self.style.coarse else f"V{payment['payment_id']}"
            row = payment | {
                "payment_id": reversal_id + self.random.choice(["", "", "x"]),
                "paid_at": at,
                "reverses": payment["payment_id"],
                "received_at": None if arrives == at else arrives,
            }
            if self.chance(0.15):
                row["amount_tiyin"] += 1
            if self.chance(0.1):
                row["reverses"] = reversal_id
            self.rows["payment"].append(row)

    # -- what nobody has heard of
    def make_strangers(self) -> None:
        if not self.troubled("unknown"):
            return
        for _ in range(self.random.randint(1, 6)):
            at = self.moment()
            meter_id = self.random.choice(["Q", "N0", "N1", "N2"])
            self.rows["reading"].append(self.reading_row(meter_id, at, self.random.randrange(100_000)))
        at = self.moment()
        self.rows["meter_exchange"].append(
            self.exchange_row("nobody", at, "Q", 5, self.random.choice(["Q", "N2", "M0"]), 0)
        )
        payment = {
            "payment_id": "P0",
            "account_id": "nobody",
            "paid_at": at,
            "amount_tiyin": 100,
            "channel": None,
            "reverses": None,
            "received_at": None,
        }
        self.rows["payment"].append(payment)

    # -- small things
    def any_moment(self, household: Household) -> int:
        """One of the household's own moments, or any other."""
        return self.random.choice([self.random.choice(household.moments), self.moment()])

    def its_meter(self, household: Household, at: int) -> str:
        """Its meter then; under trouble, now and then another's."""
        if self.troubled("unknown", 0.03):
            return self.random.choice(["N0", "N1", "M0", "M1"])
        return household.meter_at(at).meter_id

    def delay(self, row: Row, at: int, trouble: str, probability: float, longest_days: int) -> None:
        if self.troubled(trouble, probability):
            row["received_at"] = self.later(max(at, row["received_at"] or at), longest_days)


def random_records(seed: int, style: str = "adversary") -> dict[str, list[Row]]:
    """A utility: kind -> rows in file order."""
    return RandomUtility(seed, (STYLES | OF_HOURS)[style]).make()


def render_value(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column.endswith("_at"):
        return (EPOCH + dt.timedelta(microseconds=value)).isoformat()
    return str(value)


def write_csv(records: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> list[Path]:
    """One file for each kind, `KIND.csv`; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, rows in records.items():
        path = folder / f"{kind}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(rows[0])
            writer.writerows([[render_value(c, row[c]) for c in rows[0]] for row in rows])
        paths.append(path)
    return paths
