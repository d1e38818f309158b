"""The checked rows of a file on disk, in order of arrival.

Good rows go to scratch as **runs**: Arrow streams, each in order of arrival. A file that is sorted is one run; of one
that is not, as many rows as fit in memory are sorted at a time, a run each. Runs are numbered in the order of the
file, so that merging them by (arrival, run) gives the file in order of arrival, rows of the same moment as they stood
in it: the same merge that takes several files together. Bad rows are a run of their own.

In a run strings are plain, but for readings: there `meter_id` is a number into the file's own list of meters, and
`status` one into its choices. Twenty million readings name a hundred thousand meters.

The rows of a tariff version (one tariff, effective_on and received_at) are brought together, in the order of their
blocks, and numbered (`block`, `blocks`). A version that is not whole is unreadable altogether.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from accounting.records import RECORDS
from connectors.files.check import Checker, arrivals, block_limits, hours_of, versions_of
from connectors.files.formats import Inspected, RawBatch, read_batches, read_whole
from connectors.names import Names

RUN_BYTES = 192 << 20  # sorted in memory at once
BATCH_ROWS = 1 << 16
EXAMPLES = 3  # kept of each reason

STATUSES = next(column.choices for column in RECORDS["reading"] if column.name == "status")


@dataclass(frozen=True)
class Example:
    """One bad row, to show."""

    file: str
    row: int
    column: str | None
    value: str | None
    reason: str


@dataclass
class StagedFile:
    """A file that has been read to its end. `runs` and `unreadable` are Arrow streams in scratch."""

    kind: str
    name: str
    fingerprint: str
    runs: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    taken: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)
    meter_ids: pa.StringArray | None = None

    @property
    def refused(self) -> int:
        """How many rows are unreadable."""
        return self.reasons.total()


def read_run(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a run, from disk as they are wanted."""
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
        yield from reader


def stage_file(
    file: Inspected,
    kind: str,
    scratch: Path,
    *,
    partitions: int,
    until: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> StagedFile:
    """Read, check and stage a file. Raises FileError where it cannot be taken as a whole; then it has left nothing.

    partitions: how many account partitions ids of commands and notices may name. until: rows that arrived later are
    unreadable.
    """
    staged = StagedFile(kind, file.name, file.fingerprint)
    checker = Checker(kind, file.name, partitions=partitions, until=until)
    meters = Names()
    with _Runs(kind, scratch / f"{file.fingerprint[:16]}-{kind}") as runs:
        for raw in [read_whole(file, kind)] if kind == "tariff" else _ahead(read_batches(file, kind)):
            checked = checker.check(raw)
            if checked.bad.num_rows:
                _note(staged, checked.bad)
                runs.write_unreadable(checked.bad)
            if checked.good.num_rows:
                runs.write(as_staged(kind, checked.good, meters))
            staged.taken += checked.good.num_rows
            on_rows(staged.taken + staged.refused)
        file.check_unchanged()
    staged.examples.sort(key=lambda example: example.row)
    staged.runs, staged.unreadable, staged.meter_ids = runs.paths, runs.unreadable_paths, meters.texts()
    return staged


def _ahead(batches: Iterator[RawBatch]) -> Iterator[RawBatch]:
    """The same batches, each read by another thread while the one before it is checked."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = reader.submit(next, batches, None)
            yield batch


def _note(staged: StagedFile, bad: pa.RecordBatch) -> None:
    seen = Counter(example.reason for example in staged.examples)
    staged.reasons.update(bad.column("reason").to_pylist())
    for reason in staged.reasons.keys() - {r for r, n in seen.items() if n >= EXAMPLES}:
        of_reason = bad.filter(pc.equal(bad.column("reason"), reason)).slice(0, EXAMPLES - seen[reason])
        names = ("file", "row", "column", "value", "reason")
        staged.examples += [Example(**{name: entry[name] for name in names}) for entry in of_reason.to_pylist()]


def as_staged(kind: str, batch: pa.RecordBatch, meters: Names) -> pa.RecordBatch:
    """Checked rows as they lie in a run. meters: where the meters of readings get their numbers."""
    if kind == "tariff":
        return _by_version(batch)
    if kind != "reading":
        return batch
    arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
    arrays["meter_id"] = pa.array(meters.numbers(arrays["meter_id"]))
    if "status" in arrays:
        arrays["status"] = pc.index_in(arrays["status"], pa.array(STATUSES)).cast(pa.int8())
    return pa.record_batch(arrays)


# ---- runs ------------------------------------------------------------------------------------------------------------
class _Runs:
    """Writes batches as runs. What does not go on from the last run is gathered until there is enough to sort."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.paths: list[Path] = []
        self.unreadable_paths: list[Path] = []
        self._kind, self._folder = kind, folder
        self._run: pa.ipc.RecordBatchStreamWriter | None = None
        self._unreadable: pa.ipc.RecordBatchStreamWriter | None = None
        self._last = np.iinfo(np.int64).min
        self._gathered: list[pa.RecordBatch] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._sort_gathered()
        for writer in (self._run, self._unreadable):
            if writer is not None:
                writer.close()

    def write_unreadable(self, batch: pa.RecordBatch) -> None:
        if self._unreadable is None:
            self.unreadable_paths.append(self._folder / "unreadable.arrow")
            self._unreadable = _stream(self.unreadable_paths[-1], batch.schema)
        self._unreadable.write_batch(batch)

    def write(self, batch: pa.RecordBatch) -> None:
        at = arrivals(self._kind, batch)
        if not self._gathered and at[0] >= self._last and bool(np.all(at[1:] >= at[:-1])):
            self._write_sorted(batch, at)
            return
        self._gathered.append(batch)
        if sum(part.nbytes for part in self._gathered) >= RUN_BYTES:
            self._sort_gathered()

    def _sort_gathered(self) -> None:
        """Sort what is gathered: a new run, whose rows of one moment keep the order of the file."""
        if not self._gathered:
            return
        together = pa.Table.from_batches(self._gathered).combine_chunks()
        self._gathered = []
        at = arrivals(self._kind, together.to_batches()[0])
        order = np.argsort(at, kind="stable")
        if self._run is not None:
            self._run.close()
            self._run = None
        for batch in together.take(pa.array(order)).combine_chunks().to_batches(BATCH_ROWS):
            self._write_sorted(batch, arrivals(self._kind, batch))

    def _write_sorted(self, batch: pa.RecordBatch, at: NDArray[np.int64]) -> None:
        if self._run is None:
            self.paths.append(self._folder / f"run-{len(self.paths)}.arrow")
            self._run = _stream(self.paths[-1], batch.schema)
        self._run.write_batch(batch)
        self._last = int(at[-1])


def _stream(path: Path, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter:
    return pa.ipc.new_stream(pa.OSFile(str(path), "wb"), schema)


# ---- tariff versions -------------------------------------------------------------------------------------------------
def _by_version(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows of tariffs, version by version, each one's blocks in order, hours by hours, and numbered."""
    limits, hours = block_limits(batch), hours_of(batch)
    versions = versions_of(batch, range(batch.num_rows))
    for rows in versions:
        rows.sort(key=lambda i: (hours[i] or "", limits[i] is None, limits[i] or 0))
    ordered = batch.take(pa.array([i for rows in versions for i in rows], pa.int64()))
    block = pa.array([block for rows in versions for block in range(len(rows))], pa.int64())
    blocks = pa.array([len(rows) for rows in versions for _ in rows], pa.int64())
    return ordered.append_column("block", block).append_column("blocks", blocks)
