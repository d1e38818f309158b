-- What became of each: `theirs` and `ours` as they were paired. Of ours only what is in the ledger counts; a payment that was
-- refused or is held is missing here, with the reason. In the channel of the list, where the two do not say the same.
CREATE OR REPLACE TEMP TABLE outcome AS
WITH reversed AS (
    SELECT account_id, reverses AS payment_id FROM ours WHERE reverses IS NOT NULL AND status = 'credited'
), placed AS (
    SELECT t, o, t IS NOT NULL AS has_theirs, o IS NOT NULL AND ours.status = 'credited' AS has_ours,
        theirs."row", theirs.copies, ours.partition, ours.ordinal, ours.status,
        coalesce(theirs.payment_id, ours.payment_id) AS payment_id, coalesce(theirs.account_id, ours.account_id) AS account_id,
        coalesce(theirs.paid_at, ours.paid_at) AS paid_at, coalesce(theirs.amount_tiyin, ours.amount_tiyin) AS amount_tiyin,
        CASE WHEN t IS NULL THEN ours.channel ELSE theirs.channel END AS channel,
        CASE WHEN t IS NULL THEN ours.reverses ELSE theirs.reverses END AS reverses,
        CASE WHEN theirs.reverses IS NULL THEN theirs.amount_tiyin ELSE -theirs.amount_tiyin END AS theirs_tiyin,
        CASE WHEN ours.reverses IS NULL THEN ours.amount_tiyin ELSE -ours.amount_tiyin END AS ours_tiyin,
        CASE
            WHEN t IS NULL THEN NULL WHEN o IS NULL THEN 'never_arrived' WHEN ours.status <> 'credited' THEN ours.reason
        END AS reason,
        tashkent(theirs.paid_at)::DATE BETWEEN getvariable('first_day') AND getvariable('last_day') AS theirs_in_days,
        tashkent(ours.paid_at)::DATE BETWEEN getvariable('first_day') AND getvariable('last_day') AS ours_in_days,
        list_filter(
            [
                {'column': 'account_id', 'theirs': theirs.account_id, 'ours': ours.account_id},
                {'column': 'paid_at', 'theirs': utc_text(theirs.paid_at), 'ours': utc_text(ours.paid_at)},
                {'column': 'amount_tiyin', 'theirs': theirs.amount_tiyin::VARCHAR, 'ours': ours.amount_tiyin::VARCHAR},
                {'column': 'channel', 'theirs': theirs.channel, 'ours': ours.channel},
                {'column': 'reverses', 'theirs': theirs.reverses, 'ours': ours.reverses}
            ],
            lambda side: side.theirs IS DISTINCT FROM side.ours
        ) AS differs,
        ours.status = 'credited'
            AND (ours.account_id, ours.payment_id) IN (SELECT (account_id, payment_id) FROM reversed) AS is_reversed
    FROM theirs LEFT JOIN pair USING (t) FULL JOIN ours USING (o)
)
SELECT *,
    CASE
        WHEN NOT has_theirs THEN 'missing_there' WHEN NOT has_ours THEN 'missing_here'
        WHEN len(differs) > 0 THEN 'differing' ELSE 'matched'
    END AS outcome
FROM placed
WHERE CASE
        WHEN has_theirs THEN theirs_in_days OR (has_ours AND ours_in_days)
        ELSE has_ours AND ours_in_days AND EXISTS (FROM listed l WHERE l.channel IS NOT DISTINCT FROM placed.channel)
    END;

-- Counts and totals of each channel; a reversal counts as less money.
CREATE OR REPLACE TEMP TABLE channel_total AS
SELECT
    l.channel,
    count(*) FILTER (has_theirs) AS theirs,
    coalesce(sum(theirs_tiyin) FILTER (has_theirs), 0) AS theirs_tiyin,
    count(*) FILTER (has_ours) AS ours,
    coalesce(sum(ours_tiyin) FILTER (has_ours), 0) AS ours_tiyin,
    count(*) FILTER (outcome = 'matched') AS matched,
    coalesce(sum(theirs_tiyin) FILTER (outcome = 'matched'), 0) AS matched_tiyin,
    count(*) FILTER (outcome = 'differing') AS differing,
    coalesce(sum(theirs_tiyin) FILTER (outcome = 'differing'), 0) AS differing_theirs_tiyin,
    coalesce(sum(ours_tiyin) FILTER (outcome = 'differing'), 0) AS differing_ours_tiyin,
    count(*) FILTER (outcome = 'missing_here') AS missing_here,
    coalesce(sum(theirs_tiyin) FILTER (outcome = 'missing_here'), 0) AS missing_here_tiyin,
    count(*) FILTER (outcome = 'missing_here' AND status = 'refused') AS refused,
    count(*) FILTER (outcome = 'missing_here' AND status = 'held') AS held,
    count(*) FILTER (outcome = 'missing_there') AS missing_there,
    coalesce(sum(ours_tiyin) FILTER (outcome = 'missing_there'), 0) AS missing_there_tiyin,
    count(*) FILTER (is_reversed) AS reversed,
    coalesce(sum(ours_tiyin) FILTER (is_reversed), 0) AS reversed_tiyin,
    coalesce(sum(copies) FILTER (has_theirs), 0) AS repeated,
    coalesce(sum(copies * theirs_tiyin) FILTER (has_theirs), 0) AS repeated_tiyin
FROM listed l LEFT JOIN outcome ON l.channel IS NOT DISTINCT FROM outcome.channel
GROUP BY l.channel;
