"""Publish: put a checked copy of the warehouse where auditors read it, in one step.

DuckDB lets nobody read a file that is open for writing, so people read a copy. The candidate is made beside the published
file, checked there (`warehouse.expectations`), and then takes its name: whoever has the old one open goes on reading it,
whoever opens it next reads the new one, and nobody ever sees half of one.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import duckdb

from connectors.small_files import sync
from warehouse.load import definitions_of, latest_load, published_manifest, warehouse_id

if TYPE_CHECKING:
    from pathlib import Path

    from connectors.home import Home


def candidate_path(home: Home) -> Path:
    """Where the copy to be published stands until it is checked."""
    return home.published.with_name("candidate.duckdb")


def make_candidate(home: Home) -> Path:
    """Copy the warehouse beside the published database. The caller is `holding` the home, so nobody writes to it."""
    candidate = candidate_path(home)
    candidate.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(home.warehouse, candidate)
    return candidate


def publish(home: Home) -> None:
    """Have the disk keep the candidate, then give it the published name."""
    candidate = candidate_path(home)
    sync(candidate)
    candidate.replace(home.published)
    sync(home.published.parent)


def published_load(home: Home) -> int:
    """The load of the published database; 0 if this warehouse has not published any."""
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        return published_manifest(home, warehouse_id(con)).load


def is_published(home: Home) -> bool:
    """Whether the published database is of the warehouse's latest load and views, and finds the lake where it lies."""
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        latest, name, views = latest_load(con), warehouse_id(con), definitions_of(con)
    published = published_manifest(home, name)
    stands = (published.load, published.lake, published.definitions)
    return stands == (latest, str(home.lake.absolute()), views)
