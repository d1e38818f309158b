"""`hisob settle`: the journal becomes events. Follows the journal, or with `--drain` ends when it is used up."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectors.home import Home


def settle(
    context: typer.Context,
    drain: Annotated[bool, typer.Option("--drain", help="End when the journal is used up.")] = False,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Processes to share the partitions among.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Turn the journal into ledger entries, refusals, forecasts, notices and commands, each exactly once."""
    from streams.lean import start_lean

    start_lean()
    from hisob.errors import HisobError
    from streams.settle import run_settle

    home, settings = home_of(context)
    before, started = _settled(home), time.monotonic()
    with _progress(home, show=sys.stderr.isatty() and not as_json):
        is_used_up = run_settle(home, drain=drain, processes=processes, snapshot_every_s=settings.snapshot_seconds)
    records, seconds = _settled(home) - before, time.monotonic() - started
    if as_json:
        print(json.dumps({"records": records, "seconds": round(seconds, 3)}))
    else:
        print(f"settled {records:,} records in {seconds:.1f} s")
    if drain and not is_used_up and _unsettled(home):
        raise HisobError(
            "Stopped before the journal was used up. What is settled stays; the same call goes on from there."
        )


def _settled(home: Home) -> int:
    """How many journal records have been settled so far."""
    from connectors.log.sqlite import open_log

    with closing(open_log(home.events, readonly=True)) as events:
        return sum(events.committed("settle").values())


def _unsettled(home: Home) -> int:
    """How many journal records are not settled yet."""
    from connectors.log.rows import lag_of
    from connectors.log.sqlite import open_log

    with (
        closing(open_log(home.journal, readonly=True)) as journal,
        closing(open_log(home.events, readonly=True)) as events,
    ):
        return lag_of(journal, events.committed("settle"))


@contextmanager
def _progress(home: Home, *, show: bool) -> Iterator[None]:
    """A bar of records settled of those journalled, on a terminal."""
    if not show:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from connectors.log.sqlite import open_log

    columns = (TextColumn("settle"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    ended = threading.Event()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("settle")

        def watch() -> None:
            with closing(open_log(home.journal, readonly=True)) as journal:
                while not ended.wait(0.3):
                    total = sum(journal.end(partition) for partition in range(journal.partitions))
                    bar.update(task, completed=_settled(home), total=total)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
