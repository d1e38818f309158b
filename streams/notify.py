"""Notify: notices leave for the customers' phones, each once, and what became of them returns to the journal as receipts.

What is promised:

- **Not before `send_after`**, by the clock of the effects, and in that order. Nothing else is judged here: settle decided that
  and when the customer is told.
- **No notice twice, none lost.** What is about to be sent is noted on disk (`run/notify.db`) before the channel gets it, and
  struck out after the channel's answer is journalled, with how far the events were read, in one transaction. What was noted
  and not answered when the process died was *in flight*; the journal says which that is, and the channel what became of it:

  | the channel | then |
  |---|---|
  | has it | its answer is journalled |
  | surely never got it | it is sent |
  | cannot tell | receipt `expired`, "unknown: …"; it is not sent again |

  Of the contract's statuses `expired` is what a network says of a message of which it never heard again, as here.
  `accepted` would keep the way to a cut shut for an episode without end, by a fault of ours; `undeliverable` and `rejected`
  would say of the phone what nobody knows. A receipt that comes later all the same is journalled too.
- **A full disk or a channel that does not answer stops nothing for good**: it is tried again, after a while that grows.
- A notice is good for three days after `send_after`. Should nobody have run notify for so long, it is not sent, for it tells
  what is no longer so: receipt `expired`. A notice without a phone is nothing to send; settle recorded that with the notice.

It is no bytewax dataflow: it waits on the world, and its position belongs into the transaction of what it journals.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import heapq
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accounting.moments import us_of
from accounting.records import render_id
from connectors.locks import hold
from connectors.log.body import decode, unpack
from connectors.log.sqlite import open_log
from connectors.sms import ChannelError, Message, NotTakenError, Receipt
from connectors.sms.outbox import NAME as OUTBOX
from connectors.sms.outbox import Outbox
from connectors.sms.simulated import SimulatedPhones
from streams.effects import Clock, ClockKind, JournalWriter, wait_for
from streams.stopping import stop_loop_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from connectors.home import Home
    from connectors.log import Log
    from connectors.sms import Channel

CONSUMER = "notify"
BATCH = 64  # messages noted, sent and journalled together
GOOD_FOR = dt.timedelta(days=3)
POLL_S = 0.05
COMMIT_EVERY_S = 5.0  # by the wall clock, where nothing but the position is new
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0


def open_channel(home: Home, name: str) -> Channel:
    """The channel that the settings name."""
    if name == "simulated":
        return SimulatedPhones(home.run / "phones.db", home.path / "phones.json")
    return Outbox(home.path / OUTBOX)


# ---- what is to be sent ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, order=True)
class Waiting:
    """A notice that the channel has not answered. `row`: where the row of events begins that it was read from."""

    send_after: dt.datetime
    partition: int
    ordinal: int
    n: int
    row: int = field(compare=False)
    message: Message = field(compare=False)

    @property
    def notice_id(self) -> str:
        """The notice's id."""
        return self.message.notice_id


class Notices:
    """Notices as they come out of the events, in the order of `send_after`; and how far the events were read."""

    def __init__(self, events: Log, since: dict[str, int]) -> None:
        """since: what was committed. Reading begins again at the oldest notice that was not answered then."""
        self._events = events
        self.reached = {p: since.get(f"oldest:{p}", 0) for p in range(events.partitions)}
        self.waiting: list[Waiting] = []
        self.has_more = True  # whether the events went on beyond what was read, when it was read

    def read(self) -> None:
        """Take in some of what the events have gained."""
        ends = {partition: self._events.end(partition) for partition in self.reached}
        for partition in [p for p, end in ends.items() if end > self.reached[p]]:
            reached = self.reached[partition]
            for row in self._events.read(partition, reached):
                self.reached[partition] = row.end
                batch = decode(row.body, ("notice",)).batches.get("notice")
                for notice in unpack("notice", batch).to_pylist() if batch is not None else ():
                    if notice["phone"] is not None:
                        self.put([waiting_of(partition, row.position, notice)])
        self.has_more = any(end > self.reached[partition] for partition, end in ends.items())

    def put(self, notices: Iterable[Waiting]) -> None:
        """These wait (again)."""
        for notice in notices:
            heapq.heappush(self.waiting, notice)

    def take_due(self, now: dt.datetime, most: int) -> list[Waiting]:
        """The first of those whose time has come: they wait no longer."""
        due: list[Waiting] = []
        while self.waiting and self.waiting[0].send_after <= now and len(due) < most:
            due.append(heapq.heappop(self.waiting))
        return due

    def leave_out(self, notice_ids: Collection[str]) -> None:
        """These have been answered."""
        self.waiting = [w for w in self.waiting if w.notice_id not in notice_ids]
        heapq.heapify(self.waiting)

    def position(self) -> dict[str, int]:
        """What to commit: of each partition how far it was read, and from where it must be read again after a crash."""
        oldest = dict(self.reached)
        for w in self.waiting:
            oldest[w.partition] = min(oldest[w.partition], w.row)
        return {str(p): end for p, end in self.reached.items()} | {f"oldest:{p}": row for p, row in oldest.items()}


def waiting_of(partition: int, row: int, notice: dict[str, Any]) -> Waiting:
    """A notice of the events, to be sent."""
    notice_id = render_id(partition, notice["ordinal"], notice["n"])
    names = ("account_id", "kind", "phone", "language", "text")
    message = Message(notice_id, **{name: notice[name] for name in names})
    return Waiting(notice["send_after"], partition, notice["ordinal"], notice["n"], row, message)


def answered(journal: Log, waiting: Sequence[Waiting]) -> set[str]:
    """Which notices have a receipt in the journal. A receipt lies in the notice's partition, after what caused it."""
    first: dict[int, int] = {}
    for w in waiting:
        first[w.partition] = min(first.get(w.partition, w.ordinal), w.ordinal)
    found: set[str] = set()
    for partition, ordinal in first.items():
        position = ordinal
        while rows := journal.read(partition, position):
            position = rows[-1].end
            for row in rows:
                batch = decode(row.body, ("receipt",)).batches.get("receipt")
                found |= set() if batch is None else set(unpack("receipt", batch).column("notice_id").to_pylist())
    return found


# ---- what is in flight -----------------------------------------------------------------------------------------------
class InFlight:
    """The ids of notices given to the channel whose answer is not journalled yet, on disk. Lost with nothing but itself."""

    def __init__(self, home: Home) -> None:
        home.run.mkdir(exist_ok=True)
        self._con = sqlite3.connect(home.run / "notify.db", isolation_level=None)
        self._con.execute("PRAGMA synchronous = FULL")
        self._con.execute("CREATE TABLE IF NOT EXISTS in_flight (notice_id TEXT PRIMARY KEY) WITHOUT ROWID, STRICT")

    def ids(self) -> set[str]:
        """All of them."""
        return {notice_id for (notice_id,) in self._con.execute("SELECT notice_id FROM in_flight")}

    def begin(self, notice_ids: Collection[str]) -> None:
        """Note them; on disk when this returns. Raises sqlite3.OperationalError where that cannot be: then none is."""
        self._change("INSERT OR IGNORE INTO in_flight VALUES (?)", notice_ids)

    def end(self, notice_ids: Collection[str]) -> None:
        """Strike them out: the journal has their answers, or they surely were not sent."""
        self._change("DELETE FROM in_flight WHERE notice_id = ?", notice_ids)

    def close(self) -> None:
        """Close the database."""
        self._con.close()

    def _change(self, sql: str, notice_ids: Collection[str]) -> None:
        if not notice_ids:
            return
        self._con.execute("BEGIN IMMEDIATE")
        try:
            self._con.executemany(sql, [(notice_id,) for notice_id in notice_ids])
            self._con.execute("COMMIT")
        except BaseException:
            if self._con.in_transaction:
                with suppress(sqlite3.Error):
                    self._con.execute("ROLLBACK")
            raise


# ---- the consumer ----------------------------------------------------------------------------------------------------
@dataclass
class Report:
    """What a run did."""

    sent: int = 0  # messages the channel answered, whatever it said
    receipts: int = 0  # receipts journalled, the channel's answers among them
    waiting: int = 0  # notices whose time has not come


class Notifier:
    """Sends what is due and journals what is said of it, step by step. One at a time for a home."""

    def __init__(self, home: Home, channel: Channel, clock: Clock, events: Log, say: Callable[[str], None]) -> None:
        self.stop = asyncio.Event()
        self._channel, self._clock, self._say = channel, clock, say
        self._writer, self._in_flight = JournalWriter(home, CONSUMER, say, self.stop), InFlight(home)
        self._committed = self._writer.committed(CONSUMER)
        self._committed_at = float("-inf")
        self._notices = Notices(events, self._committed)
        self._pause_s, self._paused_until = FIRST_PAUSE_S, float("-inf")
        self._now: dt.datetime | None = None  # of the step
        self.report = Report()

    async def recover(self, journal: Log) -> None:
        """Settle what was in flight when the last process ended."""
        while self._notices.has_more:
            self._notices.read()
        self._notices.leave_out(answered(journal, self._notices.waiting))
        noted = self._in_flight.ids()
        lost = [w for w in self._notices.waiting if w.notice_id in noted]
        self._in_flight.end(noted - {w.notice_id for w in lost})
        if lost:
            now = self._clock.now() or max(w.send_after for w in lost)
            self._notices.leave_out({w.notice_id for w in lost})
            self._say(f"{len(lost)} notices were in flight when notify ended: the channel is asked.")
            await self._take(await self._ask(lost, now), now)

    async def step(self) -> bool:
        """One round: read, send what is due, journal what was said. Whether there was anything to do."""
        self._notices.read()
        self._now = now = self._clock.now()
        if now is None:
            return False
        due = self._notices.take_due(now, BATCH) if time.monotonic() >= self._paused_until else []
        said = [too_late(w, now) for w in due if now - w.send_after > GOOD_FOR]
        said += await self._send([w for w in due if now - w.send_after <= GOOD_FOR], now)
        later = await self._channel.receipts(now)
        await self._take([*said, *later], now)
        await self._channel.settle(later)
        self.report.waiting = len(self._notices.waiting)
        return bool(said or later) or self._notices.has_more

    def is_idle(self) -> bool:
        """Whether the last step left nothing to do: all events read, nothing due."""
        first = self._notices.waiting[0] if self._notices.waiting else None
        is_due = first is not None and self._now is not None and first.send_after <= self._now
        return not is_due and not self._notices.has_more

    def close(self) -> None:
        """Let go of everything but the channel."""
        self._in_flight.close()
        self._writer.close()

    # -- sending
    async def _send(self, due: list[Waiting], now: dt.datetime) -> list[Receipt]:
        """Hand these over, so many at once as the channel takes; what it answered. Those it has not got wait again."""
        if not due:
            return []
        try:
            self._in_flight.begin([w.notice_id for w in due])
        except sqlite3.OperationalError as error:
            self._put_off(due, f"run/notify.db cannot be written: {error}. Make room; it is tried again by itself.")
            return []
        room = asyncio.Semaphore(self._channel.window)

        async def send(message: Message) -> Receipt:
            async with room:
                return await self._channel.send(message, now)

        answers = await asyncio.gather(*(send(w.message) for w in due), return_exceptions=True)
        said = [answer for answer in answers if isinstance(answer, Receipt)]
        self.report.sent += len(said)
        refused = [(w, a) for w, a in zip(due, answers, strict=True) if isinstance(a, NotTakenError)]
        if refused:
            self._in_flight_end([w.notice_id for w, _ in refused])
            self._put_off([w for w, _ in refused], str(refused[0][1]))
        else:
            self._pause_s = FIRST_PAUSE_S
        doubtful = [w for w, a in zip(due, answers, strict=True) if not isinstance(a, Receipt | NotTakenError)]
        if doubtful:
            first = next(a for a in answers if isinstance(a, BaseException) and not isinstance(a, NotTakenError))
            if not isinstance(first, ChannelError | OSError):
                raise first  # a fault of ours: what is in flight is settled by the next process
            self._say(f"{len(doubtful)} messages may or may not have been sent: {first}")
            said += await self._ask(doubtful, now)
        return said

    async def _ask(self, lost: list[Waiting], now: dt.datetime) -> list[Receipt]:
        """What became of messages in flight. Those the channel surely never got wait again."""
        known = await self._channel.recall([w.notice_id for w in lost], now)
        again = [w for w in lost if known.get(w.notice_id, w) is None]
        self._in_flight_end([w.notice_id for w in again])
        self._notices.put(again)
        found = [known.get(w.notice_id) or unknown(w, now) for w in lost if w not in again]
        self.report.sent += len(found)
        return found

    def _put_off(self, notices: list[Waiting], why: str) -> None:
        self._notices.put(notices)
        self._say(f"{len(notices)} notices wait: {why}")
        self._paused_until = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _in_flight_end(self, notice_ids: list[str]) -> None:
        """Strike out. Where the disk is full they stay noted: should we die now, the channel is asked about them in vain."""
        with suppress(sqlite3.OperationalError):
            self._in_flight.end(notice_ids)

    # -- journalling
    async def _take(self, receipts: Sequence[Receipt], now: dt.datetime) -> None:
        """Journal receipts and the position, together; however often it has to be tried, for what was sent was sent."""
        if not receipts and not self._may_commit():
            return
        commits = self._position(now)
        if not receipts and not self._is_news(commits):
            return
        rows = [
            {"notice_id": r.notice_id, "received_at": r.received_at, "status": r.status, "detail": r.detail}
            for r in receipts
        ]
        # Should we be asked to end before there is room, they are in flight: the next process asks the channel.
        await self._writer.take({"receipt": rows} if rows else {}, {CONSUMER: commits})
        self._committed, self._committed_at = commits, time.monotonic()
        self._in_flight_end([r.notice_id for r in receipts])
        self.report.receipts += len(rows)

    def _position(self, now: dt.datetime) -> dict[str, int]:
        """How far all is done: `at`, by the clock of the effects, for whoever waits for it."""
        return {**self._notices.position(), "at": us_of(now)}

    def _may_commit(self) -> bool:
        """Whether it is time to commit the position alone: by the journal's clock when all of the moment is done, for somebody
        may wait for that; else now and then.
        """
        if self._clock.kind == "journal":
            return self.is_idle()
        return time.monotonic() - self._committed_at >= COMMIT_EVERY_S

    def _is_news(self, commits: dict[str, int]) -> bool:
        """Whether a position says more than the last; that the wall's clock has gone on is no news."""
        aside = () if self._clock.kind == "journal" else ("at",)
        return any(self._committed.get(key) != value for key, value in commits.items() if key not in aside)


def too_late(w: Waiting, now: dt.datetime) -> Receipt:
    """A notice that nobody was there to send in time."""
    hours = (now - w.send_after) // dt.timedelta(hours=1)
    return Receipt(w.notice_id, now, "expired", f"not sent: {hours} hours after its time it no longer holds")


def unknown(w: Waiting, now: dt.datetime) -> Receipt:
    """A notice of which nobody can say whether it was sent."""
    return Receipt(
        w.notice_id, now, "expired", "unknown: in flight at a crash, and the channel cannot tell; not sent again"
    )


# ---- running it ------------------------------------------------------------------------------------------------------
def run_notify(
    home: Home,
    channel: Callable[[], Channel],
    clock: ClockKind,
    *,
    drain: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Send notices until asked to stop (SIGTERM, SIGINT), or with `drain` until none is due.

    Raises AlreadyRunningError where another process does, ChannelError where the channel cannot be used at all.
    """
    with (
        hold(home.run / "notify.lock", "notify"),
        closing(open_log(home.journal, readonly=True)) as journal,
        closing(open_log(home.events, readonly=True)) as events,
        closing(channel()) as opened,
        closing(Notifier(home, opened, Clock(clock, journal), events, say)) as notifier,
    ):
        asyncio.run(_run(notifier, journal, drain=drain))
        return notifier.report


async def _run(notifier: Notifier, journal: Log, *, drain: bool) -> None:
    stop_loop_on_signals(notifier.stop)
    await notifier.recover(journal)
    while not notifier.stop.is_set():
        if await notifier.step():
            continue
        if drain and notifier.is_idle():
            return
        await wait_for(notifier.stop, POLL_S)
