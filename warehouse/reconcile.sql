-- Recompute every balance from the ledger, with nothing but the entries: a row for each account where something does not agree.
-- An account's balance is the sum of the amounts of its entries, its usage the sum of theirs, and each entry's balance is the
-- balance before it plus its amount. An account without entries has a balance of 0.
WITH links AS (
    SELECT
        account_id, amount_tiyin, usage_wh,
        balance_tiyin - amount_tiyin IS DISTINCT FROM
            coalesce(lag(balance_tiyin) OVER (PARTITION BY account_id ORDER BY ordinal, n), 0) AS broken
    FROM events.entry
), recomputed AS (
    SELECT
        account_id,
        sum(amount_tiyin)::BIGINT AS recomputed_tiyin,
        sum(usage_wh)::BIGINT AS recomputed_wh,
        count_if(broken)::BIGINT AS broken_links
    FROM links
    GROUP BY account_id
)
SELECT
    account_id,
    b.balance_tiyin,
    coalesce(r.recomputed_tiyin, 0) AS recomputed_tiyin,
    b.usage_wh,
    coalesce(r.recomputed_wh, 0) AS recomputed_wh,
    coalesce(r.broken_links, 0) AS broken_links
FROM main.balances b FULL JOIN recomputed r USING (account_id)
WHERE b.balance_tiyin IS DISTINCT FROM coalesce(r.recomputed_tiyin, 0)
    OR b.usage_wh IS DISTINCT FROM coalesce(r.recomputed_wh, 0)
    OR r.broken_links > 0
