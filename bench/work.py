"""What the stages share: how large the work is, where its files lie, and how a stretch of time is measured."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from connectors.home import Home

HALF_HOUR_US = 30 * 60 * 1_000_000
DAY_US = 48 * HALF_HOUR_US
START_US = 1_748_631_600_000_000  # 2025-05-31 00:00 Asia/Tashkent: the work runs over the turn of a month
PARTITIONS = 16


@dataclass(frozen=True)
class Work:
    """The work of one run: 100,000 meters × 200 half-hours, and what some figures ask for beside it, all × scale."""

    folder: Path
    scale: float

    @property
    def meters(self) -> int:
        return max(1_000, round(100_000 * self.scale))

    @property
    def half_hours(self) -> int:
        return 200

    @property
    def readings(self) -> int:
        return self.meters * self.half_hours

    @property
    def csv_half_hours(self) -> int:
        return 40

    @property
    def million(self) -> int:
        """How many meters memory and resume are measured with."""
        return max(10_000, round(1_000_000 * self.scale))

    @property
    def year_meters(self) -> int:
        """How many meters have a whole year, for the statement."""
        return max(20, round(200 * self.scale))

    @property
    def live_seconds(self) -> float:
        return max(10.0, 30.0 * self.scale)

    def file(self, name: str) -> Path:
        """An input file."""
        return self.folder / "files" / name

    def home(self, name: str) -> Home:
        """A home of this name, whether it is there or not."""
        return Home(self.folder / "homes" / name)

    def copied_home(self, name: str, source: str) -> Home:
        """A fresh copy of a home, on the disk, so that a stage may be run again from where it began."""
        home = self.home(name)
        shutil.rmtree(home.path, ignore_errors=True)
        shutil.copytree(self.home(source).path, home.path)
        os.sync()
        return home


@dataclass
class Measured:
    """A stretch of time: by the clock, and the processor's, all threads of this process together."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0


@contextmanager
def measured() -> Iterator[Measured]:
    """Measure what happens inside."""
    took = Measured()
    used = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    yield took
    took.seconds = time.perf_counter() - began
    now = resource.getrusage(resource.RUSAGE_SELF)
    took.cpu_seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def peak_rss_mib() -> float:
    """The most memory this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
