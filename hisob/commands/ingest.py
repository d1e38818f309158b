"""`hisob ingest`: files into the journal."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.ingest import IngestReport, OnProgress

SHOWN = 60  # characters of a value at fault


def ingest(
    context: typer.Context,
    files: Annotated[
        list[str], typer.Argument(metavar="KIND=FILE...", help="A kind and its file; `-` is standard input.")
    ],
    batch_rows: Annotated[
        int | None, typer.Option(min=1, max=1 << 20, help="Records in one row of the journal, at most.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Validate files (CSV, Parquet, NDJSON) and journal them, merged in order of arrival.

    KIND is tariff, policy, account, meter_exchange, payment, adjustment, order, reading, acknowledgement or receipt.
    The same file twice
    adds nothing; an interrupted call goes on where it stopped. Exit 1: rows were unreadable (the others are taken);
    2: a file was refused.
    """
    home, settings = home_of(context)
    given = [parse_file(text) for text in files]

    from connectors.locks import is_held
    from hisob.errors import HisobError
    from streams.ingest import WrongUseError, ingest_files

    is_live = settings.clock == "wall" and is_held(home.clock_lock)  # then the clock makes the ticks, as time passes
    try:
        with progress_bar() as on_progress:
            report = ingest_files(
                home,
                given,
                batch_rows=batch_rows or settings.batch_rows,
                on_progress=on_progress,
                makes_ticks=not is_live,
            )
    except WrongUseError as error:
        raise HisobError(str(error), exit_code=2) from error
    if as_json:
        print(json.dumps(as_dict(report), ensure_ascii=False))
    else:
        tell(report)
    if report.unreadable:
        raise typer.Exit(1)


def parse_file(text: str) -> tuple[str, Path]:
    """KIND=FILE as (kind, path)."""
    from accounting.records import FILE_KINDS
    from hisob.errors import HisobError

    kind, equals, path = text.partition("=")
    if not equals or not path or kind not in FILE_KINDS:
        raise HisobError(
            f"{text!r} is not KIND=FILE. The kinds are {', '.join(FILE_KINDS)}: hisob ingest reading=june.csv",
            exit_code=2,
        )
    return kind, Path(path)


@contextmanager
def progress_bar() -> Iterator[OnProgress]:
    """On a terminal, a line that tells what is being done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, of: bar.update(task, description=what, completed=done, total=of)


# ---- what came of it -------------------------------------------------------------------------------------------------
def as_dict(report: IngestReport) -> dict[str, object]:
    """The report as JSON has it."""
    return {
        "taken": dict(report.taken),
        "unreadable": dict(report.unreadable),
        "examples": [asdict(example) for example in report.examples],
        "skipped": report.skipped,
        "resumed": report.resumed,
        "ticks": report.ticks,
        "last_tick": None if report.last_tick is None else moment(report.last_tick),
        "routed_on": report.routed_on,
        "waiting": report.waiting,
    }


def moment(us: int) -> str:
    """A moment as ISO 8601 in UTC."""
    from accounting.moments import moment_of

    return moment_of(us).strftime("%Y-%m-%dT%H:%M:%SZ")


def tell(report: IngestReport) -> None:
    """The report for a person: what was taken, what was not and why, what comes next."""
    from hisob.reasons import UNREADABLE

    for name in report.skipped:
        print(f"skipped    {name}: its content is in the journal already")
    for name, count in report.resumed.items():
        print(f"resumed    {name}: {count:,} of its records were journalled by a call that was interrupted")
    for kind, count in report.taken.items():
        print(f"taken      {count:>12,}  {kind}")
    if report.ticks:
        print(f"ticks      {report.ticks:>12,}  up to {moment(report.last_tick or 0)}")
    if report.routed_on:
        print(f"routed on  {report.routed_on:>12,}  readings that had waited for an account of their meter")
    if report.waiting:
        print(f"waiting    {report.waiting:>12,}  readings in all, of meters that no account has claimed yet")
    for reason, count in report.unreadable.most_common():
        print(f"unreadable {count:>12,}  {reason}")
        for example in report.examples:
            if example.reason == reason:
                where = f"{example.file}, row {example.row}" + (f", {example.column}" if example.column else "")
                print(f"             {where}: {shortened(example.value)}")
        print(f"             next: {UNREADABLE[reason].next_step}")
    if report.unreadable:
        print(
            "Unreadable rows are journalled whole and come out as `refused`. Mend them and give them as a file of their own."
        )
    elif report.taken:
        print("Next: hisob settle --drain")


def shortened(value: str | None) -> str:
    """A value to show on a line."""
    if value is None:
        return "no value"
    return repr(value if len(value) <= SHOWN else value[:SHOWN] + "…")
