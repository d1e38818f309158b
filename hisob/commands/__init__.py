"""The commands, a module each, with a function of the command's name. What they share is here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from connectors.home import Home
    from hisob.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]


def home_of(context: typer.Context) -> tuple[Home, Settings]:
    """The home that the call is about, and its settings. Raises HisobError (exit 2) where there is none."""
    from hisob.settings import open_home

    return open_home(context.obj)
