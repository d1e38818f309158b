"""Names as numbers: each text its number, from 0 in order of first appearance.

Readings name the same hundred thousand meters over and over, and twenty million look-ups in a Python dict cost more
than everything else that happens to them. So this is an open-addressed table over Arrow's own bytes, compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]
Ends = NDArray[np.int64]

_FNV_BASIS, _FNV_PRIME, _32_BITS = 2_166_136_261, 16_777_619, 0xFFFF_FFFF  # Fowler, Noll, Vo: FNV-1a


@njit(cache=True, nogil=True)
def _hash(data: Bytes, start: int, end: int) -> int:
    value = _FNV_BASIS
    for at in range(start, end):
        value = ((value ^ int(data[at])) * _FNV_PRIME) & _32_BITS
    return value


@njit(cache=True, nogil=True)
def _is_same(data: Bytes, start: int, end: int, known: Bytes, known_start: int, known_end: int) -> bool:
    if end - start != known_end - known_start:
        return False
    for i in range(end - start - 1, -1, -1):  # noqa: SIM110 (compiled, a loop is faster than `all`). Names differ at their ends
        if data[start + i] != known[known_start + i]:
            return False
    return True


@njit(cache=True, nogil=True)
def _number_all(
    data: Bytes, offsets: Numbers, slots: Numbers, known: Bytes, ends: Ends, count: int, numbers: Numbers
) -> int:
    """Number each text; new ones go to the end of `known`. There is room for all. The count of names afterwards.

    Files name meters in the same order again and again, so the name after the last one is tried first.
    """
    mask = slots.size - 1
    guess = 0
    for i in range(numbers.size):
        start, end = offsets[i], offsets[i + 1]
        if guess < count and _is_same(data, start, end, known, ends[guess], ends[guess + 1]):
            numbers[i] = guess
            guess += 1
            continue
        slot = _hash(data, start, end) & mask
        while slots[slot] >= 0 and not _is_same(data, start, end, known, ends[slots[slot]], ends[slots[slot] + 1]):
            slot = (slot + 1) & mask
        if slots[slot] < 0:
            at = ends[count]
            for byte in range(start, end):
                known[at] = data[byte]
                at += 1
            ends[count + 1] = at
            slots[slot] = count
            count += 1
        numbers[i] = slots[slot]
        guess = slots[slot] + 1
    return count


@njit(cache=True, nogil=True)
def _fill_slots(slots: Numbers, known: Bytes, ends: Ends, count: int) -> None:
    mask = slots.size - 1
    for number in range(count):
        slot = _hash(known, ends[number], ends[number + 1]) & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = number


def bytes_of(texts: pa.StringArray) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The bytes and the offsets into them of an array of text, as they lie in memory."""
    _, offsets, data = texts.buffers()
    if len(texts) == 0 or offsets is None:
        return np.zeros(1, np.uint8), np.zeros(1, np.int32)
    window = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8), window


class Names:
    """A growing list of distinct texts, each known by its number."""

    def __init__(self) -> None:
        self._count = 0
        self._slots = np.full(1 << 10, -1, np.int32)
        self._known = np.zeros(1 << 12, np.uint8)
        self._ends = np.zeros(1 << 9, np.int64)  # the i-th name ends at _ends[i + 1]
        self._texts: pa.StringArray | None = None

    def __len__(self) -> int:
        return self._count

    def numbers(self, texts: pa.StringArray) -> NDArray[np.int32]:
        """The number of each text, none of which is null. What was not known yet is from now on."""
        data, offsets = bytes_of(texts)
        self._make_room(len(texts), int(offsets[-1] - offsets[0]))
        numbers = np.empty(len(texts), np.int32)
        before = self._count
        self._count = int(_number_all(data, offsets, self._slots, self._known, self._ends, before, numbers))
        if self._count != before:
            self._texts = None
        return numbers

    def texts(self) -> pa.StringArray:
        """All names, by number."""
        if self._texts is None:
            ends = self._ends[: self._count + 1]
            offsets, data = pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(self._known[: ends[-1]].copy())
            self._texts = pa.StringArray.from_buffers(self._count, offsets, data)
        return self._texts

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All names, to be kept and restored."""
        ends = self._ends[: self._count + 1]
        return {"ends": ends, "known": self._known[: ends[-1]]}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The names that were kept, with the same numbers, instead of those known."""
        self._ends, self._known, self._texts = arrays["ends"], arrays["known"], None
        self._count = len(self._ends) - 1
        self._slots = np.full(1 << max(2 * self._count, 2).bit_length(), -1, np.int32)
        _fill_slots(self._slots, self._known, self._ends, self._count)

    def _make_room(self, texts: int, size: int) -> None:
        most = self._count + texts
        if most + 1 > self._ends.size:
            self._ends = _grown(self._ends, most + 1)
        if self._ends[self._count] + size > self._known.size:
            self._known = _grown(self._known, int(self._ends[self._count]) + size)
        if 2 * most > self._slots.size:
            self._slots = np.full(1 << (2 * most).bit_length(), -1, np.int32)
            _fill_slots(self._slots, self._known, self._ends, self._count)


def _grown(array: NDArray[Any], least: int) -> NDArray[Any]:
    """The array with room for at least so many, and a half more, so that growing is rare."""
    larger = np.zeros(least + least // 2, array.dtype)
    larger[: array.size] = array
    return larger
