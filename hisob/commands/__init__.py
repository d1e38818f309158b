"""The commands, a module each, with a function of the command's name. What they share is here."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from hisob.errors import HisobError

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectors.home import Home
    from hisob.settings import Settings

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be posted, and journal nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]


def home_of(context: typer.Context) -> tuple[Home, Settings]:
    """The home that the call is about, and its settings. Raises HisobError (exit 2) where there is none."""
    from hisob.settings import open_home

    return open_home(context.obj)


def say_as(name: str) -> Callable[[str], None]:
    """How a process that runs on says what happens: a line on stderr, under its name."""

    def say(text: str) -> None:
        print(f"{name}: {text}", file=sys.stderr, flush=True)

    return say


def parse_day(text: str | None, option: str) -> date | None:
    """A day given as YYYY-MM-DD with this option; None where it is not given. Raises HisobError (exit 2)."""
    if text is None:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise HisobError(f"{option} is a day such as 2025-03-21, not {text}.", exit_code=2) from None
