"""The live clock: a tick at each quarter of an hour, by the time of day; and beside it the inbox.

One process holds the lease (`run/clock.lock`) and makes the ticks; whoever journals files meanwhile makes none
(`streams.ingest`, `makes_ticks`). From files every tick is made, as their time passes; live it is the time of day that
passes, and a quarter of an hour in which nobody was there to decide is not decided afterwards: those missed are not
made up. A restart is not a miss: the tick of the quarter that has just begun is made within LATE of it.

Ticks never go back. Where the machine's clock is behind the last tick (stepped back, or the last tick came of one that
was fast), none is made until it is past it, which is said once.

Under the clock of the journal (replays, demos) time is what the files say: then this process makes no tick, and the
files of the inbox make all of theirs.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from accounting.moments import EPOCH
from connectors.home import Home
from connectors.locks import hold
from connectors.log import TransientLogError
from streams.arrivals import Arrivals
from streams.inbox import Inbox
from streams.stopping import stop_on_signals

PRODUCER = "clock"
QUARTER = dt.timedelta(minutes=15)
LATE = dt.timedelta(minutes=1)  # after which a tick has been missed
LOOK_S = 0.5  # how often the clock and the inbox are looked at
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Say = Callable[[str], None]


def utc_now() -> dt.datetime:
    """The time of day."""
    return dt.datetime.now(dt.UTC)


class Ticker:
    """Makes each tick in its turn. To be looked at often."""

    def __init__(self, arrivals: Arrivals, say: Say) -> None:
        """Tick into this journal; say what is out of the ordinary."""
        self._arrivals, self._say = arrivals, say
        self._done: dt.datetime | None = None  # the quarter that nothing more is to be done for
        self._is_behind = False

    def look(self, now: dt.datetime) -> bool:
        """Make the tick of the present quarter, if it is due. Raises TransientLogError; the next look tries again."""
        quarter = now - (now - EPOCH) % QUARTER
        if quarter == self._done:
            return False
        last = self._arrivals.last_tick()
        is_behind = last is not None and now < last
        if is_behind and not self._is_behind:
            self._say(
                f"the machine's clock shows {_shown(now)}, but the last tick was {_shown(last)}: no tick is made until it is"
                " past that."
            )
        self._is_behind = is_behind
        is_made = now - quarter <= LATE and self._arrivals.tick(quarter)
        if is_made:
            self._tell_missed(last, quarter - QUARTER)
            self._say(f"tick {_shown(quarter)}")
        elif now - quarter > LATE:
            self._tell_missed(last, quarter)
        self._done = quarter
        return is_made

    def _tell_missed(self, last: dt.datetime | None, until: dt.datetime) -> None:
        if last is not None and last < until:
            count = (until - last) // QUARTER
            self._say(f"{count:,} ticks after {_shown(last)} were missed: they are not made up.")


def _shown(moment: dt.datetime | None) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else "never"


def run_clock(
    home: Home, *, makes_ticks: bool, batch_rows: int, say: Say, now: Callable[[], dt.datetime] = utc_now
) -> None:
    """Tick and empty the inbox until SIGTERM or SIGINT. Raises AlreadyRunningError where another process does."""
    with hold(home.clock_lock, "clock"), stop_on_signals() as stop, closing(Arrivals(home, PRODUCER)) as arrivals:
        inbox = Inbox(home, batch_rows=batch_rows, makes_ticks=not makes_ticks, say=say)
        ticker = Ticker(arrivals, say) if makes_ticks else None
        with _beside(inbox, stop) as failures:
            patience = Patience(say)
            while not stop.wait(LOOK_S):
                if ticker:
                    with patience:
                        ticker.look(now())
        if failures:
            raise failures[0]


class Patience:
    """Around what is tried again and again: that the journal cannot be written to for now is told once, and so is its end."""

    def __init__(self, say: Say) -> None:
        """Say so here."""
        self._say, self._is_told = say, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, TransientLogError) or (isinstance(error, OSError) and error.errno in FULL):
            if not self._is_told:
                self._say(f"{error} It is tried again until it works.")
            self._is_told = True
            return True
        if error is None and self._is_told:
            self._say("it works again.")
            self._is_told = False
        return False


@contextlib.contextmanager
def _beside(inbox: Inbox, stop: threading.Event) -> Iterator[list[Exception]]:
    """The inbox looked at in a thread of its own, so that a large file there delays no tick. What went wrong in it."""
    failures: list[Exception] = []

    def look() -> None:
        patience = Patience(inbox.say)
        try:
            while not stop.wait(LOOK_S):
                with patience:
                    inbox.look(time.time())
        except Exception as error:  # noqa: BLE001  it is raised in the main thread
            failures.append(error)
            stop.set()

    thread = threading.Thread(target=look, name="inbox", daemon=True)
    thread.start()
    yield failures
    thread.join(timeout=5)  # a file half journalled is gone on with next time
