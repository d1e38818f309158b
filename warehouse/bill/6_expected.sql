-- Every entry that there should be: account, arrival that causes it, its place among the entries of that arrival, and content.

-- Plain steps: within one month, at one price.
CREATE OR REPLACE TEMP TABLE plain AS
WITH counted AS (
    SELECT s.*, s.total_wh - s.usage_wh - m.start_wh AS low_wh, s.total_wh - m.start_wh AS high_wh
    FROM step s JOIN month_start m ON m.a = s.a AND m.month = s.month AND m.since <= s.ordinal AND s.ordinal < m.until
    WHERE NOT s.is_cut
)
SELECT c.a, c.ordinal, 10 * (3 + c.place) AS place, 'usage' AS kind, 'measured' AS basis, c.from_at, c.at_us AS to_at, c.from_wh,
    c.register_wh AS to_wh, c.usage_wh,
    cost(low_wh, l.above_wh, l.base, l.price) - cost(high_wh, h.above_wh, h.base, h.price) AS amount_tiyin, c.tariff
FROM counted c
JOIN price l ON l.list = c.list AND l.families = c.families AND l.above_wh <= low_wh AND low_wh < l.upto_wh
JOIN price h ON h.list = c.list AND h.families = c.families AND h.above_wh <= high_wh AND high_wh < h.upto_wh;

-- All the others.
CREATE OR REPLACE TEMP TABLE other AS
WITH estimated AS (  -- what the estimate cost after each arrival that could change its price
    SELECT e.e, e.a, p.as_of, sum(p.charge_tiyin)::BIGINT AS charge_tiyin
    FROM estimate e JOIN piece p ON p.use = 'estimate' AND p.of_ordinal = e.e
    GROUP BY e.e, e.a, p.as_of
), charged AS (  -- "charged anew when a version or a late reading changes its price"
    SELECT *, lead(as_of) OVER (PARTITION BY e ORDER BY as_of) AS again FROM (
        SELECT * FROM estimated
        QUALIFY charge_tiyin IS DISTINCT FROM lag(charge_tiyin) OVER (PARTITION BY e ORDER BY as_of)
    )
)
SELECT a, as_of AS ordinal,
    CASE WHEN use = 'step' THEN 10 * (3 + of_place) WHEN as_of = (SELECT ordinal FROM estimate e WHERE e.e = of_ordinal) THEN 50 ELSE 20 END
        AS place,
    'usage' AS kind,
    CASE WHEN use = 'estimate' THEN 'estimated' WHEN piece_from = from_at AND piece_to = to_at THEN 'measured' ELSE 'interpolated' END
        AS basis,
    piece_from AS from_at, piece_to AS to_at, (from_wh + done_wh) % modulus_wh AS from_wh, (from_wh + upto_wh) % modulus_wh AS to_wh,
    upto_wh - done_wh AS usage_wh, -charge_tiyin AS amount_tiyin, tariff
FROM piece
WHERE use = 'step' OR (use = 'estimate' AND (of_ordinal, as_of) IN (SELECT (e, as_of) FROM charged))
UNION ALL  -- "what it charged is given back whole (a correction entry)"
SELECT e.a, coalesce(c.again, e.until), CASE WHEN c.again IS NULL THEN 25 ELSE 15 END, 'correction', 'estimated', e.last_at, e.at_us,
    e.last_wh, e.register_wh, -e.usage_wh, c.charge_tiyin, NULL
FROM charged c JOIN estimate e ON e.e = c.e
WHERE coalesce(c.again, e.until) < 9_000_000_000_000_000_000
UNION ALL  -- "the difference, in it and in all that was charged since because m moved, is one correction entry"
SELECT c.a, c.ordinal, 10, 'correction', 'measured', c.gap_from_at, c.gap_to_at,
    (c.from_wh + f.total_wh - c.from_total_wh) % c.modulus_wh, (c.from_wh + t.total_wh - c.from_total_wh) % c.modulus_wh, 0,
    p.amount_tiyin, NULL
FROM cut c
JOIN cut_point f ON f.a = c.a AND f.step = c.step AND f.step_place = c.step_place AND f.at_us = c.gap_from_at
JOIN cut_point t ON t.a = c.a AND t.step = c.step AND t.step_place = c.step_place AND t.at_us = c.gap_to_at
JOIN (
    SELECT a, of_ordinal, sum(CASE use WHEN 'before' THEN charge_tiyin ELSE -charge_tiyin END)::BIGINT AS amount_tiyin
    FROM piece WHERE use IN ('before', 'after') GROUP BY a, of_ordinal
) p ON p.a = c.a AND p.of_ordinal = c.ordinal
UNION ALL
SELECT a, ordinal, 0, 'opening', NULL, NULL, own_at, NULL, opening_wh, 0, opening_tiyin, NULL FROM version WHERE is_first
UNION ALL
-- "Payments and adjustments are credited in order of arrival …; the same content: ignored and counted." One that waited for its
-- account is credited when that arrives.
SELECT a, ordinal, place, kind, NULL, NULL, at_us, NULL, NULL, 0, amount_tiyin, NULL FROM (
    SELECT w.a, coalesce(h.until_ordinal, c.ordinal) AS ordinal, 100 + coalesce(h.until_n, 0) AS place, c.kind, c.at_us, c.amount_tiyin
    FROM (
        SELECT partition, ordinal, 'payment' AS record_kind, account_id, payment_id AS id, epoch_us(paid_at) AS at_us,
            CASE WHEN reverses IS NULL THEN 'payment' ELSE 'reversal' END AS kind,
            CASE WHEN reverses IS NULL THEN amount_tiyin ELSE -amount_tiyin END AS amount_tiyin,
            row(channel, reverses)::VARCHAR AS rest
        FROM journal.payment
        UNION ALL
        SELECT partition, ordinal, 'adjustment', account_id, adjustment_id, epoch_us(adjusted_at), 'adjustment', amount_tiyin,
            row(author, reason)::VARCHAR
        FROM journal.adjustment
    ) c
    JOIN who w ON w.account_id = c.account_id AND w.partition = c.partition
    LEFT JOIN held h ON h.record_kind = c.record_kind AND h.partition = c.partition AND h.ordinal = c.ordinal
    ANTI JOIN refused r ON r.record_kind = c.record_kind AND r.partition = c.partition AND r.ordinal = c.ordinal
    WHERE h.ordinal IS NULL OR h.outcome IN ('settled', 'unchanged')
    QUALIFY row_number() OVER (PARTITION BY w.a, c.record_kind, c.id, c.at_us, c.amount_tiyin, c.rest
        ORDER BY coalesce(h.until_ordinal, c.ordinal), coalesce(h.until_n, 0)) = 1
);

-- Together; `k` counts the entries of an arrival. Most have one.
CREATE OR REPLACE TEMP TABLE several AS
WITH arrivals AS (
    SELECT a, ordinal FROM other UNION SELECT a, ordinal FROM plain WHERE place <> 50
)
SELECT *, row_number() OVER (PARTITION BY a, ordinal ORDER BY place, from_at) AS k
FROM (FROM other UNION ALL SELECT p.* FROM plain p SEMI JOIN arrivals USING (a, ordinal));

CREATE OR REPLACE TEMP VIEW expected AS
SELECT p.*, 1 AS k FROM plain p ANTI JOIN several USING (a, ordinal) UNION ALL FROM several;
