"""`hisob dispatch`: commands are carried out on Modbus switches, proven by readback."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hisob.commands import AsJson, home_of, say_as


def dispatch(
    context: typer.Context,
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing more can be done now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Carry out disconnections and reconnections on the switches of devices.csv; journal what was read back."""
    from hisob.errors import HisobError
    from streams.dispatch import run_dispatch

    home, settings = home_of(context)
    if settings.dispatch != "modbus":
        raise HisobError(
            f'{home.settings} says dispatch = "{settings.dispatch}": switches are another\'s. Set "modbus" if they are not.',
            exit_code=2,
        )

    done = run_dispatch(home, settings.clock, drain=drain, say=say_as("dispatch"))
    if as_json:
        print(json.dumps({"answered": dict(done.answered), "written": done.written, "held": done.held}))
    else:
        said = ", ".join(f"{outcome} {count:,}" for outcome, count in done.answered.most_common()) or "none"
        print(f"commands answered: {said}; switches written {done.written:,} times; held {done.held:,}")
