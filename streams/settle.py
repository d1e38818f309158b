"""Settle as a bytewax dataflow: the journal in, events out, the state of each partition recovered after a crash.

    journal ──> settle (a state for each partition) ──> events

What is guaranteed: every journal row's events are in the event log exactly once, whatever was killed when. The dataflow's
snapshots say from where to go on; what was settled since the last one is settled again, and the log takes no row twice (and
stops everything if a row should come out differently). Bodies cross between workers as bytes, decoded in the stateful step.

What goes wrong in a step ends the dataflow without a snapshot of it, and is raised by `run_settle` as it was. Should bytewax
have snapshotted what the failed step left undone, the snapshots are given up and the journal is settled from its beginning.

A second settle on a home is refused. With several processes bytewax makes a cluster of them (`streams.cluster`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import sqlite3
import sys
import threading
import traceback
import zlib
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream
from bytewax.inputs import AbortExecution, FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from accounting.partition import Partition
from accounting.settle import settle_body
from accounting.snapshot import VERSION, restore, snapshot
from accounting.state import ACCOUNT
from connectors.home import Home
from connectors.locks import hold
from connectors.log import LogError, Row
from connectors.log.body import KIND_NAMES, Body
from connectors.log.sqlite import open_log
from streams import cluster
from streams.lean import start_lean
from streams.pipeline import PRODUCER, Pipeline, SettleError
from streams.stopping import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


RECOVERY_PARTITIONS = 4
READ_ROWS, READ_BYTES = 256, 1 << 22
IDLE = timedelta(milliseconds=50)


class BytewaxError(SettleError):
    """The engine failed, not a step: one of its processes is gone, or its recovery store is damaged."""


class _Run:
    """What the steps of this process have in common: the wish to end, and what went wrong.

    An exception that reaches bytewax is a panic there, told by pages of Rust. So a step keeps it here, and the sources end the
    dataflow at their next turn, without a snapshot.
    """

    def __init__(self, recovery: Path | None = None, *, in_cluster: bool = False) -> None:
        self.stop = threading.Event()
        self.failure: Exception | None = None
        self._recovery = recovery
        self._in_cluster = in_cluster

    @contextlib.contextmanager
    def guarded(self) -> Iterator[bool]:
        """Keep what goes wrong inside; whether all has gone well until now, for nothing more is done once it has not."""
        try:
            yield self.failure is None
        except Exception as error:  # noqa: BLE001  whatever it is, it is raised again by run_worker
            self.failure = self.failure or error
            if self._in_cluster:  # other workers may have the sources; they are killed when this one is gone
                _tell(error)
                os._exit(cluster.GIVE_UP)

    def note_snapshot(self) -> None:
        """A snapshot is made. If a step has failed, it holds what was not done: none of these may ever be gone on from."""
        if self.failure and self._recovery:
            _state_version(self._recovery).unlink(missing_ok=True)


_run = _Run()


# the three steps


class JournalSource(FixedPartitionedSource[Row, int]):
    """The journal's partitions. With `drain` each ends when it is used up; else new rows are followed."""

    def __init__(self, home: Home, *, drain: bool) -> None:
        """Read the home's journal."""
        self.home, self.drain = home, drain
        self.log: Any = None

    def list_parts(self) -> list[str]:
        """One for each partition of the log."""
        return [f"{n:03}" for n in range(self._open().partitions)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _JournalPart:  # noqa: ARG002  bytewax's signature
        """Read a partition from where its snapshot says, or from its beginning."""
        with _run.guarded():
            self._check_snapshot(int(for_part), resume_state or 0)
        return _JournalPart(self._open(), int(for_part), resume_state or 0, drain=self.drain)

    def _check_snapshot(self, partition: int, position: int) -> None:
        """Raise SettleError if a snapshot has events behind it that the log has not: they would never be written."""
        with closing(open_log(self.home.events, readonly=True)) as events:
            settled = events.committed(PRODUCER).get(str(partition), 0)
        if position > settled:
            _state_version(self.home.recovery).unlink(missing_ok=True)
            raise SettleError(
                f"{self.home.events}, partition {partition}, has the events up to journal position {settled}, but snapshots"
                f" stand at {position}: it is an older copy, it seems. Settle once more: then the journal is settled from its"
                " beginning, and what is missing is written."
            )

    def _open(self) -> Any:
        if self.log is None:
            self.log = open_log(self.home.journal, readonly=True)
        return self.log

    def close(self) -> None:
        """Let go of the log, which all parts share."""
        self._open().close()


class _JournalPart(StatefulSourcePartition[Any, int]):
    def __init__(self, log: Any, partition: int, position: int, *, drain: bool) -> None:
        self.log, self.partition, self.position, self.drain = log, partition, position, drain
        self.idle = False

    def next_batch(self) -> list[tuple[str, Row]]:
        rows: list[Row] = []
        with _run.guarded():
            rows = self.log.read(self.partition, self.position, max_rows=READ_ROWS, max_bytes=READ_BYTES)
        if _run.failure:
            raise AbortExecution
        self.idle = not rows
        if _run.stop.is_set() or (self.idle and self.drain):
            raise StopIteration
        if rows:
            self.position = rows[-1].end
        return [(f"{self.partition:03}", row) for row in rows]

    def next_awake(self) -> datetime | None:
        return datetime.now(UTC) + IDLE if self.idle else None

    def snapshot(self) -> int:
        return self.position


class SettleLogic(StatefulBatchLogic[Row, int, bytes]):
    """The state of one partition, and the rules applied to each row of its journal in turn."""

    def __init__(self, state: bytes | None, partitions: int, pipeline: Pipeline) -> None:
        """Go on from a snapshot, or from nothing."""
        self.partitions = partitions
        self.pipeline = pipeline
        self.partition: Partition | None = None
        self.position = 0
        if state:
            self.position = int.from_bytes(state[:8], "little")
            self.partition = restore(state[8:])

    def on_batch(self, values: list[Row]) -> tuple[list[int], bool]:
        """Settle rows in order; how many there were."""
        with _run.guarded() as well:
            if well:
                for row, body in zip(values, self.pipeline.decoded(values), strict=True):
                    self.settle(row, body)
        return [len(values)], StatefulBatchLogic.RETAIN

    def settle(self, row: Row, body: Body) -> None:
        """Settle one row. Its events are made and encoded while the next one is settled."""
        if self.partition is None:
            self.partition = Partition(row.partition, unrouted=row.partition == self.partitions - 1)
        if row.position != self.position:
            msg = f"partition {row.partition}: the state stands at {self.position}, the journal's next row at {row.position}"
            raise SettleError(msg)
        runs = [(KIND_NAMES[k], c) for k, c in zip(body.runs_kind.tolist(), body.runs_count.tolist(), strict=True)]
        settled = settle_body(self.partition, row.position, runs, body.batches)
        self.position = row.end
        self.pipeline.encode(row, settled.events, dict(self.partition.ignored))

    def snapshot(self) -> bytes:
        """The state, and the position it stands at, once its events are durable; nothing if the first row failed."""
        self.pipeline.wait()
        _run.note_snapshot()
        if self.partition is None:
            return b""
        return self.position.to_bytes(8, "little") + snapshot(self.partition)


class EventSink(DynamicSink[tuple[str, int]]):
    """Has the events appended to the home's event log, with the positions settled."""

    def __init__(self, pipeline: Pipeline) -> None:
        """pipeline: that which encodes them."""
        self.pipeline = pipeline

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _EventPart:  # noqa: ARG002  bytewax's signature
        """Each worker writes what it settled."""
        return _EventPart(self.pipeline)


class _EventPart(StatelessSinkPartition[tuple[str, int]]):
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def write_batch(self, items: Sequence[tuple[str, int]]) -> None:  # noqa: ARG002  bytewax's signature
        self.pipeline.append()


def settle_flow(source: JournalSource, pipeline: Pipeline) -> Dataflow:
    """The dataflow: journal → settle → events."""
    partitions = len(source.list_parts())
    flow = Dataflow("settle")
    journal: Stream[Any] = op.input("journal", flow, source)
    settled = op.stateful_batch("settle", journal, lambda state: SettleLogic(state, partitions, pipeline))
    op.output("events", settled, EventSink(pipeline))
    return flow


# running it


def run_settle(home: Home, *, drain: bool, processes: int = 1, snapshot_every_s: float = 60.0) -> bool:
    """Settle the journal: until it is used up (`drain`, True then), or until SIGTERM or SIGINT (False). Raises
    SettleError, and AlreadyRunningError where another one holds the home.
    """
    with hold(home.run / "settle.lock", "settle") as lock:
        check_logs(home)
        prepare_recovery(home)
        if processes == 1:
            return run_worker(home, drain=drain, snapshot_every_s=snapshot_every_s)
        spec = {"home": str(home.path), "drain": drain, "snapshot_every_s": snapshot_every_s}
        try:
            return cluster.run_cluster("streams.settle", spec, processes, keep_open=(lock,))
        except cluster.ClusterError as error:
            raise SettleError(f"settle: {error}") from error


def run_worker(
    home: Home,
    *,
    drain: bool,
    snapshot_every_s: float,
    process_id: int | None = None,
    addresses: list[str] | None = None,
) -> bool:
    """One process of the dataflow, in this process. SIGTERM and SIGINT end it cleanly, with a last snapshot; False then."""
    global _run  # noqa: PLW0603  bytewax makes the steps, and lets nothing be handed to them
    _run = _Run(home.recovery, in_cluster=process_id is not None)
    with (
        closing(JournalSource(home, drain=drain)) as source,
        closing(Pipeline(home, _run.guarded)) as pipeline,
        stop_on_signals(_run.stop),
        _suited(),
    ):
        flow = settle_flow(source, pipeline)
        with _panics_explained(home):
            cli_main(  # type: ignore[no-untyped-call]  # bytewax has types, but not here
                flow,
                process_id=process_id,
                addresses=addresses,
                epoch_interval=timedelta(seconds=snapshot_every_s),
                recovery_config=RecoveryConfig(home.recovery, backup_interval=timedelta(0)),  # type: ignore[no-untyped-call]
            )
    if _run.failure:
        raise _run.failure
    return not _run.stop.is_set()


@contextlib.contextmanager
def _suited() -> Iterator[None]:
    """Python as it suits the rules. Nothing here refers to itself in a circle, so there is little to go through a million
    names for. And when the rules ask for the interpreter back, which the encoder has then, they get it soon.
    """
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(100_000)
    sys.setswitchinterval(0.0002)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)


@contextlib.contextmanager
def _panics_explained(home: Home) -> Iterator[None]:
    """What goes wrong inside bytewax, as an error that says what to do: a panic is not even an Exception."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BytewaxError(
            f"bytewax, which runs the dataflow, ended with {type(error).__name__}: {error}. What is settled stays: try again."
            f" If it ends so again, delete {home.recovery}: the journal is then settled from its beginning, and nothing is"
            " written twice."
        ) from error


def check_logs(home: Home) -> None:
    """Raise SettleError if the events are of a longer journal: new records of an older copy would go unsettled in silence."""
    with (
        closing(open_log(home.journal, readonly=True)) as journal,
        closing(open_log(home.events, readonly=True)) as events,
    ):
        for partition, settled in events.committed(PRODUCER).items():
            if (end := journal.end(int(partition))) < settled:
                raise SettleError(
                    f"{home.journal}, partition {partition}, ends at {end}, but was settled up to {settled}: it is not the"
                    f" journal that {home.events.name} was made of. Put back the right one."
                )


def prepare_recovery(home: Home) -> None:
    """An initialised recovery store of this version. One of another version, or a damaged one, is taken away: the journal is
    settled again instead, and the event log takes nothing twice.
    """
    marker = _state_version(home.recovery)
    version = f"{VERSION} {zlib.crc32(str(ACCOUNT.descr).encode())}\n"
    if marker.exists() and marker.read_text() == version and _is_readable(home.recovery):
        return
    if home.recovery.exists():
        shutil.rmtree(home.recovery)
    home.recovery.mkdir(parents=True)
    with _panics_explained(home):
        init_db_dir(home.recovery, RECOVERY_PARTITIONS)  # type: ignore[no-untyped-call]
    marker.write_text(version)


def _is_readable(recovery: Path) -> bool:
    """Whether all parts of the store are there and are databases: bytewax would panic otherwise."""
    try:
        for number in range(RECOVERY_PARTITIONS):
            uri = (recovery / f"part-{number}.sqlite3").absolute().as_uri()
            with closing(sqlite3.connect(f"{uri}?mode=rw", uri=True)) as part:
                part.execute("SELECT part_index FROM parts")
    except sqlite3.Error:
        return False
    return True


def _state_version(recovery: Path) -> Path:
    """The file that says of what version the snapshots are. Without it there are none."""
    return recovery / "state-version"


def _tell(error: Exception) -> None:
    """Say what went wrong in a process of the cluster: nobody else sees its exceptions."""
    if os.environ.get("HISOB_DEBUG"):
        traceback.print_exception(error)
    elif isinstance(error, SettleError | LogError):
        sys.stderr.write(f"settle: {error}\n")
    else:
        sys.stderr.write(f"settle: an unforeseen fault, {type(error).__name__}: {error}. HISOB_DEBUG=1 shows where.\n")


def main() -> None:
    """One process of a cluster, as started by `run_settle`."""
    start_lean()
    spec = json.loads(sys.argv[1])
    cluster.end_with_parent(lambda: _run.stop.set())  # noqa: PLW0108  run_worker makes another _run
    cluster.wait_for_peers(spec["addresses"], spec["process_id"])
    try:
        run_worker(Home(Path(spec.pop("home"))), **spec)
    except Exception as error:  # noqa: BLE001  the outermost place of this process
        _tell(error)
        sys.exit(1 if isinstance(error, BytewaxError) else cluster.GIVE_UP)


if __name__ == "__main__":
    main()
