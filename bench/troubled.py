"""Settle with two readings in a hundred out of the ordinary, beside pass-through of the same journal."""

from __future__ import annotations

from contextlib import closing

from bench import make_work
from bench.ingest import warm_up
from bench.passthrough import pass_through
from bench.settle import batches_of
from bench.work import Work, measured
from connectors.log.rows import lag_of
from connectors.log.sqlite import open_log
from streams.ingest import ingest_files
from streams.settle import run_settle


def make_troubled(work: Work) -> None:
    """The file of readings, and the home `troubled`: they and the payments journalled, the accounts alone settled."""
    make_work.write_troubled(work)
    home = work.copied_home("troubled", "accounts")
    ingest_files(home, [(kind, work.file(f"{name}.parquet")) for kind, name in FILES.items()])


FILES = {"reading": "troubled", "payment": "payment"}


def settle(work: Work) -> dict[str, float]:
    """Settle them all."""
    warm_up(work)
    home = work.copied_home("troubled-settled", "troubled")
    readings = count(work, "troubled", "reading")
    with measured() as took:
        run_settle(home, drain=True)
    with (
        closing(open_log(home.journal, readonly=True)) as journal,
        closing(open_log(home.events, readonly=True)) as events,
    ):
        refused = sum(batch.num_rows for batch in batches_of(events, "refused"))
        if lag_of(journal, events.committed("settle")) or not 0.005 * readings < refused < 0.02 * readings:
            raise RuntimeError(f"not the work it should be: {refused} of {readings} refused")
    return {
        "settle_troubled_readings_per_s": readings / took.seconds,
        "settle_troubled_cpu_s": took.cpu_seconds,
        "troubled_refused": refused,
    }


def passthrough(work: Work) -> dict[str, float]:
    """The same journal, passed through."""
    rate, ratio = pass_through(work, "troubled", "troubled-settled", count(work, "troubled", "reading"))
    return {"passthrough_troubled_readings_per_s": rate, "troubled_ratio": ratio}


def count(work: Work, name: str, kind: str) -> int:
    """How many records of a kind a home's journal holds."""
    with closing(open_log(work.home(name).journal, readonly=True)) as journal:
        return sum(batch.num_rows for batch in batches_of(journal, kind))
