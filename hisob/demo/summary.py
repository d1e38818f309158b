"""What came of it: the figures of a district's history, asked of the published database like an auditor would.

Everything here is SQL on `published/audit.duckdb`, so it can be asked again with `hisob query`. Money is in tiyin, leads are
in hours: from the moment an SMS may be sent to the half hour in which the money runs out, were nobody to pay. Scored are
the notices that have a week of history after them, so that long leads are told as surely as short ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from datetime import date, datetime
from math import isfinite
from typing import Any

import duckdb

Summary = dict[str, Any]

# A reading that waited for its meter to be claimed stands twice, the second time with its first place.
READINGS = """
SELECT count(*) FILTER (first_ordinal IS NULL) AS taken, count(DISTINCT meter_id) AS meters,
       strftime(min(read_at) AT TIME ZONE 'Asia/Tashkent', '%Y-%m-%d') AS from_day,
       strftime((max(read_at) - INTERVAL 1 SECOND) AT TIME ZONE 'Asia/Tashkent', '%Y-%m-%d') AS to_day
FROM readings
"""
USED = "SELECT count(DISTINCT account_id) AS accounts, sum(usage_wh)::BIGINT AS usage_wh FROM entries"
MONEY = """
SELECT kind, count(*) AS entries, sum(amount_tiyin)::BIGINT AS amount_tiyin FROM entries GROUP BY kind ORDER BY kind
"""
BALANCES = """
SELECT sum(balance_tiyin)::BIGINT AS total_tiyin, count(*) FILTER (balance_tiyin < 0) AS below_zero FROM balances
"""
NOTICES = "SELECT kind, count(*) AS notices FROM notices GROUP BY kind ORDER BY kind"
RECEIPTS = """
SELECT n.kind, r.status, count(DISTINCT n.notice_id) AS notices
FROM notices n JOIN receipts r USING (notice_id) GROUP BY ALL ORDER BY ALL
"""
# A notice's entries are those of its account that come after it in the partition. Their charges, without any payment, run
# against the balance it was given at.
LEADS = """
WITH low AS (
    SELECT notice_id, account_id, send_after, ordinal, n,
           (SELECT max_by(e.balance_tiyin, (e.ordinal, e.n)) FROM entries e
            WHERE e.account_id = notices.account_id AND (e.ordinal, e.n) < (notices.ordinal, notices.n)) AS balance_tiyin
    FROM notices WHERE kind = 'low_credit'
), spent AS (
    SELECT s.notice_id, s.send_after, e.to_at,
           s.balance_tiyin + sum(e.amount_tiyin) OVER (PARTITION BY s.notice_id ORDER BY e.ordinal, e.n) AS left_tiyin
    FROM low s JOIN entries e ON e.account_id = s.account_id AND (e.ordinal, e.n) > (s.ordinal, s.n)
    WHERE e.kind IN ('usage', 'correction')
), ran_out AS (
    SELECT s.notice_id, s.send_after,
           CASE WHEN s.balance_tiyin < 0 THEN s.send_after ELSE min(spent.to_at) FILTER (left_tiyin < 0) END AS out_at
    FROM low s LEFT JOIN spent USING (notice_id) GROUP BY s.notice_id, s.send_after, s.balance_tiyin
)
SELECT notice_id, date_diff('minute', send_after, out_at) / 60.0 AS lead_hours,
       send_after <= (SELECT max(read_at) FROM readings) - INTERVAL 7 DAY AS is_scored
FROM ran_out ORDER BY notice_id
"""
LEAD_BINS = (48, 72, 96, 120, 168)
SUPPLY = """
WITH command AS (
    SELECT c.*, c.issued_at AT TIME ZONE 'Asia/Tashkent' AS local_at,
           EXISTS (FROM acknowledgements a WHERE a.command_id = c.command_id AND a.outcome IN ('opened', 'closed')) AS done
    FROM commands c
), paid AS (
    SELECT c.account_id, c.issued_at, max(p.paid_at) AS paid_at FROM commands c JOIN payments p USING (account_id)
    WHERE c.action = 'reconnect' AND c.cause = 'credit' AND p.paid_at <= c.issued_at GROUP BY ALL
), gap AS (
    SELECT date_diff('second', paid_at, issued_at) AS seconds,
           date_diff('second', paid_at, (SELECT min(s.changed_at) FROM supply_states s
                WHERE s.account_id = paid.account_id AND s.state = 'connected' AND s.changed_at >= issued_at)) / 60.0 AS light
    FROM paid
)
SELECT count(*) FILTER (action = 'disconnect') AS cuts,
       count(*) FILTER (action = 'disconnect' AND done) AS cuts_done,
       count(*) FILTER (action = 'reconnect') AS reconnections,
       count(*) FILTER (action = 'reconnect' AND done) AS reconnections_done,
       min(strftime(local_at, '%H:%M')) FILTER (action = 'disconnect') AS first_cut_of_day,
       max(strftime(local_at, '%H:%M')) FILTER (action = 'disconnect') AS last_cut_of_day,
       list_sort(list(DISTINCT isodow(local_at)) FILTER (action = 'disconnect')) AS weekdays,
       (SELECT median(seconds)::BIGINT FROM gap) AS median_seconds_from_payment,
       (SELECT max(seconds) FROM gap) AS longest_seconds_from_payment,
       (SELECT median(light) FROM gap) AS median_minutes_to_light, (SELECT max(light) FROM gap) AS longest_minutes_to_light
FROM command
"""
# The promises about cuts, judged from entries, receipts and accounts alone: what the commands say of themselves is not asked.
BROKEN = """
WITH cut AS (
    SELECT c.account_id, c.issued_at, c.ordinal
    FROM commands c WHERE c.action = 'disconnect' AND c.cause = 'credit'
), warned AS (
    SELECT n.account_id, r.received_at AS at FROM notices n JOIN receipts r USING (notice_id)
    WHERE n.kind = 'low_credit' AND r.status <> 'accepted'
    UNION ALL SELECT account_id, noticed_at FROM notices WHERE kind = 'low_credit' AND phone IS NULL
)
SELECT count(*) FILTER ((SELECT max_by(e.balance_tiyin, (e.ordinal, e.n)) FROM entries e
                         WHERE e.account_id = cut.account_id AND e.ordinal <= cut.ordinal) >= 0) AS with_money_left,
       count(*) FILTER (NOT EXISTS (FROM warned w WHERE w.account_id = cut.account_id
                                    AND w.at <= cut.issued_at - INTERVAL 24 HOUR)) AS without_a_notice,
       count(*) FILTER (EXISTS (FROM accounts a WHERE a.account_id = cut.account_id
                                AND a.supply_class = 'protected')) AS of_the_protected
FROM cut
"""
STATES = "SELECT supply_state AS state, count(*) AS accounts FROM balances GROUP BY ALL ORDER BY ALL"
RECONCILIATION = """
SELECT (SELECT count(*) FROM balances) AS balances, (SELECT count(*) FROM entries) AS entries,
       (SELECT count(*) FROM reconciliation) AS do_not_agree
"""
BY_NAME = "SELECT record_kind, reason, count(*) AS records FROM {view} GROUP BY ALL ORDER BY ALL"
TYPICAL = """
WITH cut AS (SELECT account_id, min(issued_at) AS cut_at FROM commands WHERE action = 'disconnect' GROUP BY ALL),
back AS (
    SELECT account_id, count(*) AS reconnections, min(issued_at) AS back_at FROM commands
    WHERE action = 'reconnect' GROUP BY ALL
),
warned AS (
    SELECT account_id, max(send_after) AS warned_at FROM notices JOIN cut USING (account_id)
    WHERE kind = 'low_credit' AND phone IS NOT NULL AND send_after < cut_at GROUP BY ALL
), paid AS (
    SELECT account_id, count(*) AS payments FROM payments JOIN cut USING (account_id) JOIN warned USING (account_id)
    WHERE paid_at BETWEEN warned_at AND cut_at GROUP BY ALL
)
SELECT account_id, date_trunc('month', tashkent(cut_at))::DATE AS month, back_at + INTERVAL 1 HOUR AS told_at
FROM accounts LEFT JOIN cut USING (account_id) LEFT JOIN back USING (account_id)
LEFT JOIN warned USING (account_id) LEFT JOIN paid USING (account_id)
ORDER BY reconnections IS NULL, warned_at IS NULL, coalesce(payments, 0), reconnections, account_id LIMIT 1
"""


def rows(audit: duckdb.DuckDBPyConnection, sql: str, **values: str) -> list[dict[str, Any]]:
    """The rows of a query, each by column name."""
    answer = audit.execute(sql, values)
    names = [column[0] for column in answer.description or ()]
    return [dict(zip(names, values, strict=True)) for values in answer.fetchall()]


def summarize(audit: duckdb.DuckDBPyConnection) -> Summary:
    """The figures of the history in the database."""
    (readings,), (used,), (balances,), (supply,), (broken,), (reconciliation,) = (
        rows(audit, sql) for sql in (READINGS, USED, BALANCES, SUPPLY, BROKEN, RECONCILIATION)
    )
    money = {
        row["kind"]: {"entries": row["entries"], "amount_tiyin": row["amount_tiyin"]} for row in rows(audit, MONEY)
    }
    return {
        "readings": readings | used,
        "money": {"entries": money, "balances": balances},
        "notices": {
            "given": {row["kind"]: row["notices"] for row in rows(audit, NOTICES)},
            "receipts": rows(audit, RECEIPTS),
            "leads": leads(rows(audit, LEADS)),
        },
        "supply": supply | broken | {"states": {row["state"]: row["accounts"] for row in rows(audit, STATES)}},
        "refused": rows(audit, BY_NAME.format(view="refused")),
        "held": rows(audit, BY_NAME.format(view="held")),
        "reconciliation": reconciliation,
    }


def leads(found: list[dict[str, Any]]) -> dict[str, Any]:
    """How the leads of notices are distributed; one that did not run out within the history is the longest there is."""
    hours = sorted(
        float("inf") if row["lead_hours"] is None else row["lead_hours"] for row in found if row["is_scored"]
    )
    bins = Counter(bisect_right(LEAD_BINS, h) for h in hours)
    return {
        "scored": len(hours),
        "at_least_72_h": sum(h >= 72 for h in hours),
        "median_hours": hours[len(hours) // 2] if hours and isfinite(hours[len(hours) // 2]) else None,
        "bins_hours": list(LEAD_BINS),
        "in_bin": [bins[number] for number in range(len(LEAD_BINS) + 1)],
    }


def typical_customer(audit: duckdb.DuckDBPyConnection) -> tuple[str, date | None, datetime | None]:
    """Somebody who was warned, cut and switched on again: a story and a statement worth reading. The month of the cut, and a
    moment at which the light was on again; None where nobody was cut, or is on again.
    """
    (found,) = rows(audit, TYPICAL)
    return found["account_id"], found["month"], found["told_at"]
