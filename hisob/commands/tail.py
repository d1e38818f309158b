"""`hisob tail`: the events of one kind, a line of JSON each, those there are and those that come."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated

import typer

from hisob.commands import AsJson, home_of
from hisob.errors import HisobError

PLURALS = {
    "entries": "entry",
    "forecasts": "forecast",
    "notices": "notice",
    "commands": "command",
    "supply_states": "supply_state",
}


def tail(
    context: typer.Context,
    kind: Annotated[
        str, typer.Argument(help="commands, notices, entries, refused, held, released, forecasts, supply_states.")
    ],
    since: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="POSITION",
            help="`start`, `end`, or event ids joined by commas (3-1200-0,7-15-2): in each partition named, from that event"
            " on, itself included; in the others from the start. So the last id seen of each partition goes on where one was.",
        ),
    ] = "start",
    until_end: Annotated[
        bool, typer.Option("--until-end", help="End with what there is; do not wait for more.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Follow an event kind as NDJSON: by partition, then position; live, as they come."""
    from accounting.records import EVENTS
    from connectors.log.rows import follow, parse_positions, to_ndjson
    from connectors.log.sqlite import open_log

    del as_json  # it prints nothing else
    name = PLURALS.get(kind, kind)
    if name not in EVENTS:
        raise HisobError(f"There is no event kind {kind!r}: there are {', '.join(EVENTS)}.", exit_code=2)
    home, _ = home_of(context)
    with closing(open_log(home.events, readonly=True)) as events:
        try:
            first = {} if since in ("start", "end") else parse_positions(since, events.partitions)
        except ValueError as error:
            raise HisobError(f"--from: {error}.", exit_code=2) from error
        for partition, batch in follow(events, name, first, from_end=since == "end", until_end=until_end):
            sys.stdout.write("\n".join(to_ndjson(name, partition, batch)) + "\n")
            sys.stdout.flush()
