"""Use day by day, where a step reaches over midnight or over days: estimates for people to look at, never for money.

How a piece's Wh are shared out among its days stands in usage_by_day.sql (linear up to two hours, beyond that by similar
days, as utilities validate, estimate and edit readings). The macro `usage_by_day(account)` and the statement both use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date

    import duckdb

OVER_MIDNIGHT = "a // 86_400_000_000 < (b - 1) // 86_400_000_000"


@dataclass(frozen=True)
class DayUse:
    """A day's share of what was used over several. basis: estimated by similar days, or interpolated, evenly."""

    day: date
    usage_wh: int
    basis: str


@cache
def shares_sql(account: str, pieces: str = "true") -> str:
    """The query for the shares of an account's pieces, by the ordinal and n of their entries."""
    text = files("warehouse").joinpath("usage_by_day.sql").read_text(encoding="utf-8")
    return text.format(account=account, pieces=pieces)


def read_days(con: duckdb.DuckDBPyConnection, account_id: str) -> dict[tuple[int, int], list[DayUse]]:
    """The days of each piece that reaches over midnight, by its entry."""
    found: dict[tuple[int, int], list[DayUse]] = {}
    rows = con.execute(shares_sql("$account", OVER_MIDNIGHT) + " ORDER BY ordinal, n, day", {"account": account_id})
    for ordinal, n, *day in rows.fetchall():
        found.setdefault((ordinal, n), []).append(DayUse(*day))
    return found


def macros() -> dict[str, tuple[str, str]]:
    """The macros made of it."""
    sql = f"""
        SELECT day, sum(usage_wh)::BIGINT AS usage_wh,
               CASE max(CASE basis WHEN 'estimated' THEN 2 WHEN 'interpolated' THEN 1 ELSE 0 END)
                    WHEN 2 THEN 'estimated' WHEN 1 THEN 'interpolated' ELSE 'measured' END AS basis
        FROM ({shares_sql("account")}) GROUP BY day ORDER BY day
    """
    doc = (
        "An account's use on each day: measured; interpolated, where some of it was shared out evenly over midnight; or"
        " estimated, by similar days or by a standing estimate. It adds up to what was charged, and moves no money:"
        " FROM usage_by_day('1103-000042')."
    )
    return {"usage_by_day(account)": (sql, doc)}
