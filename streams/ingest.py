"""Files into the journal: validated, merged in order of arrival, routed, ticked.

What is promised ("Records of the journal", DESIGN.md):

- A file that cannot be taken as a whole stops the call before anything is journalled: the others would otherwise be
  journalled without it, and time, that is ticks, would pass that cannot be made to pass again. A bad row stops
  nothing: it is journalled as `unreadable`, before the call's records, since it has no time.
- Several files are one sequence, by (arrival, kind, file, row), with a tick to every partition as each quarter of an
  hour has passed, up to the last record's arrival. Whatever the sizes of batches, a partition's sequence is the same.
- The same file again (kind and content) is skipped. A call that was interrupted, by kill -9 too, is gone on with by
  the next one that names the file: how many of its records are journalled is committed with them.
- Memory is bounded: by the size of a chunk, not by that of the files.

This is no bytewax dataflow, though what comes after it is: its order is one total order over all sources, its state
(the directory) is the journal's own and is brought up to date under the journal's lock, which several ingests share,
and its progress is committed with the rows themselves. A dataflow with one worker, one step and its recovery switched
off would add nothing to a loop over generators but cost.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from accounting.records import FILE_KINDS, RECORDS
from connectors.directory import Directory
from connectors.files import Example, FileError, Inspected, StagedFile, arrivals, inspect_file, read_run, stage_file
from connectors.home import Home
from connectors.log import Log, Transaction
from connectors.log.sqlite import open_log
from streams.merge import Batches, Chunk, merge, regroup, skip
from streams.turns import QUARTER_US, Journalling, Turn

CONSUMER = "ingest"  # commits `next_tick`; a file's progress is committed by "ingest:KIND:FINGERPRINT"
BATCH_ROWS = 1 << 16
LEAST_CHUNK, MOST_CHUNK = 1 << 16, 1 << 20  # records in one turn at the journal
SAVE_AFTER = 1 << 20  # records of the journal that the saved directory may be behind
STDIN = Path("-")
OnProgress = Callable[[str, int, int | None], None]  # what is being done, how far, of how much


class IngestError(Exception):
    """The call cannot be done, or not go on; the message says why and what to do next."""


class WrongUseError(IngestError):
    """The call itself is wrong, or a file in it cannot be taken as a whole. Nothing was journalled."""


@dataclass
class IngestReport:
    """What a call did. `taken` counts records by kind, `unreadable` bad rows by reason; `waiting` is as it stands at
    the end.
    """

    taken: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # files that are in the journal already
    resumed: dict[str, int] = field(
        default_factory=dict
    )  # files an interrupted call had begun, and how many records it took
    ticks: int = 0
    last_tick: int | None = None  # µs
    routed_on: int = 0  # readings that had waited for a claim on their meter
    waiting: int = 0  # readings that still do


def ingest_files(
    home: Home,
    files: Sequence[tuple[str, Path]],
    *,
    batch_rows: int = BATCH_ROWS,
    on_progress: OnProgress = lambda *_: None,
    now_us: int | None = None,
    directory: Directory | None = None,
    makes_ticks: bool = True,
) -> IngestReport:
    """Journal files, each a (kind, path); the path `-` is standard input. Records that arrive after `now_us` are
    unreadable.

    makes_ticks: false where a clock makes them (`streams.clock`). Live, time passes by that clock alone: records that
    come in by a file arrive now, whatever moment they name, and the ticks that the clock has missed are not made up by
    them. Who calls often keeps a `directory`, of this home alone: it need not be read anew then. After an error it is
    of no use.

    Raises WrongUseError where nothing can be taken, IngestError or a LogError where it could not go on: what is
    journalled by then
    stays, and the same call again goes on after it.
    """
    if batch_rows < 1:
        raise WrongUseError(f"A row of the journal holds at least one record: batch_rows is {batch_rows}.")
    if unknown := sorted({kind for kind, _ in files} - set(FILE_KINDS)):
        raise WrongUseError(f"Unknown kind {', '.join(map(repr, unknown))}: the kinds are {', '.join(FILE_KINDS)}.")
    with closing(open_log(home.journal)) as log, _scratch(home) as scratch:
        saved = home.scratch / "directory.npz"
        directory = directory or Directory.load(saved, log)
        loaded = directory.heard
        call = _Call(log, directory, scratch, now_us if now_us is not None else time.time_ns() // 1000, on_progress)
        call.stage(files)
        call.journal(batch_rows, makes_ticks=makes_ticks)
        if directory.heard - loaded >= SAVE_AFTER:
            directory.save(saved, log)
        return call.report


@contextmanager
def _scratch(home: Home) -> Iterator[Path]:
    """A folder for this call alone. Those left by processes that were killed are taken away."""
    home.scratch.mkdir(exist_ok=True)
    for left in home.scratch.glob("ingest-*-*"):
        if not _is_alive(int(left.name.split("-")[1])):
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=f"ingest-{os.getpid()}-", dir=home.scratch) as folder:
        yield Path(folder)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@dataclass
class _File:
    """A file of the call and how much of it is journalled: `done` good records, `done_bad` unreadable ones."""

    staged: StagedFile
    until: int
    done: int
    done_bad: int

    @property
    def consumer(self) -> str:
        """Under what name its progress is committed."""
        return _consumer(self.staged.kind, self.staged.fingerprint)

    @property
    def progress(self) -> dict[str, int]:
        """What is committed."""
        is_complete = self.done == self.staged.taken and self.done_bad == self.staged.refused
        return {"until": self.until, "records": self.done, "unreadable": self.done_bad, "complete": int(is_complete)}


def _consumer(kind: str, fingerprint: str) -> str:
    return f"{CONSUMER}:{kind}:{fingerprint}"


class _Call:
    """One call of ingest: its files, what stands in the journal of them, and what is to be told."""

    def __init__(self, log: Log, directory: Directory, scratch: Path, now_us: int, on_progress: OnProgress) -> None:
        self.report = IngestReport()
        self._log, self._directory, self._scratch = log, directory, scratch
        self._now_us, self._on_progress = now_us, on_progress
        self._files: list[_File] = []

    # -- reading
    def stage(self, files: Sequence[tuple[str, Path]]) -> None:
        """Read all files to their ends, those that are not in the journal yet."""
        problems: list[str] = []
        seen: set[str] = set()
        for kind, path in files:
            try:
                inspected = inspect_file(self._seekable(path), path.name)
                consumer = _consumer(kind, inspected.fingerprint)
                before = self._log.committed(consumer)
                if before.get("complete") or consumer in seen:
                    self.report.skipped.append(path.name)
                    continue
                seen.add(consumer)
                self._stage_one(kind, inspected, before)
            except FileError as error:
                problems.append(str(error))
        if problems:
            raise WrongUseError("\n".join([*problems, "Nothing was journalled, of the other files neither."]))

    def _stage_one(self, kind: str, inspected: Inspected, before: Mapping[str, int]) -> None:
        name, until = inspected.name, before.get("until", self._now_us)
        staged = stage_file(
            inspected,
            kind,
            self._scratch,
            partitions=self._directory.partitions,
            until=until,
            on_rows=lambda rows: self._on_progress(f"reading {name}", rows, None),
        )
        file = _File(staged, until, before.get("records", 0), before.get("unreadable", 0))
        self._files.append(file)
        self.report.unreadable += staged.reasons
        self.report.examples += staged.examples
        if file.done + file.done_bad:
            self.report.resumed[name] = file.done + file.done_bad

    def _seekable(self, path: Path) -> Path:
        """The file itself; what can be read only once, such as standard input, as a file in scratch."""
        if path != STDIN and (path.is_file() or not path.is_fifo()):
            return path
        spool = self._scratch / f"spool-{path.name}"
        if spool.exists():
            raise FileError(path.name, "it can be read only once: give it for one kind")
        with spool.open("wb") as file, nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
        return spool

    # -- journalling
    def journal(self, batch_rows: int, *, makes_ticks: bool) -> None:
        """Merge what was read and append it, turn by turn."""
        self._directory.catch_up(self._log)
        sources = list(self._sources())
        total = sum(file.staged.taken + file.staged.refused - file.done - file.done_bad for file in self._files)
        size = min(max(self._directory.partitions * batch_rows * 7 // 8, LEAST_CHUNK), MOST_CHUNK)
        kinds = [source.kind for source in sources]
        journalling = Journalling(self._log, self._directory, kinds, batch_rows, makes_ticks=makes_ticks)
        done = 0
        for chunk, is_last in regroup(merge([source.batches for source in sources]), size):
            rest = chunk
            while len(rest):
                turn = self._take_turn(journalling, sources, rest, is_last=is_last)
                rest = rest.split(turn.taken)[1]
                done += turn.taken
                self._on_progress("journalling", done, total)
        if not total:
            for file in self._files:
                self._log.commit(file.consumer, file.progress)
        self._directory.catch_up(self._log)
        self.report.waiting = self._directory.waiting_count

    def _sources(self) -> Iterator[_Source]:
        """What is left of each file, in the order in which records of one moment are journalled: unreadable rows
        before all.
        """
        for file in self._files:
            for path in file.staged.unreadable:
                yield _Source(file, "unreadable", skip(_batches("unreadable", path), file.done_bad))
        ranks = list(RECORDS)
        for file in sorted(self._files, key=lambda file: ranks.index(file.staged.kind)):
            kind, runs = file.staged.kind, file.staged.runs
            number_of = self._directory.meters.numbers(file.staged.meter_ids) if kind == "reading" else None
            for path, journalled in zip(runs, _split_by_runs(kind, runs, file.done), strict=True):
                yield _Source(file, kind, skip(_batches(kind, path, number_of), journalled))

    def _take_turn(self, journalling: Journalling, sources: list[_Source], chunk: Chunk, *, is_last: bool) -> Turn:
        with self._log.writing() as transaction:
            self._directory.catch_up(self._log, transaction)
            next_tick = transaction.committed(CONSUMER).get("next_tick")
            if self._directory.last_tick is not None:
                next_tick = max(next_tick or 0, self._directory.last_tick + QUARTER_US)
            for file in self._files:
                self._check_alone(transaction, file)
            turn = journalling.take_turn(transaction, chunk, next_tick, is_last=is_last)
            for number, count in enumerate(np.bincount(chunk.source[: turn.taken], minlength=len(sources)).tolist()):
                sources[number].advance(count, self.report)
            for file in self._files:
                transaction.commit(file.consumer, file.progress)
            if turn.next_tick is not None:
                transaction.commit(CONSUMER, {"next_tick": turn.next_tick})
        self.report.ticks += turn.ticks
        self.report.last_tick = None if turn.next_tick is None else turn.next_tick - QUARTER_US
        self.report.routed_on += turn.routed_on
        return turn

    @staticmethod
    def _check_alone(transaction: Transaction, file: _File) -> None:
        stands = transaction.committed(file.consumer)
        if (stands.get("records", 0), stands.get("unreadable", 0)) != (file.done, file.done_bad):
            raise IngestError(
                f"{file.staged.name}: another process is journalling the same file. What it has done stands, nothing is"
                " doubled. Wait for it to end; the same call again then goes on with what is left."
            )


@dataclass
class _Source:
    """One run of a file, from where the journal has come to."""

    file: _File
    kind: str
    batches: Batches

    def advance(self, count: int, report: IngestReport) -> None:
        """So many more of its records are journalled."""
        if self.kind == "unreadable":
            self.file.done_bad += count
        else:
            self.file.done += count
            report.taken[self.kind] += count


def _batches(kind: str, path: Path, number_of: NDArray[np.int32] | None = None) -> Batches:
    """The batches of a run with their arrivals. number_of: the directory's number of each of the file's meters."""
    for batch in read_run(path):
        moments = arrivals(kind, batch)
        if number_of is not None:
            at = batch.schema.get_field_index("meter_id")
            numbers = pa.array(number_of[batch.column(at).to_numpy()])
            yield moments, batch.set_column(at, "meter_id", numbers)
        else:
            yield moments, batch


def _split_by_runs(kind: str, runs: Sequence[Path], journalled: int) -> list[int]:
    """How many records of each run are among the first `journalled` ones of the file."""
    counts = np.zeros(len(runs), np.int64)
    for chunk in merge([_batches(kind, path) for path in runs]) if journalled else ():
        counts += np.bincount(chunk.source[:journalled], minlength=len(runs))
        journalled -= min(journalled, len(chunk))
        if not journalled:
            break
    return counts.tolist()
