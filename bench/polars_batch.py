"""A batch job in Polars for the same readings and blocks, Parquet to Parquet: what a data engineer would write in 20 lines.

No state, no late or doubtful readings, no payments, no decisions; the whole history is held in memory, on all processors.
"""

from __future__ import annotations

from itertools import pairwise

import polars as pl

from bench.idiomatic import BLOCKS
from bench.ingest import small_work
from bench.work import Work, measured


def cost_tiyin(used_wh: pl.Expr) -> pl.Expr:
    """What so much use of a month costs: every block's price on what lies above its lower limit,
    less that of the block before.
    """
    edges = [0, *(upto_kwh * 1000 for upto_kwh, _ in BLOCKS[:-1])]
    steps = [BLOCKS[0][1], *(after - before for (_, before), (_, after) in pairwise(BLOCKS))]
    total = sum((used_wh - edge).clip(lower_bound=0) * step for edge, step in zip(edges, steps, strict=True))
    return total // 1000


def charge(work: Work) -> None:
    """Read, charge, write."""
    accounts = pl.scan_parquet(work.file("account.parquet")).select(
        "meter_id", "account_id", "opening_register_wh", "opening_balance_tiyin"
    )
    meter, month = ["meter_id"], ["meter_id", "month"]
    step = pl.col("read_at") - pl.duration(microseconds=1)
    (
        pl.scan_parquet(work.file("reading.parquet"))
        .join(accounts, on="meter_id")
        .sort("meter_id", "read_at")
        .with_columns(
            from_at=pl.col("read_at").shift(1).over(meter),
            from_wh=pl.col("register_wh").shift(1).over(meter).fill_null(pl.col("opening_register_wh")),
            month=step.dt.convert_time_zone("Asia/Tashkent").dt.truncate("1mo"),
        )
        .with_columns(usage_wh=pl.col("register_wh") - pl.col("from_wh"))
        .with_columns(month_wh=pl.col("usage_wh").cum_sum().over(month))
        .with_columns(amount_tiyin=cost_tiyin(pl.col("month_wh") - pl.col("usage_wh")) - cost_tiyin(pl.col("month_wh")))
        .with_columns(balance_tiyin=pl.col("opening_balance_tiyin") + pl.col("amount_tiyin").cum_sum().over(meter))
        .select(
            "account_id", "from_at", "read_at", "from_wh", "register_wh", "usage_wh", "amount_tiyin", "balance_tiyin"
        )
        .collect()
        .write_parquet(work.folder / "polars.parquet")
    )


def polars_batch(work: Work) -> dict[str, float]:
    """All readings, after a small run that loads what is loaded once."""
    charge(small_work(work))
    with measured() as took:
        charge(work)
    charged = pl.scan_parquet(work.folder / "polars.parquet").select(-pl.col("amount_tiyin").sum()).collect().item()
    return {
        "polars_readings_per_s": work.readings / took.seconds,
        "polars_cpu_s": took.cpu_seconds,
        "polars_charged_tiyin": charged,
    }
