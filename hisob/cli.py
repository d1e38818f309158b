"""The command line: `hisob --home DIR COMMAND …`.

Each command is a module of hisob/commands with a function (or a Typer group) of the command's name; only the one that
is called is imported. A command gets its home by `commands.home_of(context)`. Exit codes: 0 if it did what it says, 2
for wrong use, 1 for all else. What goes wrong is told in one paragraph on stderr that says what to do next;
HISOB_DEBUG=1 shows where it happened.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hisob import __version__
from hisob.errors import HisobError

# In the order in which one meets them.
COMMANDS = (
    "demo",
    "init",
    "ingest",
    "settle",
    "run",
    "clock",
    "poll",
    "dispatch",
    "notify",
    "load",
    "query",
    "statement",
    "why",
    "reconcile",
    "reconcile-payments",
    "tariff",
    "rerate",
    "refused",
    "held",
    "health",
    "policy",
    "order",
    "pay",
    "tail",
    "status",
    "digest",
    "simulate-meters",
)
OURS = {"accounting", "connectors", "streams", "warehouse", "flows", "hisob"}


class _Commands(TyperGroup):
    """The commands, each imported when it is asked for."""

    def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002 (Typer gives it)
        return list(COMMANDS)

    def get_command(self, ctx: object, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(import_module(f"hisob.commands.{name}"), name)
        if not isinstance(command, typer.Typer):  # a group of commands is one already
            function, command = command, typer.Typer(add_completion=False)
            command.command(cmd_name)(function)
        return typer.main.get_command(command)


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"hisob {__version__}")
        raise typer.Exit


@app.callback()
def hisob(
    context: typer.Context,
    home: Annotated[Path, typer.Option(envvar="HISOB_HOME", help="Folder of the home.")] = Path("hisob-data"),
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prepaid electricity, end to end: exact balances, notices three days ahead, supply switches, proof."""
    del version
    context.obj = home.expanduser()


def main() -> None:
    """The `hisob` program."""
    try:
        app(prog_name="hisob")
    except Exception as error:  # the outermost place: whatever it is, the caller gets a sentence
        if os.environ.get("HISOB_DEBUG"):
            raise
        print(f"hisob: {_explain(error)}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, HisobError) else 1)


def _explain(error: Exception) -> str:
    """The error as a sentence. Those of our own packages are written for people; others need a word more."""
    if type(error).__module__.split(".")[0] in OURS:
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}."
    return f"an unforeseen fault, {type(error).__name__}: {error}. HISOB_DEBUG=1 shows where; please report it."
