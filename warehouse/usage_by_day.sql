-- An account's use day by day (of Asia/Tashkent), of every piece that was charged and stands. What was charged is never
-- touched: each piece's Wh are shared out among its days, and add up to it exactly.
--
-- A piece within one day is that day's. One over midnight is shared out evenly over its time; but where its step is a gap
-- (over 2 hours, and longer than one and a half times the account's usual step), by similar days: each hour weighs what the
-- same hour of the week used on average in the four weeks before the gap, else that hour of any day, else any hour. Without a
-- week of history it is shared out evenly. Shares are whole Wh, largest remainder first.
--
-- {{account}} stands for the account, {{pieces}} for which pieces are wanted. Moments are µs by the clocks of Tashkent, and so are days and hours, counted from 1970.
WITH entry AS (
    SELECT ordinal, n, kind, basis, usage_wh, epoch_us(from_at) + 18_000_000_000 AS a, epoch_us(to_at) + 18_000_000_000 AS b
    FROM events.entry
    WHERE account_id = {account} AND (kind = 'usage' OR (kind = 'correction' AND basis = 'estimated'))
), piece AS (  -- a step that a boundary cut is several; an estimate that was given back was not used
    SELECT ordinal, n, basis, usage_wh, a, b, min(a) OVER step AS step_a, max(b) OVER step AS step_b FROM entry
    WHERE kind = 'usage' AND (
        basis <> 'estimated' OR ordinal > (SELECT coalesce(max(ordinal), -1) FROM entry WHERE kind = 'correction')
        OR (ordinal, n) > (SELECT max((ordinal, n)) FROM entry WHERE kind = 'correction')
    )
    WINDOW step AS (PARTITION BY ordinal, basis, CASE WHEN basis = 'measured' THEN n END)
), usual AS (
    SELECT coalesce(median(b - a), 0) * 1.5 AS step_us FROM entry WHERE kind = 'usage' AND basis = 'measured'
), gap AS (
    FROM piece, usual
    WHERE step_b - step_a > 7_200_000_000 AND step_b - step_a > step_us AND a // 86_400_000_000 < (b - 1) // 86_400_000_000
), past AS (  -- hour by hour, what was read at the usual pace
    SELECT hour, sum(usage_wh * within / (b - a)) AS wh, sum(within) / 3_600_000_000 AS hours
    FROM (
        SELECT usage_wh, a, b, unnest(range(a // 3_600_000_000, (b - 1) // 3_600_000_000 + 1)) AS hour,
               least(b, (hour + 1) * 3_600_000_000) - greatest(a, hour * 3_600_000_000) AS within
        FROM piece, usual
        WHERE basis <> 'estimated' AND step_b - step_a <= greatest(step_us, 7_200_000_000) AND EXISTS (FROM gap)
    ) GROUP BY hour
), before AS (
    SELECT g.ordinal, g.n, p.* FROM gap g
    JOIN past p ON p.hour >= g.step_a // 3_600_000_000 - 672 AND p.hour < g.step_a // 3_600_000_000
), of_week AS (
    SELECT ordinal, n, hour % 168 AS hour, sum(wh) / sum(hours) AS wh FROM before GROUP BY ALL
), of_day AS (
    SELECT ordinal, n, hour % 24 AS hour, sum(wh) / sum(hours) AS wh FROM before GROUP BY ALL
), of_all AS (
    SELECT ordinal, n, sum(wh) / sum(hours) AS wh FROM before GROUP BY ALL HAVING sum(hours) >= 168
), alike AS (
    SELECT h.ordinal, h.n, h.hour // 24 AS day, round(sum(within / 3_600 * coalesce(w.wh, d.wh, l.wh)))::HUGEINT AS weight
    FROM (
        SELECT ordinal, n, unnest(range(a // 3_600_000_000, (b - 1) // 3_600_000_000 + 1)) AS hour,
               least(b, (hour + 1) * 3_600_000_000) - greatest(a, hour * 3_600_000_000) AS within
        FROM gap
    ) h
    JOIN of_all l USING (ordinal, n)
    LEFT JOIN of_day d ON (d.ordinal, d.n, d.hour) = (h.ordinal, h.n, h.hour % 24)
    LEFT JOIN of_week w ON (w.ordinal, w.n, w.hour) = (h.ordinal, h.n, h.hour % 168)
    GROUP BY ALL
), of_days AS (
    SELECT *, unnest(range(a // 86_400_000_000, (b - 1) // 86_400_000_000 + 1)) AS day,
           least(b, (day + 1) * 86_400_000_000) - greatest(a, day * 86_400_000_000) AS within
    FROM piece WHERE {pieces}
), weighed AS (
    SELECT p.*, coalesce(sum(s.weight) OVER whole, 0) > 0 AS by_similar,
           CASE WHEN by_similar THEN coalesce(s.weight, 0) ELSE within END::HUGEINT AS weight
    FROM of_days p LEFT JOIN alike s USING (ordinal, n, day)
    WINDOW whole AS (PARTITION BY p.ordinal, p.n)
), shared AS (
    SELECT *, usage_wh * weight // sum(weight) OVER whole AS share, usage_wh * weight % sum(weight) OVER whole AS rest
    FROM weighed WINDOW whole AS (PARTITION BY ordinal, n)
)
SELECT ordinal, n, DATE '1970-01-01' + day::INTEGER AS day,
       (share + (usage_wh - sum(share) OVER whole >= row_number() OVER (whole ORDER BY rest DESC, day))::INTEGER)::BIGINT
           AS usage_wh,
       CASE WHEN basis = 'estimated' OR by_similar THEN 'estimated'
            WHEN step_b - step_a > 3_600_000_000 AND step_a // 86_400_000_000 < (step_b - 1) // 86_400_000_000
            THEN 'interpolated' ELSE 'measured' END AS basis
FROM shared WINDOW whole AS (PARTITION BY ordinal, n)
