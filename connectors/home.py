"""A home: the folder that holds one utility's logs, state, lake and published database, and where each lies in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Home:
    """Where everything of one utility lies. Makes nothing and opens nothing by itself."""

    path: Path

    @property
    def settings(self) -> Path:
        """The settings a person edits."""
        return self.path / "hisob.toml"

    @property
    def journal(self) -> Path:
        """The log of everything that can move money or the supply."""
        return self.path / "journal.db"

    @property
    def events(self) -> Path:
        """The log of what settle made of it."""
        return self.path / "events.db"

    @property
    def recovery(self) -> Path:
        """Snapshots of the settle dataflow."""
        return self.path / "recovery"

    @property
    def lake(self) -> Path:
        """Immutable Parquet by month: what grows."""
        return self.path / "lake"

    @property
    def warehouse(self) -> Path:
        """The DuckDB file that loads write."""
        return self.path / "warehouse.duckdb"

    @property
    def published(self) -> Path:
        """The DuckDB file that auditors read."""
        return self.path / "published" / "audit.duckdb"

    @property
    def scratch(self) -> Path:
        """Room for sorting and staging; may be emptied whenever nothing runs."""
        return self.path / "scratch"

    @property
    def run(self) -> Path:
        """Lock files and pids of what runs on the home."""
        return self.path / "run"

    @property
    def clock_lock(self) -> Path:
        """The lease of the clock: whoever holds it makes the ticks, and nobody else does."""
        return self.run / "clock.lock"

    @property
    def inbox(self) -> Path:
        """Files of records dropped here are journalled while the home is live, and moved to its `taken` or `refused`."""
        return self.path / "inbox"

    @property
    def reconciled(self) -> Path:
        """What each run of `hisob reconcile-payments` came to, a file each: the load takes them in."""
        return self.path / "reconciled"

    @property
    def devices(self) -> Path:
        """Where each meter and its switch is to be reached."""
        return self.path / "devices.csv"

    @property
    def processes(self) -> Path:
        """What `hisob run` says of its processes."""
        return self.run / "run.json"
