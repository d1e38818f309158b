"""`hisob digest`: a number for each kind of event and one over all, by which two homes are known to hold the same history."""

from __future__ import annotations

import json
from contextlib import closing

import typer

from hisob.commands import AsJson, home_of


def digest(context: typer.Context, as_json: AsJson = False) -> None:
    """The SHA-256 of each event kind's rows, however they were batched: lines `kind hash`, the last over all."""
    from connectors.log.digest import digest_events
    from connectors.log.sqlite import open_log

    home, _ = home_of(context)
    with closing(open_log(home.events, readonly=True)) as events:
        digests = digest_events(events)
    if as_json:
        print(json.dumps(digests))
    else:
        for kind, sha256 in digests.items():
            print(kind, sha256)
