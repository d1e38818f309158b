"""The command line without a process of its own: as quick as a function, for tests of what a command says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from hisob import cli
from hisob.errors import HisobError


def call(home: Path, *arguments: Any) -> tuple[int, str]:
    """Exit code and output; the message, where the caller is told off."""
    done = CliRunner().invoke(cli.app, ["--home", str(home), *map(str, arguments)])
    if isinstance(done.exception, HisobError):
        return done.exception.exit_code, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def ask(home: Path, *arguments: Any) -> Any:
    """What it prints with --json."""
    code, text = call(home, *arguments, "--json")
    assert code in {0, 1}, text
    return json.loads(text)
