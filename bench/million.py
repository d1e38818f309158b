"""A million meters in state: how much memory settling them takes, and how long it takes to go on from where one was."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from accounting.records import TIME
from accounting.state import ACCOUNT
from bench import make_work
from bench.following import following
from bench.work import HALF_HOUR_US, PARTITIONS, START_US, Work, measured, peak_rss_mib
from hisob.homes import make_home
from streams.ingest import ingest_files
from streams.settle import run_settle

WAKE_AT_BYTES = 8  # beside each row of ACCOUNT
ROUNDS = 3


def make_million(work: Work) -> None:
    """The home `million`: all accounts and two readings of each in the journal, nothing settled."""
    make_work.write_million(work)
    home = make_home(work.home("million").path, PARTITIONS)
    ingest_files(home, [(kind, work.file(f"million-{kind}.parquet")) for kind in ("account", "reading")])


def memory(work: Work) -> dict[str, float]:
    """The most memory of a process that settles all of it: accounts, readings, the snapshot at the end."""
    home = work.copied_home("million-settled", "million")
    with measured() as took:
        run_settle(home, drain=True)
    return {
        "peak_rss_1m_mib": peak_rss_mib(),
        "state_bytes_per_meter": ACCOUNT.itemsize + WAKE_AT_BYTES,
        "settle_1m_s": took.seconds,
    }


def resume(work: Work) -> dict[str, float]:
    """From the start of `hisob settle` until it has settled what came since in every partition: the median of some rounds."""
    home = work.copied_home("million-resumed", "million-settled")
    some = pq.read_table(work.file("million-reading.parquet"), columns=["meter_id", "register_wh"])
    some = some.slice(some.num_rows - 200)  # the last reading of so many meters: some in every partition
    rounds = []
    for number in range(ROUNDS):
        read_at = datetime.fromtimestamp(START_US / 1e6, UTC) + timedelta(microseconds=(3 + number) * HALF_HOUR_US)
        path = work.file(f"million-later-{number}.parquet")
        pq.write_table(some.append_column("read_at", pa.array([read_at] * some.num_rows, TIME)), path)
        ingest_files(home, [("reading", path)])
        with following(home) as seconds:
            rounds.append(seconds)
    return {"resume_1m_s": statistics.median(rounds)}
