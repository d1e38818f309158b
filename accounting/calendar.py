"""The calendar of Asia/Tashkent (UTC+5, no summer time) over UTC microseconds: days, weekdays, months.

Months are numbered year · 12 + month − 1, days since 1970-01-01. The arithmetic is the proleptic Gregorian calendar's
(Hinnant, "chrono-compatible low-level date algorithms").
"""

from __future__ import annotations

from accounting.compiled import compiled

US_PER_MINUTE = 60_000_000
US_PER_HOUR = 60 * US_PER_MINUTE
US_PER_DAY = 24 * US_PER_HOUR
UTC_OFFSET_US = 5 * US_PER_HOUR
QUARTER_US = 15 * US_PER_MINUTE


@compiled
def day_of(at: int) -> int:
    """The local day that a moment lies in."""
    return (at + UTC_OFFSET_US) // US_PER_DAY


@compiled
def day_start(day: int) -> int:
    """The moment a local day begins."""
    return day * US_PER_DAY - UTC_OFFSET_US


@compiled
def iso_weekday(day: int) -> int:
    """1 for Monday … 7 for Sunday."""
    return (day + 3) % 7 + 1


@compiled
def month_of(at: int) -> int:
    """The local month that a moment lies in."""
    z = (at + UTC_OFFSET_US) // US_PER_DAY + 719_468
    era = z // 146_097
    day_of_era = z - era * 146_097
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153  # months from March
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    return year * 12 + month - 1


@compiled
def month_start(month: int) -> int:
    """The moment a local month begins."""
    year, number = month // 12, month % 12 + 1
    if number <= 2:
        year -= 1
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * (number - 3 if number > 2 else number + 9) + 2) // 5
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return day_start(era * 146_097 + day_of_era - 719_468)
