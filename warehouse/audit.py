"""Reading the published database: opened read-only, from any process, while loads and publishing go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb

from warehouse.errors import WarehouseError, first_line
from warehouse.load import MEMORY_LIMIT, lake_of
from warehouse.tables import literal

if TYPE_CHECKING:
    from connectors.home import Home


class NotPublishedError(WarehouseError):
    """There is no published database to read, or none that finds its lake."""


class QueryError(WarehouseError):
    """The SQL is wrong: the caller's to mend."""


def open_published(home: Home) -> duckdb.DuckDBPyConnection:
    """The published database, for reading. Its times are shown in UTC; `tashkent(t)` gives the local ones."""
    if not home.published.is_file():
        raise NotPublishedError(
            f"Nothing is published on {home.path} yet. Load what there is: hisob --home {home.path} load"
        )
    try:
        con = duckdb.connect(str(home.published), read_only=True)
        con.execute("SET TimeZone = 'UTC'")
        lake = lake_of(con)
    except duckdb.Error as error:
        raise WarehouseError(
            f"{home.published} cannot be read: {first_line(error)} Publish it anew: hisob load"
        ) from error
    if lake != str(home.lake.absolute()):
        con.close()
        raise NotPublishedError(
            f"The home was moved since {home.published} was published: `hisob load` publishes it anew."
        )
    return con


def open_for_audit(home: Home) -> duckdb.DuckDBPyConnection:
    """The published database, for the auditor: what it works out lies in temporary tables, which spill into scratch/."""
    con = open_published(home)
    home.scratch.mkdir(parents=True, exist_ok=True)
    con.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
    con.execute(f"SET temp_directory = {literal(str(home.scratch / 'reconcile'))}")
    con.execute("SET preserve_insertion_order = false")
    return con


def run_query(con: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyConnection:
    """Run somebody's SQL. Raises QueryError with what DuckDB says of it."""
    try:
        return con.execute(sql)
    except duckdb.Error as error:
        raise QueryError(str(error).rstrip()) from error


def reconcile_balances(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The accounts whose balance and entries do not agree, recomputed over the whole ledger; none is right."""
    found = con.execute("FROM main.reconciliation ORDER BY account_id")
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
