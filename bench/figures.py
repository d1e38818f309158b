"""The figures: what each is called, what it is aimed at, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One figure of bench/latest.json."""

    key: str
    what: str
    target: float
    better: Literal["more", "less"]
    form: str  # how a value is written
    how: str

    def met(self, value: float) -> bool:
        """Whether it is as good as it should be."""
        return value >= self.target if self.better == "more" else value <= self.target

    def aim(self) -> str:
        """The target in words."""
        return f"{'≥' if self.better == 'more' else '≤'} {self.form.format(self.target)}"


MILLIONS, TIMES, SECONDS = "{:,.0f}", "{:.2f} ×", "{:.2f} s"
FIGURES = (
    Figure("ingest_rows_per_s", "ingest, Parquet", 1.5e6, "more", MILLIONS,
           "readings and payments as two files, one call, to the last fsync; accounts are in the journal"),
    Figure("ingest_csv_rows_per_s", "ingest, CSV", 0.7e6, "more", MILLIONS, "the first 40 half-hours as one file"),
    Figure("settle_readings_per_s", "settle", 2.5e6, "more", MILLIONS,
           "run_settle to the end of the journal that ingest made: state resumed, events and snapshot durable"),
    Figure("idiomatic_ratio", "… as fast as one object per meter", 25, "more", "{:.1f} ×",
           "bytewax stateful_map, recovery on, Parquet to lines of text; a twentieth of the meters, all their readings"),
    Figure("polars_ratio", "… as fast as a batch in Polars", 1.5, "more", TIMES,
           "the same readings, Parquet to Parquet, all processors"),
    Figure("passthrough_ratio", "… as slow as with no rules", 2, "less", TIMES,
           "the same journal decoded, made-up entries and settle's other events encoded, appended; taking turns, median of 5"),
    Figure("settle_troubled_readings_per_s", "settle, 2 % out of the ordinary", 2.5e6, "more", MILLIONS,
           "the same with readings estimated, sent again, three hours late, leaping, going back, zero (bench.make_work)"),
    Figure("troubled_ratio", "… as slow as with no rules", 2, "less", TIMES,
           "pass-through of that journal; taking turns, median of 5"),
    Figure("resume_1m_s", "resume with 1 M meters", 2, "less", SECONDS,
           "from starting `hisob settle` until later readings and ticks are settled in every partition; median of 3"),
    Figure("state_bytes_per_meter", "state per meter", 400, "less", "{:.0f} bytes", "a row of ACCOUNT and its wake_at"),
    Figure("peak_rss_1m_mib", "peak memory, 1 M meters", 1536, "less", "{:,.0f} MiB",
           "of the process that settles 1 M accounts and two readings of each, with its snapshot"),
    Figure("load_rows_per_s", "load into DuckDB", 2e6, "more", MILLIONS,
           "records of both logs, by warehouse.load into an empty warehouse; checks and publishing aside"),
    Figure("reconcile_s", "10 M readings recomputed in SQL", 30, "less", "{:.1f} s",
           "hisob reconcile over the loaded home, every entry and balance, at the rate of all its readings"),
    Figure("statement_s", "statement of a year", 0.1, "less", "{:.3f} s",
           "a meter's year of half-hours, from the question to JSON, database open; median of 20 after a first"),
    Figure("live_p99_s", "append to event, p99", 2, "less", SECONDS,
           "5,000 readings/s for 30 s, ticks within, from the sixth second on; seen by what `hisob tail` is made of"),
    Figure("poll_meters_per_s", "meters polled over Modbus TCP", 1_000, "more", MILLIONS,
           "rounds of `hisob poll` over 20 gateways of one simulated fleet, each to the last fsync; median of 5"),
    Figure("payment_to_command_p99_s", "payment to command, p99", 2, "less", SECONDS,
           "from offering a payment to the journal until `hisob tail commands` shows the reconnection; 500 payments"),
    Figure("payment_to_light_p99_s", "payment to light, p99", 10, "less", SECONDS,
           "until the simulated switch is closed, 2 % of 500 failing at any time; payments of failing ones counted apart"),
    Figure("kills_survived", "kill -9, same digest after it", 100, "more", "{:.0f}",
           "ingest and settle, one process and two, at random moments; the digests compared (tests/test_crashes.py)"),
    Figure("lost_or_doubled_writes", "writes lost or doubled by kills", 0, "less", "{:.0f}",
           "20 kills -9 of settle, dispatch, notify, poll and clock each, while switches are ordered off and on all the time"),
    Figure("doubled_notices", "messages doubled by the same kills", 0, "less", "{:.0f}",
           "lines of the outbox beyond one a notice"),
)  # fmt: skip


def ratios(values: dict[str, float]) -> dict[str, float]:
    """The figures that are settle's rate beside another's, as far as both are known.

    Both must have come to the same charges.
    """
    if values.get("polars_charged_tiyin", charged := values.get("charged_tiyin")) != charged:
        raise RuntimeError(
            f"Polars charged {values['polars_charged_tiyin']}, settle {charged} tiyin for the same readings"
        )
    settle = values.get("settle_readings_per_s")
    found = {}
    for name in ("idiomatic", "polars"):
        other = values.get(f"{name}_readings_per_s")
        if settle and other:
            found[f"{name}_ratio"] = settle / other
    return found
