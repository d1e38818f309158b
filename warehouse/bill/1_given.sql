-- What is given: the accounts under audit, and which arrivals were refused or held. Everything else is recomputed.
-- Times are UTC microseconds (BIGINT), energy Wh, money tiyin. `a` is the account's number in this part of the audit, `ordinal`
-- the place of a record in the account's partition of the journal: the order of arrival.

-- Asia/Tashkent is UTC+5 all year round; a calendar month begins at its midnight.
CREATE OR REPLACE TEMP MACRO month_of(at_us) AS
    epoch_us(date_trunc('month', make_timestamp(at_us + 18_000_000_000))) - 18_000_000_000;
-- The midnight there before a moment, and a clock's time as µs since midnight.
CREATE OR REPLACE TEMP MACRO day_of(at_us) AS
    epoch_us(date_trunc('day', make_timestamp(at_us + 18_000_000_000))) - 18_000_000_000;
CREATE OR REPLACE TEMP MACRO since_midnight(clock) AS
    (substr(clock, 1, 2)::BIGINT * 60 + substr(clock, 4, 2)::BIGINT) * 60_000_000;
-- "r0 + (r1 − r0) · (b − t0) // (t1 − t0), whole numbers, times in µs, floor. (… it must be exact all the same.)"
CREATE OR REPLACE TEMP MACRO register_there(usage_wh, since, elapsed) AS
    (usage_wh::HUGEINT * since::HUGEINT // greatest(elapsed, 1)::HUGEINT)::BIGINT;
-- "cost(w) = Σ (Wh in each block × price_tiyin_per_kwh) // 1000, one floor at the end": all that lies below the block in which w
-- ends (`base`, tiyin × 1000), and what of w lies in it. In 64 bits where they are sure to do, for that is ten times as fast.
CREATE OR REPLACE TEMP MACRO cost(w, above_wh, base, price) AS
    CASE WHEN w - above_wh < 10_000_000_000 AND price < 100_000_000 AND base < 1_000_000_000_000_000_000
    THEN (base + (w - above_wh) * price) // 1000
    ELSE ((base::HUGEINT + (w - above_wh)::HUGEINT * price) // 1000)::BIGINT END;

CREATE OR REPLACE TEMP TABLE who AS
SELECT (row_number() OVER (ORDER BY account_id))::INTEGER AS a, account_id, partition
FROM main.balances
WHERE account_id BETWEEN getvariable('first_account') AND getvariable('last_account');

-- A refused event lies at the arrival that was refused, or at the arrival that did away with a record held before: then the
-- release of that one follows it.
CREATE OR REPLACE TEMP TABLE refused AS
FROM events.refused r ANTI JOIN events.released f ON
    f.partition = r.partition AND f.ordinal = r.ordinal AND f.n = r.n + 1 AND f.outcome = 'refused'
    AND split_part(f.held_id, '-', 1)::INTEGER = r.partition
SELECT r.record_kind, r.partition, r.ordinal;

-- What was held in an account's own partition (an implausible reading, a credit of an unknown account), and until when.
CREATE OR REPLACE TEMP TABLE held AS
SELECT h.record_kind, h.partition, h.ordinal, f.ordinal AS until_ordinal, f.n AS until_n, f.outcome
FROM events.held h LEFT JOIN events.released f ON f.partition = h.partition AND f.held_id = h.partition || '-' || h.ordinal || '-' || h.n;

-- "An account version … identical to one taken (received_at aside): ignored and counted." "A version is whole: an absent
-- column means its default; but opening_* and register_modulus_wh count in the first only."
CREATE OR REPLACE TEMP TABLE version AS
WITH taken AS (
    SELECT
        w.a, v.ordinal, epoch_us(v.effective_at) AS own_at, v.tariff, coalesce(v.families, 1) AS families,
        epoch_us(v.closed_at) AS closed_at, v.closing_register_wh AS closing_wh,
        coalesce(v.opening_balance_tiyin, 0) AS opening_tiyin, v.opening_register_wh AS opening_wh,
        coalesce(v.register_modulus_wh, 1_000_000_000) AS modulus_wh,
        row(v.meter_id, v.district, v.feeder, v.phone, v.language, coalesce(v.supply_class, 'normal'),
            coalesce(v.emergency_credit_tiyin, 0), coalesce(v.max_power_w, 15_000)) AS rest
    FROM journal.account v JOIN who w ON w.account_id = v.account_id AND w.partition = v.partition
    ANTI JOIN refused r ON r.record_kind = 'account' AND r.partition = v.partition AND r.ordinal = v.ordinal
)
SELECT * EXCLUDE (rest), ordinal = min(ordinal) OVER (PARTITION BY a) AS is_first
FROM taken
QUALIFY row_number() OVER (
    PARTITION BY a, own_at, tariff, families, closed_at, closing_wh, opening_tiyin, opening_wh, modulus_wh, rest ORDER BY ordinal
) = 1;

CREATE OR REPLACE TEMP TABLE exchange AS
SELECT
    w.a, x.ordinal, epoch_us(x.exchanged_at) AS at_us, x.old_register_wh AS old_wh, x.new_register_wh AS new_wh,
    x.register_modulus_wh AS modulus_wh
FROM journal.meter_exchange x JOIN who w ON w.account_id = x.account_id AND w.partition = x.partition
ANTI JOIN refused r ON r.record_kind = 'meter_exchange' AND r.partition = x.partition AND r.ordinal = x.ordinal
QUALIFY row_number() OVER (
    PARTITION BY w.a, x.exchanged_at, x.old_meter_id, x.old_register_wh, x.new_meter_id, x.new_register_wh, x.register_modulus_wh
    ORDER BY x.ordinal
) = 1;

-- "Without register_modulus_wh the old modulus stays": which modulus, for registers that arrive after `since` up to `until`.
CREATE OR REPLACE TEMP TABLE modulus AS
WITH changes AS (
    SELECT a, -1 AS since, modulus_wh FROM version WHERE is_first
    UNION ALL SELECT a, ordinal, modulus_wh FROM exchange WHERE modulus_wh IS NOT NULL
)
SELECT a, since, lead(since, 1, 9_000_000_000_000_000_000) OVER (PARTITION BY a ORDER BY since) AS until, modulus_wh FROM changes;
