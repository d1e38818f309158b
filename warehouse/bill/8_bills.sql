-- The bill of each account once more and otherwise: "the sum of the steps between its measured registers in the order of time, plus
-- one step from the last measured to the standing estimate". However the registers arrived, and whatever was corrected on the
-- way, the ledger's usage and corrections come to this. Within a month and at one price the steps add up to one piece.

CREATE OR REPLACE TEMP TABLE turning AS  -- the register at every boundary, and at both ends
WITH ends AS (
    SELECT a, min(at_us) AS from_at, max(at_us) AS to_at, max(total_wh) AS total_wh FROM register GROUP BY a
), price_cut AS (
    SELECT DISTINCT s.a, s.price_until_at AS at_us FROM schedule s JOIN ends e ON e.a = s.a AND s.price_until_at < e.to_at
), around AS (
    SELECT c.a, c.at_us, r.from_at, r.total_wh - r.usage_wh AS from_wh, r.at_us AS to_at, r.total_wh AS to_wh, r.ordinal, r.place
    FROM register r
    JOIN (FROM price_cut ANTI JOIN by_hours USING (a)) c ON c.a = r.a AND r.from_at < c.at_us AND c.at_us <= r.at_us
    UNION ALL
    SELECT c.a, c.at_us, r.from_at, r.total_wh - r.usage_wh, r.at_us, r.total_wh, r.ordinal, r.place
    FROM (FROM price_cut SEMI JOIN by_hours USING (a)) c
    ASOF JOIN (FROM register SEMI JOIN by_hours USING (a) WHERE from_at < at_us) r ON c.a = r.a AND c.at_us > r.from_at
), points AS (
    SELECT a, at_us, from_at AS point_at, from_wh AS total_wh FROM around
    UNION ALL SELECT a, at_us, to_at, to_wh FROM around
    UNION ALL SELECT o.a, o.at_us, p.at_us, p.total_wh FROM around o
    JOIN cut_point p ON p.a = o.a AND p.step = o.ordinal AND p.step_place = o.place
), nearest AS (
    SELECT a, at_us, max_by({'at_us': point_at, 'wh': total_wh}, point_at) FILTER (point_at < at_us) AS before,
        min_by({'at_us': point_at, 'wh': total_wh}, point_at) FILTER (point_at >= at_us) AS after
    FROM points GROUP BY a, at_us
)
SELECT a, from_at AS at_us, 0 AS total_wh FROM ends
UNION SELECT a, to_at, total_wh FROM ends
UNION SELECT a, at_us, before.wh + register_there(after.wh - before.wh, at_us - before.at_us, after.at_us - before.at_us) FROM nearest
UNION SELECT m.a, m.month, m.start_wh FROM month_start m WHERE m.until = 9_000_000_000_000_000_000 AND m.since >= 0;

CREATE OR REPLACE TEMP TABLE bill AS
WITH stretches AS (
    SELECT a, at_us, total_wh, lead(at_us) OVER w AS to_at, lead(total_wh) OVER w AS to_wh
    FROM turning WINDOW w AS (PARTITION BY a ORDER BY at_us)
), counted AS (
    SELECT t.a, s.list, s.families, t.total_wh - m.start_wh AS low_wh, t.to_wh - m.start_wh AS high_wh
    FROM stretches t
    ASOF JOIN schedule s ON s.a = t.a AND s.from_at <= t.at_us
    JOIN month_start m ON m.a = t.a AND m.month = month_of(t.at_us) AND m.until = 9_000_000_000_000_000_000
    WHERE t.to_at IS NOT NULL
), measured AS (
    SELECT c.a, sum(cost(high_wh, h.above_wh, h.base, h.price) - cost(low_wh, l.above_wh, l.base, l.price))::BIGINT
        AS charge_tiyin
    FROM counted c
    JOIN price l ON l.list = c.list AND l.families = c.families AND l.above_wh <= low_wh AND low_wh < l.upto_wh
    JOIN price h ON h.list = c.list AND h.families = c.families AND h.above_wh <= high_wh AND high_wh < h.upto_wh
    GROUP BY c.a
), standing AS (
    SELECT e.a, sum(p.charge_tiyin)::BIGINT AS charge_tiyin
    FROM estimate e JOIN piece p ON p.use = 'estimate' AND p.of_ordinal = e.e
    WHERE e.until = 9_000_000_000_000_000_000
    GROUP BY e.a, p.as_of
    QUALIFY row_number() OVER (PARTITION BY e.a ORDER BY p.as_of DESC) = 1
)
SELECT w.a, coalesce(m.charge_tiyin, 0) + coalesce(s.charge_tiyin, 0) AS charge_tiyin
FROM who w LEFT JOIN measured m USING (a) LEFT JOIN standing s USING (a);

-- "An account's balance equals opening + payments − the cost of its registers under the tariffs in force."
CREATE OR REPLACE TEMP TABLE account_difference AS
WITH ledger AS (
    SELECT a, -sum(amount_tiyin) FILTER (kind IN ('usage', 'correction')) AS charge_tiyin,
        max_by(balance_tiyin, (ordinal, n)) AS balance_tiyin
    FROM entry GROUP BY a
), credits AS (
    SELECT a, sum(amount_tiyin)::BIGINT AS credit_tiyin FROM other WHERE kind NOT IN ('usage', 'correction') GROUP BY a
), compared AS (
    SELECT w.a, coalesce(l.charge_tiyin, 0)::BIGINT AS ledger_charge_tiyin, b.charge_tiyin,
        coalesce(l.balance_tiyin, 0) AS ledger_balance_tiyin, k.balance_tiyin AS kept_balance_tiyin,
        coalesce(c.credit_tiyin, 0) - b.charge_tiyin AS balance_tiyin
    FROM who w JOIN bill b USING (a) JOIN main.balances k ON k.account_id = w.account_id
    LEFT JOIN ledger l USING (a) LEFT JOIN credits c USING (a)
)
SELECT a, 'bill' AS kind, ledger_charge_tiyin AS ledger_tiyin, charge_tiyin AS audit_tiyin FROM compared
WHERE ledger_charge_tiyin <> charge_tiyin
UNION ALL SELECT a, 'balance', ledger_balance_tiyin, balance_tiyin FROM compared WHERE ledger_balance_tiyin <> balance_tiyin
UNION ALL SELECT a, 'kept balance', kept_balance_tiyin, balance_tiyin FROM compared WHERE kept_balance_tiyin <> balance_tiyin;
