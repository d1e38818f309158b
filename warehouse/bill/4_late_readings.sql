-- "A late reading can only change where a step is cut."

-- Late readings that were taken, each with the step that it lies within, if that one holds a boundary. All others are "accepted,
-- changes nothing".
CREATE OR REPLACE TEMP TABLE late AS
SELECT l.a, l.ordinal, l.at_us, l.last_at, s.ordinal AS step, s.place AS step_place, s.from_at, s.from_wh, s.at_us AS to_at, s.usage_wh,
    s.from_total_wh, s.modulus_wh, ((l.register_wh - s.from_wh) % s.modulus_wh + s.modulus_wh) % s.modulus_wh AS since_wh
FROM arrival l JOIN cut_step s ON s.a = l.a AND s.from_at < l.at_us AND l.at_us < s.at_us
WHERE l.place = 2 AND NOT l.estimated AND l.at_us < l.last_at;

-- "The last gap is the latest settled step … that held a boundary (ta < b ≤ tb)": however it was recut, the one around the last
-- boundary `b` of its step. So a reading that was taken cuts it if it is nearer to that boundary than all those before it,
-- on its side. (A change of price at the very end of a step makes it a gap too; but to cut it there moves no money.)
CREATE OR REPLACE TEMP TABLE cut AS
WITH boundary AS (
    SELECT a, ordinal, month_of(to_at) AS b FROM late
    UNION ALL
    SELECT l.a, l.ordinal, s.price_until_at FROM late l
    JOIN schedule s ON s.a = l.a AND l.from_at < s.price_until_at AND s.price_until_at < l.to_at
), bounded AS (
    SELECT l.a, l.ordinal, max(b.b) AS b FROM late l JOIN boundary b USING (a, ordinal) WHERE l.from_at < b.b GROUP BY l.a, l.ordinal
), narrowed AS (
    SELECT l.*, b.b,
        coalesce(max(CASE WHEN l.at_us < b.b THEN l.at_us END) OVER earlier, l.from_at) AS gap_from_at,
        coalesce(min(CASE WHEN l.at_us >= b.b THEN l.at_us END) OVER earlier, l.to_at) AS gap_to_at
    FROM late l JOIN bounded b USING (a, ordinal)
    WINDOW earlier AS (PARTITION BY l.a, l.step, l.step_place ORDER BY l.ordinal ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)
SELECT * FROM narrowed WHERE gap_from_at < at_us AND at_us < gap_to_at;

-- The registers that a step was cut at and its two ends, with the arrival since which they count. Wh since the account's start.
CREATE OR REPLACE TEMP TABLE cut_point AS
SELECT a, step, step_place, at_us, from_total_wh + since_wh AS total_wh, ordinal AS since FROM cut
UNION ALL SELECT DISTINCT a, step, step_place, from_at, from_total_wh, step FROM cut
UNION ALL SELECT DISTINCT a, step, step_place, to_at, from_total_wh + usage_wh, step FROM cut;

-- `m`: "the register at the month's start (or at the account's)", as it was known from the arrival `since` on until `until`.
CREATE OR REPLACE TEMP TABLE month_start AS
WITH crossing AS (
    SELECT a, ordinal, place, from_at, at_us, usage_wh, from_total_wh,
        unnest(generate_series(make_timestamp(month + 18_000_000_000) + INTERVAL 1 MONTH,
                               make_timestamp(month_of(at_us) + 18_000_000_000), INTERVAL 1 MONTH)) AS local
    FROM cut_step
), settled AS (
    SELECT *, epoch_us(local) - 18_000_000_000 AS month FROM crossing
), recut AS (
    SELECT s.a, s.month, c.ordinal AS since, max_by({'at_us': p.at_us, 'wh': p.total_wh}, p.at_us) FILTER (p.at_us < s.month) AS before,
        min_by({'at_us': p.at_us, 'wh': p.total_wh}, p.at_us) FILTER (p.at_us >= s.month) AS after
    FROM settled s
    JOIN cut c ON c.a = s.a AND c.step = s.ordinal AND c.step_place = s.place
    JOIN cut_point p ON p.a = c.a AND p.step = c.step AND p.step_place = c.step_place AND p.since <= c.ordinal
    GROUP BY s.a, s.month, c.ordinal
), known AS (
    SELECT a, month, ordinal AS since, from_total_wh + register_there(usage_wh, month - from_at, at_us - from_at) AS start_wh FROM settled
    UNION ALL
    SELECT a, month, since,
        before.wh + register_there(after.wh - before.wh, month - before.at_us, after.at_us - before.at_us) FROM recut
    UNION ALL
    SELECT a, month_of(at_us), -1, 0 FROM register WHERE from_at IS NULL
)
SELECT *, lead(since, 1, 9_000_000_000_000_000_000) OVER (PARTITION BY a, month ORDER BY since) AS until FROM known;
