"""The process of a fleet: its meters placed, devices.csv written, gateways served, faults followed."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from accounting.moments import us_of
from connectors.home import Home
from connectors.log.rows import last_tick
from connectors.log.sqlite import open_log
from connectors.modbus.devices import COLUMNS, FILE
from connectors.small_files import stamp_of, write_whole
from hisob.errors import HisobError
from hisob.simulated.faults import Faults, read_faults, spread
from hisob.simulated.fleet import Fleet, GatewayServer, Meter, serve
from hisob.simulated.load import Household
from streams.stopping import stop_loop_on_signals

HOST = "127.0.0.1"
UNITS = 247  # of one gateway, by the Modbus specification
MODEL = "hisob-sim"
TICK_LOOKED_UP_S = 0.05


@dataclass(frozen=True)
class Wanted:
    """What was asked for at the command line."""

    meters: int
    gateways: int
    port: int
    accounts: Path | None
    write_accounts: Path | None
    faults: Path | None
    by_journal: bool
    log: Path | None


def run_fleet(home: Home, wanted: Wanted, ready: Callable[[dict[str, object]], None]) -> None:
    """Serve until SIGTERM or SIGINT. ready: told of the fleet once it can be asked."""
    check_devices(home)
    with ExitStack() as stack:
        now_us: Callable[[], int] = _wall_us
        if wanted.by_journal:
            now_us = JournalClock(home, stack).now_us
        given = _accounts_meters(wanted.accounts) if wanted.accounts else _new_meters(wanted.meters, now_us())
        if len(given) > UNITS * wanted.gateways:
            least = -(-len(given) // UNITS)
            raise HisobError(f"{len(given)} meters need {least} gateways at least: {UNITS} fit one.", exit_code=2)
        household = Household()
        log = stack.enter_context(wanted.log.open("a", encoding="utf-8")) if wanted.log else None
        fleet = Fleet(place_meters(given, wanted.gateways, household.weeks), now_us, log, household=household)
        if wanted.write_accounts:
            write_accounts(wanted.write_accounts, fleet)
        asyncio.run(_serve(home, wanted, fleet, ready))


async def _serve(home: Home, wanted: Wanted, fleet: Fleet, ready: Callable[[dict[str, object]], None]) -> None:
    ports = [wanted.port + number if wanted.port else 0 for number in range(wanted.gateways)]
    servers = [GatewayServer(fleet, number, HOST, port) for number, port in enumerate(ports)]
    stop = asyncio.Event()
    stop_loop_on_signals(stop)
    try:
        for server in servers:
            await server.start()
    except OSError as error:
        raise HisobError(f"A port is taken: {error.strerror}. Give another --port, or 0.", exit_code=2) from error
    follower = FaultsFollower(wanted.faults, fleet)
    serving = asyncio.create_task(serve(fleet, servers, follower.next_faults))
    write_whole(home.path / FILE, devices_text(fleet.meters, servers))
    ports = [server.port for server in servers]
    shown = f"{ports[0]}–{ports[-1]}" if ports == list(range(ports[0], ports[0] + len(ports))) else ports
    ready({"meters": len(fleet.meters), "gateways": len(servers), "ports": shown})
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    serving.cancel()
    for server in servers:
        server.stop()


def _wall_us() -> int:
    return time.time_ns() // 1000


class JournalClock:
    """The last tick of a home's journal, looked up some times a second."""

    def __init__(self, home: Home, stack: ExitStack) -> None:
        self._journal = stack.enter_context(closing(open_log(home.journal, readonly=True)))
        self._looked_at, self._now_us = 0.0, 0

    def now_us(self) -> int:
        """The tick in µs; 1970 before the first."""
        if time.monotonic() - self._looked_at > TICK_LOOKED_UP_S:
            tick = last_tick(self._journal)
            self._now_us = us_of(tick) if tick else 0
            self._looked_at = time.monotonic()
        return self._now_us


class FaultsFollower:
    """The file of faults, as it changes."""

    def __init__(self, path: Path | None, fleet: Fleet) -> None:
        """Raises HisobError where the file is wrong to begin with."""
        self._path, self._gateway_of = path, fleet.gateway_of
        self._stamp: tuple[int, int, int] | None = None
        self._first: Faults | None = self._read()

    def next_faults(self) -> Faults | None:
        """What is wrong from now on; None: as before. A file that cannot be read changes nothing."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._path is None or stamp_of(self._path) == self._stamp:
            return None
        try:
            return self._read()
        except HisobError as error:
            print(f"simulate-meters: {error}", file=sys.stderr, flush=True)
            return None

    def _read(self) -> Faults:
        self._stamp = stamp_of(self._path) if self._path else None
        return spread(read_faults(self._path), self._gateway_of)


# ---- meters and files ------------------------------------------------------------------------------------------------
def check_devices(home: Home) -> None:
    """Raises HisobError if the home's devices.csv names devices of the real world: it is not for us to overwrite."""
    path = home.path / FILE
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8-sig") as file:
        real = [row for row in csv.DictReader(file) if (row.get("host"), row.get("model")) != (HOST, MODEL)]
    if real:
        raise HisobError(
            f"{path} names real devices ({real[0].get('meter_id')}, …): simulate on another home.", exit_code=2
        )


def place_meters(given: list[tuple[str, int, int]], gateways: int, weeks: int) -> list[Meter]:
    """Meters (id, opening register, its moment in µs) spread evenly over gateways, as units from 1."""
    placed = []
    for number, (meter_id, opening_wh, opened_us) in enumerate(given):
        unit, gateway = divmod(number, gateways)
        placed.append(Meter(meter_id, gateway, unit + 1, number * 7 % weeks, opening_wh, opened_us))
    return placed


def _new_meters(count: int, now_us: int) -> list[tuple[str, int, int]]:
    """Meters that were all put in at the beginning of this year, so that they count on where they were when started again."""
    year = dt.datetime.fromtimestamp(now_us / 1_000_000, dt.UTC).year
    opened_us = us_of(dt.datetime(year, 1, 1, tzinfo=dt.UTC))
    return [(f"SIM-{n:05}", 100_000 + 7_919 * n % 1_000_000, opened_us) for n in range(1, count + 1)]


def _accounts_meters(path: Path) -> list[tuple[str, int, int]]:
    """The meters of an account file: of each the first row counts."""
    found: dict[str, tuple[str, int, int]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                opening = int(row.get("opening_register_wh") or 0)
                opened_us = us_of(dt.datetime.fromisoformat(row["effective_at"]))
                found.setdefault(row["meter_id"], (row["meter_id"], opening, opened_us))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise HisobError(f"{path} is no account CSV: {error!r}.", exit_code=2) from error
    return list(found.values())


def devices_text(meters: list[Meter], servers: list[GatewayServer]) -> str:
    """The devices.csv of a fleet."""
    lines = [",".join(COLUMNS)]
    for meter in meters:
        server = servers[meter.gateway]
        lines.append(f"{meter.meter_id},2000-01-01T00:00:00Z,{server.host},{server.port},{meter.unit},{MODEL}")
    return "\n".join(lines) + "\n"


def write_accounts(path: Path, fleet: Fleet) -> None:
    """An account for each meter, opened now at what the register shows."""
    now = dt.datetime.fromtimestamp(fleet.now_us() // 1_000_000, dt.UTC).isoformat()
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        columns = ["account_id", "effective_at", "meter_id", "district", "feeder", "tariff", "phone"]
        out.writerow([*columns, "opening_register_wh", "opening_balance_tiyin"])
        for number, meter in enumerate(fleet.meters, 1):
            row = [f"SA-{number:05}", now, meter.meter_id, "simulated", f"F-{1 + meter.gateway:02}", "household"]
            out.writerow([*row, f"+9989000{number:05}", fleet.register_wh(meter), 10_000_000])
