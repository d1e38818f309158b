"""`hisob clock`: the ticks by the time of day, and the files of the inbox."""

from __future__ import annotations

import typer

from hisob.commands import home_of, say_as


def clock(context: typer.Context) -> None:
    """Make the ticks as their quarters of an hour pass, and journal files dropped into the inbox. Until it is stopped."""
    from streams.clock import run_clock

    home, settings = home_of(context)

    run_clock(home, makes_ticks=settings.clock == "wall", batch_rows=settings.batch_rows, say=say_as("clock"))
