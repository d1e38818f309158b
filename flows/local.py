"""Prefect on this machine, for one home: server, process pool, worker, and what prefect.yaml deploys. `make prefect`.

    python -m flows.local HOME [--port N]

All of it ends together: by Ctrl-C or SIGTERM, or when one part of it dies. What Prefect keeps lies in the home's `prefect/`;
the server listens on this machine alone. Where there is a Prefect server already, prefect.yaml says how to deploy to that.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from connectors.home import Home
from connectors.locks import AlreadyRunningError, hold

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
POOL = "local"
STARTS_WITHIN_S, ENDS_WITHIN_S = 120.0, 20.0
LOOK_EVERY_S = 0.2


class LocalPrefectError(Exception):
    """Prefect does not run as it should; the message says why and what to do next."""


def run_prefect(home: Home, port: int, stop: threading.Event) -> None:
    """Start everything, deploy, and stay until asked to stop. Raises LocalPrefectError if a part of it dies."""
    port = port or free_port()
    api = f"http://{HOST}:{port}/api"
    environment = environment_of(home, api)
    with hold(home.run / "prefect.lock", "prefect"), ExitStack() as parts:
        server = parts.enter_context(
            part("server", environment, "server", "start", "--host", HOST, "--port", str(port))
        )
        if not is_up(api, server, stop):
            return
        make_pool(api)
        worker = parts.enter_context(part("worker", environment, "worker", "start", "--pool", POOL))
        if deploy(environment, stop):
            say(f"prefect.yaml is deployed; http://{HOST}:{port} shows the runs. Ctrl-C ends it all.")
        while not stop.wait(LOOK_EVERY_S):
            for name, process in (("server", server), ("worker", worker)):
                if process.poll() is not None:
                    raise LocalPrefectError(f"The {name} ended with {process.returncode}: what it said stands above.")


def environment_of(home: Home, api: str) -> dict[str, str]:
    """What Prefect's processes are told. Settings in the caller's environment, but for where things are, count."""
    settings = {
        "PREFECT_HOME": str(home.path / "prefect"),
        "PREFECT_API_URL": api,
        "HISOB_ROOT": str(ROOT),
        "HISOB_HOME": str(home.path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    defaults = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    return {**defaults, **os.environ, **settings}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def part(name: str, environment: Mapping[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of Prefect's while it is needed, in a session of its own: a Ctrl-C reaches us alone, and we end the parts."""
    say(f"starting the {name}")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", *arguments], env=dict(environment), cwd=ROOT, start_new_session=True
    )
    try:
        yield process
    finally:
        end(process)
        say(f"the {name} has ended")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, as Ctrl-C would; then take away what is left of its session."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                continue
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_up(api: str, server: subprocess.Popen[bytes], stop: threading.Event) -> bool:
    """Wait until the server answers; False: asked to stop before."""
    until = time.monotonic() + STARTS_WITHIN_S
    while not stop.wait(LOOK_EVERY_S):
        if server.poll() is not None:
            raise LocalPrefectError(
                f"The server ended with {server.returncode}: is the port of {api} taken? Name another."
            )
        if time.monotonic() > until:
            raise LocalPrefectError(f"The server does not answer at {api} after {STARTS_WITHIN_S:.0f} s.")
        try:
            if httpx.get(f"{api}/health", timeout=5, trust_env=False).is_success:
                return True
        except httpx.TransportError:
            continue
    return False


def make_pool(api: str) -> None:
    """The pool of processes that prefect.yaml names, if it is not there yet."""
    pool = {"name": POOL, "type": "process"}
    answer = httpx.post(f"{api}/work_pools/", json=pool, timeout=30, trust_env=False)
    if answer.status_code != httpx.codes.CONFLICT:
        answer.raise_for_status()


def deploy(environment: Mapping[str, str], stop: threading.Event) -> bool:
    """Deploy prefect.yaml. False: interrupted, as Ctrl-C does it to this one too."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, env=dict(environment), cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode and not stop.is_set():
        raise LocalPrefectError(f"prefect.yaml could not be deployed:\n{done.stdout}{done.stderr}")
    return not done.returncode


def say(text: str) -> None:
    """A line of what is going on."""
    sys.stderr.write(f"prefect: {text}\n")
    sys.stderr.flush()


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m flows.local", description=__doc__.partition("\n")[0])
    parser.add_argument("home", type=Path, help="folder of the home")
    parser.add_argument("--port", type=int, default=0, help="of the server (default: a free one)")
    given = parser.parse_args()
    home = Home(given.home.absolute())
    if not home.settings.is_file():
        say(f"There is no home in {given.home}. Make one: hisob --home {given.home} init")
        return 2
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        run_prefect(home, given.port, stop)
    except (LocalPrefectError, AlreadyRunningError) as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
