"""`hisob run`: everything live, each part a process of its own. On a terminal a screen, elsewhere lines of a log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hisob.commands import home_of

if TYPE_CHECKING:
    from connectors.home import Home
    from hisob.settings import Settings
    from hisob.supervisor import Service

STEP_S = 0.1


def run(
    context: typer.Context,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Processes for settle to share the partitions.")] = 1,
) -> None:
    """Run everything until Ctrl-C or SIGTERM: clock and inbox, settle, poll, dispatch, notify, and the load on its schedule.

    What dies is started again. A second run on the home is refused.
    """
    from connectors.locks import hold
    from hisob.live import Board, is_screen
    from hisob.supervisor import supervising
    from streams.stopping import stop_on_signals

    home, settings = home_of(context)
    with hold(home.run / "run.lock", "run"), stop_on_signals() as stop:
        home.processes.unlink(missing_ok=True)  # of a run that was killed
        services, left_out = services_of(home, settings, processes)
        with Board(home, on_screen=is_screen(sys.stdout)) as board:
            board.say("run", f"on {home.path}; stop it with Ctrl-C or SIGTERM")
            for what in left_out:
                board.say("run", what)
            with supervising(home.path, services, board.say) as supervisor:
                while not stop.wait(STEP_S):
                    board.show(supervisor.processes, is_changed=supervisor.step())
                board.say("run", "is ending")
            board.say("run", "all processes have ended")
        home.processes.unlink(missing_ok=True)


def services_of(home: Home, settings: Settings, processes: int) -> tuple[list[Service], list[str]]:
    """What is to run on the home, and what is not and why."""
    from hisob.supervisor import Service

    def service(name: str, *arguments: str, every_s: float | None = None) -> Service:
        return Service(name, (name, *arguments), home.run / f"{name}.lock", every_s)

    services, left_out = [service("clock"), service("settle", "--processes", str(processes))], []
    if not settings.poll_minutes:
        left_out.append("no poll: poll_minutes is 0")
    elif not home.devices.exists():
        left_out.append(f"no poll: there is no {home.devices}")
    else:
        services.append(service("poll"))
    if settings.dispatch == "none":
        left_out.append('no dispatch: dispatch is "none"; commands wait for an actuator of your own')
    else:
        services.append(service("dispatch"))
    services.append(service("notify"))
    if settings.load_minutes:
        services.append(service("load", every_s=60.0 * settings.load_minutes))
    else:
        left_out.append("no load: load_minutes is 0")
    return services, left_out
