"""`hisob init`: makes a home."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hisob.commands import AsJson


def init(
    context: typer.Context,
    partitions: Annotated[
        int, typer.Option(min=1, max=1024, help="Account partitions, fixed for the life of the home.")
    ] = 16,
    as_json: AsJson = False,
) -> None:
    """Make a home: settings, logs, the Uzbek tariffs and default policies. In any folder that has none."""
    from hisob.homes import make_home

    home = make_home(context.obj, partitions)
    if as_json:
        print(json.dumps({"home": str(home.path), "partitions": partitions}))
        return
    print(f"A home in {home.path}, with {partitions} account partitions, the Uzbek tariffs and default policies.")
    print(f"Settings: {home.settings}")
    print(f"Next: hisob --home {context.obj} ingest account=FILE reading=FILE payment=FILE")
