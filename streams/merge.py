"""Several sources in order of arrival, merged into one, in bounded memory.

A source gives batches, each in order of arrival and none before the one it gave last. What is merged is in order of
(arrival, number of the source, place in the source): so the sources are numbered by the order in which kinds of one
moment are journalled, then by the order of the files. A step may go as far as the **horizon**: the least of the last
keys of what each source has shown. Beyond it a source could still show something earlier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Batches = Iterator[tuple[NDArray[np.int64], pa.RecordBatch]]  # arrivals, records


@dataclass(frozen=True)
class Chunk:
    """Records in merged order. `source[i]` is where the i-th came from; parts[s] are the records of source s in their
    order.
    """

    arrival: NDArray[np.int64]
    source: NDArray[np.int32]
    parts: dict[int, list[pa.RecordBatch]]

    def __len__(self) -> int:
        return len(self.arrival)

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """The first `count` records, and the others."""
        cuts = np.bincount(self.source[:count], minlength=max(self.parts, default=0) + 1)
        first, rest = {}, {}
        for source, batches in self.parts.items():
            first[source], rest[source] = _split_batches(batches, int(cuts[source]))
        return (
            Chunk(self.arrival[:count], self.source[:count], first),
            Chunk(self.arrival[count:], self.source[count:], rest),
        )


def _split_batches(batches: list[pa.RecordBatch], count: int) -> tuple[list[pa.RecordBatch], list[pa.RecordBatch]]:
    first, rest = [], []
    for batch in batches:
        cut = min(count, batch.num_rows)
        count -= cut
        if cut:
            first.append(batch.slice(0, cut))
        if cut < batch.num_rows:
            rest.append(batch.slice(cut))
    return first, rest


def join(chunks: Sequence[Chunk]) -> Chunk:
    """Chunks that follow each other as one."""
    parts: dict[int, list[pa.RecordBatch]] = {}
    for chunk in chunks:
        for source, batches in chunk.parts.items():
            parts.setdefault(source, []).extend(batches)
    return Chunk(
        np.concatenate([chunk.arrival for chunk in chunks]), np.concatenate([chunk.source for chunk in chunks]), parts
    )


def merge(sources: Sequence[Batches]) -> Iterator[Chunk]:
    """All records of the sources in order, in chunks as they come."""
    waiting = dict(enumerate(sources))
    shown: dict[int, tuple[NDArray[np.int64], pa.RecordBatch]] = {}
    while True:
        for number in [number for number in waiting if number not in shown]:
            if (batch := next(waiting[number], None)) is None:
                del waiting[number]
            elif len(batch[0]):
                shown[number] = batch
        if not waiting:
            return
        if len(shown) == len(waiting):
            yield _step(shown)


def _step(shown: dict[int, tuple[NDArray[np.int64], pa.RecordBatch]]) -> Chunk:
    """Take what is within the horizon; the rest stays shown."""
    edge, at_edge = min((int(arrival[-1]), number) for number, (arrival, _) in shown.items())
    arrivals, numbers, parts = [], [], {}
    for number in sorted(shown):
        arrival, batch = shown.pop(number)
        cut = int(np.searchsorted(arrival, edge, side="right" if number <= at_edge else "left"))
        if cut < len(arrival):
            shown[number] = (arrival[cut:], batch.slice(cut))
        if cut:
            arrivals.append(arrival[:cut])
            numbers.append(np.full(cut, number, np.int32))
            parts[number] = [batch.slice(0, cut)]
    arrival, source = np.concatenate(arrivals), np.concatenate(numbers)
    if len(parts) > 1:
        order = np.argsort(arrival, kind="stable")
        arrival, source = arrival[order], source[order]
    return Chunk(arrival, source, parts)


def regroup(chunks: Iterator[Chunk], size: int) -> Iterator[tuple[Chunk, bool]]:
    """The same records in chunks of `size`, and whether each one is the last."""
    gathered: list[Chunk] = []
    count = 0
    for chunk in chunks:
        rest = chunk
        while count + len(rest) > size:
            first, rest = rest.split(size - count)
            yield join([*gathered, first]), False
            gathered, count = [], 0
        gathered.append(rest)
        count += len(rest)
    if count:
        yield join(gathered), True


def skip(batches: Batches, count: int) -> Batches:
    """Leave out the first `count` records of a source."""
    for arrival, batch in batches:
        if count < len(arrival):
            yield arrival[count:], batch.slice(count)
        count = max(count - len(arrival), 0)
