"""Live: from append of a reading to its event, at the rate of a whole country that is read every half hour.

Three processes: `hisob settle` follows the journal; a writer appends 5,000 readings a second as ingest would, a row for each
partition five times a second, and ticks when all meters have been read once more; this one follows the events by the very
function that `hisob tail entries` is made of.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from accounting.records import TIME
from bench.following import following
from bench.work import HALF_HOUR_US, PARTITIONS, START_US, Work
from connectors.log import Log, NewRow
from connectors.log.body import KIND_NUMBER, encode
from connectors.log.rows import EventId, follow
from connectors.log.sqlite import open_log

READINGS_PER_S = 5_000
APPENDS_PER_S = 5
READINGS_AN_APPEND = READINGS_PER_S // APPENDS_PER_S
QUARTER_US = HALF_HOUR_US // 2
USED_WH = 100  # in a quarter of an hour
WARMING_S = 5  # not counted: a settle just started loads its compiled rules at the first reading
PATIENCE_S = 120


def live(work: Work) -> dict[str, float]:
    """Percentiles of the delay of all readings, the first seconds aside."""
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(appends(work) // APPENDS_PER_S + PATIENCE_S)
    home = work.copied_home("live", "settled")
    with closing(open_log(home.journal)) as journal, closing(open_log(home.events, readonly=True)) as events:
        append_tick(journal, Writer(work).ended_us)  # one that was there already: by it we see that settle is ready
        with following(home):
            since = {p: EventId(journal.end(p), 0) for p in range(PARTITIONS)}
            command = [sys.executable, "-m", "bench.live", str(work.folder), str(work.scale)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
                seen = see_entries(events, since, appends(work) * READINGS_AN_APPEND)
                appended = json.loads(writer.communicate()[0])
    p50, p99, most = np.percentile(delays_of(appended, seen), [50, 99, 100]).tolist()
    return {"live_p99_s": p99, "live_p50_s": p50, "live_most_s": most}


def appends(work: Work) -> int:
    """How many times the writer appends."""
    return (WARMING_S + int(work.live_seconds)) * APPENDS_PER_S


def give_up(*_: object) -> None:
    """Some readings never became entries."""
    raise TimeoutError(f"entries are missing {PATIENCE_S} s after the last append")


def see_entries(events: Log, since: dict[int, EventId], count: int) -> list[tuple[int, NDArray[np.int64], float]]:
    """Follow so many entries: their partition and causes, and when they were seen."""
    seen = []
    for partition, batch in follow(events, "entry", since):
        seen.append((partition, batch.column("ordinal").to_numpy(), time.time()))
        count -= batch.num_rows
        if count <= 0:
            break
    return seen


def delays_of(
    appended: list[tuple[int, int, float]], seen: list[tuple[int, NDArray[np.int64], float]]
) -> NDArray[np.float64]:
    """Seconds from the append of each reading that counts until its entry was seen."""
    counts_from = appended[0][2] + WARMING_S
    delays = []
    for partition, ordinals, seen_at in seen:
        first, moments = zip(*((position, at) for p, position, at in appended if p == partition), strict=True)
        appended_at = np.array(moments)[np.searchsorted(first, ordinals, side="right") - 1]
        delays.append((seen_at - appended_at)[appended_at >= counts_from])
    return np.concatenate(delays)


# ---- the writer ------------------------------------------------------------------------------------------------------
class Writer:
    """Reads all meters in turn, from where the settled readings ended."""

    def __init__(self, work: Work) -> None:
        accounts = pq.read_table(work.file("account.parquet"), columns=["meter_id", "account_id"]).combine_chunks()
        self.meter_ids, self.account_ids = (accounts[name].chunk(0) for name in ("meter_id", "account_id"))
        self.partition = np.array([crc32(a.encode()) % PARTITIONS for a in self.account_ids.to_pylist()])
        registers = pq.read_table(work.file("reading.parquet"), columns=["register_wh"])["register_wh"]
        self.last_wh = registers.slice(len(registers) - work.meters).to_numpy()
        self.meters = work.meters // READINGS_AN_APPEND * READINGS_AN_APPEND  # so that no append lies across a tick
        self.ended_us = START_US + work.half_hours * HALF_HOUR_US
        self.done = 0

    def next_rows(self, sequence: int) -> list[NewRow]:
        """The next readings, a row for each partition."""
        numbers = np.arange(self.done, self.done + READINGS_AN_APPEND)
        self.done += READINGS_AN_APPEND
        meter, turn = numbers % self.meters, numbers // self.meters + 1
        rows = []
        for partition in range(PARTITIONS):
            mine = self.partition[meter] == partition
            if mine.any():
                batch = self.readings(meter[mine], turn[mine])
                runs = np.array([KIND_NUMBER["reading"]], np.uint8), np.array([batch.num_rows], np.uint32)
                rows.append(NewRow(partition, sequence, batch.num_rows, encode(runs, {"reading": batch})))
        return rows

    def readings(self, meter: NDArray[np.int64], turn: NDArray[np.int64]) -> pa.RecordBatch:
        """Readings as they lie in a body."""
        names = [self.meter_ids.take(pa.array(meter)), self.account_ids.take(pa.array(meter))]
        pairs = pa.StructArray.from_arrays(names, ["meter_id", "account_id"])
        return pa.record_batch(
            {
                "pair": pa.DictionaryArray.from_arrays(pa.array(np.arange(len(meter), dtype=np.int32)), pairs),
                "read_at": pa.array(self.ended_us + turn * QUARTER_US).cast(TIME),
                "register_wh": pa.array(self.last_wh[meter] + turn * USED_WH),
            }
        )

    @property
    def turn_ended_us(self) -> int:
        """The quarter of an hour up to which all meters have been read."""
        return self.ended_us + self.done // self.meters * QUARTER_US


def append_tick(journal: Log, at: int) -> None:
    """Journal a tick in every partition."""
    batch = pa.record_batch({"ticked_at": pa.array([at]).cast(TIME)})
    body = encode((np.array([KIND_NUMBER["tick"]], np.uint8), np.array([1], np.uint32)), {"tick": batch})
    sequence = max((journal.last(p, "bench-tick") or 0) for p in range(journal.partitions)) + 1
    journal.append("bench-tick", [NewRow(p, sequence, 1, body) for p in range(journal.partitions)])


def write(work: Work) -> list[tuple[int, int, float]]:
    """Append at the rate; of every row its partition, its position, and the moment it was durable."""
    writer, appended, ticked_us = Writer(work), [], 0
    with closing(open_log(work.home("live").journal)) as journal:
        began = time.monotonic()
        for number in range(appends(work)):
            time.sleep(max(0.0, began + number / APPENDS_PER_S - time.monotonic()))
            rows = writer.next_rows(number)
            positions = journal.append("bench", rows)
            moment = time.time()
            appended += [(row.partition, position, moment) for row, position in zip(rows, positions, strict=True)]
            if writer.turn_ended_us > max(ticked_us, writer.ended_us):
                ticked_us = writer.turn_ended_us
                append_tick(journal, ticked_us)
    return appended


if __name__ == "__main__":
    print(json.dumps(write(Work(Path(sys.argv[1]), float(sys.argv[2])))))
