"""Values as texts, for JSON and for people: one by one, and as columns."""

from __future__ import annotations

import json
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from accounting.moments import EPOCH, moment_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@lru_cache(1 << 12)  # what arrives together is mostly of few moments
def time_text(at: int) -> str:
    """A moment as ISO 8601 in UTC."""
    return moment_of(at).isoformat()


def date_text(day: int) -> str:
    """A day (since 1970-01-01) as ISO 8601."""
    return (EPOCH + timedelta(days=day)).date().isoformat()


def time_texts(moments: NDArray[np.int64] | pa.Array) -> pa.StringArray:
    """Moments (µs) as ISO 8601 in UTC; none where there is none."""
    coded = pc.dictionary_encode(pa.array(moments) if isinstance(moments, np.ndarray) else moments)
    return pa.array([time_text(at) for at in coded.dictionary.to_pylist()], pa.string()).take(coded.indices)


def join(*parts: pa.Array | str) -> pa.StringArray:
    """Texts put together, row by row; none where one of them is none."""
    fewer: list[pa.Array | str] = []  # each of them costs
    for part in parts:
        if isinstance(part, str) and fewer and isinstance(fewer[-1], str):
            fewer[-1] += part
        elif not isinstance(part, str) or part:
            fewer.append(part)
    return pc.binary_join_element_wise(*fewer, "")


def texts_of(ends: NDArray[np.int32], characters: NDArray[np.uint8]) -> pa.StringArray:
    """Texts that lie one behind the other. ends: int32[n + 1], where each begins, and the last one ends."""
    return pa.StringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(characters))
