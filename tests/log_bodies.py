"""Bodies and rows for tests of the log."""

import numpy as np
import pyarrow as pa

from accounting.records import RECORD_SCHEMAS
from connectors.log import NewRow
from connectors.log.body import KIND_NUMBER, encode, pack, runs_of


def ticks(first: int, count: int = 1) -> bytes:
    """A body of `count` records that are told apart by `first`."""
    at = pa.array(range(first, first + count), pa.timestamp("us", tz="UTC"))
    batch = pa.record_batch([at], schema=RECORD_SCHEMAS["tick"])
    return encode(runs_of(np.full(count, KIND_NUMBER["tick"], np.uint8)), {"tick": pack("tick", batch)})


def readings(meters: list[str]) -> bytes:
    """A body of readings of these meters."""
    columns = {"meter_id": pa.array(meters), "register_wh": pa.array(range(len(meters)))}
    runs = runs_of(np.full(len(meters), KIND_NUMBER["reading"], np.uint8))
    return encode(runs, {"reading": pack("reading", pa.record_batch(columns))})


def payments(channels: list[str], names: list[str]) -> bytes:
    """A body of payments through these channels, whose codes are numbered in the order of `names`."""
    channel = pa.DictionaryArray.from_arrays(pa.array(map(names.index, channels), pa.int32()), pa.array(names))
    runs = runs_of(np.full(len(channels), KIND_NUMBER["payment"], np.uint8))
    return encode(runs, {"payment": pack("payment", pa.record_batch({"channel": channel}))})


def row(partition: int, sequence: int, count: int = 1) -> NewRow:
    return NewRow(partition, sequence, count, ticks(1000 * sequence, count))
