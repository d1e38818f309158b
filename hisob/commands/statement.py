"""`hisob statement`: an account from what it began with to what it ends with, adding up on the page."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hisob.commands import AsJson, home_of, parse_day
from hisob.errors import HisobError

if TYPE_CHECKING:
    from rich.table import Table

    from warehouse.statement import Line, Period, Statement, Usage
    from warehouse.words import Words

DAYS_SHOWN = 92  # more are shown by month


class Language(StrEnum):
    """What a statement can be written in."""

    UZ_LATN = "uz-Latn"
    UZ_CYRL = "uz-Cyrl"
    RU = "ru"
    EN = "en"


def statement(
    context: typer.Context,
    account: Annotated[str, typer.Argument(help="The account.")],
    month: Annotated[
        str | None, typer.Option(help="A month of Asia/Tashkent, YYYY-MM; without it, all there is.")
    ] = None,
    first_day: Annotated[str | None, typer.Option("--from", help="Instead, from this day on, YYYY-MM-DD.")] = None,
    last_day: Annotated[str | None, typer.Option("--to", help="Up to this day, itself included.")] = None,
    language: Annotated[
        Language | None, typer.Option(help="Of the page; without it English here, the customer's own in --html.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as a page to print on A4, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Opening, payments, registers, usage by day and block, corrections, closing: the balance from registers up."""
    from warehouse.audit import open_published
    from warehouse.statement import make_statement

    of_month, period = parse_month(month), parse_period(month, first_day, last_day)
    home, _ = home_of(context)
    with open_published(home) as con:
        page = make_statement(con, account, of_month, period)
    if html is not None:
        from warehouse.page import render
        from warehouse.words import DEFAULT

        html.write_text(render(page, language or page.account["language"] or DEFAULT), encoding="utf-8")
    if as_json:
        print(json.dumps(asdict(page), default=as_plain, ensure_ascii=False))
    else:
        print_statement(page, language or Language.EN)
    if not page.adds_up:
        raise typer.Exit(1)


def parse_month(text: str | None) -> date | None:
    """The first day of a month given as YYYY-MM."""
    if text is None:
        return None
    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise HisobError(f"--month is a month such as 2025-03, not {text}.", exit_code=2) from None


def parse_period(month: str | None, first: str | None, last: str | None) -> Period:
    """The days from --from to --to, which do not go together with --month."""
    from warehouse.statement import Period

    period = Period(parse_day(first, "--from"), parse_day(last, "--to"))
    if month is not None and period != Period():
        raise HisobError("Either --month, or --from and --to: not both.", exit_code=2)
    if period.first_day and period.last_day and period.first_day > period.last_day:
        raise HisobError(f"There is no day from {first} to {last}: --to is the last day, itself included.", exit_code=2)
    return period


def as_plain(value: Any) -> str:
    """Times and days in JSON: ISO 8601."""
    return value.isoformat()


# ---- the page --------------------------------------------------------------------------------------------------------


def print_statement(page: Statement, language: str = Language.EN) -> None:
    """The statement as a page of text."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from warehouse.page import final_text, verdict
    from warehouse.words import Words

    words = Words(language)
    console = Console(highlight=False)
    console.print()
    heading = Text(f"{words.sentence('account')} {page.account_id}", style="bold")
    console.print(heading.append(f"   {words.period(page.first_day, page.last_day)}", style="not bold"))
    console.print(Text(about(page, words), style="dim"))
    tables = [*sections(page, words), (words.sentence("adding_up"), summary(page, words))]
    room = console.options.update(max_width=500)
    # A number that is cut off is worse than a line that is too long.
    console.width = max(console.width, *(2 + console.measure(table, options=room).maximum for _, table in tables))
    for title, table in ((title, table) for title, table in tables if table.row_count):
        console.print(f"\n[bold]{title}[/]")
        console.print(Padding(table, (0, 0, 0, 2)))
    if page.closed_at is not None:
        final = f"{words.sentence('final_bill')}: {final_text(page, words)}" if page.final else ""
        console.print(Text(f"\n{words.sentence('closed_on', at=words.moment(page.closed_at))}"))
        console.print(Text(final, style="bold"))
    style = "bold red" if not page.adds_up else "yellow" if not page.explained else "green"
    console.print(Text(words[verdict(page)], style=style))
    console.print()


def about(page: Statement, words: Words) -> str:
    """Who the account is, in a line; how it stands now, where the page ends with that."""
    a = page.account
    parts = [f"{words['meter']} {page.meter_id}", f"{words['tariff']} {page.tariff}"]
    parts += [f"{words['families']}: {page.families}"] if page.families > 1 else []
    if page.closing_tiyin == a["balance_tiyin"]:
        parts += [f"{words['supply']}: {words['supply_' + a['supply_state']]}"] if a["supply_state"] else []
        if a["depletes_at"]:
            lasts = "lasts_until" if a["depletes_at"] > a["forecast_at"] else "ran_out"
            parts.append(words(lasts, at=words.moment(a["depletes_at"])))
    return ", ".join(parts) + ". " + words["units"]


def sections(page: Statement, words: Words) -> list[tuple[str, Table]]:
    """The tables of the page, each with its title."""
    from warehouse.page import rows_of

    rows, by_month = rows_of(page, words, DAYS_SHOWN)
    title = f"{words.sentence('by_month')} {words['days_hint']}" if by_month else words.sentence("by_day")
    return [
        (words.sentence("registers"), registers_table(page, words)),
        (words.sentence("credits"), lines_table(page.credits, words)),
        (title, usage_table(rows, words)),
        (words.sentence("estimates"), estimates_table(page, words)),
        (words.sentence("corrections"), lines_table(page.corrections, words)),
    ]


def new_table(*columns: tuple[str, str]) -> Table:
    """A table without frames."""
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in columns:
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    return table


def registers_table(page: Statement, words: Words) -> Table:
    """Registers, meter by meter, and what makes them the usage of the page."""
    from rich.text import Text

    from warehouse.page import remark

    table = new_table(
        (words["meter"], "left"),
        (words["when"], "left"),
        (words["register"], "right"),
        (words["status"], "left"),
        (f"{words['usage']}, {words['kwh']}", "right"),
        ("", "left"),
    )
    for r in page.registers:
        said = Text(remark(r, words), style="dim")
        for name, end, usage in ((r.meter_id, r.opening, ""), ("", r.closing, words.kwh(r.usage_wh))):
            shown = words.moment(end.at), words.kwh(end.register_wh), words[end.status]
            table.add_row(Text(name), *shown, usage, said if usage else "")
    if page.given_back_wh:
        table.add_row("", words["no_longer_standing"], "", "", words.kwh(page.given_back_wh), "")
    return table


def lines_table(lines: list[Line], words: Words) -> Table:
    """Entries, a line each."""
    from rich.text import Text

    from warehouse.page import said_of

    table = new_table((words["when"], "left"), (words["what"], "left"), (words["amount"], "right"), ("", "left"))
    for line in lines:
        said = Text(said_of(line, words), style="dim")
        table.add_row(words.moment(line.at), words[line.kind], words.soum(line.amount_tiyin), said)
    return table


def estimates_table(page: Statement, words: Words) -> Table:
    """What was charged by estimate, and whether it stands."""
    names = ("from", "to", "register", "kwh", "charge", "status")
    table = new_table(*((words[name], "right" if name in {"register", "kwh", "charge"} else "left") for name in names))
    for e in page.estimates:
        table.add_row(
            words.moment(e.from_at),
            words.moment(e.to_at),
            words.kwh(e.to_wh),
            words.kwh(e.usage_wh),
            words.soum(e.amount_tiyin),
            words["stands" if e.stands else "given_back"],
        )
    return table


def usage_table(rows: list[tuple[str, Usage]], words: Words) -> Table:
    """Usage, a line a block; a day's sum stands in its first line, what days of a stretch may have used below it."""
    from warehouse.page import share_name

    names = ("when", "kwh", "charge", "block", "kwh", "price", "cost")
    table = new_table(*((words[name], "left" if name in {"when", "block"} else "right") for name in names))
    for when, usage in rows:
        first = [when, words.kwh(usage.usage_wh), words.soum(usage.amount_tiyin)]
        for b in usage.blocks:
            numbers = words.kwh(b.usage_wh), words.soum(b.price_tiyin_per_kwh), words.soum(b.amount_tiyin)
            table.add_row(*first, words.limits(b.above_kwh, b.upto_kwh, b.hours), *numbers)
            first = ["", "", ""]
        if usage.rest_tiyin:
            table.add_row(*first, words["not_explained"], "", "", words.soum(usage.rest_tiyin))
        elif not usage.blocks:
            table.add_row(*first)
        for share in usage.days:
            table.add_row(f"  {share_name(share, words)}", words.kwh(share.usage_wh), style="dim")
    if any(usage.days for _, usage in rows):
        table.caption, table.caption_justify = words["days_legend"], "left"
    return table


def summary(page: Statement, words: Words) -> Table:
    """Opening, what came and went, closing."""
    from warehouse.page import sums_of

    table = new_table(("", "left"), (words["soum"], "right"))
    table.add_row(words["opening_balance"], words.soum(page.opening_tiyin))
    for name, amount_tiyin in sums_of(page, words):
        table.add_row(name, words.signed(amount_tiyin))
    table.add_row(f"[bold]{words['closing_balance']}[/]", f"[bold]{words.soum(page.closing_tiyin)}[/]")
    return table


def soum(tiyin: int) -> str:
    """An amount in soum, in English."""
    from warehouse.words import Words

    return Words("en").soum(tiyin)
