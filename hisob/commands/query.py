"""`hisob query`: SQL on the published database, read-only."""

from __future__ import annotations

import csv
import datetime as dt
import json
import sys
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

ROWS_SHOWN = 200


def query(
    context: typer.Context,
    sql: Annotated[str, typer.Argument(help="DuckDB's SQL. `SHOW ALL TABLES` lists what there is.")],
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with all rows.")] = False,
) -> None:
    """Query the published database, read-only: a table of the first rows, or all of them as JSON or CSV."""
    from hisob.errors import HisobError
    from warehouse.audit import QueryError, open_published, run_query

    if as_json and as_csv:
        raise HisobError("Either --json or --csv, not both.", exit_code=2)
    home, _ = home_of(context)
    with open_published(home) as con:
        try:
            found = run_query(con, sql)
            names = [column[0] for column in found.description or []]
            if as_json:
                print_json(names, rows_of(found))
            elif as_csv:
                print_csv(names, rows_of(found))
            else:
                print_table(names, rows_of(found))
        except QueryError as error:
            raise HisobError(
                f"{error}\nThe views and their columns: hisob query 'SHOW ALL TABLES'", exit_code=2
            ) from error


def rows_of(found: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    """The rows of a result, a batch at a time."""
    import duckdb

    from warehouse.audit import QueryError

    try:
        while rows := found.fetchmany(10_000):
            yield from rows
    except duckdb.Error as error:
        raise QueryError(str(error).rstrip()) from error


def print_json(names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    """One array of objects."""
    between = "["
    for row in rows:
        print(
            between, json.dumps(dict(zip(names, row, strict=True)), default=plain, ensure_ascii=False), sep="", end=""
        )
        between = ",\n"
    print("[]" if between == "[" else "]")


def print_csv(names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    """A header, then the rows."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([as_text(value) for value in row] for row in rows)


def print_table(names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    """The first rows, for people: as a table, or, where that is wider than the terminal, each row as lines `column value`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = list(islice(rows, ROWS_SHOWN))
    table = Table(header_style="bold")
    for i, name in enumerate(names):
        numbers = any(isinstance(row[i], (int, float, Decimal)) and not isinstance(row[i], bool) for row in shown)
        table.add_column(Text(name), justify="right" if numbers else "left")
    for row in shown:
        table.add_row(*(Text(as_text(value)) for value in row))
    console = Console(highlight=False)
    if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
        console.print(table)
    else:
        width = max(map(len, names))
        for number, row in enumerate(shown, 1):
            console.print(f"row {number}", style="dim")
            for name, value in zip(names, row, strict=True):
                console.print(Text.assemble((f"{name:{width}}  ", "bold"), as_text(value)))
    more = next(rows, None) is not None
    console.print(
        f"the first {len(shown)} rows; --csv or --json give all" if more else f"{len(shown)} rows", style="dim"
    )


def as_text(value: Any) -> str:
    """A value as people and CSV have it; times in UTC as ISO 8601, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=plain, ensure_ascii=False)
    return str(plain(value)) if isinstance(value, (dt.datetime, dt.date)) else str(value)


def plain(value: Any) -> Any:
    """What JSON has no type for, as text (an exact decimal too: a float would not be)."""
    if isinstance(value, dt.datetime) and value.tzinfo:
        return value.astimezone(dt.UTC).isoformat()
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    return str(value)
