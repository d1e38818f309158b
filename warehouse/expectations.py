"""What must be true of a candidate before auditors get to see it, held by Great Expectations inside DuckDB.

Each expectation is a query for the rows that break it: none may be found. One that is *critical* stops the publishing, a
*warning* is only said. The ledger as a whole is held against the balances each time; what reads every single row looks at
those that no earlier run has passed.

An expectation that could not be evaluated has not been met: what Great Expectations reports as an exception is raised here.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from accounting.records import BASES, ENTRY_KINDS
from warehouse.errors import WarehouseError, first_line
from warehouse.load import MEMORY_LIMIT, lake_of
from warehouse.tables import LAKE, VIEWS, literal, log_of, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS_SHOWN = 5
CRITICAL, WARNING = "critical", "warning"


@dataclass(frozen=True)
class Expectation:
    """A promise, by name, and the query for the rows that break it."""

    name: str
    meaning: str
    sql: str
    severity: str = CRITICAL


@dataclass(frozen=True)
class Finding:
    """What came of an expectation: how many rows broke it, and the first of them."""

    name: str
    meaning: str
    severity: str
    broken: int
    rows: list[dict[str, Any]]


class ExpectationError(WarehouseError):
    """A critical expectation is not met; the load stays, and nothing is published."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = [f for f in findings if f.severity == CRITICAL]
        lines = [
            f"{f.name}: {f.broken} broken ({f.meaning})\n    " + "\n    ".join(map(str, f.rows)) for f in self.findings
        ]
        super().__init__(
            "Nothing was published: the load stays in warehouse.duckdb, but does not meet what is expected of it.\n  "
            + "\n  ".join(lines)
            + "\nThe last published database is as it was. Find the cause in these rows, mend it, and load again."
        )


class ValidationError(WarehouseError):
    """The expectations could not be evaluated, so nothing is known and nothing is published."""


def validate(candidate: Path, scratch: Path, checked_load: int) -> list[Finding]:
    """Hold a candidate against all expectations; the warnings. Raises ExpectationError if a critical one is broken.

    checked_load: the load up to which everything has passed already.
    """
    with open_candidate(candidate, scratch) as con:
        findings = evaluate(con, expectations(con, checked_load))
    if any(f.severity == CRITICAL for f in findings):
        raise ExpectationError(findings)
    return findings


def open_candidate(candidate: Path, scratch: Path) -> duckdb.DuckDBPyConnection:
    """The candidate, open for reading."""
    config: dict[str, Any] = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(scratch / "duckdb")}
    return duckdb.connect(str(candidate), read_only=True, config=config)


def evaluate(con: duckdb.DuckDBPyConnection, wanted: Sequence[Expectation]) -> list[Finding]:
    """Run expectations in a database; a finding for each that is broken."""
    broken = count_broken(con, wanted)
    found = [e for e in wanted if broken[e.name]]
    return [Finding(e.name, e.meaning, e.severity, broken[e.name], first_rows(con, e)) for e in found]


def first_rows(con: duckdb.DuckDBPyConnection, expectation: Expectation) -> list[dict[str, Any]]:
    """A few of the rows that break an expectation."""
    try:
        found = con.execute(f"SELECT * FROM ({expectation.sql}) LIMIT {ROWS_SHOWN}")
        names = [column[0] for column in found.description or []]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    except duckdb.Error as error:
        raise not_evaluated(expectation.name, first_line(error)) from error


def not_evaluated(name: str, why: str) -> ValidationError:
    """What is said of an expectation that gave no answer."""
    return ValidationError(f"{name} could not be evaluated, so nothing was published: {why}")


def count_broken(con: duckdb.DuckDBPyConnection, wanted: Sequence[Expectation]) -> dict[str, int]:
    """How many rows break each expectation, as Great Expectations finds it, on cursors of this connection."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from duckdb_engine import ConnectionWrapper, CursorWrapper
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults
    from great_expectations.expectations.core.expect_table_row_count_to_equal import ExpectTableRowCountToEqual
    from great_expectations.expectations.metadata_types import FailureSeverity

    class Connection(ConnectionWrapper):
        """Each cursor is one of its own.

        Great Expectations rolls its connection back before it fetches, which empties the result where, as in duckdb-engine,
        cursor and connection are the same thing.
        """

        def cursor(self) -> CursorWrapper:
            return CursorWrapper(con.cursor(), self)

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    broken = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults())
        context = gx.get_context(mode="ephemeral", project_config=config)
        context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
        source = context.data_sources.add_sql(  # type: ignore[call-arg]  # its stub leaves kwargs out
            "candidate", connection_string="duckdb://", kwargs={"creator": lambda: Connection(con.cursor())}
        )
        for expectation in wanted:
            asset = source.add_query_asset(expectation.name, query=f"SELECT * FROM ({expectation.sql})")
            batch = asset.add_batch_definition_whole_table("broken").get_batch()
            severity = FailureSeverity(expectation.severity)
            none = ExpectTableRowCountToEqual(value=0, description=expectation.meaning, severity=severity)
            broken[expectation.name] = observed_count(expectation, batch.validate(none))
    return broken


def observed_count(expectation: Expectation, found: Any) -> int:
    """The number of rows found. Raises ValidationError for whatever is not a number honestly come by."""
    info = found.exception_info or {}
    raised = [info, *(part for part in info.values() if isinstance(part, dict))]
    messages = [part.get("exception_message") for part in raised if part.get("raised_exception")]
    count = found.result.get("observed_value")
    if messages or not isinstance(count, int) or found.success != (count == 0):
        raise not_evaluated(expectation.name, str(messages[0]) if messages else f"no count, but {found.result}")
    return count


# ---- what is expected ------------------------------------------------------------------------------------------------


def expectations(con: duckdb.DuckDBPyConnection, checked_load: int) -> list[Expectation]:
    """All expectations on a candidate of which everything up to `checked_load` has passed already."""
    return [*ON_MONEY, *ON_ENTRIES, *on_positions(con), *on_records(checked_load)]


def in_list(values: Sequence[str]) -> str:
    """Values as SQL's list after IN."""
    return "(" + ", ".join(map(literal, values)) + ")"


ON_MONEY = [
    Expectation(
        "balance_is_the_sum_of_its_entries",
        "over the whole ledger, an account's balance and usage are the sums of its entries'",
        """
        SELECT account_id, b.balance_tiyin, s.amounts_tiyin, b.usage_wh, s.entries_wh, b.entries, s.there_are
        FROM main.balances b FULL JOIN (
            SELECT account_id, sum(amount_tiyin) AS amounts_tiyin, sum(usage_wh) AS entries_wh, count(*) AS there_are
            FROM events.entry GROUP BY account_id
        ) s USING (account_id)
        WHERE b.balance_tiyin IS DISTINCT FROM coalesce(s.amounts_tiyin, 0)
            OR b.usage_wh IS DISTINCT FROM coalesce(s.entries_wh, 0) OR b.entries IS DISTINCT FROM coalesce(s.there_are, 0)
        """,
    ),
    Expectation(
        "balance_is_the_sum_of_its_parts",
        "opening, payments, reversals, adjustments and charges add up to the balance",
        """
        SELECT account_id, balance_tiyin, opening_tiyin, payment_tiyin, reversal_tiyin, adjustment_tiyin, charged_tiyin
        FROM main.balances
        WHERE balance_tiyin IS DISTINCT FROM
            opening_tiyin + payment_tiyin + reversal_tiyin + adjustment_tiyin + charged_tiyin
        """,
    ),
    Expectation(
        "account_has_one_balance",
        "every account there is has one row in balances, and its name",
        "SELECT account_id, count(*) AS rows FROM main.balances GROUP BY account_id HAVING count(*) > 1 OR account_id IS NULL",
    ),
    Expectation(
        "entry_follows_on_the_balance_before",
        "each entry's balance is the balance before it plus its amount",
        """
        SELECT event_id(partition, ordinal, n) AS entry_id, account_id, before_tiyin, amount_tiyin, balance_tiyin
        FROM (
            SELECT *, lag(balance_tiyin) OVER (PARTITION BY account_id ORDER BY ordinal, n) AS before_tiyin FROM load.new_entry
        )
        WHERE before_tiyin + amount_tiyin <> balance_tiyin
        """,
    ),
]

ON_ENTRIES = [
    Expectation(
        "entry_id_is_used_once",
        "no two entries have the same id",
        """
        SELECT event_id(partition, ordinal, n) AS entry_id, count(*) AS entries
        FROM load.new_entry GROUP BY partition, ordinal, n HAVING count(*) > 1
        """,
    ),
    Expectation(
        "entry_is_complete",
        "account, kind, time, usage, amount and balance are there",
        """
        SELECT event_id(partition, ordinal, n) AS entry_id, account_id, kind, to_at, usage_wh, amount_tiyin, balance_tiyin
        FROM load.new_entry
        WHERE account_id IS NULL OR kind IS NULL OR to_at IS NULL OR usage_wh IS NULL OR amount_tiyin IS NULL
            OR balance_tiyin IS NULL OR partition IS NULL OR ordinal IS NULL OR n IS NULL
        """,
    ),
    Expectation(
        "entry_kind_is_known",
        "kind and basis are among those that the contract names",
        f"""
        SELECT event_id(partition, ordinal, n) AS entry_id, account_id, kind, basis FROM load.new_entry
        WHERE kind NOT IN {in_list(ENTRY_KINDS)} OR basis NOT IN {in_list(BASES)}
        """,
    ),
    Expectation(
        "entry_has_the_sign_of_its_kind",
        "payments add, reversals and usage take away; only usage and corrections move usage",
        """
        SELECT event_id(partition, ordinal, n) AS entry_id, account_id, kind, usage_wh, amount_tiyin FROM load.new_entry
        WHERE CASE kind
            WHEN 'payment' THEN amount_tiyin <= 0 OR usage_wh <> 0
            WHEN 'reversal' THEN amount_tiyin >= 0 OR usage_wh <> 0
            WHEN 'usage' THEN amount_tiyin > 0 OR usage_wh < 0
            WHEN 'correction' THEN usage_wh > 0
            ELSE usage_wh <> 0 END
        """,
    ),
    Expectation(
        "usage_is_the_difference_of_its_registers",
        "usage runs from an earlier to a later moment, and is what the registers say unless they rolled over",
        """
        SELECT event_id(partition, ordinal, n) AS entry_id, account_id, from_at, to_at, from_wh, to_wh, usage_wh
        FROM load.new_entry
        WHERE kind = 'usage' AND (
            from_at IS NULL OR from_wh IS NULL OR to_wh IS NULL OR from_at >= to_at
            OR (to_wh >= from_wh AND usage_wh <> to_wh - from_wh)
        )
        """,
    ),
    Expectation(
        "entry_is_of_an_account_there_is",
        "no money moves on an account that no record names",
        """
        SELECT account_id, count(*) AS entries, min(event_id(partition, ordinal, n)) AS entry_id FROM load.new_entry
        WHERE account_id NOT IN (SELECT account_id FROM journal.account WHERE account_id IS NOT NULL) GROUP BY account_id
        """,
    ),
]


def on_positions(con: duckdb.DuckDBPyConnection) -> list[Expectation]:
    """Nothing of the logs is skipped or taken twice, and the files are what the manifest says."""
    kept = [
        f"SELECT '{log_of(kind)}' AS log, partition, count(*) AS rows FROM {log_of(kind)}.{quoted(kind)} GROUP BY partition"
        for kind in VIEWS
        if kind not in LAKE
    ]
    kept.append(
        """
        SELECT if(f.kind = 'reading', 'journal', 'events') AS log, s.partition, sum(s.rows) AS rows
        FROM load.spans s JOIN load.files f USING (path) WHERE f.retired_at IS NULL GROUP BY ALL
        """
    )
    return [
        Expectation(
            "load_begins_where_the_one_before_ended",
            "the positions of the logs are covered without a gap and once",
            """
            SELECT log, partition, load, first_position, ended_at FROM (
                SELECT *, coalesce(lag(end_position) OVER (PARTITION BY log, partition ORDER BY load), 0) AS ended_at
                FROM load.progress
            )
            WHERE first_position <> ended_at OR end_position <= first_position
            """,
        ),
        Expectation(
            "every_position_is_kept",
            "there are as many rows as positions covered, partition by partition",
            f"""
            SELECT log, partition, p.position, coalesce(k.rows, 0) AS rows
            FROM main.positions p FULL JOIN (
                SELECT log, partition, sum(rows) AS rows FROM ({" UNION ALL ".join(kept)}) GROUP BY log, partition
            ) k USING (log, partition)
            WHERE p.position IS DISTINCT FROM coalesce(k.rows, 0)
            """,
        ),
        Expectation(
            "file_is_as_the_manifest_says",
            "every Parquet file is there, with the rows the manifest gives it",
            files_sql(con),
        ),
    ]


def files_sql(con: duckdb.DuckDBPyConnection) -> str:
    """The query for files whose footer tells other rows than the manifest. A file that is not there is an error."""
    lake = Path(lake_of(con))
    paths = [path for (path,) in con.execute("SELECT path FROM load.files WHERE retired_at IS NULL").fetchall()]
    if not paths:
        return "SELECT path FROM load.files WHERE retired_at IS NULL"
    listed = ", ".join(literal(str(lake / path)) for path in paths)
    return f"""
        SELECT f.path, f.rows, m.num_rows AS rows_there, s.rows AS rows_of_spans
        FROM load.files f
        JOIN (SELECT path, sum(rows) AS rows FROM load.spans GROUP BY path) s USING (path)
        JOIN parquet_file_metadata([{listed}]) m ON m.file_name = {literal(f"{lake}/")} || f.path
        WHERE f.retired_at IS NULL AND (f.rows <> m.num_rows OR f.rows <> s.rows)
        """


def new_since(checked_load: int, rows: str) -> str:
    """The join that leaves of some rows those at positions of the journal that came with a later load."""
    return f"""
            JOIN load.progress p ON p.log = 'journal' AND p.load > {checked_load} AND p.partition = {rows}.partition
                AND {rows}.ordinal >= p.first_position AND {rows}.ordinal < p.end_position"""


def on_records(checked_load: int) -> list[Expectation]:
    """What came in has come out, and what was refused or held says why."""
    return [
        Expectation(
            "reading_is_of_an_account_that_is_named",
            "a reading is given to an account only if a version or an exchange names it",
            """
            SELECT account_id, count(*) AS readings FROM load.new_reading
            WHERE account_id NOT IN (
                SELECT account_id FROM journal.account WHERE account_id IS NOT NULL
                UNION ALL SELECT account_id FROM journal.meter_exchange WHERE account_id IS NOT NULL
            ) GROUP BY account_id
            """,
        ),
        Expectation(
            "payment_ends_somewhere",
            "every payment and adjustment is in the ledger, refused, held, or the same as an earlier one",
            f"""
            WITH arrived AS (
                SELECT 'payment' AS kind, payment_id AS id, account_id, amount_tiyin, partition, ordinal FROM journal.payment
                UNION ALL
                SELECT 'adjustment', adjustment_id, account_id, amount_tiyin, partition, ordinal FROM journal.adjustment
            ), ended AS (
                SELECT partition, ordinal FROM load.new_entry WHERE kind IN ('payment', 'reversal', 'adjustment')
                UNION ALL SELECT partition, ordinal FROM events.refused
                UNION ALL SELECT partition, ordinal FROM events.held
            )
            SELECT a.* FROM arrived a {new_since(checked_load, "a")}
            ANTI JOIN ended e ON e.partition = a.partition AND e.ordinal = a.ordinal
            ANTI JOIN arrived b ON b.kind = a.kind AND b.id = a.id AND b.account_id = a.account_id
                AND b.amount_tiyin = a.amount_tiyin AND b.partition = a.partition AND b.ordinal < a.ordinal
            """,
        ),
        Expectation(
            "refused_says_why",
            "a refused or held record has its kind, a reason and the record itself",
            """
            SELECT event_id(partition, ordinal, n) AS id, record_kind, reason
            FROM (FROM events.refused UNION ALL FROM events.held)
            WHERE record_kind IS NULL OR coalesce(reason, '') = '' OR record IS NULL
            """,
        ),
        Expectation(
            "held_is_released_once",
            "what is released was held, and is released once",
            """
            SELECT held_id, count(*) AS times FROM events.released GROUP BY held_id
            HAVING count(*) > 1 OR held_id NOT IN (SELECT event_id(partition, ordinal, n) FROM events.held)
            """,
        ),
        Expectation(
            "tick_follows_tick",
            "the clock never goes back",
            """
            SELECT partition, ordinal, ticked_at, before FROM (
                SELECT *, lag(ticked_at) OVER (PARTITION BY partition ORDER BY ordinal) AS before FROM journal.tick
            ) WHERE ticked_at < before
            """,
        ),
        Expectation(
            "clock_does_not_stand_still",
            "no more than an hour passes between ticks; longer: the machine or the ingest was off",
            f"""
            SELECT t.ordinal, t.before, t.ticked_at FROM (
                SELECT *, lag(ticked_at) OVER (ORDER BY ordinal) AS before FROM main.ticks
            ) t {new_since(checked_load, "t")} WHERE t.ticked_at - t.before > INTERVAL 1 HOUR
            """,
            WARNING,
        ),
        Expectation(
            "few_readings_are_refused",
            "of a meter's new readings no more than half are refused, if there are over a hundred",
            f"""
            WITH refused AS (
                SELECT record ->> 'meter_id' AS meter_id, count(*) AS refused
                FROM events.refused r {new_since(checked_load, "r")} WHERE record_kind = 'reading' GROUP BY 1
            )
            SELECT meter_id, refused, count(*) AS readings FROM refused JOIN load.new_reading USING (meter_id)
            GROUP BY meter_id, refused HAVING count(*) > 100 AND refused * 2 > count(*)
            """,
            WARNING,
        ),
    ]
