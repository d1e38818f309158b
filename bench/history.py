"""The warehouse: loading what was settled, recomputing it, and a statement out of it."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from dataclasses import asdict

from bench import make_work
from bench.work import PARTITIONS, Work, measured
from connectors.home import Home
from hisob.homes import make_home
from streams.ingest import ingest_files
from streams.settle import run_settle
from warehouse import load as loading


def load(work: Work) -> dict[str, float]:
    """Both logs of the settled home into an empty warehouse; then the whole of `hisob load`,
    which checks and publishes too.
    """
    home = work.home("settled")
    empty_warehouse(home)
    with measured() as took, loading.holding(home):
        loaded = loading.load(home)
    empty_warehouse(home)
    with measured() as command:
        load_and_publish(home)
    return {
        "load_rows_per_s": loaded.records / took.seconds,
        "load_cpu_s": took.cpu_seconds,
        "load_command_s": command.seconds,
    }


def empty_warehouse(home: Home) -> None:
    """As before the first load."""
    shutil.rmtree(home.lake, ignore_errors=True)
    shutil.rmtree(home.published.parent, ignore_errors=True)
    home.warehouse.unlink(missing_ok=True)
    for folder in (home.lake, home.published.parent):
        folder.mkdir()
    os.sync()


def load_and_publish(home: Home) -> None:
    """What `hisob load` does."""
    os.environ["PREFECT_HOME"] = str(home.scratch / "prefect")
    from flows.load_history import load_history

    load_history.fn(str(home.path))


def reconcile(work: Work) -> dict[str, float]:
    """The independent auditor over all that was loaded: what 10 M readings take at its rate."""
    from warehouse.audit import open_for_audit
    from warehouse.reconcile import reconcile as recompute

    with measured() as took, open_for_audit(work.home("settled")) as con:
        result = recompute(con)
    if result.different:
        raise RuntimeError(f"{result.different} differences, first {result.differences[0]}")
    return {
        "reconcile_s": took.seconds * 10_000_000 / result.readings,
        "reconcile_cpu_s": took.cpu_seconds * 10_000_000 / result.readings,
        "reconciled_readings": result.readings,
    }


def make_year(work: Work) -> None:
    """The home `year`: a year of half-hours of some accounts, settled, loaded and published."""
    make_work.write_year(work)
    home = make_home(work.home("year").path, PARTITIONS)
    ingest_files(home, [(kind, work.file(f"year-{kind}.parquet")) for kind in ("account", "reading", "payment")])
    run_settle(home, drain=True)
    load_and_publish(home)


def statement(work: Work) -> dict[str, float]:
    """A year's statement of an account, from the question to its JSON: the median of several accounts, after a first one."""
    from hisob.commands.statement import as_plain
    from warehouse.audit import open_published
    from warehouse.statement import make_statement

    times = []
    with open_published(work.home("year")) as con:
        for number in range(min(21, work.year_meters)):
            began = time.perf_counter()
            page = make_statement(con, f"1103-{number:08d}")
            json.dumps(asdict(page), default=as_plain)
            times.append(time.perf_counter() - began)
            if not page.adds_up:
                raise RuntimeError(f"the statement of {page.account_id} does not add up")
    return {"statement_s": statistics.median(times[1:]), "statement_first_s": times[0]}
