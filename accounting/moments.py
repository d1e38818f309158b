"""Moments as the rules have them (int64 µs since 1970, UTC) and as Python has them. Exact both ways: no float in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
US = timedelta(microseconds=1)
TASHKENT = timezone(timedelta(hours=5), "Asia/Tashkent")  # no summer time


def us_of(moment: datetime) -> int:
    """A moment with its offset, as µs since 1970."""
    return (moment - EPOCH) // US


def moment_of(us: int) -> datetime:
    """µs since 1970 as a moment in UTC."""
    return EPOCH + us * US
