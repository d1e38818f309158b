"""The demo on the screen: what was done in how long, and what came of it. At most 100 columns; plain where nobody watches."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from hisob.demo.summary import Summary
from warehouse.why import DAY_NAMES

WIDTH = 100
BAR_WIDTH = 30


def soum(tiyin: int) -> str:
    """Whole soum in groups of three, cut towards zero."""
    return f"{'−' if tiyin < 0 else ''}{abs(tiyin) // 100:,}"


def page(console: Console) -> Console:
    """The console, no wider than can be read."""
    console.width = min(console.width, WIDTH)
    return console


def title(console: Console, text: str) -> None:
    """A heading."""
    console.print()
    if console.is_terminal:
        console.rule(f"[bold]{text}", align="left", style="dim")
    else:
        console.print(text)
    console.print()


def show_summary(console: Console, summary: Summary) -> None:
    """All figures, a paragraph each."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column()
    for name, block in (
        ("Readings", readings(summary["readings"])),
        ("Money, soum", money(summary["money"])),
        ("Notices", notices(summary["notices"])),
        ("Supply", supply(summary["supply"], summary["light_seconds"])),
        ("Refused", by_name(summary["refused"])),
        ("Held", by_name(summary["held"])),
        ("Reconciled", reconciliation(summary["reconciliation"])),
    ):
        grid.add_row(name, block)
        grid.add_row()
    console.print(grid)


def readings(found: Summary) -> RenderableType:
    """How much was measured."""
    return Text(
        f"{found['taken']:,} from {found['meters']} meters, {found['from_day']} to {found['to_day']}: "
        f"{found['usage_wh'] / 1_000_000:,.1f} MWh charged to {found['accounts']} accounts"
    )


MONEY_LINES = (
    ("opening", "brought along"),
    ("payment", "paid"),
    ("reversal", "taken back by a channel"),
    ("adjustment", "adjusted by the office"),
    ("usage", "used"),
    ("correction", "corrected when late readings came"),
)


def money(found: Summary) -> RenderableType:
    """Money in and out, adding up on the page."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for kind, says in MONEY_LINES:
        if entry := found["entries"].get(kind):
            times = f"{entry['entries']:,} times" if entry["entries"] > 1 else "once"
            table.add_row(says, soum(entry["amount_tiyin"]), times)
    below = f"{found['balances']['below_zero']} below zero"
    table.add_row(Text("balances", "bold"), Text(soum(found["balances"]["total_tiyin"]), "bold"), below)
    return table


def notices(found: Summary) -> RenderableType:
    """How many SMS, whether they arrived, and how long before the money ran out."""
    leads, given = found["leads"], found["given"]
    undelivered = sum(r["notices"] for r in found["receipts"] if r["status"] not in ("accepted", "delivered"))
    table = Table.grid()
    table.add_row(
        f"{given.get('low_credit', 0):,} of low credit, {given.get('disconnected', 0):,} that the supply is off, "
        f"{given.get('reconnected', 0):,} that it is on again; {undelivered} could not be delivered"
    )
    if not leads["scored"]:
        return table
    median = f"{leads['median_hours']:.0f} h" if leads["median_hours"] is not None else "over a week"
    table.add_row(
        f"{leads['at_least_72_h'] / leads['scored']:.0%} of {leads['scored']:,} came three days or more before the money ran "
        f"out, as if nobody had paid; median {median}"
    )
    table.add_row(bars([*lead_names(leads["bins_hours"])], leads["in_bin"]))
    return table


def lead_names(edges: list[int]) -> list[str]:
    """A bin's name, in hours."""
    return [f"under {edges[0]} h", *(f"{low}–{high} h" for low, high in pairwise(edges)), f"over {edges[-1]} h"]


def bars(names: list[str], counts: list[int]) -> Table:
    """A count each, as long as it is large."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(style="green")
    for name, count in zip(names, counts, strict=True):
        table.add_row(name, str(count), "█" * round(BAR_WIDTH * count / max(*counts, 1)))
    return table


def supply(found: Summary, light_s: list[float]) -> RenderableType:
    """Cuts and reconnections: how many, when, how fast. light_s: what each way from payment to light took, sorted."""
    counts = (
        f"{found['cuts']} cuts, {found['cuts_done']} proven by readback; "
        f"{found['reconnections']} reconnections, {found['reconnections_done']} proven"
    )
    lines = [counts]
    if found["cuts"]:
        days = ", ".join(DAY_NAMES[day - 1] for day in found["weekdays"])
        lines.append(f"cut on {days}, from {found['first_cut_of_day']} to {found['last_cut_of_day']}")
        lines.append(
            f"of them {found['with_money_left']} with money left, {found['without_a_notice']} without a notice a day before, "
            f"{found['of_the_protected']} of the protected"
        )
    if found["longest_seconds_from_payment"] is not None:
        median, longest = found["median_seconds_from_payment"], found["longest_seconds_from_payment"]
        lines.append(f"from the payment to the command to reconnect: median {median} s, longest {longest} s")
    if found["longest_minutes_to_light"] is not None:
        median, longest = found["median_minutes_to_light"], found["longest_minutes_to_light"]
        lines.append(
            f"from the payment to light, by the district's clock: median {median:.0f} min, longest {longest:.0f} min"
        )
    if light_s:
        median, longest = light_s[len(light_s) // 2], light_s[-1]
        lines.append(
            f"on this machine, from the payment's file to the switch read back closed: median {median:.2f} s, "
            f"longest {longest:.2f} s"
        )
    off = sum(count for state, count in found["states"].items() if state != "connected")
    lines.append(f"{off} still off at the end" if off else "nobody is off at the end")
    return Text("\n".join(lines))


def by_name(found: list[dict[str, Any]]) -> RenderableType:
    """How many records of each kind, by reason."""
    if not found:
        return Text("nothing")
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    for row in found:
        table.add_row(f"{row['records']:,}", f"{row['record_kind']}: {row['reason']}")
    return table


def reconciliation(found: Summary) -> RenderableType:
    """Whether the balances agree with the ledger."""
    if found["do_not_agree"]:
        return Text(f"{found['do_not_agree']} of {found['balances']} balances do NOT agree with the ledger", "bold red")
    return Text(
        f"all {found['balances']} balances, recomputed in SQL from {found['entries']:,} entries, agree to the tiyin"
    )
