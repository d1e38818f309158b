"""What goes on in a home, seen from outside: `hisob status` looks once, `hisob run` again and again.

Everything is read from the logs, beginning where the database last published ends: so what is open now is known without
reading years of history, and a look at a home that is followed costs only what has come since the last one.
"""

from __future__ import annotations

import datetime as dt
import json
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from accounting.records import render_id
from connectors.log.body import KIND_NUMBER, decode, unpack
from connectors.log.rows import lag_of, last_tick, records_in
from connectors.log.sqlite import open_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from connectors.home import Home
    from connectors.log import Log

# Open: not answered for good, and not superseded; whether a command is past being carried out is a question of the moment.
OPEN_COMMANDS = """
    SELECT c.command_id, c.expires_at FROM commands c
    WHERE NOT EXISTS (FROM acknowledgements a WHERE a.command_id = c.command_id)
      AND NOT EXISTS (FROM commands d WHERE d.supersedes = c.command_id)
"""
OPEN_NOTICES = """
    SELECT n.notice_id FROM notices n
    WHERE n.phone IS NOT NULL
      AND NOT EXISTS (FROM receipts r WHERE r.notice_id = n.notice_id AND r.status <> 'accepted')
"""
LOADED = "SELECT log, partition, max(end_position) FROM load.progress GROUP BY ALL"
SENDERS = ("dispatch", "notify")  # consumers of the events; they commit to the journal
READING = KIND_NUMBER["reading"]


@dataclass(frozen=True)
class Seen:
    """A home at one moment. A lag is in records not yet come to; None: that consumer has never been at work."""

    last_tick: dt.datetime | None
    journal_records: int
    event_rows: int
    readings: int  # heard of since the watch began
    refused: int  # as `readings`
    lag: dict[str, int | None]
    open_commands: int
    open_notices: int


class Watch:
    """Watches a home. Reads only."""

    def __init__(self, home: Home) -> None:
        """Begin where the last load ended."""
        self._home = home
        self._logs = ExitStack()
        self._journal = self._logs.enter_context(closing(open_log(home.journal, readonly=True)))
        self._events = self._logs.enter_context(closing(open_log(home.events, readonly=True)))
        self._published_ns = 0
        self._loaded: dict[str, dict[str, int]] | None = None
        self._commands: dict[str, dt.datetime] = {}
        self._notices: set[str] = set()
        self._readings = self._refused = 0
        self._look_at_published(take_open=True)
        start: dict[str, dict[str, int]] = self._loaded or {"journal": {}, "events": {}}
        self._reached = {log: {int(p): end for p, end in positions.items()} for log, positions in start.items()}
        self._tick = last_tick(self._journal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._logs.close()

    def look(self) -> Seen:
        """What there is now."""
        self._look_at_published(take_open=False)
        answered = set(self._read_journal())  # before the events: then what was answered is among the events read
        self._read_events()
        for event_id in answered:
            self._commands.pop(event_id, None)
            self._notices.discard(event_id)
        self._drop_expired()
        return Seen(
            last_tick=self._tick,
            journal_records=records_in(self._journal),
            event_rows=records_in(self._events),
            readings=self._readings,
            refused=self._refused,
            lag=self._lags(),
            open_commands=len(self._commands),
            open_notices=len(self._notices),
        )

    def _lags(self) -> dict[str, int | None]:
        lags: dict[str, int | None] = {"settle": lag_of(self._journal, self._events.committed("settle")), "load": None}
        if self._loaded is not None:
            of_journal = lag_of(self._journal, self._loaded["journal"])
            lags["load"] = of_journal + lag_of(self._events, self._loaded["events"])
        for name in SENDERS:
            if committed := self._journal.committed(name):
                lags[name] = lag_of(self._events, committed)
        return lags

    def _drop_expired(self) -> None:
        if self._tick is not None:
            self._commands = {i: expires_at for i, expires_at in self._commands.items() if expires_at > self._tick}

    # -- the database last published
    def _look_at_published(self, *, take_open: bool) -> None:
        """Up to where is loaded, and what was open then."""
        path = self._home.published
        if not path.exists() or path.stat().st_mtime_ns == self._published_ns:
            return
        import duckdb

        with duckdb.connect(path, read_only=True) as con:
            loaded: dict[str, dict[str, int]] = {"journal": {}, "events": {}}
            for log, partition, end in con.execute(LOADED).fetchall():
                loaded[log][str(partition)] = end
            if take_open:
                self._commands = {i: e.astimezone(dt.UTC) for i, e in con.execute(OPEN_COMMANDS).fetchall()}
                self._notices = {i for (i,) in con.execute(OPEN_NOTICES).fetchall()}
        self._loaded, self._published_ns = loaded, path.stat().st_mtime_ns

    # -- the logs
    def _read_journal(self) -> Iterator[str]:
        """Hear what has been journalled; the ids of commands and notices that were answered for good."""
        kinds = ("acknowledgement", "receipt", "tick")
        for partition in range(self._journal.partitions):
            for row in _new_rows(self._journal, self._reached["journal"], partition):
                body = decode(row.body, kinds)
                self._readings += int(body.runs_count[body.runs_kind == READING].sum())
                if "acknowledgement" in body.batches:
                    yield from body.batches["acknowledgement"].column("command_id").to_pylist()
                if "receipt" in body.batches:
                    receipts = unpack("receipt", body.batches["receipt"])
                    said = zip(
                        receipts.column("notice_id").to_pylist(), receipts.column("status").to_pylist(), strict=True
                    )
                    yield from (notice_id for notice_id, status in said if status != "accepted")
                if "tick" in body.batches:
                    tick = unpack("tick", body.batches["tick"]).column("ticked_at")[-1].as_py()
                    self._tick = max(tick, self._tick or tick)

    def _read_events(self) -> None:
        kinds = ("command", "notice", "refused")
        for partition in range(self._events.partitions):
            for row in _new_rows(self._events, self._reached["events"], partition):
                batches = decode(row.body, kinds).batches
                if "refused" in batches:
                    self._refused += batches["refused"].num_rows
                for command_id, command in _with_ids("command", partition, batches):
                    self._commands[command_id] = command["expires_at"]
                    self._commands.pop(command["supersedes"], None)
                self._notices |= {i for i, notice in _with_ids("notice", partition, batches) if notice["phone"]}


def _new_rows(log: Log, reached: dict[int, int], partition: int) -> Iterator[Any]:
    while rows := log.read(partition, reached.get(partition, 0)):
        for row in rows:
            reached[partition] = row.end
            yield row


def _with_ids(kind: str, partition: int, batches: dict[str, pa.RecordBatch]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a kind with their ids."""
    if kind in batches:
        for event in unpack(kind, batches[kind]).to_pylist():
            yield render_id(partition, event["ordinal"], event["n"]), event


def shown(moment: dt.datetime | None) -> str | None:
    """A moment as ISO 8601 in UTC."""
    return moment.isoformat().replace("+00:00", "Z") if moment else None


def read_processes(path: Path) -> dict[str, Any]:
    """What `hisob run` says of its processes, by name: `state`, `pid`, `restarts`. Nothing if that cannot be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
