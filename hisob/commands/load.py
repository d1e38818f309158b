"""`hisob load`: both logs into DuckDB, checked and published for audit."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import typer

from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    from connectors.home import Home


def load(context: typer.Context, as_json: AsJson = False) -> None:
    """The Prefect load, once, now, with no server; publishes the audit database. Twice in a row adds nothing."""
    home, _ = home_of(context)
    began = time.monotonic()
    outcome = load_now(home)
    outcome["seconds"] = round(time.monotonic() - began, 3)
    if as_json:
        print(json.dumps(outcome, default=str))
    else:
        say(outcome)


def load_now(home: Home) -> dict[str, Any]:
    """The flow, with no server. What Prefect keeps meanwhile lies in scratch/."""
    prefect_home = home.scratch / "prefect"
    prefect_home.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str(prefect_home))
    from flows.load_history import load_history

    return load_history.fn(str(home.path))


def say(outcome: dict[str, Any]) -> None:
    """What came of the load, for people."""
    if outcome["rows"]:
        rows = ", ".join(f"{count:,} {kind}" for kind, count in sorted(outcome["rows"].items(), key=lambda r: -r[1]))
        print(f"Load {outcome['load']}: {outcome['records']:,} records in {outcome['seconds']:.1f} s ({rows}).")
    else:
        print("Nothing new to load.")
    for warning in outcome["warnings"]:
        print(f"Warning, {warning['name']}: {warning['broken']} ({warning['meaning']}); first {warning['rows'][0]}")
    print(f"{'Published' if outcome['new'] else 'Published already'}: {outcome['published']}")
    if outcome["waiting"]:
        print(f"{outcome['waiting']:,} records of the journal are not settled yet, so not loaded: hisob settle --drain")
