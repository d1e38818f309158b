-- A channel's own list of payments held against ours. `given` are the rows of the file; `first_day`, `last_day` the days of
-- Asia/Tashkent it speaks for; `channel` the channels. Statements end in a semicolon at the end of a line.

-- Theirs: each payment of the file once. One that stands in it again, the same in every column, is counted as a copy.
CREATE OR REPLACE TEMP TABLE theirs AS
SELECT *, row_number() OVER (ORDER BY payment_id, account_id, paid_at, amount_tiyin, channel, reverses) AS t
FROM (
    SELECT payment_id, account_id, paid_at, amount_tiyin, channel, reverses, min("row") AS "row", count(*) - 1 AS copies
    FROM given GROUP BY payment_id, account_id, paid_at, amount_tiyin, channel, reverses
);

CREATE OR REPLACE TEMP TABLE listed AS SELECT DISTINCT channel FROM theirs UNION SELECT channel FROM asked;

-- What was refused of payments, and what is held still, by content. A row of a file that could not be understood never became
-- a payment; what can be read of it tells which one it was.
CREATE OR REPLACE TEMP TABLE not_taken AS
SELECT
    record ->> 'payment_id' AS payment_id, record ->> 'account_id' AS account_id,
    try_cast(record ->> 'paid_at' AS TIMESTAMPTZ) AS paid_at, try_cast(record ->> 'amount_tiyin' AS BIGINT) AS amount_tiyin,
    record ->> 'channel' AS channel, record ->> 'reverses' AS reverses, status, reason, partition, ordinal,
    (partition, ordinal) IN (SELECT (partition, ordinal) FROM journal.unreadable) AS unreadable
FROM (
    SELECT 'refused' AS status, record, record_kind, reason, partition, ordinal FROM main.refused
    UNION ALL SELECT 'held', record, record_kind, reason, partition, ordinal FROM main.held
)
WHERE record_kind = 'payment';

-- Ours: those that may be meant. Every arrival of a content is taken, ignored as a repetition of one that was, refused or
-- held: a content that arrived more often than it was refused or is held is in the ledger.
CREATE OR REPLACE TEMP TABLE ours AS
WITH meant AS (
    SELECT * FROM journal.payment
    WHERE payment_id IN (SELECT payment_id FROM theirs) OR reverses IS NOT NULL
        OR (
            tashkent(paid_at)::DATE BETWEEN getvariable('first_day') AND getvariable('last_day')
            AND EXISTS (FROM listed l WHERE l.channel IS NOT DISTINCT FROM payment.channel)
        )
), arrived AS (
    SELECT payment_id, account_id, paid_at, amount_tiyin, channel, reverses, count(*) AS arrivals,
        min((partition, ordinal)) AS place
    FROM meant GROUP BY ALL
), stopped AS (
    SELECT payment_id, account_id, paid_at, amount_tiyin, channel, reverses, count(*) AS stops,
        count(*) FILTER (status = 'held') AS waits, max_by(reason, ordinal) AS reason
    FROM not_taken WHERE NOT unreadable GROUP BY ALL
), judged AS (
    SELECT a.payment_id, a.account_id, a.paid_at, a.amount_tiyin, a.channel, a.reverses, a.place[1] AS partition,
        a.place[2] AS ordinal, s.reason,
        CASE
            WHEN arrivals > coalesce(stops, 0) THEN 'credited' WHEN waits > 0 THEN 'held' ELSE 'refused'
        END AS status
    FROM arrived a LEFT JOIN stopped s
        ON a.payment_id = s.payment_id AND a.account_id = s.account_id AND a.paid_at = s.paid_at
        AND a.amount_tiyin = s.amount_tiyin AND a.channel IS NOT DISTINCT FROM s.channel
        AND a.reverses IS NOT DISTINCT FROM s.reverses
    UNION ALL BY NAME
    SELECT payment_id, account_id, paid_at, amount_tiyin, channel, reverses, min(partition) AS partition,
        min(ordinal) AS ordinal, max(reason) AS reason, 'refused' AS status
    FROM not_taken WHERE unreadable AND payment_id IN (SELECT payment_id FROM theirs)
    GROUP BY payment_id, account_id, paid_at, amount_tiyin, channel, reverses
)
SELECT *,
    row_number() OVER (ORDER BY payment_id, account_id, paid_at, amount_tiyin, channel, reverses, partition, ordinal) AS o
FROM judged;

CREATE OR REPLACE TEMP TABLE pair (t BIGINT, o BIGINT);
