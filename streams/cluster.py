"""Several processes of one dataflow, as bytewax has them: started together, ended together, restarted together.

What is promised: when one process is gone the others are too, and all begin anew from the last snapshot; when the one that
started them is gone, killed even, they end by themselves.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from streams.stopping import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

GIVE_UP = 3  # exit code of a process for which starting anew would not help; it has said why
RESTARTS = 5  # in a row, none of which lasted LASTED_S
LASTED_S = 60.0
PEERS_TIMEOUT_S = 60.0
LOOK_S = 0.02


class ClusterError(Exception):
    """The processes could not go on; the message says why and what to do next."""


def run_cluster(module: str, spec: Mapping[str, Any], processes: int, *, keep_open: Sequence[int] = ()) -> bool:
    """Run `python -m module SPEC` so many times, SPEC being JSON with `process_id` and `addresses` added, until all end.

    False: SIGTERM or SIGINT ended them. keep_open: file descriptors, locks for example, that each process has too.
    """
    restarts = 0
    with stop_on_signals() as stopping:
        while True:
            began = time.monotonic()
            codes = _run_once(module, spec, processes, keep_open, stopping)
            if stopping.is_set():
                return False
            if not any(codes):
                return True
            if GIVE_UP in codes:
                raise ClusterError("a process could not go on; what it said stands above.")
            restarts = 1 if time.monotonic() - began > LASTED_S else restarts + 1
            if restarts > RESTARTS:
                raise ClusterError(f"its processes ended {restarts} times in a row ({_in_words(codes)}).")
            print(f"{module}: {_in_words(codes)}; all are started again.", file=sys.stderr)  # noqa: T201


def _run_once(
    module: str, spec: Mapping[str, Any], processes: int, keep_open: Sequence[int], stopping: threading.Event
) -> list[int]:
    """Start the processes and wait for them; when one fails the others are ended. Their exit codes, negative for a signal."""
    addresses = free_addresses(processes)
    children = [
        subprocess.Popen(
            [sys.executable, "-m", module, json.dumps({**spec, "process_id": number, "addresses": addresses})],
            stdin=subprocess.PIPE,  # never written to: it closes when this process is gone
            stdout=2,  # what bytewax says there is no result
            pass_fds=keep_open,
            start_new_session=True,  # Ctrl-C is for this process, which ends them in order
        )
        for number in range(processes)
    ]
    try:
        told = False
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            if stopping.is_set() and not told:
                told = True
                for child in children:
                    child.terminate()
            time.sleep(LOOK_S)
        codes = [child.poll() for child in children]
        return [code for code in codes if code is not None]
    finally:
        for child in children:
            child.kill()
            child.wait()
            if child.stdin:
                child.stdin.close()


def _in_words(codes: Sequence[int]) -> str:
    """How processes failed."""
    return ", ".join(
        f"a process was killed by {signal.Signals(-code).name}"
        if code < 0
        else f"a process ended with exit code {code}"
        for code in codes
        if code
    )


def free_addresses(count: int) -> list[str]:
    """So many addresses of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return ["{}:{}".format(*s.getsockname()) for s in sockets]
    finally:
        for s in sockets:
            s.close()


# what a process of the cluster does at its start


def end_with_parent(stop: Callable[[], None]) -> None:
    """Call `stop` when the process that started this one is gone: its end of standard input closes then."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        stop()

    threading.Thread(target=watch, daemon=True).start()


def wait_for_peers(addresses: Sequence[str], process_id: int) -> None:
    """Wait until those before this one listen, to whom bytewax connects: it would complain, and try again a second later."""
    until = time.monotonic() + PEERS_TIMEOUT_S
    for address in addresses[:process_id]:
        host, _, port = address.rpartition(":")
        while not _is_listened_on(host, int(port)) and time.monotonic() < until:
            time.sleep(LOOK_S)


def _is_listened_on(host: str, port: int) -> bool:
    """Whether anybody listens there, found out without a connection, which bytewax would take for a peer's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not in the way of who binds it to listen
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
