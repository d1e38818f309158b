"""`hisob status`: how far everything has come, what is open, and who is at work."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    from connectors.home import Home


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Last tick, lag of each consumer, open commands and notices, who holds the home."""
    home, _ = home_of(context)
    found = look_at(home)
    if as_json:
        print(json.dumps(found))
        return
    lag = found["lag"]
    print(f"home       {found['home']}")
    print(f"journal    {found['journal_records']:,} records, last tick {found['last_tick'] or 'none yet'}")
    print(f"events     {found['event_rows']:,}")
    print(f"settle     {_behind(lag['settle'], 'settled', 'hisob settle --drain')}")
    print(f"load       {_behind(lag['load'], 'loaded', 'hisob load')}")
    for name in lag.keys() - {"settle", "load"}:
        print(f"{name:<10} {_behind(lag[name], 'looked at', f'hisob {name}')}")
    print(f"open       {found['open']['commands']:,} commands, {found['open']['notices']:,} notices")
    holders = ", ".join(f"{name} (pid {pid})" for name, pid in found["holders"].items())
    print(f"at work    {holders or 'nobody'}")
    for name, process in found["processes"].items():
        restarts = f", started again {process['restarts']} times" if process["restarts"] else ""
        pid = f" as pid {process['pid']}" if process["pid"] else ""
        print(f"           {name} {process['state']}{pid}{restarts}")


def look_at(home: Home) -> dict[str, Any]:
    """All of it, as --json prints it. A lag is in records not yet come to, null where that consumer was never at work."""
    from connectors.locks import holders
    from hisob.watch import Watch, read_processes, shown

    with Watch(home) as watch:
        seen = watch.look()
    held = holders(home.run)
    return {
        "home": str(home.path),
        "last_tick": shown(seen.last_tick),
        "journal_records": seen.journal_records,
        "event_rows": seen.event_rows,
        "lag": seen.lag,
        "open": {"commands": seen.open_commands, "notices": seen.open_notices},
        "holders": {name: pid or None for name, pid in held.items()},
        "processes": read_processes(home.processes) if "run" in held else {},
    }


def _behind(lag: int | None, done: str, remedy: str) -> str:
    if lag is None:
        return f"nothing yet: {remedy}"
    return f"all {done}" if lag == 0 else f"{lag:,} records behind: {remedy}"
