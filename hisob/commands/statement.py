"""`hisob statement`: an account from what it began with to what it ends with, adding up on the page."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    from rich.table import Table

    from warehouse.statement import Block, Statement, Usage

DAYS_SHOWN = 92  # more are shown by month
KIND_NAMES = {"opening": "brought along", "payment": "payments", "reversal": "reversals", "adjustment": "adjustments"}


def statement(
    context: typer.Context,
    account: Annotated[str, typer.Argument(help="The account.")],
    month: Annotated[
        str | None, typer.Option(help="A month of Asia/Tashkent, YYYY-MM; without it, all there is.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Opening, payments, usage by day and block, corrections, closing: the account's balance from registers up."""
    from warehouse.audit import open_published
    from warehouse.statement import make_statement

    wanted = parse_month(month)
    home, _ = home_of(context)
    with open_published(home) as con:
        page = make_statement(con, account, wanted)
    if as_json:
        print(json.dumps(asdict(page), default=as_plain, ensure_ascii=False))
    else:
        print_statement(page)
    if not page.adds_up:
        raise typer.Exit(1)


def parse_month(text: str | None) -> date | None:
    """The first day of a month given as YYYY-MM."""
    from hisob.errors import HisobError

    if text is None:
        return None
    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise HisobError(f"--month is a month such as 2025-03, not {text}.", exit_code=2) from None


def as_plain(value: Any) -> str:
    """Times and days in JSON: ISO 8601."""
    return value.isoformat()


# ---- the page --------------------------------------------------------------------------------------------------------


def print_statement(page: Statement) -> None:
    """The statement as a page of text."""
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    console.print()
    console.print(f"[bold]Account {page.account_id}[/]   {page.first_day:%d.%m.%Y} to {page.last_day:%d.%m.%Y}")
    console.print(about(page), style="dim")
    for title, table in ((t, table) for t, table in sections(page) if table.row_count):
        console.print(f"\n[bold]{title}[/]")
        console.print(Padding(table, (0, 0, 0, 2)))
    console.print("\n[bold]Adding up[/]")
    console.print(Padding(summary(page), (0, 0, 0, 2)))
    console.print(verdict(page))
    console.print()


def about(page: Statement) -> str:
    """Who the account is, in a line."""
    a = page.account
    parts = [f"meter {a['meter_id']}", f"tariff {a['tariff']}"]
    parts += [f"{a['families']} families"] if a["families"] and a["families"] > 1 else []
    parts += [f"supply {a['supply_state']}"] if a["supply_state"] else []
    if a["depletes_at"]:
        from warehouse.statement import TASHKENT

        word = "lasts until" if a["depletes_at"] > a["forecast_at"] else "ran out"
        parts.append(f"credit {word} about {a['depletes_at'].astimezone(TASHKENT):%d.%m.%Y %H:%M}")
    return ", ".join(parts) + ". Soum; times of Tashkent."


def sections(page: Statement) -> list[tuple[str, Table]]:
    """The tables of the page, each with its title."""
    by_month = len(page.usage) > DAYS_SHOWN
    title = "Usage by month and block (--month YYYY-MM shows its days)" if by_month else "Usage by day and block"
    return [
        ("Payments and other credits", lines_table(page.credits)),
        (title, usage_table(grouped(page.usage) if by_month else [(days_text(u), u) for u in page.usage])),
        ("Corrections", lines_table(page.corrections)),
    ]


def new_table(*columns: tuple[str, str]) -> Table:
    """A table without frames."""
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in columns:
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    return table


def lines_table(lines: list[Any]) -> Table:
    """Entries, a line each."""
    from rich.text import Text

    table = new_table(("when", "left"), ("what", "left"), ("amount", "right"), ("", "left"))
    for line in lines:
        table.add_row(f"{line.at:%d.%m.%Y %H:%M}", line.kind, soum(line.amount_tiyin), Text(line.text, style="dim"))
    return table


def usage_table(rows: list[tuple[str, Usage]]) -> Table:
    """Usage, a line a block; a day's sum stands in its first line."""
    table = new_table(
        ("when", "left"),
        ("kWh", "right"),
        ("charge", "right"),
        ("block", "left"),
        ("kWh", "right"),
        ("price", "right"),
        ("cost", "right"),
    )
    for when, usage in rows:
        first = [f"{when} est." if usage.basis == "estimated" else when, kwh(usage.usage_wh), soum(usage.amount_tiyin)]
        for block in usage.blocks:
            table.add_row(
                *first, limits(block), kwh(block.usage_wh), soum(block.price_tiyin_per_kwh), soum(block.amount_tiyin)
            )
            first = ["", "", ""]
        if usage.rest_tiyin or not usage.blocks:
            table.add_row(
                *first,
                "not explained" if usage.rest_tiyin else "",
                "",
                "",
                soum(usage.rest_tiyin) if usage.rest_tiyin else "",
            )
    return table


def limits(block: Block) -> str:
    """A block's limits."""
    if block.upto_kwh is None:
        return f"above {block.above_kwh:,} kWh" if block.above_kwh else "all"
    return f"{block.above_kwh:,}–{block.upto_kwh:,} kWh"


def grouped(usage: list[Usage]) -> list[tuple[str, Usage]]:
    """Days put together to months, block by block."""
    from warehouse.statement import Usage, add_blocks

    months: dict[tuple[str, str | None, str], Usage] = {}
    for day in usage:
        key = (f"{day.first_day:%Y-%m}", day.tariff, day.basis)
        into = months.setdefault(key, Usage(day.first_day, day.last_day, day.tariff, day.basis))
        into.last_day = day.last_day
        into.usage_wh += day.usage_wh
        into.amount_tiyin += day.amount_tiyin
        into.rest_tiyin += day.rest_tiyin
        into.blocks = add_blocks(into.blocks, day.blocks)
    return [(month, usage) for (month, _, _), usage in months.items()]


def days_text(usage: Usage) -> str:
    """The day of a usage, or its first and last."""
    first, last = usage.first_day, usage.last_day
    if first == last:
        return f"{last:%d.%m.%Y}"
    return f"{first:%d.%m}–{last:%d.%m.%Y}" if first.year == last.year else f"{first:%d.%m.%Y}–{last:%d.%m.%Y}"


def summary(page: Statement) -> Table:
    """Opening, what came and went, closing."""
    table = new_table(("", "left"), ("soum", "right"), ("", "left"))
    table.add_row("opening balance", soum(page.opening_tiyin))
    for kind in dict.fromkeys(line.kind for line in page.credits):
        amounts = [line.amount_tiyin for line in page.credits if line.kind == kind]
        table.add_row(f"{KIND_NAMES[kind]} ({len(amounts)})", signed(sum(amounts)))
    table.add_row(f"usage ({kwh(sum(u.usage_wh for u in page.usage))} kWh)", signed(page.usage_tiyin))
    if page.corrections:
        given_back_wh = sum(line.usage_wh for line in page.corrections)
        name = f"corrections ({len(page.corrections)}" + (f", {kwh(given_back_wh)} kWh)" if given_back_wh else ")")
        table.add_row(name, signed(page.corrections_tiyin))
    table.add_row("[bold]closing balance[/]", f"[bold]{soum(page.closing_tiyin)}[/]")
    return table


def verdict(page: Statement) -> str:
    """Whether the page adds up, in a sentence."""
    if not page.adds_up:
        return "[bold red]This does not add up to the balance of the ledger.[/]"
    if not page.explained:
        return "[yellow]It adds up to the balance of the ledger, but some charges are not what their blocks come to.[/]"
    return "[green]It adds up to the balance of the ledger, and every charge is what its blocks come to.[/]"


def soum(tiyin: int) -> str:
    """An amount in soum."""
    whole, rest = divmod(abs(tiyin), 100)
    return f"{'−' if tiyin < 0 else ''}{whole:,}.{rest:02}".replace(",", " ")


def signed(tiyin: int) -> str:
    """An amount in soum that is added."""
    return soum(tiyin) if tiyin < 0 else f"+{soum(tiyin)}"


def kwh(wh: int) -> str:
    """Energy in kWh."""
    whole, rest = divmod(abs(wh), 1000)
    return f"{'−' if wh < 0 else ''}{whole:,}.{rest:03}".replace(",", " ")
