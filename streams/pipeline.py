"""What goes on beside the rules, each in a thread of its own: bodies are decoded ahead, events encoded and appended behind.

The order is kept throughout. Nobody waits but for what would run too far ahead, and in `wait` for all that was given: only
after that may a snapshot be kept, for a state must never know more than the event log.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from connectors.log import DivergedError, Log, NewRow, Row, Transaction
from connectors.log.body import KIND_NUMBER, Body, decode, encode
from connectors.log.sqlite import open_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import pyarrow as pa

    from connectors.home import Home

PRODUCER = "settle"
IGNORED = "ignored"  # consumer name under which counts of records that changed nothing are kept
# Rows of the journal: enough to keep all busy, few enough for a small machine.
DECODED_AHEAD, ENCODED_BEHIND, APPENDED_TOGETHER = 2, 4, 8


class SettleError(Exception):
    """Settling could not go on; the message says why and what to do next."""


@dataclass(frozen=True)
class SettledRow:
    """The events of one journal row, and how far its partition has come."""

    partition: int
    position: int
    end: int
    count: int
    body: bytes
    ignored: dict[str, int]


class Pipeline:
    """The threads beside the rules of one process, and its hold on the event log."""

    def __init__(self, home: Home, guarded: Callable[[], AbstractContextManager[bool]]) -> None:
        """guarded: keeps what goes wrong inside it, and says whether something has gone wrong before."""
        self._guarded = guarded
        self._log = open_log(home.events)
        self._threads = [ThreadPoolExecutor(1, name) for name in ("decode", "make", "encode", "append")]
        self._decoder, self._maker, self._encoder, self._appender = self._threads
        self._lock = threading.Lock()
        self._encoding: deque[Future[SettledRow]] = deque()
        self._to_append: list[Future[SettledRow]] = []
        self._appending: deque[Future[None]] = deque()

    def decoded(self, rows: Sequence[Row]) -> Iterator[Body]:
        """Their bodies, the next ones being decoded while one is at work."""
        ahead: deque[Future[Body]] = deque()
        for row in rows:
            ahead.append(self._decoder.submit(decode, row.body))
            if len(ahead) > DECODED_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def encode(self, row: Row, events: Callable[[], dict[str, pa.RecordBatch]], ignored: dict[str, int]) -> None:
        """Have the events of a row made and encoded, and appended together with others."""
        while len(self._encoding) >= ENCODED_BEHIND:
            self._encoding.popleft().exception()  # that of an append to come
        made = self._maker.submit(events)
        encoding = self._encoder.submit(lambda: encode_row(row, made.result(), ignored))
        self._encoding.append(encoding)
        with self._lock:
            self._to_append.append(encoding)
        if len(self._to_append) >= APPENDED_TOGETHER:
            self.append()

    def append(self) -> None:
        """Have what is being encoded appended."""
        while len(self._appending) > 1:
            self._appending.popleft().result()
        self._appending.append(self._appender.submit(self._append))

    def wait(self) -> None:
        """Until all that was given is durable, or something has gone wrong."""
        self.append()
        while self._appending:
            self._appending.popleft().result()

    def close(self) -> None:
        """Let go of the log, once nothing is at work."""
        for thread in self._threads:
            thread.shutdown()
        self._log.close()

    def _append(self) -> None:
        """All that waits, in one transaction."""
        with self._lock:
            rows, self._to_append = self._to_append, []
        with self._guarded() as may_go_on:
            settled = [row.result() for row in rows]
            if may_go_on and settled:
                write_settled(self._log, settled)


def encode_row(row: Row, events: dict[str, pa.RecordBatch], ignored: dict[str, int]) -> SettledRow:
    """A journal row's events as a body, one run a kind: each event knows its place by itself."""
    kinds = np.array([KIND_NUMBER[kind] for kind in events], np.uint8)
    counts = np.array([batch.num_rows for batch in events.values()], np.uint32)
    body = encode((kinds, counts), events) if events else b""
    return SettledRow(row.partition, row.position, row.end, int(counts.sum()), body, ignored)


def write_settled(log: Log, settled: Sequence[SettledRow]) -> None:
    """Events and the positions settled, in one transaction."""
    rows = [NewRow(r.partition, r.position, r.count, r.body) for r in settled if r.count]
    ends: dict[str, int] = {}
    ignored: dict[str, int] = {}
    for r in settled:
        ends[str(r.partition)] = r.end
        ignored |= {f"{r.partition}:{kind}": count for kind, count in r.ignored.items()}
    with log.writing() as turn:
        _append(turn, rows)
        before = turn.committed(PRODUCER)
        ends = {key: end for key, end in ends.items() if end > before.get(key, 0)}
        if ends:
            turn.commit(PRODUCER, ends)
            turn.commit(IGNORED, {k: v for k, v in ignored.items() if k.partition(":")[0] in ends})


def _append(turn: Transaction, rows: Sequence[NewRow]) -> None:
    try:
        turn.append(PRODUCER, rows)
    except DivergedError as error:
        raise SettleError(
            f"{error} The rules that settle now are not those that settled then, or a file was damaged. Settle with the"
            " version of Hisob that wrote the events, or put back the file."
        ) from error
