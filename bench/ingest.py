"""Ingest: files into the journal of a home whose accounts are there and settled; then the same home is settled,
loaded, followed.
"""

from __future__ import annotations

from pathlib import Path

from bench import make_work
from bench.work import PARTITIONS, Work, measured
from connectors.home import Home
from hisob.homes import make_home
from streams.ingest import ingest_files
from streams.settle import run_settle


def make_city(work: Work) -> None:
    """The input files, and the home `accounts`: the accounts journalled and settled, no reading yet."""
    make_work.write_files(work)
    home = make_home(work.home("accounts").path, PARTITIONS)
    ingest_files(home, [("account", work.file("account.parquet"))])
    run_settle(home, drain=True)


def ingest_parquet(work: Work) -> dict[str, float]:
    """Readings and payments as Parquet into the home `city`."""
    if work.scale:
        warm_up(work)
    home = work.copied_home("city", "accounts")
    files = [("reading", work.file("reading.parquet")), ("payment", work.file("payment.parquet"))]
    return {"ingest_rows_per_s": _rate(home, files)}


def ingest_csv(work: Work) -> dict[str, float]:
    """The first half-hours as CSV, into a home that is not used further."""
    small = small_work(work)
    ingest_files(small.copied_home("city-csv", "accounts"), [("reading", small.file("reading.csv"))])
    home = work.copied_home("city-csv", "accounts")
    return {"ingest_csv_rows_per_s": _rate(home, [("reading", work.file("reading.csv"))])}


def _rate(home: Home, files: list[tuple[str, Path]]) -> float:
    with measured() as took:
        report = ingest_files(home, files)
    if report.unreadable or report.waiting:
        raise RuntimeError(f"not the work it should be: {report}")
    return report.taken.total() / took.seconds


def make_warm_up(work: Work) -> None:
    """The small work that every stage begins with."""
    small = small_work(work)
    make_city(small)
    ingest_parquet(small)


def small_work(work: Work) -> Work:
    """The least work there is."""
    return Work(work.folder / "warm-up", 0.0)


def warm_up(work: Work) -> Home:
    """A small home through ingest and settle, so that what is compiled is loaded before anything is measured."""
    small = small_work(work)
    home = small.copied_home("warm", "accounts")
    ingest_files(home, [(kind, small.file(f"{kind}.parquet")) for kind in ("reading", "payment")])
    run_settle(home, drain=True)
    return home
