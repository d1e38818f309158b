"""The runs of `hisob reconcile-payments`, kept: a file each in the home's `reconciled/`, taken into the warehouse by the load.

No log has what a channel's list said, so these files are the source; the two tables are made of them, and made again where
a warehouse is made anew. A file is written whole and never changed, and a run that the warehouse has is not taken again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import duckdb

from connectors.small_files import write_whole
from warehouse.errors import WarehouseError, first_line
from warehouse.tables import create_table, literal, quoted

if TYPE_CHECKING:
    from pathlib import Path

    from connectors.home import Home
    from warehouse.payments import PaymentReconciliation

RUNS_DOC = "What each run of `hisob reconcile-payments` came to: a row a channel. A reversal counts as less money."
RUNS = (
    ("run", "VARCHAR", "The run: when it was made, and the beginning of the list's fingerprint."),
    ("reconciled_at", "TIMESTAMPTZ", "When it was made, by the machine's clock (UTC)."),
    ("file", "VARCHAR", "Base name of the channel's list."),
    ("fingerprint", "VARCHAR", "SHA-256 of its content."),
    ("ticked_at", "TIMESTAMPTZ", "The last tick of the published database it was compared with (UTC)."),
    ("first_day", "DATE", "First day compared, of Asia/Tashkent."),
    ("last_day", "DATE", "Last day compared, of Asia/Tashkent."),
    ("rows", "BIGINT", "Payments in the list, of all channels and days."),
    ("other_days", "BIGINT", "Those of them of other days, not compared."),
    ("channel", "VARCHAR", "The channel."),
    ("theirs", "BIGINT", "Payments of the list: matched, differing and missing here."),
    ("theirs_tiyin", "HUGEINT", "Their total (tiyin)."),
    ("ours", "BIGINT", "Payments in the ledger: matched, differing and missing there."),
    ("ours_tiyin", "HUGEINT", "Their total (tiyin)."),
    ("matched", "BIGINT", "Alike in every column."),
    ("matched_tiyin", "HUGEINT", "Their total (tiyin)."),
    ("differing", "BIGINT", "On both sides, and some column differs."),
    ("differing_theirs_tiyin", "HUGEINT", "Their total by the list (tiyin)."),
    ("differing_ours_tiyin", "HUGEINT", "Their total by the ledger (tiyin)."),
    ("missing_here", "BIGINT", "In the list and not in the ledger."),
    ("missing_here_tiyin", "HUGEINT", "Their total (tiyin)."),
    ("refused", "BIGINT", "Those missing here because they were refused."),
    ("held", "BIGINT", "Those missing here because they are held."),
    ("missing_there", "BIGINT", "In the ledger and not in the list."),
    ("missing_there_tiyin", "HUGEINT", "Their total (tiyin)."),
    ("reversed", "BIGINT", "Those of the matched and differing that were reversed here."),
    ("reversed_tiyin", "HUGEINT", "Their total by the ledger (tiyin)."),
    ("repeated", "BIGINT", "Rows of the list that repeat another in every column, counted nowhere else."),
    ("repeated_tiyin", "HUGEINT", "Their total (tiyin)."),
)
DIFFERENCES_DOC = (
    "What was not matched in each run of `hisob reconcile-payments`, a row a payment, and what was reversed here."
)
DIFFERENCES = (
    ("run", "VARCHAR", "The run."),
    ("channel", "VARCHAR", "The channel, as the list has it."),
    (
        "outcome",
        "VARCHAR",
        "One of differing, missing_here, missing_there, reversed (matched, taken back here), repeated.",
    ),
    ("row", "BIGINT", "Row of the list."),
    ("payment_id", "VARCHAR", "The payment's id."),
    ("account_id", "VARCHAR", "The customer's account, as the list has it where it does."),
    ("paid_at", "TIMESTAMPTZ", "When it was paid, as the list has it where it does (UTC)."),
    ("amount_tiyin", "BIGINT", "Amount paid or taken back, as the list has it where it does (tiyin)."),
    ("reverses", "VARCHAR", "The payment it takes back."),
    ("reason", "VARCHAR", "Why it is missing here: never_arrived, or the reason it was refused or is held for."),
    ("record", "VARCHAR", "Where ours lies in the journal, partition-ordinal."),
    (
        "columns",
        'STRUCT("column" VARCHAR, theirs VARCHAR, ours VARCHAR)[]',
        "The columns that differ, with both values.",
    ),
    ("rows", "BIGINT[]", "All rows of the list that have a repeated id."),
)
TABLES = {"payment_reconciliations": (RUNS_DOC, RUNS), "payment_differences": (DIFFERENCES_DOC, DIFFERENCES)}


OF_RUN = 9  # the columns of a run, before those of its channels


def keep(home: Home, result: PaymentReconciliation) -> Path:
    """Put a run where the next load finds it: whole, or not at all."""
    home.reconciled.mkdir(exist_ok=True)
    path = home.reconciled / f"{result.run}.json"
    write_whole(path, json.dumps(asdict(result), ensure_ascii=False))
    return path


def make_run_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Make the tables of the runs in a warehouse that has none yet."""
    found = con.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'").fetchall()
    for name, (doc, columns) in TABLES.items():
        if (name,) not in found:
            create_table(con, f"main.{name}", doc, columns)


def new_runs(con: duckdb.DuckDBPyConnection, home: Home) -> list[Path]:
    """The kept runs that the warehouse does not have, the oldest first."""
    taken = {run for (run,) in con.execute("SELECT DISTINCT run FROM main.payment_reconciliations").fetchall()}
    return sorted(path for path in home.reconciled.glob("*.json") if path.stem not in taken)


def take_run(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Enter a kept run, within the load's transaction."""
    lists = {
        "payment_reconciliations": ("channels", RUNS[:OF_RUN], RUNS[OF_RUN:]),
        "payment_differences": ("differences", DIFFERENCES[:1], DIFFERENCES[1:]),
    }
    taken = 0
    for table, (part, of_run, of_row) in lists.items():
        row = f"STRUCT({', '.join(f'{quoted(name)} {kind}' for name, kind, _ in of_row)})[]"
        columns = {name: kind for name, kind, _ in of_run} | {part: row}
        shape = ", ".join(f"{quoted(name)}: {literal(kind)}" for name, kind in columns.items())
        names = ", ".join(quoted(name) for name, _, _ in of_run)
        try:
            (count,) = con.execute(
                f"""
                INSERT INTO main.{table} BY NAME SELECT {names}, unnest({part}, max_depth := 2)
                FROM read_json({literal(str(path))}, columns = {{{shape}}}, maximum_object_size = {path.stat().st_size + 1})
                """
            ).fetchone() or (0,)
        except (duckdb.ConversionException, duckdb.InvalidInputException) as error:
            raise broken(path, first_line(error)) from error
        taken += count
    if not taken:
        raise broken(path, "it has no channels")


def broken(path: Path, why: str) -> WarehouseError:
    """What is said of a file that no run left so."""
    return WarehouseError(f"{path} is no run of reconcile-payments ({why}). Move it away and load again.")
