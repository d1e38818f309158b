"""Dispatch: commands carried out on the switches of devices.csv, and what was read back returned to the journal.

What happens to a command, each time it is attempted:

    read the switch ── is as wanted ──────────────────────────────────────────> opened, closed
        │ differs
    still wanted? ──── no ────────────────────────────────────────────────────> expired, superseded
        │ yes; to disconnect: the journal is settled up to now, and the caps leave room (else it is held)
    write ── read back ── is as wanted ───────────────────────────────────────> opened, closed
                  └── is not, or no answer: tried again after a pause, a few times ──> mismatch, unreachable

What is promised:

- `opened` and `closed` are journalled by readback alone (promise 7). Whatever else is journalled makes the supply `unknown`,
  and settle asks again at its next tick.
- **Still wanted** means: no later command of the account or for the meter, and not expired. It is asked right before the
  write. To disconnect, the journal must moreover be settled up to that moment, so a payment that is journalled but not yet
  settled voids a disconnection too; one that comes after the write is a command of its own, next in the same line.
- **Reconnections go first**, in each gateway's line; gateways do not wait for each other.
- **Never two thousand at once** (promise 3): above the caps in a command's evidence, an hour's and a feeder's, disconnections
  are held and that is said. What is cut is noted in `run/dispatch.db` before it is, so a restart forgets none. An order for
  safety is counted, but not held.
- **Nothing is assumed after a restart**: a command that was in flight is open, and an attempt begins with reading. The
  position is committed in the transaction of the acknowledgement; which commands after it are answered the journal tells.
- **A write without an answer may still arrive**: what its switch shows proves nothing for LATE_WRITE_S, nor after a restart.
- Only what a known model's `switch` names is ever written (`connectors.modbus.meters`).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accounting.moments import EPOCH, us_of
from accounting.records import render_id
from connectors.locks import hold
from connectors.log.body import decode, unpack
from connectors.log.rows import last_tick
from connectors.log.sqlite import open_log
from connectors.modbus import (
    DeviceFileError,
    Devices,
    Gateway,
    ModbusError,
    SwitchState,
    read_switch,
    write_switch,
)
from connectors.modbus.gateway import TIMEOUT_S
from streams.effects import Clock, ClockKind, JournalWriter, wait_for
from streams.stopping import stop_loop_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from connectors.home import Home
    from connectors.log import Log
    from connectors.modbus import Device

CONSUMER = PRODUCER = "dispatch"
SETTLE = "settle"  # under which name settle commits how far it has come, in the events
POLL_S = 0.02
LOOK_AGAIN_S = 0.5  # at devices.csv, and whether the journal is settled by now
HELD_LOOK_AGAIN_S = 2.0  # whether the caps leave room again: thousands may be held
PAUSES_S = (1.0, 2.0, 4.0)  # before each further attempt; a tenth by the journal's clock: who drives that one waits
LATE_WRITE_S = 5.0
SETTLED_PATIENCE_S = 1.0  # a line waits no longer for settle: a reconnection may be next in it
COMMIT_EVERY_S = 5.0
SAY_HELD_EVERY_S = 60.0
STOP_PATIENCE_S = 5.0
HOUR = dt.timedelta(hours=1)
PER_HOUR, PER_FEEDER_HOUR = 500, 50  # where a command does not say: the default policy's


# ---- commands --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Command:
    """A command event. `row`: where the row of events begins that it was read from."""

    partition: int
    ordinal: int
    n: int
    row: int
    account_id: str
    meter_id: str
    issued_at: dt.datetime
    expires_at: dt.datetime
    action: str
    cause: str
    feeder: str | None
    per_hour: int
    per_feeder_hour: int

    @property
    def command_id(self) -> str:
        """The event's id."""
        return render_id(self.partition, self.ordinal, self.n)

    @property
    def target(self) -> SwitchState:
        """What the switch is to be."""
        return SwitchState.OPENED if self.action == "disconnect" else SwitchState.CLOSED

    @property
    def rank(self) -> tuple[bool, dt.datetime, int, int, int]:
        """Its place in a line: reconnections first, then in order of issue."""
        return self.target is SwitchState.OPENED, self.issued_at, self.partition, self.ordinal, self.n

    @property
    def is_held_by_caps(self) -> bool:
        """Whether the caps concern it."""
        return self.target is SwitchState.OPENED and self.cause != "safety"


def command_of(partition: int, row: int, event: Mapping[str, Any]) -> Command:
    """A command as it stands in the events."""
    evidence = json.loads(event["evidence"])
    caps = evidence.get("caps", {})
    names = ("ordinal", "n", "account_id", "meter_id", "issued_at", "expires_at", "action", "cause")
    return Command(
        partition=partition,
        row=row,
        feeder=evidence.get("feeder"),
        per_hour=caps.get("per_hour", PER_HOUR),
        per_feeder_hour=caps.get("per_feeder_hour", PER_FEEDER_HOUR),
        **{name: event[name] for name in names},
    )


class Commands:
    """The commands of the events: which are open, which came last, and from where to read again after a crash."""

    def __init__(self, events: Log, journal: Log, since: Mapping[str, int]) -> None:
        """since: what was committed. What is answered since then is looked up in the journal."""
        self._events = events
        self.reached = {p: since.get(f"oldest:{p}", 0) for p in range(events.partitions)}
        self.open: dict[str, Command] = {}
        # Answered, though an older one is still open: its partition, row, and a journal position before its answer.
        self._answered: dict[str, tuple[int, int, int]] = {}
        self._known = answered_since(journal, since)
        self._latest: dict[str, Command] = {}  # of each account
        self._latest_of_meter: dict[str, Command] = {}

    def read(self) -> list[Command]:
        """The open commands among those that the events have gained."""
        gained: list[Command] = []
        for partition in self.reached:
            while self._events.end(partition) > self.reached[partition]:
                for row in self._events.read(partition, self.reached[partition]):
                    self.reached[partition] = row.end
                    batch = decode(row.body, ("command",)).batches.get("command")
                    found = unpack("command", batch).to_pylist() if batch is not None else ()
                    gained += [command_of(partition, row.position, event) for event in found]
        return [command for command in gained if self._hear(command)]

    def _hear(self, command: Command) -> bool:
        """Take in a command; whether it is open."""
        self._latest[command.account_id] = command
        before = self._latest_of_meter.get(command.meter_id)
        if before is None or before.issued_at <= command.issued_at:
            self._latest_of_meter[command.meter_id] = command
        if (bound := self._known.pop(command.command_id, None)) is not None:
            self._answered[command.command_id] = (command.partition, command.row, bound)
            return False
        self.open[command.command_id] = command
        return True

    def is_superseded(self, command: Command) -> bool:
        """Whether the account, or another one for the meter, has a later command."""
        if self._latest[command.account_id] is not command:
            return True
        other = self._latest_of_meter[command.meter_id]
        return other.account_id != command.account_id and other.issued_at > command.issued_at

    def why_not(self, command: Command, now: dt.datetime) -> str | None:
        """Why it is not wanted any more: `superseded`, `expired`; None: it is."""
        if self.is_superseded(command):
            return "superseded"
        return "expired" if now >= command.expires_at else None

    def position(self, answered: Iterable[str], ends: Mapping[int, int]) -> dict[str, int]:
        """What to commit with these answers. ends: the journal's, before them."""
        for command_id in answered:
            command = self.open.pop(command_id)
            self._answered[command_id] = (command.partition, command.row, ends[command.partition])
        oldest = dict(self.reached)
        for command in self.open.values():
            oldest[command.partition] = min(oldest[command.partition], command.row)
        self._answered = {
            command_id: place for command_id, place in self._answered.items() if place[1] >= oldest[place[0]]
        }
        bounds = dict(ends)
        for partition, _, bound in self._answered.values():
            bounds[partition] = min(bounds[partition], bound)
        return (
            {str(p): end for p, end in self.reached.items()}
            | {f"oldest:{p}": row for p, row in oldest.items()}
            | {f"answers:{p}": bound for p, bound in bounds.items()}
        )


def answered_since(journal: Log, since: Mapping[str, int]) -> dict[str, int]:
    """The commands that the journal has an answer to, from what was committed on; with a position before it."""
    found: dict[str, int] = {}
    for partition in range(journal.partitions):
        position = since.get(f"answers:{partition}", 0)
        while rows := journal.read(partition, position):
            for row in rows:
                batch = decode(row.body, ("acknowledgement",)).batches.get("acknowledgement")
                if batch is not None:
                    ids = unpack("acknowledgement", batch).column("command_id").to_pylist()
                    found |= {command_id: row.position for command_id in ids if command_id not in found}
            position = rows[-1].end
    return found


# ---- caps ------------------------------------------------------------------------------------------------------------
class Caps:
    """How many supplies were cut within the last hour, of all and of each feeder. It outlives the process."""

    def __init__(self, path: Path) -> None:
        """In a file of its own, made if it is not there."""
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS"
            " cut (command_id TEXT PRIMARY KEY, meter_id TEXT NOT NULL, feeder TEXT, at_us INTEGER NOT NULL)"
        )

    def leave_room(self, command: Command, now: dt.datetime) -> bool:
        """Whether one more may be cut now. One that was noted once may be tried again."""
        since_us = us_of(now - HOUR)
        total, of_feeder, itself = self._db.execute(
            "SELECT count(*), count(*) FILTER (WHERE feeder = ?), count(*) FILTER (WHERE command_id = ?)"
            " FROM cut WHERE at_us > ?",
            (command.feeder, command.command_id, since_us),
        ).fetchone()
        return bool(itself) or (total < command.per_hour and of_feeder < command.per_feeder_hour)

    def note(self, command: Command, now: dt.datetime) -> None:
        """This supply is about to be cut. Durable once it returns."""
        now_us = us_of(now)
        self._db.execute("DELETE FROM cut WHERE at_us <= ?", (us_of(now - HOUR),))
        self._db.execute(
            "INSERT INTO cut VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (command.command_id, command.meter_id, command.feeder, now_us),
        )

    def since(self, moment: dt.datetime) -> list[tuple[str, str]]:
        """The commands, and their meters, whose supply was about to be cut since then."""
        since_us = us_of(moment)
        return self._db.execute("SELECT command_id, meter_id FROM cut WHERE at_us > ?", (since_us,)).fetchall()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


# ---- lines -----------------------------------------------------------------------------------------------------------
@dataclass
class Job:
    """An open command in a gateway's line."""

    command: Command
    attempts: int = 0
    not_before: float = 0.0  # monotonic
    is_held: bool = False


@dataclass
class Line:
    """What waits for one gateway."""

    gateway: Gateway
    jobs: dict[str, Job] = field(default_factory=dict)
    at_work: Job | None = None
    is_woken: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, job: Job) -> None:
        """This one waits here."""
        self.jobs[job.command.command_id] = job
        self.is_woken.set()


@dataclass(frozen=True)
class Answer:
    """What came of a command."""

    command: Command
    outcome: str
    detail: str | None
    at: dt.datetime

    def record(self) -> dict[str, Any]:
        """As an acknowledgement. A clock that was stepped back must not make it older than what it answers."""
        at = max(self.at, self.command.issued_at)
        return {
            "command_id": self.command.command_id,
            "acknowledged_at": at,
            "outcome": self.outcome,
            "detail": self.detail,
            "received_at": at,
        }


@dataclass
class Report:
    """What was done: answers by outcome, and how often a switch was written."""

    answered: Counter[str] = field(default_factory=Counter)
    written: int = 0
    held: int = 0


class _MismatchError(Exception):
    """The switch was written, and does not show it."""


class _HeldError(Exception):
    """A disconnection that has to wait, and why."""


class Dispatcher:
    """Commands in, acknowledgements out."""

    def __init__(
        self,
        home: Home,
        clock: Clock,
        journal: Log,
        events: Log,
        say: Callable[[str], None],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Raises DeviceFileError where devices.csv is not there or wrong."""
        self._clock, self._journal, self._events, self._say, self._timeout_s = clock, journal, events, say, timeout_s
        self.report = Report()
        self.stop = asyncio.Event()
        self._pauses_s = PAUSES_S if clock.kind == "wall" else tuple(pause_s / 10 for pause_s in PAUSES_S)
        self._devices = Devices(home.path)
        self._caps = Caps(home.run / "dispatch.db")
        self._writer = JournalWriter(home, PRODUCER, say, self.stop)
        self._committed = journal.committed(CONSUMER)
        self._commands = Commands(events, journal, self._committed)
        self._lines: dict[tuple[str, int], Line] = {}
        self._unplaced: list[Command] = []
        self._why_held = ""
        self._doubtful: dict[str, float] = {}  # meters with a write that may still arrive, and until when
        self._answers: list[Answer] = []
        self._is_answered = asyncio.Event()
        self._committed_at = self._looked_at = self._said_held_at = 0.0
        self._said_held = 0

    async def run(self, *, drain: bool) -> None:
        """Until `stop` is set, or with `drain` until nothing more can be done now."""
        self._hear()
        self._doubt_what_was_in_flight()
        async with asyncio.TaskGroup() as group:
            journalling = group.create_task(self._journal_answers())
            working: list[asyncio.Task[None]] = []
            while not self.stop.is_set():
                working += [group.create_task(self._work(line)) for line in self._take_in()]
                self._look_around()
                if drain and self._is_done():
                    break
                await wait_for(self.stop, POLL_S)
            self.stop.set()
            for line in self._lines.values():
                line.is_woken.set()
            if working:  # what is being carried out is brought to its readback
                await asyncio.wait(working, timeout=STOP_PATIENCE_S)
            for task in working:
                task.cancel()
            self._is_answered.set()
            await journalling

    def _now(self) -> dt.datetime:
        """The present moment. Never before the last tick: a clock that was stepped back revives no expired command."""
        now, tick = self._clock.now(), last_tick(self._journal)
        return max(moment for moment in (now, tick, EPOCH) if moment is not None)

    def _doubt_what_was_in_flight(self) -> None:
        """A process that died a moment ago may have written what a gateway has not carried out yet."""
        for command_id, meter_id in self._caps.since(self._now() - dt.timedelta(seconds=LATE_WRITE_S)):
            if command_id in self._commands.open:
                self._doubtful[meter_id] = time.monotonic() + LATE_WRITE_S

    # ---- what is to be done ------------------------------------------------------------------------------------------
    def _take_in(self) -> list[Line]:
        """Put the commands that have come in line; the lines that are new."""
        self._hear()
        unplaced, self._unplaced = self._unplaced, []
        lines = [self._place(Job(command)) for command in unplaced]
        return [line for line in lines if line is not None]

    def _hear(self) -> None:
        """Read what the events have gained. What waits in a line and is superseded by it is answered at once."""
        gained = self._commands.read()
        self._unplaced += gained
        accounts, meters = {c.account_id for c in gained}, {c.meter_id for c in gained}
        for line in self._lines.values() if gained else ():
            for job in [j for j in line.jobs.values() if j is not line.at_work]:
                command = job.command
                is_concerned = command.account_id in accounts or command.meter_id in meters
                if is_concerned and self._commands.is_superseded(command):
                    del line.jobs[command.command_id]
                    self._answer(command, "superseded")

    def _place(self, job: Job) -> Line | None:
        """Put a command in its gateway's line, if there is anything to do for it; the line, if it is a new one."""
        command = job.command
        if self._commands.is_superseded(command):
            self._answer(command, "superseded")
            return None
        device = self._devices.of(command.meter_id, self._now())
        if device is None or device.model.switch is None:
            has = "it is not in devices.csv" if device is None else f"a {device.model.name} has none"
            self._answer(command, "unreachable", f"no switch: {has}")
            return None
        line = self._lines.get(device.gateway)
        if is_new := line is None:
            line = self._lines[device.gateway] = Line(Gateway(*device.gateway, timeout_s=self._timeout_s))
        line.put(job)
        return line if is_new else None

    def _look_around(self) -> None:
        """Now and then: has devices.csv changed, is anything held, is there a new position to commit."""
        now_s = time.monotonic()
        if now_s - self._looked_at < LOOK_AGAIN_S:
            return
        self._looked_at = now_s
        try:
            if self._devices.refresh():
                self._say("devices.csv has changed and was read.")
        except DeviceFileError as error:
            self._say(f"{error} What it said before holds until it is right.")
        held = sum(job.is_held for line in self._lines.values() for job in line.jobs.values())
        self.report.held = held
        if held and (not self._said_held or now_s - self._said_held_at >= SAY_HELD_EVERY_S):
            self._say(f"holds {held:,} disconnections: {self._why_held}")
            self._said_held_at = now_s
        elif self._said_held and not held:
            self._say("holds no disconnection any more.")
        self._said_held = held
        if now_s - self._committed_at >= COMMIT_EVERY_S:
            self._is_answered.set()

    def _is_done(self) -> bool:
        """Whether nothing more can be done now: what is left is held, or nothing is."""
        left = [job for line in self._lines.values() for job in line.jobs.values()]
        return not self._unplaced and not self._answers and all(job.is_held for job in left)

    # ---- a gateway's line --------------------------------------------------------------------------------------------
    async def _work(self, line: Line) -> None:
        """Attempt what waits in a line, the first of those whose time has come, one after the other."""
        while not self.stop.is_set():
            line.is_woken.clear()
            job = self._next_job(line)
            if job is None:
                await wait_for(line.is_woken, POLL_S if line.jobs else None)
                continue
            line.at_work = job
            await self._attempt(line, job)
            line.at_work = None
        line.gateway.close()

    def _next_job(self, line: Line) -> Job | None:
        now_s, now = time.monotonic(), self._now()
        ready = [
            job
            for job in line.jobs.values()
            if job.not_before <= now_s and self._doubtful.get(job.command.meter_id, 0.0) <= now_s
        ]
        # What failed before waits behind what has not been tried: a dead meter costs the others one time-out at most.
        for job in sorted(ready, key=lambda job: (job.command.rank[0], job.attempts, job.command.rank)):
            if not job.is_held or now >= job.command.expires_at or self._caps.leave_room(job.command, now):
                return job
            job.not_before = now_s + HELD_LOOK_AGAIN_S
        return None

    async def _attempt(self, line: Line, job: Job) -> None:
        """Attempt a command. It leaves the line answered, or stays in it: held, or to be tried again."""
        command, job.is_held = job.command, False
        device = self._devices.of(command.meter_id, self._now())
        if device is None or device.model.switch is None or self._lines.get(device.gateway) is not line:
            del line.jobs[command.command_id]  # devices.csv has changed
            self._unplaced.append(command)
            return
        try:
            outcome, detail = await self._carry_out(line.gateway, device, command)
        except _HeldError as held:
            job.is_held, self._why_held = True, str(held)
            job.not_before = time.monotonic() + LOOK_AGAIN_S
            return
        except (ModbusError, _MismatchError) as error:
            outcome, detail = ("mismatch" if isinstance(error, _MismatchError) else "unreachable"), str(error)
            if self._commands.is_superseded(command):
                outcome = "superseded"
            elif job.attempts < len(self._pauses_s):
                job.not_before = time.monotonic() + self._pauses_s[job.attempts]
                job.attempts += 1
                return
        del line.jobs[command.command_id]
        self._answer(command, outcome, detail)

    async def _carry_out(self, gateway: Gateway, device: Device, command: Command) -> tuple[str, str | None]:
        """Read, decide, write, read back: the outcome. Raises ModbusError, _MismatchError, _HeldError."""
        before = await read_switch(gateway, device)
        if before is command.target:
            return before.value, "found so"
        if command.target is SwitchState.OPENED:
            await self._know_all(command)
        self._hear()  # from here to the write nothing waits
        now = self._now()
        if why_not := self._commands.why_not(command, now):
            return why_not, f"the switch is {before.value}"
        if command.is_held_by_caps and not self._caps.leave_room(command, now):
            raise _HeldError(f"{command.per_hour:,} an hour, {command.per_feeder_hour:,} a feeder are cut already.")
        if command.target is SwitchState.OPENED:
            self._caps.note(command, now)
        self.report.written += 1
        try:
            await write_switch(gateway, device, command.target)
        except ModbusError:
            self._doubtful[command.meter_id] = time.monotonic() + LATE_WRITE_S
            raise
        after = await read_switch(gateway, device)
        if after is not command.target:
            raise _MismatchError(f"written {command.target.value}, read back {after.value}")
        return after.value, None

    async def _know_all(self, command: Command) -> None:
        """Wait until what is journalled for the account by now is settled: a payment may be among it. Raises _HeldError."""
        if command.cause == "safety":
            return
        key, end = str(command.partition), self._end_of_others(command.partition)
        until = time.monotonic() + SETTLED_PATIENCE_S
        while self._events.committed(SETTLE).get(key, 0) < end:
            if time.monotonic() >= until:
                raise _HeldError("the journal is not settled up to now; is `hisob settle` running?")
            await asyncio.sleep(POLL_S / 4)

    def _end_of_others(self, partition: int) -> int:
        """The journal's end, but for what dispatch has added itself: that voids no command."""
        end = self._journal.end(partition)
        while end > 0:
            (row,) = self._journal.read(partition, end - 1, max_rows=1)
            if row.producer != PRODUCER:
                break
            end = row.position
        return end

    # ---- answers -----------------------------------------------------------------------------------------------------
    def _answer(self, command: Command, outcome: str, detail: str | None = None) -> None:
        self._answers.append(Answer(command, outcome, detail, self._now()))
        self._is_answered.set()

    async def _journal_answers(self) -> None:
        """Journal answers as they come, with how far all is done; the last when `stop` is set."""
        while True:
            await self._is_answered.wait()
            is_last = self.stop.is_set()
            self._is_answered.clear()
            answers, self._answers = self._answers, []
            ends = {p: self._journal.end(p) for p in range(self._journal.partitions)}
            position = self._commands.position([a.command.command_id for a in answers], ends)
            if answers or position != self._committed:
                records = {"acknowledgement": [a.record() for a in answers]} if answers else {}
                await self._writer.take(records, {CONSUMER: position})
                self._committed, self._committed_at = position, time.monotonic()
                self.report.answered.update(a.outcome for a in answers)
            if is_last and not self._answers:
                return

    def close(self) -> None:
        """Let go of gateways, caps and journal."""
        for line in self._lines.values():
            line.gateway.close()
        self._caps.close()
        self._writer.close()


# ---- running it ------------------------------------------------------------------------------------------------------
def run_dispatch(
    home: Home,
    clock: ClockKind,
    *,
    drain: bool = False,
    timeout_s: float = TIMEOUT_S,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Carry out commands until asked to stop (SIGTERM, SIGINT), or with `drain` until nothing more can be done now.

    Raises AlreadyRunningError where another process does, DeviceFileError where devices.csv is not there or wrong.
    """
    with (
        hold(home.run / "dispatch.lock", "dispatch"),
        closing(open_log(home.journal, readonly=True)) as journal,
        closing(open_log(home.events, readonly=True)) as events,
        closing(Dispatcher(home, Clock(clock, journal), journal, events, say, timeout_s)) as dispatcher,
    ):
        asyncio.run(_run(dispatcher, drain=drain))
        return dispatcher.report


async def _run(dispatcher: Dispatcher, *, drain: bool) -> None:
    stop_loop_on_signals(dispatcher.stop)
    try:
        await dispatcher.run(drain=drain)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
