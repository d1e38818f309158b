-- What is in force when. "In force at a moment is, of the versions (of the account, of its tariff) in effect by then, the one
-- with the latest date of its own; of the same date, the last to arrive."

-- A tariff version arrives with its last row; "identical to an earlier one: ignored and counted".
CREATE OR REPLACE TEMP TABLE tariff_version AS
WITH numbered AS (
    SELECT *, sum((coalesce(block, 0) = 0)::INTEGER) OVER (PARTITION BY partition ORDER BY ordinal) AS instance
    FROM journal.tariff WHERE partition IN (SELECT partition FROM who)
), gathered AS (
    SELECT
        partition, max(ordinal) AS ordinal, any_value(tariff) AS tariff,
        epoch_us(any_value(effective_on)::TIMESTAMP) - 18_000_000_000 AS own_at,  -- 00:00 Asia/Tashkent of effective_on
        list({'hours': hours, 'upto_kwh': block_upto_kwh, 'price': price_tiyin_per_kwh} ORDER BY ordinal) AS blocks,
        list(source ORDER BY ordinal) AS sources
    FROM numbered
    GROUP BY partition, instance
    HAVING count(*) >= any_value(coalesce(blocks, 1))
)
SELECT * EXCLUDE (sources) FROM gathered
QUALIFY row_number() OVER (PARTITION BY partition, tariff, own_at, blocks, sources ORDER BY ordinal) = 1;

-- "The rows of one version with the same hours are one list of blocks", and the same blocks are one list, whatever tariff has them.
-- A plan is what a version has in all its hours.
CREATE OR REPLACE TEMP TABLE plan AS
SELECT blocks, (row_number() OVER (ORDER BY blocks::VARCHAR))::INTEGER AS plan FROM (SELECT DISTINCT blocks FROM tariff_version);

CREATE OR REPLACE TEMP TABLE plan_blocks AS
SELECT plan, row.hours AS hours, list({'upto_kwh': row.upto_kwh, 'price': row.price} ORDER BY k) AS blocks
FROM (SELECT plan, generate_subscripts(blocks, 1) AS k, unnest(blocks) AS row FROM plan)
GROUP BY plan, row.hours;

-- Price lists. A row a block, "block limits × families": where it begins
-- and ends, its price, and what all below it cost (tiyin × 1000). A block that ends where the one before it does holds nothing.
CREATE OR REPLACE TEMP TABLE price_list AS
SELECT blocks, (row_number() OVER (ORDER BY blocks::VARCHAR))::INTEGER AS list FROM (SELECT DISTINCT blocks FROM plan_blocks);

CREATE OR REPLACE TEMP TABLE price AS
WITH unnested AS (
    SELECT list, generate_subscripts(blocks, 1) AS k, unnest(blocks) AS block FROM price_list
), limited AS (
    SELECT u.list, f.families, u.k, u.block.price AS price,
        coalesce(least(u.block.upto_kwh::HUGEINT * 1000 * f.families, 9_000_000_000_000_000_000), 9_000_000_000_000_000_000) AS upto_wh
    FROM unnested u CROSS JOIN (SELECT DISTINCT families FROM version) f
), bounded AS (
    SELECT *, coalesce(max(upto_wh) OVER (below ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS above_wh
    FROM limited WINDOW below AS (PARTITION BY list, families ORDER BY k)
)
SELECT list, families, above_wh::BIGINT AS above_wh, upto_wh::BIGINT AS upto_wh, price, try_cast(coalesce(sum(
    (upto_wh - above_wh) * price) OVER (below ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS BIGINT) AS base
FROM bounded WHERE upto_wh > above_wh WINDOW below AS (PARTITION BY list, families ORDER BY k);

-- The spans of the day in which each list holds; "also over midnight", absent: the whole day.
CREATE OR REPLACE TEMP TABLE plan_span AS
WITH written AS (
    SELECT b.plan, l.list, unnest(string_split(coalesce(b.hours, '00:00-24:00'), ',')) AS span
    FROM plan_blocks b JOIN price_list l ON l.blocks = b.blocks
), read AS (
    SELECT plan, list, since_midnight(substr(span, 1, 5)) AS from_us, since_midnight(substr(span, 7, 5)) AS to_us FROM written
)
SELECT plan, list, from_us, CASE WHEN from_us < to_us THEN to_us ELSE 86_400_000_000 END AS to_us FROM read
UNION ALL SELECT plan, list, 0, to_us FROM read WHERE to_us < from_us AND to_us > 0;

-- "an account version [takes effect] at effective_at; one that arrives when the account's last measured register is already
-- later takes effect there instead".
CREATE OR REPLACE TEMP TABLE version_effect AS
WITH late AS (
    SELECT v.a, v.ordinal, max(r.at_us) AS at_us
    FROM register r JOIN version v ON v.a = r.a AND NOT v.is_first AND r.ordinal < v.ordinal AND r.at_us > v.own_at
    GROUP BY v.a, v.ordinal
)
SELECT v.a, v.ordinal, v.own_at, v.tariff, v.families,
    CASE WHEN v.is_first THEN -9_000_000_000_000_000_000 ELSE coalesce(late.at_us, v.own_at) END AS effect_at
FROM version v LEFT JOIN late ON late.a = v.a AND late.ordinal = v.ordinal;

-- "A tariff version takes effect at 00:00 Asia/Tashkent of effective_on …" likewise, for each account by itself.
CREATE OR REPLACE TEMP TABLE tariff_effect AS
WITH used AS (
    SELECT v.a, t.ordinal, t.tariff, t.own_at, p.plan, min(v.ordinal) FILTER (v.is_first) OVER (PARTITION BY v.a) AS arrived
    FROM version v
    JOIN who w ON w.a = v.a
    JOIN tariff_version t ON t.partition = w.partition AND t.tariff = v.tariff
    JOIN plan p ON p.blocks = t.blocks
    QUALIFY row_number() OVER (PARTITION BY v.a, t.ordinal ORDER BY v.ordinal) = 1
), late AS (
    SELECT u.a, u.ordinal, max(r.at_us) AS at_us
    FROM register r JOIN used u ON u.a = r.a AND u.ordinal > u.arrived AND r.ordinal < u.ordinal AND r.at_us > u.own_at
    GROUP BY u.a, u.ordinal
)
SELECT u.a, u.ordinal, u.tariff, u.own_at, u.plan, coalesce(late.at_us, u.own_at) AS effect_at
FROM used u LEFT JOIN late ON late.a = u.a AND late.ordinal = u.ordinal;

-- The times of the day at which another list may come into force, for the accounts that have or had such a tariff. They have a
-- schedule of many moments: it is looked up by ASOF JOIN, which would be slower for all the others.
CREATE OR REPLACE TEMP TABLE edge AS
SELECT DISTINCT t.a, s.from_us
FROM tariff_effect t JOIN plan_span s USING (plan)
WHERE plan IN (SELECT plan FROM plan_span GROUP BY plan HAVING count(DISTINCT list) > 1);

CREATE OR REPLACE TEMP TABLE by_hours AS SELECT DISTINCT a FROM edge;

-- What is in force at moments (a, as_of, at_us), as of the arrival `as_of`: of what had arrived by then.
CREATE OR REPLACE TEMP MACRO in_force(moments) AS TABLE
WITH of_account AS (
    SELECT m.a, m.as_of, m.at_us, max_by({'tariff': v.tariff, 'families': v.families}, (v.own_at, v.ordinal)) AS version
    FROM (SELECT DISTINCT a, as_of, at_us FROM query_table(moments)) m
    JOIN version_effect v ON v.a = m.a AND v.ordinal <= m.as_of AND v.effect_at <= m.at_us
    GROUP BY m.a, m.as_of, m.at_us
), of_tariff AS (
    SELECT o.a, o.as_of, o.at_us, o.version, max_by(t.plan, (t.own_at, t.ordinal)) AS plan
    FROM of_account o
    JOIN tariff_effect t ON t.a = o.a AND t.tariff = o.version.tariff AND t.ordinal <= o.as_of AND t.effect_at <= o.at_us
    GROUP BY o.a, o.as_of, o.at_us, o.version
)
SELECT f.a, f.as_of, f.at_us, f.version.tariff AS tariff, f.version.families AS families, s.list
FROM of_tariff f
JOIN plan_span s ON s.plan = f.plan AND s.from_us <= f.at_us - day_of(f.at_us) AND f.at_us - day_of(f.at_us) < s.to_us;

-- The schedule of an account as all versions together make it: what is in force from its first register on. Settled steps
-- need no more: a version that arrived after one took effect at its end or later.
CREATE OR REPLACE TEMP TABLE schedule_moment AS
WITH started AS (
    SELECT a, min(at_us) AS at_us FROM register WHERE from_at IS NULL GROUP BY a
), day AS (
    SELECT a, unnest(generate_series(day_of(min(at_us)), day_of(max(at_us)), 86_400_000_000)) AS day
    FROM register SEMI JOIN by_hours USING (a) GROUP BY a
), effect AS (
    SELECT a, effect_at FROM version_effect
    UNION SELECT a, effect_at FROM tariff_effect
    UNION SELECT a, day + from_us FROM day JOIN edge USING (a)
)
SELECT a, 9_000_000_000_000_000_000 AS as_of, at_us FROM started
UNION SELECT e.a, 9_000_000_000_000_000_000, e.effect_at FROM effect e JOIN started s ON s.a = e.a AND e.effect_at > s.at_us;

CREATE OR REPLACE TEMP TABLE schedule AS
WITH changes AS (
    SELECT *, (list, families) IS DISTINCT FROM lag((list, families)) OVER (PARTITION BY a ORDER BY at_us) AS cut
    FROM in_force('schedule_moment')
    QUALIFY (tariff, list, families) IS DISTINCT FROM lag((tariff, list, families)) OVER (PARTITION BY a ORDER BY at_us)
)
SELECT a, at_us AS from_at, tariff, families, list,
    coalesce(lead(at_us) OVER w, 9_000_000_000_000_000_000) AS until_at,
    coalesce(min(CASE WHEN cut THEN at_us END) OVER (w ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 9_000_000_000_000_000_000)
        AS price_until_at  -- the next boundary that is not the start of a month
FROM changes WINDOW w AS (PARTITION BY a ORDER BY at_us);

-- Every settled step, with what is in force at its start and whether a boundary lies in it (t0 < b ≤ t1).
CREATE OR REPLACE TEMP TABLE step AS
WITH priced AS (
    SELECT r.*, s.tariff, s.families, s.list, s.price_until_at
    FROM register r
    JOIN (FROM schedule ANTI JOIN by_hours USING (a)) s ON s.a = r.a AND s.from_at <= r.from_at AND r.from_at < s.until_at
    UNION ALL
    SELECT r.*, s.tariff, s.families, s.list, s.price_until_at
    FROM (FROM register SEMI JOIN by_hours USING (a)) r ASOF JOIN schedule s ON s.a = r.a AND s.from_at <= r.from_at
)
SELECT * EXCLUDE (price_until_at), month_of(from_at) AS month, month_of(at_us) <> month OR price_until_at < at_us AS is_cut
FROM priced
WHERE at_us > from_at;

CREATE OR REPLACE TEMP TABLE cut_step AS
SELECT s.*, s.total_wh - s.usage_wh AS from_total_wh, m.modulus_wh
FROM step s JOIN modulus m ON m.a = s.a AND m.since < s.ordinal AND s.ordinal <= m.until
WHERE s.is_cut;
