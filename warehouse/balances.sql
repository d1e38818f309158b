-- The balances after a load: the old ones, and what the load's own entries, forecasts and supply states change.
-- {{entry}} and {{forecast}} stand for the rows that the load took in. The balance is the last entry's; the sums by kind are
-- kept beside it, so that the expectations can hold one against the other.
WITH there_are AS (
    SELECT DISTINCT account_id, partition
    FROM journal.account a
    WHERE NOT EXISTS (
        FROM events.refused r WHERE r.record_kind = 'account' AND r.partition = a.partition AND r.ordinal = a.ordinal
    )
), entry AS (
    SELECT
        account_id,
        any_value(partition) AS partition,
        count(*) AS entries,
        max((ordinal, n)) AS last,
        max_by(balance_tiyin, (ordinal, n)) AS balance_tiyin,
        sum(usage_wh)::BIGINT AS usage_wh,
        coalesce(sum(amount_tiyin) FILTER (kind = 'opening'), 0)::BIGINT AS opening_tiyin,
        coalesce(sum(amount_tiyin) FILTER (kind = 'payment'), 0)::BIGINT AS payment_tiyin,
        coalesce(sum(amount_tiyin) FILTER (kind = 'reversal'), 0)::BIGINT AS reversal_tiyin,
        coalesce(sum(amount_tiyin) FILTER (kind = 'adjustment'), 0)::BIGINT AS adjustment_tiyin,
        coalesce(sum(amount_tiyin) FILTER (kind IN ('usage', 'correction')), 0)::BIGINT AS charged_tiyin,
        max_by((to_at, to_wh), (ordinal, n)) FILTER (kind = 'usage' AND basis <> 'estimated') AS measured
    FROM ({entry})
    GROUP BY account_id
), forecast AS (
    SELECT account_id, max_by((forecast_at, usage_wh_per_day, depletes_at), (ordinal, n)) AS made
    FROM ({forecast})
    GROUP BY account_id
), supply AS (
    SELECT account_id, max_by((state, changed_at), (ordinal, n)) AS now
    FROM events.supply_state
    GROUP BY account_id
)
SELECT
    account_id,
    coalesce(there_are.partition, old.partition, entry.partition) AS partition,
    coalesce(entry.balance_tiyin, old.balance_tiyin, 0) AS balance_tiyin,
    coalesce(old.entries, 0) + coalesce(entry.entries, 0) AS entries,
    coalesce(entry.last[1], old.last_ordinal) AS last_ordinal,
    coalesce(entry.last[2], old.last_n) AS last_n,
    coalesce(old.usage_wh, 0) + coalesce(entry.usage_wh, 0) AS usage_wh,
    coalesce(old.opening_tiyin, 0) + coalesce(entry.opening_tiyin, 0) AS opening_tiyin,
    coalesce(old.payment_tiyin, 0) + coalesce(entry.payment_tiyin, 0) AS payment_tiyin,
    coalesce(old.reversal_tiyin, 0) + coalesce(entry.reversal_tiyin, 0) AS reversal_tiyin,
    coalesce(old.adjustment_tiyin, 0) + coalesce(entry.adjustment_tiyin, 0) AS adjustment_tiyin,
    coalesce(old.charged_tiyin, 0) + coalesce(entry.charged_tiyin, 0) AS charged_tiyin,
    coalesce(entry.measured[1], old.measured_at) AS measured_at,
    coalesce(entry.measured[2], old.measured_wh) AS measured_wh,
    supply.now[1] AS supply_state,
    supply.now[2] AS supply_changed_at,
    if(forecast.made IS NULL, old.forecast_at, forecast.made[1]) AS forecast_at,
    if(forecast.made IS NULL, old.usage_wh_per_day, forecast.made[2]) AS usage_wh_per_day,
    if(forecast.made IS NULL, old.depletes_at, forecast.made[3]) AS depletes_at
FROM there_are
FULL JOIN main.balances old USING (account_id)
FULL JOIN entry USING (account_id)
LEFT JOIN forecast USING (account_id)
LEFT JOIN supply USING (account_id)
