"""Whole numbers, times and dates out of text: the whole value or nothing, compiled over Arrow's own buffers.

A parser that means well is a danger here: `12.7` read as 13, `1e3` as 1000 and a naive time as UTC are all wrong
money. So a value is taken only if all of it is written as the contract says:

    int   [+-]digits, within 64 bits
    time  YYYY-MM-DD, `T` or a space, HH:MM[:SS[.fraction]], then `Z`, ±HH:MM or ±HHMM; what a fraction has beyond µs
    must be 0
    date  YYYY-MM-DD

Each parser fills `values` and `faults` (0 or one of the codes below) for the rows that are `valid`. The parsers of
one row are in this file because Numba's cache does not notice an edit in another one.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int32]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]

NOT_AN_INTEGER, OUT_OF_RANGE, NAIVE_TIME, BAD_TIME, BAD_DATE = 1, 2, 3, 4, 5

_LARGEST = np.iinfo(np.int64).max
_PLUS, _MINUS, _DOT, _COLON, _ZERO, _NINE, _T, _Z, _SPACE = (ord(c) for c in "+-.:09TZ ")
_QUOTE, _COMMA, _CR, _LF = (ord(c) for c in '",\r\n')


@njit(cache=True, nogil=True)
def _read_int(data: Bytes, start: int, end: int) -> tuple[int, int]:
    """(value, fault) of one whole number."""
    at = start
    negative = at < end and data[at] == _MINUS
    if at < end and (data[at] == _PLUS or data[at] == _MINUS):
        at += 1
    if at == end:
        return 0, NOT_AN_INTEGER
    value, too_large = 0, False
    for i in range(at, end):
        digit = int(data[i]) - _ZERO
        if digit < 0 or digit > 9:
            return 0, NOT_AN_INTEGER
        if value > (_LARGEST - digit) // 10:
            too_large, value = True, 0
        value = value * 10 + digit
    if too_large:
        return 0, OUT_OF_RANGE
    return (-value if negative else value), 0


@njit(cache=True, nogil=True)
def _digits(data: Bytes, at: int, count: int, end: int) -> int:
    """The number written in exactly `count` digits at `at`; -1: there is none."""
    if at + count > end:
        return -1
    value = 0
    for i in range(at, at + count):
        digit = int(data[i]) - _ZERO
        if digit < 0 or digit > 9:
            return -1
        value = value * 10 + digit
    return value


@njit(cache=True, nogil=True)
def _read_day(data: Bytes, at: int, end: int) -> tuple[int, bool]:
    """(days since 1970-01-01, whether a date stands at `at`), proleptic Gregorian (Hinnant, "days_from_civil")."""
    year, month, day = _digits(data, at, 4, end), _digits(data, at + 5, 2, end), _digits(data, at + 8, 2, end)
    if year < 1 or month < 1 or month > 12 or day < 1 or data[at + 4] != _MINUS or data[at + 7] != _MINUS:
        return 0, False
    is_leap = (year % 4 == 0 and year % 100 != 0) or year % 400 == 0
    longest = 30 if month in {4, 6, 9, 11} else 31
    if day > (28 + is_leap if month == 2 else longest):
        return 0, False
    shifted_year = year - 1 if month <= 2 else year
    era = shifted_year // 400
    year_of_era = shifted_year - era * 400
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146_097 + day_of_era - 719_468, True


@njit(cache=True, nogil=True)
def _read_fraction(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """(µs, where the fraction ends) of the digits at `at`; -1: none, or finer than a µs."""
    micros, count = 0, 0
    while at < end and _ZERO <= data[at] <= _NINE:
        digit = int(data[at]) - _ZERO
        if count < 6:
            micros = micros * 10 + digit
        elif digit != 0:
            return -1, at
        count += 1
        at += 1
    if count == 0:
        return -1, at
    for _ in range(count, 6):
        micros *= 10
    return micros, at


@njit(cache=True, nogil=True)
def _read_offset(data: Bytes, at: int, end: int) -> tuple[int, bool]:
    """(minutes east of UTC, whether an offset, and nothing more, stands at `at`)."""
    if data[at] == _Z:
        return 0, at + 1 == end
    if data[at] != _PLUS and data[at] != _MINUS:
        return 0, False
    has_colon = end - at == 6 and data[at + 3] == _COLON
    if not has_colon and end - at != 5:
        return 0, False
    hours, minutes = _digits(data, at + 1, 2, end), _digits(data, at + (4 if has_colon else 3), 2, end)
    if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
        return 0, False
    total = hours * 60 + minutes
    return (-total if data[at] == _MINUS else total), True


@njit(cache=True, nogil=True)
def _read_time(data: Bytes, start: int, end: int) -> tuple[int, int]:
    """(µs since 1970 UTC, fault) of one time."""
    day, is_date = _read_day(data, start, end)
    if not is_date or end - start < 16 or (data[start + 10] != _T and data[start + 10] != _SPACE):
        return 0, BAD_TIME
    hour, minute = _digits(data, start + 11, 2, end), _digits(data, start + 14, 2, end)
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or data[start + 13] != _COLON:
        return 0, BAD_TIME
    at, second, micros = start + 16, 0, 0
    if at < end and data[at] == _COLON:
        second = _digits(data, at + 1, 2, end)
        if second < 0 or second > 59:
            return 0, BAD_TIME
        at += 3
        if at < end and data[at] == _DOT:
            micros, at = _read_fraction(data, at + 1, end)
            if micros < 0:
                return 0, BAD_TIME
    if at == end:
        return 0, NAIVE_TIME
    offset, is_offset = _read_offset(data, at, end)
    if not is_offset:
        return 0, BAD_TIME
    minutes = (day * 24 + hour) * 60 + minute - offset
    return (minutes * 60 + second) * 1_000_000 + micros, 0


@njit(cache=True, nogil=True)
def parse_ints(data: Bytes, offsets: Offsets, valid: Flags, values: Ints, faults: Bytes) -> None:
    """Whole numbers: NOT_AN_INTEGER, OUT_OF_RANGE (beyond 64 bits)."""
    for i in range(valid.size):
        if valid[i]:
            values[i], faults[i] = _read_int(data, offsets[i], offsets[i + 1])


@njit(cache=True, nogil=True)
def parse_times(data: Bytes, offsets: Offsets, valid: Flags, values: Ints, faults: Bytes) -> None:
    """Times, in µs: NAIVE_TIME (no offset), BAD_TIME (anything else)."""
    for i in range(valid.size):
        if valid[i]:
            values[i], faults[i] = _read_time(data, offsets[i], offsets[i + 1])


@njit(cache=True, nogil=True)
def parse_dates(data: Bytes, offsets: Offsets, valid: Flags, values: Offsets, faults: Bytes) -> None:
    """Dates, in days: BAD_DATE."""
    for i in range(valid.size):
        if valid[i]:
            values[i], is_date = _read_day(data, offsets[i], offsets[i + 1])
            if not is_date or offsets[i + 1] - offsets[i] != 10:
                faults[i] = BAD_DATE


AT_FIELD, IN_FIELD, IN_QUOTES, AFTER_QUOTE = 0, 1, 2, 3


@njit(cache=True, nogil=True)
def follow_quotes(data: Bytes, state: int, row: int, opened: int) -> tuple[int, int, int]:
    """Go on through a piece of a CSV file: (state, row, the row that opened the last quote)."""
    for i in range(data.size):
        byte = data[i]
        if byte == _QUOTE and state != IN_FIELD:
            if state == AT_FIELD:
                opened = row
            state = AFTER_QUOTE if state == IN_QUOTES else IN_QUOTES
        elif state != IN_QUOTES:
            if byte == _LF:
                row += 1
            state = AT_FIELD if byte in (_COMMA, _LF, _CR) else IN_FIELD
    return state, row, opened
