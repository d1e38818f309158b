"""The compiled core driven straight from a journal in memory: routed, cut into bodies of any size, settled, and summed up.

Only the routing is the oracle's (`oracle.Directory`); it is tested by itself. Everything else is the code under test.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa

from accounting.partition import Partition
from accounting.records import EVENTS, KEY, RECORD_SCHEMAS
from accounting.settle import settle_body
from connectors.log.body import KIND_NAMES, KIND_NUMBER, decode, encode, pack, runs_of, unpack
from tests import oracle

Placed = tuple[str, dict[str, Any]]
BROADCAST = ("tick", "tariff", "policy")


@dataclass
class Settled:
    """What the events come to, in the oracle's terms, and the events themselves."""

    outcome: oracle.Outcome
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    partitions: list[Partition] = field(default_factory=list)


class Router:
    """Puts records into partitions `first …` as they arrive, as ingest does: `accounts` of them, then the unrouted one."""

    def __init__(self, accounts: int, first: int = 0) -> None:
        self.accounts, self.unrouted = accounts, first + accounts
        self.placed: list[list[Placed]] = [[] for _ in range(accounts + 1)]
        self._directory = oracle.Directory()
        self._waiting: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)

    def take(self, kind: str, record: dict[str, Any]) -> None:
        """One arrival: its rows, and those of the readings that waited for it."""
        if kind in BROADCAST:
            for row in rows_of(kind, record):
                for partition in self.placed:
                    partition.append((kind, row))
            return
        if kind == "reading":
            self._take_reading(dict(record), None)
            return
        self._home(record["account_id"]).append((kind, dict(record)))
        claimed = None
        if kind == "account" and self._directory.hear_account(record):
            claimed = record["meter_id"]
        elif kind == "meter_exchange" and self._directory.hear_exchange(record):
            claimed = record["new_meter_id"]
        for ordinal, waited in sorted(self._waiting.pop(claimed, ()), key=lambda w: w[1]["read_at"]):
            self._take_reading(waited, ordinal)

    def _home(self, account_id: str) -> list[Placed]:
        return self.placed[crc32(account_id.encode()) % self.accounts]

    def _take_reading(self, record: dict[str, Any], first_ordinal: int | None) -> None:
        claims = self._directory.claims.get(record["meter_id"])
        if claims is None:
            self._waiting[record["meter_id"]].append((len(self.placed[-1]), record))
            self.placed[-1].append(("reading", dict(record)))
            return
        account_id = self._directory.find(record["meter_id"], record["read_at"])
        row = {**record, "account_id": account_id}
        if first_ordinal is not None:
            row |= {"first_partition": self.unrouted, "first_ordinal": first_ordinal}
        self._home(account_id or claims[0].account_id).append(("reading", row))


def route(journal: Iterable[tuple[str, Any]], accounts: int) -> list[list[Placed]]:
    """Each partition's records, the last one's being the unrouted."""
    router = Router(accounts)
    for kind, record in journal:
        router.take(kind, record)
    return router.placed


def rows_of(kind: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The journal's rows of a record: one for each block of a tariff version, in all its hours."""
    if kind != "tariff":
        return [dict(record)]
    lists = record.get("lists") or ((None, record["blocks"]),)
    rows = [(hours, *block) for hours, blocks in lists for block in blocks]
    common = {k: record[k] for k in ("tariff", "effective_on", "received_at")}
    return [
        {
            **common,
            "hours": hours,
            "block_upto_kwh": upto,
            "price_tiyin_per_kwh": price,
            "block": i,
            "blocks": len(rows),
        }
        for i, (hours, upto, price) in enumerate(rows)
    ]


def body_of(records: list[Placed]) -> bytes:
    """Records in order as a body."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for kind, record in records:
        by_kind[kind].append(record)
    batches = {}
    for kind, rows in by_kind.items():
        schema = RECORD_SCHEMAS[kind]
        arrays = []
        for f in schema:
            values = [r.get(f.name) for r in rows]
            if pa.types.is_timestamp(f.type):
                arrays.append(pa.array(values, pa.int64()).cast(f.type))
            elif pa.types.is_date(f.type):
                arrays.append(pa.array([v if isinstance(v, date) else None for v in values], f.type))
            else:
                arrays.append(pa.array(values, f.type))
        batches[kind] = pack(kind, pa.record_batch(arrays, schema=schema))
    return encode(runs_of(np.array([KIND_NUMBER[k] for k, _ in records], np.uint8)), batches)


def settle_bytes(p: Partition, position: int, body: bytes) -> dict[str, pa.RecordBatch]:
    """One body through the core."""
    d = decode(body)
    runs = [(KIND_NAMES[k], int(c)) for k, c in zip(d.runs_kind, d.runs_count, strict=True)]
    return settle_body(p, position, runs, d.batches).events()


def settle_journal(
    journal: Iterable[tuple[str, Any]],
    *,
    accounts: int = 3,
    cut: Callable[[int], int] = lambda _left: 1000,
    between: Callable[[Partition], Partition] = lambda p: p,
) -> Settled:
    """Settle a journal. cut: how many records the next body has; between: what happens to the state between bodies."""
    settled = Settled(oracle.Outcome(), {kind: [] for kind in EVENTS})
    for number, records in enumerate(route(journal, accounts)):
        p, at = Partition(number, unrouted=number == accounts), 0
        while at < len(records):
            size = max(1, cut(len(records) - at))
            events = settle_bytes(p, at, body_of(records[at : at + size]))
            for kind, batch in events.items():
                rows = unpack(kind, batch).to_pylist()
                settled.events[kind] += [{"partition": number, **row} for row in rows]
            at += size
            p = between(p)
        settled.partitions.append(p)
    sum_up(settled)
    return settled


def key_of(kind: str, record: dict[str, Any]) -> str:
    """The key of cases/README.md."""
    return "|".join(str(record.get(c, "")) for c in KEY[kind])


def sum_up(settled: Settled) -> None:
    """Balances, usage, refused and held from the events alone."""
    outcome, events = settled.outcome, settled.events
    for e in events["entry"]:
        account = e["account_id"]
        outcome.balances[account] = outcome.balances.get(account, 0) + e["amount_tiyin"]
        assert outcome.balances[account] == e["balance_tiyin"], e
        outcome.usage[account] = outcome.usage.get(account, 0) + e["usage_wh"]
    outcome.refused = [
        (e["record_kind"], key_of(e["record_kind"], json.loads(e["record"])), e["reason"]) for e in events["refused"]
    ]
    released = {e["held_id"] for e in events["released"]}
    for e in events["held"]:
        if f"{e['partition']}-{e['ordinal']}-{e['n']}" not in released:
            record = json.loads(e["record"])
            outcome.held.append((e["record_kind"], key_of(e["record_kind"], record), e["reason"]))
