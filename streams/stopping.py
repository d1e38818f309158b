"""How a process is asked to end: SIGTERM and SIGINT set an event, and whoever waits for it ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def stop_on_signals(event: threading.Event | None = None) -> Iterator[threading.Event]:
    """The event, or a new one, set by SIGTERM and SIGINT (in the main thread; in another its owner alone sets it)."""
    stop = threading.Event() if event is None else event
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_loop_on_signals(stop: asyncio.Event) -> None:
    """The same for the running event loop, for as long as it runs."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread, whose owner has ways of their own
            loop.add_signal_handler(number, stop.set)
