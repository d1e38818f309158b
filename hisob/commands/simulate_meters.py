"""`hisob simulate-meters`: a fleet of Modbus meters with switches, in one process, with faults on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hisob.commands import AsJson, home_of
from hisob.errors import HisobError


def simulate_meters(
    context: typer.Context,
    meters: Annotated[int, typer.Option(min=1, help="How many meters: SIM-00001 and so on.")] = 100,
    gateways: Annotated[int, typer.Option(min=1, help="How many gateways to spread them over, a port each.")] = 4,
    port: Annotated[int, typer.Option(min=0, max=65_000, help="Port of the first gateway; 0: free ones.")] = 0,
    accounts: Annotated[
        Path | None, typer.Option(help="An account CSV: its meters, each counting from its opening register.")
    ] = None,
    write_accounts: Annotated[
        Path | None, typer.Option(help="Write an account CSV for the meters, to be ingested.")
    ] = None,
    faults: Annotated[
        Path | None, typer.Option(help="A JSON file of faults (docs/modbus.md), read again whenever it changes.")
    ] = None,
    clock: Annotated[
        str, typer.Option(help="What registers count by: `wall`, or `journal`, the home's last tick.")
    ] = "wall",
    log: Annotated[
        Path | None, typer.Option(help="A file that takes a line of JSON for each write of a switch.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Play a fleet of meters with switches until it is stopped, and write the home's devices.csv for it."""
    from hisob.simulated.process import Wanted, run_fleet

    if clock not in ("wall", "journal"):
        raise HisobError(f"--clock is wall or journal, not {clock!r}.", exit_code=2)
    home, _ = home_of(context)
    wanted = Wanted(meters, gateways, port, accounts, write_accounts, faults, clock == "journal", log)

    def ready(found: dict[str, object]) -> None:
        if as_json:
            print(json.dumps(found), flush=True)
        else:
            print(
                f"{found['meters']} meters behind {found['gateways']} gateways, ports {found['ports']}; Ctrl-C ends it"
            )

    run_fleet(home, wanted, ready)
