-- The measured registers of each account: which of them settle onto the end, and the Wh since the account's start at each.

-- Readings held as implausible, and up to which arrival. "Newer than the held one: no usage since the held one: ignored and counted
-- (a stuck register never confirms itself)"; so is, at its time, the same register.
CREATE OR REPLACE TEMP TABLE held_reading AS
SELECT w.a, h.ordinal, epoch_us(r.read_at) AS at_us, r.register_wh, h.outcome,
    coalesce(h.until_ordinal, 9_000_000_000_000_000_000) AS until
FROM held h
JOIN journal.reading r ON r.partition = h.partition AND r.ordinal = h.ordinal
JOIN who w ON w.account_id = r.account_id AND w.partition = r.partition
WHERE h.record_kind = 'reading'
    AND r.account_id BETWEEN getvariable('first_account') AND getvariable('last_account');

CREATE OR REPLACE TEMP TABLE not_taken AS
SELECT partition, ordinal FROM refused WHERE record_kind = 'reading'
UNION SELECT partition, ordinal FROM held WHERE record_kind = 'reading';

CREATE OR REPLACE TEMP TABLE reading AS
SELECT w.a, r.ordinal, epoch_us(r.read_at) AS at_us, r.register_wh, coalesce(r.status = 'estimated', false) AS estimated
FROM journal.reading r
JOIN who w ON w.account_id = r.account_id AND w.partition = r.partition
ANTI JOIN not_taken t ON t.partition = r.partition AND t.ordinal = r.ordinal
WHERE r.account_id BETWEEN getvariable('first_account') AND getvariable('last_account');

-- Every register that was taken, in order of arrival (those of one arrival by `place`), with the last measured one before it:
-- "the newest settled one of the account: its opening register, a measured reading, the old register at an exchange (and from
-- then on the new one)". Its register is that of the row before, unless that one changed nothing.
CREATE OR REPLACE TEMP TABLE arrival AS
WITH arrived AS (
    SELECT a, ordinal, 0 AS place, own_at AS at_us, opening_wh AS register_wh, opening_wh AS next_wh, false AS estimated
    FROM version WHERE is_first AND opening_wh IS NOT NULL
    UNION ALL  -- "newer than the held one: usage since it …: both settle, in order"
    SELECT a, until, 1, at_us, register_wh, register_wh, false FROM held_reading WHERE outcome = 'settled'
    UNION ALL
    SELECT a, ordinal, 2, at_us, register_wh, register_wh, estimated FROM reading r
    ANTI JOIN held_reading h ON
        h.a = r.a AND h.ordinal < r.ordinal AND r.ordinal < h.until AND r.at_us >= h.at_us AND r.register_wh = h.register_wh
        AND NOT r.estimated
    UNION ALL  -- "the old register at exchanged_at, then on from new_register_wh"
    SELECT a, ordinal, 3, at_us, old_wh, new_wh, false FROM exchange
    UNION ALL
    SELECT a, ordinal, 4, closed_at, closing_wh, closing_wh, false FROM version WHERE closing_wh IS NOT NULL AND closed_at IS NOT NULL
)
SELECT *,
    max(CASE WHEN NOT estimated THEN at_us END) OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS last_at,
    CASE WHEN lag(CASE WHEN NOT estimated THEN at_us END) OVER w = last_at THEN lag(next_wh) OVER w END AS last_wh
FROM arrived
WINDOW w AS (PARTITION BY a ORDER BY ordinal, place);

-- What settles onto the end, and the estimates that were taken. "Usage from r0 to r1 is r1 − r0; if that is negative, but
-- r0 ≥ modulus − modulus // 10 and r1 < modulus // 10, the register has rolled over and usage is r1 + modulus − r0; otherwise it
-- went back" (NULL: no such step can have settled).
CREATE OR REPLACE TEMP TABLE onto_end AS
WITH settles AS (
    SELECT * FROM arrival WHERE estimated OR last_at IS NULL OR at_us > last_at OR place >= 3
), looked_up AS (
    SELECT s.a, s.ordinal, s.place, max_by(p.next_wh, (p.ordinal, p.place)) AS last_wh
    FROM arrival p JOIN (SELECT * FROM settles WHERE last_at IS NOT NULL AND last_wh IS NULL) s ON
        s.a = p.a AND s.last_at = p.at_us AND (p.ordinal < s.ordinal OR (p.ordinal = s.ordinal AND p.place < s.place))
    WHERE NOT p.estimated
    GROUP BY s.a, s.ordinal, s.place
), found AS (
    SELECT s.* EXCLUDE (last_wh), coalesce(s.last_wh, l.last_wh) AS last_wh
    FROM settles s LEFT JOIN looked_up l USING (a, ordinal, place)
)
SELECT f.*, CASE WHEN last_at IS NULL THEN 0 WHEN register_wh >= last_wh THEN register_wh - last_wh ELSE b.usage_wh END AS usage_wh
FROM found f LEFT JOIN (
    SELECT f.a, f.ordinal, f.place, f.register_wh + m.modulus_wh - f.last_wh AS usage_wh
    FROM found f JOIN modulus m ON m.a = f.a AND m.since < f.ordinal AND f.ordinal <= m.until
    WHERE f.register_wh < f.last_wh AND f.last_wh >= m.modulus_wh - m.modulus_wh // 10 AND f.register_wh < m.modulus_wh // 10
) b USING (a, ordinal, place);

-- The Wh since the account's start are a register and an offset, which changes where the register leaps: at the start, where it
-- rolled over, and after an exchange.
CREATE OR REPLACE TEMP TABLE leap AS
WITH leaps AS (
    SELECT a, ordinal * 16 + place * 2 AS since, -register_wh AS by_wh FROM onto_end WHERE last_at IS NULL AND NOT estimated
    UNION ALL
    SELECT a, ordinal * 16 + place * 2, usage_wh - (register_wh - last_wh) FROM onto_end WHERE register_wh < last_wh AND NOT estimated
    UNION ALL
    SELECT a, ordinal * 16 + place * 2 + 1, register_wh - next_wh FROM onto_end WHERE next_wh <> register_wh AND NOT estimated
)
SELECT a, since, lead(since, 1, 9_000_000_000_000_000_000) OVER w AS until, (sum(by_wh) OVER w)::BIGINT AS offset_wh
FROM leaps WINDOW w AS (PARTITION BY a ORDER BY since);

CREATE OR REPLACE TEMP TABLE register AS
SELECT o.a, o.ordinal, o.place, o.last_at AS from_at, o.last_wh AS from_wh, o.at_us, o.register_wh, o.next_wh, o.usage_wh,
    o.register_wh + l.offset_wh AS total_wh
FROM onto_end o JOIN leap l ON l.a = o.a AND l.since <= o.ordinal * 16 + o.place * 2 AND o.ordinal * 16 + o.place * 2 < l.until
WHERE NOT o.estimated;
