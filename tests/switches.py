"""A home with a fleet of simulated switches, and commands put into its events as settle would put them there."""

import asyncio
import datetime as dt
import json
from contextlib import asynccontextmanager, closing
from zlib import crc32

import numpy as np
import pyarrow as pa

from accounting.records import EVENT_SCHEMAS, render_id
from connectors.log import NewRow
from connectors.log.body import KIND_NUMBER, decode, encode, pack, unpack
from connectors.log.sqlite import open_log
from hisob.simulated.fleet import Fleet, GatewayServer, Meter
from hisob.simulated.process import devices_text
from streams.arrivals import Arrivals
from streams.dispatch import Dispatcher
from streams.effects import Clock
from tests.whole_homes import PARTITIONS, new_home

DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)
CAPS = {"per_hour": 500, "per_feeder_hour": 50}


def now():
    return dt.datetime.now(dt.UTC)


class District:
    """A home, its meters behind gateways (account A-3 has meter M-3), and a pen to write commands with."""

    def __init__(self, path, *, meters=4, gateways=2, log=None):
        self.home = new_home(path)
        self.home.run.mkdir(exist_ok=True)
        placed = [Meter(f"M-{n}", n % gateways, 1 + n // gateways, 3 * n, 1_000 * n, 0) for n in range(meters)]
        self.fleet = Fleet(placed, lambda: 1_700_000_000_000_000, log)
        self.meters = {meter.meter_id: meter for meter in placed}
        self.servers = [GatewayServer(self.fleet, n, "127.0.0.1", 0) for n in range(gateways)]
        self.said = []
        self.sequences = dict.fromkeys(range(PARTITIONS + 1), 1_000)

    async def listen(self):
        for server in self.servers:
            await server.start()
        (self.home.path / "devices.csv").write_text(devices_text(self.fleet.meters, self.servers))

    def at_requests(self, hook):
        """Call the hook with meter and function at each request, before it is answered; `False`: it is not."""
        answer = self.fleet.answer

        def hooked(gateway, unit, pdu):
            is_lost = hook(self.fleet.at[gateway, unit], pdu[0]) is False
            return None if is_lost else answer(gateway, unit, pdu)

        self.fleet.answer = hooked

    # ---- commands
    def command(self, number, action, **given):
        """A command for account A-number; its id."""
        return self.commands([(number, action)], **given)[0]

    def commands(self, wanted, *, cause="credit", feeder="F-1", caps=CAPS, at=None, expires_at=None, meter=None):
        """Commands in the order given; their ids."""
        at = at or now()
        ids = []
        with closing(open_log(self.home.events)) as events:
            for number, action in wanted:
                partition = crc32(f"A-{number}".encode()) % PARTITIONS
                ordinal = self.sequences[partition] = self.sequences[partition] + 1
                row = {
                    "ordinal": ordinal,
                    "n": 0,
                    "account_id": f"A-{number}",
                    "meter_id": meter or f"M-{number}",
                    "issued_at": at,
                    "expires_at": expires_at or at + DAY,
                    "action": action,
                    "cause": cause,
                    "sequence": ordinal,
                    "evidence": json.dumps({"feeder": feeder, "caps": caps}),
                }
                schema = pa.schema([("ordinal", pa.int64()), ("n", pa.int64()), *EVENT_SCHEMAS["command"]])
                batch = pack("command", pa.RecordBatch.from_pylist([row], schema=schema))
                body = encode(
                    (np.array([KIND_NUMBER["command"]], np.uint8), np.array([1], np.uint32)), {"command": batch}
                )
                events.append("settle", [NewRow(partition, ordinal, 1, body)])
                ids.append(render_id(partition, ordinal, 0))
        return ids

    def settle(self):
        """As if all that is journalled were settled."""
        with (
            closing(open_log(self.home.journal, readonly=True)) as journal,
            closing(open_log(self.home.events)) as events,
        ):
            ends = {str(p): journal.end(p) for p in range(journal.partitions)}
            if events.committed("settle") != ends:
                events.commit("settle", ends)

    # ---- what came of them
    def answers(self):
        """The outcomes journalled, by command id, in their order."""
        found = {}
        for record in self.records("acknowledgement"):
            found.setdefault(record["command_id"], []).append(record["outcome"])
        return found

    def records(self, kind):
        """The records of a kind that are journalled."""
        found = []
        with closing(open_log(self.home.journal, readonly=True)) as journal:
            for partition in range(journal.partitions):
                for row in journal.read(partition, 0, max_rows=10_000):
                    batch = decode(row.body, (kind,)).batches.get(kind)
                    found += unpack(kind, batch).to_pylist() if batch is not None else []
        return found

    def journal(self, **records):
        """Records that arrive."""
        with closing(Arrivals(self.home, "test")) as arrivals:
            arrivals.take(records)

    def tick(self, at):
        with closing(Arrivals(self.home, "test")) as arrivals:
            return arrivals.tick(at)

    # ---- dispatch
    @asynccontextmanager
    async def dispatching(self, *, clock="wall", timeout_s=0.2, drain=False, settling=True):
        """Dispatch at work, in this process; and a settle that has always settled everything."""
        with (
            closing(open_log(self.home.journal, readonly=True)) as journal,
            closing(open_log(self.home.events, readonly=True)) as events,
            closing(
                Dispatcher(self.home, Clock(clock, journal), journal, events, self.said.append, timeout_s)
            ) as dispatcher,
        ):
            running = asyncio.create_task(dispatcher.run(drain=drain))
            settler = asyncio.create_task(self._settle_always()) if settling else None
            try:
                yield dispatcher
                dispatcher.stop.set()
                await running
            except TimeoutError:
                if running.done():  # what we waited for cannot come
                    running.result()
                raise
            finally:
                running.cancel()
                if settler:
                    settler.cancel()

    async def _settle_always(self):
        while True:
            self.settle()
            await asyncio.sleep(0.02)

    async def until(self, what, timeout_s=8.0):
        """Wait until it is so; never with this thread alone, for the fleet lives in it."""
        async with asyncio.timeout(timeout_s):
            while not (answer := what()):  # noqa: ASYNC110  what it waits for lies in files
                await asyncio.sleep(0.02)
        return answer

    async def answered(self, *ids):
        """The outcomes of these commands, once all have one; none has two."""
        found = await self.until(lambda: (a := self.answers()) and all(i in a for i in ids) and a)
        assert all(len(outcomes) == 1 for outcomes in found.values()), found
        return [found[i][0] for i in ids]


def play(story, *arguments):
    """Run an async story to its end."""
    asyncio.run(story(*arguments))
