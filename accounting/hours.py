"""Hours of the day, as a tariff's row names them: `06:00-09:00,17:00-22:00`, also over midnight (`22:00-06:00`), by the
clocks of Asia/Tashkent and to the minute.

The rows of one tariff version with the same hours are one list of blocks; all the hours of a version together are the day,
each minute of it once. A version without any hours holds the whole day.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

MINUTES_A_DAY = 24 * 60
_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)", re.ASCII)
Span = tuple[int, int]  # minutes of the day, the first and the one after the last
Block = TypeVar("Block")


def parse_hours(text: str | None) -> list[Span]:
    """The minutes that hours name; those over midnight are two spans. None is the whole day. Raises ValueError."""
    if text is None:
        return [(0, MINUTES_A_DAY)]
    found: list[Span] = []
    for part in text.split(","):
        written = _SPAN.fullmatch(part)
        if written is None:
            raise ValueError(f"{part!r} is no span of hours: write it as 06:00-09:00")
        hour, minute, to_hour, to_minute = written.groups()
        first = int(hour) * 60 + int(minute)
        end = MINUTES_A_DAY if to_hour is None else int(to_hour) * 60 + int(to_minute)
        if first == end:
            raise ValueError(f"{part!r} begins where it ends: the whole day is 00:00-24:00")
        found += [(first, end)] if first < end else [(first, MINUTES_A_DAY), (0, end)]
    return [span for span in found if span[0] < span[1]]


def is_hours(text: str) -> bool:
    """Whether a text is hours of the day."""
    try:
        parse_hours(text)
    except ValueError:
        return False
    return True


def by_hours(hours: Sequence[str | None], blocks: Sequence[Block]) -> dict[str | None, tuple[Block, ...]]:
    """Blocks as lists by the hours they hold in, which are one each; where there are none at all, all hold all day."""
    found: dict[str | None, tuple[Block, ...]] = {}
    for text, block in zip(hours or (None,) * len(blocks), blocks, strict=True):
        found[text] = (*found.get(text, ()), block)
    return found


def gaps_and_overlaps(hours: Iterable[str | None]) -> tuple[list[Span], list[Span]]:
    """The spans of the day that none of these hours name, and those that are named more than once."""
    named = [0] * MINUTES_A_DAY
    for text in hours:
        for first, end in parse_hours(text):
            for minute in range(first, end):
                named[minute] += 1
    return _spans([count == 0 for count in named]), _spans([count > 1 for count in named])


def _spans(wanted: Sequence[bool]) -> list[Span]:
    found: list[Span] = []
    for minute in (m for m, is_wanted in enumerate(wanted) if is_wanted):
        if found and found[-1][1] == minute:
            found[-1] = (found[-1][0], minute + 1)
        else:
            found.append((minute, minute + 1))
    return found
