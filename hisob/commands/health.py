"""`hisob health`: which meters an operator should look after."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    from warehouse.health import Health, Thresholds


def health(
    context: typer.Context,
    silent_hours: Annotated[int, typer.Option(min=1, max=100_000, help="Silent: no reading for so long.")] = 24,
    stuck_days: Annotated[int, typer.Option(min=1, max=4_000, help="Stuck: read, and no advance for so long.")] = 3,
    drift_minutes: Annotated[int, typer.Option(min=0, max=1_440, help="A clock so far ahead is wrong.")] = 3,
    days: Annotated[int, typer.Option(min=1, max=4_000, help="How far back to look.")] = 7,
    low_percent: Annotated[int, typer.Option(min=0, max=100, help="Use below so much of a meter's own is low.")] = 50,
    high_percent: Annotated[int, typer.Option(min=100, max=100_000, help="Use above so much of it is high.")] = 200,
    target: Annotated[float, typer.Option(min=0, max=100, help="Percent of meters to be read on a day.")] = 98.0,
    limit: Annotated[int, typer.Option(min=1, help="Meters listed of each sort, at most.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Silent and stuck meters, each district's daily read rate, clocks that are ahead, use in doubt: as of the last tick.

    From the published database, where SQL has the same: FROM silent_meters(hours := 48), stuck_meters, read_rates,
    clock_drift, doubtful_readings, usage_spikes, unusual_usage, sum_checks, moves; FROM alarms has all of it.
    """
    from warehouse.audit import open_published
    from warehouse.health import Thresholds, look_at

    limits = Thresholds(silent_hours, stuck_days, drift_minutes, days, low_percent, high_percent)
    home, _ = home_of(context)
    with open_published(home) as con:
        found = look_at(con, limits)
    if as_json:
        print(json.dumps({"thresholds": asdict(limits), **asdict(found)}, default=lambda moment: moment.isoformat()))
    elif found.at is None:
        print("No tick has passed yet, so nothing can be late. Next: hisob ingest, settle --drain, load")
    else:
        tell(found, limits, target, limit)


def tell(found: Health, limits: Thresholds, target: float, limit: int) -> None:
    """The page: how many of each sort, and which."""
    print(f"At {when(found.at)}, {found.meters:,} meters of open accounts")
    print(f"\nsilent     {len(found.silent):,} not heard of for {limits.silent_hours} hours")
    show(
        found.silent,
        limit,
        lambda m: f"{m['silent_hours']:,} hours, last heard of {when(m['last_read_at']) or 'never'}",
    )
    print(f"\nstuck      {len(found.stuck):,} read, but without an advance for {limits.stuck_days} days")
    show(
        found.stuck,
        limit,
        lambda m: f"{m['stuck_days']:,} days at {m['register_wh']:,} Wh, since {when(m['still_since'])}",
    )
    print(f"\nclocks     {len(found.clocks):,} ahead by more than {limits.drift_minutes} minutes in {limits.days} days")
    show(found.clocks, limit, clock_text)
    print(f"\nspikes     {len(found.spikes):,} with readings beyond their power in {limits.days} days")
    show(
        found.spikes,
        limit,
        lambda m: f"{m['refused']:,} refused, {m['held']:,} held, the last of {when(m['last_read_at'])}",
    )
    print(
        f"\nunusual    {len(found.unusual_usage):,} using under {limits.low_percent}% or over {limits.high_percent}% of their"
        f" own in {limits.days} days"
    )
    show(found.unusual_usage, limit, unusual_text)
    print(f"\npeaks      {len(found.usage_spikes):,} days with a half-hour far above the others")
    show(found.usage_spikes, limit, peak_text)
    print(f"\nsums       {len(found.sum_checks):,} days on which intervals do not come to the register's advance")
    show(found.sum_checks, limit, sum_text)
    print(
        f"\nmoves      {len(found.moves):,} on which the registers of who left and who came do not meet, in {limits.days} days"
    )
    show(found.moves, limit, move_text)
    print(f"\nread       of each district's meters, day by day; * is below {target:g}%")
    for district in dict.fromkeys(rate["district"] for rate in found.read_rates):
        rates = [rate for rate in found.read_rates if rate["district"] == district]
        print(f"  {district}: {rates[-1]['read']:,} of {rates[-1]['meters']:,} on {rates[-1]['day']}")
        print(
            "    "
            + "  ".join(f"{r['day']:%d.%m.} {r['percent']:g}%{'*' if r['percent'] < target else ''}" for r in rates)
        )


def clock_text(meter: dict[str, Any]) -> str:
    """How a clock is known to be ahead."""
    found = []
    if meter["from_the_future"]:
        found.append(f"{meter['from_the_future']:,} readings from the future, up to {when(meter['latest_read_at'])}")
    if meter["ahead_seconds"]:
        found.append(f"dated {meter['ahead_seconds'] / 60:,.0f} minutes after they arrived")
    return "; ".join(found)


def unusual_text(meter: dict[str, Any]) -> str:
    """How a meter's use compares with its own before."""
    percent = "" if meter["percent"] is None else f", {meter['percent']:,}%"
    return f"{meter['usage_wh_per_day']:,} Wh a day, usually {meter['usual_wh_per_day']:,}{percent}"


def peak_text(meter: dict[str, Any]) -> str:
    """A day's peak beside its third highest half-hour."""
    return f"{meter['peak_wh']:,} Wh up to {when(meter['peak_at'])}, the third highest of the day {meter['third_wh']:,}"


def sum_text(meter: dict[str, Any]) -> str:
    """A day's intervals beside its register."""
    sums = f"{meter['intervals_wh']:,} Wh, by the register {meter['register_advance_wh']:,}"
    return f"{meter['day']}: intervals {sums}"


def move_text(move: dict[str, Any]) -> str:
    """What was billed to nobody, or twice, as a meter passed on."""
    how = "billed to nobody" if move["difference_wh"] > 0 else "billed twice"
    return (
        f"{abs(move['difference_wh']):,} Wh {how}: {move['left_by']} left at {move['closed_wh']:,} on"
        f" {when(move['closed_at'])}, {move['taken_by']} began at {move['opened_wh']:,}"
    )


def show(meters: list[dict[str, Any]], limit: int, text: Any) -> None:
    """The first meters of a sort, a line each."""
    for meter in meters[:limit]:
        account = meter.get("account_id") or meter.get("taken_by") or "no open account"
        print(f"  {meter['meter_id']}  {account}  {meter['district'] or ''}  {text(meter)}".replace("    ", "  "))
    if len(meters) > limit:
        print(f"  and {len(meters) - limit:,} more: --limit, or --json for all")


def when(moment: datetime | None) -> str:
    """A moment by the clocks of Tashkent."""
    from accounting.moments import TASHKENT

    return moment.astimezone(TASHKENT).strftime("%Y-%m-%d %H:%M") if moment else ""
