"""Poll: the registers of all meters of devices.csv, read in rounds and journalled as readings.

What is promised:

- Gateways are read at once, the meters of one in turn; a gateway that is dead or slow costs the others nothing. Where several
  meters in a row do not answer, the rest of their gateway is left to the next round, which begins with them.
- `read_at` is the moment of the reading, by the clock of the effects.
- What cannot be read is counted by reason and said; the next round tries it again. Nothing is made up.
- A reading is not journalled more than 15 minutes ahead of the last tick, for then it would be refused: about a quarter of an
  hour's turn it waits for the tick, which is a moment behind. Should none come, it is journalled all the same.

A round begins when the process does, and then with each of `poll_minutes` of the clock, a little after the turn.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accounting.moments import EPOCH
from connectors.locks import hold
from connectors.log.rows import last_tick
from connectors.log.sqlite import open_log
from connectors.modbus import DeviceFileError, Devices, Gateway, ModbusError, read_register
from connectors.modbus.gateway import TIMEOUT_S
from streams.effects import Clock, ClockKind, JournalWriter, wait_for
from streams.stopping import stop_loop_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectors.home import Home
    from connectors.log import Log
    from connectors.modbus import Device

PRODUCER = "poll"
BATCH = 500  # readings journalled together, at most; and no later than after
BATCH_S = 0.5
LOOK_EVERY_S = 0.2
SILENT_METERS = 5  # in a row, after which their gateway is left for this round
AFTER_TURN_S = (
    60.0  # how long after the turn of its minutes a round begins, at most; a quarter of the minutes if that is less
)
AHEAD_OF_TICK = dt.timedelta(minutes=15)
TICK_PATIENCE_S = 30.0
EXAMPLES = 3


@dataclass
class Round:
    """What a round came to. `failed` counts meters by reason, `examples` names some of each."""

    read: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    seconds: float = 0.0

    def fail(self, device: Device, reason: str) -> None:
        """This meter could not be read."""
        self.failed[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append(device.meter_id)

    def __str__(self) -> str:
        said = f"{self.read:,} of {self.read + self.failed.total():,} meters read in {self.seconds:.2f} s"
        for reason, count in self.failed.most_common():
            names = ", ".join(self.examples[reason]) + (" …" if count > len(self.examples[reason]) else "")
            said += f"; {reason} {count:,} ({names})"
        return said


class Poller:
    """Rounds over the devices of a home."""

    def __init__(
        self, home: Home, clock: Clock, journal: Log, say: Callable[[str], None], *, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Raises DeviceFileError where devices.csv is not there or wrong."""
        self._clock, self._journal, self._say, self._timeout_s = clock, journal, say, timeout_s
        self._devices = Devices(home.path)
        self.stop = asyncio.Event()
        self._writer = JournalWriter(home, PRODUCER, say, self.stop)
        self._gateways: dict[tuple[str, int], Gateway] = {}
        self._first: dict[tuple[str, int], str] = {}  # with which meter a gateway's next round begins
        self._readings: list[dict[str, Any]] = []
        self._is_full = asyncio.Event()

    async def round(self, within_s: float | None = None) -> Round:
        """Read all there is, for so many seconds at most, and journal it."""
        done, began = Round(), time.monotonic()
        now = self._clock.now()
        if now is None:
            return done
        try:
            self._devices.refresh()
        except DeviceFileError as error:
            self._say(f"{error} What it said before holds until it is right.")
        behind: dict[tuple[str, int], list[Device]] = defaultdict(list)
        for device in self._devices.all(now):
            behind[device.gateway].append(device)
        ended = asyncio.Event()
        journalling = asyncio.create_task(self._journal_readings(ended))
        try:
            async with asyncio.TaskGroup() as group:
                for place, devices in behind.items():
                    group.create_task(self._read_gateway(place, devices, done, within_s))
        except ExceptionGroup as unforeseen:
            raise unforeseen.exceptions[0] from unforeseen
        finally:
            ended.set()
            self._is_full.set()
            await journalling
        done.seconds = time.monotonic() - began
        return done

    async def _read_gateway(
        self, place: tuple[str, int], devices: list[Device], done: Round, within_s: float | None
    ) -> None:
        """One gateway's meters, in turn. Those it does not come to are counted too."""
        gateway = self._gateways.setdefault(place, Gateway(*place, timeout_s=self._timeout_s))
        first = next((i for i, d in enumerate(devices) if d.meter_id == self._first.get(place)), 0)
        line = devices[first:] + devices[:first]
        reached, silent = 0, 0
        try:
            async with asyncio.timeout(within_s):
                for device in line:
                    reason = await self._read_meter(gateway, device, done)
                    reached += 1
                    silent = silent + 1 if reason == "no_answer" else 0
                    if reason == "no_connection" or silent == SILENT_METERS:
                        break
        except TimeoutError:
            reason = "no_time"
        rest = line[reached:]
        self._first[place] = (rest or line)[0].meter_id
        for device in rest:
            done.fail(device, "not_tried" if reason == "no_answer" else str(reason))

    async def _read_meter(self, gateway: Gateway, device: Device, done: Round) -> str | None:
        """Read one meter: None, or the reason why it could not be."""
        try:
            register_wh = await read_register(gateway, device)
        except ModbusError as error:
            done.fail(device, error.reason)
            return error.reason
        read_at = self._clock.now()
        self._readings.append(
            {"meter_id": device.meter_id, "read_at": read_at, "register_wh": register_wh, "received_at": read_at}
        )
        done.read += 1
        if len(self._readings) >= BATCH:
            self._is_full.set()
        return None

    async def _journal_readings(self, ended: asyncio.Event) -> None:
        """Journal what is read, in batches, until the round has ended and nothing is left."""
        while not (ended.is_set() and not self._readings):
            await wait_for(self._is_full, BATCH_S)
            self._is_full.clear()
            batch, self._readings = self._readings, []
            if batch and await self._tick_has_come(batch[-1]["read_at"]):
                await self._writer.take({"reading": batch})

    async def _tick_has_come(self, read_at: dt.datetime) -> bool:
        """Wait until a reading of this moment is not ahead of the ticks. False: we are to end, and it still is."""
        until = time.monotonic() + TICK_PATIENCE_S
        while (tick := last_tick(self._journal)) is not None and read_at - tick > AHEAD_OF_TICK:
            if self.stop.is_set():
                return False
            if time.monotonic() >= until:
                self._say(
                    f"no tick since {tick:%Y-%m-%d %H:%M} UTC: is `hisob clock` running? Readings will be refused."
                )
                break
            await asyncio.sleep(LOOK_EVERY_S)
        return True

    def close(self) -> None:
        """Let go of gateways and journal."""
        for gateway in self._gateways.values():
            gateway.close()
        self._writer.close()


def run_poll(
    home: Home,
    clock: ClockKind,
    minutes: int,
    *,
    once: bool = False,
    timeout_s: float = TIMEOUT_S,
    say: Callable[[str], None] = lambda _: None,
) -> Round:
    """Poll until asked to stop (SIGTERM, SIGINT), or one round; the last round.

    Raises AlreadyRunningError where another process does, DeviceFileError where devices.csv is not there or wrong.
    """
    with hold(home.run / "poll.lock", "poll"), closing(open_log(home.journal, readonly=True)) as journal:
        return asyncio.run(_run(home, Clock(clock, journal), journal, minutes, once=once, timeout_s=timeout_s, say=say))


async def _run(
    home: Home, clock: Clock, journal: Log, minutes: int, *, once: bool, timeout_s: float, say: Callable[[str], None]
) -> Round:
    done, period_s = Round(), minutes * 60
    with closing(Poller(home, clock, journal, say, timeout_s=timeout_s)) as poller:
        stop = poller.stop
        stop_loop_on_signals(stop)
        if once:
            return await _round_unless(stop, poller, None) or done
        slot = None
        while not stop.is_set():
            now = clock.now()
            if now is not None and slot != (slot := slot_of(now, period_s, clock.kind)):
                ended = await _round_unless(stop, poller, period_s if clock.kind == "wall" else None)
                if ended is not None:
                    done = ended
                    say(str(done))
            await wait_for(stop, LOOK_EVERY_S)
    return done


async def _round_unless(stop: asyncio.Event, poller: Poller, within_s: float | None) -> Round | None:
    """A round; None: we were told to stop in the middle of it. What was read by then is journalled."""
    rounds, stopping = asyncio.create_task(poller.round(within_s)), asyncio.create_task(stop.wait())
    await asyncio.wait({rounds, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if rounds.done():
        return rounds.result()
    rounds.cancel()
    await asyncio.wait({rounds})
    return None


def slot_of(now: dt.datetime, period_s: int, clock: ClockKind) -> int:
    """Which round a moment belongs to. By the wall it begins a little after the turn, when the tick has come."""
    after_s = min(AFTER_TURN_S, period_s / 4) if clock == "wall" else 0.0
    return int(((now - EPOCH).total_seconds() - after_s) // period_s)
