"""`hisob poll`: reads the meters of devices.csv, again and again or once."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hisob.commands import AsJson, home_of, say_as


def poll(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Read all meters once, now, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read the registers of all meters of devices.csv over Modbus TCP, every `poll_minutes`, and journal them."""
    from hisob.errors import HisobError
    from streams.poll import run_poll

    home, settings = home_of(context)
    if not (once or settings.poll_minutes):
        raise HisobError(f"{home.settings} says poll_minutes = 0: no polling. Set it, or give --once.", exit_code=2)

    done = run_poll(home, settings.clock, settings.poll_minutes, once=once, say=say_as("poll"))
    if as_json:
        print(json.dumps({"read": done.read, "failed": dict(done.failed), "seconds": round(done.seconds, 3)}))
    else:
        print(done)
    if once and (done.failed or not done.read):
        raise HisobError("Not all meters could be read. What was read is journalled; the reasons stand above.")
