"""`hisob tariff`: what the tariffs are, what a month costs by them, and whether a file of new ones is right."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hisob.by_hand import Author
from hisob.commands import AsJson, DryRun, home_of

if TYPE_CHECKING:
    from hisob.tariff_book import Quote, Version

tariff = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="The tariffs of the home, or, where there is none, those we ship: shown, reckoned by, and checked.",
)
On = Annotated[str | None, typer.Option("--on", metavar="DATE", help="A day in Asia/Tashkent, as 2025-05-01.")]


@tariff.command()
def show(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A tariff.", show_default="all")] = None,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Show every version of the tariffs, or, with --on, those in force on a day."""
    from hisob.errors import HisobError
    from hisob.tariff_book import check_name, in_force, names_of

    book, where = book_of(context)
    if name is not None:
        check_name(book, name)
    names = names_of(book) if name is None else [name]
    day = parse_day(on) if on else None
    found: list[Version] = []
    for each in names:
        if day is None:
            found += sorted((v for v in book if v.tariff == each), key=lambda v: v.effective_on)
        elif version := in_force(book, each, day):
            found.append(version)
    if not found and name is not None and day is not None:
        raise HisobError(no_version(book, name, day), exit_code=1)
    if as_json:
        print(json.dumps([as_dict(version) for version in found], ensure_ascii=False))
        return
    print(f"From {where}. Soum per kWh, by the kWh of a calendar month.")
    for each in dict.fromkeys(version.tariff for version in found):
        print(f"\n{each}")
        for version in found:
            if version.tariff == each:
                tell_version(version)


@tariff.command("quote")
def quote_usage(
    context: typer.Context,
    kwh: Annotated[str, typer.Option("--kwh", metavar="KWH", help="A month's usage, to the Wh: 500, or 312.5.")],
    on: On = None,
    plan: Annotated[str, typer.Option("--plan", metavar="NAME", help="The tariff.")] = "household",
    families: Annotated[
        int, typer.Option(min=1, max=10_000, help="Families sharing the meter: they multiply the block limits.")
    ] = 1,
    hours: Annotated[
        str | None,
        typer.Option(
            "--hours",
            metavar="HH:MM-HH:MM",
            help="Used in these hours of the day only.",
            show_default="evenly over the day",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a month of so much usage costs, block by block, exact to the tiyin. --on: today, unless given."""
    from accounting.hours import is_hours
    from hisob.errors import HisobError
    from hisob.tariff_book import check_name, in_force, quote

    usage_wh = parse_kwh(kwh)
    if hours is not None and not is_hours(hours):
        raise HisobError(f"--hours {hours!r} is no hours of the day: write them as 17:00-22:00.", exit_code=2)
    book, where = book_of(context)
    check_name(book, plan)
    day = parse_day(on) if on else today()
    version = in_force(book, plan, day)
    if version is None:
        raise HisobError(no_version(book, plan, day), exit_code=1)
    found = quote(version, usage_wh, families, hours)
    if as_json:
        print(json.dumps(quote_dict(found, day), ensure_ascii=False))
    else:
        tell_quote(found, day, where)


@tariff.command()
def check(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file as for `hisob ingest tariff=FILE`.")],
    rise: Annotated[
        float, typer.Option(min=0, metavar="PERCENT", help="Warn of prices that rise by more than this.")
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Check a file of tariffs before it is ingested: values, blocks, and prices against the version before.

    Exit 0: nothing to say; 1: there are findings, warnings among them (a rise that is meant: --rise); 2: it cannot be
    read.
    """
    from connectors.files import FileError
    from hisob.errors import HisobError
    from hisob.tariff_book import check_file

    book, where = book_of(context)
    try:
        findings = check_file(file, book, rise)
    except FileError as error:
        raise HisobError(str(error), exit_code=2) from error
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], ensure_ascii=False))
    else:
        for finding in findings:
            print(f"{finding.severity:<8} {finding.reason}  {finding.where}: {finding.text}")
        if not findings:
            print(f"{file}: nothing to find fault with, held against {where}.")
    if findings:
        raise typer.Exit(1)


@tariff.command("correct")
def correct_tariff(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The right versions, as for `hisob ingest tariff=FILE`.")
    ],
    dry_run: DryRun = False,
    author: Author = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, beside what is put right.")] = None,
    rise: Annotated[
        float, typer.Option(min=0, metavar="PERCENT", help="Warn of prices that rise by more than this.")
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Put right a tariff that was used already: journal the right versions, re-rate the past, post the difference.

    Each account's balance becomes what it would have been, had the right versions been there from their `effective_on`.
    What is posted is one adjustment an account, once, however often it is run. --dry-run shows it and journals nothing.
    """
    from hisob.by_hand import author_or_login
    from hisob.rerating import tell
    from hisob.tariff_correction import correct, read_right

    home, settings = home_of(context)
    right, warnings = read_right(file, home, rise)
    outcome = correct(home, settings, right, author=author_or_login(author), reason=reason, dry_run=dry_run)
    told = [f"{warning.reason}  {warning.where}: {warning.text}" for warning in warnings]
    tell(outcome, as_json=as_json, dry_run=dry_run, warnings=told)


@tariff.command("old-price")
def post_old_price(
    context: typer.Context, dry_run: DryRun = False, author: Author = None, as_json: AsJson = False
) -> None:
    """Credit what energy prepaid before a price rise costs more by the new prices: in advance, and settled at the end.

    Only where the home has the right (old_price_months in hisob.toml); then a flow does it every night.
    """
    from hisob.by_hand import author_or_login
    from hisob.errors import HisobError
    from hisob.old_price import work_out
    from hisob.rerating import carry_out, tell

    home, settings = home_of(context)
    if not settings.old_price_months:
        raise HisobError(
            f"This home has no right to old prices: old_price_months is 0. Where there is one, set it in {home.settings}.",
            exit_code=2,
        )
    outcome = carry_out(
        home, settings, lambda: work_out(home, settings.old_price_months), author_or_login(author), dry_run=dry_run
    )
    tell(outcome, as_json=as_json, dry_run=dry_run)


# ---- which book, and what was asked ----------------------------------------------------------------------------------


def book_of(context: typer.Context) -> tuple[list[Version], str]:
    """The tariffs of the home's journal, or, where there is no home, those we ship; and which they are, in words."""
    from connectors.home import Home
    from hisob.tariff_book import journal_book, shipped_book

    if Home(context.obj).settings.is_file():
        home, _ = home_of(context)
        return journal_book(home), f"the journal of {context.obj}"
    return shipped_book(), f"the book shipped with Hisob ({context.obj} is no home)"


def today() -> dt.date:
    """The day it is in Tashkent."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(hours=5)).date()


def parse_day(text: str) -> dt.date:
    """A day as 2025-05-01. Raises HisobError (exit 2)."""
    from hisob.errors import HisobError

    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            return dt.date.fromisoformat(text)
    except ValueError:
        pass
    raise HisobError(f"{text!r} is no day: write it as 2025-05-01.", exit_code=2)


def parse_kwh(text: str) -> int:
    """An amount of energy such as 500, 1,500 or 312.5, as Wh. Raises HisobError (exit 2)."""
    from hisob.errors import HisobError
    from hisob.tariff_book import MOST_KWH

    if re.fullmatch(r"(\d+|\d{1,3}(,\d{3})+)(\.\d{1,3})?", text, re.ASCII):
        whole, _, part = text.replace(",", "").partition(".")
        if len(whole.lstrip("0")) < 11 and (usage_wh := int(whole) * 1000 + int(part.ljust(3, "0"))) <= MOST_KWH * 1000:
            return usage_wh
    raise HisobError(f"--kwh {text!r} is no usage: write kWh as 500, or 312.5, up to {MOST_KWH:,}.", exit_code=2)


def no_version(book: list[Version], name: str, day: dt.date) -> str:
    """That a tariff is not in force yet."""
    first = min(version.effective_on for version in book if version.tariff == name)
    return f"The tariff {name} is known from {first} on, not on {day}. `hisob tariff show {name}` has its versions."


# ---- the page --------------------------------------------------------------------------------------------------------


def tell_version(version: Version) -> None:
    """A version: its blocks, and where each comes from."""
    from hisob.tariff_book import soum

    when, before, sources = f"from {version.effective_on}", None, iter(version.sources)
    for hours, blocks in version.lists().items():
        if hours is not None:
            print(f"  {when:<16}{hours_text(hours)}")
            when = ""
        below = 0
        for (limit, price), source in zip(blocks, sources, strict=False):
            shown = "" if source == before else (source or "")
            print(f"  {when:<16}{span_of(below, limit):>18} {soum(price):>10}  {shown}".rstrip())
            when, below, before = "", limit or below, source


def tell_quote(found: Quote, day: dt.date, where: str) -> None:
    """A quote that adds up on the page."""
    from hisob.tariff_book import soum

    version = found.version
    shared = f", {found.families} families" if found.families > 1 else ""
    print(f"{version.tariff} on {day} (version of {version.effective_on}){shared}, from {where}")
    if version.hours:
        print(f"  used evenly over {'the day' if found.within is None else hours_text(found.within)}")
    rows = [
        (
            span_of(x.above_kwh, x.upto_kwh)
            if x.hours is None
            else f"{hours_text(x.hours)}  {span_of(x.above_kwh, x.upto_kwh)}",
            f"{kwh_text(x.usage_wh)} kWh",
            f"× {soum(x.price_tiyin_per_kwh)}",
            soum(x.amount_tiyin),
        )
        for x in found.lines
    ]
    rows.append(("a month", f"{kwh_text(found.usage_wh)} kWh", "", f"{soum(found.amount_tiyin)}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) + " soum")
    for source in dict.fromkeys(filter(None, version.sources)):
        print(f"  {source}")


def span_of(above_kwh: int, upto_kwh: int | None) -> str:
    """A block's place in the month's usage."""
    if upto_kwh is None:
        return f"above {above_kwh:,} kWh" if above_kwh else "every kWh"
    return f"{above_kwh:,}–{upto_kwh:,} kWh"


def hours_text(hours: str) -> str:
    """Hours of the day, as one reads them."""
    return hours.replace("-", "–").replace(",", ", ")


def kwh_text(wh: int) -> str:
    """Energy in kWh, exact."""
    return f"{wh // 1000:,}" + (f".{wh % 1000:03}".rstrip("0") if wh % 1000 else "")


def as_dict(version: Version) -> dict[str, Any]:
    """A version for --json."""
    hours = version.hours or (None,) * len(version.blocks)
    blocks = [
        {"block_upto_kwh": limit, "price_tiyin_per_kwh": price, "hours": held, "source": source}
        for (limit, price), held, source in zip(version.blocks, hours, version.sources, strict=True)
    ]
    return {"tariff": version.tariff, "effective_on": str(version.effective_on), "blocks": blocks}


def quote_dict(found: Quote, day: dt.date) -> dict[str, Any]:
    """A quote for --json."""
    return {
        "tariff": found.version.tariff,
        "on": str(day),
        "effective_on": str(found.version.effective_on),
        "families": found.families,
        "hours": found.within,
        "usage_wh": found.usage_wh,
        "amount_tiyin": found.amount_tiyin,
        "blocks": [vars(line) for line in found.lines],
    }
