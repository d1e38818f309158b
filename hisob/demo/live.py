"""The demo's live side: what `hisob run` runs, beside a simulated fleet of meters and simulated phones.

settle, dispatch and notify are the processes anybody's home has, under the clock of the journal: to them it is as late as the
last tick. The fleet's switches are written and read back over Modbus TCP; registers come as files, as a head-end of meters
gives them, since half a million of them would be read too slowly. Only while a command or a notice is open does the history
wait for the world.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any, TextIO

from accounting.records import render_id
from connectors.home import Home
from connectors.log import Log
from connectors.log.body import decode, unpack
from connectors.log.rows import last_tick
from connectors.log.sqlite import open_log
from hisob.demo.district import Customer, District, time_of
from hisob.demo.meters import FIRST_REGISTER_WH
from hisob.demo.world import Answer, Decisions, Notice
from hisob.errors import HisobError
from hisob.supervisor import Service, Supervisor, supervising

SETTINGS = {"dispatch": "modbus", "notify": "simulated", "clock": "journal", "poll_minutes": 0, "load_minutes": 0}
GATEWAYS = 6
PHONE_TAKES_S = 20
LOOK_S = 0.004
PATIENCE_S = 120.0  # the first round compiles the rules
FAILURES = 3


class Open:
    """What came out of the journal so far, and what of it is still open: commands, notices, answers of phones."""

    def __init__(self, journal: Log, events: Log) -> None:
        """From the beginning of both."""
        self._journal, self._events = journal, events
        self._read_journal, self._read_events = [0] * journal.partitions, [0] * events.partitions
        self._commands: dict[str, str] = {}  # unanswered: the account of each
        self._notices: dict[str, dt.datetime] = {}  # not taken by the network: when they may be sent
        self._messages: dict[str, dt.datetime] = {}  # on their way to a phone: when it has them
        self._found = Decisions([], [], {})

    def take(self) -> Decisions:
        """What came out since the last time."""
        found, self._found = self._found, Decisions([], [], {})
        return found

    def is_nothing(self) -> bool:
        """Whether the journal is settled to its end, and everything that came of it is done as far as time has come."""
        ends = [self._journal.end(p) for p in range(self._journal.partitions)]
        settled = self._events.committed("settle")
        if any(settled.get(str(p), 0) < end for p, end in enumerate(ends)):
            return False
        self._hear_events()
        self._hear_answers(ends)
        now = last_tick(self._journal)
        is_due = any(at <= now for at in (*self._notices.values(), *self._messages.values())) if now else False
        return not self._commands and not is_due

    def _hear_events(self) -> None:
        for partition, position in enumerate(self._read_events):
            while rows := self._events.read(partition, position):
                for row in rows:
                    kinds = decode(row.body, ("notice", "command", "entry")).batches
                    self._hear({kind: unpack(kind, batch) for kind, batch in kinds.items()}, partition)
                position = self._read_events[partition] = rows[-1].end  # noqa: PLW2901  read on from there

    def _hear(self, batches: dict[str, Any], partition: int) -> None:
        for row in rows_of(batches.get("notice"), ("account_id", "kind", "send_after", "phone")):
            self._found.notices.append(Notice(row["account_id"], row["kind"], row["send_after"]))
            if row["phone"]:
                self._notices[render_id(partition, row["ordinal"], row["n"])] = row["send_after"]
        for row in rows_of(batches.get("command"), ("account_id",)):
            self._commands[render_id(partition, row["ordinal"], row["n"])] = row["account_id"]
        if entries := batches.get("entry"):
            accounts, balances = (entries[name].to_pylist() for name in ("account_id", "balance_tiyin"))
            self._found.balances.update(zip(accounts, balances, strict=True))

    def _hear_answers(self, ends: list[int]) -> None:
        for partition, position in enumerate(self._read_journal):
            while position < ends[partition]:
                rows = [row for row in self._journal.read(partition, position) if row.end <= ends[partition]]
                for row in rows:  # no answer that is not settled yet: what comes of it is not known
                    kinds = decode(row.body, ("acknowledgement", "receipt")).batches
                    for kind, batch in kinds.items():
                        for record in unpack(kind, batch).to_pylist():
                            self._hear_answer(kind, record)
                position = self._read_journal[partition] = rows[-1].end  # noqa: PLW2901

    def _hear_answer(self, kind: str, record: dict[str, Any]) -> None:
        if kind == "acknowledgement":
            account_id = self._commands.pop(record["command_id"])
            at = record["acknowledged_at"]
            self._found.answers.append(Answer(account_id, record["outcome"], at, perf_counter()))
            return
        self._notices.pop(record["notice_id"], None)
        if record["status"] == "accepted":
            self._messages[record["notice_id"]] = record["received_at"] + dt.timedelta(seconds=PHONE_TAKES_S)
        else:
            self._messages.pop(record["notice_id"], None)


def rows_of(batch: Any, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Some columns of a batch, row by row."""
    return [] if batch is None else batch.select(["ordinal", "n", *columns]).to_pylist()


class Live:
    """The processes at work, and what they have open."""

    def __init__(self, supervisors: list[Supervisor], open_: Open, sticking: Path, log: Path) -> None:
        """As `living` makes it."""
        self._supervisors, self._open, self._sticking, self._log = supervisors, open_, sticking, log

    def settled(self) -> Decisions:
        """Wait until nothing is open, and take what was decided and done. Raises HisobError where that takes too long."""
        until = monotonic() + PATIENCE_S
        while not self._open.is_nothing():
            self.step()
            if monotonic() > until:
                raise HisobError(f"Nothing moves any more; what the processes said stands in {self._log}.")
            sleep(LOOK_S)
        found = self._open.take()
        if any(answer.outcome == "mismatch" for answer in found.answers):
            self._sticking.unlink(missing_ok=True)  # somebody knocks at the switch: the next command moves it
        return found

    def step(self) -> None:
        """Keep the processes running. Raises HisobError for one that does not stay up."""
        for supervisor in self._supervisors:
            supervisor.step()
            for one in supervisor.processes:
                if one.failures > FAILURES:
                    raise HisobError(f"{one.service.name} does not stay up; what it said stands in {self._log}.")

    def wait_for(self, path: Path) -> None:
        """Wait until a file is there that one of the processes makes."""
        until = monotonic() + PATIENCE_S
        while not path.exists():
            self.step()
            if monotonic() > until:
                raise HisobError(f"{path} was not made; what the processes said stands in {self._log}.")
            sleep(LOOK_S)


@contextmanager
def living(home: Home, district: District) -> Iterator[Live]:
    """The processes, which have all ended at the end. What they say stands in demo.log of the home."""
    given, log = home.path / "given", home.path / "demo.log"
    given.mkdir(exist_ok=True)
    write_fleet(given / "fleet.csv", district)
    sticking = given / "faults.json"
    sticking.write_text(json.dumps(faults_of(district.customers)), encoding="utf-8")
    (home.path / "phones.json").write_text(json.dumps(phones_of(district.customers)), encoding="utf-8")
    simulate = ("simulate-meters", "--clock", "journal", "--gateways", str(GATEWAYS))
    files = ("--accounts", str(given / "fleet.csv"), "--faults", str(sticking))
    fleet = Service("simulate-meters", (*simulate, *files))
    others = [Service(name, (name,), home.run / f"{name}.lock") for name in ("settle", "notify", "dispatch")]
    with ExitStack() as stack:
        said: TextIO = stack.enter_context(log.open("w", encoding="utf-8", buffering=1))

        def say(name: str, text: str) -> None:
            said.write(f"{name}: {text}\n")

        logs = [stack.enter_context(closing(open_log(path, readonly=True))) for path in (home.journal, home.events)]
        supervisors = [stack.enter_context(supervising(home.path, [fleet], say))]
        live = Live(supervisors, Open(*logs), sticking, log)
        live.wait_for(home.devices)
        supervisors.append(stack.enter_context(supervising(home.path, others, say)))
        yield live


# ---- what the world is told of the district ----------------------------------------------------------------------------


def write_fleet(path: Path, district: District) -> None:
    """The meters, those included that are put in later, as the fleet wants them: an account file's columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["meter_id", "effective_at", "opening_register_wh"])
        for customer in district.customers:
            out.writerow([customer.meter_id, time_of(0).isoformat(), customer.opening_register_wh])
        for trouble in district.troubles:
            if trouble.kind == "exchange":
                meter_id = district.customers[trouble.customer].new_meter_id
                out.writerow([meter_id, time_of(trouble.first).isoformat(), FIRST_REGISTER_WH])


def faults_of(customers: tuple[Customer, ...]) -> list[dict[str, str]]:
    """Switches that stick at the first command."""
    return [{"fault": "wrong_readback", "meter": c.meter_id} for c in customers if not c.switch_works]


def phones_of(customers: tuple[Customer, ...]) -> dict[str, dict[str, object]]:
    """Phones: they have a message soon, but for those that are never reached."""
    dead = [c.phone for c in customers if c.phone and not c.phone_works]
    behaviour: dict[str, dict[str, object]] = {"*": {"outcome": "delivered", "after_s": PHONE_TAKES_S}}
    return behaviour | {phone: {"outcome": "undeliverable", "after_s": PHONE_TAKES_S} for phone in dead}
