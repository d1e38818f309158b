"""`hisob reconcile-payments`: a channel's own list of what it took against the payments here; exit 1 unless all matched."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hisob.commands import AsJson, home_of, parse_day

if TYPE_CHECKING:
    from warehouse.payments import ChannelTotal, Difference, PaymentReconciliation

ROWS_SHOWN = 50
NAMES = {
    "account_id": "account",
    "paid_at": "paid",
    "amount_tiyin": "soum",
    "channel": "channel",
    "reverses": "takes back",
}
OUTCOMES = {
    "differing": "differing",
    "missing_here": "missing here",
    "missing_there": "missing there",
    "reversed": "reversed here",
    "repeated": "repeated there",
}


def reconcile_payments(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="The channel's list: CSV, Parquet or NDJSON, with the columns of a payment.")
    ],
    channel: Annotated[str | None, typer.Option(help="The channel of rows that name none.")] = None,
    day: Annotated[
        str | None, typer.Option(help="A day of Asia/Tashkent, YYYY-MM-DD; without it, all the days of the list.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a channel's own list of payments with those published here: matched, differing, missing here or there.

    What it came to is kept in the home, and the next load takes it into the warehouse (payment_reconciliations,
    payment_differences). Exit 1: not everything matched; 2: the list cannot be compared, with row and column.
    """
    from connectors.files import FileError
    from hisob.errors import HisobError
    from warehouse.audit import open_for_audit
    from warehouse.payment_runs import keep
    from warehouse.payments import PaymentListError
    from warehouse.payments import reconcile_payments as compare

    wanted = parse_day(day, "--day")
    home, _ = home_of(context)
    try:
        with open_for_audit(home) as con:
            result = compare(con, file, channel, wanted)
    except (FileError, PaymentListError) as error:
        raise HisobError(str(error), exit_code=2) from error
    keep(home, result)
    if as_json:
        print(json.dumps({**asdict(result), "agrees": result.agrees}, ensure_ascii=False))
    else:
        say(result)
    if not result.agrees:
        raise typer.Exit(1)


# ---- for people ------------------------------------------------------------------------------------------------------


def say(result: PaymentReconciliation) -> None:
    """Each channel, adding up on the page, then what was not matched."""
    days = result.first_day if result.first_day == result.last_day else f"{result.first_day} to {result.last_day}"
    print(
        f"{result.file}: {result.rows:,} payments, compared for {days} (Asia/Tashkent); published up to {result.ticked_at}"
    )
    if result.other_days:
        print(f"{result.other_days:,} of them are of other days, and are left out.")
    if result.ticked_at is None or datetime.fromisoformat(result.ticked_at) < end_of(result.last_day):
        print("The published database ends before these days do, so what came later is missing here: hisob load.")
    for total in result.channels:
        say_channel(total)
    if result.differences:
        print()
        print_differences(result.differences)
    print("\nEverything matched." if result.agrees else "\nNot everything matched.")


def end_of(day: str) -> datetime:
    """When a day of Asia/Tashkent ends."""
    from accounting.moments import TASHKENT

    return datetime.fromisoformat(day).replace(tzinfo=TASHKENT) + timedelta(days=1)


def say_channel(total: ChannelTotal) -> None:
    """A table whose columns add up: matched + differing + missing here, and matched + differing + missing there."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hisob.commands.statement import soum

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(Text(total.channel or "no channel named"))
    for name in ("in the list", "soum", "in the ledger", "soum"):
        table.add_column(name, justify="right", no_wrap=True)
    lines = (
        ("matched", total.matched, total.matched_tiyin, total.matched, total.matched_tiyin),
        ("differing", total.differing, total.differing_theirs_tiyin, total.differing, total.differing_ours_tiyin),
        ("missing here", total.missing_here, total.missing_here_tiyin, None, 0),
        ("missing there", None, 0, total.missing_there, total.missing_there_tiyin),
        ("in all", total.theirs, total.theirs_tiyin, total.ours, total.ours_tiyin),
    )
    for name, theirs, theirs_tiyin, ours, ours_tiyin in lines:
        left = ("", "") if theirs is None else (f"{theirs:,}", soum(theirs_tiyin))
        right = ("", "") if ours is None else (f"{ours:,}", soum(ours_tiyin))
        table.add_row(name, *left, *right)
    print()
    Console(highlight=False).print(table)
    if total.refused or total.held:
        print(f"among those missing here: refused {total.refused:,}, held {total.held:,}")
    if total.reversed:
        print(f"reversed here: {total.reversed:,}, {soum(total.reversed_tiyin)} soum")
    if total.repeated:
        print(f"rows that repeat others, not counted above: {total.repeated:,}, {soum(total.repeated_tiyin)} soum")


def print_differences(differences: list[Difference]) -> None:
    """The first of what was not matched, a line each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hisob.commands.statement import soum

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("row", "payment", "account", "soum", "what", "why"):
        table.add_column(name, justify="right" if name in {"row", "soum"} else "left", overflow="fold")
    for d in differences[:ROWS_SHOWN]:
        amount = soum(d.amount_tiyin if d.reverses is None else -d.amount_tiyin)
        row = "" if d.row is None else str(d.row)
        table.add_row(*(Text(text) for text in (row, d.payment_id, d.account_id, amount, OUTCOMES[d.outcome], why(d))))
    Console(highlight=False).print(table)
    if len(differences) > ROWS_SHOWN:
        print(f"{len(differences) - ROWS_SHOWN:,} more are not shown; --json lists them all.")


def why(difference: Difference) -> str:
    """What is to be said of a difference on its line."""
    if difference.rows:
        return f"rows {', '.join(map(str, difference.rows))}"
    columns = [
        f"{NAMES[c['column']]}: {shown(c['column'], c['theirs'])} there, {shown(c['column'], c['ours'])} here"
        for c in difference.columns
    ]
    reason = [difference.reason.replace("_", " ")] if difference.reason else []
    return "; ".join([*reason, *columns]) or (f"record {difference.record}" if difference.record else "")


def shown(column: str, value: Any) -> str:
    """A value of a column: money in soum, times by the clocks of Tashkent."""
    from accounting.moments import TASHKENT
    from hisob.commands.statement import soum

    if value is None:
        return "none"
    if column == "amount_tiyin":
        return soum(value)
    if column == "paid_at":
        return datetime.fromisoformat(value).astimezone(TASHKENT).replace(tzinfo=None).isoformat(" ")
    return str(value)
