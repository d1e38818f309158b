"""Locks of a home: who does what, and only one of them. The holder's pid stands in the file for whoever comes second.

A lock is the operating system's: it is gone with the process that held it, killed or not. The file stays and means nothing.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 0.5  # whoever asks for the holder has the lock for an instant, and so has one that is just ending
RETRY_S = 0.02


class AlreadyRunningError(Exception):
    """Another process does it already; the message names its pid. `pid` is None where it is not known yet."""

    def __init__(self, message: str, pid: int | None) -> None:
        """What to tell, and who holds the lock."""
        super().__init__(message)
        self.pid = pid


@contextmanager
def hold(path: Path, what: str) -> Iterator[int]:
    """Hold the lock at `path`, whose descriptor is given: a process that inherits it holds it too.

    Raises AlreadyRunningError, saying that `what` runs already and as which pid.
    """
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _take(descriptor):
            pid = _pid_in(descriptor)
            raise AlreadyRunningError(
                f"{what} already runs on {path.parent.parent} as pid {pid or 'unknown'}; stop that one first, or let it do"
                " the work.",
                pid,
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether anybody holds the lock."""
    return holder_of(path) is not None


def holder_of(path: Path) -> int | None:
    """The pid that holds the lock; 0 if it has not written it yet; None: nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid_in(descriptor) or 0
    finally:
        os.close(descriptor)
    return None


def holders(run: Path) -> dict[str, int]:
    """Who holds which lock of the folder: its name, and the pid."""
    found = {path.stem: holder_of(path) for path in sorted(run.glob("*.lock"))}
    return {name: pid for name, pid in found.items() if pid is not None}


def _take(descriptor: int) -> bool:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(RETRY_S)
        else:
            return True


def _pid_in(descriptor: int) -> int | None:
    pid = os.pread(descriptor, 32, 0).split()
    return int(pid[0]) if pid and pid[0].isdigit() else None
