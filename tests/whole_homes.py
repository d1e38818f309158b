"""Whole homes, driven from their files to their digest by what the commands call; and processes of it that can be killed.

A process of one's own costs seconds to start: imports, and compiled rules read from disk. So one process has both, the fork
server, and every process started here is a fork of it: as real, as killable, and there at once.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from connectors.home import Home
from connectors.locks import is_held
from connectors.log.digest import digest_events
from connectors.log.rows import lag_of
from connectors.log.sqlite import open_log
from hisob.homes import make_home
from streams.cluster import free_addresses, wait_for_peers
from streams.ingest import ingest_files
from streams.settle import prepare_recovery, run_settle, run_worker

ROOT = Path(__file__).resolve().parent.parent
CASES = sorted(path for path in (ROOT / "tests" / "cases").iterdir() if path.is_dir())
KINDS = ("tariff", "account", "meter_exchange", "payment", "adjustment", "reading")
PARTITIONS = 2  # of accounts, and the unrouted: ticks go to each, and are most of the work
TIMEOUT_S = 120.0


def case(name: str) -> Path:
    return ROOT / "tests" / "cases" / name


def files_of(folder: Path) -> list[tuple[str, Path]]:
    """The files of a case, as one call of ingest is given them."""
    return [(kind, folder / f"{kind}.csv") for kind in KINDS if (folder / f"{kind}.csv").exists()]


def new_home(path: Path) -> Home:
    return make_home(path, PARTITIONS)


def copied(home: Home, path: Path) -> Home:
    shutil.copytree(home.path, path)
    return Home(path)


def ingest(home: Home, folder: Path, batch_rows: int = 1 << 16, turn: int = 1 << 16) -> None:
    """Journal a case. turn: about how many records are one transaction."""
    with patch("streams.ingest.LEAST_CHUNK", turn), patch("streams.ingest.MOST_CHUNK", turn):
        ingest_files(home, files_of(folder), batch_rows=batch_rows)


def settle(home: Home, *, processes: int = 1, snapshot_every_s: float = 60.0) -> None:
    assert run_settle(home, drain=True, processes=processes, snapshot_every_s=snapshot_every_s)


def digest_of(home: Home) -> dict[str, str]:
    with closing(open_log(home.events, readonly=True)) as events:
        return digest_events(events)


def settled_records(home: Home) -> int:
    with closing(open_log(home.events, readonly=True)) as events:
        return sum(events.committed("settle").values())


def is_settled(home: Home) -> bool:
    with (
        closing(open_log(home.journal, readonly=True)) as journal,
        closing(open_log(home.events, readonly=True)) as events,
    ):
        return lag_of(journal, events.committed("settle")) == 0


def is_free(home: Home) -> bool:
    """Whether nobody settles it."""
    return not is_held(home.run / "settle.lock")


def wait_until(what: Callable[[], Any], timeout_s: float = TIMEOUT_S, every_s: float = 0.01) -> Any:
    """What it says once it says something true. every_s: seldom, where the machine is busy with what is looked at."""
    until = time.monotonic() + timeout_s
    while not (answer := what()):
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(every_s)
    return answer


# ---- processes -------------------------------------------------------------------------------------------------------
@cache
def forks() -> multiprocessing.context.ForkServerContext:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.whole_homes", "tests.compiled_rules"])
    return context


def start(work: Callable[..., Any], *arguments: Any, **named: Any) -> BaseProcess:
    """A process that does this work."""
    process = forks().Process(target=work, args=arguments, kwargs=named, daemon=True)
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    """Wait for a process that is to end well."""
    process.join(TIMEOUT_S)
    assert process.exitcode == 0


def seconds_of(work: Callable[..., Any], *arguments: Any, **named: Any) -> float:
    """How long a process of this work takes."""
    began = time.monotonic()
    finish(start(work, *arguments, **named))
    return time.monotonic() - began


def kill_at_random(
    random: Random, most: int, longest_s: float, work: Callable[..., Any], *args: Any, **named: Any
) -> int:
    """Start the work and kill it within so many seconds, at most so often; then let it end. How often it was killed."""
    kills = 0
    for _ in range(most):
        process = start(work, *args, **named)
        process.join(random.uniform(0, longest_s))
        if process.exitcode is not None:
            assert process.exitcode == 0
            return kills
        process.kill()
        process.join()
        kills += 1
    finish(start(work, *args, **named))
    return kills


def settle_on_two(home: Home) -> None:
    """The two processes of a cluster, without what starts and watches them."""
    prepare_recovery(home)
    addresses = free_addresses(2)
    for process in [start(work_in_cluster, home, number, addresses) for number in range(2)]:
        finish(process)


def work_in_cluster(home: Home, number: int, addresses: Sequence[str]) -> None:
    wait_for_peers(addresses, number)
    run_worker(home, drain=True, snapshot_every_s=60, process_id=number, addresses=list(addresses))


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


# ---- the command -----------------------------------------------------------------------------------------------------
def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HISOB_", "PREFECT_", "RUST_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "200", **more}


def command(home: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "hisob", "--home", str(home), *arguments]


def hisob(home: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(home, *arguments),
        capture_output=True, text=True, env=environment(), cwd=cwd, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextmanager
def running(home: Path, *arguments: str, cwd: Path | None = None, **more: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it runs; killed at the end if it still does."""
    with subprocess.Popen(
        command(home, *arguments),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more), cwd=cwd,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


# ---- what a case must end in -----------------------------------------------------------------------------------------
def expected(folder: Path, what: str) -> list[tuple[str, ...]]:
    with (folder / f"expected_{what}.csv").open(newline="", encoding="utf-8") as file:
        return sorted(tuple(line) for line in list(csv.reader(file))[1:])
