"""What the processes that act on the world share: their clock, and their way into the journal.

`wall` is the time of day. `journal` is the last tick in the journal: under it a demo or a test runs weeks in minutes, and
what happens between two ticks happens at the first of them.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from connectors.log import TransientLogError
from connectors.log.rows import last_tick
from streams.arrivals import Arrivals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from connectors.home import Home
    from connectors.log import Log

ClockKind = Literal["wall", "journal"]
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0


class Clock:
    """What time it is for what acts on the world."""

    def __init__(self, kind: ClockKind, journal: Log) -> None:
        """By the wall, or by this journal, which is the caller's to close."""
        self.kind: ClockKind = kind
        self._journal = journal

    def now(self) -> dt.datetime | None:
        """The present moment, in UTC; None: by the journal, before its first tick."""
        return dt.datetime.now(dt.UTC) if self.kind == "wall" else last_tick(self._journal)


class JournalWriter:
    """Arrivals for an asyncio process: in a thread of its own, one after the other, and again while the disk is full.

    `say` is told once when the journal cannot be written to, and once when it can again.
    """

    def __init__(self, home: Home, producer: str, say: Callable[[str], None], stop: asyncio.Event) -> None:
        """Under the producer's name. Once `stop` is set nothing is tried again. `close` it at the end."""
        self._say, self._stop = say, stop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{producer}-journal")
        self._arrivals = Arrivals(home, producer)

    async def take(
        self, records: Mapping[str, Sequence[Mapping[str, Any]]], commits: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        """Journal records and commits together; returns once they are durable. Raises LogError where that is for good."""
        pause_s = FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._thread, self._arrivals.take, records, commits)
            except TransientLogError as error:
                if self._stop.is_set():
                    raise
                if pause_s == FIRST_PAUSE_S:
                    self._say(f"{error} It is tried again until then.")
                await wait_for(self._stop, pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                if pause_s > FIRST_PAUSE_S:
                    self._say("the journal can be written to again.")
                return

    def committed(self, consumer: str) -> dict[str, int]:
        """What has been committed for a consumer, by key."""
        return self._arrivals.committed(consumer)

    def close(self) -> None:
        """Let go of the journal, once what was given is in it."""
        self._thread.submit(self._arrivals.close).result()
        self._thread.shutdown()


async def wait_for(event: asyncio.Event, seconds: float | None) -> bool:
    """Whether the event is set within so many seconds."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
