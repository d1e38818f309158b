"""`hisob settle` as a process of its own that follows a journal."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from connectors.home import Home
from connectors.log.rows import lag_of
from connectors.log.sqlite import open_log


@contextmanager
def following(home: Home) -> Iterator[float]:
    """Start settle and wait until it has come to the journal's end: the seconds it took. It is stopped at the end."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "hisob", "--home", str(home.path), "settle"])
    try:
        with (
            closing(open_log(home.journal, readonly=True)) as journal,
            closing(open_log(home.events, readonly=True)) as events,
        ):
            while lag_of(journal, events.committed("settle")):
                if process.poll() is not None:
                    raise RuntimeError(f"settle ended with {process.returncode}")
                time.sleep(0.005)
        yield time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()
