"""`hisob reconcile`: every entry and balance recomputed in SQL from registers, tariffs and payments; exit 1 if any differs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    from warehouse.reconcile import Difference, Reconciliation

ROWS_SHOWN = 50


def reconcile(
    context: typer.Context,
    account: Annotated[str | None, typer.Option(help="One account; without it, all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every entry and balance in SQL, apart from the code that charged, and list what differs by a tiyin."""
    from warehouse.audit import open_for_audit
    from warehouse.reconcile import reconcile as recompute

    home, _ = home_of(context)
    began = time.monotonic()
    with open_for_audit(home) as con:
        result = recompute(con, account)
    seconds = time.monotonic() - began
    if as_json:
        print(json.dumps({**asdict(result), "seconds": round(seconds, 3)}, ensure_ascii=False))
    else:
        say(result, seconds)
    if result.different:
        raise typer.Exit(1)


def say(result: Reconciliation, seconds: float) -> None:
    """What was recomputed, and a table of what differs."""
    from hisob.commands.statement import soum

    print(
        f"Recomputed {result.accounts:,} accounts, {result.entries:,} entries of {result.readings:,} readings and their "
        f"credits in {seconds:.1f} s:"
    )
    print(
        f"credited {soum(result.credited_tiyin)} soum, charged {soum(result.charged_tiyin)}, balances "
        f"{soum(result.balance_tiyin)} soum."
    )
    if result.different:
        print_differences(result)
    else:
        print("The ledger agrees with the registers and the tariffs to the tiyin.")


def print_differences(result: Reconciliation) -> None:
    """The first differences, a line a column that differs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("account", "moment", "what", "column", "the ledger says", "registers and tariffs say", "record"):
        table.add_column(name, justify="right" if "say" in name else "left", overflow="fold")
    for difference in result.differences[:ROWS_SHOWN]:
        first = [difference.account_id, difference.at or "at the end", difference.what]
        for column, ledger, audit in lines_of(difference):
            last = difference.entry_id or difference.record or ""
            table.add_row(*(Text(text) for text in (*first, column, ledger, audit, last)))
            first = ["", "", ""]
    Console(highlight=False).print(table)
    left = result.different - min(len(result.differences), ROWS_SHOWN)
    print(
        f"{result.different:,} differences" + (f"; {left:,} more are not shown (--json lists them)." if left else ".")
    )


def lines_of(difference: Difference) -> list[tuple[str, str, str]]:
    """(column, ledger, audit) for each column that differs; one line where a side is missing altogether."""
    ledger, audit = difference.ledger, difference.audit
    if ledger and audit:
        return [(name, text(ledger[name]), text(audit[name])) for name in ledger]
    found = text((ledger or audit).get("amount_tiyin"))
    return [("amount_tiyin", found, "nothing") if ledger else ("amount_tiyin", "no such entry", found)]


def text(value: Any) -> str:
    """A value in the table."""
    return f"{value:,}" if isinstance(value, int) else str(value)
