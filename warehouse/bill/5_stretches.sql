-- Stretches: everything but the plain step within one month at one price. Each is priced as of an arrival (`as_of` for what is in
-- force, `as_of_month` for the month's start): steps that hold a boundary, the standing estimate after each arrival that can
-- change its price, and gaps before and after they were recut.

-- "The bill … is the sum of the steps between its measured registers in the order of time, plus one step from the last measured
-- to the standing estimate." The same estimate again is ignored and counted.
CREATE OR REPLACE TEMP TABLE estimate AS
WITH ended AS (  -- the first register that settles after it: until then the last measured one is the same
    SELECT e.a, e.ordinal, min(r.ordinal) AS until
    FROM register r JOIN onto_end e ON e.estimated AND e.a = r.a AND e.last_at = r.from_at AND e.ordinal < r.ordinal
    GROUP BY e.a, e.ordinal
), standing AS (
    SELECT e.*, coalesce(n.until, 9_000_000_000_000_000_000) AS ends
    FROM onto_end e LEFT JOIN ended n USING (a, ordinal)
    WHERE e.estimated
    QUALIFY row(at_us, register_wh, ends) IS DISTINCT FROM lag(row(at_us, register_wh, ends)) OVER (PARTITION BY a ORDER BY ordinal)
)
SELECT s.a, s.ordinal, s.at_us, s.register_wh, s.last_at, s.last_wh, s.usage_wh, s.last_wh + l.offset_wh AS last_total_wh, m.modulus_wh,
    least(s.ends, lead(s.ordinal, 1, 9_000_000_000_000_000_000) OVER (PARTITION BY s.a ORDER BY s.ordinal)) AS until,
    row_number() OVER () AS e
FROM standing s
JOIN leap l ON l.a = s.a AND l.since <= s.ordinal * 16 + 4 AND s.ordinal * 16 + 4 < l.until
JOIN modulus m ON m.a = s.a AND m.since < s.ordinal AND s.ordinal <= m.until;

CREATE OR REPLACE TEMP TABLE price_change AS  -- arrivals that can change the price of a standing estimate
SELECT a, ordinal FROM version WHERE NOT is_first
UNION SELECT a, ordinal FROM tariff_effect
UNION SELECT a, ordinal FROM cut;

CREATE OR REPLACE TEMP TABLE stretch AS
WITH everything AS (
    SELECT 'step' AS use, a, ordinal AS of_ordinal, place AS of_place, ordinal AS as_of, ordinal AS as_of_month, from_at, at_us AS to_at,
        from_wh, from_total_wh, usage_wh, modulus_wh
    FROM cut_step
    UNION ALL
    SELECT 'estimate', e.a, e.e, 0, c.as_of, c.as_of, e.last_at, e.at_us, e.last_wh, e.last_total_wh, e.usage_wh, e.modulus_wh
    FROM estimate e
    JOIN (
        SELECT e, ordinal AS as_of FROM estimate
        UNION SELECT e.e, c.ordinal FROM estimate e JOIN price_change c ON c.a = e.a AND e.ordinal < c.ordinal AND c.ordinal <= e.until
    ) c ON c.e = e.e
    UNION ALL
    SELECT 'before', c.a, c.ordinal, 0, c.ordinal, c.ordinal - 1, f.at_us, t.at_us, 0, f.total_wh, t.total_wh - f.total_wh, c.modulus_wh
    FROM cut c
    JOIN cut_point f ON f.a = c.a AND f.step = c.step AND f.step_place = c.step_place AND f.at_us = c.gap_from_at
    JOIN cut_point t ON t.a = c.a AND t.step = c.step AND t.step_place = c.step_place AND t.at_us = c.gap_to_at
    UNION ALL
    SELECT 'after', c.a, c.ordinal, 0, c.ordinal, c.ordinal, f.at_us, c.at_us, 0, f.total_wh, c.from_total_wh + c.since_wh - f.total_wh,
        c.modulus_wh
    FROM cut c
    JOIN cut_point f ON f.a = c.a AND f.step = c.step AND f.step_place = c.step_place AND f.at_us = c.gap_from_at
    UNION ALL
    SELECT 'after', c.a, c.ordinal, 0, c.ordinal, c.ordinal, c.at_us, t.at_us, 0, c.from_total_wh + c.since_wh,
        t.total_wh - c.from_total_wh - c.since_wh, c.modulus_wh
    FROM cut c
    JOIN cut_point t ON t.a = c.a AND t.step = c.step AND t.step_place = c.step_place AND t.at_us = c.gap_to_at
    UNION ALL  -- "and in all that was charged since because m moved": from the gap's end to the last measured register then
    SELECT u.use, s.a, s.ordinal, 0, s.ordinal, s.ordinal - (u.use = 'before')::INTEGER, s.at_us, s.next_at, 0, s.total_wh,
        s.next_total_wh - s.total_wh, 1
    FROM (
        SELECT a, ordinal, at_us, total_wh, lead(at_us) OVER w AS next_at, lead(total_wh) OVER w AS next_total_wh
        FROM (
            SELECT c.a, c.ordinal, t.at_us, t.total_wh
            FROM cut c JOIN cut_point t ON t.a = c.a AND t.step = c.step AND t.step_place = c.step_place AND t.at_us = c.gap_to_at
            UNION
            SELECT c.a, c.ordinal, r.at_us, r.total_wh
            FROM cut c JOIN register r ON r.a = c.a AND r.at_us = c.last_at AND r.ordinal < c.ordinal
            UNION  -- and whatever register a change of price took effect at meanwhile
            SELECT c.a, c.ordinal, r.at_us, r.total_wh
            FROM cut c
            JOIN schedule s ON s.a = c.a AND c.gap_to_at < s.from_at AND s.from_at < c.last_at
            JOIN register r ON r.a = c.a AND r.at_us = s.from_at AND r.ordinal < c.ordinal
        )
        WINDOW w AS (PARTITION BY a, ordinal ORDER BY at_us)
    ) s
    CROSS JOIN (VALUES ('before'), ('after')) u(use)
    WHERE s.next_at IS NOT NULL
)
SELECT *, row_number() OVER () AS s FROM everything;

-- "A step is cut at every boundary b with t0 < b ≤ t1" (at t1 it cuts nothing off). "A boundary is the start of a calendar month
-- in Asia/Tashkent, or a moment at which the blocks or the families in force change", by a version or by the hour.
CREATE OR REPLACE TEMP TABLE piece_moment AS
WITH moment AS (
    SELECT s, a, as_of, from_at AS at_us, false AS is_month FROM stretch
    UNION ALL
    SELECT s, a, as_of, epoch_us(unnest(generate_series(make_timestamp(month_of(from_at) + 18_000_000_000) + INTERVAL 1 MONTH,
        make_timestamp(month_of(to_at - 1) + 18_000_000_000), INTERVAL 1 MONTH))) - 18_000_000_000, true
    FROM stretch
    UNION ALL
    SELECT s.s, s.a, s.as_of, v.effect_at, false FROM stretch s
    JOIN version_effect v ON v.a = s.a AND v.ordinal <= s.as_of AND s.from_at < v.effect_at AND v.effect_at < s.to_at
    UNION ALL
    SELECT s.s, s.a, s.as_of, t.effect_at, false FROM stretch s
    JOIN tariff_effect t ON t.a = s.a AND t.ordinal <= s.as_of AND s.from_at < t.effect_at AND t.effect_at < s.to_at
    UNION ALL
    SELECT d.s, d.a, d.as_of, d.day + e.from_us, false
    FROM (
        SELECT *, unnest(generate_series(day_of(from_at), day_of(to_at), 86_400_000_000)) AS day
        FROM stretch SEMI JOIN by_hours USING (a)
    ) d
    JOIN edge e ON e.a = d.a AND d.from_at < d.day + e.from_us AND d.day + e.from_us < d.to_at
)
SELECT s, a, as_of, at_us, bool_or(is_month) AS is_month FROM moment GROUP BY ALL;

CREATE OR REPLACE TEMP TABLE piece AS
WITH moment AS (
    SELECT m.s, m.at_us, m.is_month, f.tariff, f.families, f.list
    FROM piece_moment m JOIN in_force('piece_moment') f USING (a, as_of, at_us)
), boundary AS (
    SELECT * FROM moment
    QUALIFY is_month OR (list, families) IS DISTINCT FROM lag((list, families)) OVER (PARTITION BY s ORDER BY at_us)
), pieces AS (
    SELECT b.s, b.tariff, b.families, b.list, b.is_month, b.at_us AS piece_from,
        lead(b.at_us, 1, s.to_at) OVER (PARTITION BY b.s ORDER BY b.at_us) AS piece_to, s.* EXCLUDE (s)
    FROM boundary b JOIN stretch s ON s.s = b.s
), cut_pieces AS (
    SELECT *,
        register_there(usage_wh, piece_from - from_at, to_at - from_at) AS done_wh,
        register_there(usage_wh, piece_to - from_at, to_at - from_at) AS upto_wh
    FROM pieces
), counted AS (  -- "A piece from r to r' charges cost(r' − m) − cost(r − m)"
    SELECT p.*,
        coalesce(last_value(CASE WHEN is_month THEN from_total_wh + done_wh END IGNORE NULLS) OVER (PARTITION BY p.s ORDER BY piece_from),
            m.start_wh) AS begin_wh,
        from_total_wh + done_wh - begin_wh AS low_wh, from_total_wh + upto_wh - begin_wh AS high_wh
    FROM cut_pieces p
    LEFT JOIN month_start m ON m.a = p.a AND m.month = month_of(p.from_at) AND m.since <= p.as_of_month AND p.as_of_month < m.until
)
SELECT c.*,
    cost(high_wh, h.above_wh, h.base, h.price) - cost(low_wh, l.above_wh, l.base, l.price) AS charge_tiyin
FROM counted c
JOIN price l ON l.list = c.list AND l.families = c.families AND l.above_wh <= low_wh AND low_wh < l.upto_wh
JOIN price h ON h.list = c.list AND h.families = c.families AND h.above_wh <= high_wh AND high_wh < h.upto_wh;
