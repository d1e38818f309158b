"""Keeps processes running: starts them, starts again those that die, ends all of them in order.

Libraries were looked at. circus brings sockets, a broker of messages and a configuration language of its own; honcho
ends all when one ends; supervisord and systemd are programs to install (docs/running.md has units for the latter). What
is needed is a loop.

- A **kept** process that ends, however, is started again at once; one that keeps ending after ever growing pauses.
- A **scheduled** one runs to its end every so often. That it failed is said; the next time it is tried again.
- One whose lock somebody else holds is left to them, which is said, and is started once they have ended.
- To end: SIGTERM to all, and SIGKILL after GRACE_S to those that are still there. Should this process be killed, they end by
  themselves (`hisob.supervised`).

What they write is handed on line by line with their name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from connectors.locks import holder_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

GRACE_S = 10.0  # from SIGTERM to SIGKILL
LASTED_S = 10.0  # a process that ran so long did not fail at its start
LONGEST_PAUSE_S = 30.0
LAST_WORDS_S = 1.0  # how long what an ended process said is waited for
AGAIN_S = 0.2  # how often it is looked whether a lock is free
Say = Callable[[str, str], None]  # the process's name, what there is to say


@dataclass(frozen=True)
class Service:
    """What is to run: `hisob NAME …`. lock: what it holds while it runs. every_s: how often, for one that is scheduled."""

    name: str
    arguments: tuple[str, ...]
    lock: Path | None = None
    every_s: float | None = None


@dataclass
class Supervised:
    """A service and the process it has, or is to have."""

    service: Service
    process: subprocess.Popen[str] | None = None
    elsewhere: int | None = None  # the pid that holds its lock, if that is none of ours
    restarts: int = 0
    failures: int = 0  # in a row
    started_s: float = 0.0
    due_s: float = 0.0  # when it is to be started
    last_pid: int | None = None  # the lock of a process may outlive it by an instant
    reader: threading.Thread | None = None  # of what it says

    @property
    def state(self) -> str:
        """In a word."""
        if self.process:
            return "running"
        if self.elsewhere:
            return "elsewhere"
        return "waiting"

    def as_dict(self) -> dict[str, object]:
        """For `hisob status`."""
        pid = self.process.pid if self.process else self.elsewhere
        return {"state": self.state, "pid": pid, "restarts": self.restarts}


class Supervisor:
    """Runs services on a home. Everything happens in `step`, to be called often, from one thread."""

    def __init__(self, home: Path, services: Sequence[Service], say: Say) -> None:
        """Say what happens to a process, and what it says itself, by `say(name, text)`, from any thread."""
        self._home, self._say = home, say
        self.processes = [Supervised(service) for service in services]

    def step(self) -> bool:
        """Start what is due, note what has ended. Whether anything happened."""
        now_s = time.monotonic()
        return any([self._step_one(one, now_s) for one in self.processes])  # noqa: C419  each of them, whatever happened

    def _step_one(self, one: Supervised, now_s: float) -> bool:
        if one.process:
            code = one.process.poll()
            if code is None:
                return False
            self._note_end(one, code, now_s)
            return True
        if now_s < one.due_s:
            return False
        return self._start(one, now_s)

    def _start(self, one: Supervised, now_s: float) -> bool:
        service = one.service
        holder = holder_of(service.lock) if service.lock else None
        if holder is not None:
            one.due_s = now_s + AGAIN_S
            if holder in {0, one.last_pid, one.elsewhere}:  # one of ours may still be ending
                return False
            one.elsewhere = holder
            self._say(
                service.name,
                f"runs already, as pid {holder}, which this run did not start. It is left to its work; when it ends, another"
                " one is started here.",
            )
            return True
        one.elsewhere = None
        try:
            one.process = self._spawn(service.arguments)
        except OSError as error:  # no memory, say, or too many processes: no reason to end the others
            one.due_s = now_s + LONGEST_PAUSE_S
            self._say(service.name, f"could not be started: {error}; it is tried again in {LONGEST_PAUSE_S:g} s")
            return True
        one.started_s = now_s
        one.last_pid = one.process.pid
        one.reader = threading.Thread(target=self._hand_on, args=(service.name, one.process), daemon=True)
        one.reader.start()
        if service.every_s is None:
            self._say(service.name, f"started as pid {one.process.pid}")
        return True

    def _spawn(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "hisob.supervised", "--home", str(self._home), *arguments],
            stdin=subprocess.PIPE,  # never written to: it closes when this process is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C is for this process, which ends them in order
        )

    def _hand_on(self, name: str, process: subprocess.Popen[str]) -> None:
        """What the process writes, line by line."""
        with contextlib.suppress(OSError, ValueError):  # closed under our hands at the end
            for line in process.stdout or ():
                if line.strip():
                    self._say(name, line.rstrip().removeprefix(f"{name}: "))

    def _note_end(self, one: Supervised, code: int, now_s: float) -> None:
        service, lasted_s = one.service, now_s - one.started_s
        self._let_go(one)
        if service.every_s is not None:
            one.due_s = one.started_s + service.every_s
            one.failures = one.failures + 1 if code else 0
            if code:
                self._say(service.name, f"{in_words(code)}; it is tried again in {max(0, one.due_s - now_s):.0f} s")
            return
        one.failures = 0 if lasted_s >= LASTED_S else one.failures + 1
        one.restarts += 1
        pause_s = pause_after(one.failures)
        one.due_s = now_s + pause_s
        self._say(
            service.name, f"{in_words(code)}; it is started again {f'in {pause_s:g} s' if pause_s else 'at once'}"
        )

    @staticmethod
    def _let_go(one: Supervised) -> None:
        if one.process and one.process.stdin:
            one.process.stdin.close()
        one.process = None

    def end(self) -> None:
        """End all: in order, and after GRACE_S by force."""
        running = [one for one in self.processes if one.process]
        for one in running:
            if one.process:
                one.process.terminate()
        until = time.monotonic() + GRACE_S
        for one in running:
            if not one.process:
                continue
            try:
                code = one.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                code = one.process.wait()
                self._say(one.service.name, f"did not end within {GRACE_S:.0f} s")
            if one.reader:
                one.reader.join(LAST_WORDS_S)
            self._say(one.service.name, "ended" if code == -signal.SIGTERM else in_words(code))
            self._let_go(one)


def pause_after(failures: int) -> float:
    """Seconds until a process that has failed so often in a row is started again."""
    return 0.0 if failures <= 1 else min(LONGEST_PAUSE_S, 2.0 ** (failures - 3))


def in_words(code: int) -> str:
    """How a process ended."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}" if code else "ended"


@contextlib.contextmanager
def supervising(home: Path, services: Sequence[Service], say: Say) -> Iterator[Supervisor]:
    """A supervisor, all of whose processes have ended at the end."""
    supervisor = Supervisor(home, services, say)
    try:
        yield supervisor
    finally:
        supervisor.end()
