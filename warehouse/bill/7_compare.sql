-- The ledger beside what it should be.

CREATE OR REPLACE TEMP TABLE entry AS
WITH linked AS (
    SELECT w.a, e.ordinal, e.n, e.kind, e.basis, epoch_us(e.from_at) AS from_at, epoch_us(e.to_at) AS to_at, e.from_wh, e.to_wh,
        e.usage_wh, e.amount_tiyin, e.balance_tiyin, e.tariff,
        e.balance_tiyin - coalesce(lag(e.balance_tiyin) OVER o, 0) AS moved_tiyin,
        e.ordinal IS NOT DISTINCT FROM lag(e.ordinal) OVER o AS follows
    FROM events.entry e JOIN who w ON w.account_id = e.account_id
    WHERE e.account_id BETWEEN getvariable('first_account') AND getvariable('last_account')
    WINDOW o AS (PARTITION BY w.a ORDER BY e.ordinal, e.n)
)
SELECT *, 1 AS k FROM linked WHERE NOT follows
UNION ALL
SELECT *, 1 + row_number() OVER (PARTITION BY a, ordinal ORDER BY n) FROM linked WHERE follows;

CREATE OR REPLACE TEMP TABLE difference AS
WITH compared AS (
    SELECT
        coalesce(e.a, x.a) AS a, coalesce(e.ordinal, x.ordinal) AS ordinal, e.n,
        coalesce(e.kind, x.kind) AS kind, coalesce(e.to_at, x.to_at) AS at_us,
        {'kind': e.kind, 'basis': e.basis, 'from_at': e.from_at, 'to_at': e.to_at, 'from_wh': e.from_wh, 'to_wh': e.to_wh,
         'usage_wh': e.usage_wh, 'amount_tiyin': e.amount_tiyin, 'tariff': e.tariff, 'moved_tiyin': e.moved_tiyin} AS ledger,
        {'kind': x.kind, 'basis': x.basis, 'from_at': x.from_at, 'to_at': x.to_at, 'from_wh': x.from_wh, 'to_wh': x.to_wh,
         'usage_wh': x.usage_wh, 'amount_tiyin': x.amount_tiyin, 'tariff': x.tariff, 'moved_tiyin': x.amount_tiyin} AS audit
    FROM entry e FULL JOIN expected x ON x.a = e.a AND x.ordinal = e.ordinal AND x.k = e.k
    WHERE e.a IS NULL OR x.a IS NULL OR e.amount_tiyin IS DISTINCT FROM x.amount_tiyin OR e.moved_tiyin IS DISTINCT FROM x.amount_tiyin
        OR e.usage_wh IS DISTINCT FROM x.usage_wh OR e.kind <> x.kind OR e.basis IS DISTINCT FROM x.basis
        OR e.from_at IS DISTINCT FROM x.from_at OR e.to_at IS DISTINCT FROM x.to_at
        OR e.from_wh IS DISTINCT FROM x.from_wh OR e.to_wh IS DISTINCT FROM x.to_wh
        OR (x.kind = 'usage' AND e.tariff IS DISTINCT FROM x.tariff)
)
FROM compared c WHERE NOT (  -- a late reading that cut a step where no boundary lies within it: a correction of nothing
    c.audit.kind IS NULL AND c.ledger.kind = 'correction' AND c.ledger.usage_wh = 0
    AND c.ledger.amount_tiyin = 0 AND c.ledger.moved_tiyin = 0
    AND (c.a, c.ordinal) IN (SELECT (a, ordinal) FROM arrival WHERE place = 2 AND NOT estimated AND at_us < last_at)
);
