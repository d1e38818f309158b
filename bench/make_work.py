"""The input files: households of Tashkent, read every half hour, who top up for 5 to 20 days at a time.

Each has a level of use of its own, a day that peaks in the evening, and half-hours that vary. Balances begin
somewhere within a top-up; who runs low pays, most in time, some late. So in four days a good third of them fall due
for a notice.
"""

from __future__ import annotations

import itertools
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from bench.work import DAY_US, HALF_HOUR_US, START_US, Work

TIME = pa.timestamp("us", tz="UTC")
TIYIN_PER_KWH = 65_000  # about what a household pays; only to say what a top-up of so many days is worth
_HOUR = np.arange(48) / 2
SHAPE = 0.6 + 0.5 * np.exp(-(((_HOUR - 8) / 1.5) ** 2)) + 1.4 * np.exp(-(((_HOUR - 20.5) / 2.2) ** 2))
SHAPE /= SHAPE.sum()


class Households:
    """So many households, and what they use, half-hour by half-hour. The same numbers at any time."""

    def __init__(self, count: int, seed: int, start_us: int = START_US) -> None:
        self.random = np.random.default_rng(seed)
        self.start_us = start_us
        self.count = count
        self.account_ids = pa.array([f"1103-{i:08d}" for i in range(count)])
        self.meter_ids = pa.array([f"MTR{i:09d}" for i in range(count)])
        self.level_wh = np.clip(self.random.lognormal(np.log(7_000), 0.55, count), 500, 60_000)
        self.opening_wh = self.random.integers(0, 50_000_000, count)
        self.register_wh = self.opening_wh
        self.day_tiyin = self.level_wh / 1000 * TIYIN_PER_KWH
        self.top_up_days = self.random.uniform(5, 20, count)
        self.pays_at_days = np.where(
            self.random.random(count) < 0.95,
            self.random.uniform(0.2, 2.8, count),
            self.random.uniform(-1.0, 0.2, count),
        )
        days_left = self.pays_at_days + self.random.random(count) * self.top_up_days
        self.opening_tiyin = (days_left * self.day_tiyin).astype(np.int64)
        self.credit_tiyin = self.opening_tiyin.astype(float)

    def accounts(self) -> pa.RecordBatch:
        """The accounts as they begin, all at once."""
        numbers = np.arange(self.count)
        return pa.record_batch(
            {
                "account_id": self.account_ids,
                "effective_at": _times(np.full(self.count, self.start_us)),
                "meter_id": self.meter_ids,
                "district": _chosen(numbers // 12_000, "district-{:02d}"),
                "feeder": _chosen(numbers // 136, "F-{:05d}"),
                "tariff": _chosen(np.zeros(self.count, int), "household"),
                "phone": pa.array([f"+9989{i:08d}" for i in range(self.count)]),
                "language": pa.array(
                    np.array(["uz-Latn", "uz-Cyrl", "ru"])[self.random.choice(3, self.count, p=[0.6, 0.1, 0.3])]
                ),
                "opening_balance_tiyin": self.opening_tiyin,
                "opening_register_wh": self.opening_wh,
            }
        )

    def next_readings(self, half_hour: int) -> pa.RecordBatch:
        """What all meters show at the end of a half-hour, counted from the start."""
        mean_wh = self.level_wh * SHAPE[half_hour % 48]
        used = np.minimum(mean_wh * self.random.standard_gamma(1.5, self.count) / 1.5, 7_000).astype(np.int64)
        self.register_wh = self.register_wh + used  # a new array: batches share the old one
        self.credit_tiyin -= used * (TIYIN_PER_KWH / 1000)
        read_at = np.full(self.count, self.start_us + (half_hour + 1) * HALF_HOUR_US)
        return pa.record_batch(
            {"meter_id": self.meter_ids, "read_at": _times(read_at), "register_wh": self.register_wh}
        )

    def next_payments(self, half_hour: int) -> dict[str, Any]:
        """Who pays in the half-hour that follows, as columns."""
        who = np.flatnonzero(self.credit_tiyin < self.pays_at_days * self.day_tiyin)
        amount = (self.top_up_days[who] * self.day_tiyin[who]).astype(np.int64) // 100_000 * 100_000 + 100_000
        self.credit_tiyin[who] += amount
        paid_at = self.start_us + (half_hour + 1) * HALF_HOUR_US + self.random.integers(1, HALF_HOUR_US, who.size)
        order = np.argsort(paid_at, kind="stable")
        return {"who": who[order], "paid_at": paid_at[order], "amount_tiyin": amount[order]}


def _times(us: Any) -> pa.Array:
    return pa.array(us).cast(TIME)


def _chosen(numbers: Any, form: str) -> pa.Array:
    return pa.array([form.format(n) for n in numbers.tolist()])


def write_files(work: Work) -> None:
    """account.parquet, reading.parquet, payment.parquet, and the first half-hours once more as reading.csv."""
    work.file("").mkdir(parents=True, exist_ok=True)
    households = Households(work.meters, seed=1)
    accounts = households.accounts()
    pq.write_table(pa.Table.from_batches([accounts]), work.file("account.parquet"), compression="zstd")
    schema = households.next_readings(0).schema
    households = Households(work.meters, seed=1)
    payments = []
    with (
        pq.ParquetWriter(work.file("reading.parquet"), schema, compression="zstd") as parquet,
        pa.csv.CSVWriter(work.file("reading.csv"), schema) as text,
    ):
        gathered: list[pa.RecordBatch] = []
        for half_hour in range(work.half_hours):
            readings = households.next_readings(half_hour)
            gathered.append(readings)
            if half_hour < work.csv_half_hours:
                text.write_batch(in_iso(readings))
            if sum(batch.num_rows for batch in gathered) >= 1 << 20 or half_hour == work.half_hours - 1:
                parquet.write_table(pa.Table.from_batches(gathered).combine_chunks())
                gathered = []
            payments.append(households.next_payments(half_hour))
    pq.write_table(payment_table(households, payments[:-1]), work.file("payment.parquet"), compression="zstd")


# Of a thousand readings twenty are out of the ordinary: what befalls each, and how many.
TROUBLES = {"estimated": 4, "again": 4, "late": 3, "leap": 3, "back": 3, "zero": 3}


def write_troubled(work: Work) -> None:
    """reading.parquet once more, with troubles strewn over it: troubled.parquet."""
    ends = dict(zip(TROUBLES, itertools.accumulate(TROUBLES.values()), strict=True))
    case = " ".join(f"WHEN chance < {end} THEN '{name}'" for name, end in ends.items())
    with duckdb.connect() as con:
        con.execute(
            f"""
            COPY (
                WITH strewn AS (
                    SELECT *, CASE {case} END AS trouble
                    FROM (SELECT *, (hash(meter_id, read_at) >> 3) % 1000 AS chance FROM '{work.file("reading.parquet")}')
                )
                SELECT meter_id, read_at,
                    CASE trouble
                        WHEN 'leap' THEN register_wh + 200_000 WHEN 'back' THEN register_wh - 20_000 WHEN 'zero' THEN 0
                        ELSE register_wh
                    END AS register_wh,
                    CASE WHEN trouble = 'estimated' THEN 'estimated' END AS status,
                    read_at + CASE trouble WHEN 'late' THEN INTERVAL 3 HOUR ELSE INTERVAL 0 HOUR END AS received_at
                FROM strewn
                UNION ALL
                SELECT meter_id, read_at, register_wh, NULL, read_at + INTERVAL 1 HOUR FROM strewn WHERE trouble = 'again'
                ORDER BY received_at
            ) TO '{work.file("troubled.parquet")}' (COMPRESSION zstd)
            """
        )


def in_iso(readings: pa.RecordBatch) -> pa.RecordBatch:
    """Readings with their times as ISO 8601 with an offset, as a contract's CSV has them."""
    moment = readings.column("read_at")[0].as_py().isoformat()
    return readings.set_column(1, "read_at", pa.array([moment] * readings.num_rows))


def payment_table(households: Households, payments: list[dict[str, Any]]) -> pa.Table:
    """All payments as a table."""
    who, paid_at, amount = (np.concatenate([p[name] for p in payments]) for name in ("who", "paid_at", "amount_tiyin"))
    return pa.table(
        {
            "payment_id": pa.array([f"CLICK-{i:010d}" for i in range(who.size)]),
            "account_id": households.account_ids.take(pa.array(who)),
            "paid_at": _times(paid_at),
            "amount_tiyin": amount,
            "channel": pa.array(["click"] * who.size),
        }
    )


def write_million(work: Work) -> None:
    """Very many accounts and their first two half-hours."""
    work.file("").mkdir(parents=True, exist_ok=True)
    households = Households(work.million, seed=2)
    pq.write_table(pa.Table.from_batches([households.accounts()]), work.file("million-account.parquet"))
    readings = pa.Table.from_batches([households.next_readings(half_hour) for half_hour in range(2)])
    pq.write_table(readings, work.file("million-reading.parquet"), compression="zstd")


def write_year(work: Work) -> None:
    """A few accounts, read every half hour for the year before the others begin, with their payments."""
    work.file("").mkdir(parents=True, exist_ok=True)
    households = Households(work.year_meters, seed=3, start_us=START_US - 365 * DAY_US)
    pq.write_table(pa.Table.from_batches([households.accounts()]), work.file("year-account.parquet"))
    readings, payments = [], []
    for half_hour in range(365 * DAY_US // HALF_HOUR_US):
        readings.append(households.next_readings(half_hour))
        payments.append(households.next_payments(half_hour))
    pq.write_table(pa.Table.from_batches(readings), work.file("year-reading.parquet"), compression="zstd")
    pq.write_table(payment_table(households, payments[:-1]), work.file("year-payment.parquet"), compression="zstd")
