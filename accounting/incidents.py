"""What happened to readings other than an entry: they were refused, held, or are held no longer. From the ledger to events.

The rules leave numbers (rows of INCIDENT). What only events need, the readings' text above all, is made of them as columns
at the end of a body, beside the rules for the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from accounting.bill import REASONS
from accounting.columns import whole_columns
from accounting.ledger import HELD, HELD_REFUSED, HELD_SETTLED
from accounting.state import FOREVER, NONE
from accounting.texts import join, time_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accounting.readings import Readings

HeldTexts = dict[tuple[int, int], str]  # of the readings that are held, by the (ordinal, n) of the event that said so


def incident_events(
    number: int, incidents: Any, readings: Readings | None, held: HeldTexts
) -> dict[str, pa.RecordBatch]:
    """The events of a body's incidents (rows of INCIDENT) by kind, whole columns, each kind in order.

    number: the partition's. readings: the body's. held: the texts of those held before; changed to those held after it.
    """
    if not incidents.size:
        return {}
    what = incidents["what"]
    told, ended = what != HELD_SETTLED, (what == HELD_SETTLED) | (what == HELD_REFUSED)
    tales = _tales(incidents[told], _texts(incidents, told, ended, readings, held))
    is_held = pa.array(what[told] == HELD)
    return {
        "refused": tales.filter(pc.invert(is_held)),
        "held": tales.filter(is_held),
        "released": _released(number, incidents[ended]),
    }


def _texts(
    incidents: Any, told: NDArray[np.bool_], ended: NDArray[np.bool_], readings: Readings | None, held: HeldTexts
) -> pa.StringArray:
    """The text of each reading that is told of: made now if the body brought it, remembered if it was held before."""
    begin = readings.run_ordinals[0] if readings is not None else FOREVER
    ordinals = np.where(ended, incidents["held_ordinal"], incidents["ordinal"])
    new = ordinals >= begin
    texts = readings.texts(ordinals[told & new]) if readings is not None else pa.array([], pa.string())
    for ordinal, n in _held_ids(incidents[ended & ~told & ~new]):
        del held[ordinal, n]
    if (told & ~new).any():
        remembered = [held.pop(number) for number in _held_ids(incidents[told & ~new])]
        place = np.empty(np.count_nonzero(told), np.int64)
        place[new[told]] = np.arange(len(texts))
        place[~new[told]] = len(texts) + np.arange(len(remembered))
        texts = pa.concat_arrays([texts, pa.array(remembered, pa.string())]).take(pa.array(place))
    is_held = incidents["what"] == HELD
    is_held &= ~np.isin(incidents["ordinal"], ordinals[ended & new])
    still = incidents[is_held]
    names = zip(still["ordinal"].tolist(), still["n"].tolist(), strict=True)
    held |= dict(zip(names, texts.filter(pa.array(is_held[told])).to_pylist(), strict=True))
    return texts


def _held_ids(incidents: Any) -> list[tuple[int, int]]:
    return list(zip(incidents["held_ordinal"].tolist(), incidents["held_n"].tolist(), strict=True))


def _tales(incidents: Any, texts: pa.StringArray) -> pa.RecordBatch:
    """Columns of `refused` and `held`."""
    last_at = incidents["last_at"]
    known = (incidents["account"] > 0) & (last_at != NONE)
    last_wh = pa.array(incidents["last_wh"], mask=~known).cast(pa.string())
    columns = {
        "ordinal": incidents["ordinal"],
        "n": incidents["n"],
        "record_kind": pa.repeat("reading", len(texts)),
        "reason": _REASONS.take(pa.array(incidents["reason"])),
        "detail": join("last measured ", last_wh, " Wh at ", time_texts(pa.array(last_at, mask=~known))),
        "record": texts,
    }
    return whole_columns("refused", columns)


_REASONS = pa.array(REASONS, pa.string())
_OUTCOMES = pa.array(["settled", "refused"], pa.string())


def _released(number: int, incidents: Any) -> pa.RecordBatch:
    """Columns of `released`. That of a reading which is refused comes after its refusal."""
    refused, last_tick = incidents["what"] == HELD_REFUSED, incidents["last_tick"]
    ordinal, n = (pa.array(incidents[name]).cast(pa.string()) for name in ("held_ordinal", "held_n"))
    columns = {
        "ordinal": incidents["ordinal"],
        "n": incidents["n"] + refused,
        "held_id": join(f"{number}-", ordinal, "-", n),
        "released_at": pa.array(last_tick, mask=last_tick == NONE),
        "outcome": _OUTCOMES.take(pa.array(refused.astype(np.int8))),
    }
    return whole_columns("released", columns)
