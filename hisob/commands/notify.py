"""`hisob notify`: notices go to the customers' phones when their time has come, each once."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from hisob.commands import AsJson, home_of, say_as


def notify(
    context: typer.Context,
    drain: Annotated[bool, typer.Option("--drain", help="End when all that is due has been sent.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send notices by the channel of the settings, in order of `send_after`; what became of them is journalled."""
    from streams.notify import open_channel, run_notify

    home, settings = home_of(context)

    done = run_notify(
        home, lambda: open_channel(home, settings.notify), settings.clock, drain=drain, say=say_as("notify")
    )
    if as_json:
        print(json.dumps(asdict(done)))
    else:
        print(
            f"sent {done.sent:,} notices, journalled {done.receipts:,} receipts; {done.waiting:,} wait for their time"
        )
