"""A statement as a page of HTML that prints on A4: no script, no font, nothing from elsewhere, everything escaped.

The template is page.html, its words words.toml. A month lies on one sheet, day by day; longer periods are told by month.
What both this page and the one in the terminal say in words is made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from warehouse.statement import by_month
from warehouse.words import Words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from jinja2 import Template

    from warehouse.statement import Block, Line, Statement, Stretch, Usage
    from warehouse.usage import DayUse

DAYS_ON_A_SHEET = 34  # more are told by month
LINES_AT_EASE = 38  # a page of more is set closer, to stay on its sheet
SHADES = 5
SHARE_MARKS = {"estimated": "≈", "interpolated": "÷", "measured": " "}  # as words.toml's days_legend explains them
BlockKey = tuple[int, int | None, int, str | None]


def render(page: Statement, language: str) -> str:
    """The page in a language."""
    words = Words(language)
    rows, by_months = rows_of(page, words, DAYS_ON_A_SHEET)
    return template().render(
        page=page,
        words=words,
        rows=rows,
        by_months=by_months,
        by_hours=by_hours(page),
        dense=lines_of(page, [usage for _, usage in rows]) > LINES_AT_EASE,
        chart=chart_of(page, [usage for _, usage in rows]),
        shade=shades(page),
        sums=sums_of(page, words),
        verdict=verdict(page),
        remark=remark,
        said_of=said_of,
        share_name=share_name,
        days_shared=any(usage.days for _, usage in rows),
        final_text=final_text,
    )


@cache
def template() -> Template:
    """The template, with autoescaping; a name it does not know stops it."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("warehouse").joinpath("page.html").read_text(encoding="utf-8"))


# ---- what is said ----------------------------------------------------------------------------------------------------


def rows_of(page: Statement, words: Words, days_shown: int) -> tuple[list[tuple[str, Usage]], bool]:
    """Usage with what it is called: by day, or by month where there are more than so many days, and whether it is so."""
    if (page.last_day - page.first_day).days < days_shown or len(page.usage) <= days_shown // 2:
        rows, by_months = [(words.days(u.first_day, u.last_day), u) for u in page.usage], False
    else:
        rows, by_months = [(f"{u.last_day:%m.%Y}", u) for u in by_month(page.usage)], True
    return [(f"{name} {words['estimated_mark']}" if u.basis == "estimated" else name, u) for name, u in rows], by_months


def by_hours(page: Statement) -> bool:
    """Whether prices change with the hour: then a day is told without its blocks, or a month would not lie on a sheet."""
    return any(b.hours is not None for u in page.blocks for b in u.blocks)


def lines_of(page: Statement, usage: list[Usage]) -> int:
    """How many lines the page's tables come to, those side by side counted once."""
    by_block = sum(len(u.blocks) + (len(page.blocks) > 1) for u in page.blocks)
    days = sum(len(u.days) + (1 if len(u.blocks) == 1 or by_hours(page) else 1 + len(u.blocks)) for u in usage)
    below = sum(len(part) + 2 for part in (page.estimates, page.corrections) if part)
    return len(page.registers) + max(by_block, len(page.credits)) + days // 2 + below


def sums_of(page: Statement, words: Words) -> list[tuple[str, int]]:
    """What lies between opening and closing, each with its name and how many or how much it was."""
    found = []
    for kind in dict.fromkeys(line.kind for line in page.credits):
        amounts = [line.amount_tiyin for line in page.credits if line.kind == kind]
        found.append((f"{words['sum_' + kind]} ({len(amounts)})", sum(amounts)))
    charged_wh = sum(u.usage_wh for u in page.usage)
    found.append((f"{words['usage']} ({words.kwh(charged_wh)} {words['kwh']})", page.usage_tiyin))
    if page.corrections:
        back_wh = sum(line.usage_wh for line in page.corrections)
        of = f"{len(page.corrections)}, {words.kwh(back_wh)} {words['kwh']}" if back_wh else len(page.corrections)
        found.append((f"{words['corrections']} ({of})", page.corrections_tiyin))
    return found


def said_of(line: Line, words: Words) -> str:
    """What an entry's record says of it."""
    d = line.details
    parts = [d[name] for name in ("channel", "id") if name in d]
    parts += [words("takes_back", id=d["reverses"])] if "reverses" in d else []
    parts += [f"{d['reason']} ({d['author']})"] if "reason" in d else []
    if line.read_at is not None:
        parts.append(f"{words.moment(line.read_at)}: {words.kwh(int(d['register_wh']))} {words['kwh']}")
    if line.usage_wh:
        parts.append(f"{words.kwh(line.usage_wh)} {words['kwh']}")
    return " · ".join(parts)


def share_name(share: DayUse, words: Words) -> str:
    """A day of a stretch, with the mark of how its share was found."""
    return f"{SHARE_MARKS[share.basis]} {words.day(share.day)}"


def final_text(page: Statement, words: Words) -> str:
    """What a closed account's balance comes to: to whom it is owed."""
    said = words[page.final or "nothing_due"]
    return f"{said} {words.soum(abs(page.closing_tiyin))} {words['soum']}" if page.closing_tiyin else said


def remark(r: Stretch, words: Words) -> str:
    """What has to be known for a meter's registers to add up: where it rolled over, and that it came in an exchange."""
    said = [words("exchanged", at=words.moment(r.exchanged_at))] if r.exchanged_at else []
    if r.rolled_over:
        said.append(words("rolled_over", modulus=f"{words.kwh(r.modulus_wh)} {words['kwh']}"))
    return ", ".join(said)


def verdict(page: Statement) -> str:
    """Whether the page adds up: the key of a sentence."""
    if not page.adds_up:
        return "verdict_wrong"
    return "verdict_good" if page.explained else "verdict_unexplained"


# ---- the chart -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A bar of the chart, or what of it lies in one block. In parts of a thousand of the width and the height."""

    x: float
    width: float
    y: float
    height: float
    shade: int
    estimated: bool


@dataclass(frozen=True)
class Chart:
    """Usage over the period: the area of a bar is its usage. most_wh: of a day, at the top."""

    bars: list[Bar]
    most_wh: int


def shades(page: Statement) -> dict[BlockKey, int]:
    """The shade of each block of the page: the lowest, and of several the cheapest, is the lightest."""
    keys = {block_key(b) for u in page.blocks for b in u.blocks}
    blocks = sorted(keys, key=lambda key: (key[0], key[2], key[3] or ""))
    return {key: number * (SHADES - 1) // max(len(blocks) - 1, SHADES - 1) for number, key in enumerate(blocks)}


def block_key(block: Block) -> BlockKey:
    """What tells a block from others."""
    return block.above_kwh, block.upto_kwh, block.price_tiyin_per_kwh, block.hours


def parts_of(u: Usage, blocks: list[tuple[int, int]]) -> Iterator[tuple[tuple[date, date], int, int, bool]]:
    """What lies where on the chart: the days, Wh, shade, and whether it is no more than an estimate.

    A stretch whose days' shares are known goes through its blocks day after day.
    """
    if not u.days:
        for wh, of in blocks:
            yield (u.first_day, u.last_day), wh, of, u.basis == "estimated"
        return
    left = [wh for wh, _ in blocks]
    for share in u.days:
        wanted = share.usage_wh
        for i, (_, of) in enumerate(blocks):
            taken = min(wanted, left[i])
            if taken:
                yield (share.day, share.day), taken, of, True
            wanted, left[i] = wanted - taken, left[i] - taken


def chart_of(page: Statement, usage: list[Usage]) -> Chart:
    """The bars of the chart."""
    shade = shades(page)
    stacks: dict[tuple[date, date], list[tuple[int, int, bool]]] = {}
    for u in usage:
        for key, wh, of, estimated in parts_of(u, [(b.usage_wh, shade[block_key(b)]) for b in u.blocks]):
            stacks.setdefault(key, []).append((wh, of, estimated))
    days = {key: (key[1] - key[0]).days + 1 for key in stacks}
    most_wh = max((sum(wh for wh, *_ in parts) / days[key] for key, parts in stacks.items()), default=0)
    first = min([page.first_day, *(key[0] for key in stacks)])
    whole = (page.last_day - first).days + 1
    bars = []
    for key, parts in stacks.items():
        x, width, y = (key[0] - first).days * 1000 / whole, days[key] * 1000 / whole, 1000.0
        for wh, of, estimated in parts:
            height = wh / days[key] / most_wh * 1000 if most_wh else 0.0
            y -= height
            bars.append(
                Bar(round(x + width * 0.1, 2), round(width * 0.8, 2), round(y, 2), round(height, 2), of, estimated)
            )
    return Chart(bars, round(most_wh))
