"""An account's story as a picture: its balance, the forecast it was warned by, and what happened to its light.

Time by the clocks of Tashkent, money in soum. The time without light is shaded and hatched, every mark has a form and a label
of its own, and the colours (Okabe and Ito's) are told apart by the colour-blind too. The file needs nothing else: SVG with its
letters as outlines, PNG, or an HTML page around the SVG.
"""

from __future__ import annotations

import html
import io
from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from accounting.moments import TASHKENT
from warehouse.errors import WarehouseError
from warehouse.why import explain, outage_of, soum, span, when

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from warehouse.story import Happening, Story

Axes = Any  # matplotlib's, whose types know of no dates, though it draws them
FORMATS = (".svg", ".png", ".html")
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
GREY, DARK = "#6b6b6b", "#3b3f46"
SIZE_IN = (11.0, 5.6)
ROW_IN = 0.5  # more height for each row of labels beyond the third
FEW_DAYS = 3
BEFORE, AFTER, WHOLE = timedelta(days=2), timedelta(days=1, hours=12), timedelta(days=14)


class UnknownFormatError(WarehouseError):
    """The file's name ends in none of the formats there are."""


@dataclass(frozen=True)
class Mark:
    """Something that happened, on the curve or above it. The form is matplotlib's."""

    at: datetime
    name: str
    says: str
    colour: str
    form: str


def draw(story: Story, path: Path) -> None:
    """Draw the story into a file, of the format that its name ends in. Raises UnknownFormatError for another one."""
    if path.suffix not in FORMATS:
        raise UnknownFormatError(f"A picture is a file ending in {', '.join(FORMATS)}, not {path.name}.")
    from matplotlib import rc_context

    with rc_context(
        {"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": story.account_id, "axes.linewidth": 0.6}
    ):
        figure = make_figure(story)
        if path.suffix == ".html":
            path.write_text(as_page(story, figure), encoding="utf-8")
        elif path.suffix == ".svg":
            figure.savefig(path, metadata={"Date": None, "Title": title_of(story)})
        else:
            figure.savefig(path, dpi=150, metadata={"Title": title_of(story)})


def as_page(story: Story, figure: Figure) -> str:
    """The picture and the sentences, on a page that needs nothing else."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    picture = drawn.getvalue()
    lines = "\n".join(
        f"<li>{html.escape(s.text)} <small>{html.escape(', '.join(s.sources))}</small></li>" for s in explain(story)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title_of(story))}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
svg {{ width: 100%; height: auto }} small {{ color: #767676 }} li {{ margin: .3rem 0 }}
</style></head><body>
<h1>{html.escape(title_of(story))}</h1>
{picture[picture.index("<svg") :]}
<ul>
{lines}
</ul>
</body></html>
"""


def title_of(story: Story) -> str:
    """What the picture is of."""
    return f"Account {story.account_id}"


# ---- the figure ------------------------------------------------------------------------------------------------------


def make_figure(story: Story) -> Figure:
    """The picture, drawn by no display and kept by nobody."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first, last = span_of(story)
    labels = in_rows([m for m in marks_of(story) if first <= m.at <= last], first, last)
    rows = 1 + max((label.row for label in labels), default=0)
    width, height = SIZE_IN
    figure = Figure(figsize=(width, height + ROW_IN * max(0, rows - 3)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw_dark(axes, story, first, last)
    draw_forecast(axes, story)
    draw_balance(axes, story, first, last, rows)
    draw_marks(axes, story, labels, rows)
    dress(axes, story, first, last)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=6, handlelength=1.8)
    return figure


def span_of(story: Story) -> tuple[datetime, datetime]:
    """From somewhat before the notice that came before the last cut to somewhat after the light; or the last two weeks."""
    begins = story.entries[0]["to_at"] if story.entries else story.account.at
    steps = outage_of(story)
    if not steps or story.at - begins <= WHOLE:
        return max(begins, story.at - WHOLE), story.at
    cut_at = steps[0].at
    low = [n.at for n in story.notices if n["kind"] == "low_credit" and n.at <= cut_at]
    light = [s.at for s in story.supply_states if s["state"] == "connected" and s.at >= cut_at]
    return max(begins, (low[-1] if low else cut_at) - BEFORE), min(story.at, (light[0] if light else story.at) + AFTER)


def dark_spans(story: Story) -> list[tuple[datetime, datetime]]:
    """When the supply was off, as proven: from the readback that says so to the one that says it is on."""
    found, since = [], None
    for state in story.supply_states:
        if state["state"] == "disconnected":
            since = since or state.at
        elif state["state"] == "connected" and since is not None:
            found.append((since, state.at))
            since = None
    return found + ([(since, story.at)] if since is not None else [])


def draw_dark(axes: Axes, story: Story, first: datetime, last: datetime) -> None:
    """The time without light."""
    for begin, end in dark_spans(story):
        if end > first and begin < last:
            axes.axvspan(max(begin, first), min(end, last), facecolor=DARK, alpha=0.16, lw=0, zorder=0)
            axes.axvspan(
                max(begin, first), min(end, last), facecolor="none", edgecolor=DARK, alpha=0.25, lw=0, hatch="///"
            )


def draw_forecast(axes: Axes, story: Story) -> None:
    """What the notice before the cut was given by: from the balance of then to the day it was to run out, early or late."""
    steps = outage_of(story)
    low = [n for n in story.notices if n["kind"] == "low_credit" and (not steps or n.at <= steps[0].at)]
    found = [f for f in story.forecasts if low and f.ordinal == low[-1].ordinal]
    if not found or found[0]["depletes_at"] is None or found[0]["depletes_at"] <= found[0].at:
        return
    f, balance = found[0], found[0]["balance_tiyin"] / 100
    times = [f.at, f["depletes_at"]]
    axes.plot(times, [balance, 0], color=BLUE, lw=1.6, ls=(0, (4, 2)), label="forecast of the notice", zorder=3)
    early, late = f["earliest_at"] or f["depletes_at"], f["latest_at"] or f["depletes_at"]
    axes.fill([f.at, early, late], [balance, 0, 0], color=SKY, alpha=0.35, lw=0, zorder=1, label="early to late")


def draw_balance(axes: Axes, story: Story, first: datetime, last: datetime, rows: int) -> None:
    """The balance: sloping while it is used up, upright where it was paid or adjusted."""
    times, balances = curve_of(story)
    axes.plot(times, balances, color=BLACK, lw=1.7, solid_joinstyle="round", label="balance", zorder=4)
    owed = [min(b, 0.0) for b in balances]
    axes.fill_between(times, owed, 0, color=VERMILION, alpha=0.25, lw=0, zorder=2, label="debt")
    inside = [b for t, b in zip(times, balances, strict=True) if first <= t <= last] or balances or [0.0]
    low, high = min(0.0, *inside), max(0.0, *inside)
    room = (high - low) or 1_000.0
    axes.set_ylim(low - 0.06 * room, high + (0.08 + 0.13 * rows) * room)
    axes.set_xlim(first, last)


def curve_of(story: Story) -> tuple[list[datetime], list[float]]:
    """The corners of the balance's curve, in soum."""
    times: list[datetime] = []
    balances: list[float] = []
    for e in story.entries:
        at = max([e["to_at"], *times[-1:]])  # what became known late stands where it became known
        if e["kind"] != "usage" and times:
            times.append(at)
            balances.append(balances[-1])
        times.append(at)
        balances.append(e["balance_tiyin"] / 100)
    if times and story.at > times[-1]:
        times.append(story.at)
        balances.append(balances[-1])
    return times, balances


def dress(axes: Axes, story: Story, first: datetime, last: datetime) -> None:
    """Axes, grid, title, legend."""
    from matplotlib import dates
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    days = (last - first) / timedelta(days=1)
    are_few = days < FEW_DAYS
    locators: Any = dates  # it has no types
    every = max(1, round(days / 12))
    by_day = locators.DayLocator(interval=every, tz=TASHKENT)
    axes.xaxis.set_major_locator(locators.AutoDateLocator(tz=TASHKENT, maxticks=8) if are_few else by_day)
    axes.xaxis.set_major_formatter(locators.DateFormatter("%a %d.%m.\n%H:%M" if are_few else "%a\n%d.%m.", tz=TASHKENT))
    axes.yaxis.set_major_locator(MaxNLocator(7))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\u202f").replace("-", "−"))
    )
    axes.set_ylabel("balance, soum")
    axes.set_xlabel(f"{first.astimezone(TASHKENT):%Y}, clocks of Tashkent", color=GREY)
    axes.axhline(0, color=BLACK, lw=0.8, zorder=3)
    axes.grid(axis="both", color="#d9d9d9", lw=0.5, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title_of(story), loc="left", fontsize=13, fontweight="bold", pad=22)
    axes.text(0, 1.02, subtitle_of(story), transform=axes.transAxes, color=GREY, fontsize=9, va="bottom")
    if any(end > first and begin < last for begin, end in dark_spans(story)):
        axes.fill_between([], [], facecolor=DARK, alpha=0.3, hatch="///", lw=0, label="no light")


def subtitle_of(story: Story) -> str:
    """How long it was dark, and how soon it was not."""
    dark = dark_spans(story)
    if not dark or dark[-1][1] == story.at:
        text = f"{soum(story.balance_tiyin)} on {when(story.at)}"
        return f"{text}; {span(dark[-1][1] - dark[-1][0])} without light" if dark else text
    begin, end = dark[-1]
    text = f"{span(end - begin)} without light"
    paid = [p.at for p in story.payments if begin <= p.at <= end]
    if paid:
        text += f", {span(end - paid[-1])} from payment to light"
    return text


# ---- marks -----------------------------------------------------------------------------------------------------------


def marks_of(story: Story) -> list[Mark]:
    """What is worth a mark, in order of time: notices sent, cuts, payments, light."""
    first_receipt = {n.id: story.receipts_of(n) for n in story.notices}
    found = [notice_mark(n, first_receipt[n.id]) for n in story.notices if n["kind"] == "low_credit"]
    found += [Mark(p.at, "payment", soum(p["amount_tiyin"]), GREEN, "^") for p in story.payments if not p["reverses"]]
    for begin, end in dark_spans(story):
        found.append(Mark(begin, "cut", clock(begin), VERMILION, "X"))
        if end < story.at or story.state == "connected":
            found.append(Mark(end, "light", clock(end), ORANGE, "*"))
    return sorted(found, key=lambda m: m.at)


def notice_mark(notice: Happening, receipts: list[Happening]) -> Mark:
    """A notice, where it was sent."""
    settled = [r["status"] for r in receipts if r["status"] != "accepted"]
    says = settled[0] if settled else "no phone" if notice["phone"] is None else "sent"
    return Mark(max(notice["send_after"], notice.at), "notice", says, BLUE, "D")


def clock(at: datetime) -> str:
    """A time of day in Tashkent."""
    return f"{at.astimezone(TASHKENT):%H:%M}"


@dataclass(frozen=True)
class Label:
    """A mark's label: in which row from the top, and where its middle is."""

    mark: Mark
    row: int
    middle: datetime

    @property
    def text(self) -> str:
        """Two lines."""
        return f"{self.mark.name}\n{self.mark.says}"


def in_rows(marks: list[Mark], first: datetime, last: datetime) -> list[Label]:
    """The labels, each in the highest row in which it overlaps none before it, and within the picture."""
    found: list[Label] = []
    ends: list[datetime] = []  # where the last label of each row ends
    for mark in marks:
        wide = (last - first) * (0.0095 * max(len(mark.name), len(mark.says)) + 0.015)
        left = min(max(mark.at - wide / 2, first), last - wide)
        row = next((r for r, end in enumerate(ends) if end < left), len(ends))
        ends[row : row + 1] = [left + wide]
        found.append(Label(mark, row, left + wide / 2))
    return found


def draw_marks(axes: Axes, story: Story, labels: list[Label], rows: int) -> None:
    """Each mark on the curve, a payment's half-way up its leap, and its label above."""
    times, balances = curve_of(story)
    bottom, top = axes.get_ylim()
    high = (top - bottom) * 0.13 / (1.14 + 0.13 * rows)  # of a row, as draw_balance made room for it
    for label in labels:
        mark, level = label.mark, top - (label.row + 0.5) * high
        height = balance_at(times, balances, mark.at, halfway=mark.name == "payment")
        axes.plot([mark.at, mark.at], [height, level], color=mark.colour, lw=0.8, alpha=0.8, zorder=5)
        size = 13 if mark.form == "*" else 8
        axes.plot([mark.at], [height], mark.form, color=mark.colour, ms=size, mec="white", mew=0.8, zorder=7)
        box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": mark.colour, "lw": 1.0}
        axes.text(label.middle, level, label.text, ha="center", va="center", fontsize=8, zorder=8, bbox=box)


def balance_at(times: list[datetime], balances: list[float], at: datetime, *, halfway: bool = False) -> float:
    """The balance on the curve at a moment; where it leaps, after the leap, or half-way up it."""
    after = bisect_right(times, at)
    if after in {0, len(times)}:
        return balances[max(0, after - 1)] if balances else 0.0
    if halfway and after > 1 and times[after - 1] == times[after - 2] == at:
        return (balances[after - 1] + balances[after - 2]) / 2
    part = (at - times[after - 1]) / (times[after] - times[after - 1])
    return balances[after - 1] + part * (balances[after] - balances[after - 1])
