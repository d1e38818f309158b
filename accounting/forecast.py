"""Depletion: how fast an account uses energy, and when its credit will run out.

The level of use is an exponential mean of whole days (half-life 5 days; a plain mean while there are few), its
variance that of a day around the level (half-life 7 days, begun at 25 % of the level). Credit is walked through the
tariff's blocks from where the month stands, over the month's turn and every change of price known by now. Where prices
change with the hour, a day's use is reckoned even over its hours, each charged at its own price.
`depletes_at` is reckoned with care: at 1.05 · level + 1.4 deviations a day, the margin measured on real households
for three days' notice in 95 of 100 cases; `latest_at` at the level itself, `earliest_at` at twice the care. Floats
are used here, and no money comes of them; only + − × ÷ and √, which are the same to the last bit on every machine.
"""

from __future__ import annotations

from math import sqrt

from accounting.calendar import US_PER_DAY, US_PER_HOUR, month_of, month_start
from accounting.compiled import compiled
from accounting.ledger import Ledger, take_count
from accounting.state import CONNECTED, DISCONNECT_PENDING, FOREVER, NONE, STARTED, Account
from accounting.tariffs import Book, cost_between, next_edge, price_at

HORIZON_US = 400 * US_PER_DAY
LEVEL_WEIGHT = 0.12944943670387588  # 1 − 2^(−1/5)
VARIANCE_WEIGHT = 0.09427613637027254  # 1 − 2^(−1/7)
PRIOR_DEVIATION = 0.25
LEVEL_CARE = 1.05
DEVIATION_CARE = 1.4  # 4.2 deviations of a day over the three days of a notice
MOST_SAMPLES = 100  # from 8 on, the plain mean weighs a day less than the exponential one
SAMPLE_US = 20 * US_PER_HOUR
FIRST_GUESS_US = 6 * US_PER_HOUR


@compiled
def sample_usage(s: Account) -> None:
    """Take the use since the last sample into the level, once there is most of a day of it. Not while the supply is off."""
    elapsed = s.last_at - s.sampled_at
    if s.supply not in (CONNECTED, DISCONNECT_PENDING):
        s.sampled_at, s.sampled_wh = s.last_at, s.usage_wh
        return
    if elapsed < SAMPLE_US:
        return
    day_wh = (s.usage_wh - s.sampled_wh) * (US_PER_DAY / elapsed)
    days = max(1, (elapsed + US_PER_DAY // 2) // US_PER_DAY)
    if s.samples == 0:
        s.level_wh = day_wh
        s.variance = PRIOR_DEVIATION * day_wh * PRIOR_DEVIATION * day_wh
    else:
        keep, keep_variance = 1.0, 1.0
        for _ in range(min(days, 60)):
            keep *= 1.0 - LEVEL_WEIGHT
            keep_variance *= 1.0 - VARIANCE_WEIGHT
        weight = max(1.0 - keep, 1.0 / (s.samples + 1))
        off = day_wh - s.level_wh
        s.level_wh += weight * off
        s.variance += (1.0 - keep_variance) * (off * off * days - s.variance)
    s.samples = min(s.samples + 1, MOST_SAMPLES)
    s.sampled_at, s.sampled_wh = s.last_at, s.usage_wh


@compiled
def guess_level(s: Account) -> None:
    """A new account's level, once six hours of its use are known; the first whole day replaces it."""
    elapsed = s.last_at - s.sampled_at
    if s.level_wh < 0.0 and s.phase == STARTED and elapsed >= FIRST_GUESS_US:
        s.level_wh = (s.usage_wh - s.sampled_wh) * (US_PER_DAY / elapsed)
        s.variance = PRIOR_DEVIATION * s.level_wh * PRIOR_DEVIATION * s.level_wh


@compiled
def careful_rate(s: Account, care: float) -> float:
    """Wh a day to reckon with: care 0 is the level itself, 1 what a notice goes by, 2 twice that margin."""
    return s.level_wh + care * ((LEVEL_CARE - 1.0) * s.level_wh + DEVIATION_CARE * sqrt(s.variance))


@compiled
def affordable_wh(book: Book, price: int, month_wh: int, credit_tiyin: int) -> int:
    """How many Wh, from where the month stands, the credit pays for at this price; FOREVER if they cost nothing."""
    low = month_wh
    for block in range(book.prices[price].first, book.prices[price].end):
        limit, rate = book.blocks[block].limit_wh, book.blocks[block].rate
        if limit <= low:
            continue
        if limit == FOREVER:
            return FOREVER if rate == 0 else low - month_wh + credit_tiyin * 1000 // rate
        block_tiyin = (limit - low) // 1000 * rate + (limit - low) % 1000 * rate // 1000
        if block_tiyin >= credit_tiyin and rate > 0:
            return low - month_wh + min(credit_tiyin * 1000 // rate, limit - low)
        credit_tiyin -= block_tiyin
        low = limit
    return FOREVER


@compiled
def deplete(s: Account, book: Book, rate_wh: float, from_at: int, month_wh: int, credit_tiyin: int) -> int:
    """The moment the credit runs out at so many Wh a day; FOREVER beyond the horizon."""
    if credit_tiyin <= 0:
        return from_at
    if rate_wh <= 0.0:
        return FOREVER
    at, segment, end = from_at, s.segment, book.schedules[s.schedule].end
    while at < from_at + HORIZON_US:
        if at == s.last_at:  # worked out already
            until = s.next_change_at
        else:
            while segment + 1 < end and book.segments[segment + 1].from_at <= at:
                segment += 1
            until = min(month_start(month_of(at) + 1), next_edge(book, segment, at))
            if segment + 1 < end:
                until = min(until, book.segments[segment + 1].from_at)
        price = price_at(book, segment, at)
        used_wh = int(rate_wh * ((until - at) / US_PER_DAY))
        charge = cost_between(book, price, month_wh, month_wh + used_wh)
        if charge >= credit_tiyin:
            pays_wh = min(affordable_wh(book, price, month_wh, credit_tiyin), used_wh)
            return min(at + int(pays_wh / rate_wh * US_PER_DAY), until)
        credit_tiyin -= charge
        at, month_wh = until, (0 if until == month_start(month_of(at) + 1) else month_wh + used_wh)
    return FOREVER


@compiled
def forecast_depletion(s: Account, book: Book, care: float) -> int:
    """When the account's credit runs out,
    from its last measured register on; FOREVER: not within the horizon, or use unknown.
    """
    if s.phase != STARTED:
        return FOREVER
    if s.level_wh < 0.0:
        return FOREVER if s.balance_tiyin > 0 else s.last_at
    rate_wh = careful_rate(s, care)
    from_at, month_wh = s.last_at, s.month_wh
    if s.estimate_at != NONE:
        from_at, month_wh = s.estimate_at, month_wh + s.estimate_usage_wh
        if month_of(from_at) != month_of(s.last_at):
            month_wh = 0
    return deplete(s, book, rate_wh, from_at, month_wh, s.balance_tiyin)


@compiled
def set_pace(s: Account, watch_tiyin: int) -> None:
    """From here on, use at the careful rate or below cannot bring the moment of depletion forward."""
    s.watch_tiyin = watch_tiyin
    s.pace_at, s.pace_wh = s.last_at, s.usage_wh
    s.pace_rate = careful_rate(s, 1.0) / US_PER_DAY


@compiled
def write_forecast(s: Account, account: int, book: Book, ledger: Ledger, at: int) -> None:
    """One forecast event of the account at this moment."""
    f = ledger.forecasts[ledger.size[2]]
    f.ordinal = ledger.cause[0]
    f.account = account
    f.forecast_at = at
    f.balance_tiyin = s.balance_tiyin
    f.usage_wh_per_day = int(s.level_wh) if s.level_wh >= 0.0 else NONE
    f.depletes_at = forecast_depletion(s, book, 1.0)
    f.earliest_at = forecast_depletion(s, book, 2.0)
    f.latest_at = forecast_depletion(s, book, 0.0)
    ledger.size[2] += 1
    f.n = take_count(ledger)
