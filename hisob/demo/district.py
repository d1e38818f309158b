"""A district of some hundred customers, made of the different weeks of one real house.

Real is the usage: each customer lives five weeks of the house as they were, half hour by half hour, from a Monday on, no
two of them the same five; where the source has no value, the reading is missing. When the weeks are used up they are
dealt out once more at half size, to flats. Made up is all else: who the customers are, what they bring along, how they
pay, and the troubles that every district has (TROUBLES). The dates are those of autumn 2025, with the turn of a month and a
holiday among them.

The same seed makes the same district: nothing here reads a clock.
"""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from accounting.moments import TASHKENT
from hisob.demo.reduce import HOUSEHOLD

STARTS_AT = dt.datetime(2025, 9, 15, tzinfo=TASHKENT)  # a Monday, as the house's weeks are cut
DAY_SLOTS = 48
HALF_HOUR = dt.timedelta(minutes=30)
FEEDER_CUSTOMERS = 50
SOUM = 100  # tiyin

Temperament = Literal["prompt", "payday", "late", "after_cut", "never"]
TEMPERAMENTS: dict[Temperament, int] = {"prompt": 64, "payday": 10, "late": 16, "after_cut": 9, "never": 1}
LANGUAGES = {"uz-Latn": 60, "uz-Cyrl": 15, "ru": 25}


@dataclass(frozen=True)
class Customer:
    """Who lives at a usage point, and how their meter, phone and switch behave."""

    number: int
    account_id: str
    meter_id: str
    feeder: str
    tariff: str
    language: str
    phone: str | None
    temperament: Temperament
    opening_balance_tiyin: int
    opening_register_wh: int
    register_modulus_wh: int = 1_000_000_000
    protected: bool = False
    phone_works: bool = True
    switch_works: bool = True  # at the first command, else from the second on
    flat: bool = False  # lives at half of the house's usage
    first_week: int = 0  # of the house's whole weeks, from 0

    @property
    def new_meter_id(self) -> str:
        """The meter that is put in where theirs is exchanged."""
        return f"{self.meter_id}-N"


@dataclass(frozen=True)
class Trouble:
    """Something that goes wrong at one customer's meter, from one half hour to another."""

    kind: Literal["zero", "spike", "stuck", "twice", "differs", "late", "exchange", "claimed_late"]
    customer: int
    first: int
    last: int
    says: str


@dataclass(frozen=True)
class Given:
    """A record that reaches the utility at a known moment. Its values are as a clerk typed them, right or wrong."""

    arrives_at: dt.datetime
    kind: str
    row: dict[str, Any]


@dataclass(frozen=True)
class District:
    """Customers, their usage by half hour (column 0 is the start), which half hours are read, and what else is known ahead."""

    seed: int
    customers: tuple[Customer, ...]
    usage_wh: NDArray[np.int64]
    is_read: NDArray[np.bool_]
    troubles: tuple[Trouble, ...]
    given: tuple[Given, ...]

    @property
    def slots(self) -> int:
        """How many half hours it lasts."""
        return self.usage_wh.shape[1] - 1


def slot(day: int, hour: float) -> int:
    """The half hour that ends at this hour (local) of this day, counted from 0."""
    return day * DAY_SLOTS + round(hour * 2)


def time_of(at: int) -> dt.datetime:
    """When a half hour ends."""
    return STARTS_AT + at * HALF_HOUR


def moment(day: int, hour: int, minute: int = 0) -> dt.datetime:
    """A moment of a day, counted from 0."""
    return STARTS_AT + dt.timedelta(days=day, hours=hour, minutes=minute)


# What goes wrong, by customer. Customers' own troubles (a phone, a switch, a register about to roll over) stand in `quirk`.
TROUBLES = (
    Trouble("zero", 11, slot(2, 14), slot(2, 14), "the register reads 0 once"),
    Trouble("spike", 17, slot(4, 3), slot(4, 3), "the register jumps by 400 kWh and back"),
    Trouble("stuck", 12, slot(1, 1), slot(1, 13), "the register stands still for half a day, then catches up"),
    Trouble("twice", 13, slot(3, 0), slot(3, 12), "every reading is sent twice"),
    Trouble("differs", 14, slot(4, 10), slot(4, 10), "a reading is sent again with another register"),
    Trouble("claimed_late", 15, 0, slot(3, 9), "the meter reports for three days before its account is entered"),
    Trouble("exchange", 16, slot(5, 11), slot(5, 11), "the meter is exchanged"),
    *(
        Trouble("late", number, slot(15, 20), slot(16, 6), "the night of the month's turn arrives half a day late")
        for number in range(20, 28)
    ),
)
LATE = slot(0, 12)  # so much later than the last of them do late readings arrive


def build_district(seed: int = 1, customers: int = 300, weeks: int = 5) -> District:
    """The district: customers drawn by the seed, each with as many real weeks, and their troubles."""
    rng = random.Random(seed)
    usage, is_read = house_weeks()
    starts = len(usage) // (7 * DAY_SLOTS) - weeks + 1
    order = rng.sample(range(starts), starts)
    people = tuple(quirk(draw_customer(rng, number, order)) for number in range(customers))
    slots = weeks * 7 * DAY_SLOTS
    stretches = np.array([p.first_week * 7 * DAY_SLOTS for p in people])[:, None] + np.arange(slots)
    lived = usage[stretches]
    flats = np.array([p.flat for p in people])
    halves = np.diff(np.cumsum(lived[flats], axis=1) // 2, axis=1, prepend=0)
    lived[flats] = halves
    at_start = np.zeros((customers, 1), np.int64)
    return District(
        seed,
        people,
        np.hstack([at_start, lived]),
        np.hstack([at_start.astype(bool), is_read[stretches]]),
        tuple(t for t in TROUBLES if t.customer < customers and t.last + LATE <= slots),
        tuple(given for given in known_ahead(people) if given.arrives_at <= time_of(slots)),
    )


def house_weeks() -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The house's usage by half hour from its first Monday on, and whether the half hour was measured whole."""
    house = pq.read_table(HOUSEHOLD)
    read_at = house["read_at"].to_numpy()
    days = read_at.astype("datetime64[D]")
    mondays = (read_at == days) & ((days.astype(np.int64) + 3) % 7 == 0)  # 1970-01-01 was a Thursday
    first = int(np.argmax(mondays))
    usage = np.diff(house["register_wh"].to_numpy()[first:])
    return usage, house["missing_minutes"].to_numpy()[first + 1 :] == 0


def draw_customer(rng: random.Random, number: int, order: list[int]) -> Customer:
    """One customer; the draws are the same in number for each, so that a change to one moves no other."""
    turn, place = divmod(number, len(order))
    flat = turn > 0
    balance = rng.randrange(40_000, 400_000, 5_000) // (2 if flat else 1)
    (temperament,) = rng.choices(list(TEMPERAMENTS), list(TEMPERAMENTS.values()))
    (language,) = rng.choices(list(LANGUAGES), list(LANGUAGES.values()))
    register = rng.randrange(500_000, 60_000_000)
    stove = rng.random() < 0.25
    return Customer(
        number=number,
        account_id=f"BK-{number:04d}",
        meter_id=f"M-{10_000 + number}",
        feeder=f"F-{1 + number // FEEDER_CUSTOMERS:02d}",
        tariff="household_stove" if flat and stove else "household",
        language=language,
        phone=f"+9989000{number:05d}",
        temperament=temperament,
        opening_balance_tiyin=balance * SOUM,
        opening_register_wh=register,
        flat=flat,
        first_week=order[place],
    )


def quirk(customer: Customer) -> Customer:
    """What is particular about a few of them."""
    match customer.number:
        case 4:  # a six-digit register that comes to its end within days
            return replace(customer, opening_register_wh=99_930_000, register_modulus_wh=100_000_000)
        case 5:  # a household on a life-support machine, behind with its payments
            return replace(
                customer, protected=True, temperament="never", opening_balance_tiyin=60_000 * SOUM, tariff="household"
            )
        case 6:
            return replace(customer, phone=None, temperament="after_cut", opening_balance_tiyin=90_000 * SOUM)
        case 7:
            return replace(customer, phone_works=False, temperament="after_cut", opening_balance_tiyin=80_000 * SOUM)
        case 8:
            return replace(customer, switch_works=False, temperament="after_cut", opening_balance_tiyin=70_000 * SOUM)
        case 9:
            return replace(customer, temperament="never", opening_balance_tiyin=75_000 * SOUM)
        case _:
            return customer


def known_ahead(customers: tuple[Customer, ...]) -> list[Given]:
    """Accounts, the holiday, and the records of the office and the bank; payments by temperament come as the weeks go by."""
    given = [account_of(c) for c in customers]
    given += [HOLIDAY, ADJUSTMENT, *OFFICE_PAYMENTS]
    stranger = {"meter_id": "M-99999", "register_wh": 1_234_500}
    for time in (moment(4, 0), moment(4, 1), moment(4, 2)):
        given.append(Given(time, "reading", stranger | {"read_at": time}))
    return given


def account_of(customer: Customer) -> Given:
    """The customer's account as it is entered, which one clerk does three days late."""
    late = [time_of(t.last) for t in TROUBLES if t.kind == "claimed_late" and t.customer == customer.number]
    row = {
        "account_id": customer.account_id,
        "effective_at": time_of(0).isoformat(),
        "meter_id": customer.meter_id,
        "district": "bektemir",
        "feeder": customer.feeder,
        "tariff": customer.tariff,
        "phone": customer.phone,
        "language": customer.language,
        "supply_class": "protected" if customer.protected else "normal",
        "opening_balance_tiyin": customer.opening_balance_tiyin,
        "opening_register_wh": customer.opening_register_wh,
        "register_modulus_wh": customer.register_modulus_wh,
        "received_at": late[0].isoformat() if late else None,
    }
    return Given(late[0] if late else time_of(0), "account", row)


HOLIDAY = Given(
    time_of(0),
    "policy",
    {
        "policy_id": "teachers-day-2025",
        "kind": "holiday",
        "scope": "all",
        "starts_at": moment(16, 0).isoformat(),
        "ends_at": moment(17, 0).isoformat(),
        "author": "district office",
        "reason": "Teachers' and Mentors' Day",
        "received_at": time_of(0).isoformat(),
    },
)
ADJUSTMENT = Given(
    moment(9, 10),
    "adjustment",
    {
        "adjustment_id": "ADJ-2025-0001",
        "account_id": "BK-0018",
        "adjusted_at": moment(9, 10).isoformat(),
        "amount_tiyin": 25_000 * SOUM,
        "author": "N. Karimova, billing",
        "reason": "August was read from the wrong meter",
    },
)


def office_payment(at: dt.datetime, payment_id: str, account_id: str, amount: int | str, **more: str) -> Given:
    """A payment taken at the counter."""
    row = {
        "payment_id": payment_id,
        "account_id": account_id,
        "paid_at": at.isoformat(),
        "amount_tiyin": amount,
        "channel": "office",
    }
    return Given(at, "payment", row | more)


# What a counter does in a year: the same payment sent again, the same number for another amount, a slip of the keyboard, an
# account that is not there, a time without a zone, a payment taken back.
OFFICE_PAYMENTS = [
    office_payment(moment(1, 11, 20), "OFF-0001", "BK-0001", 15_000_000),
    office_payment(moment(1, 11, 20), "OFF-0001", "BK-0001", 15_000_000),
    office_payment(moment(2, 10, 5), "OFF-0001", "BK-0001", 18_000_000),
    office_payment(moment(2, 15, 12), "OFF-0002", "BK-0002", "150000,00"),
    office_payment(moment(3, 11, 3), "OFF-0003", "BK-4711", 10_000_000),
    office_payment(moment(3, 16, 8), "OFF-0004", "BK-0003", 12_000_000, paid_at="2025-09-18 16:08"),
    office_payment(moment(4, 12, 40), "OFF-0005", "BK-0010", 20_000_000),
    office_payment(moment(6, 10, 30), "OFF-0006", "BK-0010", 20_000_000, reverses="OFF-0005"),
]
