"""Meters and switches: how fast they are polled, how soon a payment gives the light back, and what kills cost.

A fleet of simulated Modbus meters behind 20 gateways (`hisob simulate-meters`), and `hisob settle`, `hisob dispatch`, `hisob
poll` as processes of their own, as `hisob run` starts them. What the fleet writes down of each write to a switch says when the
light came back, and whether a switch was changed twice.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np

from bench.work import Work
from connectors.home import Home
from connectors.log.rows import follow
from connectors.log.sqlite import open_log
from hisob.homes import make_home
from hisob.simulated.faults import Fault, spread
from streams.arrivals import Arrivals
from streams.ingest import ingest_files
from streams.settle import run_settle

GATEWAYS, FEEDERS = 20, 20
QUARTER = dt.timedelta(minutes=15)
FAILING, FAULTS_LAST_S = 0.02, 5.0
FAULTS_SEEN_S = 0.3  # so long after it was written the fleet has read the file
TROUBLED_S = 10.0  # a meter that failed so long after its payment, before the light, is counted apart
PAYMENTS_PER_S = 8.0
PATIENCE_S = 120.0
KILLS = 20
ANYTIME = {"days": [1, 2, 3, 4, 5, 6, 7], "from": "00:00", "to": "24:00"}
NEVER = {"from": "00:00", "to": "00:00"}
AT_ONCE = {"notice_gap_hours": 0, "cuts_per_hour": 100_000, "cuts_per_feeder_hour": 100_000}


# ---- the district ----------------------------------------------------------------------------------------------------
@dataclass
class Fleet:
    """A home whose meters are simulated, and where the fleet writes down what happens to its switches."""

    home: Home
    meters: int
    quarter: dt.datetime = field(default_factory=lambda: quarter_before(dt.datetime.now(dt.UTC)))

    @property
    def log(self) -> Path:
        return self.home.path / "switches.ndjson"

    @property
    def faults(self) -> Path:
        return self.home.path / "faults.json"

    def account(self, number: int) -> str:
        return f"A-{number:05}"

    def meter(self, number: int) -> str:
        return f"M-{number:05}"

    def fail(self, faults: list[dict[str, Any]]) -> None:
        """From now on these faults."""
        new = self.faults.with_suffix(".new")
        new.write_text(json.dumps(faults))
        new.rename(self.faults)

    def writes(self) -> list[dict[str, Any]]:
        """The writes of switches so far, in their order."""
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def closed(self) -> dict[str, bool]:
        """How the switches that were written stand."""
        return {write["meter_id"]: write["is"] for write in self.writes()}


def quarter_before(moment: dt.datetime) -> dt.datetime:
    return moment.replace(minute=moment.minute // 15 * 15, second=0, microsecond=0)


def make_fleet(work: Work, name: str, meters: int, balance_tiyin: int, *, phones: bool = False) -> Fleet:
    """Accounts opened an hour ago with this balance, and policies under which they may be cut at once, at any hour.

    With phones they are told of it, and for credit are cut only once the phone has answered.
    """
    path = work.home(name).path
    shutil.rmtree(path, ignore_errors=True)
    fleet = Fleet(make_home(path, 16), meters)
    began = fleet.quarter - 4 * QUARTER
    accounts = [
        {
            "account_id": fleet.account(n),
            "effective_at": began.isoformat(),
            "meter_id": fleet.meter(n),
            "district": "bench",
            "feeder": f"F-{n % FEEDERS:02}",
            "tariff": "household",
            "phone": f"+9989000{n:05}" if phones else None,
            "opening_balance_tiyin": balance_tiyin,
            "opening_register_wh": 1_000_000,
        }
        for n in range(meters)
    ]
    policies = [
        {"policy_id": kind, "kind": kind, "scope": "all", "starts_at": began.isoformat(), "value": json.dumps(value),
         "author": "bench", "reason": "cut at once, at any hour"}
        for kind, value in (("disconnect_window", ANYTIME), ("threshold", AT_ONCE), ("quiet_hours", NEVER))
    ]  # fmt: skip
    reading_at = (fleet.quarter - QUARTER).isoformat()
    readings = [
        {"meter_id": fleet.meter(n), "read_at": at, "register_wh": 1_000_000, "received_at": at}
        for at in (reading_at, fleet.quarter.isoformat())
        for n in range(meters)
    ][: meters + 1]  # one of the last quarter, so that the one before it is ticked
    given = {"account": accounts, "policy": policies, "reading": readings}
    ingest_files(fleet.home, [(kind, write_csv(path / f"{kind}.csv", rows)) for kind, rows in given.items()])
    with closing(Arrivals(fleet.home, "bench")) as arrivals:
        arrivals.tick(fleet.quarter)
    run_settle(fleet.home, drain=True)
    return fleet


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path


# ---- processes -------------------------------------------------------------------------------------------------------
def start(fleet: Fleet, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    """A command of hisob on the home, as a process."""
    environment = os.environ | {"HISOB_DISPATCH": "modbus", "HISOB_POLL_MINUTES": "15", **more.pop("env", {})}
    command = [sys.executable, "-m", "hisob", "--home", str(fleet.home.path), *arguments]
    return subprocess.Popen(command, env=environment, text=True, **more)


@contextmanager
def at_work(fleet: Fleet, *arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    process = start(fleet, *arguments, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def simulated(fleet: Fleet, clock: str = "wall") -> Iterator[None]:
    """The fleet, listening."""
    accounts = str(fleet.home.path / "account.csv")
    given = (
        "--accounts",
        accounts,
        "--gateways",
        str(GATEWAYS),
        "--faults",
        str(fleet.faults),
        "--log",
        str(fleet.log),
    )
    command = ("simulate-meters", "--json", "--clock", clock, *given)
    with at_work(fleet, *command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        if not process.stdout.readline():
            raise RuntimeError("the fleet did not start")
        yield


def wait_until(what: Callable[[], Any], says: str) -> Any:
    until = time.monotonic() + PATIENCE_S
    while not (answer := what()):
        if time.monotonic() > until:
            raise TimeoutError(says)
        time.sleep(0.05)
    return answer


# ---- polling ---------------------------------------------------------------------------------------------------------
def poll(work: Work) -> dict[str, float]:
    """Meters a second, of rounds of one `hisob poll` over 20 gateways, each to the last fsync; median of 5 after a first."""
    fleet = make_fleet(work, "poll", max(200, round(4_000 * work.scale)), 100_000_000)
    rates: list[float] = []
    environment = {"HISOB_CLOCK": "journal"}  # a round with every tick
    with (
        simulated(fleet, "journal"),
        closing(Arrivals(fleet.home, "bench")) as arrivals,
        at_work(fleet, "poll", stderr=subprocess.PIPE, env=environment) as process,
    ):
        assert process.stderr
        for number in range(1, 7):
            said = process.stderr.readline()
            found = re.search(r"poll: ([\d,]+) of ([\d,]+) meters read in ([\d.]+) s", said)
            if not found or found[1] != found[2]:
                raise RuntimeError(f"not all meters were read: {said!r}")
            rates.append(fleet.meters / float(found[3]))
            arrivals.tick(fleet.quarter + number * QUARTER)
    return {"poll_meters_per_s": median(rates[1:]), "poll_meters": fleet.meters}


# ---- from payment to light -------------------------------------------------------------------------------------------
def switches(work: Work) -> dict[str, float]:
    """Seconds from a payment to its reconnect command, and to the switch that is closed, over a fleet that fails in part."""
    fleet = make_fleet(work, "switches", max(60, round(500 * work.scale)), -100_000)
    with simulated(fleet), Processes(fleet, "settle", "dispatch", "poll", "clock"):
        wait_until(
            lambda: Counter(fleet.closed().values())[False] == fleet.meters,
            "not all supplies were cut",
        )
        commands: dict[str, float] = {}
        threading.Thread(target=see_reconnections, args=(fleet, commands), daemon=True).start()
        faulty = FaultyTimes(fleet)
        threading.Thread(target=faulty.keep_failing, daemon=True).start()
        paid = pay_all(fleet)
        untroubled = [m for m, at in paid.items() if not faulty.is_troubled(m, at, at + TROUBLED_S)]
        wait_until(lambda: all(fleet.closed()[m] for m in untroubled), "some who paid have no light")
        wait_until(lambda: len(commands) == fleet.meters, "some payments brought no command")
        faulty.stop.set()
        light = {write["meter_id"]: write["at"] for write in fleet.writes() if write["is"]}
    well = [m for m, at in paid.items() if m in light and not faulty.is_troubled(m, at, light[m])]
    to_command = [commands[meter] - at for meter, at in paid.items()]
    to_light = [light[meter] - paid[meter] for meter in well]
    p50, p99 = np.percentile(to_light, [50, 99]).tolist()
    return {
        "payment_to_command_p99_s": float(np.percentile(to_command, 99)),
        "payment_to_light_p99_s": p99,
        "payment_to_light_p50_s": p50,
        "payments": len(paid),
        "payments_counted_apart": len(paid) - len(well),
    }


def see_reconnections(fleet: Fleet, seen: dict[str, float]) -> None:
    """When the reconnect command of each meter was first seen, by what `hisob tail commands` is made of."""
    with closing(open_log(fleet.home.events, readonly=True)) as events:
        for _, batch in follow(events, "command", {}, from_end=True):
            moment = time.time()
            for meter_id, action in zip(
                batch.column("meter_id").to_pylist(), batch.column("action").to_pylist(), strict=True
            ):
                if action == "reconnect":
                    seen.setdefault(meter_id, moment)


def pay_all(fleet: Fleet) -> dict[str, float]:
    """Everybody pays, one after the other at the rate, in an order that is nobody's; when, by meter."""
    paid: dict[str, float] = {}
    began = time.monotonic()
    with closing(Arrivals(fleet.home, "bench")) as arrivals:
        for turn, number in enumerate(random.Random(1).sample(range(fleet.meters), fleet.meters)):
            time.sleep(max(0.0, began + turn / PAYMENTS_PER_S - time.monotonic()))
            now = dt.datetime.now(dt.UTC)
            paid[fleet.meter(number)] = now.timestamp()
            payment = {"payment_id": f"P-{number}", "account_id": fleet.account(number), "amount_tiyin": 10_000_000}
            arrivals.take({"payment": [payment | {"paid_at": now, "received_at": now}]})
    return paid


class FaultyTimes:
    """2 % of the meters fail at any time, others every few seconds; who did when."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.stop = threading.Event()
        self.spans: dict[str, list[float]] = defaultdict(list)

    def keep_failing(self) -> None:
        gateway_of = {self.fleet.meter(n): n % GATEWAYS for n in range(self.fleet.meters)}
        seed = 0
        while not self.stop.is_set():
            seed += 1
            fault = {"fault": "unit_dead", "share": FAILING, "seed": seed}
            for meter_id in spread([Fault(**fault)], gateway_of).dead_units:
                self.spans[meter_id].append(time.time())
            self.fleet.fail([fault])
            self.stop.wait(FAULTS_LAST_S)
        self.fleet.fail([])

    def is_troubled(self, meter_id: str, since: float, until: float) -> bool:
        """Whether it failed between these moments."""
        return any(began < until and since < began + FAULTS_LAST_S + FAULTS_SEEN_S for began in self.spans[meter_id])


# ---- kills -----------------------------------------------------------------------------------------------------------
def write_crashes(work: Work) -> dict[str, float]:
    """Switches opened and closed by order, and told of, while every process is killed with -9 again and again."""
    fleet = make_fleet(work, "write-crashes", max(40, round(200 * work.scale)), 100_000_000, phones=True)
    kills = max(2, round(KILLS * work.scale))
    orderer = Orderer(fleet)
    with simulated(fleet), Processes(fleet, "settle", "dispatch", "notify", "poll", "clock") as processes:
        ordering = threading.Thread(target=orderer.keep_ordering, daemon=True)
        ordering.start()
        draw = random.Random(1)
        for _ in range(kills):
            for name in processes.processes:
                written = len(fleet.writes())
                wait_until(lambda at=written: len(fleet.writes()) > at, "no switch is written any more")
                time.sleep(draw.uniform(0, 0.5))
                processes.kill(name)
        orderer.stop.set()
        ordering.join()
        lost = orderer.lost(PATIENCE_S)
    doubled = sum(
        count - orderer.orders[meter] for meter, count in changes(fleet).items() if count > orderer.orders[meter]
    )
    return {
        "lost_or_doubled_writes": lost + doubled,
        "doubled_notices": doubled_notices(fleet),
        "writes_commanded": orderer.orders.total(),
        "kills_of_each_process": kills,
    }


def doubled_notices(fleet: Fleet) -> int:
    """How many messages left more than once."""
    lines = (fleet.home.path / "outbox.ndjson").read_text(encoding="utf-8").splitlines()
    return len(lines) - len({json.loads(line)["notice_id"] for line in lines})


def changes(fleet: Fleet) -> Counter[str]:
    """How often each switch changed."""
    return Counter(write["meter_id"] for write in fleet.writes() if write["from"] != write["is"])


class Processes:
    """Processes that are started again whenever they were processes."""

    def __init__(self, fleet: Fleet, *commands: str) -> None:
        self.fleet, self.commands = fleet, commands
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        self.processes = {name: start(self.fleet, name) for name in self.commands}
        return self

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()
        self.processes[name] = start(self.fleet, name)

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.terminate()
            process.wait()


class Orderer:
    """Orders every supply off and on in turn, each as soon as the one before it has been carried out."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.stop = threading.Event()
        self.orders: Counter[str] = Counter()

    def keep_ordering(self) -> None:
        with closing(Arrivals(self.fleet.home, "bench")) as arrivals:
            while not self.stop.wait(0.1):
                closed = self.fleet.closed()
                ready = [n for n in range(self.fleet.meters) if self.is_carried_out(n, closed)]
                if ready:
                    arrivals.take({"order": [self.order(n) for n in ready[:50]]})

    def is_carried_out(self, number: int, closed: dict[str, bool]) -> bool:
        """Whether the switch is as was ordered last: every second order is to close it."""
        meter = self.fleet.meter(number)
        return closed.get(meter, True) == (self.orders[meter] % 2 == 0)

    def order(self, number: int) -> dict[str, Any]:
        meter, now = self.fleet.meter(number), dt.datetime.now(dt.UTC)
        off = self.orders[meter] % 2 == 0
        self.orders[meter] += 1
        return {
            "order_id": f"O-{number}-{self.orders[meter]}",
            "account_id": self.fleet.account(number),
            "ordered_at": now,
            "action": "disconnect" if off else "reconnect",
            "cause": "safety",
            "author": "bench",
            "reason": "to see it done",
            "received_at": now,
        }

    def lost(self, patience_s: float) -> int:
        """How many switches are not as they were ordered last, after a while."""
        until = time.monotonic() + patience_s
        while True:
            closed = self.fleet.closed()
            wrong = [n for n in range(self.fleet.meters) if not self.is_carried_out(n, closed)]
            if not wrong or time.monotonic() > until:
                return len(wrong)
            time.sleep(0.2)
