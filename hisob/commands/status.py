"""`hisob status`: how far everything has come, what is open, and who is at work."""

from __future__ import annotations

import fcntl
import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import typer

from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    import datetime as dt
    from pathlib import Path

    from connectors.home import Home

# Open: not answered for good, and not past being answered. As the database last published knows it.
OPEN_COMMANDS = """
    SELECT count(*) FROM commands c
    WHERE c.expires_at > $now
      AND NOT EXISTS (FROM acknowledgements a WHERE a.command_id = c.command_id)
      AND NOT EXISTS (FROM commands d WHERE d.supersedes = c.command_id)
"""
OPEN_NOTICES = """
    SELECT count(*) FROM notices n
    WHERE n.phone IS NOT NULL
      AND NOT EXISTS (FROM receipts r WHERE r.notice_id = n.notice_id AND r.status <> 'accepted')
"""
LOADED = "SELECT log, partition, max(end_position) FROM load.progress GROUP BY ALL"


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Last tick, lag of each consumer, open commands and notices, who holds the home."""
    home, _ = home_of(context)
    found = look_at(home)
    if as_json:
        print(json.dumps(found))
        return
    lag, opened = found["lag"], found["open"]
    print(f"home       {found['home']}")
    print(f"journal    {found['journal_records']:,} records, last tick {found['last_tick'] or 'none yet'}")
    print(f"events     {found['event_rows']:,}")
    print(f"settle     {_behind(lag['settle'], 'settled', 'hisob settle --drain')}")
    print(f"load       {_behind(lag['load'], 'loaded', 'hisob load')}")
    if opened is None:
        print("open       not known before a `hisob load`")
    else:
        print(f"open       {opened['commands']:,} commands, {opened['notices']:,} notices, as last loaded")
    holders = ", ".join(f"{name} (pid {pid})" for name, pid in found["holders"].items())
    print(f"at work    {holders or 'nobody'}")


def look_at(home: Home) -> dict[str, Any]:
    """All of it, as --json prints it. A lag is in records not yet taken in; `open` and load's lag are null before a load."""
    from connectors.log.rows import lag_of, last_tick, records_in
    from connectors.log.sqlite import open_log

    with (
        closing(open_log(home.journal, readonly=True)) as journal,
        closing(open_log(home.events, readonly=True)) as events,
    ):
        tick = last_tick(journal)
        loaded = _look_at_published(home.published, tick) if home.published.exists() else None
        lag = {"settle": lag_of(journal, events.committed("settle")), "load": None}
        if loaded:
            lag["load"] = lag_of(journal, loaded["journal"]) + lag_of(events, loaded["events"])
        return {
            "home": str(home.path),
            "last_tick": tick.isoformat().replace("+00:00", "Z") if tick else None,
            "journal_records": records_in(journal),
            "event_rows": records_in(events),
            "lag": lag,
            "open": loaded["open"] if loaded else None,
            "holders": _holders(home.run),
        }


def _look_at_published(path: Path, now: dt.datetime | None) -> dict[str, Any]:
    import duckdb

    with duckdb.connect(path, read_only=True) as con:
        found: dict[str, Any] = {"journal": {}, "events": {}}
        for log, partition, end in con.execute(LOADED).fetchall():
            found[log][str(partition)] = end
        found["open"] = {
            "commands": con.execute(OPEN_COMMANDS, {"now": now}).fetchone()[0],  # type: ignore[index]
            "notices": con.execute(OPEN_NOTICES).fetchone()[0],  # type: ignore[index]
        }
        return found


def _holders(run: Path) -> dict[str, int | None]:
    """Who holds which lock of the home: its name, and the pid that stands in it."""
    holders: dict[str, int | None] = {}
    for path in sorted(run.glob("*.lock")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = next(iter(file.read(32).split()), b"")
                holders[path.stem] = int(pid) if pid.isdigit() else None
    return holders


def _behind(lag: int | None, done: str, remedy: str) -> str:
    if lag is None:
        return f"nothing yet: {remedy}"
    return f"all {done}" if lag == 0 else f"{lag:,} records behind: {remedy}"
